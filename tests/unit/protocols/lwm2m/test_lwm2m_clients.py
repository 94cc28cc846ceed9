"""Which device an association is: the last one that spoke there, and no other."""

import asyncio

from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey
from openiodm.protocols.coap.carrier import Address
from openiodm.protocols.coap.codec import Code, Message
from openiodm.protocols.lwm2m.clients import OUTBOX_FRAMES, Client, Clients
from openiodm.protocols.lwm2m.codec.registration import Links
from openiodm.protocols.port import KeptRegistration


class Peer:
    """An association on plain CoAP."""

    identity = cipher = None
    closed = False

    def __init__(self) -> None:
        self.busy = False
        self.address: Address = ("192.0.2.1", 5683)


class Carrier:
    """Nothing is sent here."""

    async def request(self, *_: object, **__: object) -> Message:
        return Message(Code.CHANGED)


CARRIER = Carrier()


def client(number: int) -> Client:
    kept = KeptRegistration(
        device=DeviceKey(number),
        device_id=f"d{number}",
        endpoint=f"n{number}",
        location=f"l{number}",
        token=f"{number:014x}",
        address='["192.0.2.1",5683]',
        secure=False,
        lifetime_s=86_400,
        version="1.1",
        binding="U",
        links="5/0 19/0",
        speaks_pcp=False,
        registered_at=Instant(0),
    )
    return Client(kept, Links(frozenset({(5, 0), (19, 0)})), Instant(0))


def two() -> tuple[Clients, Client, Client]:
    clients, first, second = Clients(), client(1), client(2)
    clients.put(first)
    clients.put(second)
    return clients, first, second


def test_an_association_is_taken_from_who_had_it() -> None:
    clients, first, second = two()
    peer = Peer()
    clients.speaks_from(first, peer, CARRIER)
    clients.speaks_from(second, peer, CARRIER)
    assert (first.peer, first.carrier, first.kept.address) == (None, None, "")
    assert (second.peer, second.carrier) == (peer, CARRIER)
    assert clients.of_peer(peer) is second


def test_who_lost_it_and_speaks_from_elsewhere_leaves_it_to_the_other() -> None:
    clients, first, second = two()
    peer, elsewhere = Peer(), Peer()
    clients.speaks_from(first, peer, CARRIER)
    clients.speaks_from(second, peer, CARRIER)
    peer.busy = True
    clients.speaks_from(first, elsewhere, CARRIER)
    assert (clients.of_peer(peer), clients.of_peer(elsewhere)) == (second, first)
    assert peer.busy, "the other is in an upgrade"
    clients.remove(first)
    assert (clients.of_peer(peer), clients.of_peer(elsewhere)) == (second, None)


async def test_what_was_under_way_to_who_lost_it_ends() -> None:
    clients, first, second = two()
    peer = Peer()
    clients.speaks_from(first, peer, CARRIER)
    exchange = first.exchange = asyncio.get_running_loop().create_future()
    first.outbox.append(b"frame")
    clients.speaks_from(second, peer, CARRIER)
    assert exchange.cancelled()
    assert (list(first.outbox), first.talk, first.here, first.binary) == ([], None, True, True)


def test_frames_that_are_not_taken_make_room_for_later_ones() -> None:
    waiting = client(1)
    for number in range(OUTBOX_FRAMES * 3):
        waiting.say([number.to_bytes(2)])
    assert [int.from_bytes(frame) for frame in waiting.outbox] == list(range(OUTBOX_FRAMES * 2, OUTBOX_FRAMES * 3))


def test_a_frame_that_waits_is_the_answer_to_a_repetition_too() -> None:
    waiting = client(1)
    waiting.say([b"1", b"2"])
    waiting.say([b"1", b"3"])
    assert list(waiting.outbox) == [b"1", b"2", b"3"]
