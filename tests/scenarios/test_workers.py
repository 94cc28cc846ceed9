"""`openiodm serve --workers N` as an operator has it: one address, several processes on one PostgreSQL, one parent."""

import asyncio
import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.support.process import free_port
from tests.support.served import GRACE_S, LATE_S, LOGIN, Process, login, refused, serving, shown, until

pytestmark = [pytest.mark.scenario, pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)]

USAGE = 2
WITHIN_S = 30.0
WRONG_SECRET = "100208"


@asynccontextmanager
async def workers(data: Path, database_url: str, count: int, **settings: Any) -> AsyncIterator[Process]:
    """All of them serve."""
    async with serving(data, "--workers", str(count), database=database_url, **settings) as process:
        await said(process, "workers_started")
        yield process


async def said(process: Process, event: str, times: int = 1) -> None:
    """The log has the event so often."""

    async def so() -> bool:
        return process.stderr.count(f'"event": "{event}"') >= times

    await until(so, WITHIN_S)


def processes(parent: Process) -> list[psutil.Process]:
    """Its workers, oldest first."""
    return [p for p in psutil.Process(parent.pid).children() if runs(p)]


async def gone(some: list[psutil.Process], within: float) -> None:
    async def all_gone() -> bool:
        return not any(map(runs, some))

    await until(all_gone, within)


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def asked(url: str, times: int = 1) -> int:
    """How many of so many calls, each on a connection of its own, are answered."""
    answered = 0
    for _ in range(times):
        async with httpx.AsyncClient(timeout=WITHIN_S) as http:
            with suppress(httpx.TransportError):
                answered += (await http.get(f"{url}/healthz")).status_code == 200
    return answered


async def test_the_first_start_is_made_once_and_connections_are_dealt_out_to_all(
    database_url: str, tmp_path: Path
) -> None:
    base = free_ports(3)
    async with workers(tmp_path, database_url, 3, metrics_listen=f"127.0.0.1:{base}") as parent:
        assert parent.stderr.count("  secret ") == 1
        await login(parent, shown(parent))
        assert len(processes(parent)) == 3
        assert await asked(parent.url, 64) == 64
        health = []
        async with httpx.AsyncClient() as http:
            for n in range(3):  # each worker tells its own
                text = (await http.get(f"http://127.0.0.1:{base + n}/metrics")).text
                found = re.search(r'^openiodm_requests_total\{api="health",status="2xx"\} (\S+)$', text, re.MULTILINE)
                health.append(0.0 if found is None else float(found[1]))
        assert all(health), f"one of them got none of 64 connections: {health}"
        assert sum(health) >= 64
        parent.signal()
        assert await parent.ended(GRACE_S + LATE_S) == 0
        assert "Traceback" not in parent.stderr


def free_ports(count: int) -> int:
    """The first of so many free ones in a row."""
    while True:
        base = free_port()
        with suppress(OSError):
            for port in range(base + 1, base + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return base


async def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(database_url: str, tmp_path: Path) -> None:
    async with workers(tmp_path, database_url, 2) as parent:
        before = processes(parent)
        for killed in before:  # the first one too, which has more to do
            killed.kill()
        await said(parent, "worker_ended", 2)
        await said(parent, "started", 4)
        assert parent.stderr.count("  secret ") == 1
        now = processes(parent)
        assert len(now) == 2
        assert {p.pid for p in now}.isdisjoint(p.pid for p in before)
        now[0].kill()
        await said(parent, "worker_ended", 3)
        assert await asked(parent.url, 20) == 20  # from the moment at which its socket is gone
        parent.signal(signal.SIGINT)
        assert await parent.ended(GRACE_S + LATE_S) == 0


async def test_when_the_parent_is_killed_its_workers_end_in_order_and_another_takes_their_place(
    database_url: str, tmp_path: Path
) -> None:
    async with workers(tmp_path, database_url, 2) as parent:
        credentials = shown(parent)
        orphans = processes(parent)
        parent.signal(signal.SIGKILL)
        await gone(orphans, GRACE_S + LATE_S)
        await parent.ended(LATE_S)
        assert parent.stderr.count('"event": "stopping"') == 2
        assert "Traceback" not in parent.stderr
    async with workers(tmp_path, database_url, 2, port=parent.port) as again:
        await login(again, credentials)


async def test_workers_stopped_one_after_the_other_are_replaced_while_clients_go_on(
    database_url: str, tmp_path: Path
) -> None:
    """A connection that waits in the queue of one that ends is reset, as by any server that ends: it is made again."""
    async with workers(tmp_path, database_url, 2) as parent:
        over = asyncio.Event()
        outcomes: Counter[bool] = Counter()

        async def client() -> None:
            while not over.is_set():
                outcomes[await asked(parent.url) == 1 or await asked(parent.url, 2) > 0] += 1

        clients = [asyncio.create_task(client()) for _ in range(4)]
        for n, worker in enumerate(processes(parent), 1):
            worker.terminate()
            await said(parent, "worker_ended", n)
            await said(parent, "started", 2 + n)
        over.set()
        await asyncio.gather(*clients)
        assert outcomes[True]
        assert not outcomes[False]
        assert re.findall(r'"status": (-?\d+), "again_in_s"', parent.stderr) == ["0", "0"]


async def test_a_stop_lets_the_requests_of_every_worker_end(database_url: str, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    about = {"type": "firmwarePackage", "version": "V2", "deviceType": "t", "model": "m", "manufacturerName": "x"}
    async with workers(tmp_path, database_url, 2, shutdown_grace_s=20) as parent:
        headers = await login(parent, shown(parent))
        begun, go_on = [asyncio.Event() for _ in range(8)], asyncio.Event()

        async def slowly(n: int) -> AsyncIterator[bytes]:
            yield content[:50_000]
            begun[n].set()
            await go_on.wait()
            yield content[50_000:]

        async def upload(n: int) -> int:
            async with httpx.AsyncClient(base_url=parent.url, headers=headers, timeout=WITHIN_S) as http:
                params = {**about, "name": f"slow{n}.bin"}
                return (await http.post("/api/v1/packages", params=params, content=slowly(n))).status_code

        uploads = [asyncio.create_task(upload(n)) for n in range(8)]
        for each in begun:
            await each.wait()
        parent.signal()
        await said(parent, "stopping", 2)
        go_on.set()
        assert await asyncio.gather(*uploads) == [201] * 8
        assert await parent.ended(20 + LATE_S) == 0


async def each_alone(calls: list[Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]]) -> list[httpx.Response]:
    """The answers to calls that are made at once, each on a connection of its own."""

    async def one(call: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]) -> httpx.Response:
        async with httpx.AsyncClient(timeout=WITHIN_S) as http:
            return await call(http)

    return await asyncio.gather(*map(one, calls))


@pytest.mark.parametrize("path", ["/iodm/northbound/v1.5.0/operations", "/api/v1/tasks"])
async def test_of_calls_to_all_workers_at_once_exactly_the_limits_number_passes(
    database_url: str, tmp_path: Path, path: str
) -> None:
    n = 20
    async with workers(tmp_path, database_url, 4, calls_per_minute=n, native_calls_per_minute=n) as parent:
        headers = await login(parent, shown(parent))
        began = time.monotonic()
        answers = await each_alone([lambda http: http.get(parent.url + path, headers=headers)] * (4 * n))
        passed = [a.status_code for a in answers].count(200)
        assert {a.status_code for a in answers} <= {200, 403, 429}
        # What came back meanwhile, and one for the error of their clocks.
        assert n <= passed <= n + (time.monotonic() - began) * n / 60 + 1


async def test_wrong_secrets_are_counted_together_by_all_workers(database_url: str, tmp_path: Path) -> None:
    n = 5
    async with workers(tmp_path, database_url, 4, login_failures_per_minute=n) as parent:
        credentials = shown(parent)
        await login(parent, credentials)
        wrong = {"appId": credentials["app id"], "secret": "wrong"}
        began = time.monotonic()
        answers = [
            (await each_alone([lambda http: http.post(parent.url + LOGIN, data=wrong)]))[0].json() for _ in range(3 * n)
        ]
        looked_at = [a["error_code"] for a in answers].count(WRONG_SECRET)
        assert n <= looked_at <= n + (time.monotonic() - began) * n / 60 + 1


async def test_what_one_worker_has_answered_every_other_shows(database_url: str, tmp_path: Path) -> None:
    product = {"deviceType": "t", "model": "m", "manufacturerName": "x"}
    async with workers(tmp_path, database_url, 3) as parent:
        headers = await login(parent, shown(parent))
        stopped = {"operationStatus": "stop"}

        async def total(http: httpx.AsyncClient, query: dict[str, str]) -> httpx.Response:
            return await http.get(f"{parent.url}/iodm/northbound/v1.5.0/operations", headers=headers, params=query)

        async with httpx.AsyncClient(base_url=parent.url, headers=headers, timeout=WITHIN_S) as http:
            about = {"type": "firmwarePackage", "version": "V2", "name": "a.bin", **product}
            file_id = (await http.post("/api/v1/packages", params=about, content=b"x")).json()["fileId"]
            for n in range(1, 6):
                device = (await http.post("/api/v1/devices", json={"nodeId": f"n{n}", **product})).json()["deviceId"]
                task = {"kind": "firmware_upgrade", "fileId": file_id, "targets": {"devices": [device]}}
                operation = (await http.post("/api/v1/tasks", json=task)).json()["operationId"]
                if n % 2:
                    answer = await http.post(f"/api/v1/tasks/{operation}/stop")
                    assert answer.status_code < 300, answer.text
                for query, count in (({}, n), (stopped, (n + 1) // 2)):
                    pages = await each_alone([partial(total, query=query)] * 8)
                    assert [page.json()["totalCount"] for page in pages] == [count] * 8


async def test_sqlite_has_one_server_and_two_workers_are_refused_with_the_reason(
    database_url: str, tmp_path: Path
) -> None:
    status, why = await refused(tmp_path, "--workers", "2")
    assert status == USAGE
    assert "workers: 2 need PostgreSQL (`database`): a SQLite file takes one writer at a time" in why
    assert "Traceback" not in why
    assert list(tmp_path.iterdir()) == []


async def test_what_keeps_one_server_from_starting_keeps_all(database_url: str, tmp_path: Path) -> None:
    two = ("--workers", "2")
    name = database_url.partition("?")[0].rpartition("/")[2]
    status, why = await refused(tmp_path, *two, database=database_url.replace(name, "none"))
    assert (status, why.count("cannot start")) == (USAGE, 1)
    async with workers(tmp_path, database_url, 2) as parent:
        for arguments in (two, ()):
            status, why = await refused(tmp_path, *arguments, database=database_url, port=parent.port)
            assert status == USAGE
            assert f"cannot listen on 127.0.0.1:{parent.port}: Address already in use" in why
        assert await asked(parent.url, 8) == 8
