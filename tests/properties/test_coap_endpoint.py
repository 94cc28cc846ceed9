"""Whatever peers send, an endpoint raises nothing, keeps to its bounds, and answers the next good request."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from openiodm.protocols.coap.carrier import Peer
from openiodm.protocols.coap.codec import Code, Message, Option, Type, decode, encode, path_options
from openiodm.protocols.coap.limits import Limits
from tests.conftest import ManualClock
from tests.support.coap import SERVER, Network

LIMITS = Limits(
    peers=4,
    remembered=20,
    remembered_per_peer=5,
    remembered_bytes=3_000,
    upload_bytes=300,
    uploads=2,
    handlers=3,
    handlers_per_peer=2,
    unacknowledged_per_peer=2,
)
BLOCKS = st.integers(0, 3).flatmap(lambda n: st.binary(min_size=n, max_size=n))
OPTION = st.one_of(
    st.tuples(st.sampled_from([Option.BLOCK1, Option.BLOCK2]), BLOCKS),
    st.tuples(st.sampled_from([Option.OBSERVE, Option.SIZE1, Option.SIZE2, Option.ACCEPT]), st.binary(max_size=3)),
    st.tuples(
        st.sampled_from([Option.URI_PATH, Option.URI_QUERY]), st.sampled_from([b"slow", b"long", b"bad", b"\xff"])
    ),
    st.tuples(st.integers(0, 300), st.binary(max_size=5)),
)
MESSAGE = st.builds(
    Message,
    code=st.sampled_from([*Code, 0x1F, 0x48, 0xBF]),
    options=st.lists(OPTION, max_size=4).map(lambda options: tuple(sorted(options, key=lambda o: o[0]))),
    payload=st.sampled_from([b"", b"x" * 16, b"y" * 32, b"z" * 1024, b"w" * 2100]),
    type=st.sampled_from(Type),
    mid=st.integers(0, 6),
    token=st.sampled_from([b"", b"a", b"12345678"]),
).map(lambda m: b"\x40\x00\x00\x01" if m.code == Code.EMPTY else encode(m))
DATAGRAM = MESSAGE | st.binary(max_size=30)
STEP = st.tuples(st.integers(1, 6), DATAGRAM) | st.integers(1, 300_000)


def handle(_peer: Peer, request: Message) -> "Message | Coroutine[Any, Any, Message | None] | None":
    match request.path:
        case ("slow", *_):
            return slow()
        case ("long", *_):
            return Message(Code.CONTENT, payload=b"l" * 3_000)
        case ("bad", *_):
            raise ValueError("a bug")
        case ():
            return None
    return Message(Code.CONTENT, payload=b"fine")


async def slow() -> Message | None:
    for _ in range(30):
        await asyncio.sleep(0)
    return Message(Code.CHANGED, payload=b"at last")


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_nothing_that_peers_send_is_too_much(steps: list[tuple[int, bytes] | int]) -> None:
    asyncio.run(_play(steps))


async def _play(steps: list[tuple[int, bytes] | int]) -> None:
    clock = ManualClock()
    network = Network(clock)
    endpoint = network.endpoint(SERVER, handle, lambda _peer, message: message.token != b"a", limits=LIMITS)
    for step in steps:
        if isinstance(step, int):
            clock.advance(step)
            endpoint.tick()
        else:
            port, datagram = step
            endpoint.receive(datagram, ("192.0.2.9", port))
        await asyncio.sleep(0)
        assert endpoint.peers <= LIMITS.peers
        assert all(len(datagram) < 1_200 for _, _, datagram in network.log)
    clock.advance(300_000)
    endpoint.tick()
    for _ in range(40):
        await asyncio.sleep(0)
    network.log.clear()
    get = Message(Code.GET, path_options("/fine"), mid=999, token=b"ok")
    endpoint.receive(encode(get), ("192.0.2.9", 7))
    answers = [decode(datagram) for _, to, datagram in network.log if to == ("192.0.2.9", 7)]
    assert [(answer.code, answer.payload, answer.token) for answer in answers] == [(Code.CONTENT, b"fine", b"ok")]
    await endpoint.close()
    assert endpoint.peers == 0
