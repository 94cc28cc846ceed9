"""A network in memory for CoAP endpoints: loss, repetition and reordering by a seed, time moved by hand."""

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from openiodm.clock import Instant
from openiodm.protocols.coap.carrier import Address, Handler, Notified, Peer
from openiodm.protocols.coap.codec import Message, decode
from openiodm.protocols.coap.dtls import Context, Session
from openiodm.protocols.coap.endpoint import Endpoint
from openiodm.protocols.coap.limits import TICK, Limits, Timing
from tests.conftest import ManualClock

T = TypeVar("T")

SERVER: Address = ("192.0.2.1", 5683)
DEVICE: Address = ("192.0.2.7", 40000)
LATENCY_MS = 20


def no_handler(_peer: Peer, _request: Message) -> Message | None:
    raise AssertionError("nobody asks here")


def no_notification(_peer: Peer, _message: Message) -> bool:
    return False


@dataclass
class Network:
    """Who is at an address gets the datagrams sent to it, later; `lost` and its kind are shares of 1."""

    clock: ManualClock
    seed: int = 1
    lost: float = 0.0
    repeated: float = 0.0
    late: float = 0.0
    log: list[tuple[Address, Address, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self._receivers: dict[Address, Callable[[bytes, Address], None]] = {}
        self._endpoints: list[Endpoint] = []
        self.under_way: list[tuple[Instant, int, Address, Address, bytes]] = []
        self._count = 0

    def endpoint(
        self,
        address: Address,
        handler: Handler = no_handler,
        notified: Notified = no_notification,
        *,
        dtls: Context | None = None,
        closed: Callable[[Peer], None] = lambda _peer: None,
        limits: Limits | None = None,
        timing: Timing | None = None,
    ) -> Endpoint:
        made = Endpoint(
            lambda datagram, to: self.send(address, to, datagram),
            handler,
            notified,
            clock=self.clock,
            chance=self.chance.randbytes,
            dtls=dtls,
            closed=closed,
            limits=limits,
            timing=timing,
        )
        self._receivers[address] = made.receive
        self._endpoints.append(made)
        return made

    def device(self, address: Address = DEVICE) -> "Device":
        """A device of few words, that a test speaks through."""
        device = Device(self, address)
        self._receivers[address] = device.receive
        return device

    def secure_device(self, address: Address, session: Session, first: bytes) -> "SecureDevice":
        """A DTLS client whose first datagram goes out now."""
        device = SecureDevice(self, address, session)
        self.attach(device)
        self.send(address, SERVER, first)
        return device

    def attach(self, device: "SecureDevice") -> None:
        """What is sent to the address goes to this one from now on."""
        self._receivers[device.address] = device.receive

    def send(self, sender: Address, to: Address, datagram: bytes) -> None:
        self.log.append((sender, to, datagram))
        if self.chance.random() < self.lost:
            return
        for _ in range(2 if self.chance.random() < self.repeated else 1):
            delay = LATENCY_MS * (1 + (self.chance.random() * 5 if self.chance.random() < self.late else 0))
            self._count += 1
            due = Instant(self.clock.now() + int(delay))
            heapq.heappush(self.under_way, (due, self._count, sender, to, datagram))

    def sent_by(self, sender: Address) -> list[Message]:
        return [decode(datagram) for origin, _, datagram in self.log if origin == sender]

    async def run(self, work: Coroutine[Any, Any, T], limit_s: int = 3_600) -> T:
        """Lets time pass until the work is done."""
        task = asyncio.ensure_future(work)
        until = self.clock.now() + limit_s * 1000
        while not task.done():
            assert self.clock.now() < until, "it takes too long"
            await self.settle()
            if not task.done():
                self.step()
        return task.result()

    async def settle(self) -> None:
        """Lets tasks go on as far as they get without time passing."""
        for _ in range(12):
            await asyncio.sleep(0)

    def step(self) -> None:
        """Delivers the next datagram, or lets a tick pass, whichever comes first."""
        tick = self.clock.now() + TICK
        if self.under_way and self.under_way[0][0] <= tick:
            due, _, sender, to, datagram = heapq.heappop(self.under_way)
            self.clock.advance(max(0, due - self.clock.now()))
            if (receive := self._receivers.get(to)) is not None:
                receive(datagram, sender)
        else:
            self.clock.advance(TICK)
        for endpoint in self._endpoints:
            endpoint.tick()

    async def pass_time(self, milliseconds: int) -> None:
        until = self.clock.now() + milliseconds
        while self.clock.now() < until:
            await self.settle()
            self.step()
        await self.settle()


class Device:
    """Keeps what it gets."""

    def __init__(self, network: Network, address: Address) -> None:
        self._network = network
        self.address = address
        self.got: list[Message] = []

    def receive(self, datagram: bytes, _sender: Address) -> None:
        self.got.append(decode(datagram))

    def send(self, datagram: bytes) -> None:
        self._network.send(self.address, SERVER, datagram)

    async def ask(self, datagram: bytes, milliseconds: int = 200) -> list[Message]:
        """What comes within the time after a datagram."""
        self.got.clear()
        self.send(datagram)
        await self._network.pass_time(milliseconds)
        return list(self.got)


class SecureDevice:
    """A DTLS client in memory: feeds what it gets to its session, and keeps the messages."""

    def __init__(self, network: Network, address: Address, session: Session) -> None:
        self._network = network
        self.address = address
        self.session = session
        self.got: list[Message] = []
        self.alive = True

    def receive(self, datagram: bytes, _sender: Address) -> None:
        plaintexts, out, self.alive = self.session.feed(datagram)
        self.got += [decode(plaintext) for plaintext in plaintexts]
        if out:
            self._network.send(self.address, SERVER, out)

    def send(self, plaintext: bytes) -> None:
        self._network.send(self.address, SERVER, self.session.seal(plaintext))
