"""What the comparison measures, step by step: each takes one server, or all of them, and gives figures by name."""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from machine import say
from server import HERE, WORK, BenchError, Server, make_artifact

Metrics = dict[str, float]

PAGES = 10  # of the list, evenly from the first to the last
PAGE_SIZE = 100


def idle_poll(server: Server, options: argparse.Namespace) -> Metrics:
    got = _polls(server, options.devices, options.seconds)
    return {
        "idle_poll_per_s": got["per_s"],
        "idle_poll_p50_ms": got["ms"]["p50"],
        "idle_poll_p99_ms": got["ms"]["p99"],
        "idle_poll_cpu_ms": round(1000 * got["server"]["cpu_s"] / got["requests"], 4),
        "idle_poll_others_pct": got.get("others_pct", 0.0),
    }


def _polls(server: Server, devices: int, seconds: int) -> dict[str, Any]:
    how = ("--concurrency", "32", "--duration", str(seconds), "--warmup", "2")
    return server.load("poll", "--devices", str(devices), *how)


def download(server: Server, options: argparse.Namespace) -> Metrics:
    metrics: Metrics = {}
    before = 0.0
    for connections, count in ((1, options.downloads), (8, 2 * options.downloads)):
        verify = ("--verify",) if connections == 1 else ()
        where = ("--concurrency", str(connections), "--count", str(max(count, connections)))
        got = server.load("download", *where, *verify)
        if not all(got.get("hashes_match", {}).values()):
            raise BenchError(f"{server.name}: the bytes are not what their hashes say: {got['hashes_match']}")
        metrics[f"download_{connections}_mb_per_s"] = got["mb_per_s"]
        before = before or got["server"]["rss_mib_before"]
        metrics["download_rss_growth_mib"] = round(got["server"]["rss_mib"] - before, 1)
    metrics["download_best_mb_per_s"] = max(metrics["download_1_mb_per_s"], metrics["download_8_mb_per_s"])
    return metrics


def whole_update(server: Server, options: argparse.Namespace) -> Metrics:
    got = server.load("cycle", "--devices", str(options.devices), "--concurrency", "16")
    if got["updates"] != options.devices:
        raise BenchError(f"{server.name}: {got['updates']} of {options.devices} devices were updated")
    return {"whole_update_per_s": got["updates_per_s"], "rss_mib_after": got["server"]["rss_mib"]}


def report(server: Server, options: argparse.Namespace) -> Metrics:
    how = ("--concurrency", "32", "--duration", str(options.seconds), "--warmup", "1")
    got = server.load("feedback", "--devices", str(options.devices), *how)
    cpu = 1000 * got["server"]["cpu_s"] / got["requests"]
    return {"report_per_s": got["per_s"], "report_p99_ms": got["ms"]["p99"], "report_cpu_ms": round(cpu, 4)}


STEPS: tuple[tuple[str, Callable[[Server, argparse.Namespace], Metrics]], ...] = (
    ("idle polls", idle_poll),
    ("downloads", download),
    ("whole updates", whole_update),
    ("reports", report),
)


def one_round(servers: list[Server], options: argparse.Namespace, number: int) -> dict[str, Metrics]:
    """Each step on every server before the next step; who goes first changes from round to round."""
    metrics: dict[str, Metrics] = {server.name: {} for server in servers}
    first = make_artifact(WORK / f"2.0.{number}.swu", f"2.0.{number}", options.megabytes)
    second = make_artifact(WORK / f"2.1.{number}.swu", f"2.1.{number}", 1)
    with running(servers, number) as order:
        for server in order:
            say(f"round {number}: {server.name}: {options.devices} devices and the package")
            server.prepare(options.devices, first)
        for name, step in STEPS:
            for server in order:
                if step is download:
                    server.offer_to_all()
                elif step is report:
                    server.publish(second)
                    server.offer_to_all()
                say(f"round {number}: {server.name}: {name}")
                metrics[server.name] |= step(server, options)
    first.unlink()
    second.unlink()
    return metrics


@contextmanager
def running(servers: list[Server], number: int, list_rows: int = 0) -> Iterator[list[Server]]:
    """All of them, with empty databases or such a list, in this round's order."""
    order = servers if number % 2 else servers[::-1]
    with contextlib.ExitStack() as stack:
        for server in order:
            server.reset()
            if list_rows:
                say(f"{server.name}: a list of {list_rows}")
                server.fill_list(list_rows)
            server.start()
            stack.callback(server.stop)
        yield order


def fleet(servers: list[Server], options: argparse.Namespace) -> list[dict[str, Metrics]]:
    """Polls of many devices, by turns; and the memory with all of them registered and heard once."""
    artifact = make_artifact(WORK / "3.0.0.swu", "3.0.0", 1)
    rounds: list[dict[str, Metrics]] = []
    with running(servers, 1) as order:
        for server in order:
            say(f"{server.name}: {options.fleet} devices")
            server.prepare(options.fleet, artifact)
        for number in range(options.rounds):
            rounds.append({})
            for server in order if number % 2 else order[::-1]:
                say(f"{server.name}: idle polls of {options.fleet} devices")
                got = _polls(server, options.fleet, options.seconds)
                cpu = round(1000 * got["server"]["cpu_s"] / got["requests"], 4)
                rounds[-1][server.name] = {
                    "fleet_poll_per_s": got["per_s"],
                    "fleet_poll_p99_ms": got["ms"]["p99"],
                    "fleet_poll_cpu_ms": cpu,
                    "fleet_rss_mib": got["server"]["rss_mib"],
                }
    artifact.unlink()
    return rounds


def task_pages(servers: list[Server], options: argparse.Namespace) -> list[dict[str, Metrics]]:
    """Pages of a long list of tasks, from the first to the last, by turns."""
    last = options.tasks // PAGE_SIZE - 1
    where = ("--devices", str(PAGES), "--stride", str(last // (PAGES - 1)), "--concurrency", "8")
    rounds: list[dict[str, Metrics]] = []
    with running(servers, 1, options.tasks) as order:
        for server in order:
            server.log_in()
        for number in range(options.rounds):
            rounds.append({})
            for server in order if number % 2 else order[::-1]:
                say(f"{server.name}: pages of {options.tasks} tasks")
                path, headers = server.list_load()
                time = ("--duration", str(options.seconds), "--warmup", "2")
                got = server.load("poll", *where, *time, path=path, headers=headers)
                cpu = round(1000 * got["server"]["cpu_s"] / got["requests"], 4)
                rounds[-1][server.name] = {
                    "list_per_s": got["per_s"],
                    "list_http_p50_ms": got["ms"]["p50"],
                    "list_http_p99_ms": got["ms"]["p99"],
                    "list_cpu_ms": cpu,
                }
    return rounds


def list_inside(options: argparse.Namespace) -> dict[str, Any]:
    """`task_list.py` in a size that fits: `list_p99_ms` by engine, and how many undisturbed requests that is of."""
    out = WORK / "list.json"
    say(f"pages of {options.tasks} tasks inside the server, both engines")
    size = ("--tasks", str(options.tasks), "--rounds", str(options.rounds))
    command = [sys.executable, str(HERE / "task_list.py"), *size]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"task_list.py failed: {done.stdout[-500:]}{done.stderr[-2000:]}")
    found = json.loads(out.read_text())
    out.unlink()
    return {
        "list_p99_ms": found["list_p99_ms"],
        "list_samples": {name: m["request_ms"]["undisturbed"]["n"] for name, m in found["engines"].items()},
    }


def startup(server: Server, options: argparse.Namespace) -> Metrics:
    """On a database that has been used, as a restart meets it."""
    say(f"{server.name}: start-up")
    got = server.startup(3 if options.quick else 7)
    return {"startup_s": got["startup_median_s"], "startup_rss_mib": statistics.median(got["rss_mib"])}
