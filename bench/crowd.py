#!/usr/bin/env python3
"""A task for a group of a million devices, created and stopped by HTTP while other devices poll.

    python bench/crowd.py                        both engines, 1,000,000 devices
    python bench/crowd.py --engine postgresql    one engine
    python bench/crowd.py --devices 100000       less of everything

A whole server, its database filled in bulk. Devices poll at a steady rate all the while (`steady.py`): before, while
the task is expanded over its group, while they are granted their turns, while the stopped task is swept, and
afterwards. Meanwhile the task's rows are counted again and again and must be its counters (`/invariants`: one
snapshot). A device that is granted its turn begins a slow download before the stop: it must be cut, and another one
refused, within a second. No row of history says of a grant after the stop was answered. The result is
`results/crowd.json`.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import shutil
import socket
import sqlite3
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import asyncpg
from inside import Cpu, Engine, Metrics, engine, say
from list_data import BATCH, DEVICE
from machine import machine
from ours import OursServer
from server import HERE, WORK, BenchError, make_artifact
from steady import Answer, polling, read, shape

from openiodm.storage.open import sqlite_path

RESULTS = HERE / "results" / "crowd.json"
ENGINES = ("postgres", "sqlite")
CREATE_MS, EXPAND_S = 300.0, 60.0
STOP_MS, REFUSED_S, SWEPT_S = 100.0, 1.0, 60.0
POLLS_P99_MS = 100.0  # while the task is expanded or swept
POLL_RATE = 300.0
POLLING = 20_000  # devices, in turn: so some are granted their turn at any time
QUIET_S = 10.0  # before and after
GRANTING_S = 8.0
LOOK_S = 0.5
GIVE_UP_S = 900.0
MEGABYTES = 64  # of the package: more than sockets buffer
SLOW_BYTES = 4096  # that the slow download reads each SLOW_S
SLOW_S = 0.05
MEMBER = "group_id, device_id, product_id"
TASKS = "/api/v1/tasks"


class CrowdServer(OursServer):
    """OpenIODM on either engine."""

    name = "openiodm-crowd"

    def __init__(self, port: int, commands: list[str], on: Engine) -> None:
        super().__init__(port, commands)
        self.on = on

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "OPENIODM_DATABASE": self.on.url}

    def pinned(self) -> list[str]:
        return self.command()  # PostgreSQL runs beside it: the kernel deals out the cores

    def native(self, method: str, path: str, value: object = None) -> Any:
        return self.ask(method, TASKS + path, value, self.token)

    def task(self) -> dict[str, Any]:
        targets = {"deviceGroups": ["bench"], **self.product}
        return {"kind": "firmware_upgrade", "fileId": self.file_id, "targets": targets}

    def as_device(self, href: str) -> Any:
        return self.ask("GET", urllib.parse.urlsplit(href).path, headers=dict([self.headers[0].split(": ", 1)]))

    def package_of(self, n: int) -> str:
        """Where a device that is granted its turn finds the bytes."""
        poll = self.as_device(self.path.replace("{id}", f"bench-{n:06d}"))
        offer = self.as_device(poll["_links"]["deploymentBase"]["href"])
        return str(offer["deployment"]["chunks"][0]["artifacts"][0]["_links"]["download-http"]["href"])


def device_rows(count: int, product: int) -> Iterator[tuple[Any, ...]]:
    for n in range(count):
        yield n + 1, f"dev-{n}", 1, f"bench-{n:06d}", product, False, False, True, "{}", False, "{}", 0, 0, 0, 0


def fill(url: str, count: int) -> None:
    """`count` devices, all in the group that is there."""
    path = sqlite_path(url)
    if path is not None:
        _fill_sqlite(path, count)
    else:
        asyncio.run(_fill_postgres(url, count))


def _fill_sqlite(path: Path, count: int) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous=OFF")
    ((product,),) = db.execute("SELECT id FROM product").fetchall()
    ((group,),) = db.execute("SELECT id FROM device_group").fetchall()
    rows = device_rows(count, product)
    marks = ", ".join("?" for _ in DEVICE.split(","))
    while some := list(islice(rows, BATCH)):
        db.execute("BEGIN")
        db.executemany(f"INSERT INTO device ({DEVICE}) VALUES ({marks})", some)
        db.executemany(f"INSERT INTO group_member ({MEMBER}) VALUES (?, ?, ?)", [(group, r[0], product) for r in some])
        db.execute("COMMIT")
    db.execute("UPDATE device_group SET device_count = ?", (count,))
    db.execute("ANALYZE")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


async def _fill_postgres(url: str, count: int) -> None:
    db = await asyncpg.connect(url)
    await db.execute("SET session_replication_role = replica")  # no triggers, no foreign keys
    product, group = await db.fetchval("SELECT id FROM product"), await db.fetchval("SELECT id FROM device_group")
    rows = device_rows(count, product)
    while some := list(islice(rows, BATCH)):
        await db.copy_records_to_table("device", records=some, columns=DEVICE.split(", "))
        members = [(group, r[0], product) for r in some]
        await db.copy_records_to_table("group_member", records=members, columns=MEMBER.split(", "))
    await db.execute("UPDATE device_group SET device_count = $1", count)
    await db.execute("SELECT setval('device_id_seq', (SELECT max(id) FROM device))")
    await db.execute("VACUUM ANALYZE")
    await db.execute("CHECKPOINT")
    await db.close()


def query(url: str, sql: str) -> int:
    """One number of the database, past the server."""
    path = sqlite_path(url)
    if path is not None:
        db = sqlite3.connect(path, timeout=30)
        try:
            return int(db.execute(sql).fetchone()[0])
        finally:
            db.close()

    async def fetch() -> int:
        connection = await asyncpg.connect(url)
        try:
            return int(await connection.fetchval(sql))
        finally:
            await connection.close()

    return asyncio.run(fetch())


GRANTS = "SELECT count(*) FROM history WHERE to_state = 'offered'"
SWEPT = "SELECT count(*) FROM history WHERE to_state = 'stop'"


class SlowDownload:
    """Reads the package a little at a time, in a thread, until `hurry` is set: then as fast as it comes."""

    def __init__(self, server: CrowdServer, href: str) -> None:
        self._server = server
        self._path = urllib.parse.urlsplit(href).path
        self._hurry = threading.Event()
        self._left = -1
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _ask(self) -> http.client.HTTPResponse:
        peer = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        peer.sock = socket.socket()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BYTES)
        peer.sock.connect(("127.0.0.1", self._server.port))
        peer.request("GET", self._path, headers=dict([self._server.headers[0].split(": ", 1)]))
        return peer.getresponse()

    def _run(self) -> None:
        answer = self._ask()
        self._left = int(answer.headers["Content-Length"])
        with contextlib.suppress(ConnectionError, http.client.IncompleteRead):
            while piece := answer.read1(SLOW_BYTES):
                self._left -= len(piece)
                self._hurry.wait(SLOW_S)

    def refused_after(self, began: float) -> float:
        """Seconds from `began` until another request for it is refused."""
        while True:
            answer = self._ask()
            status = answer.status
            answer.close()
            if status >= 400:
                return time.monotonic() - began
            if time.monotonic() - began > GIVE_UP_S:
                raise BenchError("the package is never refused")
            time.sleep(0.02)

    def is_cut(self) -> bool:
        """Now it takes what there is: is that not the whole package?"""
        self._hurry.set()
        self._thread.join(GIVE_UP_S)
        return self._left > 0


class Watch:
    """Looks at a task's counters and rows until something holds, and that they are equal each time."""

    def __init__(self, server: CrowdServer, operation: str) -> None:
        self._server = server
        self._operation = operation
        self.looks = 0
        self.waits: list[int] = []

    def look(self) -> dict[str, int]:
        found = self._server.native("GET", f"/{self._operation}/invariants")
        self.looks += 1
        if not found["exact"]:
            raise BenchError(f"the counters are not the rows: {found}")
        counters: dict[str, int] = found["counters"]
        return counters

    def until(self, what: str, holds: Callable[[dict[str, int]], bool]) -> float:
        """When it held, on the monotonic clock."""
        began = time.monotonic()
        while True:
            counters = self.look()
            if holds(counters):
                return time.monotonic()
            if time.monotonic() - began > GIVE_UP_S:
                raise BenchError(f"{what}: not after {GIVE_UP_S:.0f} s: {counters}")
            time.sleep(LOOK_S)


def between(answers: list[Answer], since: float, until: float) -> dict[str, Any]:
    return shape([a for a in answers if since <= a.due < until])


def measure(server: CrowdServer, devices: int) -> Metrics:
    server.reset()
    server.start()
    try:
        server.log_in()
        server.publish(make_artifact(WORK / "crowd.swu", "2.0", MEGABYTES))
        server.make_group()
    finally:
        server.stop()
    began = time.monotonic()
    fill(server.on.url, devices)
    say(f"{devices} devices are there after {time.monotonic() - began:.0f} s")
    server.start()
    try:
        return under_load(server, devices)
    finally:
        server.stop()


def under_load(server: CrowdServer, devices: int) -> Metrics:
    out = server.run / "polls.bin"
    cpu = Cpu(server.on.pids)
    words = ("--rate", str(POLL_RATE), "--devices", str(min(POLLING, devices)))
    with polling(server.base, server.path, server.headers, out, *words):
        marks = {"before": time.monotonic()}
        time.sleep(QUIET_S)
        marks["expanding"] = time.monotonic()
        operation = server.native("POST", "", server.task())["operationId"]
        create_s = time.monotonic() - marks["expanding"]
        watch = Watch(server, operation)
        there = watch.until("expansion", lambda c: c["total"] == devices)
        say(f"created in {1000 * create_s:.0f} ms, expanded after {there - marks['expanding']:.1f} s")
        marks["granting"] = there
        watch.until("grants", lambda c: c["processing"] > 0)
        slow = SlowDownload(server, server.package_of(0))
        time.sleep(GRANTING_S)
        watch.look()
        marks["sweeping"] = time.monotonic()
        server.native("POST", f"/{operation}/stop")
        stopped = time.monotonic()
        grants = query(server.on.url, GRANTS)
        refused_s = slow.refused_after(stopped)
        time.sleep(max(0.0, stopped + REFUSED_S - time.monotonic()))
        cut = slow.is_cut()
        swept = watch.until("sweep", lambda c: c["wait"] == 0)
        say(f"stopped in {1000 * (stopped - marks['sweeping']):.0f} ms, swept after {swept - stopped:.1f} s")
        marks["after"] = time.monotonic()
        time.sleep(QUIET_S)
        marks["end"] = time.monotonic()
        counters = watch.look()
    later = query(server.on.url, GRANTS) - grants
    rows = query(server.on.url, SWEPT)
    if rows != counters["stop"]:
        raise BenchError(f"{rows} rows of history for {counters['stop']} stopped devices")
    answers = read(out)
    names = list(marks)
    return {
        "create_ms": round(1000 * create_s, 1),
        "expanded_s": round(there - marks["expanding"], 1),
        "granted": grants,
        "stop_ms": round(1000 * (stopped - marks["sweeping"]), 1),
        "grants_after_stop": later,
        "download_refused_s": round(refused_s, 3),
        "download_cut_within_1_s": cut,
        "swept_s": round(swept - stopped, 1),
        "recounts_all_exact": watch.looks,
        "counters": counters,
        "polls": {a: between(answers, marks[a], marks[b]) for a, b in pairwise(names)},
        "others_pct": cpu.others_pct(),
    }


def verdicts(m: Metrics) -> list[tuple[str, float, float]]:
    """(what, seen, at most)."""
    return [
        ("create, ms", m["create_ms"], CREATE_MS),
        ("all sub-tasks there after, s", m["expanded_s"], EXPAND_S),
        ("stop, ms", m["stop_ms"], STOP_MS),
        ("grants after the stop", m["grants_after_stop"], 0),
        ("download refused after, s", m["download_refused_s"], REFUSED_S),
        ("downloads not cut within 1 s", int(not m["download_cut_within_1_s"]), 0),
        ("swept after, s", m["swept_s"], SWEPT_S),
        ("polls, p99 while expanding, ms", m["polls"]["expanding"]["p99_ms"], POLLS_P99_MS),
        ("polls, p99 while sweeping, ms", m["polls"]["sweeping"]["p99_ms"], POLLS_P99_MS),
        ("polls not answered 200", sum(p["bad"] for p in m["polls"].values()), 0),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--port", type=int, default=18_764)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="exit with 1 when PostgreSQL misses a target")
    options = parser.parse_args()
    commands: list[str] = []
    results: dict[str, Metrics] = {}
    for name in ENGINES:
        if options.engine in (None, name):
            say(name)
            with engine(name) as found:
                server = CrowdServer(options.port, commands, found)
                results[name] = measure(server, options.devices)
            shutil.rmtree(server.folder, ignore_errors=True)
    report = {"devices": options.devices, "polls_per_s": POLL_RATE, "machine": machine(), "engines": results}
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    met = True
    for name, m in results.items():
        for what, seen, most in verdicts(m):
            print(f"{name:10} {what:32} {seen:>10,.1f}  at most {most:g}{'' if seen <= most else '  MISSED'}")
            met = met and (seen <= most or name == "sqlite")
    return int(options.check and not met)


if __name__ == "__main__":
    sys.exit(main())
