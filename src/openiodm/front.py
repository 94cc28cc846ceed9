"""What answers on one HTTP address: both APIs, the devices' DDI and LwM2M downloads, and the health of the server."""

import asyncio
from collections.abc import Mapping

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from openiodm import __version__
from openiodm.access.flow import MemoryFlow
from openiodm.access.model import ApplicationKey, Product
from openiodm.access.ports import FlowControl
from openiodm.devices.model import DeviceKey
from openiodm.errors import Reason, Refusal
from openiodm.http.clients import client_address, trusted
from openiodm.http.routes import Edge, Route, api_router, json_response
from openiodm.northbound.compat import auth as compat_auth
from openiodm.northbound.compat import credentials as compat_credentials
from openiodm.northbound.compat import devices as compat_devices
from openiodm.northbound.compat import groups as compat_groups
from openiodm.northbound.compat import openapi as compat_openapi
from openiodm.northbound.compat import packages as compat_packages
from openiodm.northbound.compat import subscriptions as compat_subscriptions
from openiodm.northbound.compat import tasks as compat_tasks
from openiodm.northbound.compat.edge import CompatEdge
from openiodm.northbound.compat.guard import CompatGuard
from openiodm.northbound.native import application as native_application
from openiodm.northbound.native import audit as native_audit
from openiodm.northbound.native import devices as native_devices
from openiodm.northbound.native import groups as native_groups
from openiodm.northbound.native import notices as native_notices
from openiodm.northbound.native import openapi as native_openapi
from openiodm.northbound.native import packages as native_packages
from openiodm.northbound.native import tasks as native_tasks
from openiodm.northbound.native.edge import NativeEdge
from openiodm.northbound.native.guard import NativeGuard
from openiodm.protocols.ddi import codec
from openiodm.protocols.ddi.server import DdiServer
from openiodm.protocols.lwm2m.service import Lwm2mService
from openiodm.protocols.lwm2m.web import PackageSite
from openiodm.protocols.signed import SignedLinks, SignedSite
from openiodm.rooms import Rooms, clocks
from openiodm.settings import Settings
from openiodm.storage.access import SharedFlow
from openiodm.storage.contacts import SqlDeviceDirectory
from openiodm.storage.work import Work

READY_WITHIN_S = 5.0

log = structlog.get_logger(__name__)


class Front:
    """The ASGI application of one address: which API a path belongs to."""

    def __init__(self, rooms: Rooms, *, applications: bool, devices: bool, lwm2m: Lwm2mService | None = None) -> None:
        self._rooms = rooms
        self._lwm2m = lwm2m.site if lwm2m is not None and devices else None
        links = _links(rooms.settings)
        self._ddi = _ddi(rooms, links) if devices else None
        self._signed = _signed(rooms, links) if devices and links is not None else None
        self._trusted_proxies = trusted(rooms.settings.trusted_proxies)
        self._compat = self._native = None
        self._compat_edge = CompatEdge(errors_as_4xx=rooms.settings.group_errors_as_4xx)
        self._native_edge = NativeEdge()
        self._looking: asyncio.Task[bool] | None = None
        if applications:
            settings = rooms.settings
            compat = CompatGuard(rooms.access_queries, _flow(rooms, settings.calls_per_minute, "flow_control"))
            self._compat = api_router(compat_routes(rooms), self._compat_edge, compat)
            flow = _flow(rooms, settings.native_calls_per_minute, "native_flow_control")
            native = NativeGuard(rooms.access_queries, flow)
            self._native = api_router(native_routes(rooms), self._native_edge, native)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands the request on."""
        path: str = scope["path"]
        if self._ddi is not None and DdiServer.serves(path):
            await self._ddi(scope, receive, send)
        elif self._lwm2m is not None and PackageSite.serves(path):
            await self._lwm2m(scope, receive, send)
        elif self._signed is not None and SignedSite.serves(path):
            await self._signed(scope, receive, send)
        elif self._native is not None and path.startswith("/api/"):
            await self._api(self._native, self._native_edge, scope, receive, send)
        elif path in ("/healthz", "/readyz"):
            await self._health(scope, receive, send)
        elif self._compat is not None:
            await self._api(self._compat, self._compat_edge, scope, receive, send)
        else:
            await json_response({"error": "not found"}, 404)(scope, receive, send)

    def kind_of(self, path: str) -> tuple[str, str | None]:
        """ddi, native, health or compat; of ddi also poll, report, download or other."""
        if self._ddi is not None and DdiServer.serves(path):
            return "ddi", DdiServer.kind_of(path)
        if path.startswith("/api/"):
            return "native", None
        return ("health" if path in ("/healthz", "/readyz") else "compat"), None

    async def _api(self, api: ASGIApp, edge: Edge, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a request of an application on as if no proxy stood between, unless its address asks too much.

        DDI looks behind proxies itself: it also needs to know of them.
        """
        address = client_address(scope, self._trusted_proxies)
        scope = {**scope, "client": (address, 0)}
        turn = self._rooms.limit.address(address)
        if turn.refused:
            await edge.refusal(Refusal(Reason.THROTTLED, turn.why), Request(scope))(scope, receive, send)
            return
        await api(scope, receive, send)

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`/healthz`: the process answers. `/readyz`: the database does too, and takes what is written."""
        if Request(scope).url.path == "/healthz":
            await json_response({"status": "ok"})(scope, receive, send)
            return
        # Nobody needs a token to ask: however many do, one look is under way.
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="readiness")
        if await asyncio.shield(self._looking):
            await json_response({"status": "ready"})(scope, receive, send)
        else:
            await json_response({"status": "not ready"}, 503)(scope, receive, send)

    async def _look(self) -> bool:
        try:
            await asyncio.wait_for(self._rooms.writer.run(self._empty_write), READY_WITHIN_S)
            await self._rooms.database.fetchval("SELECT 1")
        except Exception as error:
            log.warning("not_ready", error=type(error).__name__)
            return False
        return self._rooms.writer.is_writable

    async def _empty_write(self, work: Work) -> None:
        """On a full disk reads go on: only a commit that is written shows that reports can be taken."""
        await work.tx.fetch(self._rooms.database.empty_write)


def compat_routes(rooms: Rooms) -> list[Route]:
    """Every route of the compatible API."""
    return [
        *compat_auth.routes(rooms.access),
        *compat_credentials.routes(rooms.devices, rooms.device_queries),
        *compat_devices.routes(rooms.devices, rooms.device_queries),
        *compat_groups.routes(rooms.groups, rooms.group_queries),
        *compat_packages.routes(rooms.packages, rooms.package_queries),
        *compat_subscriptions.routes(rooms.subscriptions, rooms.subscription_queries),
        *compat_tasks.routes(rooms.campaigns, rooms.campaign_queries, rooms.clock),
    ]


def native_routes(rooms: Rooms) -> list[Route]:
    """Every route of the native API, and those that describe both APIs."""
    routes = [
        *native_packages.routes(rooms.packages, rooms.package_queries),
        *native_devices.routes(rooms.devices, rooms.device_queries),
        *native_groups.routes(rooms.groups, rooms.group_queries, rooms.device_queries),
        *native_notices.routes(rooms.subscriptions, rooms.subscription_queries),
        *native_application.routes(rooms.access, rooms.access_queries),
        *native_audit.routes(rooms.audit),
        *native_tasks.routes(rooms.campaigns, rooms.campaign_queries, rooms.clock, clocks(rooms.settings)),
    ]
    compat = compat_openapi.compat_document(
        compat_routes(rooms), __version__, errors_as_4xx=rooms.settings.group_errors_as_4xx
    )
    return [*routes, *native_openapi.routes(routes, __version__, native_devices.PATH_SCHEMAS, compat=compat)]


def _flow(rooms: Rooms, per_minute: int, table: str) -> FlowControl:
    if rooms.database.engine == "postgresql":
        return SharedFlow(rooms.database, rooms.clock, per_minute, table)
    return MemoryFlow(rooms.clock, per_minute)


def _links(settings: Settings) -> SignedLinks | None:
    return SignedLinks(settings.cdn_url, settings.cdn_key, settings.cdn_life_s) if settings.cdn_url else None


def _signed(rooms: Rooms, links: SignedLinks) -> SignedSite:
    proxies = trusted(rooms.settings.trusted_proxies)
    return SignedSite(links, rooms.files.local, rooms.downloads, rooms.clock, proxies)


def _ddi(rooms: Rooms, links: SignedLinks | None) -> DdiServer:
    settings = rooms.settings
    return DdiServer(
        SqlDeviceDirectory(rooms.database),
        rooms.campaigns,
        _DdiDevices(rooms),
        rooms.downloads,
        rooms.clock,
        rooms.limit,
        poll_seconds=settings.poll_interval_s,
        device_url=settings.device_url,
        links=links,
        trusted_proxies=trusted(settings.trusted_proxies),
    )


class _DdiDevices:
    """The devices room as DDI sees it (`protocols.ddi.server.Devices`)."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def self_register(self, application: ApplicationKey, node_id: str, product: Product, address: str) -> object:
        return await self._rooms.devices.self_register(application, node_id, product, address)

    async def told_attributes(self, device: DeviceKey, mode: str, data: Mapping[str, str | None]) -> None:
        await self._rooms.told.attributes(device, mode, data)

    async def told_installed(self, device: DeviceKey, name: str, version: str) -> bool:
        return await self._rooms.told.installed(device, name, version)

    async def set_auto_confirm(self, device: DeviceKey, state: codec.AutoConfirm | None) -> bool:
        if state is None:
            return await self._rooms.told.no_auto_confirm(device)
        return await self._rooms.told.auto_confirm(device, state.initiator, state.remark)

    def seen(self, device: DeviceKey, address: str, *, activated: bool) -> None:
        self._rooms.last_seen.seen(device, address, activated=activated)
