#!/usr/bin/env python3
"""Polls and reports on PostgreSQL with one worker and with two, by turns, in one run.

    python bench/workers.py [--devices 500] [--rounds 3] [--seconds 6]

The generator has the last core as its own; server and PostgreSQL may use all. With two cores, three parties share what
one of them can use alone, so look at the ratio and at the CPU time of the server for a request, not at a doubling.
The result is `results/workers.json`.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, ClassVar

from inside import Cpu, engine
from machine import commit, machine, say
from ours import OursServer
from server import HERE, WORK, make_artifact

RESULTS = HERE / "results" / "workers.json"
PORT = 18_171
WORKERS = (1, 2)
LOADS = ("poll", "feedback")


class WorkersServer(OursServer):
    """OpenIODM on PostgreSQL, not bound to a core."""

    name = "openiodm-workers"
    database: ClassVar[str] = ""
    workers = 1

    def pinned(self) -> list[str]:
        return self.command()

    def command(self) -> list[str]:
        return [*super().command(), "--workers", str(self.workers)]

    def environment(self) -> dict[str, str]:
        return super().environment() | {"OPENIODM_DATABASE": self.database}


def one_load(server: WorkersServer, load: str, options: argparse.Namespace, pids: list[int]) -> dict[str, Any]:
    cpu = Cpu([*pids, server.pid])
    how = ("--devices", str(options.devices), "--concurrency", "32", "--duration", str(options.seconds))
    got = server.load(load, *how)
    return {
        "per_s": got["per_s"],
        "p99_ms": got["ms"]["p99"],
        "server_cpu_ms": round(1000 * got["server"]["cpu_s"] / got["requests"], 3),
        "others_pct": cpu.others_pct(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    samples: dict[str, dict[int, list[dict[str, Any]]]] = {load: {n: [] for n in WORKERS} for load in LOADS}
    with engine("postgres") as found:
        WorkersServer.database = found.url
        server = WorkersServer(PORT, [])
        server.setup()
        server.reset()
        try:
            server.start()
            server.prepare(options.devices, make_artifact(WORK / "v2.swu", "v2", 1))
            server.offer_to_all()
            for turn in range(options.rounds):
                for n in WORKERS if turn % 2 else WORKERS[::-1]:
                    server.stop()
                    server.workers = n
                    server.start()
                    for load in LOADS:
                        sample = one_load(server, load, options, found.pids[1:])
                        samples[load][n].append(sample)
                        say(f"{load}, {n} workers: {sample}")
        finally:
            server.stop()
    report = {"devices": options.devices, "machine": machine(), "commit": commit(), "loads": {}}
    for load, by_workers in samples.items():
        pairs = zip(by_workers[1], by_workers[2], strict=True)
        report["loads"][load] = {
            "two_to_one": round(statistics.median(two["per_s"] / one["per_s"] for one, two in pairs), 2),
            **{f"{n}_workers": some for n, some in by_workers.items()},
        }
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
