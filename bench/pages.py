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

from compare import RATIOS
from server import HERE

RESULTS = HERE / "results"
PAGES = tuple(HERE.parent / "docs" / name for name in ("performance.md",))
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


BLOCKS: dict[str, Callable[[], str]] = {"comparison": comparison}


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
