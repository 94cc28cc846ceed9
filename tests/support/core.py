"""A core without edges: the real writer, rows and rules on a real database; devices and packages put in by SQL."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from openiodm.access.model import Actor, ApplicationKey
from openiodm.campaigns import jobs as campaign_jobs
from openiodm.campaigns.commands import CampaignCommands
from openiodm.campaigns.model import CampaignKind, Clocks, LogEntry, NewCampaign, Policy, Target
from openiodm.campaigns.queries import CampaignQueries
from openiodm.campaigns.reports import Outcome, ReportDesk
from openiodm.campaigns.rollout import Contact, Progress, Result, Versions, What
from openiodm.campaigns.states import UpgradeEvent, UpgradeState
from openiodm.clock import Instant
from openiodm.devices.model import Device, DeviceKey, DeviceStatus
from openiodm.devices.queries import SeenDevice
from openiodm.northbound.compat import devices as compat_devices
from openiodm.notifications.bodies import DeviceShown
from openiodm.notifications.model import UPGRADE_TYPES
from openiodm.notifications.ports import NewSubscription
from openiodm.scheduler.model import Done, Job, Later, More
from openiodm.storage.audit import AuditRows
from openiodm.storage.campaign_reads import SqlCampaignList, SqlCampaignReads
from openiodm.storage.campaigns import CampaignRows
from openiodm.storage.engine import Database, InsertMany, Tx
from openiodm.storage.jobs import JobRows
from openiodm.storage.notices import NoticeRows, NoticeRules
from openiodm.storage.subscriptions import SubscriptionRows
from openiodm.storage.work import Work
from openiodm.storage.writer import Lane, Writer
from tests.conftest import ManualClock
from tests.support.laws import broken_laws, untold

CLOCKS = Clocks(online=86_400_000, download=3_600_000, install=1_800_000, verify=600_000, cancel=300_000)
LOG = LogEntry("device", ("a line",))

DEVICES = InsertMany(
    "device",
    {
        "device_id": "text",
        "application_id": "bigint",
        "node_id": "text",
        "product_id": "bigint",
        "fw_version": "text",
        "reports_fw": "boolean",
        "reports_sw": "boolean",
        "self_registered": "boolean",
        "attributes": "text",
        "attributes_wanted": "boolean",
        "info": "text",
        "activation_timeout": "bigint",
        "registered_at": "bigint",
        "modified_at": "bigint",
        "attempt_seq": "int",
    },
)


def show(device: Device, now: Instant) -> DeviceShown:
    """As `app` wires it, for devices that never made contact."""
    return compat_devices.shown(SeenDevice(device, DeviceStatus.INACTIVE))


RULES = NoticeRules(show)


def whole_work(tx: Tx) -> Work:
    """Every room's rows."""
    return Work(tx, RULES)


def bind(tx: Tx) -> Any:
    return SimpleNamespace(
        tx=tx,
        campaigns=CampaignRows(tx),
        jobs=JobRows(tx),
        audit=AuditRows(tx),
        notices=NoticeRows(tx, RULES),
        subscriptions=SubscriptionRows(tx),
    )


@dataclass
class Core:
    """One application with a package `V2` for product 1, and whatever devices a test adds."""

    database: Database
    clock: ManualClock
    writer: Writer[Any]
    commands: CampaignCommands
    queries: CampaignQueries
    reads: SqlCampaignReads
    actor: Actor = field(default=Actor(ApplicationKey(1), "app1"))
    subscribed: bool = True

    async def add_devices(self, count: int, version: str | None = "V1", first: int = 1, product: int = 1) -> list[str]:
        rows = [
            (f"d{n}", 1, f"n{n}", product, version, version is not None, False, False, "{}", True, "{}", 0, 0, 0, 0)
            for n in range(first, first + count)
        ]
        async with self.database.transaction() as tx:
            await tx.insert_many(DEVICES, rows)
        return [r[0] for r in rows]

    async def add_group(self, name: str, first: int, count: int) -> None:
        async with self.database.transaction() as tx:
            group = await tx.fetchval(
                "INSERT INTO device_group (group_id, application_id, name, max_devices, device_count, created_at) "
                "VALUES ($1, 1, $1, 0, 0, 0) RETURNING id",
                name,
            )
            await tx.execute(
                "INSERT INTO group_member (group_id, device_id, product_id) "
                "SELECT CAST($1 AS bigint), id, product_id FROM device WHERE id >= $2 AND id < $3",
                group,
                first,
                first + count,
            )

    async def create(self, devices: list[str] | None = None, **kwargs: Any) -> str:
        groups = kwargs.pop("groups", None)
        target = Target(
            devices=None if devices is None else tuple(devices), groups=None if groups is None else tuple(groups)
        )
        asked = NewCampaign(
            kind=kwargs.pop("kind", CampaignKind.FIRMWARE),
            file_id=kwargs.pop("file_id", "f1"),
            target=target,
            policy=kwargs.pop("policy", Policy()),
            **kwargs,
        )
        return await self.commands.create(self.actor, asked)

    async def signal(self, device: int, what: What) -> Outcome:
        return await self.commands.signal(DeviceKey(device), what)

    async def contact(self, device: int) -> Outcome:
        return await self.signal(device, Contact())

    async def grant(self, device: int) -> int:
        """A contact that must end in an offer; the action id."""
        outcome = await self.contact(device)
        assert outcome.standing is not None
        assert outcome.standing.state is UpgradeState.OFFERED
        assert outcome.standing.action_id is not None
        return outcome.standing.action_id

    async def succeed(self, device: int) -> None:
        """The whole way of one device that reports versions."""
        action = await self.grant(device)
        await self.signal(device, Progress(action, LOG, UpgradeEvent.DOWNLOAD_STARTED))
        await self.signal(device, Result(action, True, LOG))
        await self.signal(device, Versions(fw="V2"))
        await self.set_version(device, "V2")

    async def fail(self, device: int, detail: str = "broken") -> None:
        action = await self.grant(device)
        await self.signal(device, Result(action, False, LOG, detail=detail))

    async def set_version(self, device: int, version: str) -> None:
        async with self.database.transaction() as tx:
            await tx.execute("UPDATE device SET fw_version = $2, reports_fw = TRUE WHERE id = $1", device, version)

    async def run_jobs(self) -> int:
        """Everything that is due now, to its end; the number of steps."""
        handlers = campaign_jobs.handlers(self.database.engine)
        steps = 0
        while True:
            now = self.clock.now()

            async def lease(work: Any, now: Any = now) -> list[Job]:
                return list(await work.jobs.lease(now, "test", now + 1000, 10))

            jobs = await self.writer.run(lease)
            if not jobs:
                return steps
            for job in jobs:
                steps += await self._work_off(handlers[job.kind], job)

    async def _work_off(self, handler: Any, job: Job) -> int:
        steps = 0
        while True:
            current = job

            async def step(work: Any, current: Job = current) -> Any:
                if not await work.jobs.holds(current):
                    return None
                progress = await handler.run(work, current, self.clock.now())
                match progress:
                    case More():
                        await work.jobs.advance(current, progress.cursor, self.clock.now() + 1000)
                    case Later():
                        await work.jobs.postpone(current, progress.due_at, 0)
                    case Done():
                        await work.jobs.finish(current)
                return progress

            steps += 1
            progress = await self.writer.run(step, Lane.CHUNK)
            if not isinstance(progress, More):
                return steps
            job = Job(job.id, job.kind, job.subject, job.epoch, progress.cursor, 0)

    async def check_laws(self) -> None:
        """Every law that rows can tell."""
        wrong = await broken_laws(self.database)
        if self.subscribed:
            wrong += await untold(self.database)
        assert not wrong, "\n".join(wrong)


async def build_core(database: Database, clock: ManualClock, *, subscribed: bool = True) -> Core:
    """`subscribed`: somebody wants to know of every change from the first; nothing is delivered."""
    writer: Writer[Any] = Writer(database, bind)
    writer.start()
    desk = ReportDesk(clock)
    commands = CampaignCommands(writer, clock, CLOCKS, desk, lambda: None, Lane.STOP)
    reads = SqlCampaignReads(database)
    queries = CampaignQueries(reads, SqlCampaignList(database), clock)
    async with database.transaction() as tx:
        for app in (1, 2):
            await tx.execute(
                "INSERT INTO application (app_id, name, secret_hash, target_tokens, gateway_tokens, created_at) "
                "VALUES ($1, $1, 'x', TRUE, TRUE, 0)",
                f"app{app}",
            )
        for model in ("m", "other"):
            await tx.execute(
                "INSERT INTO product (device_type, model, manufacturer_name) VALUES ('t', $1, 'maker')", model
            )
        await tx.execute("INSERT INTO blob (sha256, sha1, md5, size, created_at) VALUES ('aa', 'bb', 'cc', 3, 0)")
        for file_id, file_type, sources in (
            ("f1", "firmwarePackage", "[]"),
            ("s1", "softwarePackage", "[]"),
            ("f-from-V0", "firmwarePackage", '["V0"]'),
        ):
            await tx.execute(
                "INSERT INTO package (file_id, application_id, file_type, name, version, product_id, source_versions, "
                "extra, sha256, uploaded_at) VALUES ($1, 1, $2, 'x.swu', 'V2', 1, $3, '{}', 'aa', 0)",
                file_id,
                file_type,
                sources,
            )
        for notify_type in sorted(UPGRADE_TYPES) if subscribed else ():
            new = NewSubscription(notify_type, ApplicationKey(1), notify_type, "http://r:1/", "r:1")
            assert await SubscriptionRows(tx).insert(new, clock.now())
    return Core(database, clock, writer, commands, queries, reads, subscribed=subscribed)


@asynccontextmanager
async def another(core: Core, database: Database, clock: ManualClock) -> AsyncIterator[Core]:
    """A second server of the database that `core` has filled."""
    writer: Writer[Any] = Writer(database, bind)
    writer.start()
    commands = CampaignCommands(writer, clock, CLOCKS, ReportDesk(clock), lambda: None, Lane.STOP)
    try:
        yield replace(core, database=database, writer=writer, commands=commands)
    finally:
        await writer.close()
