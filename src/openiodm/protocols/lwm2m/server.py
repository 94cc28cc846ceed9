"""The LwM2M server: what devices send over CoAP, plain and DTLS, to registrations, bytes and signals of the core.

Order of checks for a registration: limits (4.29), what it says (4.00, 4.12), whose endpoint it is (4.03), whether that
is the PSK identity's (4.03). It is answered after the commit. What is said to devices of our own accord is
`upgrades.py`'s.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import msgspec
import structlog

from openiodm.access.request_limit import RequestLimit
from openiodm.campaigns.model import LogEntry
from openiodm.campaigns.rollout import Progress, offers_bytes
from openiodm.campaigns.states import UpgradeEvent, UpgradeState
from openiodm.clock import Clock, Instant
from openiodm.devices.model import DeviceKey
from openiodm.errors import Unavailable
from openiodm.protocols.coap import blocks
from openiodm.protocols.coap.carrier import Address, Carrier, Peer
from openiodm.protocols.coap.codec import Code, Message, Option
from openiodm.protocols.coap.observe import is_newer
from openiodm.protocols.lwm2m.clients import SEED_BYTES, Client, Clients
from openiodm.protocols.lwm2m.codec.registration import Links, Registration, decode_registration, decode_update
from openiodm.protocols.lwm2m.codec.values import Lwm2mFormatError, parse_path
from openiodm.protocols.lwm2m.files import PackageFiles, package_of
from openiodm.protocols.lwm2m.talk import speaks_pcp
from openiodm.protocols.lwm2m.upgrades import STALE_AFTER, Upgrades
from openiodm.protocols.port import EndpointDevice, EndpointDirectory, KeptRegistration, PackageAway, Registrations

REGISTRATION_PAGE: Final = 500
"""Registrations that are read at once at the start."""
ASK_AGAIN_S: Final = 30
"""Told when the database is away (RFC 7252 section 5.9.3.4): devices that lose their registration come all at once."""

log = structlog.get_logger(__name__)


class Devices(Protocol):
    """What this protocol asks of the devices room."""

    def seen(self, device: DeviceKey, address: str, *, activated: bool) -> None:
        """Notes a contact; written in bulk, later."""
        ...


@dataclass(frozen=True, slots=True)
class _Refused(Exception):
    """Ends a request early."""

    code: Code
    text: str = ""


class Lwm2mServer:
    """Registrations, notifications and package bytes, for all endpoints together."""

    def __init__(
        self,
        directory: EndpointDirectory,
        registrations: Registrations,
        devices: Devices,
        upgrades: Upgrades,
        clients: Clients,
        files: PackageFiles,
        clock: Clock,
        chance: Callable[[int], bytes],
        limit: RequestLimit,
    ) -> None:
        self._directory = directory
        self._registrations = registrations
        self._devices = devices
        self._upgrades = upgrades
        self._clients = clients
        self._files = files
        self._clock = clock
        self._chance = chance
        self._limit = limit
        self._activated: set[DeviceKey] = set()

    async def load(self, peer_at: Callable[[Address], Peer | None] | None, carrier: Carrier | None) -> int:
        """Takes in the registrations of before a restart that have not run out; how many. On plain CoAP they can be
        spoken to at once, over DTLS when they have shaken hands anew. An address is that of the last one heard of.
        """
        at, now = DeviceKey(0), self._clock.now()
        while page := await self._registrations.after(at, REGISTRATION_PAGE):
            for kept in page:
                client = self._client(kept, _last_contact(kept))
                if client.expires_at <= now:
                    continue
                self._clients.put(client)
                if not kept.secure and kept.address and peer_at is not None and carrier is not None:
                    peer = peer_at(_address_of(kept.address))
                    holder = None if peer is None else self._clients.of_peer(peer)
                    if holder is None or holder.heard_at <= client.heard_at:
                        self._clients.speaks_from(client, peer, carrier)
            at = page[-1].device
        return len(self._clients)

    def _client(self, kept: KeptRegistration, heard_at: Instant) -> Client:
        if kept.activated:
            self._activated.add(kept.device)
        return Client(kept, _links_of(kept.links), heard_at)

    async def client_of(self, seed: bytes) -> Client | None:
        """The one that the packages of that seed are for; by its row where another server has its registration."""
        client = self._clients.of_seed(seed)
        if client is None and (kept := await self._registrations.of_token(seed.hex())) is not None:
            client = Client(kept, _links_of(kept.links), _last_contact(kept))
        return client

    # -- requests of devices

    def request(self, carrier: Carrier, peer: Peer, message: Message) -> "Message | Awaitable[Message]":
        """The handler of an endpoint: see `coap.carrier.Handler`."""
        path = message.path
        if message.code == Code.GET and len(path) == 1:
            return self._package(peer, message, path[0])
        if (refused := self._too_many(peer)) is not None:
            return refused
        return self._answer(carrier, peer, message, path)

    def _too_many(self, peer: Peer) -> Message | None:
        """RFC 8516 section 3: 4.29, and in Max-Age when to come again. A device is its PSK identity, or its address and
        port. Requests for bytes are not counted: there is one under way at a time, and each costs no statement.
        """
        turn = self._limit.peer(peer.address[0], peer.identity or peer.address)
        if not turn.refused:
            return None
        return Message(Code.TOO_MANY_REQUESTS, ((Option.MAX_AGE, bytes([turn.retry_after_s])),))

    async def _answer(self, carrier: Carrier, peer: Peer, message: Message, path: tuple[str, ...]) -> Message:
        try:
            match message.code, path:
                case Code.POST, ("rd",):
                    return await self._register(carrier, peer, message)
                case Code.POST, ("rd", location):
                    return await self._update(carrier, peer, message, location)
                case Code.DELETE, ("rd", location):
                    return await self._deregister(peer, location)
                case Code.POST, ("dp",):
                    return self._sent(peer)
                case _, ("rd", *_) | ("dp",):
                    return Message(Code.METHOD_NOT_ALLOWED)
                case _:
                    return Message(Code.NOT_FOUND)
        except Lwm2mFormatError as error:
            log.info("lwm2m.bad_request", host=peer.address[0], why=str(error))
            return Message(Code.BAD_REQUEST, payload=str(error).encode())
        except _Refused as refused:
            return Message(refused.code, payload=refused.text.encode())
        except Unavailable as error:
            log.warning("lwm2m.not_served", host=peer.address[0], error=str(error))
            return Message(Code.SERVICE_UNAVAILABLE, ((Option.MAX_AGE, bytes([ASK_AGAIN_S])),))

    async def _register(self, carrier: Carrier, peer: Peer, message: Message) -> Message:
        query = message.query
        if peer.identity is not None and not any(q.startswith("ep=") for q in query):
            query = (*query, f"ep={peer.identity}")  # LwM2M 1.1 section 6.2.1: it may be left to the security layer
        if any(q.startswith("lwm2m=") and not q.startswith("lwm2m=1.") for q in query):
            raise _Refused(Code.PRECONDITION_FAILED, "LwM2M 1.0 and 1.1 are spoken here")
        said = decode_registration(query, message.payload)
        device = await self._device_of(said.endpoint, peer)
        now = self._clock.now()
        await self._make_way(device.key, peer)
        kept = await self._registrations.put(self._kept(said, device, peer, now))
        if kept is None:
            raise _Refused(Code.FORBIDDEN, "the device was deleted")
        client = self._clients.of_device(kept.device)
        if client is None:
            client = self._client(kept, now)
        else:  # what is known of its upgrade goes on
            client.kept, client.links = kept, _links_of(kept.links)
        self._clients.put(client)
        self._clients.speaks_from(client, peer, carrier)
        self._heard(client)
        log.debug("lwm2m.registered", device=kept.device_id, endpoint=said.endpoint, version=said.version)
        self._upgrades.contact(client, new=True)
        place = ((Option.LOCATION_PATH, b"rd"), (Option.LOCATION_PATH, kept.location.encode()))
        return Message(Code.CREATED, place)

    async def _make_way(self, device: DeviceKey, peer: Peer) -> None:
        """Another device that was reached there is not any more; its row says so, for after a restart."""
        holder = self._clients.of_peer(peer)
        if holder is not None and holder.device != device:
            log.info("lwm2m.address_is_anothers", device=holder.kept.device_id, host=peer.address[0])
            await self._registrations.moved(holder.device, holder.kept.location, "")

    def _kept(self, said: Registration, device: EndpointDevice, peer: Peer, now: Instant) -> KeptRegistration:
        return KeptRegistration(
            device=device.key,
            device_id=device.device_id,
            endpoint=said.endpoint,
            location=self._chance(8).hex(),
            token=self._chance(SEED_BYTES).hex(),
            address=_address_text(peer.address),
            secure=peer.identity is not None,
            lifetime_s=said.lifetime_s,
            version=said.version,
            binding=said.binding,
            links=_links_text(said.links),
            speaks_pcp=speaks_pcp(said.links),
            registered_at=now,
        )

    async def _device_of(self, endpoint: str, peer: Peer) -> EndpointDevice:
        """Whose endpoint name it is. A node id is unique in its application; where several have it, the device must
        call itself APP_ID/NODE_ID.
        """
        found = await self._named(endpoint)
        if found is None:
            log.warning("lwm2m.unknown_endpoint", endpoint=endpoint, host=peer.address[0])
            raise _Refused(Code.FORBIDDEN, "no device of that endpoint name is registered")
        if peer.identity is None and found.secure_only:
            log.warning("lwm2m.insecure_registration", endpoint=endpoint, host=peer.address[0])
            raise _Refused(Code.FORBIDDEN, "this device must use DTLS")
        if peer.identity is not None and peer.identity != endpoint:
            owner = await self._named(peer.identity)
            if owner is None or owner.key != found.key:
                log.warning("lwm2m.foreign_endpoint", endpoint=endpoint, identity=peer.identity)
                raise _Refused(Code.FORBIDDEN, "the endpoint name is not the PSK identity's")
        return found

    async def _named(self, endpoint: str) -> EndpointDevice | None:
        devices = await self._directory.devices_of(endpoint)
        if not devices and "/" in endpoint:
            app_id, _, node_id = endpoint.partition("/")
            devices = [d for d in await self._directory.devices_of(node_id) if d.app_id == app_id]
        if len(devices) > 1:
            log.warning("lwm2m.ambiguous_endpoint", endpoint=endpoint, hint="use APP_ID/NODE_ID")
            raise _Refused(Code.FORBIDDEN, "several applications have a device of that name: use APP_ID/NODE_ID")
        return devices[0] if devices else None

    async def _update(self, carrier: Carrier, peer: Peer, message: Message, location: str) -> Message:
        said = decode_update(message.query, message.payload)
        client = await self._at(peer, location)
        kept = client.kept
        changed = replace(
            kept,
            address=_address_text(peer.address),
            lifetime_s=kept.lifetime_s if said.lifetime_s is None else said.lifetime_s,
            binding=kept.binding if said.binding is None else said.binding,
            links=kept.links if said.links is None else _links_text(said.links),
            speaks_pcp=kept.speaks_pcp if said.links is None else speaks_pcp(said.links),
        )
        await self._make_way(client.device, peer)
        if changed != kept:
            stored = await self._registrations.put(changed)
            if stored is None:
                self._clients.remove(client)
                raise _Refused(Code.NOT_FOUND)
            client.kept, client.links = stored, _links_of(stored.links)
        self._clients.speaks_from(client, peer, carrier)
        self._heard(client)
        self._upgrades.contact(client, new=False)
        return Message(Code.CHANGED)

    async def _at(self, peer: Peer, location: str) -> Client:
        """The registration of that location. Its row is looked at: the device may be deleted, its application frozen,
        or it may have registered with another server.
        """
        client = self._clients.at(location)
        kept = await self._registrations.at(location)
        now = self._clock.now()
        if kept is None and client is not None:
            self._upgrades.forget(client)
            self._clients.remove(client)
            client = None
        elif kept is not None and client is None:
            client = self._client(kept, _last_contact(kept))
            if client.expires_at > now:
                self._clients.put(client)
        if client is None or client.expires_at <= now:
            raise _Refused(Code.NOT_FOUND, "no such registration")
        if not _is_its_peer(client, peer):
            raise _Refused(Code.FORBIDDEN, "the registration is another device's")
        return client

    async def _deregister(self, peer: Peer, location: str) -> Message:
        client = await self._at(peer, location)
        await self._registrations.end(client.device, location)
        self._upgrades.forget(client)
        self._clients.remove(client)
        log.debug("lwm2m.deregistered", device=client.kept.device_id)
        return Message(Code.DELETED)

    def _sent(self, peer: Peer) -> Message:
        """LwM2M 1.1 section 6.4.6: data of the device's own accord. It means here that the device is awake."""
        client = self._clients.of_peer(peer)
        if client is None:
            return Message(Code.NOT_FOUND)
        self._heard(client)
        self._upgrades.contact(client, new=False)
        return Message(Code.CHANGED)

    def _heard(self, client: Client) -> None:
        client.heard_at = self._clock.now()
        assert client.peer is not None
        activated = client.device in self._activated
        self._devices.seen(client.device, str(client.peer.address[0]), activated=activated)
        self._activated.add(client.device)

    # -- notifications

    async def notified(self, carrier: Carrier, peer: Peer, message: Message) -> bool:
        """An endpoint's notification: see `coap.carrier.Notified`. True when it was wanted, and is durable."""
        client = self._clients.of_seed(message.token[:SEED_BYTES])
        if client is None or len(message.token) != SEED_BYTES + 1 or not _is_its_peer(client, peer):
            return False
        if self._is_anothers(client, peer):
            return False  # it was asked in the other's name, before it said a word from there
        if not message.is_success:
            return True  # the device ends the observation; it is made anew at the next registration
        kind = message.token[-1]
        if not self._is_news(client, kind, message.uint(Option.OBSERVE)):
            return True
        self._clients.speaks_from(client, peer, carrier)
        self._heard(client)
        try:
            await self._note_move(client, peer)
            await self._upgrades.notified(client, kind, message)
        except BaseException:
            client.sequences.pop(kind, None)  # it was not taken, and comes again under the same number
            raise
        return True

    async def _note_move(self, client: Client, peer: Peer) -> None:
        kept, address = client.kept, _address_text(peer.address)
        if not kept.secure and kept.address != address:
            await self._registrations.moved(client.device, kept.location, address)
            if client.peer is peer:
                client.kept = replace(client.kept, address=address)

    def _is_anothers(self, client: Client, peer: Peer) -> bool:
        """Is it another device that was heard of there last?"""
        holder = self._clients.of_peer(peer)
        return holder is not None and holder is not client

    def _is_news(self, client: Client, kind: int, sequence: int | None) -> bool:
        if sequence is None:
            return True
        now = self._clock.now()
        last = client.sequences.get(kind)
        if last is not None and not is_newer(last[0], last[1], sequence, now):
            return False
        client.sequences[kind] = (sequence, now)
        return True

    def closed(self, peer: Peer) -> None:
        """An association is no more."""
        client = self._clients.of_peer(peer)
        if client is not None:
            self._clients.speaks_from(client, None, None)

    # -- the bytes

    def _package(self, peer: Peer, message: Message, name: str) -> "Message | Awaitable[Message]":
        """A block of the package of the open attempt (law 7), from a memory map; what was read of the standing may be
        `STALE_AFTER` old, which the look-out sees to.
        """
        found = package_of(name)
        client = None if found is None else self._clients.of_seed(found[0])
        if found is None or client is None or not self._may_fetch(client, peer):
            return Message(Code.NOT_FOUND)
        fresh = self._clock.now() - client.looked_at < STALE_AFTER
        unfinished = client.unfinished
        if not fresh or unfinished is None or unfinished.standing.state is UpgradeState.OFFERED:
            return self._package_after_a_look(client, message, found[1])
        if self._files.mapped(unfinished.file.sha256) is None:
            return self._package_after_a_look(client, message, found[1])
        return self._block(client, message, found[1])

    def _may_fetch(self, client: Client, peer: Peer) -> bool:
        """The name is a secret of the device's, and may be asked for from any socket but another device's; a peer that
        has shaken hands must be that device besides.
        """
        if self._is_anothers(client, peer):
            return False
        return peer.identity is None or _is_its_peer(client, peer)

    async def _package_after_a_look(self, client: Client, message: Message, action_id: int) -> Message:
        await self._upgrades.look(client)
        unfinished = client.unfinished
        s = None if unfinished is None else unfinished.standing
        if s is not None and s.state is UpgradeState.OFFERED and s.action_id == action_id and offers_bytes(s):
            begun = Progress(action_id, LogEntry("lwm2m", ("fetches",)), UpgradeEvent.DOWNLOAD_STARTED)
            await self._upgrades.signal(client, [begun])
        unfinished = client.unfinished
        if unfinished is not None and unfinished.standing.action_id == action_id:
            file = unfinished.file
            try:
                await self._files.open(file.sha256)
            except OSError:
                log.error("package_file_missing", file_id=file.file_id, sha256=file.sha256)
                return Message(Code.NOT_FOUND)
            except PackageAway as error:
                log.error("package_away", sha256=file.sha256, error=str(error))
                return Message(Code.SERVICE_UNAVAILABLE)
        return self._block(client, message, action_id)

    def _block(self, client: Client, message: Message, action_id: int) -> Message:
        unfinished = client.unfinished
        if unfinished is None:
            return Message(Code.NOT_FOUND)
        s, file = unfinished.standing, unfinished.file
        if s.action_id != action_id or not offers_bytes(s):
            return Message(Code.NOT_FOUND)
        body = self._files.mapped(file.sha256)
        if body is None:  # closed meanwhile, for others: the device asks again
            return Message(Code.SERVICE_UNAVAILABLE)
        client.heard_at = self._clock.now()
        return blocks.serve(message, body, bytes.fromhex(file.sha256[:16]))


def _is_its_peer(client: Client, peer: Peer) -> bool:
    """Does the device speak from there? Over DTLS its identity says so; on plain CoAP what it knows (its location, its
    token) must do, and only for a device that did not register over DTLS.
    """
    if client.peer is peer:
        return True
    if peer.identity is None:
        return not client.kept.secure
    return client.kept.secure and peer.identity in (client.kept.endpoint, client.identity)


def _last_contact(kept: KeptRegistration) -> Instant:
    """Contacts are written in bulk, so the last one may be missing after a kill; a registration's own is not."""
    return kept.registered_at if kept.last_seen_at is None else max(kept.last_seen_at, kept.registered_at)


def _links_text(links: Links) -> str:
    return " ".join(sorted("/".join(map(str, path)) for path in links.paths))


def _links_of(text: str) -> Links:
    return Links(frozenset(parse_path("/" + path) for path in text.split()))


def _address_text(address: Address) -> str:
    return msgspec.json.encode(address).decode()


def _address_of(text: str) -> Address:
    host, *rest = msgspec.json.decode(text)
    return (host, *rest)
