#!/usr/bin/env python3
"""Idle polls of 10,000 devices over HTTP: the most that the server answers, and how soon at half of that.

    python bench/polls.py                   three rounds on SQLite (some two minutes)
    python bench/polls.py --rounds 1 --devices 1000

The maximum is a closed loop's: 32 connections, each of which asks again when it was answered. Half of that is then
asked for at a steady rate on 64 connections, whatever the answers take: a late answer counts from the moment when its
request was due (`steady.py`). Every device polls within that time, so what the polls leave behind (times of last
contact) is written meanwhile. Server and generator have a core each. A figure is the median of the rounds; the result
is `results/polls.json`.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from inside import Cpu, Metrics
from machine import machine, say
from ours import OursServer
from server import GENERATOR_CORE, HERE, WORK, make_artifact
from steady import polling, read, shape

RESULTS = HERE / "results" / "polls.json"
TARGET_P99_MS = 20.0
SETTLE_S = 2.0  # of the steady polls, before those that count


def one_round(server: OursServer, options: argparse.Namespace) -> Metrics:
    devices = ("--devices", str(options.devices))
    seconds = ("--duration", str(options.seconds), "--warmup", "2")
    most = server.load("poll", *devices, "--concurrency", "32", *seconds)
    rate = most["per_s"] / 2
    out = server.run / "polls.bin"
    words = (*devices, "--rate", str(rate), "--connections", "64", "--core", str(GENERATOR_CORE))
    cpu = Cpu([os.getpid()])
    with polling(server.base, server.path, server.headers, out, *words):
        began = time.monotonic() + SETTLE_S
        time.sleep(SETTLE_S + options.seconds)
        ended = time.monotonic()
    half = shape([a for a in read(out) if began <= a.due < ended])
    return {
        "most_per_s": most["per_s"],
        "most_p99_ms": most["ms"]["p99"],
        "most_cpu_ms": round(1000 * most["server"]["cpu_s"] / most["requests"], 4),
        "half_per_s": round(rate, 1),
        **{f"half_{name}": value for name, value in half.items()},
        "others_pct": cpu.others_pct(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--port", type=int, default=18_765)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args()
    server = OursServer(options.port, [])
    server.setup()
    server.reset()
    server.start()
    try:
        server.prepare(options.devices, make_artifact(WORK / "polls.swu", "2.0", 1))
        rounds: list[Metrics] = []
        for number in range(1, options.rounds + 1):
            rounds.append(one_round(server, options))
            say(f"round {number}: {rounds[-1]}")
    finally:
        server.stop()
    middle = {key: round(statistics.median(one[key] for one in rounds), 4) for key in rounds[0]}
    report = {"devices": options.devices, "machine": machine(), "target_p99_ms": TARGET_P99_MS, **middle}
    options.out.write_text(json.dumps(report | {"rounds": rounds}, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    seen, met = middle["half_p99_ms"], middle["half_p99_ms"] < TARGET_P99_MS and not middle["half_bad"]
    print(f"p99 at half of the maximum: {seen} ms, at most {TARGET_P99_MS:g}{'' if met else '  MISSED'}")
    return int(options.check and not met)


if __name__ == "__main__":
    sys.exit(main())
