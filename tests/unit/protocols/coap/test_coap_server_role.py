"""The server role of an endpoint, in memory: repetitions, answers at once and later, bounds, hostile requests."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from openiodm.protocols.coap.carrier import Peer
from openiodm.protocols.coap.codec import (
    Block,
    CoapFormatError,
    Code,
    Message,
    Option,
    Type,
    decode_block,
    encode,
    encode_block,
    path_options,
)
from openiodm.protocols.coap.limits import Limits
from tests.conftest import ManualClock
from tests.support.coap import DEVICE, SERVER, Device, Network

PATH = path_options("/rd")
GET = encode(Message(Code.GET, PATH, mid=0x10, token=b"\x01"))
POST = encode(Message(Code.POST, PATH, b"hello", mid=0x11, token=b"\x02"))


class Server:
    """An endpoint whose answers a test decides, and the requests that came."""

    def __init__(self, network: Network, limits: Limits | None = None) -> None:
        self.requests: list[tuple[Peer, Message]] = []
        self.answer: object = Message(Code.CONTENT, payload=b"22.3 C")
        self.closed: list[Peer] = []
        self.endpoint = network.endpoint(SERVER, self.handle, limits=limits, closed=self.closed.append)

    def handle(self, peer: Peer, request: Message) -> Message | None:
        self.requests.append((peer, request))
        answer = self.answer
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            answer = answer()
        return answer  # type: ignore[return-value]


@pytest.fixture
def network(clock: ManualClock) -> Network:
    return Network(clock)


@pytest.fixture
async def server(network: Network) -> AsyncIterator[Server]:
    made = Server(network)
    yield made
    await made.endpoint.close()


@pytest.fixture
def device(network: Network) -> Device:
    return network.device()


async def test_rfc_7252_figure_16_the_answer_comes_with_the_acknowledgement(server: Server, device: Device) -> None:
    assert await device.ask(GET) == [Message(Code.CONTENT, (), b"22.3 C", Type.ACK, 0x10, b"\x01")]
    peer, request = server.requests[0]
    assert (peer.address, peer.identity, peer.cipher, request.path) == (DEVICE, None, None, ("rd",))


async def test_rfc_7252_figure_22_a_non_confirmable_request_gets_a_non_confirmable_answer(
    server: Server, device: Device
) -> None:
    (answer,) = await device.ask(encode(Message(Code.GET, PATH, b"", Type.NON, 0x10, b"\x75")))
    assert (answer.type, answer.code, answer.token) == (Type.NON, Code.CONTENT, b"\x75")


async def test_a_repeated_request_is_handled_once_and_answered_each_time(server: Server, device: Device) -> None:
    first = await device.ask(POST)
    server.answer = Message(Code.CONFLICT)
    assert await device.ask(POST) == first
    assert len(server.requests) == 1
    assert server.endpoint.counts.repeated == 1


async def test_a_repetition_is_recognised_for_the_exchange_lifetime_and_no_longer(
    server: Server, device: Device, network: Network
) -> None:
    await device.ask(POST)
    await network.pass_time(246_000)
    await device.ask(POST)
    assert len(server.requests) == 1
    await network.pass_time(1_000)
    await device.ask(POST)
    assert len(server.requests) == 2


async def test_another_message_with_the_id_of_an_older_one_is_new(server: Server, device: Device) -> None:
    await device.ask(POST)
    await device.ask(encode(Message(Code.POST, PATH, b"anew", mid=0x11, token=b"\x09")))
    assert [request.payload for _, request in server.requests] == [b"hello", b"anew"]


async def test_the_same_bytes_of_another_peer_are_new(server: Server, device: Device, network: Network) -> None:
    await device.ask(POST)
    await network.device(("192.0.2.8", 1)).ask(POST)
    assert len(server.requests) == 2


async def test_a_repeated_get_is_answered_anew_and_nothing_is_kept_of_it(server: Server, device: Device) -> None:
    assert await device.ask(GET) == await device.ask(GET)
    assert len(server.requests) == 2


async def test_rfc_7252_figure_20_an_answer_that_takes_its_time_comes_by_itself(
    server: Server, device: Device, network: Network
) -> None:
    ready = asyncio.Event()

    async def later() -> Message:
        await ready.wait()
        return Message(Code.CONTENT, payload=b"22.3 C")

    server.answer = later
    assert await device.ask(GET, 900) == []
    assert await device.ask(GET, 400) == [Message(Code.EMPTY, type=Type.ACK, mid=0x10)]  # of the first one, at 1 s
    assert await device.ask(GET, 200) == [Message(Code.EMPTY, type=Type.ACK, mid=0x10)]
    assert len(server.requests) == 1
    device.got.clear()
    ready.set()
    await network.pass_time(100)
    (answer,) = device.got
    assert (answer.type, answer.code, answer.token, answer.payload) == (Type.CON, Code.CONTENT, b"\x01", b"22.3 C")
    assert answer.mid != 0x10
    await network.pass_time(3_100)
    assert device.got[1:] == [answer], "not acknowledged, so it is sent again"
    await device.ask(encode(Message(Code.EMPTY, type=Type.ACK, mid=answer.mid)), 60_000)
    assert device.got == []


async def test_answers_that_nobody_acknowledges_do_not_pile_up(network: Network) -> None:
    server = Server(network, Limits(unacknowledged_per_peer=2, handlers_per_peer=10))
    device, ready = network.device(), asyncio.Event()

    async def later() -> Message:
        await ready.wait()
        return Message(Code.CHANGED)

    server.answer = later
    for mid in range(5):
        device.send(encode(Message(Code.POST, PATH, mid=mid, token=bytes((mid,)))))
    await network.pass_time(1_500)
    device.got.clear()
    ready.set()
    await network.pass_time(100)
    assert sorted(answer.type for answer in device.got) == [Type.CON, Type.CON, Type.NON, Type.NON, Type.NON]
    await server.endpoint.close()


async def test_an_answer_that_is_ready_soon_comes_with_the_acknowledgement(server: Server, device: Device) -> None:
    async def soon() -> Message:
        await asyncio.sleep(0)
        return Message(Code.CHANGED)

    server.answer = soon
    assert await device.ask(POST) == [Message(Code.CHANGED, (), b"", Type.ACK, 0x11, b"\x02")]
    assert await device.ask(POST) == [Message(Code.CHANGED, (), b"", Type.ACK, 0x11, b"\x02")]
    assert len(server.requests) == 1


async def test_no_answer_is_an_empty_acknowledgement(server: Server, device: Device) -> None:
    server.answer = None
    assert await device.ask(POST) == [Message(Code.EMPTY, type=Type.ACK, mid=0x11)]
    assert await device.ask(encode(Message(Code.POST, PATH, type=Type.NON, mid=0x12))) == []


async def test_what_a_handler_raises_is_5_00_and_a_bad_option_value_4_00(server: Server, device: Device) -> None:
    server.answer = RuntimeError("a bug")
    assert [answer.code for answer in await device.ask(GET)] == [Code.INTERNAL_SERVER_ERROR]
    server.answer = CoapFormatError("reserved block size")
    (answer,) = await device.ask(GET)
    assert (answer.code, answer.payload) == (Code.BAD_REQUEST, b"reserved block size")


async def test_what_an_awaitable_raises_is_5_00(server: Server, device: Device) -> None:
    async def fails() -> Message:
        await asyncio.sleep(0)
        raise RuntimeError("a bug")

    server.answer = fails
    assert [answer.code for answer in await device.ask(GET)] == [Code.INTERNAL_SERVER_ERROR]


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ((Option.IF_MATCH, b"x"), Code.BAD_OPTION),
        ((9, b""), Code.BAD_OPTION),
        ((65001, b""), Code.BAD_OPTION),
        ((Option.ACCEPT, b"123"), Code.BAD_OPTION),
        ((Option.URI_HOST, b""), Code.BAD_OPTION),
        ((Option.BLOCK2, b"1234"), Code.BAD_OPTION),
        ((Option.BLOCK2, b"\x07"), Code.BAD_REQUEST),
        ((Option.BLOCK1, b"\x0f"), Code.BAD_REQUEST),
        ((Option.PROXY_URI, b"coap://elsewhere"), Code.PROXYING_NOT_SUPPORTED),
        ((65000, b"elective"), Code.CONTENT),
    ],
)
async def test_rfc_7252_section_5_4_1_critical_options(
    server: Server, device: Device, option: tuple[int, bytes], code: Code
) -> None:
    answers = await device.ask(encode(Message(Code.GET, (*PATH, option), mid=1)))
    assert [answer.code for answer in answers] == [code]
    silent = await device.ask(encode(Message(Code.GET, (*PATH, option), type=Type.NON, mid=2)))
    assert [answer.code for answer in silent] == ([code] if code == Code.CONTENT else [])


async def test_a_critical_option_that_comes_twice_is_refused(server: Server, device: Device) -> None:
    twice = ((Option.ACCEPT, b"\x2a"), (Option.ACCEPT, b"\x28"))
    assert [a.code for a in await device.ask(encode(Message(Code.GET, (*PATH, *twice), mid=1)))] == [Code.BAD_OPTION]


async def test_rfc_7252_section_4_3_a_ping_gets_a_reset(server: Server, device: Device) -> None:
    assert await device.ask(bytes.fromhex("4000abcd")) == [Message(Code.EMPTY, type=Type.RST, mid=0xABCD)]


@pytest.mark.parametrize(
    ("datagram", "answers"),
    [
        ("4001 1234 ff", [Message(Code.EMPTY, type=Type.RST, mid=0x1234)]),
        ("40c1 1234", [Message(Code.EMPTY, type=Type.RST, mid=0x1234)]),
        ("5001 1234 ff", []),
        ("6001 1234 ff", []),
        ("8001 1234", []),
        ("", []),
        ("6001 1234", []),  # a request as an acknowledgement
        ("7045 1234", []),  # a reset that is not empty
        ("6000 1234", []),
        ("7000 1234", []),
    ],
)
async def test_what_is_no_message_gets_a_reset_if_confirmable_and_reaches_nobody(
    server: Server, device: Device, datagram: str, answers: list[Message]
) -> None:
    assert await device.ask(bytes.fromhex(datagram)) == answers
    assert server.requests == []
    assert [a.code for a in await device.ask(GET)] == [Code.CONTENT]


async def test_a_datagram_longer_than_the_limit_should_come_in_blocks(server: Server, device: Device) -> None:
    (answer,) = await device.ask(encode(Message(Code.POST, PATH, b"x" * 2100, mid=7)))
    assert (answer.code, answer.option(Option.BLOCK1)) == (Code.REQUEST_ENTITY_TOO_LARGE, b"\x06")
    assert server.requests == []


# Block1, RFC 7959 section 3.2.


def block1(num: int, more: bool, payload: bytes, szx: int = 3, path: str = "/rd") -> bytes:
    value = encode_block(Block(num, more, szx))
    options = (*path_options(path), (Option.BLOCK1, value))
    return encode(Message(Code.POST, options, payload, mid=0x200 + num * 8 + szx, token=b"\x05"))


async def codes(device: Device, *datagrams: bytes) -> list[int]:
    return [answer.code for datagram in datagrams for answer in await device.ask(datagram)]


async def test_rfc_7959_figure_7_an_upload_in_blocks(server: Server, device: Device) -> None:
    server.answer = Message(Code.CHANGED)
    body = bytes(range(256)) + b"end"
    (first,) = await device.ask(block1(0, True, body[:128]))
    assert (first.code, decode_block(first.option(Option.BLOCK1) or b"")) == (Code.CONTINUE, Block(0, True, 3))
    (second,) = await device.ask(block1(1, True, body[128:256]))
    assert (second.code, decode_block(second.option(Option.BLOCK1) or b"")) == (Code.CONTINUE, Block(1, True, 3))
    assert server.requests == []
    (last,) = await device.ask(block1(2, False, body[256:]))
    assert (last.code, decode_block(last.option(Option.BLOCK1) or b"")) == (Code.CHANGED, Block(2, False, 3))
    assert [request.payload for _, request in server.requests] == [body]


async def test_repeated_blocks_are_answered_and_counted_once(server: Server, device: Device) -> None:
    parts = [block1(0, True, b"a" * 128), block1(1, False, b"b")]
    again = [parts[0], parts[0], parts[1], parts[1]]
    assert await codes(device, *again) == [Code.CONTINUE, Code.CONTINUE, Code.CONTENT, Code.CONTENT]
    assert [request.payload for _, request in server.requests] == [b"a" * 128 + b"b"]


async def test_an_upload_may_start_again_at_block_0(server: Server, device: Device) -> None:
    await codes(device, block1(0, True, b"a" * 128), block1(0, True, b"c" * 64, 2), block1(1, False, b"d", 2))
    assert [request.payload for _, request in server.requests] == [b"c" * 64 + b"d"]


@pytest.mark.parametrize(
    ("blocks", "code"),
    [
        ([block1(1, False, b"x")], Code.REQUEST_ENTITY_INCOMPLETE),
        ([block1(0, True, b"x" * 128), block1(2, False, b"x")], Code.REQUEST_ENTITY_INCOMPLETE),
        ([block1(0, True, b"x" * 128), block1(1, False, b"x", path="/other")], Code.REQUEST_ENTITY_INCOMPLETE),
        ([block1(0, True, b"x" * 100)], Code.BAD_REQUEST),
        ([block1(0, True, b"x" * 128, 7 - 4)[:-1] + b"y", block1(0, False, b"z" * 200, 3)], Code.CONTENT),
    ],
    ids=["no first block", "a gap", "another resource", "a short block", "a new start in one block"],
)
async def test_blocks_that_do_not_fit_together(server: Server, device: Device, blocks: list[bytes], code: Code) -> None:
    assert (await codes(device, *blocks))[-1] == code


async def test_an_upload_longer_than_the_limit_is_4_13(network: Network) -> None:
    server = Server(network, Limits(upload_bytes=200))
    device = network.device()
    assert await codes(device, block1(0, True, b"x" * 128), block1(1, True, b"x" * 128)) == [
        Code.CONTINUE,
        Code.REQUEST_ENTITY_TOO_LARGE,
    ]
    assert await codes(device, block1(2, False, b"x")) == [Code.REQUEST_ENTITY_INCOMPLETE]
    await server.endpoint.close()


async def test_the_oldest_upload_makes_room(network: Network) -> None:
    server = Server(network, Limits(uploads=2))
    devices = [network.device(("192.0.2.9", port)) for port in (1, 2, 3)]
    for device in devices:
        assert await codes(device, block1(0, True, b"x" * 128)) == [Code.CONTINUE]
    ends = [await codes(device, block1(1, False, b"y")) for device in devices]
    assert ends == [[Code.REQUEST_ENTITY_INCOMPLETE], [Code.CONTENT], [Code.CONTENT]]
    await server.endpoint.close()


async def test_an_upload_is_forgotten_after_the_exchange_lifetime(
    server: Server, device: Device, network: Network
) -> None:
    await device.ask(block1(0, True, b"x" * 128))
    await network.pass_time(248_000)
    assert await codes(device, block1(1, False, b"y")) == [Code.REQUEST_ENTITY_INCOMPLETE]


# Block2.


async def test_a_long_answer_is_cut_and_comes_block_by_block(server: Server, device: Device) -> None:
    body = bytes(range(256)) * 10
    server.answer = Message(Code.CONTENT, ((Option.CONTENT_FORMAT, b"\x28"),), body)
    got = b""
    for num in range(3):
        asked = () if not num else ((Option.BLOCK2, encode_block(Block(num, False, 6))),)
        (answer,) = await device.ask(encode(Message(Code.GET, (*PATH, *asked), mid=num)))
        assert decode_block(answer.option(Option.BLOCK2) or b"") == Block(num, num < 2, 6)
        assert answer.uint(Option.CONTENT_FORMAT) == 40
        got += answer.payload
    assert got == body


async def test_a_short_answer_is_cut_when_a_smaller_block_is_asked_for(server: Server, device: Device) -> None:
    asked = (Option.BLOCK2, encode_block(Block(0, False, 0)))
    server.answer = Message(Code.CONTENT, payload=b"x" * 20)
    (answer,) = await device.ask(encode(Message(Code.GET, (*PATH, asked), mid=1)))
    assert (answer.payload, decode_block(answer.option(Option.BLOCK2) or b"")) == (b"x" * 16, Block(0, True, 0))


async def test_an_error_is_not_cut(server: Server, device: Device) -> None:
    server.answer = Message(Code.NOT_FOUND)
    asked = (Option.BLOCK2, encode_block(Block(3, False, 0)))
    assert [a.code for a in await device.ask(encode(Message(Code.GET, (*PATH, asked), mid=1)))] == [Code.NOT_FOUND]


async def test_a_long_answer_to_a_request_that_is_not_safe_is_our_mistake(server: Server, device: Device) -> None:
    server.answer = Message(Code.CHANGED, payload=b"x" * 1025)
    assert await codes(device, POST) == [Code.INTERNAL_SERVER_ERROR]


# Bounds.


async def test_more_requests_at_once_than_a_peer_may_have_are_5_03(network: Network) -> None:
    server = Server(network, Limits(handlers_per_peer=2))
    device = network.device()
    gate = asyncio.Event()

    async def later() -> Message:
        await gate.wait()
        return Message(Code.CHANGED)

    server.answer = later
    for mid in range(3):
        device.send(encode(Message(Code.POST, PATH, mid=mid, token=bytes((mid,)))))
    await network.pass_time(100)
    assert [(answer.code, answer.uint(Option.MAX_AGE)) for answer in device.got] == [(Code.SERVICE_UNAVAILABLE, 5)]
    gate.set()
    await network.pass_time(100)
    assert [answer.code for answer in device.got[1:]] == [Code.CHANGED, Code.CHANGED]
    await server.endpoint.close()


async def test_the_peer_not_heard_of_for_longest_makes_room_but_not_a_busy_one(network: Network) -> None:
    server = Server(network, Limits(peers=3))
    devices = [network.device(("192.0.2.9", port)) for port in (1, 2, 3, 4, 5)]
    for device in devices[:3]:
        await device.ask(GET)
    peers = [peer for peer, _ in server.requests]
    peers[0].busy = True
    await devices[1].ask(GET)
    await devices[3].ask(GET)
    await devices[4].ask(GET)
    assert server.closed == [peers[2], peers[1]]
    assert server.endpoint.peers == 3
    assert not peers[0].closed
    await server.endpoint.close()


async def test_a_full_table_of_busy_peers_refuses_new_ones(network: Network) -> None:
    server = Server(network, Limits(peers=2))
    for port in (1, 2):
        await network.device(("192.0.2.9", port)).ask(GET)
    for peer, _ in server.requests:
        peer.busy = True
    assert await network.device(("192.0.2.9", 3)).ask(GET) == []
    assert server.endpoint.counts.peers_refused == 1
    assert server.closed == []
    await server.endpoint.close()


async def test_closing_ends_what_is_under_way(network: Network) -> None:
    server = Server(network)
    ended = []

    async def forever() -> Message:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)
        return Message(Code.CHANGED)

    server.answer = forever
    await network.device().ask(POST)
    await server.endpoint.close()
    assert ended == [True]
    assert [peer.closed for peer in server.closed] == [True]
