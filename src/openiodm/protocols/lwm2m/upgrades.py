"""What is said to devices of our own accord: the upgrades that are open, and a look at who has become due for one.

Each device has at most one task here, which runs while there is something to ask of it. It is poked by a contact, by a
notification, and by the look-out: every half second this reads the unfinished upgrades of all devices that are awake,
and so finds tasks that were created, opened, stopped or ended meanwhile, by whatever server. That read is by an index
of unfinished upgrades alone, and the look-out takes a tenth of the process at most, however many devices there are.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from mmap import mmap
from typing import Final, Protocol

import structlog

from openiodm.campaigns.reports import Outcome
from openiodm.campaigns.rollout import Contact, Result, Versions, What, offers_bytes, wants_contact
from openiodm.campaigns.states import FINAL, GRANTED, UpgradeState
from openiodm.clock import Clock, Millis
from openiodm.devices.model import DeviceKey
from openiodm.devices.told import Description
from openiodm.protocols.coap.carrier import Body, ExchangeError
from openiodm.protocols.coap.codec import Code, Message, Option, code_text, encode_uint
from openiodm.protocols.lwm2m import link
from openiodm.protocols.lwm2m.clients import Client, Clients
from openiodm.protocols.lwm2m.codec import content
from openiodm.protocols.lwm2m.codec.values import ContentFormat, Lwm2mFormatError, Path, Raw, as_text
from openiodm.protocols.lwm2m.files import PackageFiles
from openiodm.protocols.lwm2m.session import firmware, software
from openiodm.protocols.lwm2m.session.dialogue import (
    Answered,
    Effect,
    Event,
    Execute,
    Here,
    Notified,
    Observe,
    Offering,
    Pause,
    Read,
    Sources,
    Stopping,
    Unanswered,
    Upload,
    Write,
    offers,
)
from openiodm.protocols.lwm2m.talk import (
    BINARY_DOWN,
    BINARY_UP,
    FirmwareTalk,
    NoTalk,
    PcpTalk,
    SoftwareTalk,
    Talk,
    begin,
)
from openiodm.protocols.pcp import codec as pcp_codec
from openiodm.protocols.pcp import session as pcp
from openiodm.protocols.pcp.codec import PcpFormatError
from openiodm.protocols.port import EndpointDirectory, PackageAway, Unfinished

LOOK_EVERY_S: Final = 0.5
LOOK_AT: Final = 500
"""Devices whose upgrades are read in one statement."""
LOOK_SHARE: Final = 0.1
"""Of the process's time that looking may take, at most."""
STALE_AFTER: Final = Millis(900)
"""A standing that was read before this is read again before bytes are handed out: a stop holds within a second."""

FIRMWARE_STATE, BINARY, SOFTWARE_STATE = 0, 1, 2
"""The last byte of an observation's token: what is observed."""

_DEVICE: Final[Path] = (3, 0)

log = structlog.get_logger(__name__)


class Campaigns(Protocol):
    """What this module asks of the core."""

    async def signal(self, device: DeviceKey, what: What) -> Outcome:
        """Durable when it returns."""
        ...


class Devices(Protocol):
    """What this module asks of the devices room."""

    async def described(self, device: DeviceKey, told: Description) -> None:
        """What a device says of itself; durable when it returns. A version that is told counts."""
        ...


class _Halted(Exception):
    """Ends an upload in the middle."""


SourcesOf = Callable[[Client, int], Sources]
"""Where the package of an attempt is for a device."""

AnyRequest = Observe | Read | Write | Execute | Upload

_TOKEN_OF: Final = {5: FIRMWARE_STATE, 9: SOFTWARE_STATE}


class Upgrades:
    """The upgrades of all registered devices. Between `start` and `close` it looks out for new ones."""

    def __init__(
        self,
        directory: EndpointDirectory,
        campaigns: Campaigns,
        devices: Devices,
        clients: Clients,
        files: PackageFiles,
        sources: SourcesOf,
        clock: Clock,
        *,
        awake: Millis,
    ) -> None:
        self._directory = directory
        self._campaigns = campaigns
        self._devices = devices
        self._clients = clients
        self._files = files
        self._sources = sources
        self._clock = clock
        self._awake = awake
        self._look_out: asyncio.Task[None] | None = None
        self.look_every_s = LOOK_EVERY_S

    # -- what happens to a device

    def contact(self, client: Client, *, new: bool) -> None:
        """It has registered, or said that it is still there: now it can be spoken to."""
        client.here = bool(client.here)
        if new:
            client.describe = client.links.has(3)
            client.begin_anew()
        self.poke(client)

    async def notified(self, client: Client, kind: int, message: Message) -> None:
        """A notification; what it means is durable when this returns."""
        await self._keep_fresh(client)
        try:
            if kind == BINARY:
                await self._binary(client, message)
            else:
                await self._state(client, kind, message)
        except Lwm2mFormatError as error:
            log.warning("lwm2m.unreadable_notification", device=client.kept.device_id, why=str(error))
        self.poke(client)

    async def _state(self, client: Client, kind: int, message: Message) -> None:
        talk = self._talk(client)
        if isinstance(talk, FirmwareTalk | SoftwareTalk) and _TOKEN_OF[talk.state_path[0]] == kind:
            value = link.value_of(message, talk.state_path)
            if isinstance(value, int):
                await self._hear(client, talk, Notified(talk.state_path, value))

    async def _binary(self, client: Client, message: Message) -> None:
        """PCP on object 19; what else comes there is the device's own business."""
        raw = content.value(message.uint(Option.CONTENT_FORMAT), message.payload, BINARY_UP)
        if not isinstance(raw, bytes) or not pcp_codec.is_pcp(raw):
            return
        try:
            said = pcp_codec.decode_device(raw)
        except PcpFormatError as error:
            log.info("pcp.frame_dropped", device=client.kept.device_id, why=str(error))
            return
        async with client.lock:
            talk = self._talk(client)
            asked = talk.asked if isinstance(talk, PcpTalk) else None
            s = client.unfinished.standing if client.unfinished is not None and isinstance(talk, PcpTalk) else None
            await self.signal(client, pcp.hear(s, asked, said))
            if s is not None:
                s = None if client.unfinished is None else client.unfinished.standing
            ended = client.kept.attempted or (client.unfinished is None and isinstance(talk, PcpTalk))
            package = None if s is None else await self._pcp_package(client)
            asked, frames = pcp.answer(s, asked, said, package, self._clock.now(), ended=ended)
            if isinstance(talk, PcpTalk):
                talk.asked = asked
            client.say(pcp_codec.encode(frame) for frame in frames)

    async def _pcp_package(self, client: Client) -> pcp.Package | None:
        assert client.unfinished is not None
        body = await self._body(client)
        return None if body is None else pcp.Package(body, client.unfinished.fragment_bytes)

    async def _body(self, client: Client) -> mmap | None:
        assert client.unfinished is not None
        file = client.unfinished.file
        try:
            return await self._files.open(file.sha256)
        except OSError:
            log.error("package_file_missing", file_id=file.file_id, sha256=file.sha256)
        except PackageAway as error:
            log.error("package_away", sha256=file.sha256, error=str(error))
        return None

    def forget(self, client: Client) -> None:
        """It has left: nothing more is said to it."""
        client.closing = True
        if client.task is not None:
            client.task.cancel()

    # -- where it stands

    async def look(self, client: Client) -> None:
        """Reads where its upgrade stands."""
        found = await self._directory.unfinished([client.device])
        self._seen(client, found.get(client.device))

    async def _keep_fresh(self, client: Client) -> None:
        if self._clock.now() - client.looked_at >= STALE_AFTER:
            await self.look(client)

    def _seen(self, client: Client, unfinished: Unfinished | None) -> None:
        client.looked_at = self._clock.now()
        client.unfinished = unfinished
        if unfinished is None or (client.talk is not None and client.talk.action_id != unfinished.standing.action_id):
            if client.talk is not None:
                client.kept = replace(client.kept, attempted=True)
            client.talk = None
        if client.peer is not None:
            client.peer.busy = client.talk is not None

    def _talk(self, client: Client) -> Talk | None:
        """The dialogue of the attempt that is open."""
        unfinished = client.unfinished
        if unfinished is None or unfinished.standing.state not in GRANTED:
            return None
        if client.talk is None:
            s = unfinished.standing
            client.talk = begin(s, client.links, unfinished.file.size, unfinished.fragment_bytes)
            if s.state is UpgradeState.OFFERED:
                client.here = None  # it begins here: there is nothing to be resumed
        return client.talk

    async def signal(self, client: Client, signals: Sequence[What]) -> None:
        """Has them committed, one after the other, and notes where the upgrade stands then."""
        for what in signals:
            if isinstance(what, Versions):
                await self._devices.described(client.device, Description(fw_version=what.fw, sw_version=what.sw))
                await self.look(client)
                continue
            standing = (await self._campaigns.signal(client.device, what)).standing
            if client.unfinished is None or standing is None or standing.state in FINAL:
                self._seen(client, None)
            else:
                self._seen(client, replace(client.unfinished, standing=standing))

    # -- the device's task

    def poke(self, client: Client) -> None:
        """There may be something to do."""
        client.again = True
        if client.task is None:
            client.task = asyncio.create_task(self._work(client), name="lwm2m-device")

    async def _work(self, client: Client) -> None:
        try:
            while client.again:
                client.again = False
                while await self._step(client):
                    pass
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("lwm2m.upgrade_failed", device=client.kept.device_id)
        finally:
            client.task = None

    async def _step(self, client: Client) -> bool:
        """One thing; False when there is nothing to do."""
        await self._keep_fresh(client)
        talk = self._talk(client)
        if talk is not None and await self._without_the_device(client, talk):
            return True
        if not self.is_awake(client):
            return False
        if client.outbox:
            await self._send_frame(client, client.outbox.popleft())
            return True
        if client.describe:
            client.describe = False
            await self._describe(client)
            return True
        if client.binary:
            client.binary = False
            await self._observe_binary(client)
            return True
        if talk is not None:
            return await self._go_on(client, talk)
        return await self._take_turn(client)

    async def _take_turn(self, client: Client) -> bool:
        """The grant is committed before anything is said of it."""
        unfinished = client.unfinished
        if unfinished is None or not wants_contact(unfinished.standing, self._clock.now()):
            return False
        await self.signal(client, [Contact()])
        return True

    async def _without_the_device(self, client: Client, talk: Talk) -> bool:
        """What a stop, a clock or an impossible attempt makes of it, whether it can be spoken to or not."""
        assert client.unfinished is not None
        s = client.unfinished.standing
        if s.state is UpgradeState.CANCELLING and not talk.stopping:
            talk.stopping = True
            if isinstance(talk, FirmwareTalk | SoftwareTalk):
                await self._hear(client, talk, Stopping())
                return True
            answer = pcp.stopped(s)
            await self.signal(client, [] if answer is None else [answer])
            return answer is not None
        end: Result | None = None
        if isinstance(talk, NoTalk):
            end = talk.end
        elif isinstance(talk, PcpTalk):
            end = talk.overdue(s, self._clock.now())
        else:
            end = talk.give_up(s, self._sources(client, talk.action_id))
        if end is None:
            return False
        await self.signal(client, [end])
        return client.talk is not talk

    async def _go_on(self, client: Client, talk: Talk) -> bool:
        assert client.unfinished is not None
        s = client.unfinished.standing
        if isinstance(talk, PcpTalk):
            new, client.here = bool(client.here), None
            frames = talk.contact(s, self._clock.now(), new=new)
            client.say(frames)
            return bool(frames)
        if isinstance(talk, NoTalk):
            return False
        if client.here is not None:
            new, client.here = client.here, None
            await self._hear(client, talk, Here(new))
            return True
        effect = talk.next_effect(s, self._sources(client, talk.action_id))
        if effect is None:
            return False
        await self._hear(client, talk, await self._do(client, talk, effect))
        return True

    async def _hear(self, client: Client, talk: FirmwareTalk | SoftwareTalk, event: Event) -> None:
        async with client.lock:
            if client.talk is not talk or client.unfinished is None:
                return
            signals = talk.hear(client.unfinished.standing, event)
            try:
                await self.signal(client, signals)
            except BaseException:
                client.talk = None  # it has heard what is not committed: another begins, as after a restart
                raise

    async def _do(self, client: Client, talk: FirmwareTalk | SoftwareTalk, effect: Effect) -> Event:
        if isinstance(effect, Pause):
            await asyncio.sleep(effect.seconds)
            return Answered(effect, Code.CHANGED)
        body: Body | None = None
        if isinstance(effect, Write | Upload) and offers(effect):
            await self._hear(client, talk, Offering(effect))
        if isinstance(effect, Upload):
            mapped = None if client.unfinished is None else await self._body(client)
            if mapped is None:
                return Unanswered(effect)
            body = mapped
        return await self._exchange(client, effect, body)

    async def _exchange(self, client: Client, effect: AnyRequest, body: Body | None = None) -> Event:
        token = b""
        if isinstance(effect, Observe):
            kind = _TOKEN_OF[effect.path[0]]
            token = client.seed + bytes([kind])
            client.sequences.pop(kind, None)  # a device counts anew when it is asked anew, on the same token too
        answer = await self._request(client, link.request_of(effect, token), body)
        return Unanswered(effect) if answer is None else link.answered(effect, answer)

    async def _request(self, client: Client, message: Message, body: Body | None = None) -> Message | None:
        """Asks the device; None when no answer came, or was waited for when it registered anew."""
        if client.peer is None or client.carrier is None:
            return None

        def acknowledged(_bytes: int) -> None:
            client.heard_at = self._clock.now()
            if client.unfinished is None or not offers_bytes(client.unfinished.standing):
                raise _Halted

        request = client.carrier.request(client.peer, message, body=body, progress=acknowledged if body else None)
        exchange = client.exchange = asyncio.ensure_future(request)
        try:
            answer = await exchange
        except (ExchangeError, _Halted) as error:
            log.info("lwm2m.no_answer", device=client.kept.device_id, path=message.path, why=type(error).__name__)
            return None
        except asyncio.CancelledError:
            if not exchange.cancelled() or client.closing:
                exchange.cancel()
                raise
            return None
        finally:
            client.exchange = None
        client.heard_at = self._clock.now()
        return answer

    # -- beside an upgrade

    async def _describe(self, client: Client) -> None:
        """Reads versions and product from objects 3 and 5 (LwM2M 1.0 appendix E.4, E.6)."""
        told = await self._read_instance(client, _DEVICE)

        def text(resource: int) -> str | None:
            try:
                return as_text(told.get(resource, "")) or None
            except Lwm2mFormatError:
                return None

        fw_version = text(3)
        if fw_version is None and client.links.has(5):
            event = await self._exchange(client, Read(firmware.PACKAGE_VERSION))
            value = event.value if isinstance(event, Answered) and event.ok else None
            fw_version = value if isinstance(value, str) and value else None
        has_software = client.links.has(software.OBJECT) or client.kept.speaks_pcp
        said = Description(fw_version, None if has_software else text(19), text(17), text(1), text(0))
        if said != Description():
            await self._devices.described(client.device, said)
            await self.look(client)

    async def _read_instance(self, client: Client, path: Path) -> dict[int, Raw]:
        answer = await self._request(client, Message(Code.GET, link.path_options(path)))
        if answer is None or not answer.is_success:
            return {}
        try:
            return content.resources(answer.uint(Option.CONTENT_FORMAT), answer.payload, path)
        except Lwm2mFormatError as error:
            log.info("lwm2m.no_description", device=client.kept.device_id, why=str(error))
            return {}

    async def _observe_binary(self, client: Client) -> None:
        """Its data comes there, PCP among it. Bare bytes are asked for; some devices wrap them all the same."""
        accept = (Option.ACCEPT, encode_uint(ContentFormat.OPAQUE))
        options = ((Option.OBSERVE, b""), *link.path_options(BINARY_UP), accept)
        client.sequences.pop(BINARY, None)
        await self._send(client, Message(Code.GET, options, token=client.seed + bytes([BINARY])))

    async def _send_frame(self, client: Client, frame: bytes) -> None:
        """One that gets lost is asked for again by the device, or sent again at its next contact."""
        options = (*link.path_options(BINARY_DOWN), link.content_format(ContentFormat.OPAQUE))
        await self._send(client, Message(Code.PUT, options, frame))

    async def _send(self, client: Client, message: Message) -> None:
        answer = await self._request(client, message)
        if answer is not None and not answer.is_success:
            log.warning("lwm2m.refused", device=client.kept.device_id, code=code_text(answer.code), path=message.path)

    # -- the look-out

    def is_awake(self, client: Client) -> bool:
        """Can it be spoken to now? One in queue mode only for a while after it has said something."""
        now = self._clock.now()
        if client.peer is None or now >= client.expires_at:
            return False
        return not client.sleeps or now - client.heard_at < self._awake

    async def look_out(self) -> None:
        """One look at all devices; registrations that have run out go."""
        now = self._clock.now()
        awake = []
        for client in self._clients:
            if now >= client.expires_at and client.talk is None:
                log.info("lwm2m.registration_ran_out", device=client.kept.device_id)
                self._clients.remove(client)
            elif client.talk is not None or self.is_awake(client):
                awake.append(client)
        for start in range(0, len(awake), LOOK_AT):
            chunk = awake[start : start + LOOK_AT]
            found = await self._directory.unfinished([client.device for client in chunk])
            for client in chunk:
                self._seen(client, found.get(client.device))
                if self._is_due(client):
                    self.poke(client)
            await asyncio.sleep(0)

    def _is_due(self, client: Client) -> bool:
        if client.unfinished is None:
            return False
        s, talk = client.unfinished.standing, client.talk
        if talk is None:
            return s.state in GRANTED or wants_contact(s, self._clock.now())
        asks = isinstance(talk, PcpTalk) and talk.asked is not None
        return asks or (s.state is UpgradeState.CANCELLING and not talk.stopping)

    def start(self) -> None:
        """Begins to look out."""
        self._look_out = asyncio.create_task(self._run(), name="lwm2m-look-out")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self.look_out()
            except Exception:
                log.exception("lwm2m.look_out_failed")
            await asyncio.sleep(max(self.look_every_s, (loop.time() - began) / LOOK_SHARE))

    async def close(self) -> None:
        """Ends the look-out and every device's task."""
        tasks = [client.task for client in self._clients if client.task is not None]
        tasks += [self._look_out] if self._look_out is not None else []
        for client in self._clients:
            client.closing = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
