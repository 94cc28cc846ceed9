"""An endpoint on real sockets of the loopback: bursts, ICMP, IPv6, and aiocoap as the other side, both ways."""

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Callable

import aiocoap
import aiocoap.resource
import pytest
import uvloop

from openiodm.clock import Millis
from openiodm.protocols.coap import carrier
from openiodm.protocols.coap.blocks import serve
from openiodm.protocols.coap.carrier import Peer
from openiodm.protocols.coap.codec import Code, Message, Option, decode, encode, path_options
from openiodm.protocols.coap.endpoint import Endpoint
from openiodm.protocols.coap.limits import DRAIN, Limits, Timing
from openiodm.protocols.coap.udp import UdpSocket
from tests.support.coap_udp import endpoint_on_loopback

FIRMWARE = hashlib.shake_256(b"firmware").digest(50_000)
HOST = "127.0.0.1"


class Lab:
    """Resources that other implementations ask for."""

    def __init__(self) -> None:
        self.uploads: list[bytes] = []

    def handle(self, peer: Peer, request: Message) -> "Message | asyncio.Future[Message | None]":
        match request.path:
            case ("fw",):
                return serve(request, FIRMWARE, b"v1")
            case ("long",):
                return Message(Code.CONTENT, payload=FIRMWARE[:5_000])
            case ("up",):
                self.uploads.append(request.payload)
                return Message(Code.CHANGED)
            case ("slow",):
                return asyncio.ensure_future(self._slow())
        return Message(Code.NOT_FOUND)

    async def _slow(self) -> Message | None:
        await asyncio.sleep(0.3)  # more than the time after which it comes by itself
        return Message(Code.CONTENT, payload=b"at last")


@pytest.fixture
async def lab() -> AsyncIterator[tuple[Lab, Endpoint, int]]:
    made = Lab()
    limits, timing = Limits(upload_bytes=100_000), Timing(ack_delay=Millis(50))
    async with endpoint_on_loopback(made.handle, limits=limits, timing=timing) as (endpoint, port):
        yield made, endpoint, port


@pytest.fixture
async def client() -> AsyncIterator[aiocoap.Context]:
    context = await aiocoap.Context.create_client_context(transports=["simple6"])
    yield context
    await context.shutdown()


async def ask(
    client: aiocoap.Context, code: aiocoap.Code, port: int, path: str, payload: bytes = b""
) -> aiocoap.Message:
    request = aiocoap.Message(code=code, uri=f"coap://{HOST}:{port}/{path}", payload=payload)
    return await asyncio.wait_for(client.request(request).response, 60)


async def test_aiocoap_gets_a_firmware_in_blocks(lab: tuple[Lab, Endpoint, int], client: aiocoap.Context) -> None:
    answer = await ask(client, aiocoap.GET, lab[2], "fw")
    assert (answer.code, answer.payload) == (aiocoap.CONTENT, FIRMWARE)


async def test_aiocoap_gets_a_long_answer_in_blocks(lab: tuple[Lab, Endpoint, int], client: aiocoap.Context) -> None:
    assert (await ask(client, aiocoap.GET, lab[2], "long")).payload == FIRMWARE[:5_000]


async def test_aiocoap_puts_a_body_in_blocks(lab: tuple[Lab, Endpoint, int], client: aiocoap.Context) -> None:
    answer = await ask(client, aiocoap.PUT, lab[2], "up", FIRMWARE)
    assert (answer.code, lab[0].uploads) == (aiocoap.CHANGED, [FIRMWARE])


async def test_aiocoap_takes_an_answer_that_comes_by_itself(
    lab: tuple[Lab, Endpoint, int], client: aiocoap.Context
) -> None:
    assert (await ask(client, aiocoap.GET, lab[2], "slow")).payload == b"at last"
    assert lab[1].counts.given_up == 0


async def test_aiocoap_is_told_what_there_is_not(lab: tuple[Lab, Endpoint, int], client: aiocoap.Context) -> None:
    assert (await ask(client, aiocoap.GET, lab[2], "nothing")).code == aiocoap.NOT_FOUND


# aiocoap as the device.


class Firmware(aiocoap.resource.Resource):
    """Object 5's package, as aiocoap takes it, and something long to read."""

    def __init__(self) -> None:
        super().__init__()
        self.got = b""

    async def render_put(self, request: aiocoap.Message) -> aiocoap.Message:
        self.got = request.payload
        return aiocoap.Message(code=aiocoap.CHANGED)

    async def render_get(self, request: aiocoap.Message) -> aiocoap.Message:
        return aiocoap.Message(payload=FIRMWARE[:7_000])


class State(aiocoap.resource.ObservableResource):
    """An observed resource that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.value = 0

    def move(self) -> None:
        self.value += 1
        self.updated_state()

    async def render_get(self, request: aiocoap.Message) -> aiocoap.Message:
        return aiocoap.Message(payload=str(self.value).encode())


class AiocoapDevice:
    """A device on aiocoap's server."""

    def __init__(self) -> None:
        self.firmware, self.state = Firmware(), State()

    async def start(self) -> int:
        site = aiocoap.resource.Site()
        site.add_resource(["5", "0", "0"], self.firmware)
        site.add_resource(["5", "0", "3"], self.state)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        self._context = await aiocoap.Context.create_server_context(
            site, bind=(HOST, port), transports=["simplesocketserver"]
        )
        return port

    async def stop(self) -> None:
        await self._context.shutdown()


@pytest.fixture
async def device() -> AsyncIterator[tuple[AiocoapDevice, int]]:
    made = AiocoapDevice()
    port = await made.start()
    yield made, port
    await made.stop()


async def test_we_push_a_firmware_to_aiocoap_and_read_it_back(device: tuple[AiocoapDevice, int]) -> None:
    made, port = device
    async with endpoint_on_loopback() as (endpoint, _):
        peer = endpoint.peer_at((HOST, port))
        assert peer is not None
        put = Message(Code.PUT, path_options("/5/0/0"))
        assert (await endpoint.request(peer, put, body=FIRMWARE)).code == Code.CHANGED
        assert made.firmware.got == FIRMWARE
        got = await endpoint.request(peer, Message(Code.GET, path_options("/5/0/0")))
        assert got.payload == FIRMWARE[:7_000]


async def test_we_observe_aiocoap(device: tuple[AiocoapDevice, int]) -> None:
    made, port = device
    noted: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()

    def note(_peer: Peer, message: Message) -> bool:
        noted.put_nowait((message.token, message.payload))
        return True

    async with endpoint_on_loopback(notified=note) as (endpoint, _):
        peer = endpoint.peer_at((HOST, port))
        assert peer is not None
        observe = Message(Code.GET, ((Option.OBSERVE, b""), *path_options("/5/0/3")), token=b"12345678")
        assert (await endpoint.request(peer, observe)).payload == b"0"
        for value in (b"1", b"2"):
            made.state.move()
            assert await asyncio.wait_for(noted.get(), 60) == (b"12345678", value)


# Sockets.


def exchange(port: int, datagrams: list[bytes], host: str = HOST, family: int = socket.AF_INET) -> list[Message]:
    """Sends all at once, and reads as many answers."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        sock.connect((host, port))
        for datagram in datagrams:
            sock.send(datagram)
        return [decode(sock.recv(2_000)) for _ in datagrams]


async def test_a_burst_is_answered_to_the_last_datagram(lab: tuple[Lab, Endpoint, int]) -> None:
    count = 2 * DRAIN + 1  # small answers, so that all fit the buffer of the asking socket
    burst = [encode(Message(Code.GET, path_options("/nothing"), mid=mid)) for mid in range(count)]
    answers = await asyncio.to_thread(exchange, lab[2], burst)
    assert sorted(answer.mid for answer in answers) == list(range(count))


async def test_ipv6(lab: tuple[Lab, Endpoint, int]) -> None:
    async with endpoint_on_loopback(lab[0].handle, host="::1") as (_, port):
        get = encode(Message(Code.GET, path_options("/nothing"), mid=1))
        (answer,) = await asyncio.to_thread(exchange, port, [get], "::1", socket.AF_INET6)
        assert answer.code == Code.NOT_FOUND


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_port_where_nobody_listens_is_told_at_once_and_the_others_are_heard(run: Callable[..., None]) -> None:
    """The server runs on uvloop, which gives up a socket with an error where asyncio does not."""
    run(_nobody_listens())


async def _nobody_listens() -> None:
    get = encode(Message(Code.GET, path_options("/nothing"), mid=1))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        gone = probe.getsockname()
    async with endpoint_on_loopback(Lab().handle) as (endpoint, port):
        peer = endpoint.peer_at(gone)
        assert peer is not None
        for _ in range(3):
            with pytest.raises(carrier.Unreachable):
                await asyncio.wait_for(endpoint.request(peer, Message(Code.GET)), 30)
        cpu = time.process_time()
        await asyncio.sleep(0.6)
        assert time.process_time() - cpu < 0.4, "woken again and again by an error that nobody reads"
        assert [m.code for m in await asyncio.to_thread(exchange, port, [get])] == [Code.NOT_FOUND]


async def test_a_device_that_went_away_does_not_disturb_the_others(lab: tuple[Lab, Endpoint, int]) -> None:
    get = encode(Message(Code.GET, path_options("/fw"), mid=1))
    for _ in range(20):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
            gone.sendto(get, (HOST, lab[2]))
    answers = await asyncio.to_thread(exchange, lab[2], [get])
    assert [answer.code for answer in answers] == [Code.CONTENT]


async def test_what_a_receiver_raises_takes_one_datagram_and_not_the_port() -> None:
    calls = []

    def handle(_peer: Peer, request: Message) -> Message:
        calls.append(request.mid)
        return Message(Code.CONTENT, payload="no bytes" if len(calls) == 1 else b"bytes")  # type: ignore[arg-type]

    async with endpoint_on_loopback(handle) as (_, port):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unlucky:
            unlucky.sendto(encode(Message(Code.GET, mid=1)), (HOST, port))
        datagrams = [encode(Message(Code.GET, mid=2))]
        assert [m.payload for m in await asyncio.to_thread(exchange, port, datagrams)] == [b"bytes"]
        assert calls == [1, 2]


async def test_a_port_that_is_taken_is_an_error() -> None:
    async with endpoint_on_loopback() as (_, port):
        with pytest.raises(OSError, match="in use"):
            UdpSocket(HOST, port)
