"""What commands print: tables for people, JSON for programs. Only these go to stdout."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

NOTHING = "-"

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
    """A table; without a terminal it is as wide as it needs to be, so that nothing is cut off in a file."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, caption=caption or None, caption_justify="left", show_edge=False)
    for title, _ in columns:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(_plain(cell(read(row))) for _, read in columns))
    _console(columns, table).print(table)


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


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # never markup: names may hold brackets


def _console(columns: Sequence[Column], table: Any) -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        return console
    wide = Console(highlight=False, width=100_000)
    return Console(highlight=False, width=max(wide.measure(table).maximum, 1))
