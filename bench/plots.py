#!/usr/bin/env python3
"""Draws how costs grow, from `results/*.json` into `docs/plots/*.png`: `make plots` installs matplotlib and runs it.

    python bench/plots.py            draw them
    python bench/plots.py --check    exit with 1 when a picture shows other figures than the results have

Each picture carries a digest of what it shows, so the check needs no matplotlib.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from server import HERE

RESULTS = HERE / "results"
FOLDER = HERE.parent / "docs" / "plots"
MOST_BYTES = 60_000
MILLION = 1_000_000
ENGINES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    """What one picture shows: a line a name, its points in the order of x."""

    name: str
    title: str
    x: str
    y: str
    lines: dict[str, Points]
    log_x: bool = True
    log_y: bool = False

    @property
    def file(self) -> Path:
        return FOLDER / f"{self.name}.png"

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


def results(name: str) -> Any:
    """None when that was never measured."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def plots() -> Iterator[Plot]:
    if growth := results("growth"):
        yield devices(growth)
        yield groups(growth, results("crowd"))
        yield tasks(growth, results("list"))
        yield workers(growth)


def devices(growth: Any) -> Plot:
    lines: dict[str, Points] = {}
    for what, title in (("poll", "idle poll"), ("report", "report")):
        for key, engine in ENGINES.items():
            lines[f"{title}, {engine}"] = [
                (one["devices"], round(one[what]["cpu_ms"] + one[what]["database_cpu_ms"], 4))
                for one in growth["devices"][key]
            ]
    return Plot("devices", "CPU time for a request, database included", "devices", "milliseconds", lines)


def workers(growth: Any) -> Plot:
    lines: dict[str, Points] = {
        f"{title}, {where}": [(one["workers"], one[what][key]) for one in growth["workers"]]
        for what, title in (("poll", "idle poll"), ("report", "report"))
        for key, where in (("cpu_ms", "servers"), ("database_cpu_ms", "PostgreSQL"))
    }
    title = "CPU time for a request, by server processes on one PostgreSQL"
    return Plot("workers", title, "server processes", "milliseconds", lines, log_x=False)


def groups(growth: Any, crowd: Any) -> Plot:
    lines: dict[str, Points] = {}
    for key, engine in ENGINES.items():
        fleets = growth["devices"][key]
        answered = [(one["devices"], one["create"]["answer_ms"] / 1000) for one in fleets]
        there = [(one["devices"], one["create"]["there_s"]) for one in fleets]
        if crowd and crowd["devices"] == MILLION and key in crowd["engines"]:
            answered.append((MILLION, crowd["engines"][key]["create_ms"] / 1000))
            there.append((MILLION, crowd["engines"][key]["expanded_s"]))
        lines[f"answered, {engine}"] = answered
        lines[f"all sub-tasks there, {engine}"] = there
    return Plot("groups", "A task for a group", "devices in the group", "seconds", lines, log_y=True)


def tasks(growth: Any, million: Any) -> Plot:
    lines: dict[str, Points] = {}
    for key, engine in ENGINES.items():
        index = [(one["tasks"], one["request_ms"]["p99"]) for one in growth["tasks"][key]]
        plain = [(one["tasks"], one["plain_sql_ms"]["p99"]) for one in growth["tasks"][key]]
        if million and million["tasks"] == MILLION:
            index.append((MILLION, million["engines"][key]["request_ms"]["undisturbed"]["p99"]))
            plain.append((MILLION, million["engines"][key]["plain_sql_ms"]["all"]["p99"]))
        lines[f"whole request, {engine}"] = index
        lines[f"plain SQL alone, {engine}"] = plain
    return Plot("tasks", "A page of the task list, p99", "tasks", "milliseconds", lines, log_y=True)


def draw(plot: Plot) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    figure, axes = pyplot.subplots(figsize=(7, 3.6), dpi=90, layout="constrained")
    for number, (name, points) in enumerate(plot.lines.items()):
        style = "-" if number % 2 == 0 else "--"
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, color=f"C{number // 2}", label=name)
    axes.set(title=plot.title, xlabel=plot.x, ylabel=plot.y)
    if plot.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    else:
        axes.set_xticks(sorted({x for points in plot.lines.values() for x, _ in points}))
    if plot.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    else:
        axes.set_ylim(0, 1.4 * max(y for points in plot.lines.values() for _, y in points))  # room for the legend
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", ncols=1 if plot.log_y else 2)
    plot.file.parent.mkdir(exist_ok=True)
    figure.savefig(plot.file, metadata={"Software": "bench/plots.py", "Source": plot.digest})
    pyplot.close(figure)
    if (size := plot.file.stat().st_size) > MOST_BYTES:
        raise SystemExit(f"{plot.file.name} has {size} bytes, more than {MOST_BYTES}")


def shows(file: Path) -> str:
    """The digest that a picture carries, empty for none (PNG, 11.3.3.2: tEXt is a keyword, NUL, and Latin-1)."""
    data = file.read_bytes() if file.exists() else b""
    at = data.find(b"tEXtSource\0")
    return data[at + 11 : at + 11 + 32].decode("latin-1") if at >= 0 else ""


def stale() -> list[Path]:
    return [plot.file for plot in plots() if shows(plot.file) != plot.digest]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.check:
        for file in stale():
            print(f"{file.name} shows other figures than bench/results has: make plots")
        return int(bool(stale()))
    for plot in plots():
        draw(plot)
        print(f"{plot.file.name}: {plot.file.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
