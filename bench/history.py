#!/usr/bin/env python3
"""Ratios by commit: each whole run of the comparison beside the runs before it.

    python bench/history.py            every run, and how it differs from the median of the comparable ones before it
    python bench/history.py --check    the same; exit with 1 when the newest run is slower in something

`results/history.ndjson` has a line a run: commit ("+": with changes to src that were not committed), date, quick or
not, the ratios, the CPU that others took, and for runs from before this file `taken_over`. A quick run is compared with
quick ones. A run during which others took more than a quarter of the machine is shown and never compared with.

Slower means: below the median by more than the noise, which is 15 %, or three times the median distance of the runs
before from their median where that is more.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from server import HERE

FILE = HERE / "results" / "history.ndjson"
DISTURBED_PCT = 25.0
NOISE = 0.15
SPREADS = 3.0

Run = dict[str, Any]


def runs(file: Path = FILE) -> list[Run]:
    """Oldest first."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run_of(report: dict[str, Any]) -> Run:
    """The line of a run, from its `latest.json`."""
    others = [metrics["idle_poll_others_pct"] for side in report["rounds"].values() for metrics in side if metrics]
    return {
        "commit": report["commit"],
        "at": report["at"],
        "quick": report["quick"],
        "ratios": report["ratios"],
        "list_p99_ms": report.get("list_p99_ms", {}),
        "others_pct": round(statistics.median(others), 1),
    }


def disturbed(run: Run) -> bool:
    return bool(run["others_pct"] > DISTURBED_PCT)


def changes(run: Run, before: list[Run]) -> dict[str, tuple[float, bool]]:
    """By ratio: how far this run is from the median of the comparable ones before; is it slower by more than noise?"""
    found: dict[str, tuple[float, bool]] = {}
    for name, ratio in run["ratios"].items():
        known = [
            other["ratios"][name]
            for other in before
            if name in other["ratios"] and other["quick"] == run["quick"] and not disturbed(other)
        ]
        if known:
            middle = statistics.median(known)
            spread = statistics.median(abs(value - middle) for value in known) / middle
            change = ratio / middle - 1
            found[name] = (change, not disturbed(run) and change < -max(NOISE, SPREADS * spread))
    return found


def slower(run: Run, before: list[Run]) -> list[str]:
    return [name for name, (_, is_slower) in changes(run, before).items() if is_slower]


def shown(all_runs: list[Run]) -> str:
    names = list(dict.fromkeys(name for run in all_runs for name in run["ratios"]))
    lines = [f"{'commit':12}{'date':18}{'run':6}{'others':>7}" + "".join(f"{name:>20}" for name in names)]
    for number, run in enumerate(all_runs):
        compared = changes(run, all_runs[:number])
        cells = []
        for name in names:
            ratio = run["ratios"].get(name)
            change, is_slower = compared.get(name, (None, False))
            told = "" if change is None else f" {change:+.0%}{' SLOWER' if is_slower else ''}"
            cells.append("" if ratio is None else f"{ratio:.2f}{told}")
        kind = "quick" if run["quick"] else "full"
        mark = "!" if disturbed(run) else ""
        when = run["at"][:16].replace("T", " ")
        line = f"{run['commit'] or '-':12}{when:18}{kind:6}{run['others_pct']:5.0f}%{mark:1}"
        lines.append((line + "".join(f"{cell:>20}" for cell in cells)).rstrip())
    lines.append("A change is to the median of the comparable runs before. !: disturbed, compared with by nobody.")
    return "\n".join(lines)


def added(report: dict[str, Any], file: Path = FILE) -> str:
    """Appends the run; what became slower, in words."""
    before, run = runs(file), run_of(report)
    with file.open("a") as out:
        out.write(json.dumps(run) + "\n")
    if disturbed(run):
        return f"history: others took {run['others_pct']:.0f} % of the machine: compared with nothing"
    worse = slower(run, before)
    return f"history: slower than the runs before: {', '.join(worse)}" if worse else "history: nothing is slower"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 when the newest run is slower")
    options = parser.parse_args()
    found = runs()
    if not found:
        print("no run yet: python bench/compare.py")
        return 0
    print(shown(found))
    return int(options.check and bool(slower(found[-1], found[:-1])))


if __name__ == "__main__":
    sys.exit(main())
