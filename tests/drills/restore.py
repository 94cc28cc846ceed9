"""D26: an old backup is restored under a live fleet, and nobody is upgraded a second time."""

import asyncio
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from openiodm.simulator import Behaviour, Fleet
from openiodm.simulator.record import DeviceRecord
from openiodm.storage.open import sqlite_path
from tests.conftest import database_uri
from tests.drills.world import Report, World, world
from tests.support.process import Northbound, fresh_database

END_WITHIN_S = 240.0
A_SECOND = 25  # devices that wake up in one
TELLING = Behaviour(failure_rate=0.05, duplicate_rate=0.05, install_seconds=(1.0, 3.0), probe_after_final=True)
MUTE = Behaviour(reports_version=False, install_seconds=(1.0, 3.0), probe_after_final=True)
# Of devices that tell their version: those whose turn is still to come, or has come since the restore.
_LEFT = """
SELECT count(*) FROM upgrade u JOIN device d ON d.id = u.device_id
WHERE u.finished_at IS NULL AND d.reports_fw AND (u.state = 'wait' OR u.action_id = d.attempt_seq)
"""
_SUCCEEDED = "SELECT d.node_id FROM upgrade u JOIN device d ON d.id = u.device_id WHERE u.state = 'success'"
_STANDING = "SELECT d.node_id, u.state FROM upgrade u JOIN device d ON d.id = u.device_id"


async def old_backup_restored(report: Report, folder: Path, *, devices: int) -> None:
    """D26: a backup in mid-campaign, the campaign goes on to its end, the server is killed, its database and packages
    are lost, the backup is restored, the fleet polls on.

    A fifth of the devices never tells a version; a tenth makes its first contact after the restore. Of the others a
    half is at work during the backup, and the other half was stopped in the midst of it, so that it has the rest of its
    work to do, whatever the speed of this machine.
    """
    late = devices // 10
    async with (
        fresh_database(report.engine, folder) as url,
        world(report.engine, url, folder, cancel_clock_s="5") as here,
    ):
        await here.register(devices)
        half = (devices - late) // 2
        fleets = [_half(here, first, half) for first in (0, half)]
        for fleet in fleets:
            await fleet.run_until(lambda f: f.stats.attributes_sent >= half, within=END_WITHIN_S)
        operation = await here.campaign()
        await fleets[1].run_until(lambda f: f.stats.offered >= half // 2, within=END_WITHIN_S)
        async with fleets[0].running():
            await fleets[0].wait_for(lambda f: f.stats.succeeded > 0, within=END_WITHIN_S)
            backups = folder / "backups"
            await here.server.cli("backup", str(backups), "--json")
            then = (await here.api.task(operation))["staResult"]
            async with fleets[1].running():
                for fleet in fleets:
                    await fleet.wait_for(within=END_WITHIN_S)
                await here.server.end(signal.SIGKILL)
                restored = await _restored(here, folder, backups)
                await _while_held(report, here, fleets, operation, restored)
                fleets.append(here.fleet(here.profiles(late, TELLING, first=2 * half), within=1.0))
                async with fleets[2].running():
                    await _resumed(report, here, fleets, operation)
        records = [record for fleet in fleets for record in fleet.records()]
        report.wrong += [text for fleet in fleets for text in fleet.violations()]
        report.wrong += [
            *await here.wrong_rows(),
            *_flashed_again(records),
            *_numbers(records, restored["attemptBase"]),
        ]
        if not then["processing"] or then["success"] >= report.figures["succeeded at the restore"]:
            report.wrong.append(f"at the backup {then}: this drill shows too little")
        report.figures |= {"devices": devices, "succeeded at the backup": then["success"]}
        report.figures["flashed twice"] = len(_flashed_again(records))


def _half(here: World, first: int, count: int) -> Fleet:
    mute = count // 5
    profiles = here.profiles(count - mute, TELLING, first=first)
    profiles += here.profiles(mute, MUTE, first=first + len(profiles))
    return here.fleet(profiles, within=count / A_SECOND)


async def _restored(here: World, folder: Path, backups: Path) -> Any:
    """A server on what the backup has; what `restore` told."""
    shutil.rmtree(folder / "packages")
    path = sqlite_path(here.database)
    if path is not None:
        for end in ("", "-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)
    else:
        connection = await asyncpg.connect(here.database)
        await connection.execute("CREATE DATABASE restored TEMPLATE template0")
        await connection.close()
        here.database = database_uri(here.database, "restored")
        here.server.use(here.database)
    told = await here.server.cli("restore", str(backups), "--json")
    await here.server.start()
    here.api = Northbound(here.http, here.application["appId"], here.application["secret"])
    return told


async def _while_held(report: Report, here: World, fleets: Sequence[Fleet], operation: str, restored: Any) -> None:
    """Nobody is offered anything; who was upgraded after the backup and tells its version is counted as such."""
    records = [record for fleet in fleets for record in fleet.records()]
    offered = sum(fleet.stats.offered for fleet in fleets)
    done = {r.controller_id for r in records if _successes(r)}
    telling = {r.controller_id for r in records if "fwVersion" in r.last_attributes}
    report.figures["succeeded at the restore"] = len(done)
    if [task["operationId"] for task in restored["held"]] != [operation]:
        report.wrong.append(f"held: {restored['held']}")

    async def known() -> bool:
        return done & telling <= {row[0] for row in await here.rows(_SUCCEEDED)}

    await _until(known, "devices that were upgraded are not known to be")
    more = sum(fleet.stats.offered for fleet in fleets) - offered
    if more:
        report.wrong.append(f"{more} offers while the task was held")
    report.wrong += [*await here.wrong_rows(), *_flashed_again(records)]


async def _resumed(report: Report, here: World, fleets: Sequence[Fleet], operation: str) -> None:
    """The rest has its turn; devices that cannot show what they run have not, and the task ends by a stop."""
    await here.api.call("POST", f"/api/v1/tasks/{operation}/resume", json={})

    async def over() -> bool:
        told = fleets[2].stats.attributes_sent >= len(late)
        return told and not (await here.rows(_LEFT))[0][0]

    late = {record.controller_id for record in fleets[2].records()}
    await _until(over, "the rest has no turn")
    states = dict(map(tuple, await here.rows(_STANDING)))
    if not {states[node_id] for node_id in late} <= {"success", "fail"}:
        report.wrong.append(f"late devices: {[states[node_id] for node_id in late]}")
    await here.api.call("POST", f"/api/v1/tasks/{operation}/stop")

    async def swept() -> bool:
        sums = (await here.api.task(operation))["staResult"]
        report.figures["end"] = sums
        return not sums["wait"] + sums["processing"]

    await _until(swept, "the stop does not come to its end")


async def _until(what: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    until = time.monotonic() + END_WITHIN_S
    while not await what():
        if time.monotonic() > until:
            raise AssertionError(otherwise)
        await asyncio.sleep(0.2)


def _successes(record: DeviceRecord) -> int:
    return sum(action.result == "success" for action in record.actions.values())


def _flashed_again(records: Sequence[DeviceRecord]) -> list[str]:
    """Devices that began an installation after one that had succeeded."""
    wrong = []
    for record in records:
        begun = [action for action in record.actions.values() if action.started]
        if any(action.result == "success" for action in begun[:-1]) or _successes(record) > 1:
            wrong.append(f"{record.controller_id} was flashed again: {[a.action_id for a in begun]}")
    return wrong


def _numbers(records: Sequence[DeviceRecord], base: int) -> list[str]:
    """Attempts have the numbers 1 and on before the restore, and others above its base."""
    numbers = [int(action_id) for record in records for action_id in record.actions]
    return [f"attempt number {n}, the base is {base}" for n in numbers if 1000 < n <= base]
