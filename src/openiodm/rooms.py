"""Builds the rooms: what is connected to what is read here, as plain arguments, and nowhere else."""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from openiodm.access.audit import AuditTrail
from openiodm.access.commands import AccessCommands
from openiodm.access.login_limit import LoginLimit, MemoryCounts
from openiodm.access.model import TokenLives
from openiodm.access.queries import AccessQueries
from openiodm.access.request_limit import RequestLimit
from openiodm.campaigns import jobs as campaign_jobs
from openiodm.campaigns.commands import CampaignCommands
from openiodm.campaigns.model import Clocks
from openiodm.campaigns.queries import CampaignQueries
from openiodm.campaigns.reports import ReportDesk
from openiodm.clock import SECOND, Clock, Instant, Millis, SystemClock
from openiodm.devices.commands import DeviceCommands
from openiodm.devices.groups import GroupCommands
from openiodm.devices.last_seen import LastSeen
from openiodm.devices.model import Device, Silences
from openiodm.devices.queries import DeviceQueries, GroupQueries, SeenDevice
from openiodm.devices.told import AttributeKeys, ToldCommands
from openiodm.northbound.compat import devices as compat_devices
from openiodm.notifications.bodies import DeviceShown
from openiodm.notifications.callbacks import Guard
from openiodm.notifications.commands import SubscriptionCommands
from openiodm.notifications.delivery import Deliverer
from openiodm.notifications.model import DeliveryRules
from openiodm.notifications.queries import SubscriptionQueries
from openiodm.notifications.sender import HttpSender
from openiodm.packages.commands import PackageCommands
from openiodm.packages.ports import BlobStore
from openiodm.packages.queries import PackageQueries
from openiodm.protocols.download import Downloads, Handover
from openiodm.protocols.lwm2m.talk import unfit_for_pcp
from openiodm.protocols.pcp.codec import FRAGMENT_DEFAULT
from openiodm.scheduler.runner import Scheduler
from openiodm.settings import Settings
from openiodm.storage.access import AccessReads
from openiodm.storage.audit import AuditReads
from openiodm.storage.blobs import FileStore
from openiodm.storage.campaign_list import IndexedCampaignList
from openiodm.storage.campaign_reads import SqlCampaignList, SqlCampaignReads
from openiodm.storage.devices import DeviceStore
from openiodm.storage.engine import Database
from openiodm.storage.login_counts import SharedCounts
from openiodm.storage.lwm2m import PcpTargets
from openiodm.storage.notices import NoticeRules
from openiodm.storage.open import open_database
from openiodm.storage.outbox import OutboxReads
from openiodm.storage.packages import PackageReads
from openiodm.storage.subscriptions import SubscriptionStore
from openiodm.storage.upgrade_pages import IndexedCampaignReads
from openiodm.storage.work import Work
from openiodm.storage.writer import Lane, Writer

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


class PackageStore(BlobStore, Protocol):
    """The bytes of packages, in a folder or in a bucket: as `packages` sees it, and as protocols do."""

    async def open(self) -> int:
        """Makes it ready; how many leftovers of a crash were removed."""
        ...

    async def local(self, sha256: str) -> Path:
        """See `protocols.port.LocalFile`."""
        ...

    async def close(self) -> None:
        """Waits for what is under way."""
        ...


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
    files: PackageStore
    downloads: Downloads
    scheduler: Scheduler
    limit: RequestLimit


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
        files, downloads = _package_store(settings, shared)
        await files.open()
        written = asyncio.Event()
        rules = _notice_rules(settings, written.set)
        writer: Writer[Work] = Writer(database, lambda tx: Work(tx, rules))
        writer.start()
        try:
            rooms = _build(settings, database, shared, writer, files, downloads, written)
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
    files: PackageStore,
    downloads: Downloads,
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
    campaigns = CampaignCommands(writer, clock, clocks(settings), desk, scheduler.wake, Lane.STOP, limits)
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
        access=AccessCommands(writer, clock, _token_lives(settings), _login_limit(settings, database, clock)),
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
        downloads=downloads,
        scheduler=scheduler,
        limit=RequestLimit(
            clock,
            per_address=settings.address_requests_per_minute,
            per_device=settings.device_requests_per_minute,
            failures_per_address=settings.credential_failures_per_minute,
        ),
    )


def _package_store(settings: Settings, clock: Clock) -> tuple[PackageStore, Downloads]:
    folder = FileStore(settings.package_dir, min_free_bytes=settings.min_free_disk_bytes)
    handover = Handover(settings.accel_prefix, folder.folder) if settings.accel_prefix else None
    if not settings.package_store:
        return folder, Downloads(folder.local, handover)
    from openiodm.storage.bucket import BucketStore, connect

    bucket = connect(settings.package_store, settings.s3_endpoint, settings.s3_region)
    store = BucketStore(bucket, folder, clock, cache_bytes=settings.package_cache_bytes)
    elsewhere = partial(store.url, life_s=settings.package_redirect_s) if settings.package_redirect_s else None
    return store, Downloads(store.local, handover, elsewhere)


def _login_limit(settings: Settings, database: Database, clock: Clock) -> LoginLimit:
    n = settings.login_failures_per_minute
    return LoginLimit(clock, n, SharedCounts(database, n) if database.engine == "postgresql" else MemoryCounts(n))


def clocks(settings: Settings) -> Clocks:
    """How long a phase of an upgrade may take."""
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
