"""What is due later, in order: a heap that is looked at every `TICK`. Pure: the time is an argument."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any

from openiodm.clock import Instant


class Timer:
    """A call that is due at a time; `cancel` lets go of it and of all it refers to."""

    __slots__ = ("_owner", "call")

    def __init__(self, owner: "Timers", call: Callable[[], None]) -> None:
        self._owner = owner
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """It will not be called; harmless when it was, or is cancelled already."""
        if self.call is not None:
            self.call = None
            self._owner.cancelled()


class Timers:
    """All timers of one endpoint."""

    def __init__(self) -> None:
        self._heap: list[tuple[Instant, int, Timer]] = []
        self._order = count()
        self._dead = 0

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, due: Instant, call: Callable[..., None], *args: Any) -> Timer:
        """Calls `call(*args)` at the first `run` from `due` on."""
        timer = Timer(self, lambda: call(*args))
        heapq.heappush(self._heap, (due, next(self._order), timer))
        return timer

    def cancelled(self) -> None:
        """Counts; when most of the heap is cancelled, it is made anew without those."""
        self._dead += 1
        if self._dead > 1_000 and self._dead > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def run(self, now: Instant) -> None:
        """Calls what is due, in order."""
        while self._heap and self._heap[0][0] <= now:
            call = (timer := heapq.heappop(self._heap)[2]).call
            timer.call = None
            if call is None:
                self._dead = max(0, self._dead - 1)
            else:
                call()
