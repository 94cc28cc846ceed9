#!/usr/bin/env python3
"""OpenIODM and goosebit side by side, in one run, under the same load: what `make bench` shows.

    python bench/compare.py            three rounds, 1,000 and 10,000 devices, 100 MB (some twelve minutes)
    python bench/compare.py --quick    one round, 200 and 2,000 devices, 20 MB (two to three minutes)
    python bench/compare.py --parts lists,inside        some parts only: no line of history comes of it
    python bench/compare.py --only goosebit

Both servers start empty in each round and are measured in turn, step by step, so that a busy minute of the machine
hits both. The server runs on the first core, the generator on the last. Figures are medians over the rounds; a ratio is
the median of the rounds' ratios. `bench/README.md` says how to read them, `history.py` sets them beside earlier runs.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import history
from files import nginx_ratio
from machine import commit, machine, say
from ours import OursServer
from peer_goosebit import GoosebitServer
from server import HERE, WORK, BenchError, Server
from steps import Metrics, fleet, list_inside, one_round, startup, task_pages

__all__ = ["OursServer", "machine", "say"]  # other benchmarks have them from here

RESULTS = HERE / "results" / "latest.json"
PARTS = ("rounds", "fleet", "lists", "inside", "nginx", "startup")

Sides = dict[str, list[Metrics]]  # by server, a member a round


@dataclass(frozen=True)
class Ratio:
    """Ours to the peer's; `least` is the target, None: there is none."""

    name: str
    figure: str
    title: str
    least: float | None


RATIOS = (
    Ratio("idle_poll", "idle_poll_per_s", "idle polls /s, {devices:,} devices", 20.0),
    Ratio("idle_poll_fleet", "fleet_poll_per_s", "idle polls /s, {fleet:,} devices", 20.0),
    Ratio("report", "report_per_s", "durable reports /s", 15.0),
    Ratio("whole_update", "whole_update_per_s", "whole updates /s", 15.0),
    Ratio("download", "download_best_mb_per_s", "download, best MB/s", 0.8),
    Ratio("list", "list_per_s", "pages of {tasks:,} tasks /s", None),
)
LIST_P99_MS = 5.0
DOWNLOAD_NGINX = 0.9  # of nginx alone, whichever of 1 and 8 connections is the worse
STARTUP_S = 1.5
RSS_MIB = 150.0

# What, ours, the peer's, ratio, target, met (None: no target, or not measured).
Row = tuple[str, str, str, str, str, bool | None]


# --- what comes of it -------------------------------------------------------------------------------------------
def medians(rounds: list[Metrics]) -> Metrics:
    return {key: round(statistics.median(one[key] for one in rounds), 4) for key in (rounds[0] if rounds else {})}


def by_round(sides: Sides, figure: str) -> list[float]:
    """Ours to the peer's, a round each; empty where one of them was not measured."""
    pairs = zip(sides[OursServer.name], sides[GoosebitServer.name], strict=False)
    return [round(a[figure] / b[figure], 2) for a, b in pairs if figure in a and figure in b]


def verdicts(report: dict[str, Any]) -> list[Row]:
    ours, peer, ratios = report["ours"], report["peer"], report["ratios"]

    def show(side: Metrics, figure: str, digits: int = 1) -> str:
        return f"{side[figure]:,.{digits}f}" if figure in side else "-"

    rows: list[Row] = []
    for one in RATIOS:
        found = ratios.get(one.name)
        met = None if found is None or one.least is None else found >= one.least
        target = "" if one.least is None else f"ratio >= {one.least:g}"
        title = one.title.format(**report["size"])
        share = "-" if found is None else f"{found:.2f}"
        rows.append((title, show(ours, one.figure), show(peer, one.figure), share, target, met))
    if "download_nginx" in ratios:
        found = ratios["download_nginx"]
        target = f"of nginx >= {DOWNLOAD_NGINX:g}"
        rows.append(("download behind nginx", "", "", f"{found:.2f}", target, found >= DOWNLOAD_NGINX))
    for engine, p99 in report["list_p99_ms"].items():
        title = f"page inside the server, {engine}, p99 ms"
        rows.append((title, f"{p99:.2f}", "-", "", f"ours < {LIST_P99_MS:g} ms", p99 < LIST_P99_MS))
    for key, title, limit, unit in (
        ("startup_s", "start to first answer, s", STARTUP_S, "s"),
        ("fleet_rss_mib", "RSS with {fleet:,} devices, MiB", RSS_MIB, "MiB"),
    ):
        met = ours[key] < limit if key in ours else None
        title = title.format(**report["size"])
        rows.append((title, show(ours, key, 2), show(peer, key, 2), "", f"ours < {limit:g} {unit}", met))
    for key, title in (
        ("idle_poll_p99_ms", "idle poll p99, ms"),
        ("idle_poll_cpu_ms", "server CPU per poll, ms"),
        ("fleet_poll_cpu_ms", "server CPU per poll of the fleet, ms"),
        ("report_cpu_ms", "server CPU per report, ms"),
        ("list_cpu_ms", "server CPU per page, ms"),
        ("list_http_p99_ms", "page over HTTP p99, ms"),
        ("download_1_mb_per_s", "download, 1 connection"),
        ("download_8_mb_per_s", "download, 8 connections"),
        ("download_rss_growth_mib", "RSS growth by downloads, MiB"),
        ("rss_mib_after", "RSS after the updates, MiB"),
        ("idle_poll_others_pct", "CPU others took, %"),
    ):
        # CPU time is what noise changes least: fewer is better, so this ratio is the other way round.
        both = "_cpu_" in key and key in ours and key in peer and ours[key]
        share = f"{peer[key] / ours[key]:.2f}" if both else ""
        rows.append((title, show(ours, key, 2), show(peer, key, 2), share, "", None))
    return rows


def table(rows: Iterable[Row]) -> str:
    lines = [f"{'':40}{'OpenIODM':>12}{'goosebit':>12}{'ratio':>9}  target"]
    for title, ours, peer, ratio, target, met in rows:
        mark = "" if met is None else " met" if met else " MISSED"
        lines.append(f"{title:40}{ours:>12}{peer:>12}{ratio:>9}  {target}{mark}".rstrip())
    return "\n".join(lines)


# --- a run ------------------------------------------------------------------------------------------------------
def measure(
    servers: list[Server], options: argparse.Namespace, commands: list[str]
) -> tuple[Sides, dict[str, Any], dict[str, Any]]:
    """Figures of each round, those that there is one of per server, and those that are ours alone."""
    sides: Sides = {OursServer.name: [{} for _ in range(options.rounds)]}
    sides[GoosebitServer.name] = [{} for _ in range(options.rounds)]

    def add(rounds: Iterable[dict[str, Metrics]]) -> None:
        for number, one in enumerate(rounds):
            for name, metrics in one.items():
                sides[name][number] |= metrics

    if "rounds" in options.parts:
        add([one_round(servers, options, number) for number in range(1, options.rounds + 1)])
    once: dict[str, Any] = {OursServer.name: {}, GoosebitServer.name: {}}
    for server in servers:
        once[server.name]["version"] = server.version()
    if "startup" in options.parts:
        for server in servers:
            if "rounds" not in options.parts:
                server.reset()
            once[server.name] |= startup(server, options)
    if "fleet" in options.parts:
        add(fleet(servers, options))
    if "lists" in options.parts:
        add(task_pages(servers, options))
    inside: dict[str, Any] = {"list_p99_ms": {}}
    if "inside" in options.parts and options.only != GoosebitServer.name:
        inside = list_inside(options)
    nginx: dict[str, Any] = {}
    if "nginx" in options.parts and options.only != GoosebitServer.name:
        nginx = behind_nginx(options, commands)
    for server in servers:
        server.reset()  # its packages are large
    return sides, once, inside | nginx


def behind_nginx(options: argparse.Namespace, commands: list[str]) -> dict[str, Any]:
    """The server behind nginx to nginx alone (`files.py`); why not, where there is no nginx."""
    if shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin") is None:
        say("no nginx on this machine (apt-get install nginx-light): download_nginx is left out")
        return {"left_out": {"download_nginx": "nginx is not installed"}}
    say("downloads behind nginx")
    return {"nginx": nginx_ratio(commands, megabytes=options.megabytes, rounds=2 if options.quick else 8)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=[OursServer.name, GoosebitServer.name])
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--out", type=Path, help="of a whole run results/latest.json, of a part .work/part.json")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if wrong := set(options.parts) - set(PARTS):
        parser.error(f"--parts: no such part: {', '.join(sorted(wrong))}")
    options.whole = options.only is None and set(options.parts) == set(PARTS)
    options.out = options.out or (RESULTS if options.whole else WORK / "part.json")
    quick = options.quick
    options.rounds, options.seconds = (1, 3) if quick else (3, 10)
    options.devices, options.fleet, options.tasks = (200, 2000, 10_000) if quick else (1000, 10_000, 100_000)
    options.megabytes, options.downloads = (20, 10) if quick else (100, 10)
    return options


def main() -> int:
    options = arguments()
    commands: list[str] = []
    everyone: list[Server] = [OursServer(18054, commands), GoosebitServer(18053, commands)]
    servers = [server for server in everyone if options.only in (None, server.name)]
    began, load = time.monotonic(), machine()
    for server in servers:
        server.setup()
    sides, once, alone = measure(servers, options, commands)
    rounds = {one.name: by_round(sides, one.figure) for one in RATIOS}
    if alone.get("nginx"):
        rounds["download_nginx"] = [alone["nginx"]["download_nginx"]]
    report = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "quick": options.quick,
        "took_s": round(time.monotonic() - began),
        "size": {"devices": options.devices, "fleet": options.fleet, "tasks": options.tasks, "mb": options.megabytes},
        "ratios": {name: round(statistics.median(some), 2) for name, some in rounds.items() if some},
        "spread": {name: [min(some), max(some)] for name, some in rounds.items() if some},
        **alone,
        "targets": {one.name: one.least for one in RATIOS if one.least}
        | {"download_nginx": DOWNLOAD_NGINX, "list_p99_ms": LIST_P99_MS},
        "ours": medians(sides[OursServer.name]) | once[OursServer.name],
        "peer": medians(sides[GoosebitServer.name]) | once[GoosebitServer.name],
        "rounds": sides,
        "machine": load,
        "commands": commands,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    rows = verdicts(report)
    print(table(rows))
    if options.out == RESULTS and options.whole:
        print("\n" + history.added(report))
        subprocess.run([sys.executable, str(HERE / "pages.py")], check=True)  # docs/ shows this run
    return int(options.check and any(met is False for *_, met in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench: {error}")
