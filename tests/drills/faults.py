"""Drills in which something dies or stops: PostgreSQL (D2), one of several servers (D3), the disk (D15)."""

import asyncio
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx

from openiodm.scheduler.model import LEASE_MS
from openiodm.simulator import Behaviour, Fleet
from tests.drills.world import SEED, Report, World, world
from tests.support.postgres import restartable_postgres

END_WITHIN_S = 240.0
LIVELY = Behaviour(failure_rate=0.05, duplicate_rate=0.05, install_seconds=(0.2, 2.0), probe_after_final=True)


async def postgres_killed(report: Report, folder: Path, *, devices: int, kills: int) -> None:
    """D2: `kill -9` of PostgreSQL under load, `kills` times. What was acknowledged is durable; the server goes on."""
    chance = random.Random(SEED)
    with restartable_postgres() as postgres:
        async with world("postgresql", postgres.uri, folder) as here:
            await here.register(devices)
            fleet = here.fleet(here.profiles(devices, LIVELY), within=kills * 4.0)
            operation = await here.campaign()
            async with fleet.running():
                for _ in range(kills):
                    await asyncio.sleep(chance.uniform(1.0, 3.0))
                    await asyncio.to_thread(postgres.kill)
                    await asyncio.sleep(chance.uniform(0.2, 1.0))
                    await asyncio.to_thread(postgres.revive)
                    report.wrong += await here.wrong_rows(fleet.records())
                await fleet.wait_for(within=END_WITHIN_S)
                task = await here.api.wait_until_final(operation)
            await same_as_devices(report, here, task, fleet)
            report.figures |= {"kills": kills, "devices": devices, "errors seen by devices": fleet.stats.errors}


async def servers_frozen(report: Report, folder: Path, *, devices: int, servers: int) -> None:
    """D3: one of several servers is frozen by SIGSTOP for longer than its leases live, then wakes up with stale work.

    The frozen server's devices are silent with it; the others' go on. Its jobs are taken over, and what it tries to
    write after it woke up is fenced: nobody is granted twice, no counter is off.
    """
    with restartable_postgres() as postgres:
        async with world("postgresql", postgres.uri, folder, servers=servers) as here:
            await here.register(devices)
            share = devices // servers
            fleets = [
                here.fleet(here.profiles(share, LIVELY, first=n * share), within=20.0, server=server)
                for n, server in enumerate(here.servers)
            ]
            operation = await here.campaign()
            async with _all_running(fleets):
                await asyncio.sleep(2.0)
                # Not the one that the application talks to.
                frozen = here.servers[-1]
                frozen.send(signal.SIGSTOP)
                await asyncio.sleep(LEASE_MS / 1000 + 5)
                report.wrong += await here.wrong_rows()
                frozen.send(signal.SIGCONT)
                for fleet in fleets:
                    await fleet.wait_for(within=END_WITHIN_S)
                task = await here.api.wait_until_final(operation)
            await same_as_devices(report, here, task, *fleets)
            report.figures |= {"servers": servers, "devices": share * servers, "frozen for, s": LEASE_MS // 1000 + 5}


async def disk_full(report: Report, folder: Path, *, devices: int) -> None:
    """D15: the disk of a SQLite server fills in mid-campaign: ready turns false, nothing acknowledged is lost, and it
    goes on by itself when there is room again. An upload meanwhile is refused and leaves nothing behind.
    """
    small = folder / "small"
    small.mkdir()
    url = f"sqlite:///{small / 'openiodm.db'}"
    async with _mounted(small, "48m"), world("sqlite", url, small, min_free_disk_bytes="1048576") as here:
        await here.register(devices)
        operation = await here.campaign()
        fleet = here.fleet(here.profiles(devices, LIVELY), within=12.0)
        async with fleet.running():
            await asyncio.sleep(3.0)
            filler = small / "filler"
            await asyncio.to_thread(_fill, filler)
            report.figures["ready while full"] = await _ready_within(here, False, 30.0)
            query = {"name": "x", "type": "firmwarePackage", "version": "9", "deviceType": "sensor"}
            refused = await here.api.send(
                "POST", "/api/v1/packages", params=query | {"model": "m1", "manufacturerName": "acme"}, content=b"x"
            )
            if refused.status_code != 503:
                report.wrong.append(f"an upload on a full disk was answered {refused.status_code}")
            await asyncio.sleep(3.0)
            filler.unlink()
            report.figures["ready again"] = await _ready_within(here, True, 30.0)
            await fleet.wait_for(within=END_WITHIN_S)
            task = await here.api.wait_until_final(operation)
        if not report.figures["ready while full"] or not report.figures["ready again"]:
            report.wrong.append(f"readiness: {report.figures}")
        await same_as_devices(report, here, task, fleet)
        report.figures["devices"] = devices


async def same_as_devices(report: Report, here: World, task: dict[str, object], *fleets: Fleet) -> None:
    """In the end the rows keep the laws, and the task list says what the devices say."""
    records = [record for fleet in fleets for record in fleet.records()]
    report.wrong += await here.wrong_rows(records)
    report.wrong += [text for fleet in fleets for text in fleet.violations()]
    sums = task["staResult"]
    assert isinstance(sums, dict)
    said = {
        "success": sum(fleet.stats.succeeded for fleet in fleets),
        "fail": sum(fleet.stats.failed for fleet in fleets),
    }
    if {name: sums[name] for name in said} != said:
        report.wrong.append(f"the task list says {sums}, the devices {said}")
    report.figures |= {"success": sums["success"], "fail": sums["fail"]}


@asynccontextmanager
async def _all_running(fleets: list[Fleet]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        over = asyncio.Event()

        async def run(fleet: Fleet) -> None:
            async with fleet.running():
                await over.wait()

        for fleet in fleets:
            group.create_task(run(fleet))
        try:
            yield
        finally:
            over.set()


@asynccontextmanager
async def _mounted(folder: Path, size: str) -> AsyncIterator[None]:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    await asyncio.to_thread(subprocess.run, mount, check=True)
    try:
        yield
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "--lazy", str(folder)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for piece in (b"x" * 65_536, b"x" * 512):
            with suppress(OSError):
                while True:
                    file.write(piece)


async def _ready_within(here: World, wanted: bool, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(httpx.TransportError):
            if ((await here.http.get("/readyz")).status_code == 200) is wanted:
                return True
        await asyncio.sleep(0.1)
    return False
