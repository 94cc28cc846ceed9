"""The composition root: builds the rooms, wires them by plain arguments, starts and stops the listeners.

What is connected to what is read here and nowhere else.
"""

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from openiodm import __version__
from openiodm.access.audit import AuditTrail
from openiodm.access.commands import AccessCommands
from openiodm.access.flow import MemoryFlow
from openiodm.access.login_limit import LoginLimit
from openiodm.access.model import ApplicationKey, Product, TokenLives
from openiodm.access.ports import FlowControl
from openiodm.access.queries import AccessQueries
from openiodm.campaigns import jobs as campaign_jobs
from openiodm.campaigns.commands import CampaignCommands
from openiodm.campaigns.drift import DriftCheck
from openiodm.campaigns.model import Clocks
from openiodm.campaigns.queries import CampaignQueries
from openiodm.campaigns.reports import Outcome, ReportDesk
from openiodm.campaigns.rollout import Expiry, What
from openiodm.clock import SECOND, Clock, Instant, Millis, SystemClock
from openiodm.devices.commands import DeviceCommands
from openiodm.devices.groups import GroupCommands
from openiodm.devices.last_seen import LastSeen
from openiodm.devices.model import Device, DeviceKey, Silences
from openiodm.devices.queries import DeviceQueries, GroupQueries, SeenDevice
from openiodm.devices.told import AttributeKeys, Description, ToldCommands
from openiodm.http.clients import client_address
from openiodm.http.routes import Route, api_router, json_response
from openiodm.listeners import Address, Listener, address_of, bound, listener, listening, renew
from openiodm.listeners import StartError as StartError  # what `running` raises
from openiodm.metrics import Exposition, Measured, Metrics
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
from openiodm.notifications.bodies import DeviceShown
from openiodm.notifications.callbacks import Guard
from openiodm.notifications.commands import SubscriptionCommands
from openiodm.notifications.delivery import Deliverer
from openiodm.notifications.model import DeliveryRules
from openiodm.notifications.queries import SubscriptionQueries
from openiodm.notifications.sender import HttpSender
from openiodm.packages.commands import PackageCommands
from openiodm.packages.queries import PackageQueries
from openiodm.protocols.ddi import codec
from openiodm.protocols.ddi.server import DdiServer
from openiodm.protocols.lwm2m.service import Listen, Lwm2mService, Lwm2mStartError
from openiodm.protocols.lwm2m.talk import unfit_for_pcp
from openiodm.protocols.lwm2m.web import PackageSite
from openiodm.protocols.pcp.codec import FRAGMENT_DEFAULT
from openiodm.scheduler.runner import Periodic, Scheduler
from openiodm.settings import Settings, host_port
from openiodm.storage import change_log
from openiodm.storage.access import AccessReads, SharedFlow
from openiodm.storage.audit import AuditReads
from openiodm.storage.blobs import FileStore
from openiodm.storage.campaign_list import IndexedCampaignList
from openiodm.storage.campaign_reads import SqlCampaignList, SqlCampaignReads
from openiodm.storage.contacts import SqlDeviceDirectory
from openiodm.storage.devices import DeviceStore
from openiodm.storage.engine import Database
from openiodm.storage.lwm2m import PcpTargets, SqlEndpointDirectory, SqlRegistrations
from openiodm.storage.notices import NoticeRules
from openiodm.storage.open import open_database, sqlite_path
from openiodm.storage.outbox import OutboxReads
from openiodm.storage.overview import overview
from openiodm.storage.packages import PackageReads
from openiodm.storage.sqlite import ServerLock
from openiodm.storage.subscriptions import SubscriptionStore
from openiodm.storage.upgrade_pages import IndexedCampaignReads
from openiodm.storage.work import Work
from openiodm.storage.writer import Lane, Writer
from openiodm.tls import ServerTls

CLOCK_SWEEP_S = 1.0
CLOCK_SWEEP_DEVICES = 500  # whose phase clock ran out, handled at once
CLEAN_UP_S = 60.0
PSK_LOOK_S = 1.0
RENEWAL_LOOK_S = 60.0  # at the files of certificates
SWITCH_INTERVAL_S = 0.0005  # a thread that computes (hashing an upload) must not starve the loop of the GIL
READY_WITHIN_S = 5.0
DRIFT_LOOK_S = 60.0

log = structlog.get_logger(__name__)

T = TypeVar("T")


class DatabaseClock:
    """The database's clock, for servers that share one: the process's, corrected by the difference last measured."""

    def __init__(self, system: Clock, database: Database) -> None:
        self._system = system
        self._database = database
        self._ahead = 0

    def now(self) -> Instant:
        """Milliseconds since the epoch, as the database counts them."""
        return Instant(self._system.now() + self._ahead)

    async def measure(self) -> None:
        """Compares; half the round trip is the error."""
        before = self._system.now()
        there = await self._database.now()
        if there is not None:
            self._ahead = there - (before + self._system.now()) // 2


@dataclass(frozen=True, slots=True)
class Rooms:
    """Everything that edges and the command line call."""

    settings: Settings
    database: Database
    clock: Clock
    writer: Writer[Work]
    access: AccessCommands
    access_queries: AccessQueries
    audit: AuditTrail
    devices: DeviceCommands
    device_queries: DeviceQueries
    groups: GroupCommands
    group_queries: GroupQueries
    packages: PackageCommands
    package_queries: PackageQueries
    campaigns: CampaignCommands
    campaign_queries: CampaignQueries
    campaign_reads: SqlCampaignReads
    indexes: Sequence[IndexedCampaignList | IndexedCampaignReads]  # what is read from memory, once it is started
    subscriptions: SubscriptionCommands
    subscription_queries: SubscriptionQueries
    deliverer: Deliverer
    sender: HttpSender
    told: ToldCommands
    last_seen: LastSeen
    files: FileStore
    scheduler: Scheduler


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


class _Lwm2mDevices:
    """The devices room as LwM2M sees it (`protocols.lwm2m.server.Devices`)."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def described(self, device: DeviceKey, told: Description) -> None:
        await self._rooms.told.described(device, told)

    def seen(self, device: DeviceKey, address: str, *, activated: bool) -> None:
        self._rooms.last_seen.seen(device, address, activated=activated)


class _Alone:
    """The writer for what locks many devices: with commits of its own, as chunks of jobs have."""

    def __init__(self, writer: Writer[Work]) -> None:
        self._writer = writer

    async def run(self, command: Callable[[Any], Awaitable[T]]) -> T:
        return await self._writer.run(command, Lane.CHUNK)


@asynccontextmanager
async def open_rooms(settings: Settings, *, clock: Clock | None = None) -> AsyncIterator[Rooms]:
    """Opens the database and the package store, builds every room, and closes them in reverse order.

    The writer runs; scheduler, clocks and listeners do not (see `serve`), so the command line may use it beside a
    running server.
    """
    database = await open_database(settings.database_url)
    try:
        base = clock or SystemClock()
        shared = DatabaseClock(base, database)
        await shared.measure()
        files = FileStore(settings.package_dir, min_free_bytes=settings.min_free_disk_bytes)
        await files.open()
        written = asyncio.Event()
        rules = _notice_rules(settings, written.set)
        writer: Writer[Work] = Writer(database, lambda tx: Work(tx, rules))
        writer.start()
        try:
            rooms = _build(settings, database, shared, writer, files, written)
            try:
                yield rooms
            finally:
                await rooms.sender.close()
                await rooms.packages.close()
        finally:
            await writer.close()
            await files.close()
    finally:
        await database.close()


def _build(
    settings: Settings,
    database: Database,
    clock: Clock,
    writer: Writer[Work],
    files: FileStore,
    written: asyncio.Event,
) -> Rooms:
    desk = ReportDesk(clock)
    owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    alone = database.engine == "sqlite"
    scheduler = Scheduler(
        owner=owner,
        clock=clock,
        quick=writer.run,
        slow=lambda command: writer.run(command, Lane.CHUNK),
        handlers=campaign_jobs.handlers(database.engine),
        alone=alone,
    )
    limits = PcpTargets(unfit_for_pcp, FRAGMENT_DEFAULT)
    campaigns = CampaignCommands(writer, clock, _clocks(settings), desk, scheduler.wake, Lane.STOP, limits)
    indexed = (IndexedCampaignList(database), IndexedCampaignReads(database)) if settings.list_index else None
    task_list, reads = indexed or (SqlCampaignList(database), SqlCampaignReads(database))
    silences = _silences(settings)
    package_reads = PackageReads(database)
    subscription_queries = SubscriptionQueries(SubscriptionStore(database))
    guard = Guard(settings.callback_allow)
    outbox = OutboxReads(database)
    sender = HttpSender(guard, clock, settings.callback_timeout_s, outbox.security)
    device_reads = DeviceStore(database)
    return Rooms(
        settings=settings,
        database=database,
        clock=clock,
        writer=writer,
        access=AccessCommands(
            writer, clock, _token_lives(settings), LoginLimit(clock, settings.login_failures_per_minute)
        ),
        access_queries=AccessQueries(AccessReads(database), clock),
        audit=AuditTrail(AuditReads(database), writer, clock, settings.audit_days),
        devices=DeviceCommands(writer, clock, campaigns, silences, max_devices=settings.devices_per_application),
        device_queries=DeviceQueries(device_reads, clock, silences),
        groups=GroupCommands(writer, clock, max_groups=settings.groups_per_application),
        group_queries=GroupQueries(device_reads),
        packages=PackageCommands(writer, clock, files, package_reads, max_package_bytes=settings.max_package_bytes),
        package_queries=PackageQueries(package_reads),
        campaigns=campaigns,
        campaign_queries=CampaignQueries(reads, task_list, clock),
        campaign_reads=reads,
        indexes=indexed or (),
        subscriptions=SubscriptionCommands(writer, subscription_queries, clock, guard),
        deliverer=Deliverer(owner, writer, outbox, sender, clock, _delivery_rules(settings), wake=written, alone=alone),
        sender=sender,
        subscription_queries=subscription_queries,
        told=ToldCommands(writer, clock, _attribute_keys(settings), campaigns),
        last_seen=LastSeen(_Alone(writer), clock, settings.last_seen_flush_s),
        files=files,
        scheduler=scheduler,
    )


def _clocks(settings: Settings) -> Clocks:
    return Clocks(
        online=settings.online_clock_s * SECOND,
        download=settings.download_clock_s * SECOND,
        install=settings.install_clock_s * SECOND,
        verify=settings.verify_clock_s * SECOND,
        cancel=settings.cancel_clock_s * SECOND,
    )


def _silences(settings: Settings) -> Silences:
    return Silences(Millis(settings.device_abnormal_after_s * SECOND), Millis(settings.device_offline_after_s * SECOND))


def _notice_rules(settings: Settings, written: Callable[[], None]) -> NoticeRules:
    silences = _silences(settings)

    def show(device: Device, now: Instant) -> DeviceShown:
        return compat_devices.shown(SeenDevice(device, silences.status(device.last_seen_at, now)))

    return NoticeRules(show, settings.notice_newer_words, settings.notice_every_attempt, written)


def _delivery_rules(settings: Settings) -> DeliveryRules:
    return DeliveryRules(
        timeout=Millis(settings.callback_timeout_s * SECOND),
        life=Millis(settings.notice_life_s * SECOND),
        per_receiver=settings.callbacks_per_receiver,
        at_once=settings.callbacks_at_once,
    )


def _token_lives(settings: Settings) -> TokenLives:
    return TokenLives(
        life=Millis(settings.token_life_s * SECOND),
        skew=Millis(settings.token_skew_s * SECOND),
        grace=Millis(settings.token_grace_s * SECOND),
        refresh=Millis(settings.refresh_life_s * SECOND),
    )


def _attribute_keys(settings: Settings) -> AttributeKeys:
    return AttributeKeys(
        fw_version=settings.fw_version_keys,
        sw_version=settings.sw_version_keys,
        device_type=settings.device_type_keys,
        model=settings.model_keys,
        manufacturer=settings.manufacturer_keys,
    )


def _flow(rooms: Rooms, per_minute: int) -> FlowControl:
    if rooms.database.engine == "postgresql":
        return SharedFlow(rooms.database, rooms.clock, per_minute)
    return MemoryFlow(rooms.clock, per_minute)


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
        *native_tasks.routes(rooms.campaigns, rooms.campaign_queries, rooms.clock, _clocks(rooms.settings)),
    ]
    compat = compat_openapi.compat_document(
        compat_routes(rooms), __version__, errors_as_4xx=rooms.settings.group_errors_as_4xx
    )
    return [*routes, *native_openapi.routes(routes, __version__, native_devices.PATH_SCHEMAS, compat=compat)]


class Front:
    """The ASGI application of one address: which API a path belongs to."""

    def __init__(self, rooms: Rooms, *, applications: bool, devices: bool, lwm2m: Lwm2mService | None = None) -> None:
        self._rooms = rooms
        self._lwm2m = lwm2m.site if lwm2m is not None and devices else None
        self._ddi = _ddi(rooms) if devices else None
        self._trusted_proxies = frozenset(rooms.settings.trusted_proxies)
        self._compat = self._native = None
        if applications:
            settings = rooms.settings
            self._compat = api_router(
                compat_routes(rooms),
                CompatEdge(errors_as_4xx=settings.group_errors_as_4xx),
                CompatGuard(rooms.access_queries, _flow(rooms, settings.calls_per_minute)),
            )
            native = NativeGuard(rooms.access_queries, MemoryFlow(rooms.clock, settings.native_calls_per_minute))
            self._native = api_router(native_routes(rooms), NativeEdge(), native)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands the request on."""
        path: str = scope["path"]
        if self._ddi is not None and DdiServer.serves(path):
            await self._ddi(scope, receive, send)
        elif self._lwm2m is not None and PackageSite.serves(path):
            await self._lwm2m(scope, receive, send)
        elif self._native is not None and path.startswith("/api/"):
            await self._native(self._from_client(scope), receive, send)
        elif path in ("/healthz", "/readyz"):
            await self._health(scope, receive, send)
        elif self._compat is not None:
            await self._compat(self._from_client(scope), receive, send)
        else:
            await json_response({"error": "not found"}, 404)(scope, receive, send)

    @property
    def downloads(self) -> int:
        """How many are under way."""
        return 0 if self._ddi is None else self._ddi.downloads.active

    def api_of(self, path: str) -> str:
        """ddi, native, health or compat."""
        if self._ddi is not None and DdiServer.serves(path):
            return "ddi"
        if path.startswith("/api/"):
            return "native"
        return "health" if path in ("/healthz", "/readyz") else "compat"

    def _from_client(self, scope: Scope) -> Scope:
        """The scope as if no proxy stood between. DDI looks behind proxies itself: it also needs to know of them."""
        return {**scope, "client": (client_address(scope, self._trusted_proxies), 0)}

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`/healthz`: the process answers. `/readyz`: the database does too, and takes what is written."""
        if Request(scope).url.path == "/healthz":
            await json_response({"status": "ok"})(scope, receive, send)
            return
        try:
            await asyncio.wait_for(self._rooms.writer.run(self._empty_write), READY_WITHIN_S)
            await self._rooms.database.fetchval("SELECT 1")
        except Exception as error:
            log.warning("not_ready", error=type(error).__name__)
            await json_response({"status": "not ready"}, 503)(scope, receive, send)
            return
        await json_response({"status": "ready"})(scope, receive, send)

    async def _empty_write(self, work: Work) -> None:
        """On a full disk reads go on: only a commit that is written shows that reports can be taken."""
        await work.tx.fetch(self._rooms.database.empty_write)


def _ddi(rooms: Rooms) -> DdiServer:
    settings = rooms.settings
    return DdiServer(
        SqlDeviceDirectory(rooms.database),
        rooms.campaigns,
        _DdiDevices(rooms),
        rooms.files.path,
        rooms.clock,
        poll_seconds=settings.poll_interval_s,
        device_url=settings.device_url,
        trusted_proxies=frozenset(settings.trusted_proxies),
    )


@asynccontextmanager
async def _background(rooms: Rooms, tls: Sequence[ServerTls]) -> AsyncIterator[None]:
    """Scheduler, clocks, clean-ups, renewals and the list's index, stopped in reverse order."""

    async def expire() -> None:
        await expire_due(rooms)

    periodics = [
        Periodic("clocks", CLOCK_SWEEP_S, expire),
        Periodic("clean_up", CLEAN_UP_S, lambda: clean_up(rooms)),
        *(Periodic("tls", RENEWAL_LOOK_S, partial(renew, one)) for one in tls),
    ]
    if isinstance(rooms.clock, DatabaseClock):
        periodics.append(Periodic("clock", 60.0, rooms.clock.measure))
    await rooms.scheduler.start()
    await rooms.deliverer.start()
    rooms.last_seen.start()
    for index in rooms.indexes:
        index.start()
    for periodic in periodics:
        periodic.start()
    try:
        yield
    finally:
        for periodic in periodics:
            await periodic.close()
        for index in rooms.indexes:
            await index.close()
        await rooms.last_seen.close()
        await rooms.deliverer.close()
        await rooms.scheduler.close()


async def expire_due(rooms: Rooms) -> int:
    """Ends the phases whose clock has run out, through the same desk as reports; how many devices that concerned."""
    due = await rooms.campaign_reads.due(rooms.clock.now(), CLOCK_SWEEP_DEVICES)
    what: What = Expiry()
    outcomes: list[Outcome] = await asyncio.gather(*(rooms.campaigns.signal(device, what) for device in due))
    return len(outcomes)


async def clean_up(rooms: Rooms) -> None:
    """What is over, or was deleted long ago, goes."""
    await rooms.access.remove_expired_tokens()
    await rooms.audit.forget_old()
    await rooms.last_seen.flush()  # or a device that came at the last moment would be deleted
    await rooms.devices.delete_unactivated(DeviceStore(rooms.database))
    await rooms.groups.sweep_deleted()
    await rooms.packages.collect()
    await rooms.campaigns.forget_keys()
    await rooms.subscriptions.sweep(rooms.settings.notice_keep_days)
    await _trim_log(rooms)


async def _trim_log(rooms: Rooms) -> None:
    """Also without an index of our own: other servers may read the log, and triggers write it in any case."""
    changes = change_log.change_log(rooms.database.engine, change_log.CAMPAIGNS)
    while await rooms.writer.run(lambda work: changes.trim(work.tx, change_log.KEPT), Lane.CHUNK):
        continue


@asynccontextmanager
async def running(settings: Settings, started: Callable[[Rooms], Any] | None = None) -> AsyncIterator[Rooms]:
    """A whole server between enter and exit: listeners open, everything working.

    Raises:
        StartError: an address is taken, or another server owns the database file.
    """
    split = bool(settings.device_listen)
    addresses = [address_of(settings), *([address_of(settings, "device_")] if split else [])]
    measuring = [_metrics_address(settings)] if settings.metrics_listen else []
    # Before anything is begun: a wrong start changes nothing.
    with _owned(settings), bound([*addresses, *measuring]) as sockets:
        tls = [address.tls for address in addresses if address.tls is not None]
        async with open_rooms(settings) as rooms, _background(rooms, tls):
            lwm2m = lwm2m_service(rooms)
            fronts = [Front(rooms, applications=True, devices=not split, lwm2m=lwm2m)]
            if split:
                fronts.append(Front(rooms, applications=False, devices=True, lwm2m=lwm2m))
            async with _measured(rooms, fronts) as (apps, more):
                at = zip(apps, addresses, strict=True)
                listeners = [listener(app, address, settings.shutdown_grace_s) for app, address in at]
                async with _lwm2m(lwm2m), listening([*listeners, *more], sockets):
                    if started is not None:
                        await started(rooms)
                    yield rooms


def lwm2m_service(rooms: Rooms) -> Lwm2mService | None:
    """LwM2M as the settings have it; None when no port of it is to be opened."""
    settings = rooms.settings
    plain = host_port(settings.coap_listen, "coap_listen") if settings.coap_listen else None
    secure = host_port(settings.coaps_listen, "coaps_listen") if settings.coaps_listen else None
    if plain is None and secure is None:
        return None
    return Lwm2mService(
        SqlEndpointDirectory(rooms.database, FRAGMENT_DEFAULT),
        SqlRegistrations(rooms.database, rooms.writer, rooms.clock),
        rooms.campaigns,
        _Lwm2mDevices(rooms),
        rooms.files.path,
        rooms.clock,
        Listen(plain, secure, settings.coap_url, settings.coaps_url, settings.device_url),
        awake=Millis(settings.lwm2m_awake_s * SECOND),
    )


@asynccontextmanager
async def _lwm2m(service: Lwm2mService | None) -> AsyncIterator[None]:
    if service is None:
        yield
        return
    try:
        await service.start()
    except Lwm2mStartError as error:
        raise StartError(str(error)) from error
    keys = Periodic("psk", PSK_LOOK_S, service.keys.load)
    try:
        keys.start()
        yield
    finally:
        await keys.close()
        await service.close()


def _metrics_address(settings: Settings) -> Address:
    return Address(*host_port(settings.metrics_listen, "metrics_listen"), None)


@asynccontextmanager
async def _measured(rooms: Rooms, fronts: Sequence[Front]) -> AsyncIterator[tuple[Sequence[ASGIApp], list[Listener]]]:
    """The fronts, with their answers counted, and the listener that tells Prometheus; as they are, if nobody asks."""
    settings = rooms.settings
    if not settings.metrics_listen:
        yield fronts, []
        return
    metrics = Metrics(__version__)
    rooms.writer.committed = metrics.committed
    rooms.campaigns.signalled = metrics.signalled

    async def refresh() -> None:
        seen = await overview(rooms.database, rooms.clock.now())
        metrics.look(seen, rooms.writer.waiting(), sum(front.downloads for front in fronts))

    check = DriftCheck(rooms.campaign_reads, metrics.recounted)
    periodic = Periodic("drift", DRIFT_LOOK_S, check.look)
    periodic.start()
    try:
        apps = [Measured(front, metrics, front.api_of) for front in fronts]
        yield apps, [listener(Exposition(metrics, refresh), _metrics_address(settings), settings.shutdown_grace_s)]
    finally:
        await periodic.close()


@contextmanager
def _owned(settings: Settings) -> Iterator[None]:
    """A SQLite file has one server; a second one is told so."""
    path: Path | None = sqlite_path(settings.database_url)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = ServerLock(path)
    try:
        if not lock.acquire():
            raise StartError(f"another server runs on {path}; a SQLite database has one (use PostgreSQL for several)")
        yield
    finally:
        lock.release()


async def serve(settings: Settings, started: Callable[[Rooms], Any] | None = None) -> None:
    """Runs a server until SIGINT or SIGTERM, then answers what it has taken and ends."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with running(settings, started):
        log.info("started", listen=settings.url, device_listen=settings.url_for_devices)
        await stop.wait()
        log.info("stopping")
