"""DTLS associations of one port: which session a datagram belongs to, handshakes under way, new ones for old addresses.

A first hello goes to the listening context whatever is known of its address, so a device that starts anew, or another
one behind the same address, gets a new session (RFC 6347 section 4.2.8). The old one stays until the new handshake is
finished: a spoofed hello cannot cut a device off. No socket here; what is to be sent goes to `transmit`.
"""

from collections import OrderedDict
from collections.abc import Callable

import structlog

from openiodm.clock import Instant, Millis
from openiodm.protocols.coap.carrier import Address
from openiodm.protocols.coap.counts import Counts
from openiodm.protocols.coap.dtls import Context, Session
from openiodm.protocols.coap.limits import Limits
from openiodm.protocols.coap.peers import Association, Peers
from openiodm.protocols.coap.records import hello_random, is_application_data, is_client_hello, psk_identity

log = structlog.get_logger(__name__)

RETRANSMIT_EVERY = Millis(200)
"""How often handshakes under way are asked whether a flight is to be sent again."""
HELD_FOR = 2
"""So many of these looks a flight is held while its key is looked up."""
HELD = 4
"""Most datagrams that are held for a handshake: a key exchange, a change of the cipher, a Finished, and one more."""
LOGGED = 5
"""Most failed handshakes that are logged in that time; `Counts` has all of them."""
ROTATE_EVERY = Millis(300_000)
"""How often the secret of the cookies changes."""


class _HalfOpen:
    __slots__ = ("held", "held_for", "named", "random", "session", "since")

    def __init__(self, session: Session, random: bytes, since: Instant) -> None:
        self.session = session
        self.random = random
        self.since = since
        self.named = False
        """The peer's identity was seen."""
        self.held: list[bytes] = []
        self.held_for = 0


class SecurePort:
    """Takes the datagrams of one DTLS port and gives the plaintexts with their associations."""

    def __init__(
        self,
        context: Context,
        peers: Peers,
        limits: Limits,
        counts: Counts,
        *,
        transmit: Callable[[bytes, Address], None],
        associate: Callable[[Address, Session], Association],
        close: Callable[[Association], None],
        chance: Callable[[int], bytes],
    ) -> None:
        self._context = context
        self._peers = peers
        self._limits = limits
        self._counts = counts
        self._transmit = transmit
        self._associate = associate
        self._close = close
        self._chance = chance
        self._half_open: OrderedDict[Address, _HalfOpen] = OrderedDict()
        self._next_rotation: Instant | None = None
        self._next_retransmission = Instant(0)
        self._logged = 0

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return len(self._half_open)

    def receive(self, datagram: bytes, address: Address, now: Instant) -> tuple[Association | None, list[bytes]]:
        """The association that a datagram belongs to and what it says; (None, []) where there is none."""
        half_open = self._half_open.get(address) if self._half_open else None
        if is_client_hello(datagram) and not (half_open and half_open.random == hello_random(datagram)):
            self._hello(datagram, address, now)
            return None, []
        peer = self._peers.heard_of(address)
        if half_open is not None and not (peer is not None and is_application_data(datagram)):
            return self._go_on(half_open, datagram, address)
        if peer is None or peer.session is None:
            self._counts.strangers += 1
            return None, []
        plaintexts, out, alive = peer.session.feed(datagram)
        if out:
            self._transmit(out, address)
        if not alive:
            self._end(peer)
        return peer, plaintexts

    def _hello(self, datagram: bytes, address: Address, now: Instant) -> None:
        session, out = self._context.listen(datagram, address)
        if out:
            self._transmit(out, address)
        if session is None:
            return
        self._drop(address)
        if len(self._half_open) >= self._limits.half_open:
            self._counts.half_open_dropped += 1
            self._drop(next(iter(self._half_open)))
        self._half_open[address] = _HalfOpen(session, hello_random(datagram), now)

    def _go_on(self, half_open: _HalfOpen, datagram: bytes, address: Address) -> tuple[Association | None, list[bytes]]:
        session = half_open.session
        if self._holds(half_open, datagram):
            return None, []
        plaintexts, out, alive = session.feed(datagram)
        if out:
            self._transmit(out, address)
        if not alive:
            self._failed("dtls.handshake_refused", session, address)
        elif session.established:
            del self._half_open[address]
            return self._open(session, address), plaintexts
        return None, []

    def _holds(self, half_open: _HalfOpen, datagram: bytes) -> bool:
        """Is the flight to wait for a key that is looked up? Not all devices repeat one that gets no answer."""
        if half_open.held:
            if len(half_open.held) < HELD:
                half_open.held.append(datagram)
            return True
        if half_open.named or (identity := psk_identity(datagram)) is None:
            return False
        half_open.named = True
        if not self._context.seek(identity):
            return False
        half_open.held.append(datagram)
        half_open.held_for = HELD_FOR
        return True

    def _let_go(self, half_open: _HalfOpen, address: Address) -> None:
        """Takes what was held; a peer says nothing more before it is answered, so there are no plaintexts."""
        half_open.held_for -= 1
        if half_open.held_for:
            return
        held, half_open.held = half_open.held, []
        for datagram in held:
            if self._half_open.get(address) is half_open:
                self._go_on(half_open, datagram, address)

    def _open(self, session: Session, address: Address) -> Association | None:
        old = self._peers.get(address)
        if old is not None:
            self._end(old)
        peer = self._associate(address, session)
        if not self._peers.add(peer):
            self._counts.peers_refused += 1
            self._transmit(session.close(), address)
            return None
        self._counts.handshakes += 1
        return peer

    def _end(self, peer: Association) -> None:
        """The peer has gone, or speaks in another session now: there is nobody to say good-bye to."""
        self._peers.remove(peer)
        if peer.session is not None:
            peer.session.close()
        self._close(peer)

    def _failed(self, event: str, session: Session, address: Address) -> None:
        self._counts.handshakes_failed += 1
        self._logged += 1
        if self._logged <= LOGGED:
            log.warning(event, host=address[0], identity=session.identity)
        self._drop(address)

    def _drop(self, address: Address) -> None:
        half_open = self._half_open.pop(address, None)
        if half_open is not None:
            half_open.session.close()

    def tick(self, now: Instant) -> None:
        """Repeats flights, drops handshakes that take too long, and changes the secret of the cookies."""
        if self._next_rotation is None or now >= self._next_rotation:
            self._next_rotation = Instant(now + ROTATE_EVERY)
            self._context.rotate(self._chance(32))
        if now < self._next_retransmission:
            return
        self._next_retransmission = Instant(now + RETRANSMIT_EVERY)
        self._logged = 0
        for address, half_open in list(self._half_open.items()):
            if now - half_open.since >= self._limits.half_open_time:
                # With a wrong key the peer's last message cannot be read, and is dropped silently.
                identity = half_open.session.identity
                self._failed("dtls.handshake_timed_out", half_open.session, address)
                if identity is not None:
                    self._context.doubt(identity)
            elif half_open.held:
                self._let_go(half_open, address)
            elif out := half_open.session.tick():
                self._transmit(out, address)

    def close(self) -> None:
        """Drops the handshakes under way; the associations are their owner's to close."""
        for address in list(self._half_open):
            self._drop(address)
