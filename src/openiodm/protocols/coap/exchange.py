"""The message layer of one association (RFC 7252 section 4): what was sent and is not acknowledged, what came lately.

Pure: time is an argument, nothing is sent from here.
"""

from collections import OrderedDict

from openiodm.clock import Instant, Millis
from openiodm.protocols.coap.limits import Timing
from openiodm.protocols.coap.timers import Timer

MID_MASK = 0xFFFF


class Transmission:
    """A confirmable message of ours that waits for its acknowledgement (section 4.2)."""

    __slots__ = ("datagram", "due", "mid", "owner", "repeats", "timeout", "timer")

    def __init__(self, mid: int, datagram: bytes, owner: object, now: Instant, timeout: Millis) -> None:
        self.mid = mid
        self.datagram = datagram
        self.owner = owner
        """Whoever is told of the end: a request, or None for a separate answer."""
        self.repeats = 0
        self.timeout = timeout
        self.due = Instant(now + timeout)
        """When it is sent again, or given up."""
        self.timer: Timer | None = None

    def again(self, timing: Timing) -> bool:
        """It is due: True to send it once more, with the time doubled; False: it was sent often enough."""
        if self.repeats >= timing.max_retransmit:
            return False
        self.repeats += 1
        self.timeout = Millis(self.timeout * 2)
        self.due = Instant(self.due + self.timeout)
        return True


def first_timeout(timing: Timing, chance: float) -> Millis:
    """Between ACK_TIMEOUT and ACK_TIMEOUT * ACK_RANDOM_FACTOR; `chance` is 0 to 1 (section 4.2)."""
    return Millis(int(timing.ack_timeout * (1 + chance * (timing.ack_random_factor - 1))))


class Recent:
    """A message of the peer that came lately, and what it was answered with, None while that is not known."""

    __slots__ = ("digest", "expires", "mid", "reply", "table")

    def __init__(self, table: "dict[int, Recent]", mid: int, digest: int, expires: Instant) -> None:
        self.table = table
        self.mid = mid
        self.digest = digest
        self.expires = expires
        self.reply: bytes | None = None


class Memory:
    """What came lately, of all peers: recognises repetitions (section 4.5), bounded in time, number and bytes.

    Each peer has a table of its own, by message id. A repetition has the same message id and the same bytes: a device
    that starts anew often counts from the same id, and its registration must not get the answer of the last one.
    """

    def __init__(self, lifetime: Millis, *, per_peer: int, messages: int, reply_bytes: int) -> None:
        self._lifetime = lifetime
        self._per_peer = per_peer
        self._messages = messages
        self._reply_bytes = reply_bytes
        self._all: OrderedDict[Recent, None] = OrderedDict()  # by expiry, as the lifetime is one for all
        self.reply_bytes = 0
        """Bytes of the replies that are kept."""

    def __len__(self) -> int:
        return len(self._all)

    @staticmethod
    def find(table: dict[int, Recent], mid: int, digest: int, now: Instant) -> Recent | None:
        """The message, if it came before."""
        found = table.get(mid)
        return found if found is not None and found.digest == digest and found.expires > now else None

    def note(self, table: dict[int, Recent], mid: int, digest: int, now: Instant) -> Recent:
        """A message has come. The peer's oldest one makes room, or the oldest of all."""
        old = table.get(mid)
        if old is None and len(table) >= self._per_peer:
            old = next(iter(table.values()))
        if old is not None:
            self.forget(old)
        if len(self._all) >= self._messages:
            self.forget(next(iter(self._all)))
        recent = Recent(table, mid, digest, Instant(now + self._lifetime))
        table[mid] = recent
        self._all[recent] = None
        return recent

    def answered(self, recent: Recent, reply: bytes) -> None:
        """A repetition gets these bytes."""
        if recent not in self._all:
            return
        self.reply_bytes += len(reply) - len(recent.reply or b"")
        recent.reply = reply
        while self.reply_bytes > self._reply_bytes:
            self.forget(next(iter(self._all)))

    def forget(self, recent: Recent) -> None:
        """A repetition of this one will be taken for new."""
        if recent in self._all:
            del self._all[recent]
            del recent.table[recent.mid]
            self.reply_bytes -= len(recent.reply or b"")

    def forget_all(self, table: dict[int, Recent]) -> None:
        """Forgets what one peer sent."""
        for recent in list(table.values()):
            self.forget(recent)

    def expire(self, now: Instant) -> None:
        """Forgets what is too old to be repeated."""
        while self._all:
            oldest = next(iter(self._all))
            if oldest.expires > now:
                break
            self.forget(oldest)


class Ids:
    """Message ids of one association, one after the other (section 4.4); the first one by chance."""

    __slots__ = ("_next",)

    def __init__(self, first: int) -> None:
        self._next = first & MID_MASK

    def next(self) -> int:
        """A message id that was not used for the last 65,535 messages."""
        mid = self._next
        self._next = (mid + 1) & MID_MASK
        return mid
