#!/usr/bin/env python3
"""How the cost of a poll, a report, an update, a group task and a list page grows with what there is.

    python bench/growth.py                             everything: some ten minutes
    python bench/growth.py --part devices --engine sqlite --devices 100 1000
                                                       a part of it; the rest of the file stays as it was

`devices`: servers with 100 to 100,000 devices on each engine: idle polls, a task for all of them, repeated reports,
whole updates. What counts is CPU time, of the server's process and of PostgreSQL's, since it tells what a core has time
for even where the machine is shared; rates are of one server on one core with 32 connections. On PostgreSQL also the
bytes of WAL, and what a row of each table takes. `workers`: polls and reports to 1, 2 and 4 server processes on one
PostgreSQL, one campaign; on a machine of two cores the rate cannot grow with them, but the cost of a request could.
`tasks`: pages of a task list of 1,000 to 100,000 tasks, by `task_list.py`. The result is `results/growth.json`;
`plots.py` draws it.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from compare import machine
from crowd import TASKS, CrowdServer, fill, query
from ddi_load import usage
from inside import ENGINES, Engine, Metrics, engine, say
from machine import commit
from server import HERE, WORK, BenchError, Server, make_artifact

from openiodm.storage.open import open_database

RESULTS = HERE / "results" / "growth.json"
PARTS = ("devices", "workers", "tasks")
DEVICES = (100, 1000, 10_000, 100_000)
TASK_LISTS = (1000, 10_000, 100_000)
WORKERS = (1, 2, 4)
PORT = 18_061
SECONDS = 4
FLUSHED_S = 6  # `last_seen_flush_s` is 5
REPORTING = 2000  # devices at most, of those that report again and again
UPDATED = 5000  # devices at most, of those that are updated whole
SETTLED = "UPDATE device SET activated_at = 1, last_seen_at = 1"  # or first contacts would be measured as polls
WAL = "SELECT pg_current_wal_insert_lsn() - '0/0'"
CHANGES = "SELECT count(*) FROM history"
SIZES = (
    "SELECT relname, pg_table_size(oid), pg_indexes_size(oid) FROM pg_class WHERE relname = ANY($1) AND relkind = 'r'"
)
TABLES = ("device", "group_member", "upgrade", "history", "device_log")


class GrownServer(CrowdServer):
    """On one core, as in the comparison; PostgreSQL has both."""

    name = "openiodm-growth"

    workers = 0  # 0: one process on one core

    def pinned(self) -> list[str]:
        return super().pinned() if self.workers else Server.pinned(self)

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "OPENIODM_WORKERS": str(self.workers or 1)}

    def cost(self, mode: str, *options: str, of: str = "requests") -> Metrics:
        """One run of the generator: its figures, and what each of `of` cost."""
        cpu, wal = self._database_cpu(), self._wal()
        got = self.load(mode, *options)
        n = got[of]
        found = {
            "per_s": round(n / got["wall_s"], 1),
            "p99_ms": got["ms"]["p99"],
            "cpu_ms": round(1000 * got["server"]["cpu_s"] / n, 4),
            "database_cpu_ms": round(1000 * (self._database_cpu() - cpu) / n, 4),
            "rss_mib": got["server"]["rss_mib"],
            "others_pct": got.get("others_pct", 0.0),
        }
        return found if wal is None else found | {"wal_bytes": round(((self._wal() or 0) - wal) / n)}

    def cost_of_contacts(self, devices: int) -> Metrics:
        """As `cost` of polls, with all that comes after: times of last contact are written some seconds later."""
        time.sleep(FLUSHED_S)
        cpu, database, wal = usage(self.pid)["cpu_s"], self._database_cpu(), self._wal() or 0
        n = self.load("poll", "--devices", str(devices), "--concurrency", "32", "--duration", str(SECONDS))["requests"]
        time.sleep(FLUSHED_S)
        return {
            "polls": n,
            "cpu_ms": round(1000 * (usage(self.pid)["cpu_s"] - cpu) / n, 4),
            "database_cpu_ms": round(1000 * (self._database_cpu() - database) / n, 4),
            "wal_bytes": round(((self._wal() or 0) - wal) / n),
        }

    def _database_cpu(self) -> float:
        return 0.0 if self.on.postmaster is None else usage(self.on.postmaster)["cpu_s"]

    def _wal(self) -> int | None:
        return None if self.on.postmaster is None else query(self.on.url, WAL)


async def _settle(url: str) -> None:
    database = await open_database(url)
    async with database.transaction() as tx:
        await tx.execute(SETTLED)
    await database.close()


@contextmanager
def filled(devices: int, on: Engine, workers: int = 0) -> Iterator[GrownServer]:
    """A server with so many devices of one group, and a package for them."""
    server = GrownServer(PORT, [], on)
    server.reset()
    server.start()
    try:
        server.log_in()
        server.publish(make_artifact(WORK / "growth.swu", "2.0", 1))
        server.make_group()
    finally:
        server.stop()
    fill(on.url, devices)
    asyncio.run(_settle(on.url))
    server.workers = workers
    server.start()
    try:
        yield server
    finally:
        server.stop()


def processes(workers: int, on: Engine) -> Metrics:
    """Polls and reports by so many server processes; they, PostgreSQL and the generator share the cores."""
    often = ("--concurrency", "64", "--duration", str(SECONDS), "--warmup", "2", "--devices", str(REPORTING))
    with filled(REPORTING, on, workers) as server:
        poll = server.cost("poll", *often)
        _create(server, REPORTING)
        found = {"workers": workers, "poll": poll, "report": server.cost("feedback", *often)}
    say(f"{workers} workers: " + json.dumps(found))
    return found


def _costs(server: GrownServer, devices: int) -> Metrics:
    often = ("--concurrency", "32", "--duration", str(SECONDS), "--warmup", "1")
    poll = server.cost("poll", "--devices", str(devices), *often)
    created = _create(server, devices)
    half = devices // 2
    report = server.cost("feedback", "--devices", str(min(half, REPORTING)), *often)
    who = ("--first", str(half), "--devices", str(min(half, UPDATED)))
    before = query(server.on.url, CHANGES)
    update = server.cost("cycle", *who, "--concurrency", "16", of="updates")
    update["history_rows"] = round((query(server.on.url, CHANGES) - before) / min(half, UPDATED), 2)
    found: Metrics = {"devices": devices, "poll": poll, "report": report, "update": update, "create": created}
    if server.on.postmaster is not None:
        found["contact"] = server.cost_of_contacts(devices)
        found["rows"] = asyncio.run(_rows(server.on.url))
    say(f"{server.on.url.split(':')[0]}, {devices} devices: " + json.dumps({k: found[k] for k in ("poll", "create")}))
    return found


def _create(server: GrownServer, devices: int) -> Metrics:
    """A task for all of them: until it is answered, and until all its sub-tasks are there."""
    began = time.monotonic()
    operation = server.native("POST", "", server.task())["operationId"]
    answered = time.monotonic()
    while time.monotonic() - began < 300:
        found = server.native("GET", f"/{operation}")["counters"]["total"]
        if found == devices:
            return {"answer_ms": round(1000 * (answered - began), 1), "there_s": round(time.monotonic() - began, 2)}
        time.sleep(0.02)
    raise BenchError(f"{TASKS}/{operation} has {found} of {devices} sub-tasks after five minutes")


async def _rows(url: str) -> dict[str, dict[str, float]]:
    """By table: how many rows, and bytes a row, of the table and of its indexes."""
    database = await asyncpg.connect(url)
    found = {}
    for name, table, indexes in await database.fetch(SIZES, list(TABLES)):
        rows = await database.fetchval(f"SELECT count(*) FROM {name}")
        if rows:
            found[name] = {"rows": rows, "bytes": round(table / rows), "index_bytes": round(indexes / rows)}
    await database.close()
    return found


def lists(tasks: int) -> dict[str, Metrics]:
    """By engine: pages of such a list. That of a million is `results/list.json`, by its own command."""
    out = WORK / "growth-list.json"
    command = [sys.executable, str(HERE / "task_list.py"), "--tasks", str(tasks), "--rounds", "1", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"task_list.py failed: {done.stdout[-500:]}{done.stderr[-2000:]}")
    report = json.loads(out.read_text())
    out.unlink()
    say(f"{tasks} tasks: {report['list_p99_ms']}")
    return {
        name: {
            "tasks": tasks,
            "request_ms": m["request_ms"]["undisturbed"],
            "plain_sql_ms": m["plain_sql_ms"]["all"],
            "bitmaps_mib": m["bitmaps_mib"],
        }
        for name, m in report["engines"].items()
    }


def keep(some: list[Metrics], one: Metrics, size: str) -> None:
    """In the order of their sizes; one that was measured before is replaced."""
    made = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit()}
    some[:] = sorted([*(m for m in some if m[size] != one[size]), made | one], key=lambda m: int(m[size]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--engine", choices=ENGINES, help="of the devices")
    parser.add_argument("--devices", type=int, nargs="*", help="only fleets of these sizes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    report: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    report |= {"machine": machine(), "devices": report.get("devices", {}), "tasks": report.get("tasks", {})}
    for name in ENGINES if options.part in (None, "devices") else ():
        if options.engine in (None, name):
            for devices in options.devices or DEVICES:
                with engine(name) as on, filled(devices, on) as server:
                    keep(report["devices"].setdefault(name, []), _costs(server, devices), "devices")
                options.out.write_text(json.dumps(report, indent=2) + "\n")
    for workers in WORKERS if options.part in (None, "workers") else ():
        with engine("postgres") as on:
            keep(report.setdefault("workers", []), processes(workers, on), "workers")
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    for tasks in TASK_LISTS if options.part in (None, "tasks") else ():
        for name, found in lists(tasks).items():
            keep(report["tasks"].setdefault(name, []), found, "tasks")
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench: {error}")
