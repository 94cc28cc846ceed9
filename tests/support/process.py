"""A server in a process of its own, as a user runs it, and the northbound API as an application calls it."""

import asyncio
import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.support.postgres import postgres

START_WITHIN_S = 20.0


class Server:
    """`openiodm serve` in a process of its own, which can be killed and started again."""

    def __init__(self, folder: Path, database: str, port: int, log: str = "server.log", **settings: str) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._environment = {
            **os.environ,
            "OPENIODM_DATA_DIR": str(folder),
            "OPENIODM_DATABASE": database,
            "OPENIODM_LISTEN": f"127.0.0.1:{port}",
            "OPENIODM_LOG_LEVEL": "warning",
            "OPENIODM_CALLS_PER_MINUTE": "0",
            "OPENIODM_ADDRESS_REQUESTS_PER_MINUTE": "0",  # every simulated device has the same
            "OPENIODM_LAST_SEEN_FLUSH_S": "1",
            **{f"OPENIODM_{name.upper()}": value for name, value in settings.items()},
        }
        self._log = folder / log
        self._process: asyncio.subprocess.Process | None = None

    def use(self, database: str) -> None:
        """From its next start on, and for commands, another database."""
        self._environment["OPENIODM_DATABASE"] = database

    async def cli(self, *arguments: str) -> Any:
        """Runs a command of the CLI that prints JSON."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "openiodm.cli.main", *arguments, env=self._environment, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, arguments
        return json.loads(out)

    async def start(self) -> float:
        """Seconds until it answers."""
        began = time.monotonic()
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "openiodm.cli.main", "serve", env=self._environment, stdout=log, stderr=log
            )
        async with httpx.AsyncClient() as http:
            while time.monotonic() - began < START_WITHIN_S:
                if self._process.returncode is not None:
                    raise AssertionError(f"the server ended at its start:\n{self._log.read_text()[-2000:]}")
                try:
                    if (await http.get(f"{self.url}/readyz")).status_code == 200:
                        return time.monotonic() - began
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)
        raise AssertionError("the server does not answer")

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    def send(self, what: signal.Signals) -> None:
        """Sends a signal, if it still runs."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(what)

    def said(self, *events: str) -> int:
        """How often its log tells of one of these."""
        log = self._log.read_text("utf-8")
        return sum(log.count(event) for event in events)

    async def end(self, how: signal.Signals) -> int:
        """Ends it; its exit status."""
        self.send(how)
        assert self._process is not None
        return await self._process.wait()


class Northbound:
    """The compatible API as an application uses it, over kills: what fails for lack of a server is sent again."""

    def __init__(self, http: httpx.AsyncClient, app_id: str, secret: str) -> None:
        self._http = http
        self._app_id = app_id
        self._secret = secret
        self._headers: dict[str, str] = {}

    async def _login(self) -> None:
        form = {"appId": self._app_id, "secret": self._secret}
        answer = await self._http.post("/iocm/app/sec/v1.1.0/login", data=form)
        token = answer.json()["accessToken"]
        self._headers = {"app_key": self._app_id, "Authorization": f"Bearer {token}"}

    async def send(self, method: str, path: str, headers: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        """The answer, whatever it is."""
        for _ in range(100):
            try:
                if not self._headers:
                    await self._login()
                return await self._http.request(method, path, headers={**self._headers, **(headers or {})}, **kwargs)
            except httpx.TransportError:
                await asyncio.sleep(0.1)
        raise AssertionError(f"no answer to {method} {path}")

    async def headers(self) -> Mapping[str, str]:
        """What every call carries, for those who write their own."""
        if not self._headers:
            await self._login()
        return self._headers

    async def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """The document of a successful answer. A server whose database is away for a moment is asked again."""
        for _ in range(100):
            answer = await self.send(method, path, **kwargs)
            if answer.status_code < 500:
                break
            await asyncio.sleep(0.1)
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None

    async def upload(self, name: str, content: bytes, version: str = "2.0.0") -> str:
        """A firmware package for the product of `gateway_token`; its file id."""
        query = {
            "name": name,
            "type": "firmwarePackage",
            "version": version,
            "deviceType": "sensor",
            "model": "m1",
            "manufacturerName": "acme",
        }
        return str((await self.call("POST", "/api/v1/packages", params=query, content=content))["fileId"])

    async def create_group(self, name: str, device_ids: Sequence[str]) -> None:
        group = await self.call("POST", "/iocm/app/devgroup/v1.3.0/devGroups", json={"name": name})
        for start in range(0, len(device_ids), 1000):
            body = {"devGroupId": group["id"], "deviceIds": device_ids[start : start + 1000]}
            await self.call("POST", "/iocm/app/dm/v1.1.0/devices/addDevGroupTagToDevices", json=body)

    async def create_task(self, file_id: str, policy: Any = None, **targets: Any) -> str:
        body = {"fileId": file_id, "targets": targets} | ({"policy": policy} if policy else {})
        task = await self.call("POST", "/iodm/northbound/v1.5.0/operations/firmwareUpgrade", json=body)
        return str(task["operationId"])

    async def device_ids(self, count: int) -> list[str]:
        ids: list[str] = []
        page = 0
        while len(ids) < count:
            found = await self.call("GET", "/iocm/app/dm/v1.4.0/devices", params={"pageNo": page, "pageSize": 250})
            ids += [d["deviceId"] for d in found["devices"]]
            page += 1
        return ids

    async def task(self, operation: str) -> Any:
        found = await self.call("GET", "/iodm/northbound/v1.5.0/operations")
        return next(t for t in found["data"] if t["operationId"] == operation)

    async def wait_until_final(self, operation: str, within: float = 240.0) -> Any:
        until = time.monotonic() + within
        while time.monotonic() < until:
            task = await self.task(operation)
            if task["status"] in ("success", "failed", "stop"):
                return task
            await asyncio.sleep(0.2)
        raise AssertionError(f"the task does not end: {task}")


async def gateway_token(server: Server, app_id: str) -> str:
    made = await server.cli(
        "app", "gateway-token", app_id, "--name", "fleet", "--device-type", "sensor", "--model", "m1",
        "--manufacturer", "acme", "--json",
    )  # fmt: skip
    return str(made["token"])


def accepts(port: int) -> bool:
    """Does anybody listen there?"""
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


PORTS = range(10_000, 32_000)
"""Below those that the kernel gives out by itself: a connection of another test could get such a one meanwhile."""

_given: set[int] = set()


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """On 127.0.0.1; never the same one twice."""
    while True:
        port = secrets.choice(PORTS)
        if port not in _given:
            with socket.socket(socket.AF_INET, kind) as s, suppress(OSError):
                s.bind(("127.0.0.1", port))
                _given.add(port)
                return port


def free_udp_port() -> int:
    """See `free_port`."""
    return free_port(socket.SOCK_DGRAM)


@asynccontextmanager
async def fresh_database(engine: str, folder: Path) -> AsyncIterator[str]:
    """The URL of an empty database, with a PostgreSQL server of its own where that is asked for."""
    if engine == "sqlite":
        yield f"sqlite:///{folder / 'openiodm.db'}"
        return
    with ExitStack() as stack:
        yield await asyncio.to_thread(stack.enter_context, postgres())
