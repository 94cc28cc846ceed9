"""How many requests an address and a device may make, and how many wrong credentials come from an address.

One noisy peer must not slow the others down, so this is asked before anything else is done for a request: it is in
memory, of this server process alone, and costs no statement. What is remembered is bounded; what was used longest ago
goes first, and with it at most the memory that somebody had asked much.

A device is known by the credential that it shows together with its name, and from its first accepted request on:
nobody without its credential can use up its share, and guesses at names are not remembered. What a known device
reports and downloads counts for the device alone, and waits for its turn rather than being refused: a report must not
be lost, and some agents give an update up at the first refused byte. So a noisy neighbour behind the same address
translation cannot break an update, and a device that floods waits in a line of its own.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum, StrEnum

from openiodm.access.flow import PERIOD_MS
from openiodm.access.login_limit import network_of
from openiodm.clock import SECOND, Clock, Millis

ADDRESS_BURST_MS = 10 * SECOND
"""What a quiet address may ask for at once: as much as in this time at its rate."""
DOWNLOADS_A_TURN = 10
"""Requests for bytes that count as one: agents that stream ask for an image in thousands of small ranges."""
LONGEST_WAIT_MS = 5 * SECOND
"""For a turn; who would wait longer is refused."""
MOST_REMEMBERED = 50_000
"""Devices, addresses, and addresses with failures: some 200 bytes each."""

_NO_TIME = Millis(0)


class Rate:
    """`per_minute` turns for each key, and `burst_ms` of them in advance. In integers, so N means N; 0: no limit.

    A key is kept as the moment at which it would have all its turns again, in 1/N ms (as in `flow.MemoryFlow`).
    """

    def __init__(self, clock: Clock, per_minute: int, burst_ms: int = PERIOD_MS) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._burst = max(burst_ms * per_minute, PERIOD_MS)
        self._full_at: OrderedDict[Hashable, int] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._full_at

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: Hashable, longest: int = 0, parts: int = 1) -> Millis | None:
        """Takes a turn, or one of `parts` of it: how long until then, at most `longest` ms. None: there is none."""
        n = self._per_minute
        now = self._clock.now() * n
        full_at = self._since(key, now) + PERIOD_MS // parts
        wait = -(-(full_at - now - self._burst) // n) if n else 0
        if wait > longest:
            return None
        self._keep(key, full_at)
        return Millis(max(wait, 0))

    def is_spent(self, key: Hashable) -> bool:
        """Is there no turn at once?"""
        n = self._per_minute
        now = self._clock.now() * n
        return n != 0 and self._since(key, now) + PERIOD_MS > now + self._burst

    def charge(self, key: Hashable) -> None:
        """Takes a turn that was had already; nothing is owed beyond the burst."""
        now = self._clock.now() * self._per_minute
        self._keep(key, min(self._since(key, now) + PERIOD_MS, now + self._burst))

    def forget(self, key: Hashable) -> None:
        """The key is not known any more, if it was."""
        self._full_at.pop(key, None)

    @property
    def retry_after_s(self) -> int:
        """Whole seconds in which a refused key has a turn again."""
        return -(-60 // self._per_minute) if self._per_minute else 1

    def _since(self, key: Hashable, now: int) -> int:
        """When it has all its turns again. More than can be owed: the clock was set back, so nothing is known."""
        full_at = self._full_at.get(key, now)
        return full_at if now < full_at <= now + self._burst + LONGEST_WAIT_MS * self._per_minute else now

    def _keep(self, key: Hashable, full_at: int) -> None:
        self._full_at[key] = full_at
        self._full_at.move_to_end(key)
        if len(self._full_at) > MOST_REMEMBERED:
            self._full_at.popitem(last=False)


class Limited(StrEnum):
    """Which limit a request was refused by. The value is what the log shows."""

    ADDRESS = "address"
    DEVICE = "device"
    CREDENTIALS = "credentials"


class Asks(Enum):
    """What a device's request is for."""

    ANYTHING = "anything"
    TO_REPORT = "to report"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Turn:
    """What becomes of a request: it goes on after `wait`; or it is refused, and may come again in `retry_after_s`."""

    wait: Millis = _NO_TIME
    refused: Limited | None = None
    retry_after_s: int = 0

    @property
    def why(self) -> str:
        """For a person."""
        match self.refused:
            case Limited.ADDRESS:
                return "too many requests from this address"
            case Limited.DEVICE:
                return "too many requests of this device"
            case Limited.CREDENTIALS:
                return "too many wrong credentials from this address"
            case None:
                return ""


AT_ONCE = Turn()


class RequestLimit:
    """The limits of one server process, over all its listeners; a limit of 0 is off.

    `refused` counts since it was last looked at; whoever reports it clears it.
    """

    def __init__(self, clock: Clock, *, per_address: int, per_device: int, failures_per_address: int) -> None:
        self._addresses = Rate(clock, per_address, ADDRESS_BURST_MS)
        self._devices = Rate(clock, per_device)
        self._failures = Rate(clock, failures_per_address)
        self.refused: Counter[Limited] = Counter()

    def address(self, address: str) -> Turn:
        """A request of whoever it is."""
        if self._addresses.take(network_of(address)) is None:
            return self._no(Limited.ADDRESS, self._addresses)
        return AT_ONCE

    def device(self, address: str, device: Hashable, asks: Asks = Asks.ANYTHING) -> Turn:
        """A request of a device that is known by `device`: its name and what it shows for it."""
        known = device in self._devices
        waits = known and asks is not Asks.ANYTHING
        if not waits and (turn := self.address(address)).refused:
            return turn
        if not known:
            spent = self._failures.is_spent(network_of(address))
            return self._no(Limited.CREDENTIALS, self._failures) if spent else AT_ONCE
        parts = DOWNLOADS_A_TURN if asks is Asks.BYTES else 1
        wait = self._devices.take(device, LONGEST_WAIT_MS if waits else 0, parts)
        if wait is None:
            return self._no(Limited.DEVICE, self._devices)
        return Turn(wait) if wait else AT_ONCE

    def peer(self, address: str, peer: Hashable) -> Turn:
        """A request of a peer that is told apart by where it sends from, or has shown who it is before."""
        if (turn := self.address(address)).refused:
            return turn
        return AT_ONCE if self._devices.take(peer) is not None else self._no(Limited.DEVICE, self._devices)

    def accepted(self, device: Hashable) -> None:
        """What it showed is good: it is known from now on."""
        if device not in self._devices:
            self._devices.charge(device)

    def failed(self, address: str, device: Hashable) -> None:
        """What was shown from that address is wrong, or not any more right."""
        self._devices.forget(device)
        self._failures.charge(network_of(address))

    def _no(self, limit: Limited, rate: Rate) -> Turn:
        self.refused[limit] += 1
        return Turn(refused=limit, retry_after_s=rate.retry_after_s)
