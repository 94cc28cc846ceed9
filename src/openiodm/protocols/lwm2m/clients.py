"""The registered devices as this process knows them, by all that they are found by. No socket, no row."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey
from openiodm.protocols.coap.carrier import Carrier, Peer
from openiodm.protocols.coap.codec import Message
from openiodm.protocols.lwm2m.codec.registration import Links
from openiodm.protocols.lwm2m.talk import Talk
from openiodm.protocols.port import KeptRegistration, Unfinished

SEED_BYTES: Final = 7
"""Random bytes that are a device's for good; with one more for the path they are its observations' tokens."""
OUTBOX_FRAMES: Final = 32
"""Most PCP frames that wait for a device: what was dropped it asks for again, by its own timer."""


class Client:
    """One registered device."""

    __slots__ = (
        "again",
        "binary",
        "carrier",
        "closing",
        "describe",
        "exchange",
        "heard_at",
        "here",
        "identity",
        "kept",
        "links",
        "location",
        "lock",
        "looked_at",
        "outbox",
        "peer",
        "seed",
        "sequences",
        "talk",
        "task",
        "unfinished",
    )

    def __init__(self, kept: KeptRegistration, links: Links, heard_at: Instant) -> None:
        self.kept = kept
        self.links = links
        self.location = kept.location  # that it is found by
        self.seed = bytes.fromhex(kept.token)
        self.heard_at = heard_at
        self.peer: Peer | None = None
        self.carrier: Carrier | None = None
        self.identity: str | None = None  # that its handshake proved
        self.describe = False  # it is to be asked about itself
        self.binary = False  # its object 19 is to be observed
        self.here: bool | None = None  # a contact that the dialogue has not heard of; True: a new registration
        self.unfinished: Unfinished | None = None
        self.looked_at = Instant(0)  # when that was read
        self.talk: Talk | None = None
        self.outbox: deque[bytes] = deque(maxlen=OUTBOX_FRAMES)  # PCP frames to be sent
        self.sequences: dict[int, tuple[int, Instant]] = {}
        self.lock = asyncio.Lock()
        self.task: asyncio.Task[None] | None = None
        self.exchange: asyncio.Future[Message] | None = None  # the request that is under way to it
        self.closing = False
        self.again = False  # something happened since the task looked last

    @property
    def device(self) -> DeviceKey:
        """The row's key."""
        return self.kept.device

    @property
    def sleeps(self) -> bool:
        """Queue mode: it is awake for a while after it has said something."""
        return "Q" in self.kept.binding

    @property
    def expires_at(self) -> Instant:
        """The end of its registration, unless it is heard of before."""
        return Instant(self.heard_at + self.kept.lifetime_s * 1000)

    def say(self, frames: Iterable[bytes]) -> None:
        """PCP frames to be sent. One that waits already is the answer to a repeated request, too; when there are too
        many, the oldest goes.
        """
        for frame in frames:
            if frame not in self.outbox:
                self.outbox.append(frame)

    def begin_anew(self) -> None:
        """Nothing that was asked of it, or that it was told, counts any more: it may have got none of it."""
        self.here = True
        self.binary = self.links.has(19, 0)
        self.outbox.clear()
        self.sequences.clear()
        if self.exchange is not None:
            self.exchange.cancel()  # with an association that it may have left


class Clients:
    """All of them."""

    def __init__(self) -> None:
        self._by_device: dict[DeviceKey, Client] = {}
        self._by_location: dict[str, Client] = {}
        self._by_seed: dict[bytes, Client] = {}
        self._by_peer: dict[int, Client] = {}

    def __len__(self) -> int:
        return len(self._by_device)

    def __iter__(self) -> Iterator[Client]:
        return iter(list(self._by_device.values()))

    def put(self, client: Client) -> None:
        """Takes it in, or notes that its location is another one now."""
        self._by_location.pop(client.location, None)
        client.location = client.kept.location
        self._by_device[client.device] = client
        self._by_location[client.kept.location] = client
        self._by_seed[client.seed] = client

    def remove(self, client: Client) -> None:
        """It is registered no more."""
        self._by_device.pop(client.device, None)
        self._by_location.pop(client.location, None)
        self._by_seed.pop(client.seed, None)
        self.speaks_from(client, None, None)

    def speaks_from(self, client: Client, peer: Peer | None, carrier: Carrier | None) -> None:
        """Where it is reached from now on. A peer is one client's, the last one that spoke from there: on plain CoAP a
        NAT gives the port of a device that rests to its neighbour.
        """
        if client.peer is not peer:
            self._leave(client)
        if peer is not None:
            holder = self._by_peer.get(id(peer))
            if holder is not None and holder is not client:
                self._lose(holder)
            self._by_peer[id(peer)] = client
            client.identity = peer.identity
        client.peer, client.carrier = peer, carrier

    def _leave(self, client: Client) -> None:
        if client.peer is not None:
            del self._by_peer[id(client.peer)]
            client.peer.busy = False
        client.peer = client.carrier = None

    def _lose(self, client: Client) -> None:
        """Another speaks from where it did. What was said there lately was perhaps said to the other, and by it."""
        self._leave(client)
        client.kept = replace(client.kept, address="")
        client.talk = None
        client.begin_anew()

    def of_device(self, device: DeviceKey) -> Client | None:
        """By the row's key."""
        return self._by_device.get(device)

    def at(self, location: str) -> Client | None:
        """By its registration's location."""
        return self._by_location.get(location)

    def of_seed(self, seed: bytes) -> Client | None:
        """By what its tokens begin with."""
        return self._by_seed.get(seed)

    def of_peer(self, peer: Peer) -> Client | None:
        """By the association that it was heard on last."""
        return self._by_peer.get(id(peer))
