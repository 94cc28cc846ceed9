#!/usr/bin/env python3
"""Durable reports a second through the core: one large campaign beside a hundred small ones, in one run.

    python bench/reports.py                       both engines, 100,000 devices in each of the two shapes
    python bench/reports.py --devices 10000       less of everything

Every device goes its whole way (contact and grant, download begun, downloaded, success: a contact and three reports),
256 devices at once, each waiting for the answer to one signal before it gives the next: as the DDI server hands them to
the writer, without HTTP. An answer means durable (`synchronous=FULL`; `synchronous_commit=on`). Slices of both shapes
take turns, so a busy minute hits both. On a shared machine look at the reports per second of CPU: of the server's
process, and on PostgreSQL of its processes too. The result is `results/reports.json`.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare import machine
from inside import ENGINES, Cpu, Engine, Metrics, engine, run, say
from server import HERE, WORK

from openiodm.app import SWITCH_INTERVAL_S
from openiodm.campaigns.model import LogEntry
from openiodm.campaigns.rollout import Contact, Progress, Result
from openiodm.campaigns.states import UpgradeEvent
from openiodm.devices.model import DeviceKey
from openiodm.rooms import Rooms, open_rooms
from openiodm.settings import Settings

RESULTS = HERE / "results" / "reports.json"
TARGET_PER_CPU_S = 5000
TARGET_P99_MS = 100.0
TARGET_SHAPES = 0.8  # the slower shape's rate to the other's
AT_ONCE = 256
SLICES = 10
SMALL = 100  # campaigns of the second shape
LOG = LogEntry("proceeding", ("step",))
BORN = 1_700_000_000_000
SHAPES = ("one", "hundred")

CLOCKS = '{"online": 864000000, "download": 864000000, "install": 864000000, "verify": 864000000, "cancel": 600000}'
NUMBERS = "WITH RECURSIVE n(i) AS (SELECT CAST(1 AS bigint) UNION ALL SELECT i + 1 FROM n WHERE i < {last}) "
# Devices 1 to n are the one campaign's; those from n + 1 to 2n are dealt out to the hundred.
FILL = (
    "INSERT INTO blob (sha256, sha1, md5, size, created_at) VALUES ('aa', 'bb', 'cc', 3, 0)",
    "INSERT INTO product (id, device_type, model, manufacturer_name) VALUES (1, 't', 'm', 'x')",
    "INSERT INTO package (id, file_id, application_id, file_type, name, version, product_id, source_versions, extra, "
    "sha256, uploaded_at) VALUES (1, 'f', 1, 'firmwarePackage', 'n', '2.0', 1, '[]', '{empty}', 'aa', 0)",
    NUMBERS.replace("{last}", "2 * {n}")
    + "INSERT INTO device (id, device_id, application_id, node_id, product_id, reports_fw, reports_sw, "
    "self_registered, attributes, attributes_wanted, info, activation_timeout, registered_at, modified_at, "
    "attempt_seq) "
    "SELECT i, 'dev-' || i, 1, 'node-' || i, 1, FALSE, FALSE, FALSE, '{empty}', FALSE, '{empty}', 0, 0, 0, 0 FROM n",
    NUMBERS.replace("{last}", "{small} + 1")
    + "INSERT INTO campaign (id, operation_id, application_id, kind, package_id, product_id, device_type, model, "
    "manufacturer_name, target_version, policy_given, execute_type, retry_times, round, confirmation, clocks, status, "
    "work, stopped_by_operator, created_at) SELECT i, 'op-' || i, 1, 'firmware_upgrade', 1, 1, 't', 'm', 'x', '2.0', "
    "FALSE, 'now', 0, 0, FALSE, '{clocks}', 'wait', 'idle', FALSE, {born} FROM n",
    NUMBERS.replace("{last}", "2 * {n}")
    + "INSERT INTO upgrade (public_id, campaign_id, ordinal, device_id, state, round, created_at) SELECT 'sub-' || i, "
    "CASE WHEN i <= {n} THEN 1 ELSE 2 + i % {small} END, "
    "CASE WHEN i <= {n} THEN i ELSE (i - {n} - 1) / {small} + 1 END, i, 'wait', 0, {born} FROM n",
    "INSERT INTO campaign_counters (campaign_id, open, total, wait, processing, success, fail, stop, timeout) "
    "SELECT campaign_id, TRUE, count(*), count(*), 0, 0, 0, 0, 0 FROM upgrade GROUP BY campaign_id",
)


@dataclass
class Slice:
    """What some devices' whole ways took."""

    signals: int
    wall_s: float
    cpu_s: float
    latencies: list[float]


async def whole_way(rooms: Rooms, device: int, latencies: list[float]) -> None:
    signal, key = rooms.campaigns.signal, DeviceKey(device)

    async def say_it(what: Any) -> Any:
        began = time.perf_counter()
        outcome = await signal(key, what)
        latencies.append(1000 * (time.perf_counter() - began))
        return outcome

    granted = (await say_it(Contact())).standing
    if granted is None or granted.action_id is None:
        raise SystemExit(f"device {device} was not granted its turn")
    number = granted.action_id
    await say_it(Progress(number, LOG, UpgradeEvent.DOWNLOAD_STARTED))
    await say_it(Progress(number, LOG, UpgradeEvent.DOWNLOADED))
    await say_it(Result(number, True, LOG))


async def one_slice(rooms: Rooms, devices: list[int]) -> Slice:
    waiting = iter(devices)
    latencies: list[float] = []

    async def worker() -> None:
        for device in waiting:
            await whole_way(rooms, device, latencies)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return Slice(len(latencies), time.perf_counter() - began, time.process_time() - cpu, latencies)


def figures(slices: list[Slice]) -> Metrics:
    latencies = sorted(ms for one in slices for ms in one.latencies)
    return {
        "signals": len(latencies),
        "per_s": round(statistics.median(one.signals / one.wall_s for one in slices)),
        "per_cpu_s": round(statistics.median(one.signals / one.cpu_s for one in slices)),
        "p50_ms": round(statistics.median(latencies), 2),
        "p99_ms": round(latencies[int(len(latencies) * 0.99)], 2),
    }


async def measure(engine: Engine, devices: int) -> Metrics:
    settings = Settings(data_dir=str(WORK / "reports"), database=engine.url)
    async with open_rooms(settings) as rooms:
        await rooms.access.create_application("bench")
        values = {"n": devices, "small": SMALL, "born": BORN, "clocks": CLOCKS, "empty": "{}"}
        async with rooms.database.transaction() as tx:
            for statement in FILL:
                await tx.execute(statement.format(**values))
        async with rooms.database.transaction() as tx:
            await tx.execute("ANALYZE")
        say(f"{2 * devices} upgrades are there")
        cpu = Cpu(engine.pids)
        slices: dict[str, list[Slice]] = {shape: [] for shape in SHAPES}
        commits, items = rooms.writer.commits, rooms.writer.items
        each = devices // SLICES
        for n in range(SLICES):
            for shape in SHAPES if n % 2 else SHAPES[::-1]:
                first = 1 + n * each + (0 if shape == "one" else devices)
                slices[shape].append(await one_slice(rooms, list(range(first, first + each))))
        done = await rooms.database.fetchval("SELECT count(*) FROM upgrade WHERE state = 'success'")
        if done != 2 * each * SLICES:
            raise SystemExit(f"{done} of {2 * each * SLICES} devices have succeeded")
        wrong = await rooms.database.fetchval(
            "SELECT count(*) FROM campaign_counters k WHERE success <> "
            "(SELECT count(*) FROM upgrade u WHERE u.campaign_id = k.campaign_id AND u.state = 'success')"
        )
        if wrong:
            raise SystemExit(f"the counters of {wrong} campaigns are not their rows")
        found: Metrics = {shape: figures(some) for shape, some in slices.items()}
        pairs = zip(slices["one"], slices["hundred"], strict=True)
        found["hundred_to_one"] = round(statistics.median(a.cpu_s / b.cpu_s for a, b in pairs), 2)
        found["signals_a_commit"] = round((rooms.writer.items - items) / (rooms.writer.commits - commits), 1)
        found["others_pct"] = cpu.others_pct()
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=100_000, help="of each shape")
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    results: dict[str, Metrics] = {}
    for name in ENGINES:
        if options.engine in (None, name):
            with engine(name) as found:
                results[name] = run(measure(found, options.devices))
                say(f"{name}: {results[name]}")
    report = {"devices": options.devices, "machine": machine(), "engines": results}
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    met = all(
        m[shape]["per_cpu_s"] >= TARGET_PER_CPU_S and m[shape]["p99_ms"] < TARGET_P99_MS
        for m in results.values()
        for shape in SHAPES
    ) and all(m["hundred_to_one"] >= TARGET_SHAPES for m in results.values())
    return int(options.check and not met)


if __name__ == "__main__":
    sys.exit(main())
