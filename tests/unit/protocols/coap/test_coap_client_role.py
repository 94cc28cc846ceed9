"""The client role of an endpoint, in memory: retransmission by the clock, separate answers, blocks, notifications."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from openiodm.protocols.coap import carrier
from openiodm.protocols.coap.carrier import Peer
from openiodm.protocols.coap.codec import (
    Block,
    Code,
    Message,
    Option,
    Type,
    decode_block,
    encode,
    encode_block,
    path_options,
)
from openiodm.protocols.coap.endpoint import Endpoint
from openiodm.protocols.coap.limits import Limits
from tests.conftest import ManualClock
from tests.support.coap import DEVICE, SERVER, Device, Network

READ = Message(Code.GET, path_options("/3/0"))
WRITE = Message(Code.PUT, path_options("/5/0/0"))


@pytest.fixture
def network(clock: ManualClock) -> Network:
    return Network(clock)


class Noted:
    """What notifications came, and whether they are wanted."""

    def __init__(self) -> None:
        self.got: list[tuple[Peer, Message]] = []
        self.wanted: object = True

    def __call__(self, peer: Peer, message: Message) -> bool:
        self.got.append((peer, message))
        if isinstance(self.wanted, Exception):
            raise self.wanted
        return self.wanted() if callable(self.wanted) else self.wanted  # type: ignore[return-value]


@pytest.fixture
def noted() -> Noted:
    return Noted()


@pytest.fixture
async def server(network: Network, noted: Noted) -> AsyncIterator[Endpoint]:
    made = network.endpoint(SERVER, notified=noted)
    yield made
    await made.close()


@pytest.fixture
def device(network: Network) -> Device:
    return network.device()


@pytest.fixture
def peer(server: Endpoint) -> Peer:
    found = server.peer_at(DEVICE)
    assert found is not None
    return found


async def asked(network: Network, device: Device, count: int = 1) -> list[Message]:
    """The next requests that reach the device."""
    for _ in range(100):
        if len(device.got) >= count:
            break
        await network.settle()
        network.step()
    found, device.got = device.got, []
    assert len(found) == count
    return found


def answer(request: Message, code: Code, payload: bytes = b"", *options: tuple[int, bytes]) -> bytes:
    return encode(Message(code, options, payload, Type.ACK, request.mid, request.token))


def empty(kind: Type, request: Message) -> bytes:
    return encode(Message(Code.EMPTY, type=kind, mid=request.mid))


async def test_a_piggybacked_answer(network: Network, server: Endpoint, device: Device, peer: Peer) -> None:
    task = asyncio.ensure_future(server.request(peer, READ))
    (request,) = await asked(network, device)
    assert (request.type, request.code, request.path, len(request.token)) == (Type.CON, Code.GET, ("3", "0"), 4)
    device.send(answer(request, Code.CONTENT, b"x"))
    assert (await network.run(_of(task))).payload == b"x"


async def _of(task: "asyncio.Future[Message]") -> Message:
    return await task


async def test_rfc_7252_section_4_2_repeats_with_doubled_times_then_gives_up(
    network: Network, server: Endpoint, device: Device, peer: Peer, clock: ManualClock
) -> None:
    began = clock.now()
    task = asyncio.ensure_future(server.request(peer, READ))
    times: list[int] = []
    while not task.done():
        await network.settle()
        seen = len(network.log)
        network.step()
        times += [clock.now() - began] * (len(network.log) - seen)
    with pytest.raises(carrier.TimedOut):
        await task
    gaps = [b - a for a, b in zip([0, *times], times, strict=False)]
    assert len({datagram for _, _, datagram in network.log}) == 1, "always the same bytes"
    assert len(times) == 4
    assert 2_000 <= gaps[0] <= 3_100
    assert all(abs(b - 2 * a) <= 300 for a, b in pairwise(gaps))
    assert clock.now() - began <= 93_100
    assert (server.counts.retransmitted, server.counts.given_up) == (4, 1)


async def test_a_lost_request_is_repeated_and_answered(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    network.lost = 1.0
    task = asyncio.ensure_future(server.request(peer, READ))
    await network.pass_time(1_000)
    network.lost = 0.0
    (request,) = await asked(network, device)
    device.send(answer(request, Code.CONTENT))
    assert (await network.run(_of(task))).code == Code.CONTENT
    await network.pass_time(100_000)
    assert device.got == [], "nothing is repeated after the answer"


async def test_rfc_7252_figure_20_a_separate_answer_is_acknowledged_each_time(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    task = asyncio.ensure_future(server.request(peer, READ))
    (request,) = await asked(network, device)
    device.send(empty(Type.ACK, request))
    await network.pass_time(60_000)
    assert device.got == [], "acknowledged, so it is not repeated"
    later = encode(Message(Code.CONTENT, (), b"late", Type.CON, 0xAD7B, request.token))
    device.send(later)
    assert (await network.run(_of(task))).payload == b"late"
    await network.pass_time(100)
    assert await device.ask(later) == [Message(Code.EMPTY, type=Type.ACK, mid=0xAD7B)]


async def test_an_answer_that_overtakes_its_acknowledgement(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    task = asyncio.ensure_future(server.request(peer, READ))
    (request,) = await asked(network, device)
    device.send(encode(Message(Code.CONTENT, (), b"now", Type.NON, 0xAD7B, request.token)))
    assert (await network.run(_of(task))).payload == b"now"
    device.send(empty(Type.ACK, request))
    await network.pass_time(60_000)
    assert device.got == []


async def test_an_acknowledged_request_without_an_answer_times_out(
    network: Network, server: Endpoint, device: Device, peer: Peer, clock: ManualClock
) -> None:
    began = clock.now()
    task = asyncio.ensure_future(server.request(peer, READ))
    (request,) = await asked(network, device)
    device.send(empty(Type.ACK, request))
    with pytest.raises(carrier.TimedOut):
        await network.run(_of(task))
    assert 119_000 < clock.now() - began < 121_000


async def test_a_reset_rejects(network: Network, server: Endpoint, device: Device, peer: Peer) -> None:
    task = asyncio.ensure_future(server.request(peer, READ))
    (request,) = await asked(network, device)
    device.send(empty(Type.RST, request))
    with pytest.raises(carrier.Rejected):
        await network.run(_of(task))


async def test_a_non_confirmable_request_is_sent_once(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    task = asyncio.ensure_future(server.request(peer, Message(Code.GET, type=Type.NON)))
    (request,) = await asked(network, device)
    assert request.type is Type.NON
    with pytest.raises(carrier.TimedOut):
        await network.run(_of(task))
    assert device.got == []


async def test_the_network_says_that_nobody_listens(network: Network, server: Endpoint, peer: Peer) -> None:
    task = asyncio.ensure_future(server.request(peer, READ))
    await network.settle()
    sent = network.log[0][2]
    server.unreachable(DEVICE, b"\x40\x01\xff\xff")  # of another message
    server.unreachable(("192.0.2.99", 1), sent)
    await network.settle()
    assert not task.done()
    server.unreachable(DEVICE, sent)
    with pytest.raises(carrier.Unreachable):
        await network.run(_of(task))


async def test_one_request_at_a_time_and_the_rest_in_line(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    tasks = [asyncio.ensure_future(server.request(peer, Message(Code.GET, path_options(f"/{n}")))) for n in range(3)]
    for number, task in enumerate(tasks):
        (request,) = await asked(network, device)
        await network.pass_time(100)
        assert device.got == []
        assert request.path == (str(number),)
        device.send(answer(request, Code.CONTENT))
        await network.run(_of(task))


async def test_the_next_request_goes_when_the_answer_to_the_last_one_will_come_by_itself(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    tasks = [asyncio.ensure_future(server.request(peer, READ)) for _ in range(2)]
    (first,) = await asked(network, device)
    device.send(empty(Type.ACK, first))
    (second,) = await asked(network, device)
    device.send(answer(second, Code.CONTENT, b"2"))
    device.send(encode(Message(Code.CONTENT, (), b"1", Type.NON, 9, first.token)))
    answers = [await network.run(_of(task)) for task in tasks]
    assert [a.payload for a in answers] == [b"1", b"2"]


async def test_a_cancelled_caller_ends_the_exchange_and_the_next_one_goes(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    task = asyncio.ensure_future(server.request(peer, READ))
    waiting = asyncio.ensure_future(server.request(peer, READ))
    last = asyncio.ensure_future(server.request(peer, WRITE))
    (first,) = await asked(network, device)
    waiting.cancel()
    task.cancel()
    (second,) = await asked(network, device)
    assert second.code == Code.PUT
    device.send(answer(second, Code.CHANGED))
    assert (await network.run(_of(last))).code == Code.CHANGED
    assert await device.ask(encode(Message(Code.CONTENT, (), b"", Type.CON, 5, first.token)), 90_000) != []
    assert task.cancelled()
    assert waiting.cancelled()


async def test_more_requests_than_may_wait_are_refused(network: Network, device: Device) -> None:
    server = network.endpoint(SERVER, limits=Limits(exchanges_per_peer=2))
    peer = server.peer_at(DEVICE)
    assert peer is not None
    tasks = [asyncio.ensure_future(server.request(peer, READ)) for _ in range(2)]
    await network.settle()
    with pytest.raises(carrier.TooMany):
        await server.request(peer, READ)
    await server.close()
    for task in tasks:
        with pytest.raises(carrier.PeerGone):
            await task


async def test_a_plain_peer_that_made_room_can_still_be_asked(network: Network, device: Device) -> None:
    server = network.endpoint(SERVER, limits=Limits(peers=1))
    peer = server.peer_at(DEVICE)
    assert peer is not None
    assert server.peer_at(("192.0.2.8", 1)) is not None
    assert peer.closed
    task = asyncio.ensure_future(server.request(peer, READ))
    (request,) = await asked(network, device)
    device.send(answer(request, Code.CONTENT))
    assert (await network.run(_of(task))).code == Code.CONTENT
    await server.close()


# Blocks.


async def test_rfc_7959_figure_2_an_answer_in_blocks_is_put_together(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    body = bytes(range(256)) + b"end"
    task = asyncio.ensure_future(server.request(peer, READ))
    tokens = set()
    for num in range(3):
        (request,) = await asked(network, device)
        value = request.option(Option.BLOCK2)
        assert (None if value is None else decode_block(value)) == (Block(num, False, 3) if num else None)
        tokens.add(request.token)
        block = (Option.BLOCK2, encode_block(Block(num, num < 2, 3)))
        device.send(answer(request, Code.CONTENT, body[num * 128 : num * 128 + 128], block))
    whole = await network.run(_of(task))
    assert (whole.code, whole.payload) == (Code.CONTENT, body)


async def broken(
    network: Network, server: Endpoint, device: Device, peer: Peer, *answers: tuple[bytes, Block, bytes]
) -> None:
    task = asyncio.ensure_future(server.request(peer, READ, limit=300))
    for payload, block, etag in answers:
        (request,) = await asked(network, device)
        device.send(answer(request, Code.CONTENT, payload, (Option.ETAG, etag), (Option.BLOCK2, encode_block(block))))
    with pytest.raises(carrier.TransferBroken):
        await network.run(_of(task))


@pytest.mark.parametrize(
    "answers",
    [
        [(b"x" * 128, Block(1, True, 3), b"a")],
        [(b"x" * 128, Block(0, True, 3), b"a"), (b"x" * 128, Block(0, True, 3), b"a")],
        [(b"x" * 128, Block(0, True, 3), b"a"), (b"y", Block(1, False, 3), b"b")],
        [(b"x" * 100, Block(0, True, 3), b"a")],
        [(b"x" * 256, Block(0, True, 4), b"a"), (b"x" * 256, Block(1, True, 4), b"a")],
    ],
    ids=["begins at 1", "twice the first", "another version", "short in the middle", "longer than the limit"],
)
async def test_blocks_that_do_not_fit_together(
    network: Network,
    server: Endpoint,
    device: Device,
    peer: Peer,
    answers: list[tuple[bytes, Block, bytes]],
) -> None:
    await broken(network, server, device, peer, *answers)


async def test_an_answer_with_a_reserved_block_size_is_broken(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    task = asyncio.ensure_future(server.request(peer, READ))
    (request,) = await asked(network, device)
    device.send(answer(request, Code.CONTENT, b"x", (Option.BLOCK2, b"\x07")))
    with pytest.raises(carrier.TransferBroken):
        await network.run(_of(task))


async def upload(
    network: Network,
    server: Endpoint,
    device: Device,
    peer: Peer,
    body: bytes,
    replies: list[tuple[Code, Block | None]],
) -> tuple[Message, list[tuple[Block, bytes]], list[int]]:
    """The last answer, the blocks that the device saw, and what progress was told."""
    told: list[int] = []
    task = asyncio.ensure_future(server.request(peer, WRITE, body=body, progress=told.append, szx=3))
    seen = []
    for code, block in replies:
        (request,) = await asked(network, device)
        value = request.option(Option.BLOCK1)
        assert value is not None
        seen.append((decode_block(value), request.payload))
        device.send(answer(request, code, b"", *([(Option.BLOCK1, encode_block(block))] if block else [])))
    return await network.run(_of(task)), seen, told


async def test_rfc_7959_figure_7_a_body_goes_up_in_blocks(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    body = bytes(range(256)) + b"end"
    replies: list[tuple[Code, Block | None]] = [
        (Code.CONTINUE, Block(0, True, 3)),
        (Code.CONTINUE, Block(1, True, 3)),
        (Code.CHANGED, Block(2, False, 3)),
    ]
    last, seen, told = await upload(network, server, device, peer, body, replies)
    assert last.code == Code.CHANGED
    assert [block for block, _ in seen] == [Block(0, True, 3), Block(1, True, 3), Block(2, False, 3)]
    assert b"".join(payload for _, payload in seen) == body
    assert told == [128, 256, 259]


@pytest.mark.parametrize("more", [False, True])
async def test_rfc_7959_figure_8_a_peer_that_acts_on_each_block_by_itself_gets_them_all(
    network: Network, server: Endpoint, device: Device, peer: Peer, more: bool
) -> None:
    """As Contiki's LwM2M engine does with a package: 2.04 to each block. Some leave the M bit in."""
    body = bytes(range(256)) + b"end"
    replies: list[tuple[Code, Block | None]] = [
        (Code.CHANGED, Block(0, more, 3)),
        (Code.CHANGED, Block(1, more, 3)),
        (Code.CHANGED, Block(2, False, 3)),
    ]
    last, seen, told = await upload(network, server, device, peer, body, replies)
    assert last.code == Code.CHANGED
    assert b"".join(payload for _, payload in seen) == body
    assert told == [128, 256, 259]


async def test_rfc_7959_figure_8_with_smaller_blocks(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    replies: list[tuple[Code, Block | None]] = [
        (Code.CHANGED, Block(0, False, 1)),
        (Code.CHANGED, Block(4, False, 1)),
        (Code.CHANGED, Block(5, False, 1)),
    ]
    _, seen, _ = await upload(network, server, device, peer, b"x" * 190, replies)
    assert [block for block, _ in seen] == [Block(0, True, 3), Block(4, True, 1), Block(5, False, 1)]


async def test_a_success_without_a_block_is_the_last_word(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    last, seen, told = await upload(network, server, device, peer, b"x" * 300, [(Code.CHANGED, None)])
    assert (last.code, len(seen), told) == (Code.CHANGED, 1, [300])


async def test_rfc_7959_figure_9_the_peer_wants_smaller_blocks(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    replies: list[tuple[Code, Block | None]] = [
        (Code.CONTINUE, Block(0, True, 1)),
        (Code.CONTINUE, Block(4, True, 1)),
        (Code.CHANGED, Block(5, False, 1)),
    ]
    _, seen, _ = await upload(network, server, device, peer, b"x" * 190, replies)
    assert [block for block, _ in seen] == [Block(0, True, 3), Block(4, True, 1), Block(5, False, 1)]
    assert [len(payload) for _, payload in seen] == [128, 32, 30]


async def test_rfc_7959_section_2_9_3_too_large_with_a_smaller_size_starts_again_in_that(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    replies: list[tuple[Code, Block | None]] = [
        (Code.REQUEST_ENTITY_TOO_LARGE, Block(0, True, 2)),
        (Code.CONTINUE, Block(0, True, 2)),
        (Code.CONTINUE, Block(1, True, 2)),
        (Code.CHANGED, Block(2, False, 2)),
    ]
    last, seen, _ = await upload(network, server, device, peer, b"x" * 140, replies)
    assert [block.num for block, _ in seen] == [0, 0, 1, 2]
    assert last.code == Code.CHANGED


@pytest.mark.parametrize("code", [Code.REQUEST_ENTITY_INCOMPLETE, Code.REQUEST_ENTITY_TOO_LARGE, Code.NOT_FOUND])
async def test_a_refused_block_is_the_answer(
    network: Network, server: Endpoint, device: Device, peer: Peer, code: Code
) -> None:
    last, seen, told = await upload(network, server, device, peer, b"x" * 300, [(code, None)])
    assert (last.code, len(seen), told) == (code, 1, [])


@pytest.mark.parametrize(
    ("code", "block"),
    [(Code.CONTINUE, None), (Code.CONTINUE, Block(1, True, 3)), (Code.CHANGED, Block(1, False, 3))],
)
async def test_a_success_for_another_block_is_broken(
    network: Network, server: Endpoint, device: Device, peer: Peer, code: Code, block: Block | None
) -> None:
    with pytest.raises(carrier.TransferBroken):
        await upload(network, server, device, peer, b"x" * 300, [(code, block)])


async def test_what_progress_raises_ends_the_upload(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    class Stopped(Exception):
        pass

    def stop(_sent: int) -> None:
        raise Stopped

    task = asyncio.ensure_future(server.request(peer, WRITE, body=b"x" * 5000, progress=stop))
    (request,) = await asked(network, device)
    device.send(answer(request, Code.CONTINUE, b"", (Option.BLOCK1, encode_block(Block(0, True, 6)))))
    with pytest.raises(Stopped):
        await network.run(_of(task))
    await network.pass_time(10_000)
    assert device.got == []


async def test_a_body_of_one_block_goes_without_a_block_option(
    network: Network, server: Endpoint, device: Device, peer: Peer
) -> None:
    told: list[int] = []
    task = asyncio.ensure_future(server.request(peer, WRITE, body=b"small", progress=told.append))
    (request,) = await asked(network, device)
    assert (request.option(Option.BLOCK1), request.payload) == (None, b"small")
    device.send(answer(request, Code.CHANGED))
    await network.run(_of(task))
    assert told == [5]


# Notifications.


NOTIFY = Message(Code.CONTENT, ((Option.OBSERVE, b"\x02"),), b"1", Type.CON, 0x77, b"\xaa\xbb")


async def test_an_observation_keeps_the_token_that_the_caller_chose(
    network: Network, server: Endpoint, device: Device, peer: Peer, noted: Noted
) -> None:
    observe = Message(Code.GET, ((Option.OBSERVE, b""), *path_options("/5/0/3")), token=b"\xaa\xbb")
    task = asyncio.ensure_future(server.request(peer, observe))
    (request,) = await asked(network, device)
    assert (request.token, request.uint(Option.OBSERVE)) == (b"\xaa\xbb", 0)
    device.send(answer(request, Code.CONTENT, b"0", (Option.OBSERVE, b"\x01")))
    await network.run(_of(task))
    assert noted.got == []
    assert await device.ask(encode(NOTIFY)) == [Message(Code.EMPTY, type=Type.ACK, mid=0x77)]
    assert noted.got == [(peer, NOTIFY)]


async def test_a_notification_comes_on_its_token_whatever_the_address(network: Network, noted: Noted) -> None:
    server = network.endpoint(SERVER, notified=noted)
    elsewhere = network.device(("198.51.100.1", 9))
    assert await elsewhere.ask(encode(NOTIFY)) == [Message(Code.EMPTY, type=Type.ACK, mid=0x77)]
    ((peer, message),) = noted.got
    assert (peer.address, message.token) == (elsewhere.address, b"\xaa\xbb")
    await server.close()


async def test_a_repeated_notification_is_noted_once_and_acknowledged_each_time(
    server: Endpoint, device: Device, noted: Noted
) -> None:
    first = await device.ask(encode(NOTIFY))
    assert await device.ask(encode(NOTIFY)) == first
    assert len(noted.got) == 1


@pytest.mark.parametrize("kind", [Type.CON, Type.NON])
async def test_rfc_7641_section_3_6_what_nobody_wants_gets_a_reset(
    server: Endpoint, device: Device, noted: Noted, kind: Type
) -> None:
    noted.wanted = False
    notification = encode(Message(Code.CONTENT, (), b"1", kind, 0x77, b"\x09"))
    assert await device.ask(notification) == [Message(Code.EMPTY, type=Type.RST, mid=0x77)]


async def test_a_wanted_non_confirmable_notification_gets_nothing(
    server: Endpoint, device: Device, noted: Noted
) -> None:
    assert await device.ask(encode(Message(Code.CONTENT, (), b"1", Type.NON, 0x77, b"\x09"))) == []
    assert len(noted.got) == 1


async def test_a_notification_is_acknowledged_when_it_is_committed(
    network: Network, server: Endpoint, device: Device, noted: Noted
) -> None:
    committed = asyncio.Event()

    async def commit() -> bool:
        await committed.wait()
        return True

    noted.wanted = commit
    assert await device.ask(encode(NOTIFY)) == []
    assert await device.ask(encode(NOTIFY)) == []
    assert len(noted.got) == 1
    committed.set()
    await network.pass_time(100)
    assert device.got == [Message(Code.EMPTY, type=Type.ACK, mid=0x77)]


@pytest.mark.parametrize("later", [False, True])
async def test_a_notification_that_could_not_be_taken_is_not_acknowledged_and_may_come_again(
    server: Endpoint, device: Device, noted: Noted, later: bool
) -> None:
    async def fails() -> bool:
        await asyncio.sleep(0)
        raise RuntimeError("no commit")

    noted.wanted = fails if later else RuntimeError("no commit")
    assert await device.ask(encode(NOTIFY)) == []
    noted.wanted = True
    assert await device.ask(encode(NOTIFY)) == [Message(Code.EMPTY, type=Type.ACK, mid=0x77)]
    assert len(noted.got) == 2


async def test_a_notification_with_an_option_that_is_not_understood_gets_a_reset(
    server: Endpoint, device: Device, noted: Noted
) -> None:
    unknown = Message(Code.CONTENT, ((9, b""),), b"", Type.CON, 0x78, b"\xaa\xbb")
    assert await device.ask(encode(unknown)) == [Message(Code.EMPTY, type=Type.RST, mid=0x78)]
    assert noted.got == []
