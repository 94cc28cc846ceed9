"""Associations, and the table of them: bounded, the least recently heard of makes room, never one that is busy."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator

from openiodm.clock import Millis
from openiodm.protocols.coap.blocks import Upload
from openiodm.protocols.coap.carrier import Address
from openiodm.protocols.coap.codec import Message
from openiodm.protocols.coap.dtls import Session
from openiodm.protocols.coap.exchange import Ids, Recent, Transmission
from openiodm.protocols.coap.timers import Timer

_SEARCH = 100  # how many are looked at for one that may go; what a new peer costs is bounded by it


class Request:
    """A request of ours that waits for its answer."""

    __slots__ = ("answer", "deadline", "message", "mid", "token", "under_way", "wait")

    def __init__(self, message: Message, token: bytes, wait: Millis, answer: "asyncio.Future[Message]") -> None:
        self.message = message
        self.token = token
        self.answer = answer
        self.wait = wait
        self.mid = -1
        self.under_way = False
        """Counts against NSTART: sent, and neither acknowledged nor answered."""
        self.deadline: Timer | None = None
        """Runs from the sending on; None before."""


class Association:
    """A `carrier.Peer` with what the message layer remembers of it."""

    __slots__ = (
        "__weakref__",
        "address",
        "busy",
        "closed",
        "handling",
        "ids",
        "recent",
        "requests",
        "sent",
        "session",
        "under_way",
        "upload",
        "waiting",
    )

    def __init__(self, address: Address, session: Session | None, first_mid: int) -> None:
        self.address = address
        self.session = session
        self.busy = False
        self.closed = False
        self.ids = Ids(first_mid)
        self.recent: dict[int, Recent] = {}
        self.sent: dict[int, Transmission] = {}
        self.requests: dict[bytes, Request] = {}
        self.waiting: deque[Request] | None = None
        self.under_way = 0
        self.handling = 0
        self.upload: Upload | None = None

    def __repr__(self) -> str:
        return f"<Association {self.address[0]}:{self.address[1]} {self.identity}>"

    @property
    def identity(self) -> str | None:
        """The PSK identity that the handshake proved; None on plain CoAP."""
        return None if self.session is None else self.session.identity

    @property
    def cipher(self) -> str | None:
        """OpenSSL's name of the suite; None on plain CoAP."""
        return None if self.session is None else self.session.cipher

    @property
    def in_use(self) -> bool:
        """May not be evicted: the protocol on top says so, or an exchange is under way."""
        return self.busy or bool(self.requests) or self.handling > 0


class Peers:
    """The associations of one endpoint by address, in the order in which they were heard of."""

    def __init__(self, limit: int, evicted: Callable[[Association], None]) -> None:
        self._limit = limit
        self._evicted = evicted
        self._by_address: OrderedDict[Address, Association] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_address)

    def __iter__(self) -> Iterator[Association]:
        return iter(list(self._by_address.values()))

    def heard_of(self, address: Address) -> Association | None:
        """The association with that address, which now is the most recent one."""
        found = self._by_address.get(address)
        if found is not None:
            self._by_address.move_to_end(address)
        return found

    def get(self, address: Address) -> Association | None:
        """The association with that address."""
        return self._by_address.get(address)

    def add(self, peer: Association) -> bool:
        """Takes it in; False when the table is full of such as are in use. Its address must be free."""
        assert peer.address not in self._by_address, "replace is two steps: remove, add"
        if len(self._by_address) >= self._limit and not self._make_room():
            return False
        self._by_address[peer.address] = peer
        return True

    def _make_room(self) -> bool:
        """Those in use that are met on the way count as heard of now, so the next search is short."""
        for _ in range(min(_SEARCH, len(self._by_address))):
            address, peer = next(iter(self._by_address.items()))
            if not peer.in_use:
                del self._by_address[address]
                self._evicted(peer)
                return True
            self._by_address.move_to_end(address)
        return False

    def remove(self, peer: Association) -> None:
        """Takes it out, if it is in."""
        if self._by_address.get(peer.address) is peer:
            del self._by_address[peer.address]
