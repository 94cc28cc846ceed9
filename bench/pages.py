#!/usr/bin/env python3
"""The tables of docs/ that are figures of `bench/results`, so that no figure is copied by hand.

    python bench/pages.py            write them
    python bench/pages.py --check    exit with 1 when a page does not have what the results have

A table stands between `<!-- bench/pages.py: NAME -->` and `<!-- end -->`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import scale
from compare import DOWNLOAD_NGINX, LIST_P99_MS, RATIOS
from server import HERE

RESULTS = HERE / "results"
PAGES = tuple(HERE.parent / "docs" / name for name in ("performance.md", "scale.md"))
BLOCK = re.compile(r"(<!-- bench/pages\.py: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines) + "\n"


def number(value: float) -> str:
    """Three digits that count, or all of an integer part."""
    for least, digits in ((100.0, 0), (10.0, 1), (1.0, 2)):
        if abs(value) >= least:
            return f"{value:,.{digits}f}"
    return f"{value:.3g}"


def comparison() -> str:
    """What was measured on both sides, with the targets; what was not measured is left out."""
    report = results("latest")
    ours, peer = report["ours"], report["peer"]
    rows = []
    for one in RATIOS:
        if one.name in report["ratios"]:
            title = one.title.format(**report["size"])
            target = "" if one.least is None else f"{one.least:g}"
            ratio = number(report["ratios"][one.name])
            rows.append((title, number(ours[one.figure]), number(peer[one.figure]), ratio, target))
    if "download_nginx" in report["ratios"]:
        ratio = number(report["ratios"]["download_nginx"])
        rows.append(("download behind nginx, to nginx alone", "", "", ratio, f"{DOWNLOAD_NGINX:g}"))
    for engine, p99 in report.get("list_p99_ms", {}).items():
        title = "page of {tasks:,} tasks inside the server, p99, ms, ".format(**report["size"]) + engine
        rows.append((title, number(p99), "", "", f"< {LIST_P99_MS:g}"))
    for key, title in (
        ("idle_poll_cpu_ms", "server CPU for one idle poll, ms"),
        ("report_cpu_ms", "server CPU for one report, ms"),
        ("list_cpu_ms", "server CPU for one page, ms"),
        ("download_rss_growth_mib", "growth of memory by the downloads, MiB"),
        ("fleet_rss_mib", "memory with {fleet:,} devices, MiB"),
        ("startup_s", "start to first answer, s"),
    ):
        if key in ours and key in peer:
            ratio = number(peer[key] / ours[key]) if "_cpu_" in key else ""
            rows.append((title.format(**report["size"]), number(ours[key]), number(peer[key]), ratio, ""))
    kind = "one round of a quick run" if report["quick"] else f"medians of {len(report['rounds']['openiodm'])} rounds"
    others = report["ours"].get("idle_poll_others_pct", 0), report["peer"].get("idle_poll_others_pct", 0)
    told = f"{report['at'][:10]}, {kind}; others took {others[0]:.0f} % of the machine beside ours, {others[1]:.0f} % "
    return markdown(("", "OpenIODM", "goosebit", "ratio", "target"), rows) + f"\n{told}beside the peer.\n"


def scale_costs() -> str:
    costs = scale.measured()
    fleet = f"`growth.json`, PostgreSQL, {costs.fleet:,} devices"
    rows = [
        ("idle poll, CPU of the server / of PostgreSQL, ms", _pair(costs.poll_ms, costs.poll_db_ms), fleet),
        ("idle poll, WAL, bytes", number(costs.poll_wal), fleet),
        ("report that changes no state, CPU of the same, ms", _pair(costs.report_ms, costs.report_db_ms), fleet),
        ("whole update, CPU of the same, ms", _pair(costs.update_ms, costs.update_db_ms), fleet),
        ("whole update, WAL, bytes; rows of history", _pair(costs.update_wal, costs.history_rows), fleet),
        *(
            (f"row of `{name}` with its indexes, bytes", number(size), fleet)
            for name, size in sorted(costs.rows.items(), key=lambda item: list(scale.rows_a_year(costs)).index(item[0]))
        ),
        ("page of the task list, p50, ms", number(costs.page_ms), "`list.json`, a million tasks"),
        ("its bitmaps, MiB; building them, s", _pair(costs.list_mib, costs.list_build_s), "`list.json`, the same"),
        (
            "bitmaps of a million sub-tasks, MiB; building them, s",
            _pair(costs.subtask_mib, costs.subtask_build_s),
            "`subtasks.json`",
        ),
        ("notices delivered a second", number(costs.notices_s), "`notices.json`, SQLite"),
        ("download, MB/s", number(costs.download_mb_s), "`latest.json`, SQLite, loopback"),
    ]
    return markdown(("", "", "from"), rows)


def scale_polls() -> str:
    head = ("interval", "polls a second", "cores of servers", "cores of PostgreSQL", "WAL, MB/s")
    costs = scale.measured()
    rows = (scale.polls(costs, interval) for interval in scale.INTERVALS_S)
    return markdown(
        head,
        (
            (_span(p.interval_s), number(p.per_s), number(p.cores), number(p.database_cores), number(p.wal_mb_s))
            for p in rows
        ),
    )


def scale_rollout() -> str:
    head = (
        "days",
        "updates /s",
        "reports /s",
        "cores of servers",
        "of PostgreSQL",
        "WAL, MB/s",
        "notices /s",
        "Gbit/s",
    )
    costs = scale.measured()
    return markdown(
        head,
        (
            (
                str(one.days),
                *map(number, (one.updates_s, one.reports_s, one.cores, one.database_cores)),
                *map(number, (one.wal_mb_s, one.notices_s, one.gbit_s)),
            )
            for one in (scale.rollout(costs, days) for days in scale.ROLLOUT_DAYS)
        ),
    )


def scale_rows() -> str:
    found = scale.rows_a_year(scale.measured())
    rows = [(f"`{name}`", number(millions), number(gigabytes)) for name, (millions, gigabytes) in found.items()]
    return markdown(("table", "million rows", "GB"), rows)


def scale_limits() -> str:
    rows = [
        (
            one.what,
            f"{number(one.needed)} {one.unit}",
            f"{number(one.gives)} {one.unit}",
            number(one.needed / one.gives),
        )
        for one in scale.limits(scale.measured())
    ]
    return markdown(("", "needed", "one gives", "that many"), rows)


def _pair(one: float, other: float) -> str:
    return f"{number(one)} / {number(other)}"


def _span(seconds: int) -> str:
    return {60: "a minute", 600: "ten minutes", 3600: "an hour", 86_400: "a day"}[seconds]


BLOCKS: dict[str, Callable[[], str]] = {
    "comparison": comparison,
    "scale-costs": scale_costs,
    "scale-polls": scale_polls,
    "scale-rollout": scale_rollout,
    "scale-rows": scale_rows,
    "scale-limits": scale_limits,
}


def filled(page: str) -> str:
    """The page with its tables as the results have them."""
    return BLOCK.sub(lambda found: found[1] + BLOCKS[found[2]]() + found[4], page)


def stale() -> list[Path]:
    return [page for page in PAGES if filled(page.read_text()) != page.read_text()]


def write() -> None:
    for page in stale():
        page.write_text(filled(page.read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        for page in stale():
            print(f"{page.name} does not have what bench/results has: python bench/pages.py")
        return int(bool(stale()))
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
