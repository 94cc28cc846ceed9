"""Every drill, one after another: `python -m tests.drills [--long] [--only NAME ...] [--report FILE]`."""

import argparse
import asyncio
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.drills import crowds, devices, faults, floods, frozen, hostile, restore
from tests.drills.world import Report

BOTH = ("sqlite", "postgresql")
POSTGRES = ("postgresql",)


@dataclass(frozen=True)
class Drill:
    """One drill; `sizes` are (short, long) values of its arguments."""

    name: str
    what: str
    run: Callable[..., Awaitable[None]]
    engines: tuple[str, ...]
    sizes: dict[str, tuple[Any, Any]]


DRILLS = (
    Drill(
        "D2",
        "kill -9 of PostgreSQL under load",
        faults.postgres_killed,
        POSTGRES,
        {"devices": (400, 4000), "kills": (3, 20)},
    ),
    Drill(
        "D3",
        "one of several servers frozen in mid-write for longer than its leases",
        frozen.servers_frozen,
        POSTGRES,
        {"devices": (300, 3000), "servers": ((2,), (2, 5)), "frozen_s": (25, 60)},
    ),
    Drill("D4", "every report twice, a third out of order", devices.repeats, BOTH, {"devices": (300, 3000)}),
    Drill(
        "D6",
        "a tenth of the devices silent in each phase",
        devices.silence,
        BOTH,
        {"devices": (300, 3000), "clock_s": (6, 60)},
    ),
    Drill("D7", "a stop at half of a campaign under load", devices.stop_at_half, BOTH, {"devices": (600, 20_000)}),
    Drill("D11", "parallel creations with one key", crowds.one_key, BOTH, {"creates": (100, 100)}),
    Drill(
        "D12",
        "first contacts in parallel",
        crowds.first_contacts,
        BOTH,
        {"devices": (1000, 1000), "contacts": (10_000, 10_000)},
    ),
    Drill(
        "D13",
        "a whole fleet reconnects within ten seconds",
        crowds.all_come_back,
        BOTH,
        {"devices": (10_000, 100_000), "within": (10.0, 10.0)},
    ),
    Drill("D15", "the disk of the database is full", faults.disk_full, BOTH, {"devices": (300, 5000)}),
    Drill("D15", "the database is read-only", faults.read_only, BOTH, {"devices": (300, 5000)}),
    Drill("D15", "the disk of the packages is full", faults.packages_full, ("sqlite",), {"devices": (300, 3000)}),
    Drill(
        "D16",
        "ten times the limit from one address, one application, one device",
        floods.noisy,
        BOTH,
        {"rounds": (3, 9), "seconds": (2.5, 6.0)},
    ),
    Drill(
        "D17",
        "slow and endless requests, slow readers, range and zip bombs",
        hostile.hostile,
        ("sqlite",),
        {"peers": (300, 1000), "package_mib": (64, 64)},
    ),
    Drill(
        "D26",
        "an old backup restored under a live fleet",
        restore.old_backup_restored,
        BOTH,
        {"devices": (200, 2000)},
    ),
)


async def perform(drill: Drill, engine: str, *, long: bool = False) -> Report:
    """Runs it in a folder of its own; what it raises is something wrong, too."""
    report = Report(drill.name, engine, drill.what)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="openiodm-drill-") as name:
        arguments = {key: sizes[long] for key, sizes in drill.sizes.items()}
        try:
            await partial(drill.run, report, Path(name), **arguments)()
        except Exception as error:
            traceback.print_exc()
            report.wrong.append(f"{type(error).__name__}: {error}")
    report.seconds = round(time.monotonic() - began, 1)
    return report


def markdown(reports: list[Report], command: str) -> str:
    """The reports as a page."""
    lines = [
        "# Drills",
        "",
        f"Made by `{command}`. Real servers in processes of their own, simulated devices on real sockets.",
        "In each drill the rows were checked against the laws, and against what every device was answered.",
        "The `kill -9` of the server itself has a page of its own: [kills.md](kills.md).",
        "",
        "| drill | engine | what | seen | wrong | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in reports:
        seen = "; ".join(f"{key}: {json.dumps(value)}" for key, value in r.figures.items())
        lines.append(f"| {r.name} | {r.engine} | {r.what} | {seen} | {len(r.wrong)} | {r.seconds} |")
    lines += [f"- WRONG: {r.name} {r.engine}, {r.what}: {w}" for r in reports for w in r.wrong[:20]]
    return "\n".join(lines) + "\n"


async def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=__doc__)
    parser.add_argument("--long", action="store_true", help="the full sizes (an hour)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", choices=sorted({drill.name for drill in DRILLS})
    )
    parser.add_argument("--engine", choices=BOTH)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    reports = []
    for drill in DRILLS:
        if arguments.only and drill.name not in arguments.only:
            continue
        for engine in drill.engines:
            if arguments.engine in (None, engine):
                report = await perform(drill, engine, long=arguments.long)
                reports.append(report)
                print(json.dumps(vars(report) | {"wrong": report.wrong[:5]}), flush=True)
    if arguments.report is not None:
        arguments.report.write_text(markdown(reports, "python -m tests.drills" + " --long" * arguments.long), "utf-8")
    return 1 if any(r.wrong for r in reports) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
