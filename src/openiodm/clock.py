"""The only source of time, chance and ids. Everything else takes them as arguments.

Inside the server a moment is an `Instant`: whole milliseconds since 1970-01-01T00:00:00Z, as both engines store it.
"""

import secrets
import time
from typing import NewType, Protocol

Instant = NewType("Instant", int)  # milliseconds since the epoch, UTC
Millis = NewType("Millis", int)  # a duration

SECOND = Millis(1_000)
MINUTE = Millis(60_000)
HOUR = Millis(3_600_000)
DAY = Millis(86_400_000)


class Clock(Protocol):
    """Tells the time; tests pass one that is moved by hand."""

    def now(self) -> Instant:
        """The present moment."""
        ...


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> Instant:
        """Milliseconds since the epoch."""
        return Instant(time.time_ns() // 1_000_000)


class SteadyClock:
    """Milliseconds since some moment, that never step back or ahead: for timers that do not outlive the process."""

    def now(self) -> Instant:
        """Milliseconds since that moment."""
        return Instant(time.monotonic_ns() // 1_000_000)


def random_bytes(count: int) -> bytes:
    """That many random bytes, fit for secrets."""
    return secrets.token_bytes(count)


def random_id() -> str:
    """An opaque public id: 32 hex digits, 128 random bits."""
    return secrets.token_hex(16)


def random_secret() -> str:
    """A secret for people and machines to carry: 256 random bits, URL-safe, 43 characters."""
    return secrets.token_urlsafe(32)
