"""Flow control: a bucket of N calls per application, refilled evenly over 60 s. In integers, so N means N.

`MemoryFlow` is for one server. Several servers on one database share a row instead: `storage.access.SharedFlow`.
"""

from openiodm.access.model import ApplicationKey
from openiodm.clock import Clock, Instant
from openiodm.errors import Reason, Refusal

PERIOD_MS = 60_000
"""In which an empty bucket fills, in milliseconds. What was counted at a moment that is further ahead than that was
counted by a clock that was wrong: then nothing is known, and nobody is refused for it."""


def throttled(per_minute: int) -> Refusal:
    """The refusal of every flow control."""
    return Refusal(Reason.THROTTLED, f"more than {per_minute} calls a minute")


class MemoryFlow:
    """Buckets in memory. `per_minute` 0 turns it off.

    A bucket is kept as the moment at which it would be full again, in 1/N ms, so that a call adds `PERIOD_MS` to it.
    """

    def __init__(self, clock: Clock, per_minute: int) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._full_at: dict[ApplicationKey, int] = {}

    async def admit(self, application: ApplicationKey) -> None:
        """See `FlowControl`."""
        n = self._per_minute
        if n == 0:
            return
        now, whole = self._clock.now() * n, n * PERIOD_MS
        full_at = self._full_at.get(application, now)
        if not now < full_at <= now + whole + whole:  # a whole bucket is owed at most, the rest is the clock's
            full_at = now
        if full_at + PERIOD_MS > now + whole:
            raise throttled(n)
        self._full_at[application] = full_at + PERIOD_MS


class Refused:
    """Remembers until when an application is refused, so that a flood of refused calls costs no statement."""

    def __init__(self) -> None:
        self._until: dict[ApplicationKey, Instant] = {}

    def holds(self, application: ApplicationKey, now: Instant) -> bool:
        """Is it refused still?"""
        until = self._until.get(application)
        if until is None:
            return False
        if now < until <= now + PERIOD_MS:
            return True
        del self._until[application]
        return False

    def remember(self, application: ApplicationKey, now: Instant, until: Instant) -> None:
        """Refused until then, or for a period if that is shorter."""
        self._until[application] = min(until, Instant(now + PERIOD_MS))
