"""D3: one of several servers on one PostgreSQL is frozen in the middle of a write, and wakes up with stale work."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from openiodm.campaigns.endings import EXPAND
from openiodm.scheduler.model import LEASE_MS
from tests.drills.faults import LIVELY, all_running, same_as_devices
from tests.drills.world import Report, World, end_within, world
from tests.support.postgres import restartable_postgres
from tests.support.process import Northbound, Server

CALLS_A_MINUTE = 60
EXPANDS = f"SELECT owner FROM job WHERE kind = '{EXPAND}' AND owner IS NOT NULL"
WAITS = """
SELECT 1 FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
WHERE c.relname = 'upgrade' AND l.mode = 'RowExclusiveLock' AND NOT l.granted
"""


async def servers_frozen(
    report: Report, folder: Path, *, devices: int, servers: tuple[int, ...], frozen_s: int
) -> None:
    """D3: one of several servers is frozen by SIGSTOP in the middle of a write, for longer than its leases live.

    It is the one that has leased the expansion of a task, and holds rows locked that the others need. Its devices are
    silent with it; the others' go on, the expansion is taken over, and what it tries to write after it woke up is
    refused: nobody is granted twice, no counter is off, nobody was expanded twice. Meanwhile and after, all servers
    together let exactly as many calls pass as the flow control says.
    """
    assert frozen_s > LEASE_MS / 1000
    for count in servers:
        with restartable_postgres() as postgres:
            here_folder = folder / f"{count}-servers"
            here_folder.mkdir()
            limit = {"native_calls_per_minute": str(CALLS_A_MINUTE)}
            async with world("postgresql", postgres.uri, here_folder, servers=count, **limit) as here:
                await _one_frozen(report, here, devices // count, frozen_s)


async def _one_frozen(report: Report, here: World, share: int, frozen_s: int) -> None:
    count = len(here.servers)
    await here.register(share * count)
    fleets = [
        here.fleet(here.profiles(share, LIVELY, first=n * share), within=3.0, server=server)
        for n, server in enumerate(here.servers)
    ]
    calls = await _Calls.of(here)
    async with all_running(fleets):
        frozen = await _frozen_in_an_expansion(here)
        others = [server for server in here.servers if server is not frozen]
        began = time.monotonic()
        try:
            async with httpx.AsyncClient(base_url=others[0].url, timeout=60) as http:
                here.api = Northbound(http, here.application["appId"], here.application["secret"])
                await calls.at(others)
                expanded = await _expanded(here, share * count, within=frozen_s)
                report.wrong += await here.wrong_rows()
                await asyncio.sleep(max(0.0, frozen_s - (time.monotonic() - began)))
                alone = sum(fleet.stats.succeeded for fleet in fleets)
                frozen.send(signal.SIGCONT)
                await calls.at(here.servers)
                for fleet in fleets:
                    await fleet.wait_for(within=end_within(share * count))
                task = await here.api.wait_until_final(
                    str((await here.rows("SELECT operation_id FROM campaign"))[0][0])
                )
        finally:
            frozen.send(signal.SIGCONT)
    await same_as_devices(report, here, task, *fleets)
    total = task["staResult"]["total"]
    if total != share * count:
        report.wrong.append(f"{count} servers: {total} of {share * count} devices are in the task")
    if not alone:
        report.wrong.append(f"{count} servers: no device got on while one was frozen")
    if (refused := frozen.said("database_unreachable", "lease_lost", "write_failed")) == 0:
        report.wrong.append(f"{count} servers: the frozen one has not heard that a write was refused")
    report.wrong += calls.wrong()
    report.figures[f"{count} servers"] = {
        "devices": total,
        "frozen for, s": frozen_s,
        "expansion taken over after, s": round(expanded - began, 1),
        "succeeded meanwhile": alone,
        "stale writes refused": refused,
        "calls passed": calls.passed,
    }


async def _frozen_in_an_expansion(here: World) -> Server:
    """Creates the task, and freezes whoever expands it between the lock of its rows and its commit."""
    async with _connection(here.database) as blocker, blocker.transaction():
        await blocker.execute("LOCK TABLE upgrade IN SHARE MODE")  # nobody can insert into it
        await here.campaign()
        async with asyncio.timeout(60):
            while not (owners := await here.rows(EXPANDS)):
                await asyncio.sleep(0.01)
            while not await here.rows(WAITS):
                await asyncio.sleep(0.01)
        pid = int(owners[0][0].split(":")[1])
        frozen = next(server for server in here.servers if server.pid == pid)
        frozen.send(signal.SIGSTOP)
    return frozen  # PostgreSQL has carried its statement out now, and waits for the next


async def _expanded(here: World, devices: int, within: float) -> float:
    """When the others have made a place for every device."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if (await here.rows("SELECT count(*) FROM upgrade"))[0][0] == devices:
            return time.monotonic()
        await asyncio.sleep(0.1)
    raise AssertionError("nobody has taken the expansion over")


class _Calls:
    """An application that calls every server as often as it can."""

    def __init__(self, headers: dict[str, str]) -> None:
        self._headers = headers
        self._began: float | None = None
        self._took = 0.0
        self.passed = 0
        self.made = 0

    @classmethod
    async def of(cls, here: World) -> "_Calls":
        made = await here.server.cli("app", "create", "caller", "--json")
        api = Northbound(here.http, made["appId"], made["secret"])
        return cls(dict(await api.headers()))

    async def at(self, servers: Sequence[Server]) -> None:
        """Twice as many as pass, dealt out over the servers."""
        self._began = self._began or time.monotonic()
        async with httpx.AsyncClient(headers=self._headers, timeout=60) as http:
            urls = [f"{servers[n % len(servers)].url}/api/v1/tasks" for n in range(2 * CALLS_A_MINUTE)]
            answers = await asyncio.gather(*(http.get(url) for url in urls))
        self._took = time.monotonic() - self._began
        self.made += len(answers)
        self.passed += sum(answer.status_code == 200 for answer in answers)

    def wrong(self) -> list[str]:
        """A minute's worth, and what came back since: as many pass, and one more or less for the error of clocks."""
        most = CALLS_A_MINUTE + self._took * CALLS_A_MINUTE / 60 + 1
        if CALLS_A_MINUTE <= self.passed <= most:
            return []
        return [f"{self.passed} of {self.made} calls passed, and not between {CALLS_A_MINUTE} and {most:.0f}"]


@asynccontextmanager
async def _connection(uri: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(uri)
    try:
        yield connection
    finally:
        await connection.close()
