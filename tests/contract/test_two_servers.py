"""Two servers on one PostgreSQL: what each of them sees while the other commits, and what neither may break."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from openiodm.access.model import Actor, ApplicationKey, Product
from openiodm.campaigns import texts
from openiodm.campaigns.commands import CampaignCommands
from openiodm.campaigns.model import CampaignKey, Counters, Policy
from openiodm.campaigns.queries import CampaignQueries
from openiodm.campaigns.reports import ReportDesk
from openiodm.campaigns.rollout import Expiry, Result, Versions
from openiodm.clock import HOUR, Millis
from openiodm.devices.commands import DeviceCommands
from openiodm.devices.model import DeviceKey, Silences
from openiodm.devices.told import AttributeKeys, ToldCommands
from openiodm.errors import Reason, Refusal
from openiodm.storage.campaign_reads import SqlCampaignList, SqlCampaignReads
from openiodm.storage.devices import DeviceRows
from openiodm.storage.engine import Database, Tx
from openiodm.storage.open import open_database
from openiodm.storage.writer import Lane, Writer
from tests.conftest import ManualClock
from tests.support.core import CLOCKS, LOG, Core, build_core, whole_work

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

ACTOR = Actor(ApplicationKey(1), "app1")
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


class Pair:
    """Two servers, and a third party whose open transactions hold things up at will."""

    def __init__(self, first: Core, second: Core, other: Database) -> None:
        self.first = first
        self.second = second
        self.other = other

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Tx]:
        """A transaction on a connection of its own; it commits at the end."""
        async with self.other.transaction() as tx:
            yield tx

    async def someone_waits(self, count: int = 1) -> None:
        """Until that many sessions wait for a lock."""
        async with asyncio.timeout(10):
            while await self.other.fetchval(WAITS) < count:  # noqa: ASYNC110 - PostgreSQL tells nobody
                await asyncio.sleep(0.005)

    async def deadlocks(self) -> int:
        """How many PostgreSQL had to break in this database."""
        await asyncio.sleep(1.1)  # sessions report their numbers once a second
        sql = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        return int(await self.other.fetchval(sql))


@asynccontextmanager
async def _server(database: Database, clock: ManualClock) -> AsyncIterator[Core]:
    writer: Writer[Any] = Writer(database, whole_work)
    writer.start()
    commands = CampaignCommands(writer, clock, CLOCKS, ReportDesk(clock), lambda: None, Lane.STOP)
    reads = SqlCampaignReads(database)
    try:
        yield Core(database, clock, writer, commands, CampaignQueries(reads, SqlCampaignList(database), clock), reads)
    finally:
        await writer.close()


@pytest.fixture
async def pair(database: Database, database_url: str, clock: ManualClock) -> AsyncIterator[Pair]:
    await (await build_core(database, clock)).writer.close()
    second, other = await open_database(database_url), await open_database(database_url)
    async with _server(database, clock) as a, _server(second, clock) as b:
        built = Pair(a, b, other)
        yield built
        await a.check_laws()
    await second.close()
    await other.close()


async def refused(what: Awaitable[Any]) -> Reason | None:
    try:
        await what
    except Refusal as refusal:
        return refusal.reason
    return None


async def one(core: Core, operation: str) -> tuple[str, Counters]:
    campaign = await core.queries.one(ACTOR, operation)
    return campaign.status.value, campaign.counters


async def held_counters(tx: Tx, operation: str) -> CampaignKey:
    sql = "SELECT campaign_id FROM campaign_counters k JOIN campaign c ON c.id = k.campaign_id WHERE operation_id = $1"
    return CampaignKey(await tx.fetchval(f"{sql} FOR UPDATE OF k", operation))


async def test_a_task_that_ends_on_one_server_is_not_stopped_by_the_other(pair: Pair) -> None:
    task = await pair.first.create(await pair.first.add_devices(1))
    action = await pair.first.grant(1)
    await pair.first.signal(1, Versions(fw="V2"))
    await pair.first.set_version(1, "V2")
    async with pair.held() as tx:
        await held_counters(tx, task)
        ends = asyncio.create_task(pair.first.signal(1, Result(action, True, LOG)))
        await pair.someone_waits(1)
        stops = asyncio.create_task(refused(pair.second.commands.stop(ACTOR, task)))
        await pair.someone_waits(2)
    await ends
    assert await stops is Reason.CAMPAIGN_FINISHED
    assert await one(pair.first, task) == ("success", Counters(total=1, success=1))


async def test_the_bound_on_devices_under_way_holds_over_both(pair: Pair) -> None:
    task = await pair.first.create(await pair.first.add_devices(40), max_concurrent=7)
    async with pair.held() as tx:
        await held_counters(tx, task)
        come = [asyncio.create_task((pair.first, pair.second)[n % 2].contact(n)) for n in range(1, 41)]
        await pair.someone_waits(2)  # a batch of either has read that there is room
    await asyncio.gather(*come)
    assert await one(pair.second, task) == ("processing", Counters(total=40, wait=33, processing=7))


async def test_two_operators_that_retry_at_once_begin_one_round(pair: Pair) -> None:
    task = await pair.first.create(await pair.first.add_devices(1))
    await pair.first.fail(1)
    async with pair.held() as tx:
        await held_counters(tx, task)
        both = [asyncio.create_task(refused(c.commands.retry(ACTOR, task))) for c in (pair.first, pair.second)]
        await pair.someone_waits(2)
    assert sorted(map(str, await asyncio.gather(*both))) == ["None", str(Reason.CAMPAIGN_FINISHED)]
    assert (await pair.first.queries.one(ACTOR, task)).round == 1


async def test_a_device_that_another_server_just_took_is_a_conflict_and_not_lost(pair: Pair) -> None:
    devices = await pair.first.add_devices(2)
    rival = await pair.first.create(devices[:1])
    async with pair.held() as tx:
        sql = """INSERT INTO upgrade (public_id, campaign_id, ordinal, device_id, state, round, created_at)
        SELECT random_id(), id, 2, 2, 'wait', 0, 0 FROM campaign WHERE operation_id = $1"""
        await tx.execute(sql, rival)
        await tx.execute("UPDATE campaign_counters SET total = 2, wait = 2")
        made = asyncio.create_task(pair.second.create(devices[1:]))
        await pair.someone_waits()
    assert await one(pair.second, await made) == ("failed", Counters(total=1, fail=1))


@pytest.mark.parametrize("ending", ["stop", "report"])
async def test_a_running_job_and_the_end_of_its_task_do_not_deadlock(pair: Pair, ending: str) -> None:
    first, second = pair.first, pair.second
    devices = await first.add_devices(2)
    task = await first.create(devices)
    action = await first.grant(1)
    pair.first.clock.advance(CLOCKS.online + 1)
    async with pair.held() as tx:
        await held_counters(tx, task)
        job = asyncio.create_task(second.run_jobs())  # the online clock ends device 2
        await pair.someone_waits(1)
        if ending == "stop":
            other: asyncio.Task[Any] = asyncio.create_task(refused(first.commands.stop(ACTOR, task)))
        else:
            other = asyncio.create_task(first.signal(1, Result(action, False, LOG)))
        await pair.someone_waits(2)
    await asyncio.gather(job, other)
    await first.run_jobs()
    assert await pair.deadlocks() == 0


async def test_a_stop_during_an_expansion_on_another_server_holds(pair: Pair) -> None:
    first, second = pair.first, pair.second
    await first.add_devices(3)
    await first.add_group("g", 1, 3)
    task = await first.create(groups=["g"])
    async with pair.held() as tx:
        await held_counters(tx, task)
        stops = asyncio.create_task(refused(first.commands.stop(ACTOR, task)))
        await pair.someone_waits(1)
        expands = asyncio.create_task(second.run_jobs())
        await pair.someone_waits(2)
    await asyncio.gather(stops, expands)
    await first.run_jobs()
    status, counters = await one(first, task)
    assert (status, counters.wait) == ("stop", 0)
    assert not await first.database.fetchval("SELECT open FROM campaign_counters")
    assert await pair.deadlocks() == 0


def _told(core: Core) -> ToldCommands:
    keys = AttributeKeys(("fw",), ("sw",), ("type",), ("model",), ("maker",))
    return ToldCommands(core.writer, core.clock, keys, core.commands)


async def test_a_device_that_speaks_to_both_servers_at_once_locks_neither(pair: Pair) -> None:
    first, second = pair.first, pair.second
    task = await first.create(await first.add_devices(2))
    async with pair.held() as tx:
        await held_counters(tx, task)
        poll = asyncio.create_task(first.contact(1))
        await pair.someone_waits(1)
        told = asyncio.create_task(_told(second).attributes(DeviceKey(1), "merge", {"fw": "V1"}))
        await pair.someone_waits(2)
    await asyncio.gather(poll, told)
    assert await pair.deadlocks() == 0


async def test_a_version_told_to_one_server_counts_in_a_grant_by_the_other(pair: Pair) -> None:
    first, second = pair.first, pair.second
    task = await first.create(await first.add_devices(1))
    async with pair.held() as tx:
        await held_counters(tx, task)
        told = asyncio.create_task(_told(first).attributes(DeviceKey(1), "merge", {"fw": "V2"}))
        await pair.someone_waits(1)
        poll = asyncio.create_task(second.contact(1))
        await pair.someone_waits(2)
    await asyncio.gather(told, poll)
    assert (await one(first, task))[1] == Counters(total=1, success=1)


@pytest.mark.parametrize("swapped_first", [True, False])
async def test_a_swap_of_hardware_on_one_server_and_a_report_to_the_other_follow_each_other(
    pair: Pair, *, swapped_first: bool
) -> None:
    first, second = pair.first, pair.second
    devices = await first.add_devices(1)
    task = await first.create(devices)
    action = await first.grant(1)
    swaps = DeviceCommands(second.writer, second.clock, second.commands, Silences(HOUR, Millis(2 * HOUR)))

    def swap() -> asyncio.Task[Any]:
        return asyncio.create_task(swaps.refresh_credentials(ACTOR, devices[0], node_id="another"))

    def report() -> asyncio.Task[Any]:
        return asyncio.create_task(first.signal(1, Result(action, False, LOG, detail="broken")))

    async with pair.held() as tx:
        await held_counters(tx, task)
        one_of_them = swap() if swapped_first else report()
        await pair.someone_waits(1)
        other = report() if swapped_first else swap()
        await pair.someone_waits(2)
    await asyncio.gather(one_of_them, other)
    assert await one(second, task) == ("failed", Counters(total=1, fail=1))
    (upgrade,) = (await first.queries.upgrades(ACTOR, task, 0, 1))[1]
    assert upgrade.detail == (texts.NODE_ID_CHANGED if swapped_first else "broken")
    assert await pair.deadlocks() == 0


async def test_a_device_deleted_during_an_expansion_elsewhere_has_no_open_upgrade(pair: Pair) -> None:
    first, second = pair.first, pair.second
    devices = await first.add_devices(2)
    await first.add_group("g", 1, 2)
    task = await first.create(groups=["g"])
    silences = Silences(HOUR, Millis(2 * HOUR))
    deletes = DeviceCommands(second.writer, second.clock, second.commands, silences)
    async with pair.held() as tx:
        # The expansion holds its devices and waits to count them.
        await tx.execute("SELECT id FROM upgrade FOR UPDATE")
        await tx.execute("LOCK TABLE history IN SHARE MODE")
        await tx.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.5); "
            "RETURN NEW; END $$"
        )
        await tx.execute("CREATE TRIGGER slow AFTER INSERT ON upgrade FOR EACH STATEMENT EXECUTE FUNCTION slow()")
    expands = asyncio.create_task(first.run_jobs())
    await asyncio.sleep(0.2)
    await deletes.delete(ACTOR, devices[0])
    await expands
    open_ones = await first.database.fetchval(
        "SELECT count(*) FROM upgrade u JOIN device d ON d.id = u.device_id "
        "WHERE d.deleted_at IS NOT NULL AND u.finished_at IS NULL"
    )
    assert open_ones == 0
    assert (await one(first, task))[1].wait == 1


async def test_servers_under_load_on_the_same_devices_keep_the_laws_and_fail_nobody(pair: Pair) -> None:
    """Everything at once: each device speaks to both servers, tasks are stopped, clocks run, contacts are noted."""
    import random

    dice = random.Random(1)
    servers = (pair.first, pair.second)
    devices = await pair.first.add_devices(120)
    await pair.first.add_group("g", 1, 120)
    failures: list[BaseException] = []

    async def tried(what: Awaitable[Any]) -> Any:
        try:
            return await what
        except Refusal:
            return None
        except Exception as error:
            failures.append(error)
            return None

    async def device(number: int) -> None:
        for _ in range(12):
            core = dice.choice(servers)
            outcome = await tried(core.contact(number))
            if outcome is not None and outcome.standing is not None and outcome.standing.action_id is not None:
                result = Result(outcome.standing.action_id, dice.random() < 0.4, LOG)
                await asyncio.gather(*(tried(dice.choice(servers).signal(number, result)) for _ in range(2)))
            version = dice.choice(["V1", "V1", "V2"])
            await tried(_told(dice.choice(servers)).attributes(DeviceKey(number), "merge", {"fw": version}))
            if version == "V2":
                await tried(_told(core).attributes(DeviceKey(number), "merge", {"fw": "V1"}))

    async def notes() -> None:
        for _ in range(40):
            core = dice.choice(servers)
            keys = dice.sample(range(1, 121), 60)
            seen = [(DeviceKey(k), core.clock.now(), "a") for k in keys]
            await tried(core.writer.run(lambda work, seen=seen: work.devices.touch(seen), Lane.CHUNK))
            await asyncio.sleep(0.02)

    async def applications() -> None:
        for _ in range(12):
            core = dice.choice(servers)
            task = await tried(core.create(groups=["g"], policy=Policy(retry_times=2)))
            few = await tried(core.create(dice.sample(devices, 20)))
            await asyncio.sleep(0.05)
            for each in (task, few):
                if each is not None and dice.random() < 0.5:
                    await tried(dice.choice(servers).commands.stop(ACTOR, each))

    async def jobs(core: Core) -> None:
        for _ in range(60):
            await tried(core.run_jobs())
            for key in await core.reads.due(core.clock.now(), 100):
                await tried(core.signal(key, Expiry()))
            await asyncio.sleep(0.02)

    async with asyncio.timeout(60):
        await asyncio.gather(
            *(device(n) for n in range(1, 121)), notes(), applications(), *(jobs(core) for core in servers)
        )
    assert failures == []
    await pair.first.check_laws()


async def test_a_device_is_found_though_its_product_changes_while_its_lock_is_waited_for(pair: Pair) -> None:
    """PostgreSQL looked at the product of before, found that it no longer fits, and with it no device: 404."""
    await pair.first.add_devices(1)
    lamp = Product("Lamp", "M9", "Acme")
    async with pair.held() as tx:
        await DeviceRows(tx).set_product(DeviceKey(1), lamp)
        found = asyncio.create_task(
            pair.first.writer.run(lambda work: work.devices.lock_device(ACTOR.application, "d1"))
        )
        told = asyncio.create_task(pair.second.writer.run(lambda work: work.told.lock(DeviceKey(1))))
        await pair.someone_waits(2)
    device, kept = await found, await told
    assert device is not None
    assert kept is not None
    assert device.product == kept.product == lamp
