"""A DTLS endpoint in memory: associations come, are replaced, make room and end; forged and lost datagrams."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st

from openiodm.protocols.coap import carrier
from openiodm.protocols.coap.carrier import Address, Peer
from openiodm.protocols.coap.codec import Code, Message, Type, encode, path_options
from openiodm.protocols.coap.dtls import SUITES, Connector, Context
from openiodm.protocols.coap.endpoint import Endpoint
from openiodm.protocols.coap.limits import Limits
from openiodm.protocols.coap.records import psk_identity
from tests.conftest import ManualClock
from tests.support.coap import DEVICE, SERVER, Network, SecureDevice

KEYS = {f"device-{n}": bytes((n,)) * 16 for n in range(1, 9)}
GET = encode(Message(Code.GET, path_options("/rd"), mid=0x10, token=b"\x01"))


@dataclass
class Server:
    """An endpoint that says who asks, and what it was told."""

    network: Network
    limits: Limits | None = None
    peers: list[Peer] = field(default_factory=list)
    closed: list[Peer] = field(default_factory=list)
    keys: dict[str, bytes] = field(default_factory=lambda: dict(KEYS))
    sought: list[str] = field(default_factory=list)
    doubted: list[str] = field(default_factory=list)
    comes_soon: bool = False

    def __post_init__(self) -> None:
        context = Context(self.keys.get, secret=b"s" * 32, seek=self.seek, doubt=self.doubted.append)
        self.endpoint: Endpoint = self.network.endpoint(
            SERVER, self.handle, dtls=context, closed=self.closed.append, limits=self.limits
        )

    def seek(self, identity: str) -> bool:
        self.sought.append(identity)
        return self.comes_soon

    def handle(self, peer: Peer, _request: Message) -> Message:
        self.peers.append(peer)
        return Message(Code.CONTENT, payload=f"{peer.identity} {peer.cipher}".encode())

    def connect(
        self, identity: str = "device-1", key: bytes | None = None, address: Address = DEVICE, suite: str = SUITES[0]
    ) -> SecureDevice:
        session, hello = Connector((suite,)).connect(identity, key or KEYS.get(identity, b"?"))
        return self.network.secure_device(address, session, hello)


@pytest.fixture
def network(clock: ManualClock) -> Network:
    return Network(clock)


@pytest.fixture
async def server(network: Network) -> AsyncIterator[Server]:
    made = Server(network)
    yield made
    await made.endpoint.close()


async def ask(network: Network, device: SecureDevice, datagram: bytes = GET) -> list[Message]:
    device.got.clear()
    device.send(datagram)
    await network.pass_time(100)
    return list(device.got)


@pytest.mark.parametrize("suite", SUITES)
async def test_a_device_shakes_hands_and_asks(network: Network, server: Server, suite: str) -> None:
    device = server.connect(suite=suite)
    await network.pass_time(200)
    (answer,) = await ask(network, device)
    assert answer.payload == f"device-1 {suite}".encode()
    (peer,) = server.peers
    assert (peer.address, peer.identity, peer.cipher, peer.closed) == (DEVICE, "device-1", suite, False)
    assert (server.endpoint.peers, server.endpoint.half_open, server.endpoint.counts.handshakes) == (1, 0, 1)


async def test_plain_coap_on_a_secure_port_reaches_nobody(network: Network, server: Server) -> None:
    assert await network.device().ask(GET) == []
    assert (server.peers, server.endpoint.peers, server.endpoint.counts.strangers) == ([], 0, 1)


async def test_the_server_asks_on_the_devices_session(network: Network, server: Server) -> None:
    device = server.connect()
    await network.pass_time(200)
    await ask(network, device)
    device.got.clear()
    task = asyncio.ensure_future(server.endpoint.request(server.peers[0], Message(Code.GET, path_options("/3/0"))))
    await network.pass_time(100)
    (request,) = device.got
    device.send(encode(Message(Code.CONTENT, (), b"x", Type.ACK, request.mid, request.token)))
    await network.pass_time(100)
    assert (await task).payload == b"x"


async def test_rfc_6347_section_4_2_8_a_new_handshake_from_the_same_address_replaces_the_association(
    network: Network, server: Server
) -> None:
    old = server.connect()
    await network.pass_time(200)
    await ask(network, old)
    pending = asyncio.ensure_future(server.endpoint.request(server.peers[0], Message(Code.GET)))
    new = server.connect()
    await network.pass_time(200)
    with pytest.raises(carrier.PeerGone):
        await pending
    assert [m.code for m in await ask(network, new)] == [Code.CONTENT]
    first, second = server.peers
    assert (first is second, first.closed, second.closed) == (False, True, False)
    assert server.closed == [first]
    assert first.identity == "device-1"
    with pytest.raises(carrier.PeerGone):
        await server.endpoint.request(first, Message(Code.GET))


async def test_another_device_behind_the_same_address_gets_its_own_association(
    network: Network, server: Server
) -> None:
    await ask(network, await connected(network, server, "device-1"))
    await ask(network, await connected(network, server, "device-2"))
    assert [(peer.identity, peer.closed) for peer in server.peers] == [("device-1", True), ("device-2", False)]


async def connected(network: Network, server: Server, identity: str, address: Address = DEVICE) -> SecureDevice:
    device = server.connect(identity, address=address)
    await network.pass_time(200)
    assert device.session.established
    return device


async def test_a_forged_hello_does_not_cut_a_device_off(network: Network, server: Server) -> None:
    device = await connected(network, server, "device-1")
    for _ in range(20):
        _, hello = Connector().connect("device-1", b"?")
        network.send(DEVICE, SERVER, hello)
    await network.pass_time(100)
    assert [m.code for m in await ask(network, device)] == [Code.CONTENT]
    assert server.closed == []


async def test_a_handshake_with_the_wrong_key_from_its_address_does_not_cut_a_device_off(
    network: Network, server: Server
) -> None:
    device = await connected(network, server, "device-1")
    forger = server.connect("device-1", b"wrong" * 3)
    await network.pass_time(1_000)
    assert (forger.session.established, server.endpoint.half_open) == (False, 1)
    network.attach(device)
    assert [m.code for m in await ask(network, device)] == [Code.CONTENT]
    await network.pass_time(31_000)
    assert (server.endpoint.half_open, server.endpoint.counts.handshakes_failed) == (0, 1)
    assert [m.code for m in await ask(network, device)] == [Code.CONTENT]
    assert server.closed == []


async def test_an_unknown_identity_is_refused_at_once(network: Network, server: Server) -> None:
    device = server.connect("stranger")
    await network.pass_time(200)
    assert (device.alive, server.endpoint.half_open, server.endpoint.peers) == (False, 0, 0)
    assert server.endpoint.counts.handshakes_failed == 1


async def test_a_crowd_of_strangers_is_counted_and_not_logged_one_by_one(network: Network, server: Server) -> None:
    with structlog.testing.capture_logs() as logs:
        for port in range(40):
            server.connect("stranger", address=("203.0.113.1", port))
        await network.pass_time(150)
    assert server.endpoint.counts.handshakes_failed == 40
    assert 1 <= len(logs) <= 10
    assert logs[0] == {
        "event": "dtls.handshake_refused",
        "host": "203.0.113.1",
        "identity": "stranger",
        "log_level": "warning",
    }


async def test_a_key_may_come_while_the_server_runs(network: Network, server: Server) -> None:
    server.keys["device-9"] = b"n" * 16
    device = server.connect("device-9", b"n" * 16)
    await network.pass_time(200)
    assert [m.code for m in await ask(network, device)] == [Code.CONTENT]


@pytest.mark.parametrize("suite", SUITES)
async def test_a_flight_waits_for_its_key(network: Network, server: Server, suite: str) -> None:
    server.comes_soon = True
    device = server.connect("device-9", b"n" * 16, suite=suite)
    await network.pass_time(200)
    assert (device.alive, device.session.established, server.sought) == (True, False, ["device-9"])
    server.keys["device-9"] = b"n" * 16
    await network.pass_time(500)
    assert [m.code for m in await ask(network, device)] == [Code.CONTENT]
    assert server.sought == ["device-9"], "once for each handshake"


async def test_an_identity_that_stays_unknown_is_refused_soon(network: Network, server: Server) -> None:
    server.comes_soon = True
    device = server.connect("stranger")
    await network.pass_time(200)
    assert device.alive
    for _ in range(20):  # it may say it as often as it likes
        network.send(DEVICE, SERVER, [datagram for sender, _, datagram in network.log if sender == DEVICE][-1])
    await network.pass_time(500)
    assert (device.alive, server.endpoint.half_open, server.endpoint.counts.handshakes_failed) == (False, 0, 1)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_no_bytes_make_reading_an_identity_fail(head: bytes, body: bytes) -> None:
    record = bytes((22, 254, 253, 0, 0)) + bytes(8) + bytes((16,)) + len(body).to_bytes(3) + bytes(5)
    for datagram in (head + body, record + len(body).to_bytes(3) + body, record + body):
        psk_identity(datagram)
    assert psk_identity(record + (len(body) + 2).to_bytes(3) + len(body).to_bytes(2) + body) is None
    whole = record[:14] + (len(body) + 2).to_bytes(3) + record[17:]
    whole += (len(body) + 2).to_bytes(3) + len(body).to_bytes(2) + body
    assert psk_identity(whole) == (text if (text := body.decode(errors="replace")).encode() == body else None)


async def test_a_key_that_did_not_fit_is_doubted(network: Network, server: Server) -> None:
    server.connect("device-1", b"wrong" * 3)
    await network.pass_time(31_000)
    assert server.doubted == ["device-1"]


async def test_half_open_handshakes_are_bounded_and_the_oldest_makes_room(network: Network) -> None:
    server = Server(network, Limits(half_open=5))
    for port in range(9):
        server.connect("device-1", b"wrong" * 3, ("192.0.2.66", port))
    await network.pass_time(300)
    assert (server.endpoint.half_open, server.endpoint.counts.half_open_dropped) == (5, 4)
    device = await connected(network, server, "device-1")
    assert [m.code for m in await ask(network, device)] == [Code.CONTENT]
    await server.endpoint.close()
    assert server.endpoint.half_open == 0


async def test_a_session_too_many_lets_the_least_recently_heard_of_go_but_no_busy_one(network: Network) -> None:
    server = Server(network, Limits(sessions=2))
    one = await connected(network, server, "device-1", ("192.0.2.1", 1))
    two = await connected(network, server, "device-2", ("192.0.2.2", 2))
    await ask(network, two)
    await ask(network, one)
    two_peer, one_peer = server.peers
    two_peer.busy = True
    await connected(network, server, "device-3", ("192.0.2.3", 3))
    assert server.closed == [one_peer]
    assert not one.alive, "it was told (close_notify), and will shake hands anew"
    assert [m.code for m in await ask(network, two)] == [Code.CONTENT]
    await server.endpoint.close()


async def test_when_all_sessions_are_busy_a_new_device_is_refused(network: Network) -> None:
    server = Server(network, Limits(sessions=1))
    one = await connected(network, server, "device-1", ("192.0.2.1", 1))
    await ask(network, one)
    server.peers[0].busy = True
    two = server.connect("device-2", address=("192.0.2.2", 2))
    await network.pass_time(500)
    assert not two.alive
    assert server.endpoint.counts.peers_refused == 1
    assert [m.code for m in await ask(network, one)] == [Code.CONTENT]
    await server.endpoint.close()


async def test_a_device_that_says_goodbye_is_gone(network: Network, server: Server) -> None:
    device = await connected(network, server, "device-1")
    await ask(network, device)
    network.send(DEVICE, SERVER, device.session.close())
    await network.pass_time(100)
    assert (server.endpoint.peers, server.closed) == (0, server.peers)


async def test_sealed_garbage_gets_a_sealed_reset(network: Network, server: Server) -> None:
    device = await connected(network, server, "device-1")
    assert await ask(network, device, bytes.fromhex("40011234ff")) == [Message(Code.EMPTY, type=Type.RST, mid=0x1234)]
    assert server.endpoint.counts.malformed == 1


async def test_thousands_of_garbage_datagrams_then_a_good_device(network: Network, server: Server) -> None:
    device = await connected(network, server, "device-1")
    hello = Connector().connect("device-1", b"?")[1]
    receive, chance = server.endpoint.receive, network.chance
    for n in range(6_000):
        address = DEVICE if n % 3 == 0 else ("203.0.113.5", n)
        garbage = chance.randbytes(chance.randint(0, 300))
        receive(garbage if n % 2 else hello[: chance.randint(0, 60)] + garbage, address)
    await network.pass_time(100)
    assert [m.code for m in await ask(network, device)] == [Code.CONTENT]
    assert server.endpoint.peers == 1
    other = await connected(network, server, "device-2", ("192.0.2.2", 2))
    assert [m.code for m in await ask(network, other)] == [Code.CONTENT]


async def test_answers_of_one_session_are_not_given_to_the_next(network: Network, server: Server) -> None:
    """Message ids belong to an association (RFC 7252 section 9.1.1): what was cached of the old one is forgotten."""
    post = encode(Message(Code.POST, path_options("/rd"), mid=0x55, token=b"\x01"))
    first = await connected(network, server, "device-1")
    await ask(network, first, post)
    second = await connected(network, server, "device-2")
    (answer,) = await ask(network, second, post)
    assert answer.payload.startswith(b"device-2")
