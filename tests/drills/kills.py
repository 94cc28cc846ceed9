"""`kill -9` of a real server in the middle of a campaign, again and again, under simulated devices on real sockets.

    python -m tests.drills.kills [--kills 20] [--devices 2000] [--engine sqlite|postgresql|both] [--report FILE]

After every kill, while nothing runs, the rows are checked against the laws, and every result that a device was
answered for must be there. Then the server starts again on what is left. In the end every device must have ended, the
task list must say exactly what the rows and the devices say, and nobody may have been started twice.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from openiodm.simulator import Behaviour, Fleet, TokenKind, make_profiles
from openiodm.storage.open import open_database
from tests.drills.world import end_within, pace_of
from tests.support.laws import broken_laws, lost_reports
from tests.support.process import Northbound, Server, free_port, fresh_database, gateway_token

SEED = 7
SECONDS_A_KILL = 2.5  # of campaign: about a second of work, and the restart


@dataclass
class Report:
    """What one run did and found."""

    engine: str
    devices: int
    kills: int = 0
    restart_seconds: list[float] = field(default_factory=list)
    states_at_kills: list[dict[str, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    task: dict[str, Any] = field(default_factory=dict)
    fleet: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


async def drill(engine: str, database: str, folder: Path, *, kills: int, devices: int) -> Report:
    """One campaign of `devices` over `kills` kills on `database`; everything that is wrong is in the report."""
    report = Report(engine, devices)
    chance = random.Random(SEED)
    began = time.monotonic()
    server = Server(folder, database, free_port())
    application = await server.cli("app", "create", "drill", "--json")
    token = await gateway_token(server, application["appId"])
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            api = Northbound(http, application["appId"], application["secret"])
            await _fleet(server.url, token, devices, within=3).run_until(
                lambda f: f.stats.attributes_sent >= devices, within=end_within(devices)
            )
            operation = await _campaign(api, devices)
            # The devices wake up one after another, so that at every kill some are in each phase.
            fleet = _fleet(server.url, token, devices, within=kills * SECONDS_A_KILL)
            async with fleet.running():
                await _kill_again_and_again(server, fleet, api, operation, report, chance, kills, database)
                await fleet.wait_for(within=end_within(devices))
                report.task = await api.wait_until_final(operation)
            report.fleet = fleet.stats.to_json()
            await _check_the_end(report, fleet, database)
    finally:
        await server.end(signal.SIGTERM)
    report.seconds = round(time.monotonic() - began, 1)
    return report


async def _campaign(api: Northbound, devices: int) -> str:
    file_id = await api.upload("drill.bin", random.Random(SEED).randbytes(50_000))
    await api.create_group("drill", await api.device_ids(devices))
    return await api.create_task(
        file_id, deviceGroups=["drill"], deviceType="sensor", model="m1", manufacturerName="acme"
    )


def _fleet(url: str, token: str, devices: int, *, within: float) -> Fleet:
    """The same devices every time, which make their first poll one after another `within` so many seconds."""
    behaviour = Behaviour(failure_rate=0.05, duplicate_rate=0.05, install_seconds=(0.5, 4.0), probe_after_final=True)
    profiles = make_profiles(devices, prefix="drill", token_kind=TokenKind.GATEWAY, token=token, behaviour=behaviour)
    pace = pace_of(devices, at_least_s=2.0)
    return Fleet(url, profiles, seed=SEED, pace=pace, max_connections=48, ramp_seconds=within)


async def _kill_again_and_again(
    server: Server,
    fleet: Fleet,
    api: Northbound,
    operation: str,
    report: Report,
    chance: random.Random,
    kills: int,
    database: str,
) -> None:
    for _ in range(kills):
        await asyncio.sleep(chance.uniform(0.2, 1.6))
        report.states_at_kills.append((await api.task(operation))["staResult"])
        await server.end(signal.SIGKILL)
        report.kills += 1
        report.wrong += await _check_rows(database, fleet)
        report.restart_seconds.append(round(await server.start(), 2))


async def _check_rows(url: str, fleet: Fleet) -> list[str]:
    database = await open_database(url)
    try:
        return [*await broken_laws(database), *await lost_reports(database, fleet.records())]
    finally:
        await database.close()


async def _check_the_end(report: Report, fleet: Fleet, url: str) -> None:
    report.wrong += await _check_rows(url, fleet)
    report.wrong += fleet.violations()
    last = report.states_at_kills[-1]
    if not last["wait"] + last["processing"]:
        report.wrong.append("the campaign was over before the last kill: this drill shows too little")
    if not any(s["processing"] for s in report.states_at_kills):
        report.wrong.append("no kill found a device at work: this drill shows too little")
    sums, stats = report.task["staResult"], fleet.stats
    said = {"success": stats.succeeded, "fail": stats.failed}
    if {name: sums[name] for name in said} != said or sums["total"] != report.devices:
        report.wrong.append(f"the task list says {sums}, the devices {said}")
    for record in fleet.records():
        for action in record.actions.values():
            if action.installs > 1:
                report.wrong.append(
                    f"{record.controller_id} installed action {action.action_id} {action.installs} times"
                )


def _markdown(reports: list[Report], command: str) -> str:
    lines = [
        "# Drill: kill -9 in mid-campaign",
        "",
        f"Made by `{command}`.",
        "After every kill the rows were checked against laws 1, 2, 3, 4 and 6 before the server started again; in the",
        "end the task list, the rows and the devices' own records were compared.",
        "",
        "| engine | devices | kills | restart, median s | results acknowledged | laws broken | task list at the end |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in reports:
        median = sorted(r.restart_seconds)[len(r.restart_seconds) // 2]
        acknowledged = r.fleet["succeeded"] + r.fleet["failed"]
        lines.append(
            f"| {r.engine} | {r.devices} | {r.kills} | {median} | {acknowledged} | {len(r.wrong)} | "
            f"{r.task['status']}, {json.dumps(r.task['staResult'])} |"
        )
    for r in reports:
        lines += ["", f"## {r.engine}: the task's counters just before each kill", "", "```"]
        lines += [f"{n:2d}  {json.dumps(states)}" for n, states in enumerate(r.states_at_kills, 1)]
        lines += ["```", "", f"Requests by status: `{json.dumps(r.fleet['by_status'])}`;"]
        lines += [f"errors of transport {r.fleet['errors']}, reports repeated {r.fleet['report_repeats']}."]
        lines += [f"- WRONG: {w}" for w in r.wrong]
    return "\n".join(lines) + "\n"


async def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--devices", type=int, default=2000)
    parser.add_argument("--engine", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    engines = ["sqlite", "postgresql"] if arguments.engine == "both" else [arguments.engine]
    reports = []
    for engine in engines:
        with tempfile.TemporaryDirectory(prefix="openiodm-drill-") as name:
            folder = Path(name)
            async with fresh_database(engine, folder) as url:
                report = await drill(engine, url, folder, kills=arguments.kills, devices=arguments.devices)
        reports.append(report)
        print(json.dumps({"engine": engine, "kills": report.kills, "wrong": report.wrong, "task": report.task}))
    if arguments.report is not None:
        command = f"python -m tests.drills.kills --kills {arguments.kills} --devices {arguments.devices}"
        arguments.report.write_text(_markdown(reports, command), "utf-8")
    return 1 if any(r.wrong for r in reports) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
