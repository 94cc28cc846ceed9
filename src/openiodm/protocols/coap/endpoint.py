"""One CoAP endpoint, plain or DTLS: datagrams to requests, answers and notifications (RFC 7252 sections 4 and 5).

It has no socket: datagrams come by `receive`, go by `transmit`, and time passes by `tick`. `udp.py` joins it to a real
socket, tests to a network in memory. Everything happens in the event loop's thread.
"""

from collections.abc import Callable

from openiodm.clock import Clock, Millis
from openiodm.protocols.coap import carrier
from openiodm.protocols.coap.answers import Answers
from openiodm.protocols.coap.carrier import (
    ANSWER_BYTES,
    RESPONSE_WAIT,
    Address,
    Body,
    Handler,
    Notified,
    Peer,
    Progress,
)
from openiodm.protocols.coap.codec import DATAGRAM_BYTES, LARGEST_SZX, CoapFormatError, Code, Message, Type, decode
from openiodm.protocols.coap.counts import Counts
from openiodm.protocols.coap.dtls import Context, Session
from openiodm.protocols.coap.limits import Limits, Timing
from openiodm.protocols.coap.messages import MessageLayer, empty
from openiodm.protocols.coap.notifications import Notifications
from openiodm.protocols.coap.peers import Association, Peers, Request
from openiodm.protocols.coap.requests import Requests
from openiodm.protocols.coap.screening import understands_answer
from openiodm.protocols.coap.secure import SecurePort
from openiodm.protocols.coap.work import Work


def _ignore(_peer: Peer) -> None:
    pass


class Endpoint:
    """A `carrier.Carrier`, and the server role.

    `handler` answers requests, `notified` takes notifications, `closed` is told of associations that are no more.
    `transmit` sends a datagram and never blocks. With `dtls` every peer must have shaken hands; else all is plain.
    """

    def __init__(
        self,
        transmit: Callable[[bytes, Address], None],
        handler: Handler,
        notified: Notified,
        *,
        clock: Clock,
        chance: Callable[[int], bytes],
        dtls: Context | None = None,
        closed: Callable[[Peer], None] = _ignore,
        limits: Limits | None = None,
        timing: Timing | None = None,
    ) -> None:
        limits = limits or Limits()
        self._transmit = transmit
        self._told_closed = closed
        self._clock = clock
        self._chance = chance
        self.counts = Counts()
        self._messages = MessageLayer(transmit, clock, chance, limits, timing or Timing(), self.counts)
        self._work = Work(limits)
        self._answers = Answers(self._messages, handler, self._work, limits)
        self._notifications = Notifications(self._messages, notified, self._work)
        self._requests = Requests(self._messages, limits.exchanges_per_peer)
        self._peers = Peers(limits.peers if dtls is None else limits.sessions, self._evict)
        self._secure: SecurePort | None = None
        if dtls is not None:
            self._secure = SecurePort(
                dtls,
                self._peers,
                limits,
                self.counts,
                transmit=transmit,
                associate=self._associate,
                close=self._close,
                chance=chance,
            )

    # Peers.

    @property
    def peers(self) -> int:
        """Associations now."""
        return len(self._peers)

    @property
    def half_open(self) -> int:
        """DTLS handshakes under way."""
        return 0 if self._secure is None else self._secure.half_open

    def peer_at(self, address: Address) -> Peer | None:
        """The association with an address; on plain CoAP there always is one, None only when there is no room."""
        return self._peers.get(address) if self._secure is not None else self._plain(address)

    def _associate(self, address: Address, session: Session | None) -> Association:
        return Association(address, session, int.from_bytes(self._chance(2), "big"))

    def _plain(self, address: Address) -> Association | None:
        peer = self._peers.heard_of(address)
        if peer is None:
            peer = self._associate(address, None)
            if not self._peers.add(peer):
                self.counts.peers_refused += 1
                return None
        return peer

    def _evict(self, peer: Association) -> None:
        self.counts.evicted += 1
        self._say_goodbye(peer)
        self._close(peer)

    def _say_goodbye(self, peer: Association) -> None:
        if peer.session is not None and (goodbye := peer.session.close()):
            self._transmit(goodbye, peer.address)

    def _close(self, peer: Association) -> None:
        """It is out of the table already."""
        peer.closed = True
        self._requests.close(peer)
        self._messages.settle_all(peer)
        self._answers.forget(peer)
        self._told_closed(peer)

    # Datagrams and time.

    def receive(self, datagram: bytes, address: Address) -> None:
        """Takes one datagram, whatever it is."""
        self.counts.datagrams += 1
        if self._secure is None:
            self._plain_datagram(datagram, address)
            return
        peer, plaintexts = self._secure.receive(datagram, address, self._clock.now())
        if peer is None:
            return
        for plaintext in plaintexts:
            try:
                message = decode(plaintext)
            except CoapFormatError as error:
                self.counts.malformed += 1
                if error.confirmable is not None:
                    self._messages.send(peer, empty(Type.RST, error.confirmable))
            else:
                self._take(peer, message, plaintext)

    def _plain_datagram(self, datagram: bytes, address: Address) -> None:
        """Bytes that are no message make no association."""
        try:
            message = decode(datagram)
        except CoapFormatError as error:
            self.counts.malformed += 1
            if error.confirmable is not None:
                self._transmit(empty(Type.RST, error.confirmable), address)
            return
        peer = self._plain(address)
        if peer is not None:
            self._take(peer, message, datagram)

    def tick(self) -> None:
        """Does what is due. To be called every `TICK`."""
        self._messages.tick()
        self._answers.tick()
        if self._secure is not None:
            self._secure.tick(self._clock.now())

    def unreachable(self, address: Address, datagram: bytes) -> None:
        """The network returned this datagram of ours: nobody listens there (ICMP)."""
        peer = self._peers.get(address)
        if peer is not None:
            mid = int.from_bytes(datagram[2:4], "big") if peer.session is None else None
            self._requests.unreachable(peer, mid)

    async def close(self) -> None:
        """Says good-bye to all peers, and ends what is under way."""
        await self._work.close()
        if self._secure is not None:
            self._secure.close()
        for peer in self._peers:
            self._peers.remove(peer)
            self._say_goodbye(peer)
            self._close(peer)

    # Messages.

    def _take(self, peer: Association, message: Message, data: bytes) -> None:
        code, kind = message.code, message.type
        if code == Code.EMPTY:
            self._empty(peer, kind, message.mid)
        elif code < 0x20:
            if kind is Type.CON or kind is Type.NON:
                self._answers.request(peer, message, data)
        elif code < 0x40 or len(data) > DATAGRAM_BYTES:
            self.counts.malformed += 1
        elif kind is Type.ACK:
            self._piggybacked(peer, message)
        elif kind is not Type.RST:  # a reset is empty (section 4.2)
            self._response(peer, message, data)

    def _empty(self, peer: Association, kind: Type, mid: int) -> None:
        if kind is Type.CON:  # a ping (section 4.3)
            self._messages.send(peer, empty(Type.RST, mid))
            return
        transmission = self._messages.settle(peer, mid)
        if kind is Type.RST:
            self._requests.reset(peer, mid)
        elif transmission is not None and isinstance(transmission.owner, Request):
            self._requests.acknowledged(peer, transmission.owner)

    def _piggybacked(self, peer: Association, message: Message) -> None:
        transmission = self._messages.settle(peer, message.mid)
        if transmission is None or not isinstance(transmission.owner, Request):
            return
        if not understands_answer(message) or not self._requests.answered(peer, message):
            self._requests.acknowledged(peer, transmission.owner)

    def _response(self, peer: Association, message: Message, data: bytes) -> None:
        """One that comes by itself: the answer to a request, or a notification."""
        if self._messages.repeated(peer, message, data):
            return
        recent = self._messages.note(peer, message, data)
        if not understands_answer(message):
            self._notifications.settle(peer, message, recent, wanted=False)
        elif self._requests.answered(peer, message):
            self._notifications.settle(peer, message, recent, wanted=True)
        else:
            self._notifications.take(peer, message, recent)

    async def request(
        self,
        peer: Peer,
        message: Message,
        *,
        body: Body | None = None,
        progress: Progress | None = None,
        szx: int = LARGEST_SZX,
        limit: int = ANSWER_BYTES,
        wait: Millis = RESPONSE_WAIT,
    ) -> Message:
        """See `carrier.Carrier.request`."""
        assert isinstance(peer, Association), "a peer of another carrier"
        if peer.closed and peer.session is None:
            # It only made room for others: on plain CoAP an address is all there is to a peer.
            again = self._plain(peer.address)
            if again is None:
                raise carrier.TooMany("no room for another peer")
            peer = again
        return await self._requests.request(
            peer, message, body=body, progress=progress, szx=szx, limit=limit, wait=wait
        )
