"""A whole server: its rooms, its work in the background and its listeners, started and stopped in order."""

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from starlette.types import ASGIApp

from openiodm import __version__
from openiodm.campaigns.drift import DriftCheck
from openiodm.campaigns.reports import Outcome
from openiodm.campaigns.rollout import Expiry, What
from openiodm.clock import SECOND, Millis
from openiodm.devices.model import DeviceKey
from openiodm.devices.told import Description
from openiodm.errors import Unavailable
from openiodm.front import Front
from openiodm.http.clients import trusted
from openiodm.http.connections import Crowd
from openiodm.listeners import Address, Listener, address_of, bound, crowd, listener, listening, renew
from openiodm.listeners import StartError as StartError  # what `running` raises
from openiodm.metrics import Exposition, Measured, Metrics, Present
from openiodm.protocols.lwm2m.service import Listen, Lwm2mService, Lwm2mStartError
from openiodm.protocols.pcp.codec import FRAGMENT_DEFAULT
from openiodm.rooms import DatabaseClock, Rooms, open_rooms
from openiodm.scheduler.runner import Periodic
from openiodm.settings import Settings, host_port
from openiodm.storage import change_log
from openiodm.storage.campaign_list import IndexedCampaignList
from openiodm.storage.devices import DeviceStore
from openiodm.storage.lwm2m import SqlEndpointDirectory, SqlRegistrations
from openiodm.storage.open import sqlite_path
from openiodm.storage.overview import overview
from openiodm.storage.sqlite import ServerLock
from openiodm.storage.writer import Lane
from openiodm.tls import ServerTls
from openiodm.workers import ALONE, Worker

if TYPE_CHECKING:
    from openiodm.traces import Traces  # only where it is wanted: it may not be installed

CLOCK_SWEEP_S = 1.0
CLOCK_SWEEP_DEVICES = 500  # whose phase clock ran out, handled at once
CLEAN_UP_S = 60.0
ABANDONED_LOOK_S = 5.0
PSK_LOOK_S = 1.0
RENEWAL_LOOK_S = 60.0  # at the files of certificates
SWITCH_INTERVAL_S = 0.0005  # a thread that computes (hashing an upload) must not starve the loop of the GIL
# New objects before the youngest are looked through, and how often that comes before older ones are. Nearly nothing
# here is garbage by cycles, and with Python's 700, 10, 10 more than a tenth of the CPU went into looking for it.
GARBAGE_THRESHOLDS = (20_000, 20, 50)
DRIFT_LOOK_S = 60.0

log = structlog.get_logger(__name__)


class _Lwm2mDevices:
    """The devices room as LwM2M sees it (`protocols.lwm2m.server.Devices`)."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def described(self, device: DeviceKey, told: Description) -> None:
        await self._rooms.told.described(device, told)

    def seen(self, device: DeviceKey, address: str, *, activated: bool) -> None:
        self._rooms.last_seen.seen(device, address, activated=activated)


@asynccontextmanager
async def running(
    settings: Settings,
    started: Callable[[Rooms], Any] | None = None,
    worker: Worker = ALONE,
    traces: "Traces | None" = None,
) -> AsyncIterator[Rooms]:
    """A whole server between enter and exit: listeners open, everything working.

    Raises:
        StartError: an address is taken, or another server owns the database file.
    """
    split = bool(settings.device_listen)
    addresses = _addresses(settings)
    measuring = _metrics_addresses(settings)[worker.number - 1 : worker.number]
    # Before anything is begun: a wrong start changes nothing.
    with _owned(settings), bound([*addresses, *measuring], shared=worker.of > 1) as sockets:
        tls = [address.tls for address in addresses if address.tls is not None]
        async with open_rooms(settings) as rooms, _background(rooms, tls):
            lwm2m = lwm2m_service(rooms)
            fronts = [Front(rooms, applications=True, devices=not split, lwm2m=lwm2m)]
            if split:
                fronts.append(Front(rooms, applications=False, devices=True, lwm2m=lwm2m))
            connections = crowd()
            async with _measured(rooms, fronts, measuring, connections) as (apps, more):
                if traces is not None:
                    rooms.writer.tracer = rooms.sender.tracer = traces
                    apps = [traces.requests(app, front.kind_of) for app, front in zip(apps, fronts, strict=True)]
                at = zip(apps, addresses, strict=True)
                listeners = [listener(app, address, settings.shutdown_grace_s, connections) for app, address in at]
                async with _lwm2m(lwm2m if worker.first else None), listening([*listeners, *more], sockets):
                    if started is not None:
                        await started(rooms)
                    yield rooms


def _addresses(settings: Settings) -> list[Address]:
    return [address_of(settings), *([address_of(settings, "device_")] if settings.device_listen else [])]


def _metrics_addresses(settings: Settings) -> list[Address]:
    """One for each worker, since what Prometheus asks at one address must come from one process."""
    if not settings.metrics_listen:
        return []
    host, port = host_port(settings.metrics_listen, "metrics_listen")
    return [Address(host, port + n, None) for n in range(settings.workers)]


def check_addresses(settings: Settings) -> None:
    """For workers, whose sockets would join those of another server of the same user.

    Raises:
        StartError: an address is taken.
    """
    with bound([*_addresses(settings), *_metrics_addresses(settings)]):
        pass


def lwm2m_service(rooms: Rooms) -> Lwm2mService | None:
    """LwM2M as the settings have it; None when no port of it is to be opened.

    Of several workers the first has the ports, and all have the downloads over HTTP: a DTLS association and a transfer
    by blocks live in one process, and the kernel would deal a device's datagrams out anew whenever a worker ends.
    """
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
        rooms.files.local,
        rooms.downloads,
        rooms.clock,
        Listen(plain, secure, settings.coap_url, settings.coaps_url, settings.device_url),
        rooms.limit,
        awake=Millis(settings.lwm2m_awake_s * SECOND),
        trusted_proxies=trusted(settings.trusted_proxies),
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


@asynccontextmanager
async def _measured(
    rooms: Rooms, fronts: Sequence[Front], addresses: Sequence[Address], connections: Crowd
) -> AsyncIterator[tuple[Sequence[ASGIApp], list[Listener]]]:
    """The fronts, with their answers counted, and the listener that tells Prometheus; as they are, if nobody asks."""
    if not addresses:
        yield fronts, []
        return
    metrics = Metrics(__version__)
    rooms.writer.committed = metrics.committed
    rooms.campaigns.signalled = metrics.signalled
    rooms.downloads.sent, rooms.downloads.ended = metrics.sent, metrics.downloaded
    rooms.scheduler.stepped = metrics.stepped
    rooms.deliverer.attempted = metrics.attempted

    async def refresh() -> None:
        seen = await overview(rooms.database, rooms.clock.now())
        index = next((i for i in rooms.indexes if isinstance(i, IndexedCampaignList)), None)
        metrics.look(
            seen,
            Present(
                waiting=rooms.writer.waiting(),
                downloads=rooms.downloads.active,
                receivers=rooms.deliverer.receivers,
                index=None if index is None else await index.look(),
            ),
        )

    check = DriftCheck(rooms.campaign_reads, metrics.recounted)
    periodic = Periodic("drift", DRIFT_LOOK_S, check.look)
    periodic.start()
    try:
        apps = [Measured(front, metrics, front.kind_of) for front in fronts]
        told = Exposition(metrics, refresh)
        yield apps, [listener(told, address, rooms.settings.shutdown_grace_s, connections) for address in addresses]
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


@asynccontextmanager
async def _background(rooms: Rooms, tls: Sequence[ServerTls]) -> AsyncIterator[None]:
    """Scheduler, clocks, clean-ups, renewals and the list's index, stopped in reverse order."""

    async def expire() -> None:
        await expire_due(rooms)

    periodics = [
        Periodic("clocks", CLOCK_SWEEP_S, expire),
        Periodic("clean_up", CLEAN_UP_S, lambda: clean_up(rooms)),
        Periodic("abandoned", ABANDONED_LOOK_S, lambda: end_abandoned(rooms)),
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


async def end_abandoned(rooms: Rooms) -> None:
    """What a frozen server has locked holds up all others."""
    if ended := await rooms.database.end_abandoned():
        log.warning("abandoned_transactions_ended", transactions=ended)


async def clean_up(rooms: Rooms) -> None:
    """What is over, or was deleted long ago, goes. A step that fails, time after time perhaps, keeps no other back."""
    steps: dict[str, Callable[[], Awaitable[object]]] = {
        "tokens": rooms.access.remove_expired_tokens,
        "logins": rooms.access.forget_old_logins,
        "audit": rooms.audit.forget_old,
        "devices": lambda: _delete_unactivated(rooms),
        "groups": rooms.groups.sweep_deleted,
        "packages": rooms.packages.collect,
        "keys": rooms.campaigns.forget_keys,
        "subscriptions": lambda: rooms.subscriptions.sweep(rooms.settings.notice_keep_days),
        "changes": lambda: _trim_log(rooms),
    }
    for name, step in steps.items():
        try:
            await step()
        except Unavailable as error:  # then all of them fail
            log.warning("clean_up_put_off", step=name, error=str(error))
            break
        except Exception:
            log.exception("clean_up_failed", step=name)
    _tell_refused(rooms)


async def _delete_unactivated(rooms: Rooms) -> None:
    await rooms.last_seen.flush()  # or a device that came at the last moment would be deleted
    await rooms.devices.delete_unactivated(DeviceStore(rooms.database))


def _tell_refused(rooms: Rooms) -> None:
    """Once in a while, not for each: a flood must not become one of the log."""
    if refused := rooms.limit.refused:
        log.warning("requests_refused", **{limit.value: count for limit, count in refused.items()})
        refused.clear()


async def _trim_log(rooms: Rooms) -> None:
    """Also without an index of our own: other servers may read the log, and triggers write it in any case."""
    changes = change_log.change_log(rooms.database.engine, change_log.CAMPAIGNS)
    while await rooms.writer.run(lambda work: changes.trim(work.tx, change_log.KEPT), Lane.CHUNK):
        continue


def answer_evenly() -> None:
    """No long pauses of this process: threads hand the interpreter over soon, and the garbage collection leaves alone
    what is there now: modules, rooms and routes, which stay for ever. To be called when they are there.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


async def serve(
    settings: Settings,
    started: Callable[[Rooms], Any] | None = None,
    worker: Worker = ALONE,
    traces: "Traces | None" = None,
) -> None:
    """Runs a server until SIGINT, SIGTERM or the end of its parent, then answers what it has taken and ends."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if worker.parent is not None:
        loop.add_reader(worker.parent, stop.set)
    async with running(settings, started, worker, traces):
        answer_evenly()
        log.info("started", listen=settings.url, device_listen=settings.url_for_devices)
        await stop.wait()
        if worker.parent is not None:
            loop.remove_reader(worker.parent)  # it would be called without end
        log.info("stopping")
    if traces is not None:
        await traces.close()
