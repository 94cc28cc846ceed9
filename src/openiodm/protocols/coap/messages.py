"""The message layer of an endpoint (RFC 7252 section 4): sending, sending again, and knowing what came before."""

from collections.abc import Callable
from typing import Final

from openiodm.clock import Clock
from openiodm.protocols.coap.carrier import Address
from openiodm.protocols.coap.codec import Message, Type
from openiodm.protocols.coap.counts import Counts
from openiodm.protocols.coap.exchange import Memory, Recent, Transmission, first_timeout
from openiodm.protocols.coap.limits import Limits, Timing
from openiodm.protocols.coap.peers import Association
from openiodm.protocols.coap.timers import Timers

GivenUp = Callable[[Association, Transmission], None]

_EMPTY: Final = 0x40  # the first byte of a message without a token, type 0


def empty(kind: Type, mid: int) -> bytes:
    """An empty message: an acknowledgement or a reset (section 4.1)."""
    return bytes((_EMPTY | kind << 4, 0, mid >> 8, mid & 0xFF))


class MessageLayer:
    """Sends to associations, sealed where they are sessions, and remembers what they sent."""

    def __init__(
        self,
        transmit: Callable[[bytes, Address], None],
        clock: Clock,
        chance: Callable[[int], bytes],
        limits: Limits,
        timing: Timing,
        counts: Counts,
    ) -> None:
        self.transmit = transmit
        self.clock = clock
        self.chance = chance
        self.timing = timing
        self.counts = counts
        self.timers = Timers()
        self.memory = Memory(
            timing.exchange_lifetime,
            per_peer=limits.remembered_per_peer,
            messages=limits.remembered,
            reply_bytes=limits.remembered_bytes,
        )

    def send(self, peer: Association, datagram: bytes) -> None:
        """Sends once; nothing when the association is closed."""
        if peer.session is None:
            self.transmit(datagram, peer.address)
        elif sealed := peer.session.seal(datagram):
            self.transmit(sealed, peer.address)

    def send_confirmable(self, peer: Association, mid: int, datagram: bytes, owner: object, given_up: GivenUp) -> None:
        """Sends, and sends again until `settle`; `given_up` is told when that never comes (section 4.2)."""
        timeout = first_timeout(self.timing, int.from_bytes(self.chance(2), "big") / 0xFFFF)
        transmission = Transmission(mid, datagram, owner, self.clock.now(), timeout)
        peer.sent[mid] = transmission
        self._wait(peer, transmission, given_up)
        self.send(peer, datagram)

    def _wait(self, peer: Association, transmission: Transmission, given_up: GivenUp) -> None:
        transmission.timer = self.timers.at(transmission.due, self._due, peer, transmission, given_up)

    def _due(self, peer: Association, transmission: Transmission, given_up: GivenUp) -> None:
        if transmission.again(self.timing):
            self.counts.retransmitted += 1
            self._wait(peer, transmission, given_up)
            self.send(peer, transmission.datagram)
        else:
            self.counts.given_up += 1
            del peer.sent[transmission.mid]
            given_up(peer, transmission)

    def settle(self, peer: Association, mid: int) -> Transmission | None:
        """The message with that id needs no repeating: it was acknowledged, reset or answered, or nobody waits."""
        transmission = peer.sent.pop(mid, None)
        if transmission is not None and transmission.timer is not None:
            transmission.timer.cancel()
        return transmission

    def settle_all(self, peer: Association) -> None:
        """The association is closed: nothing is repeated, and nothing of it is remembered."""
        for mid in list(peer.sent):
            self.settle(peer, mid)
        self.memory.forget_all(peer.recent)

    def repeated(self, peer: Association, message: Message, data: bytes) -> bool:
        """Did it come before? Then it gets what it got, or waits for what it will get (section 4.5)."""
        if not peer.recent:
            return False
        found = self.memory.find(peer.recent, message.mid, hash(data), self.clock.now())
        if found is None:
            return False
        self.counts.repeated += 1
        if found.reply is not None:
            self.send(peer, found.reply)
        return True

    def note(self, peer: Association, message: Message, data: bytes) -> Recent:
        """It has come, and a repetition will be known."""
        return self.memory.note(peer.recent, message.mid, hash(data), self.clock.now())

    def reply(self, peer: Association, datagram: bytes, recent: Recent | None) -> None:
        """Sends an answer, and again to repetitions of what it answers."""
        if recent is not None:
            self.memory.answered(recent, datagram)
        self.send(peer, datagram)

    def tick(self) -> None:
        """Does what is due."""
        now = self.clock.now()
        self.timers.run(now)
        self.memory.expire(now)
