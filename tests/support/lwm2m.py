"""A whole server with LwM2M on real sockets of the loopback, and simulated devices registered with it."""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from openiodm.app import lwm2m_service
from openiodm.campaigns.model import CampaignKind, NewCampaign, Target, Upgrade
from openiodm.campaigns.states import UpgradeState
from openiodm.clock import SystemClock
from openiodm.devices.model import NewDevice
from openiodm.packages.model import FileType, NewPackage
from openiodm.protocols.coap.codec import Code, Message, Option, Type, decode, encode_as, encode_uint
from openiodm.protocols.coap.dtls import Connector
from openiodm.protocols.lwm2m.codec.values import ContentFormat
from openiodm.protocols.lwm2m.service import Lwm2mService
from openiodm.simulator.coap import Association, Credentials, Network
from openiodm.simulator.lwm2m import Lwm2mBehaviour, Lwm2mDevice, Lwm2mProfile
from tests.support.laws import broken_laws
from tests.support.server import FIRMWARE, PRODUCT, World, build_world

PSK = "00112233445566778899aabbccddeeff"
SOFTWARE = bytes(range(251)) * 8  # 2,008 bytes: 5 fragments
QUICK = Network(ack_timeout=0.3)


@dataclass
class Field:
    """The server, and where its devices reach it."""

    world: World
    service: Lwm2mService
    secure: bool
    connector: Connector

    @property
    def address(self) -> tuple[str, int]:
        at = self.service.secure_address if self.secure else self.service.plain_address
        assert at is not None
        return at[0], at[1]

    async def register(
        self, *node_ids: str, psk: str = PSK, info: dict[str, Any] | None = None, **kw: Any
    ) -> list[str]:
        """Devices as an application registers them; their device ids."""
        ids = []
        for node_id in node_ids:
            new = NewDevice(node_id, psk=psk, product=PRODUCT, info=info or {}, **kw)
            ids.append((await self.world.rooms.devices.register(self.world.actor, new)).device_id)
        await self.service.keys.load()
        return ids

    def device(
        self, endpoint: str, *, network: Network = QUICK, psk: str = PSK, pcp: bool = False, **kw: Any
    ) -> Lwm2mDevice:
        """A simulated device that is upgraded to `V2` and tells `V1` until then."""
        behaviour = {"lifetime_s": 300, "update_seconds": 60.0, "ask_again_seconds": 0.3, **kw.pop("behaviour", {})}
        profile = Lwm2mProfile(
            endpoint,
            psk=bytes.fromhex(psk),
            version=kw.pop("version", "V1"),
            new_version=kw.pop("new_version", "V2"),
            software=kw.pop("software", "V1"),
            pcp=pcp,
            behaviour=Lwm2mBehaviour(**behaviour),
        )
        credentials = Credentials(self.connector, endpoint, profile.psk) if self.secure else None
        return Lwm2mDevice(profile, self.address, network=network, credentials=credentials, **kw)

    @asynccontextmanager
    async def alive(self, *devices: Lwm2mDevice) -> AsyncIterator[None]:
        """They live inside this block, and are all registered at its begin."""
        tasks = [asyncio.create_task(device.run()) for device in devices]
        try:
            for device in devices:
                await asyncio.wait_for(device.online.wait(), 60)
            yield
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(outcome, asyncio.CancelledError), outcome

    async def upload(self, body: bytes, kind: FileType, version: str = "V2") -> str:
        async def chunks() -> AsyncIterator[bytes]:
            yield body

        about = NewPackage(kind, "image.bin", version, PRODUCT.device_type, PRODUCT.model, PRODUCT.manufacturer_name)
        return (await self.world.rooms.packages.upload(self.world.actor, about, chunks())).file_id

    async def task(self, *device_ids: str, file_id: str | None = None, software: bool = False, **kw: Any) -> str:
        kind = CampaignKind.SOFTWARE if software else CampaignKind.FIRMWARE
        asked = NewCampaign(kind, file_id or self.world.file_id, Target(devices=tuple(device_ids)), **kw)
        return await self.world.rooms.campaigns.create(self.world.actor, asked)

    async def upgrades(self, operation_id: str) -> list[Upgrade]:
        queries, actor = self.world.rooms.campaign_queries, self.world.actor
        _, found = await queries.upgrades(actor, operation_id, 0, 100)
        return list(found)

    async def until(self, operation_id: str, *states: UpgradeState, within: float = 60) -> list[Upgrade]:
        """Every device of the task is in one of the states."""
        found: list[Upgrade] = []

        async def reached() -> bool:
            nonlocal found
            found = await self.upgrades(operation_id)
            return bool(found) and all(upgrade.state in states for upgrade in found)

        try:
            await eventually(reached, within)
        except TimeoutError:
            raise AssertionError(f"not {states}: {found}") from None
        return found

    async def history(self, operation_id: str, node_id: str) -> list[str]:
        changes = await self.world.rooms.campaign_queries.history(self.world.actor, operation_id, node_id)
        return [change.to_state.value for change in changes]

    async def check_laws(self) -> None:
        assert await broken_laws(self.world.rooms.database) == []


class Port:
    """One port towards the server. Whoever is behind it has objects 5 and 19, and does nothing with what it is told."""

    def __init__(self, field: Field) -> None:
        self.link = Association(field.address, self.answer, QUICK, Random(1))
        self.asked: list[str] = []
        self.written: list[str] = []
        self.tokens: dict[str, bytes] = {}

    def answer(self, request: Message) -> Message:
        path = "/".join(request.path)
        self.asked.append(path)
        if request.uint(Option.OBSERVE) == 0:
            self.tokens[path] = request.token
            return Message(Code.CONTENT, ((Option.OBSERVE, b"\1"),), b"0")
        if request.code == Code.GET:
            known = path in ("5/0/5", "5/0/9")
            return Message(Code.CONTENT, payload=b"0") if known else Message(Code.NOT_FOUND)
        if path == "5/0/1":
            self.written.append(request.payload.decode().rpartition("/")[2])
        return Message(Code.CHANGED)

    async def ask(self, code: Code, path: str, *query: str, payload: bytes = b"") -> Message:
        segments = tuple((Option.URI_PATH, part.encode()) for part in path.split("/"))
        arguments = tuple((Option.URI_QUERY, part.encode()) for part in query)
        return await self.link.request(code, (*segments, *arguments), payload)

    async def register(self, endpoint: str, links: bytes = b"</5/0>") -> str:
        created = await self.ask(Code.POST, "rd", f"ep={endpoint}", "lt=86400", payload=links)
        assert created.code == Code.CREATED
        return "/".join(part.decode() for part in created.values(Option.LOCATION_PATH))

    async def notify(self, token: bytes, payload: bytes, form: ContentFormat) -> None:
        options = ((Option.OBSERVE, b"\x09"), (Option.CONTENT_FORMAT, encode_uint(form)))
        await self.link.notify(token, options, payload)


@asynccontextmanager
async def ports(field: Field, count: int) -> AsyncIterator[list[Port]]:
    async with AsyncExitStack() as stack:
        made = [Port(field) for _ in range(count)]
        for port in made:
            await port.link.open()
            stack.callback(port.link.close)
        yield made


async def eventually(condition: Callable[[], Any], within: float = 60) -> None:
    async with asyncio.timeout(within):
        while True:
            outcome = condition()
            if await outcome if asyncio.iscoroutine(outcome) else outcome:
                return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def build_field(
    database_url: str, folder: Path, *, secure: bool = False, **settings: Any
) -> AsyncIterator[Field]:
    settings = {"coap_listen": "127.0.0.1:0", "coaps_listen": "127.0.0.1:0" if secure else "", **settings}
    async with (
        build_world(database_url, folder, SystemClock(), **settings) as world,  # type: ignore[arg-type]
        serving(world) as service,
    ):
        yield Field(world, service, secure, Connector())


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[Lwm2mService]:
    service = lwm2m_service(world.rooms)
    assert service is not None
    service.upgrades.look_every_s = 0.05
    await service.start()
    try:
        yield service
    finally:
        await service.close()


@contextmanager
def ask(field: Field) -> Iterator[Callable[[str], Awaitable[Message]]]:
    """Registers an endpoint from a port of its own."""
    numbers = count(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.setblocking(False)
        port.connect(field.address)

        async def register(endpoint: str) -> Message:
            queries = (b"lwm2m=1.0", b"lt=300", f"ep={endpoint}".encode())
            options = ((Option.URI_PATH, b"rd"), *((Option.URI_QUERY, query) for query in queries))
            message = Message(Code.POST, options, payload=b"</3/0>,</5/0>")
            token = bytes([number := next(numbers)])
            port.send(encode_as(message, Type.CON, number, token))
            async with asyncio.timeout(30):
                while True:  # the server asks the device things meanwhile
                    heard = decode(await asyncio.get_running_loop().sock_recv(port, 2048))
                    if heard.token == token and heard.code >= Code.CREATED:
                        return heard

        yield register


def digest(body: bytes = FIRMWARE) -> str:
    return hashlib.sha256(body).hexdigest()
