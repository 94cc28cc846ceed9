"""What commands print: tables for people, JSON for programs. Only these go to stdout."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

NOTHING = "-"
WIDEST = 100_000  # characters: no table is

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], Any]]


def field(*path: str) -> Callable[[Row], Any]:
    """Reads `row[a][b]...`; None where a part is missing or null."""

    def read(row: Row) -> Any:
        value: Any = row
        for name in path:
            if value is None:
                return None
            value = value.get(name)
        return value

    return read


def when(*path: str) -> Callable[[Row], Any]:
    """Reads a moment as `field` does, and shows it to the second: RFC 3339, UTC."""
    read = field(*path)

    def show(row: Row) -> Any:
        value = read(row)
        if not isinstance(value, str):
            return value
        return f"{value[:19]}Z".replace("T", " ")

    return show


def cell(value: Any) -> str:
    """A value as a person reads it: nothing is a dash, yes and no are words, a list is joined."""
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={v}" for k, v in value.items()) or NOTHING
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or NOTHING
    return str(value)


def size(octets: int | None) -> str:
    """Bytes with a unit."""
    if octets is None:
        return NOTHING
    value = float(octets)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def print_table(rows: Iterable[Row], columns: Sequence[Column], *, caption: str = "") -> None:
    """A table. One that is too wide for the terminal is shown as a block for each row; a file has no width."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [[(title, read(row)) for title, read in columns] for row in rows]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title, _ in columns:
        table.add_column(title, no_wrap=True)
    for cells in shown:
        table.add_row(*(Text(cell(value)) for _, value in cells))  # never markup: names may hold brackets
    console = Console(highlight=False)
    width = max(1, console.measure(table, options=console.options.update(width=WIDEST)).maximum)
    if shown and console.is_terminal and width > console.width:
        for cells in shown:
            print_fields(cells)
            print()
    else:
        Console(highlight=False, width=width).print(table)
    if caption:
        print(caption)


def print_fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """One thing: a name and a value a line. Members without a value are shown too."""
    shown = [(name, cell(value)) for name, value in pairs]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        print(f"{name.ljust(width)}  {value}")


def print_json(value: Any) -> None:
    """Exactly one JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_line(value: Any) -> None:
    """One line of NDJSON."""
    print(json.dumps(value, ensure_ascii=False, separators=(",", ":")), flush=True)


def note(text: str) -> None:
    """A remark, to stderr."""
    print(text, file=sys.stderr)
