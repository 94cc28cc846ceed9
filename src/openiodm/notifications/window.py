"""How much at once, and when again: decisions of delivery as pure values, one per receiver. No clock, no socket."""

from dataclasses import dataclass

from openiodm.clock import SECOND, Instant, Millis

BACK_OFF: tuple[Millis, ...] = tuple(Millis(s * SECOND) for s in (5, 15, 30, 60, 120))  # contract section 4.6
PROBE_AFTER = Millis(5 * SECOND)
FAILURES_TO_PAUSE = 3  # in a row


def next_attempt(attempts: int, first_tried_at: Instant, now: Instant, life: Millis) -> Instant | None:
    """When a notice that has failed `attempts` times is tried again; None when that would be after its life."""
    due = Instant(now + BACK_OFF[min(attempts, len(BACK_OFF)) - 1])
    return due if due <= first_tried_at + life else None


@dataclass(slots=True)
class Window:
    """How many deliveries a receiver gets at once: one at first, one more with every success, one after a failure.

    After some failures in a row it is left alone, and probed with one delivery every few seconds: it may be dead, and
    then neither it nor we gain by more. `failing_since` is when the last success was followed by a failure.
    """

    most: int
    failing_since: Instant | None = None
    size: int = 1
    failures: int = 0
    paused_until: Instant | None = None

    def succeeded(self) -> None:
        """One was delivered."""
        self.size = min(self.most, self.size + 1)
        self.failures = 0
        self.failing_since = self.paused_until = None

    def failed(self, now: Instant) -> None:
        """One was not."""
        self.size = 1
        self.failures += 1
        if self.failing_since is None:
            self.failing_since = now
        if self.failures >= FAILURES_TO_PAUSE:
            self.paused_until = Instant(now + PROBE_AFTER)

    def paused(self, now: Instant) -> bool:
        """Is it left alone for now?"""
        return self.paused_until is not None and now < self.paused_until
