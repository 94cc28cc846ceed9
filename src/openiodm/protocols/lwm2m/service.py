"""The whole of LwM2M on its sockets: plain CoAP, DTLS, or both, with one set of devices behind them."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from openiodm.access.request_limit import RequestLimit
from openiodm.clock import Clock, Millis, SteadyClock, random_bytes
from openiodm.protocols.coap import openssl
from openiodm.protocols.coap.carrier import Address, Peer
from openiodm.protocols.coap.codec import Message
from openiodm.protocols.coap.dtls import Context, DtlsError, check_suites
from openiodm.protocols.coap.endpoint import Endpoint
from openiodm.protocols.coap.udp import UdpSocket
from openiodm.protocols.download import Downloads
from openiodm.protocols.lwm2m import server, upgrades
from openiodm.protocols.lwm2m.clients import Clients
from openiodm.protocols.lwm2m.files import PackageFiles
from openiodm.protocols.lwm2m.keys import Keys
from openiodm.protocols.lwm2m.places import Places
from openiodm.protocols.lwm2m.server import Lwm2mServer
from openiodm.protocols.lwm2m.upgrades import Campaigns, Upgrades
from openiodm.protocols.lwm2m.web import PackageSite
from openiodm.protocols.port import EndpointDirectory, LocalFile, Registrations

COOKIE_SECRET_BYTES: Final = 32

log = structlog.get_logger(__name__)


class Lwm2mStartError(Exception):
    """It cannot be served; the text says why, for a person."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen, and how devices reach that from outside. None: not at all."""

    plain: tuple[str, int] | None
    secure: tuple[str, int] | None
    coap_url: str = ""
    coaps_url: str = ""
    http_url: str = ""


class Devices(server.Devices, upgrades.Devices, Protocol):
    """What LwM2M asks of the devices room."""


class Lwm2mService:
    """LwM2M devices, between `start` and `close`; `site` works without."""

    def __init__(
        self,
        directory: EndpointDirectory,
        registrations: Registrations,
        campaigns: Campaigns,
        devices: Devices,
        local: LocalFile,
        downloads: Downloads,
        clock: Clock,
        listen: Listen,
        limit: RequestLimit,
        *,
        awake: Millis,
        trusted_proxies: frozenset[str] = frozenset(),
    ) -> None:
        self._listen = listen
        self._clock = clock
        self.clients = Clients()
        self.keys = Keys(directory)
        self._files = PackageFiles(local)
        self._sockets: list[tuple[UdpSocket, Endpoint]] = []
        self.plain: Endpoint | None = None
        self.secure: Endpoint | None = None
        self._places = Places(None, None)
        self.upgrades = Upgrades(
            directory,
            campaigns,
            devices,
            self.clients,
            self._files,
            lambda client, action_id: self._places.sources(client, action_id),
            clock,
            awake=awake,
        )
        self.server = Lwm2mServer(
            directory, registrations, devices, self.upgrades, self.clients, self._files, clock, random_bytes, limit
        )
        self.site = PackageSite(self.server.client_of, self.upgrades, downloads, trusted_proxies)

    async def start(self) -> None:
        """Binds, takes in the registrations of before, and begins to answer.

        Raises:
            Lwm2mStartError: an address is taken, or there is no DTLS here.
        """
        listen = self._listen
        try:
            plain = None if listen.plain is None else self._bind(listen.plain, "coap_listen")
            secure = None if listen.secure is None else self._bind(listen.secure, "coaps_listen")
            self._places = Places(
                None if plain is None else plain.address[1],
                None if secure is None else secure.address[1],
                coap_url=listen.coap_url,
                coaps_url=listen.coaps_url,
                http_url=listen.http_url,
            )
            if secure is not None:
                await self.keys.load()
                self.secure = self._endpoint(secure, _dtls(self.keys))
            if plain is not None:
                self.plain = self._endpoint(plain, None)
        except BaseException:
            for socket, _ in self._sockets:
                socket.close()
            raise
        known = await self.server.load(self._peer_at, self.plain)
        for socket, endpoint in self._sockets:
            socket.start(endpoint)
        self.upgrades.start()
        log.info("lwm2m.started", coap=self.plain_address, coaps=self.secure_address, registrations=known)

    def _bind(self, address: tuple[str, int], setting: str) -> UdpSocket:
        try:
            return UdpSocket(*address)
        except OSError as error:
            raise Lwm2mStartError(f"{setting}: cannot listen on {address[0]}:{address[1]}: {error.strerror}") from error

    def _endpoint(self, socket: UdpSocket, dtls: Context | None) -> Endpoint:
        def handle(peer: Peer, message: Message) -> Message | Awaitable[Message]:
            return self.server.request(endpoint, peer, message)

        async def notified(peer: Peer, message: Message) -> bool:
            return await self.server.notified(endpoint, peer, message)

        endpoint = Endpoint(
            socket.transmit,
            handle,
            notified,
            clock=SteadyClock(),
            chance=random_bytes,
            dtls=dtls,
            closed=self.server.closed,
        )
        self._sockets.append((socket, endpoint))
        return endpoint

    def _peer_at(self, address: Address) -> Peer | None:
        return None if self.plain is None else self.plain.peer_at(address)

    @property
    def plain_address(self) -> Address | None:
        """Where plain CoAP is answered."""
        return next((s.address for s, e in self._sockets if e is self.plain), None)

    @property
    def secure_address(self) -> Address | None:
        """Where DTLS is answered."""
        return next((s.address for s, e in self._sockets if e is self.secure), None)

    async def close(self) -> None:
        """Ends what is under way and gives the ports back."""
        await self.upgrades.close()
        for socket, endpoint in self._sockets:
            await endpoint.close()
            socket.close()
        await self.keys.close()
        self._files.close()


def _dtls(keys: Keys) -> Context:
    try:
        broken = {suite: why for suite, why in check_suites().items() if why}
        context = Context(keys.of, secret=random_bytes(COOKIE_SECRET_BYTES), seek=keys.seek, doubt=keys.doubt)
    except (openssl.DtlsUnavailable, DtlsError) as error:
        raise Lwm2mStartError(f"coaps_listen: {error}") from error
    log.info("lwm2m.dtls", openssl=openssl.version(), broken_suites=broken, keys=len(keys))
    return context
