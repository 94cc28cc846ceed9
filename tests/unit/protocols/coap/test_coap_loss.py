"""Transfers over a network that loses, repeats and reorders: pull by Block2, push by Block1, plain and DTLS."""

import asyncio
import hashlib
import math
from collections.abc import Iterator

import pytest

from openiodm.protocols.coap.blocks import serve
from openiodm.protocols.coap.carrier import Address, Peer
from openiodm.protocols.coap.codec import (
    Block,
    Code,
    Message,
    Option,
    Type,
    decode,
    decode_block,
    encode,
    encode_block,
    path_options,
)
from openiodm.protocols.coap.dtls import Connector, Context
from openiodm.protocols.coap.limits import Limits, Timing
from tests.conftest import ManualClock
from tests.support.coap import DEVICE, SERVER, Network, SecureDevice

FIRMWARE = hashlib.shake_256(b"firmware").digest(60_000)
FILE = path_options("/fw/1")
PATIENT = Timing(max_retransmit=10)
"""At a loss of 20 percent each way, 4 repetitions would give up one block in 160."""

LOSSES = [0.0, 0.05, 0.2]


def lossy(clock: ManualClock, lost: float, seed: int) -> Network:
    return Network(clock, seed=seed, lost=lost, repeated=lost, late=2 * lost)


def firmware(_peer: Peer, request: Message) -> Message:
    return serve(request, FIRMWARE, b"v1")


def sizes(change: bool) -> Iterator[int]:
    """Size exponents of the blocks that a device asks for; one that changes its mind asks for smaller ones later."""
    for n in range(1_000_000):
        yield 5 if not change or n < 20 else 4


async def pull(network: Network, device: "Puller", change: bool) -> tuple[bytes, int]:
    """What a device gets that asks for each block every 2.5 s until it comes; and how often it asked."""
    whole, asked = bytearray(), 0
    for mid, szx in enumerate(sizes(change)):
        block = Block(len(whole) >> szx + 4, False, szx)
        options = (*FILE, (Option.BLOCK2, encode_block(block)))
        request = encode(Message(Code.GET, options, mid=mid, token=mid.to_bytes(4, "big")))
        answer = None
        while answer is None:
            asked += 1
            device.send(request)
            answer = await device.answer_to(mid, network.clock.now() + 2_500)
        assert answer.code == Code.CONTENT
        got = decode_block(answer.option(Option.BLOCK2) or b"")
        assert (got.start, got.szx) == (len(whole), szx)
        whole += answer.payload
        if not got.more:
            return bytes(whole), asked
    raise AssertionError("never")


class Puller:
    """A plain device; answers are waited for while the network lets time pass."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._device = network.device()

    def send(self, datagram: bytes) -> None:
        self._device.send(datagram)

    @property
    def got(self) -> list[Message]:
        return self._device.got

    async def answer_to(self, mid: int, until: int) -> Message | None:
        while self._network.clock.now() < until:
            for message in self.got:
                if message.mid == mid and message.type is Type.ACK:
                    return message
            await asyncio.sleep(0)
        return None


class SecurePuller(Puller):
    """The same on DTLS."""

    def __init__(self, network: Network, device: SecureDevice) -> None:
        self._network = network
        self._secure = device

    def send(self, datagram: bytes) -> None:
        self._secure.send(datagram)

    @property
    def got(self) -> list[Message]:
        return self._secure.got


def check(body: bytes, asked: int, lost: float, change: bool) -> None:
    assert hashlib.sha256(body).digest() == hashlib.sha256(FIRMWARE).digest()
    least = 20 + math.ceil((len(FIRMWARE) - 20 * 512) / 256) if change else math.ceil(len(FIRMWARE) / 512)
    if lost <= 0.05:
        assert asked <= least * (1.3 if lost else 1), "blocks asked for more often than the loss explains"


@pytest.mark.parametrize("change", [False, True], ids=["one size", "smaller blocks later"])
@pytest.mark.parametrize("lost", LOSSES)
async def test_a_device_pulls_an_image(clock: ManualClock, lost: float, change: bool) -> None:
    network = lossy(clock, lost, seed=11)
    server = network.endpoint(SERVER, firmware)
    body, asked = await network.run(pull(network, Puller(network), change))
    check(body, asked, lost, change)
    await server.close()


@pytest.mark.parametrize("lost", LOSSES)
async def test_a_device_pulls_an_image_over_dtls(clock: ManualClock, lost: float) -> None:
    network = lossy(clock, 0, seed=12)
    context = Context({"device-1": b"k" * 16}.get, secret=b"s" * 32)
    server = network.endpoint(SERVER, firmware, dtls=context)
    session, hello = Connector(("PSK-AES128-CCM8",)).connect("device-1", b"k" * 16)
    device = network.secure_device(DEVICE, session, hello)
    await network.pass_time(500)
    network.lost, network.repeated, network.late = lost, lost, 2 * lost
    body, asked = await network.run(pull(network, SecurePuller(network, device), change=True))
    check(body, asked, lost, change=True)
    await server.close()


@pytest.mark.parametrize("lost", LOSSES)
async def test_our_client_role_pulls_an_image(clock: ManualClock, lost: float) -> None:
    network = lossy(clock, lost, seed=13)
    server = network.endpoint(SERVER, firmware)
    device = network.endpoint(DEVICE, timing=PATIENT)
    peer = device.peer_at(SERVER)
    assert peer is not None
    answer = await network.run(device.request(peer, Message(Code.GET, FILE), limit=len(FIRMWARE)), 30_000)
    assert answer.payload == FIRMWARE
    asked = sum(message.code == Code.GET for message in network.sent_by(DEVICE))
    if lost <= 0.05:
        assert asked <= math.ceil(len(FIRMWARE) / 1024) * (1.3 if lost else 1)
    await device.close()
    await server.close()


@pytest.mark.parametrize("lost", LOSSES)
async def test_an_image_is_pushed(clock: ManualClock, lost: float) -> None:
    network = lossy(clock, lost, seed=14)
    server = network.endpoint(SERVER, timing=PATIENT)
    taken: list[bytes] = []

    def take(_peer: Peer, request: Message) -> Message:
        taken.append(request.payload)
        return Message(Code.CHANGED)

    device = network.endpoint(DEVICE, take, limits=Limits(upload_bytes=len(FIRMWARE)))
    peer = server.peer_at(DEVICE)
    assert peer is not None
    request = Message(Code.PUT, path_options("/5/0/0"))
    answer = await network.run(server.request(peer, request, body=memoryview(FIRMWARE)), 30_000)
    assert answer.code == Code.CHANGED
    assert taken == [FIRMWARE], "once, and whole"
    sent = sum(message.code == Code.PUT for message in network.sent_by(SERVER))
    if lost <= 0.05:
        assert sent <= math.ceil(len(FIRMWARE) / 1024) * (1.3 if lost else 1)
    await device.close()
    await server.close()


@pytest.mark.parametrize("lost", LOSSES)
async def test_every_notification_is_noted_once(clock: ManualClock, lost: float) -> None:
    network = lossy(clock, lost, seed=15)
    noted: list[bytes] = []

    async def note(_peer: Peer, message: Message) -> bool:
        await asyncio.sleep(0)
        noted.append(message.payload)
        return True

    server = network.endpoint(SERVER, notified=note)
    device = network.device()
    for n in range(60):
        notification = encode(Message(Code.CONTENT, (), str(n).encode(), Type.CON, n, b"\xaa"))
        while not any(m.mid == n and m.type is Type.ACK for m in device.got):
            device.send(notification)
            await network.pass_time(2_500)
    assert noted == [str(n).encode() for n in range(60)]
    await server.close()


@pytest.mark.parametrize("lost", LOSSES)
async def test_handshakes_come_to_their_end(clock: ManualClock, lost: float) -> None:
    """OpenSSL's own timers run on real time, so a device of this test starts anew instead, as real ones do."""
    network = lossy(clock, lost, seed=16)
    context = Context({"device-1": b"k" * 16}.get, secret=b"s" * 32)
    server = network.endpoint(SERVER, firmware, dtls=context)
    for n in range(10):
        address: Address = ("192.0.2.7", 50_000 + n)
        established = False
        while not established:
            session, hello = Connector().connect("device-1", b"k" * 16)
            device = network.secure_device(address, session, hello)
            await network.pass_time(3_000)
            established = session.established
        answered = False
        while not answered:
            device.send(encode(Message(Code.GET, FILE, mid=1)))
            await network.pass_time(2_500)
            answered = bool(device.got)
    await server.close()


def test_the_network_of_these_tests_does_lose_repeat_and_reorder(clock: ManualClock) -> None:
    network = lossy(clock, 0.2, seed=1)
    device = network.device()
    for n in range(200):
        network.send(SERVER, DEVICE, encode(Message(Code.EMPTY, type=Type.ACK, mid=n)))
    for _ in range(50_000):
        if not network.under_way:
            break
        network.step()
    mids = [message.mid for message in device.got]
    assert len(set(mids)) < 185
    assert len(set(mids)) < len(mids)
    assert mids != sorted(mids)
    assert decode(network.log[0][2]).mid == 0
