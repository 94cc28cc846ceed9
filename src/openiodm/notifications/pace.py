"""How fast deliveries may begin: fast while the server has time, slowly while its devices need it.

Deliveries share the event loop with devices. A probe measures how late the loop comes back from a short sleep; while it
is late the rate falls, down to a floor that is felt by nobody, and it rises again while it is not.
"""

import asyncio

TICK_S = 0.02
LATE_S = 0.004  # the loop comes back later than this: somebody waits
FLOOR = 50.0  # deliveries a second, however busy the server is
MOST = 5000.0
FALLS, RISES = 0.7, 1.1


class Rate:
    """The rate as a pure value."""

    def __init__(self) -> None:
        self.a_second = 1000.0
        self._late = 0.0

    def saw(self, late: float) -> None:
        """The loop came back so many seconds late."""
        self._late += (late - self._late) / 4
        busy = self._late > LATE_S
        self.a_second = min(MOST, max(FLOOR, self.a_second * (FALLS if busy else RISES)))


class Pace:
    """Lets deliveries begin one after another, at the rate of the moment."""

    def __init__(self) -> None:
        self._rate = Rate()
        self._next = 0.0
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
            await asyncio.sleep(self._next - now)

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(TICK_S)
            self._rate.saw(loop.time() - began - TICK_S)
