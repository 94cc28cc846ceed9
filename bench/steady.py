#!/usr/bin/env python3
"""Requests at a steady rate whatever the answers take: the open loop beside `ddi_load.py`'s closed one.

A closed loop asks again only when it was answered, so a server that stands still for a second is seen by a few
requests. Here each request has its moment; what comes late, because the server or every connection was busy, counts
from that moment on. Each answer is one record in a file: when it was due (seconds, CLOCK_MONOTONIC, which all processes
of a machine share), how long it took from then (seconds), and its status (0: the connection was cut).

    python bench/steady.py --base http://127.0.0.1:8743 --rate 300 --devices 1000 --out polls.bin --seconds 10
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddi_load import Load, Reply, Wire, new_event_loop

TICK_S = 0.001
DRAIN_S = 10.0  # at the end, for what is under way
FIELDS = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's."""

    due: float
    seconds: float
    status: int


class Steady:
    """One run: `rate` requests a second, round robin over the devices, on some connections."""

    def __init__(self, load: Load, requests: list[bytes], rate: float) -> None:
        self._load = load
        self._requests = requests
        self._rate = rate
        self._free: deque[Wire] = deque()
        self._due: deque[tuple[float, bytes]] = deque()
        self._under_way: dict[Wire, float] = {}
        self.records = array("d")

    def _answered(self, wire: Wire, reply: Reply | None) -> None:
        due = self._under_way.pop(wire)
        self.records.extend((due, time.monotonic() - due, 0 if reply is None else reply.status))
        if not wire.closed:
            self._free.append(wire)
            self._send()

    def _send(self) -> None:
        while self._free and self._due:
            wire = self._free.popleft()
            due, raw = self._due.popleft()
            self._under_way[wire] = due
            wire.send(raw)

    async def run(self, connections: int, seconds: float, stop: asyncio.Event) -> None:
        """Until the time is over, or `stop` is set."""
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            _, wire = await loop.create_connection(lambda: Wire(self._answered), self._load.host, self._load.port)
            self._free.append(wire)
        began = time.monotonic()
        sent, turn = 0, 0
        while not stop.is_set() and (now := time.monotonic()) - began < seconds:
            while (due := began + sent / self._rate) <= now:
                self._due.append((due, self._requests[turn]))
                sent, turn = sent + 1, (turn + 1) % len(self._requests)
            self._send()
            if not self._free and not self._under_way:
                raise SystemExit("the server has closed every connection")
            await asyncio.sleep(TICK_S)
        for _ in range(int(DRAIN_S / TICK_S)):
            if self._under_way or self._due:
                await asyncio.sleep(TICK_S)
        for due, _ in self._due:
            self.records.extend((due, time.monotonic() - due, 0))


def read(file: Path) -> list[Answer]:
    """What a run wrote."""
    values = array("d")
    values.frombytes(file.read_bytes())
    return [Answer(values[n], values[n + 1], int(values[n + 2])) for n in range(0, len(values), FIELDS)]


def shape(answers: list[Answer]) -> dict[str, Any]:
    """Latencies in milliseconds."""
    ordered = sorted(1000 * a.seconds for a in answers)
    if not ordered:
        return {"n": 0}

    def quantile(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 2)

    return {
        "n": len(ordered),
        "bad": sum(a.status != 200 for a in answers),
        "p50_ms": quantile(0.5),
        "p99_ms": quantile(0.99),
        "p999_ms": quantile(0.999),
        "max_ms": round(ordered[-1], 2),
    }


@contextmanager
def polling(base: str, path: str, headers: list[str], out: Path, *words: str) -> Iterator[None]:
    """A run in a process of its own for as long as it is entered; `read(out)` afterwards."""
    command = [sys.executable, __file__, "--base", base, "--path", path, "--out", str(out), *words]
    command += [word for header in headers for word in ("--header", header)]
    process = subprocess.Popen(command)
    try:
        time.sleep(1.0)  # connections are made
        if process.poll() is not None:
            raise SystemExit("the polls did not begin")
        yield
        if process.poll() is not None:
            raise SystemExit("the polls ended early")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


async def measure(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    load = Load(options)
    run = Steady(
        load, [load.poll_request(n) for n in range(options.first, options.first + options.devices)], options.rate
    )
    try:
        await run.run(options.connections, options.seconds, stop)
    finally:
        options.out.write_bytes(run.records.tobytes())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--path", default="/DEFAULT/controller/v1/{id}")
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--core", type=int, help="run on this core alone")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(measure(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
