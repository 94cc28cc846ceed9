"""`openiodm serve` as an operator has it: a process, sockets, signals. Start, addresses, readiness, and the end."""

import asyncio
import os
import re
import resource
import signal
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from openiodm.http.routes import Needs
from openiodm.protocols.download import RECHECK_S
from openiodm.rooms import open_rooms
from openiodm.settings import load
from tests.support.process import accepts, free_port
from tests.support.routes import COMPAT, NATIVE, label
from tests.support.served import (
    GRACE_S,
    LATE_S,
    LOGIN,
    Process,
    login,
    postgres_or_skip,
    refused,
    restartable_or_skip,
    serving,
    shown,
    until,
)

pytestmark = pytest.mark.scenario

PRODUCT = {"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
PRODUCT_OPTIONS = ("--device-type", "sensor", "--model", "m1", "--manufacturer", "acme")
USAGE = 2
DDI = "/DEFAULT/controller/v1"
PACKAGES = "/api/v1/packages"


class Raw:
    """One connection, on which a request is sent in pieces."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> "Raw":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, body

    def close(self) -> None:
        self.writer.close()


def head(method: str, path: str, headers: dict[str, str], length: int = 0) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: server", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def upload_path(name: str) -> str:
    return str(httpx.URL(PACKAGES, params={"type": "firmwarePackage", "name": name, "version": "V2", **PRODUCT}))


# ------------------------------------------------------------------------- start


async def test_the_first_start_shows_a_secret_that_works_and_the_second_shows_none(tmp_path: Path) -> None:
    async with serving(tmp_path, *PRODUCT_OPTIONS) as first:
        credentials = shown(first)
        assert set(credentials) == {"address", "app id", "secret", "token"}
        assert credentials["address"] == first.url
        await login(first, credentials)
        async with httpx.AsyncClient() as http:
            gateway = {"Authorization": f"GatewayToken {credentials['token']}"}
            assert (await http.get(f"{first.url}{DDI}/dev1", headers=gateway)).status_code == 200
        first.signal()
        assert await first.ended(GRACE_S + LATE_S) == 0
    async with serving(tmp_path, *PRODUCT_OPTIONS) as second:
        assert shown(second) == {}
        assert credentials["secret"] not in second.stderr
        await login(second, credentials)  # the application is the same


async def test_a_postgresql_url_is_all_it_takes(tmp_path: Path) -> None:
    with postgres_or_skip() as url:
        async with serving(tmp_path, "--database", url) as process:
            headers = await login(process, shown(process))
            async with httpx.AsyncClient(base_url=process.url, headers=headers) as http:
                assert (await http.get("/readyz")).json() == {"status": "ready"}
                assert (await http.post("/api/v1/devices", json={"nodeId": "n1", **PRODUCT})).status_code == 201
            connection = await asyncpg.connect(url)
            assert await connection.fetchval("SELECT node_id FROM device") == "n1"
            await connection.close()
            process.signal()
            assert await process.ended(GRACE_S + LATE_S) == 0
            assert "Traceback" not in process.stderr
    assert not (tmp_path / "openiodm.db").exists()


async def test_a_second_server_on_a_sqlite_file_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as first:
        status, said = await refused(tmp_path)
        assert status == USAGE
        assert f"another server runs on {tmp_path / 'openiodm.db'}" in said
        assert "Traceback" not in said
        await login(first, shown(first))


async def test_a_killed_server_leaves_nothing_in_the_way_of_the_next(tmp_path: Path) -> None:
    async with serving(tmp_path) as first:
        credentials = shown(first)
        first.signal(signal.SIGKILL)
        await first.ended(LATE_S)
    async with serving(tmp_path, port=first.port) as second:
        await login(second, credentials)


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        yield s.getsockname()[1]


async def test_a_port_in_use_is_said_and_no_application_is_made(tmp_path: Path) -> None:
    with taken_port() as port:
        status, said = await refused(tmp_path, port=port)
    assert status == USAGE
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said
    assert "Traceback" not in said
    assert "secret" not in said


async def test_a_device_port_in_use_is_said_too(tmp_path: Path) -> None:
    with taken_port() as port:
        status, said = await refused(tmp_path, "--device-listen", f"127.0.0.1:{port}")
    assert status == USAGE
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said
    assert "Traceback" not in said
    assert "secret" not in said


async def test_a_postgresql_that_is_not_there_is_said_and_another_start_is_worth_while(tmp_path: Path) -> None:
    status, said = await refused(tmp_path, "--database", f"postgresql://nobody@127.0.0.1:{free_port()}/none")
    assert status == 1  # systemd starts it again
    assert "cannot start" in said
    assert "Traceback" not in said


async def test_a_database_that_postgresql_does_not_have_is_said(tmp_path: Path) -> None:
    with postgres_or_skip() as url:
        status, said = await refused(tmp_path, "--database", url.replace("/postgres?", "/none?"))
    assert status == USAGE
    assert 'cannot start: database "none" does not exist' in said
    assert "Traceback" not in said


async def test_workers_serve_when_their_database_has_come(tmp_path: Path) -> None:
    with restartable_or_skip() as server:
        await asyncio.to_thread(server.stop)
        parent = Process(tmp_path, "--workers", "2", database=server.uri)
        try:
            await parent.launch()
            await until(lambda: _times(parent, "worker_ended", 2), 60)
            await asyncio.to_thread(server.start)
            await until(lambda: _times(parent, "workers_started", 1), 60)
            async with httpx.AsyncClient(base_url=parent.url) as http:
                assert await health(http) == (200, 200)
        finally:
            await parent.close()


async def _times(parent: Process, event: str, times: int) -> bool:
    return parent.stderr.count(event) >= times


async def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are notes " * 1000)
    status, said = await refused(tmp_path, "--database", f"sqlite:///{path}")
    assert status == USAGE
    assert "cannot start" in said
    assert "Traceback" not in said
    assert path.read_text().startswith("these are notes")


async def test_a_setting_that_makes_no_sense_is_said(tmp_path: Path) -> None:
    status, said = await refused(tmp_path, shutdown_grace_s="soon")
    assert status == USAGE
    assert "shutdown_grace_s" in said
    assert "Traceback" not in said


# ------------------------------------------------------------------- two addresses


async def test_devices_and_applications_are_kept_apart_on_two_addresses(tmp_path: Path) -> None:
    device_port = free_port()
    async with serving(
        tmp_path, *PRODUCT_OPTIONS, "--device-listen", f"127.0.0.1:{device_port}", native_calls_per_minute=0
    ) as process:
        credentials = shown(process)
        headers = await login(process, credentials)
        gateway = {"Authorization": f"GatewayToken {credentials['token']}"}
        device_url = f"http://127.0.0.1:{device_port}"
        async with httpx.AsyncClient(headers=headers) as http:
            served = []
            for route in (*COMPAT, *NATIVE):
                path = route.path.replace("{", "").replace("}", "")
                answer = await http.request(route.method, device_url + path)
                if (answer.status_code, answer.json()) != (404, {"error": "not found"}):
                    served.append(f"{label(route)}: {answer.status_code} {answer.text}")
                if route.needs is Needs.APPLICATION and route.method == "GET":  # the other one does serve it
                    there = await http.get(process.url + path)
                    assert b'"not found"' not in there.content
            assert served == []
            assert (await http.get(f"{device_url}{DDI}/dev1", headers=gateway)).status_code == 200
            for path in ("/dev1", "/dev1/configData", "/dev1/deploymentBase/1", "/dev1/softwaremodules/1/artifacts"):
                answer = await http.get(f"{process.url}{DDI}{path}", headers=gateway)
                assert (answer.status_code, answer.json()["error_code"]) == (404, "120015")
            for url in (process.url, device_url):
                assert (await http.get(f"{url}/healthz")).status_code == 200
        process.signal()
        assert await process.ended(GRACE_S + LATE_S) == 0
        assert not accepts(process.port)
        assert not accepts(device_port)


# ----------------------------------------------------------------------- readiness


async def health(http: httpx.AsyncClient) -> tuple[int, int]:
    answers = [await http.get(path) for path in ("/healthz", "/readyz")]
    assert all(a.headers["content-type"] == "application/json" for a in answers)
    return answers[0].status_code, answers[1].status_code


async def test_it_is_not_ready_while_the_disk_takes_nothing_and_ready_again_after(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as process,
        httpx.AsyncClient(base_url=process.url, timeout=30) as http,
    ):
        assert await health(http) == (200, 200)
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, most))  # as on a full disk, every write fails
        assert await health(http) == (200, 503)
        credentials = shown(process)
        form = {"appId": credentials["app id"], "secret": credentials["secret"]}
        answer = await http.post(LOGIN, data=form)
        assert (answer.status_code, answer.json()["error_code"]) == (500, "50252")
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))

        async def ready_again() -> bool:  # a while after the last write that was refused
            return await health(http) == (200, 200)

        await until(ready_again, LATE_S * 5)
        assert (await http.post(LOGIN, data=form)).status_code == 200


async def test_polls_are_answered_while_another_process_holds_sqlites_lock(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, *PRODUCT_OPTIONS) as process,
        httpx.AsyncClient(base_url=process.url, timeout=30) as http,
    ):
        gateway = {"Authorization": f"GatewayToken {shown(process)['token']}"}
        assert (await http.get(f"{DDI}/dev1", headers=gateway)).status_code == 200
        with holding(tmp_path / "openiodm.db"):
            ready = asyncio.create_task(http.get("/readyz"))
            await asyncio.sleep(0.3)
            assert (await http.get(f"{DDI}/dev1", headers=gateway)).status_code == 200
            assert (await http.get("/healthz")).status_code == 200
            assert not ready.done()  # its write waits for the lock all the while
            assert (await ready).status_code == 503
        assert (await http.get("/readyz")).status_code == 200


@contextmanager
def holding(database: Path) -> Iterator[sqlite3.Connection]:
    """Another process's write transaction, as of a backup or of the command line."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    finally:
        connection.close()


async def test_it_is_not_ready_without_its_postgresql_and_comes_back_with_it(tmp_path: Path) -> None:
    with restartable_or_skip() as server:
        async with (
            serving(tmp_path, "--database", server.uri) as process,
            httpx.AsyncClient(base_url=process.url, timeout=30) as http,
        ):
            assert await health(http) == (200, 200)
            await asyncio.to_thread(server.stop)
            assert await health(http) == (200, 503)
            await asyncio.to_thread(server.start)

            async def ready() -> bool:
                return await health(http) == (200, 200)

            await until(ready, 15)
            await login(process, shown(process))
            await asyncio.to_thread(server.stop)
            process.signal()  # and it ends in order without one
            assert await process.ended(GRACE_S + LATE_S) == 0


async def test_with_more_connections_than_files_everybody_is_served_and_packages_can_be_opened(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'o.db'}"
    async with offered(tmp_path, database, files=128) as (process, device, action, gateway):
        gone = 0
        crowd = [await Raw.open(process.port) for _ in range(90)]
        for n in range(300):  # each of another device, which keeps its connection
            crowd.append(await Raw.open(process.port))
            await crowd[-1].send(head("GET", f"{DDI}/many{n}", gateway))
            assert (await crowd[-1].answer())[0] == 200
        for raw in crowd:
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(0.001):
                    gone += await raw.reader.read(1) == b""
        assert gone >= 390 - 96
        deployment = (await device.get(f"{DDI}/dev1/deploymentBase/{action}")).json()["deployment"]
        href = deployment["chunks"][0]["artifacts"][0]["_links"]["download-http"]["href"]
        assert len((await device.get(href)).content) == 1000
        await until(lambda: _says(process, "too_many_connections"), LATE_S * 5)
        for raw in crowd:
            raw.close()


async def _says(process: Process, word: str) -> bool:
    return word in process.stderr


# ------------------------------------------------------------------------- the end


async def test_an_upload_under_way_is_answered_and_kept_when_the_server_is_told_to_stop(tmp_path: Path) -> None:
    content = os.urandom(200_000)
    async with serving(tmp_path) as process:
        credentials = shown(process)
        headers = await login(process, credentials)
        raw = await Raw.open(process.port)
        await raw.send(head("POST", upload_path("slow.bin"), headers, len(content)) + content[:100_000])
        await asyncio.sleep(0.3)
        process.signal()
        await until(lambda: _refuses(process.port), LATE_S)
        await raw.send(content[100_000:150_000])
        await asyncio.sleep(0.3)
        await raw.send(content[150_000:])
        status, answer_headers, body = await raw.answer()
        assert status == 201, body
        assert answer_headers["connection"] == "close"
        raw.close()
        assert await process.ended(GRACE_S + LATE_S) == 0
        assert "Traceback" not in process.stderr
    async with serving(tmp_path) as again, httpx.AsyncClient(base_url=again.url) as http:
        listed = await http.get(PACKAGES, headers=await login(again, credentials))
        assert [(p["name"], p["size"]) for p in listed.json()["items"]] == [("slow.bin", len(content))]


async def _refuses(port: int) -> bool:
    return not accepts(port)


@asynccontextmanager
async def offered(
    data: Path, database: str, size: int = 1000, **settings: Any
) -> AsyncIterator[tuple[Process, httpx.AsyncClient, int, dict[str, str]]]:
    """A server with a device that was made an offer: process, the device's client, its action, its application."""
    async with serving(data, *PRODUCT_OPTIONS, database=database, **settings) as process:
        credentials = shown(process)
        headers = await login(process, credentials)
        gateway = {"Authorization": f"GatewayToken {credentials['token']}"}
        async with (
            httpx.AsyncClient(base_url=process.url, headers=headers, timeout=30) as api,
            httpx.AsyncClient(base_url=process.url, headers=gateway, timeout=30) as device,
        ):
            package = await api.post(upload_path("image.bin"), content=bytes(size))
            await device.get(f"{DDI}/dev1")
            (known,) = (await api.get("/api/v1/devices")).json()["items"]
            task = {
                "kind": "firmware_upgrade",
                "fileId": package.json()["fileId"],
                "targets": {"devices": [known["deviceId"]]},
            }
            assert (await api.post("/api/v1/tasks", json=task)).status_code == 201
            links = (await device.get(f"{DDI}/dev1")).json()["_links"]
            action = int(re.search(r"/deploymentBase/(\d+)", links["deploymentBase"]["href"]).group(1))  # type: ignore[union-attr]
            yield process, device, action, gateway


SUCCEEDED = {"status": {"execution": "closed", "result": {"finished": "success"}, "details": []}}


async def test_a_report_that_waits_for_its_commit_is_answered_on_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "openiodm.db"
    async with offered(tmp_path, f"sqlite:///{path}", shutdown_grace_s=8) as (process, device, action, _):
        with holding(path) as lock:
            report = asyncio.create_task(device.post(f"{DDI}/dev1/deploymentBase/{action}/feedback", json=SUCCEEDED))
            await asyncio.sleep(0.3)
            assert not report.done()
            process.signal()
            await until(lambda: _refuses(process.port), LATE_S)
            assert not report.done()
            lock.execute("COMMIT")
            assert (await report).status_code == 200
        assert await process.ended(8 + LATE_S) == 0
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT state FROM upgrade").fetchall() == [("success",)]
    connection.close()


async def test_a_report_that_waits_for_its_commit_is_answered_on_postgresql(tmp_path: Path) -> None:
    with postgres_or_skip() as url:
        async with offered(tmp_path, url, shutdown_grace_s=8) as (process, device, action, _):
            other = await asyncpg.connect(url)
            lock = other.transaction()
            await lock.start()
            await other.execute("LOCK TABLE history IN EXCLUSIVE MODE")
            report = asyncio.create_task(device.post(f"{DDI}/dev1/deploymentBase/{action}/feedback", json=SUCCEEDED))
            await asyncio.sleep(0.3)
            process.signal()
            await until(lambda: _refuses(process.port), LATE_S)
            assert not report.done()
            await lock.rollback()
            assert (await report).status_code == 200
            assert await process.ended(8 + LATE_S) == 0
            assert await other.fetchval("SELECT state FROM upgrade") == "success"
            await other.close()


async def test_a_download_that_takes_too_long_is_cut_at_the_end_of_the_grace(tmp_path: Path) -> None:
    size = 64 * 1024 * 1024
    async with offered(tmp_path, f"sqlite:///{tmp_path / 'o.db'}", size) as (process, device, action, gateway):
        deployment = (await device.get(f"{DDI}/dev1/deploymentBase/{action}")).json()["deployment"]
        href = deployment["chunks"][0]["artifacts"][0]["_links"]["download-http"]["href"]
        raw = await Raw.open(process.port)
        await raw.send(head("GET", httpx.URL(href).path, gateway))
        first = await raw.reader.readuntil(b"\r\n\r\n")
        assert b"200 OK" in first
        process.signal()
        began = time.monotonic()
        status = await process.ended(GRACE_S + LATE_S)  # though nobody reads the bytes
        assert status == 0
        assert time.monotonic() - began > GRACE_S - 1  # it had its time
        rest = b""
        with suppress(ConnectionError):
            rest = await raw.reader.read(-1)
        assert len(rest) < size  # the device sees that it is cut
        raw.close()
        assert "Traceback" not in process.stderr


async def test_a_freeze_cuts_a_download_that_is_under_way(tmp_path: Path) -> None:
    size = 64 * 1024 * 1024
    url = f"sqlite:///{tmp_path / 'o.db'}"
    async with offered(tmp_path, url, size) as (process, device, action, gateway):
        deployment = (await device.get(f"{DDI}/dev1/deploymentBase/{action}")).json()["deployment"]
        href = deployment["chunks"][0]["artifacts"][0]["_links"]["download-http"]["href"]
        raw = await Raw.open(process.port)
        await raw.send(head("GET", httpx.URL(href).path, gateway))
        assert b"200 OK" in await raw.reader.readuntil(b"\r\n\r\n")
        async with open_rooms(load(environ={}, database=url, data_dir=str(tmp_path))) as beside:  # as `app freeze` does
            (application,) = await beside.access_queries.applications()
            await beside.access.set_frozen(application.app_id, frozen=True)
        await asyncio.sleep(RECHECK_S)  # nobody has read meanwhile, so the server waits in the middle of the file
        rest = b""
        with suppress(ConnectionError):
            rest = await raw.reader.read(-1)
        assert len(rest) < size
        raw.close()
        assert (await device.get(f"{DDI}/dev1")).status_code == 401


async def test_an_idle_connection_holds_up_no_end(tmp_path: Path) -> None:
    async with serving(tmp_path, shutdown_grace_s=60) as process:
        idle, silent = await Raw.open(process.port), await Raw.open(process.port)
        await idle.send(head("GET", "/healthz", {}))
        assert (await idle.answer())[0] == 200
        process.signal()
        assert await process.ended(LATE_S) == 0
        for raw in (idle, silent):
            assert await raw.reader.read(-1) == b""
            raw.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_both_signals_end_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    async with serving(tmp_path) as process:
        process.signal(number)
        assert await process.ended(GRACE_S + LATE_S) == 0
        assert '"stopping"' in process.stderr
        assert "Traceback" not in process.stderr
