"""Live progress on stderr: bars on a terminal, a line now and then without one."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

LINE_EVERY_S = 1.0

COUNTER_STYLES = {
    "wait": "bright_black",
    "processing": "cyan",
    "success": "green",
    "fail": "red",
    "timeout": "yellow",
    "stop": "magenta",
}


@contextmanager
def byte_bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar over bytes; what it gives is called with each piece's size."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=total)
        yield lambda octets: bar.advance(task, octets)


class Bars:
    """A bar for each of several numbers, all out of one total."""

    def __init__(self, names: Sequence[str], *, styles: Mapping[str, str] | None = None, hidden: bool = False) -> None:
        self._console = Console(stderr=True)
        self._hidden = hidden
        width = max(map(len, names))
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            console=self._console,
            disable=hidden or not self._console.is_terminal,
        )
        self._tasks = {
            name: self._progress.add_task(f"[{(styles or {}).get(name, 'default')}]{name.ljust(width)}", total=None)
            for name in names
        }
        self._last_line = ""
        self._last_at = 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, values: Mapping[str, int], total: int, *, last: bool = False) -> None:
        """The present numbers; `last` ones are told without a terminal even if a line was written just now."""
        for name, task in self._tasks.items():
            self._progress.update(task, completed=values[name], total=max(total, 1))
        if self._hidden or self._console.is_terminal:
            return
        line = " ".join(f"{name} {values[name]}" for name in self._tasks) + f" of {total}"
        now = time.monotonic()
        if line != self._last_line and (last or now - self._last_at >= LINE_EVERY_S):
            self._last_line, self._last_at = line, now
            print(line, file=sys.stderr, flush=True)


def counter_bars(*, hidden: bool = False) -> Bars:
    """The counters of a task; `hidden` shows nothing."""
    return Bars(tuple(COUNTER_STYLES), styles=COUNTER_STYLES, hidden=hidden)
