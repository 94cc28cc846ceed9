"""Drills in which something dies or stops: PostgreSQL (D2), the disk (D15); `frozen.py` has one of several servers."""

import asyncio
import random
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

from openiodm.simulator import Behaviour, Fleet
from tests.drills.world import SEED, Report, World, end_within, world
from tests.support.files import immutable
from tests.support.postgres import restartable_postgres
from tests.support.process import fresh_database

READY_WITHIN_S = 60.0
MIB = 1024 * 1024
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
                await fleet.wait_for(within=end_within(devices))
                task = await here.api.wait_until_final(operation)
            await same_as_devices(report, here, task, fleet)
            report.figures |= {"kills": kills, "devices": devices, "errors seen by devices": fleet.stats.errors}


async def disk_full(report: Report, folder: Path, *, devices: int) -> None:
    """D15: the database's disk fills in mid-campaign. On SQLite packages lie there too: an upload is refused. On
    PostgreSQL it is the disk of the tables: a full one under the write-ahead log stops PostgreSQL itself.
    """
    small = folder / "small"
    small.mkdir()
    async with _mounted(small, "64m"):
        filler = Filler(small / "filler")
        if report.engine == "sqlite":
            url = f"sqlite:///{small / 'openiodm.db'}"
            async with world("sqlite", url, small, min_free_disk_bytes="1048576") as here:
                await _without_writes(report, here, devices, filler.fill, filler.remove, uploads=True)
            return
        with restartable_postgres() as postgres:
            url = await postgres.database_on(small)
            async with world("postgresql", url, folder) as here:
                await _without_writes(report, here, devices, filler.fill, filler.remove)


async def read_only(report: Report, folder: Path, *, devices: int) -> None:
    """D15: the database turns read-only in mid-campaign, as a file system does after an error, or a failed-over
    PostgreSQL. On SQLite the files get the flag that forbids even root to write them, though they are open.
    """
    if report.engine == "sqlite":
        path = folder / "openiodm.db"
        files = [path, path.with_name(path.name + "-wal")]
        async with world("sqlite", f"sqlite:///{path}", folder) as here:
            await _without_writes(
                report,
                here,
                devices,
                lambda: [immutable(each, True) for each in files],
                lambda: [immutable(each, False) for each in files],
            )
        return
    with restartable_postgres() as postgres:
        async with world("postgresql", postgres.uri, folder) as here:
            await _without_writes(
                report, here, devices, lambda: postgres.read_only(True), lambda: postgres.read_only(False)
            )


async def _without_writes(
    report: Report,
    here: World,
    devices: int,
    take: Callable[[], object],
    give: Callable[[], object],
    *,
    uploads: bool = False,
) -> None:
    """A campaign whose database takes no writes for a while: ready turns false and stays so, nothing acknowledged is
    lost, and all goes on by itself. An upload meanwhile is refused and leaves nothing behind.
    """
    await here.register(devices)
    operation = await here.campaign()
    fleet = here.fleet(here.profiles(devices, LIVELY), within=8.0)
    async with fleet.running():
        await asyncio.sleep(2.0)
        await asyncio.to_thread(take)
        try:
            report.figures["not ready after, s"] = await _until_ready_is(here, False)
            if uploads and (status := await _upload(here, b"x")) != 503:
                report.wrong.append(f"an upload on a full disk was answered {status}")
            said = await _readiness(here, 3.0)
            if said != {503}:
                report.wrong.append(f"/readyz meanwhile: {said}")
            ended = fleet.stats.succeeded + fleet.stats.failed
        finally:
            await asyncio.to_thread(give)
        report.figures["ready again after, s"] = await _until_ready_is(here, True)
        await fleet.wait_for(within=end_within(devices))
        task = await here.api.wait_until_final(operation)
    if ended >= devices:
        report.wrong.append("the campaign was over before: this drill shows too little")
    await same_as_devices(report, here, task, fleet)
    report.figures["devices"] = devices


async def packages_full(report: Report, folder: Path, *, devices: int) -> None:
    """D15: the packages' disk is full, the database's is not: uploads are refused, before and in the middle of their
    bytes, and leave nothing; the campaign does not notice. With room again an upload is taken.
    """
    small = folder / "small"
    small.mkdir()
    async with _mounted(small, "32m"), fresh_database(report.engine, folder) as url:
        async with world(report.engine, url, small, min_free_disk_bytes="0") as here:
            await here.register(devices)
            operation = await here.campaign()
            fleet = here.fleet(here.profiles(devices, LIVELY), within=devices / 50)
            async with fleet.running():
                middle = await _upload(here, b"x" * 64 * MIB)  # it does not say how long it is
                free = psutil.disk_usage(str(small)).free
                filler = Filler(small / "filler")
                await asyncio.to_thread(filler.fill)
                full = await _upload(here, b"x" * 100_000)
                said = await _readiness(here, 2.0)
                filler.remove()
                room = await _upload(here, b"x" * 100_000)
                await fleet.wait_for(within=end_within(devices))
                task = await here.api.wait_until_final(operation)
            await same_as_devices(report, here, task, fleet)
        left = sorted(path.name for path in (small / "packages" / "incoming").iterdir())
    report.figures |= {"uploads: cut short, refused, with room": [middle, full, room], "devices": devices}
    if (middle, full, room) != (503, 503, 201):
        report.wrong.append(f"uploads were answered {middle}, {full} and {room}")
    if free < 24 * MIB or left:
        report.wrong.append(f"an upload has left {free} bytes free, and {left}")
    if said != {200}:
        report.wrong.append(f"/readyz meanwhile: {said}")


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
async def all_running(fleets: list[Fleet]) -> AsyncIterator[None]:
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


class Filler:
    """A file that takes all the room there is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fill(self) -> None:
        """To the last byte."""
        with self._path.open("wb", buffering=0) as file:
            for piece in (b"x" * 65_536, b"x" * 512):
                with suppress(OSError):
                    while True:
                        file.write(piece)

    def remove(self) -> None:
        """There is room again."""
        self._path.unlink()


async def _upload(here: World, content: bytes) -> int:
    """A package of its own, in pieces, without a length in its head; the status."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), MIB):
            yield content[start : start + MIB]

    query = {"name": "x", "type": "firmwarePackage", "version": "9", "deviceType": "sensor"}
    product = {"model": "m1", "manufacturerName": "acme"}
    answer = await here.api.send("POST", "/api/v1/packages", params=query | product, content=pieces())
    return int(answer.status_code)


async def _readiness(here: World, seconds: float) -> set[int]:
    """Everything that `/readyz` says within so many seconds."""
    said = set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        said.add((await here.http.get("/readyz")).status_code)
        await asyncio.sleep(0.1)
    return said


async def _until_ready_is(here: World, wanted: bool) -> float:
    """Seconds until `/readyz` says so."""
    began = time.monotonic()
    async with asyncio.timeout(READY_WITHIN_S):
        while (await _readiness(here, 0.1) == {200}) is not wanted:
            pass
    return round(time.monotonic() - began, 1)
