"""A simulated LwM2M device: registration, objects 3 and 5, and for software object 19 with PCP (`pcp.py`).

It behaves as Huawei's SDK and Anjay do where they are strict: nothing begins before 5/0/3 is observed, each
notification must be acknowledged before the next step, and Execute is refused meanwhile. Its flash (`Flash`) outlives
a reboot; its port and its DTLS session do not.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

from openiodm.protocols.coap.codec import (
    Block,
    Code,
    Message,
    Option,
    Options,
    decode_block,
    encode_block,
    encode_uint,
)
from openiodm.protocols.lwm2m.codec.registration import encode_links
from openiodm.protocols.lwm2m.codec.tlv import Kind, Tlv, encode, integer
from openiodm.protocols.lwm2m.codec.values import ContentFormat, Path
from openiodm.simulator.coap import Association, Credentials, Network, NoAnswerError, fetch
from openiodm.simulator.pcp import PcpFlash, PcpSide, Stage

IDLE, DOWNLOADING, DOWNLOADED, UPDATING = range(4)
UPDATE_FAILED = 8
RETRY_S = 2.0  # after a registration or an update that came to nothing

_TLV: Options = ((Option.CONTENT_FORMAT, encode_uint(ContentFormat.TLV)),)
_OPAQUE = encode_uint(ContentFormat.OPAQUE)

OBJECTS: tuple[Path, ...] = ((1, 0), (3, 0), (5, 0))
WITH_PCP: tuple[Path, ...] = ((1, 0), (3, 0), (5, 0), (19, 0), (19, 1))


@dataclass(frozen=True, slots=True)
class Lwm2mBehaviour:
    """What it does. Rates are shares of 1 of its upgrades."""

    push: bool = False  # takes pushes alone: 5/0/9 reads 1, and the URI is refused
    protocols: tuple[int, ...] = ()  # what 5/0/8 tells; empty: it is not there
    power_loss_rate: float = 0.0  # in the middle of a download, once an upgrade
    rollback_rate: float = 0.0  # says result 1 and boots the old version
    stuck_rate: float = 0.0  # stays at state 1 for ever
    install_seconds: float = 0.0
    reboot_seconds: float = 0.0
    szx: int = 5  # blocks of 512 bytes
    lifetime_s: int = 300
    update_seconds: float = 60.0
    queue_mode: bool = False
    version: str = "1.1"  # of LwM2M
    answers_new_version: bool = True  # PCP: LiteOS never does
    ask_again_seconds: float = 2.0  # PCP: its own timer


@dataclass(frozen=True, slots=True)
class Lwm2mProfile:
    """Who it is. `new_version` is what it has after an upgrade (LwM2M tells a device no version); None: tells none."""

    endpoint: str
    psk: bytes = field(default=b"", repr=False)
    version: str | None = "1.0.0"
    new_version: str | None = None
    software: str = ""  # its software's version, where it speaks PCP
    pcp: bool = False
    behaviour: Lwm2mBehaviour = field(default_factory=Lwm2mBehaviour)


@dataclass
class Flash:
    """What outlives a reboot."""

    version: str | None
    state: int = IDLE
    result: int = 0
    observed: dict[Path, bytes] = field(default_factory=dict)  # path -> token
    told: bool = True  # the server has asked for all that there is to say of the last attempt
    fails_with: int = 0  # the result that the next attempt ends in; 0 is success


@dataclass
class Lwm2mRecord:
    """What it saw."""

    registrations: int = 0
    digests: list[str] = field(default_factory=list)  # SHA-256 of each package that it got whole
    blocks: int = 0
    results: list[int] = field(default_factory=list)
    power_losses: int = 0
    refused_fetches: int = 0


class Lwm2mDevice:
    """One life: `run` until cancelled."""

    def __init__(
        self,
        profile: Lwm2mProfile,
        server: tuple[str, int],
        *,
        network: Network | None = None,
        credentials: Credentials | None = None,
        seed: int = 0,
        ended: Callable[[bool], None] = lambda _success: None,
    ) -> None:
        self.profile = profile
        self.record = Lwm2mRecord()
        self.flash = Flash(profile.version)
        self.pcp = PcpSide(
            PcpFlash(profile.software),
            send=self._notify_binary,
            start=self._start,
            reboot=self.reboot,
            ended=self._pcp_ended,
            answers_new_version=profile.behaviour.answers_new_version,
            ask_again=profile.behaviour.ask_again_seconds,
        )
        self.online = asyncio.Event()
        self.http_get: Callable[[str], Awaitable[bytes | None]] | None = None
        self._server = server
        self._network = network or Network()
        self._credentials = credentials
        self._chance = Random(f"{seed}/{profile.endpoint}")
        self._ended = ended
        self._link: Association | None = None
        self._location: tuple[str, ...] = ()
        self._sequence = 0
        self._notifying = 0
        self._uploaded = bytearray()
        self._work: set[asyncio.Task[None]] = set()
        self._reboot = asyncio.Event()
        self._loses_power = self._chance.random() < profile.behaviour.power_loss_rate
        self._fault: BaseException | None = None

    # -- life

    async def run(self, delay: float = 0.0) -> None:
        """Boots again and again."""
        await asyncio.sleep(delay)
        try:
            while True:
                self._reboot.clear()
                await self._boot()
                self.online.clear()
                self._stop_work()
                await asyncio.sleep(self.profile.behaviour.reboot_seconds)
                if self._fault is not None:
                    raise self._fault
        finally:
            self._stop_work()

    def _stop_work(self) -> None:
        for task in self._work:
            task.cancel()
        self._work.clear()
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _boot(self) -> None:
        link = Association(self._server, self._handle, self._network, self._chance, self._credentials)
        try:
            await link.open()
            self._link = link
            await self._register(link)
        except NoAnswerError:
            link.close()
            await asyncio.sleep(RETRY_S * self._network.ack_timeout)
            return
        self.online.set()
        self._after_boot()
        while not self._reboot.is_set():
            try:
                await asyncio.wait_for(self._reboot.wait(), self.profile.behaviour.update_seconds)
            except TimeoutError:
                if not await self._update(link):
                    return

    def _after_boot(self) -> None:
        """An update that has ended is told on the observation of before the reboot."""
        if self.flash.state == IDLE and self.flash.result and self.flash.observed.get((5, 0, 3)):
            self._start(self._notify_state())
        self.pcp.boot()

    async def _register(self, link: Association) -> None:
        b = self.profile.behaviour
        query = [f"ep={self.profile.endpoint}", f"lt={b.lifetime_s}", f"lwm2m={b.version}"]
        if b.version == "1.0":
            query.append("b=UQ" if b.queue_mode else "b=U")
        else:
            query += ["b=U", *(["Q"] if b.queue_mode else [])]
        options = (
            (Option.URI_PATH, b"rd"),
            (Option.CONTENT_FORMAT, encode_uint(ContentFormat.LINK)),
            *((Option.URI_QUERY, part.encode()) for part in query),
        )
        answer = await link.request(Code.POST, options, encode_links(WITH_PCP if self.profile.pcp else OBJECTS))
        if answer.code != Code.CREATED:
            raise NoAnswerError(f"the registration was answered {answer.code:#x}")
        self._location = tuple(part.decode() for part in answer.values(Option.LOCATION_PATH))
        self.record.registrations += 1

    async def _update(self, link: Association) -> bool:
        path = tuple((Option.URI_PATH, part.encode()) for part in self._location)
        try:
            return (await link.request(Code.POST, path)).code == Code.CHANGED
        except NoAnswerError:
            return False

    async def update(self) -> None:
        """A registration update now."""
        assert self._link is not None
        await self._update(self._link)

    @property
    def resting(self) -> bool:
        """It has ended an upgrade, and the server knows all of it."""
        return bool(self.record.results) and self.flash.told and self.pcp.flash.stage is Stage.IDLE

    def reboot(self) -> None:
        """Power off and on."""
        self._reboot.set()

    def _pcp_ended(self, digest: str, status: int) -> None:
        """The software was installed, or was refused; `status` is PCP's."""
        if digest:
            self.record.digests.append(digest)
        self.record.results.append(status)
        self._ended(status == 0)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except NoAnswerError:
            pass  # the network gave up; the next contact goes on
        except Exception as fault:
            self._fault = fault
            self._reboot.set()

    # -- what the server asks

    def _handle(self, request: Message) -> Message:
        try:
            path = tuple(int(part) for part in request.path)
        except ValueError:
            return Message(Code.NOT_FOUND)
        match request.code:
            case Code.GET:
                return self._read(request, path)
            case Code.PUT:
                return self._write(request, path)
            case Code.POST:
                return self._execute(path)
            case _:
                return Message(Code.METHOD_NOT_ALLOWED)

    def _read(self, request: Message, path: Path) -> Message:
        if path == (19, 0, 0) and self.profile.pcp:
            return self._observe(request, path, (), b"")
        values = self._values()
        # Of a failure the server reads the result, of a success the versions besides: 5/0/7 is the last.
        if path == ((5, 0, 7) if self.flash.result == 1 else (5, 0, 5)):
            self.flash.told = True
        if path == (3, 0):
            found = [Tlv(Kind.RESOURCE, key[2], raw) for key, raw in values.items() if key[:2] == path]
            return Message(Code.CONTENT, _TLV, encode(found))
        if path not in values:
            return Message(Code.NOT_FOUND)
        kind = Kind.MULTIPLE_RESOURCE if path == (5, 0, 8) else Kind.RESOURCE
        payload = encode([Tlv(kind, path[2], values[path])])
        return self._observe(request, path, _TLV, payload)

    def _observe(self, request: Message, path: Path, options: Options, payload: bytes) -> Message:
        if request.uint(Option.OBSERVE) == 0:
            self.flash.observed[path] = request.token
            self._sequence = 0  # as Anjay does, on the same token too
            options = ((Option.OBSERVE, encode_uint(self._next_sequence())), *options)
            if path == (19, 0, 0):
                self.pcp.observed()
        return Message(Code.CONTENT, options, payload)

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _values(self) -> dict[Path, bytes]:
        flash = self.flash
        values: dict[Path, bytes] = {
            (3, 0, 0): b"openiodm",
            (3, 0, 1): b"simulated",
            (5, 0, 3): integer(flash.state),
            (5, 0, 5): integer(flash.result),
            (5, 0, 9): integer(1 if self.profile.behaviour.push else 2),
        }
        if self.profile.behaviour.protocols:
            found = (Tlv(Kind.RESOURCE_INSTANCE, n, integer(p)) for n, p in enumerate(self.profile.behaviour.protocols))
            values[5, 0, 8] = encode(tuple(found))
        if flash.version is not None:
            values[3, 0, 3] = flash.version.encode()
        return values

    def _write(self, request: Message, path: Path) -> Message:
        if path == (5, 0, 1):
            return self._take_uri(request.payload.decode("utf-8", "replace"))
        if path == (5, 0, 0):
            return self._take_block(request)
        if path == (19, 1, 0) and self.profile.pcp:
            self.pcp.take(request.payload)
            return Message(Code.CHANGED)
        return Message(Code.NOT_FOUND)

    def _take_uri(self, uri: str) -> Message:
        flash = self.flash
        if not uri:
            self._forget()
            return Message(Code.CHANGED)
        if self.profile.behaviour.push or self._notifying or flash.state != IDLE:
            return Message(Code.METHOD_NOT_ALLOWED)
        flash.result = 0
        if (5, 0, 3) in flash.observed:  # else the write is taken, and nothing ever comes of it
            self._start(self._download(uri))
        return Message(Code.CHANGED)

    def _forget(self) -> None:
        if self.flash.state in (DOWNLOADING, DOWNLOADED):
            for task in self._work:
                task.cancel()
            self.flash.state, self.flash.result = IDLE, 0

    def _take_block(self, request: Message) -> Message:
        if not self.profile.behaviour.push:
            return Message(Code.METHOD_NOT_ALLOWED)
        told = request.option(Option.BLOCK1)
        block = Block(0, False, 6) if told is None else decode_block(told)
        if block.num == 0:
            self._uploaded.clear()
            self.flash.result = 0
            self._start(self._enter(DOWNLOADING))
        if block.start != len(self._uploaded):
            return Message(Code.REQUEST_ENTITY_INCOMPLETE)
        self._uploaded += request.payload
        self.record.blocks += 1
        option = (Option.BLOCK1, encode_block(block))
        if block.more:
            return Message(Code.CONTINUE, (option,))
        self._start(self._downloaded(bytes(self._uploaded)))
        return Message(Code.CHANGED, (option,))

    def _execute(self, path: Path) -> Message:
        if path != (5, 0, 2) or self.flash.state != DOWNLOADED:
            return Message(Code.METHOD_NOT_ALLOWED)
        if self._notifying:
            return Message(Code.BAD_REQUEST)
        self._start(self._install())
        return Message(Code.CHANGED)

    # -- what it does

    async def _enter(self, state: int) -> None:
        self.flash.state = state
        await self._notify_state()

    async def _notify_state(self) -> None:
        token = self.flash.observed.get((5, 0, 3))
        if token is None or self._link is None:
            return
        options = ((Option.OBSERVE, encode_uint(self._next_sequence())), *_TLV)
        self._notifying += 1
        try:
            await self._link.notify(token, options, encode([Tlv(Kind.RESOURCE, 3, integer(self.flash.state))]))
        finally:
            self._notifying -= 1

    async def _notify_binary(self, frame: bytes) -> None:
        token = self.flash.observed.get((19, 0, 0))
        if token is None or self._link is None:
            raise NoAnswerError("nobody observes object 19")
        options = ((Option.OBSERVE, encode_uint(self._next_sequence())), (Option.CONTENT_FORMAT, _OPAQUE))
        await self._link.notify(token, options, frame)

    async def _download(self, uri: str) -> None:
        """Over CoAP on its own association, whatever host the URI names; over HTTP by `http_get`."""
        await self._enter(DOWNLOADING)
        if self._chance.random() < self.profile.behaviour.stuck_rate:
            return
        parts = urlsplit(uri)
        if parts.scheme.startswith("http"):
            body = None if self.http_get is None else await self.http_get(uri)
            await (self._end(4) if body is None else self._downloaded(body))
            return
        name = parts.path.strip("/")
        path = tuple((Option.URI_PATH, part.encode()) for part in name.split("/"))
        link = self._link
        assert link is not None
        if self._loses_power:
            self._loses_power = False
            await link.request(Code.GET, (*path, (Option.BLOCK2, encode_block(Block(0, False, 5)))))
            self.record.power_losses += 1
            self.flash.state = IDLE
            self._reboot.set()
            return
        try:
            body, blocks = await fetch(link, path, self.profile.behaviour.szx)
        except NoAnswerError:
            self.record.refused_fetches += 1
            await self._end(4)
            return
        self.record.blocks += blocks
        await self._downloaded(body)

    async def _downloaded(self, body: bytes) -> None:
        self.record.digests.append(hashlib.sha256(body).hexdigest())
        if self.flash.fails_with not in (0, UPDATE_FAILED):
            code, self.flash.fails_with = self.flash.fails_with, 0
            await self._end(code)
            return
        await self._enter(DOWNLOADED)

    async def _install(self) -> None:
        b = self.profile.behaviour
        await self._enter(UPDATING)
        await asyncio.sleep(b.install_seconds)
        if self.flash.fails_with:
            self.flash.fails_with = 0
            self.record.results.append(UPDATE_FAILED)
            self.flash.state, self.flash.result, self.flash.told = DOWNLOADED, UPDATE_FAILED, False
            self._ended(False)
            await self._notify_state()
            return
        if self._chance.random() >= b.rollback_rate:
            self.flash.version = self.profile.new_version
        self.flash.state, self.flash.result, self.flash.told = IDLE, 1, False
        self.record.results.append(1)
        self._ended(True)
        self._reboot.set()

    async def _end(self, result: int) -> None:
        self.flash.state, self.flash.result, self.flash.told = IDLE, result, False
        self.record.results.append(result)
        self._ended(False)
        await self._notify_state()
