"""A whole server's log, while everything is done with secrets and much of it fails: no secret is in it.

Every secret that the run uses or is given is collected, and looked for in all that the process wrote to stderr.
"""

import asyncio
import json
import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.process import Server, free_port, gateway_token
from tests.support.served import GRACE_S, LATE_S, LOGIN, Process, restartable_or_skip, serving, until

pytestmark = pytest.mark.scenario

PRODUCT = {"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
DDI = "/DEFAULT/controller/v1"
SEC = "/iocm/app/sec/v1.1.0"
REGISTER = "/iocm/app/reg/v1.1.0/deviceCredentials"


@dataclass
class Run:
    """An application and a device that use the server; `secrets` grows with all that they send and get."""

    http: httpx.AsyncClient
    app_id: str
    secrets: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    count: int = 0

    def secret(self, text: str) -> str:
        self.secrets.append(text)
        return text

    def made_up(self, what: str = "secret") -> str:
        """A new one, of a form that every field takes."""
        self.count += 1
        return self.secret(f"{what}-hunter{self.count:04d}-abcdefgh")

    def psk(self) -> str:
        self.count += 1
        return self.secret(f"c0ffee{self.count:04d}deadbeef")

    async def login(self, secret: str) -> None:
        answer = await self.http.post(LOGIN, data={"appId": self.app_id, "secret": secret})
        if answer.status_code == 200:
            tokens = answer.json()
            self.secret(tokens["refreshToken"])
            token = self.secret(tokens["accessToken"])
            self.headers = {"app_key": self.app_id, "Authorization": f"Bearer {token}"}

    async def everything(self, app_secret: str, gateway: str) -> set[int]:
        """All kinds of calls that carry a secret, right ones and wrong ones; the statuses of their answers."""
        answers = []
        wrong = {"app_key": self.app_id, "Authorization": f"Bearer {self.made_up('token')}"}

        async def call(method: str, path: str, headers: dict[str, str] | None = None, **kwargs: Any) -> httpx.Response:
            answers.append(await self.http.request(method, path, headers=headers or self.headers, **kwargs))
            return answers[-1]

        # sessions
        await self.login(app_secret)
        await call("POST", LOGIN, data={"appId": self.app_id, "secret": self.made_up()})
        await call("POST", LOGIN, json={"appId": self.app_id, "secret": self.made_up(), "x": ["y"]})
        await call("POST", LOGIN, content=f"appId={self.app_id}&secret={self.made_up()}&secret=\0")
        refresh = {"appId": self.app_id, "secret": app_secret, "refreshToken": self.made_up()}
        await call("POST", f"{SEC}/refreshToken", json=refresh)
        await call("POST", f"{SEC}/refreshToken", json={**refresh, "secret": [self.made_up()]})
        await call("POST", f"{SEC}/logout", json={"accessToken": self.made_up()})
        await call("GET", "/iodm/northbound/v1.5.0/operations", wrong)
        await call("GET", "/api/v1/tasks", wrong)
        # devices
        node = f"n{self.count}"
        body = {"nodeId": node, "verifyCode": self.made_up("code"), "psk": self.psk()}
        made = await call("POST", REGISTER, json=body)
        for again in (body, {**body, "psk": self.made_up("psk")}, {**body, "verifyCode": [self.made_up()]}):
            await call("POST", REGISTER, json=again)
        if made.status_code == 200:
            device_id = made.json()["deviceId"]
            await call("PUT", f"{REGISTER}/{device_id}", json={"verifyCode": self.made_up("code")})
            answer = await call("PUT", f"/api/v1/devices/{device_id}/target-token", json={})
            if answer.status_code == 200:
                await self.polls(node, f"TargetToken {self.secret(answer.json()['token'])}", answers)
            await call("PUT", f"/api/v1/devices/{device_id}/target-token", json={"token": self.made_up("token")})
            await call("PUT", f"/api/v1/devices/{device_id}/target-token", json={"token": self.made_up("to ken")})
        native = {**PRODUCT, "nodeId": f"b{self.count}", "psk": self.psk(), "targetToken": self.made_up("token-of-24")}
        await call("POST", "/api/v1/devices", json=native)
        await call("POST", "/api/v1/devices", json={**native, "verifyCode": 5, "psk": self.made_up("psk")})
        line = {**native, "nodeId": f"c{self.count}", "verifyCode": self.made_up("code")}
        bulk = b"".join(json.dumps(x).encode() + b"\n" for x in (line, line, {**line, "psk": self.made_up("psk")}))
        await call("POST", "/api/v1/devices/bulk", content=bulk)
        answer = await call("POST", "/api/v1/gateway-tokens", json={"name": "t", **PRODUCT})
        if answer.status_code == 201:
            self.secret(answer.json()["token"])
        # DDI
        await self.polls(f"d{self.count}", f"GatewayToken {gateway}", answers)
        await self.polls(f"d{self.count}", f"GatewayToken {self.made_up('token')}", answers)
        await self.polls(node, f"TargetToken {self.made_up('token')}", answers)
        # packages: well, badly, and with a body that is none
        query = {"type": "firmwarePackage", "name": f"p{self.count}", "version": "V2", **PRODUCT}
        await call("POST", "/api/v1/packages", params=query, content=b"bytes")
        await call("POST", "/api/v1/packages", params={**query, "sha256": "0" * 64}, content=b"bytes")
        await call("POST", "/api/v1/packages", wrong, params=query, content=b"bytes")
        await call("POST", "/api/v1/tasks", json={"kind": "firmware_upgrade", "fileId": "x", "targets": {}})
        return {a.status_code for a in answers}

    async def polls(self, node: str, authorization: str, answers: list[httpx.Response]) -> None:
        headers = {"Authorization": authorization}
        data = {"mode": "merge", "data": {"fwVersion": "V1"}}
        answers.append(await self.http.get(f"{DDI}/{node}", headers=headers))
        answers.append(await self.http.put(f"{DDI}/{node}/configData", headers=headers, json=data))
        answers.append(await self.http.put(f"{DDI}/{node}/configData", headers=headers, content=b"{"))
        answers.append(await self.http.get(f"{DDI}/{node}/deploymentBase/x", headers=headers))


async def set_up(folder: Path, database: str) -> tuple[str, str, str]:
    """App id, secret and gateway token, made by the command line: in no server's log."""
    shell = Server(folder, database, free_port())
    made = await shell.cli("app", "create", "a", "--json")
    return made["appId"], made["secret"], await gateway_token(shell, made["appId"])


async def garbage(process: Process, secret: str) -> None:
    """What is no HTTP at all."""
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    writer.write(f"GET /{secret} HTTP/9\r\nAuthorization: Bearer {secret}\r\n\0\r\n\r\n".encode())
    await reader.read(-1)
    writer.close()


def leaked(run: Run, stderr: str) -> list[str]:
    return [s for s in run.secrets if s in stderr]


def events(stderr: str) -> list[str]:
    """Of a JSON log: every line is an object with an event."""
    return [json.loads(line)["event"] for line in stderr.splitlines()]


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_with_sqlite_whose_disk_fails_meanwhile(tmp_path: Path, log_format: str) -> None:
    app_id, app_secret, gateway = await set_up(tmp_path, f"sqlite:///{tmp_path / 'openiodm.db'}")
    async with (
        serving(tmp_path, log_format=log_format, log_level="debug", last_seen_flush_s=1) as process,
        httpx.AsyncClient(base_url=process.url, timeout=30) as http,
    ):
        run = Run(http, app_id, [app_secret, gateway])
        statuses = await run.everything(app_secret, gateway)
        assert {200, 201, 400, 401, 403} <= statuses
        assert not any(status >= 500 for status in statuses)
        await garbage(process, run.made_up())
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, most))
        assert 500 in await run.everything(app_secret, gateway)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        process.signal()
        assert await process.ended(GRACE_S + LATE_S) == 0
        for event in ("request_refused", "request_failed", "package_uploaded", "stopping"):
            assert event in process.stderr
        assert leaked(run, process.stderr) == []
        if log_format == "json":
            assert "request_failed" in events(process.stderr)


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_with_postgresql_that_is_stopped_meanwhile(tmp_path: Path, log_format: str) -> None:
    with restartable_or_skip() as server:
        password = "hunter2-of-the-database"
        url = server.uri.replace("postgres:@", f"postgres:{password}@")  # it trusts the socket and takes any
        assert password in url
        app_id, app_secret, gateway = await set_up(tmp_path, url)
        async with (
            serving(tmp_path, database=url, log_format=log_format, log_level="debug", last_seen_flush_s=1) as process,
            httpx.AsyncClient(base_url=process.url, timeout=30) as http,
        ):
            run = Run(http, app_id, [app_secret, gateway, password])
            assert {200, 201, 400, 401, 403} <= await run.everything(app_secret, gateway)
            await asyncio.to_thread(server.stop)
            assert 500 in await run.everything(app_secret, gateway)
            await asyncio.to_thread(server.start)

            async def ready() -> bool:
                return (await http.get("/readyz")).status_code == 200

            await until(ready, 15)
            process.signal()
            assert await process.ended(GRACE_S + LATE_S) == 0
            assert "request_not_served" in process.stderr
            assert leaked(run, process.stderr) == []


async def test_a_first_start_shows_its_secret_beside_the_log_and_not_in_it(tmp_path: Path) -> None:
    async with serving(tmp_path, log_format="json", log_level="debug") as process:
        logged = [line for line in process.stderr.splitlines() if line.startswith("{")]
        (shown,) = [line for line in process.stderr.splitlines() if line.startswith("  secret")]
        secret = shown.split()[1]
        assert logged
        assert not any(secret in line for line in logged)


async def test_a_database_url_that_is_refused_is_not_repeated(tmp_path: Path) -> None:
    for url, status in (
        ("postgresql://u:hunter2@127.0.0.1:nowhere/d", 2),
        ("postgresql://u:hunter2@127.0.0.1:1/d", 1),
        ("postgresql://u:hunter2@no.such.host.invalid/d", 1),
        ("mysql://u:hunter2@h/d", 2),
        ("postgresql://u:hunter2@/d?sslmode=sometimes", 2),
    ):
        process = Process(tmp_path, database=url)
        try:
            await process.launch()
            assert await process.ended(30) == status, process.stderr
            assert "Traceback" not in process.stderr
            assert "hunter2" not in process.stderr
        finally:
            await process.close()
