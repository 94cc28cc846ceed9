"""How fast deliveries may begin: fast while the server has time, slowly while its devices need it.

Deliveries share the event loop with devices. A probe measures how much of the time the loop's thread computes or waits
for a processor, and how late the loop comes back from a short sleep. While there is little left the rate falls, down to
a floor that is felt by nobody; while there is some it rises again. Deliveries alone leave the rest to devices.
"""

import asyncio
import time
from pathlib import Path

TICK_S = 0.05
BUSY = 0.6  # of the time: what is left belongs to devices
LATE_S = 0.006  # the loop comes back later than this: somebody waits
FLOOR = 50.0  # deliveries a second, however busy the server is
MOST = 5000.0
FALLS, RISES = 0.5, 1.1


class Rate:
    """The rate as a pure value."""

    def __init__(self) -> None:
        self.a_second = 200.0
        self._late = 0.0
        self._busy = 0.0

    def saw(self, late: float, busy: float, *, used: bool) -> None:
        """The loop came back so many seconds late, and computed for that part of the time.

        `used`: somebody had to wait for a turn. A rate that nobody uses does not rise, or it would be high when a load
        begins.
        """
        self._late += (late - self._late) / 4
        self._busy += (busy - self._busy) / 2
        falls = self._busy > BUSY or self._late > LATE_S
        if falls or used:
            self.a_second = min(MOST, max(FLOOR, self.a_second * (FALLS if falls else RISES)))


class Pace:
    """Lets deliveries begin one after another, at the rate of the moment."""

    def __init__(self) -> None:
        self._rate = Rate()
        self._next = 0.0
        self._used = False
        self._probe: asyncio.Task[None] | None = None

    def needed(self, needed: bool) -> None:
        """The probe runs only while there is something to deliver."""
        if needed and self._probe is None:
            self._probe = asyncio.create_task(self._measure(), name="delivery-pace")
        elif not needed:
            self.close()

    def close(self) -> None:
        """Ends the probe."""
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    async def turn(self) -> None:
        """Waits for one's turn."""
        now = asyncio.get_running_loop().time()
        self._next = max(now, self._next) + 1.0 / self._rate.a_second
        if self._next - now > 0.002:
            self._used = True
            await asyncio.sleep(self._next - now)

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began, wanted = loop.time(), _wanted()
            await asyncio.sleep(TICK_S)
            passed = loop.time() - began
            self._rate.saw(passed - TICK_S, (_wanted() - wanted) / passed, used=self._used)
            self._used = False


_SCHEDULED = Path("/proc/thread-self/schedstat")  # Linux: nanoseconds on a processor, and waiting for one


def _wanted() -> float:
    """Seconds for which this thread computed, or would have."""
    try:
        computed, waited, _ = _SCHEDULED.read_text().split()
    except (OSError, ValueError):
        return time.thread_time()
    return (int(computed) + int(waited)) / 1e9
