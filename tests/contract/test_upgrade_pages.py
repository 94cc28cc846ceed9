"""Filtered pages of a task's devices from memory against the plain SQL, whatever happens, by whomever."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openiodm.campaigns.model import Campaign
from openiodm.campaigns.rollout import Expiry, Result
from openiodm.campaigns.states import COUNTER_OF, Counter, UpgradeState
from openiodm.errors import Refusal
from openiodm.storage import change_log, upgrade_pages
from openiodm.storage.campaign_reads import SqlCampaignReads
from openiodm.storage.engine import Database
from openiodm.storage.open import open_database
from openiodm.storage.upgrade_pages import IndexedCampaignReads
from tests.conftest import ManualClock
from tests.support.core import LOG, Core, another, build_core

DEVICES = 9
PAGE = 4
FILTERS = [
    *([s for s in UpgradeState if COUNTER_OF[s] is counter] for counter in Counter),
    [UpgradeState.FAIL, UpgradeState.TIMEOUT],  # as the contract's `fail`
]


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_pages, "LARGE", 1)


class OnlyMemory(IndexedCampaignReads):
    """Fails where the plain SQL would have to answer: then a test would compare that with itself."""

    async def upgrades_page(self, campaign: Campaign, states: Any, number: int, size: int) -> Any:
        assert self.holds(campaign.key), "the plain SQL would answer"
        found = await super().upgrades_page(campaign, states, number, size)
        assert self.holds(campaign.key), "the bitmaps were given up"
        return found


@pytest.fixture
async def core(database: Database, clock: ManualClock) -> AsyncIterator[Core]:
    built = await build_core(database, clock, subscribed=False)
    await built.add_devices(DEVICES, version=None)
    yield built
    await built.check_laws()
    await built.writer.close()


@pytest.fixture
async def second(database_url: str) -> AsyncIterator[Database]:
    """The same database as another process has it open."""
    opened = await open_database(database_url)
    yield opened
    await opened.close()


async def campaign_of(core: Core, operation: str) -> Campaign:
    return await core.queries.one(core.actor, operation)


async def held(database: Database, campaign: Campaign) -> OnlyMemory:
    reads = OnlyMemory(database)
    await reads.build(campaign.key)
    return reads


async def agree(reads: IndexedCampaignReads, core: Core, operation: str) -> None:
    """Every page of every filter, and one past the end."""
    plain = SqlCampaignReads(core.database)
    campaign = await campaign_of(core, operation)
    for states in FILTERS:
        for number in itertools.count():
            want = await plain.upgrades_page(campaign, states, number, PAGE)
            assert await reads.upgrades_page(campaign, states, number, PAGE) == want, (states, number)
            if not want[1]:
                break


def device(number: int) -> str:
    return f"d{number % DEVICES + 1}"


STEPS = ("contact", "contact", "fail", "fail", "succeed", "late", "stop_device", "stop", "retry", "jobs", "rival")


class Servers:
    """Two servers on one database, each with bitmaps of one task for all devices."""

    def __init__(self, first: Core, second: Core) -> None:
        self.cores = (first, second)
        self.reads: tuple[OnlyMemory, ...] = ()
        self.operation = ""
        self.rivals: list[str] = []

    async def begin(self) -> None:
        first = self.cores[0]
        for old in (self.operation, *self.rivals):
            with contextlib.suppress(Refusal):
                await first.commands.stop(first.actor, old)
        await first.run_jobs()
        first.clock.advance(10 * 60_000)
        for key in await first.reads.due(first.clock.now(), 100):
            await first.signal(key, Expiry())
        self.rivals = []
        self.operation = await first.create([device(n) for n in range(DEVICES)])
        campaign = await campaign_of(first, self.operation)
        self.reads = tuple([await held(c.database, campaign) for c in self.cores])

    async def step(self, what: str, by: int, number: int) -> None:
        core = self.cores[by]
        actions: dict[str, Callable[[], Awaitable[Any]]] = {
            "contact": lambda: core.contact(number % DEVICES + 1),
            "fail": lambda: self._result(core, number, success=False),
            "succeed": lambda: self._result(core, number, success=True),
            "late": lambda: self._late(core),
            "stop_device": lambda: core.commands.stop_device(core.actor, self.operation, device(number)),
            "stop": lambda: core.commands.stop(core.actor, self.operation),
            "retry": lambda: core.commands.retry(core.actor, self.operation),
            "jobs": core.run_jobs,
            "rival": lambda: self._rival(core, number),
        }
        with contextlib.suppress(Refusal):  # which of them apply is by chance
            await actions[what]()

    async def _result(self, core: Core, number: int, *, success: bool) -> None:
        outcome = await core.contact(number % DEVICES + 1)
        if outcome.standing is not None and outcome.standing.action_id is not None:
            result = Result(outcome.standing.action_id, success, LOG, detail="broken")
            await core.signal(number % DEVICES + 1, result)

    async def _late(self, core: Core) -> None:
        core.clock.advance(3 * 3_600_000)
        for key in await core.reads.due(core.clock.now(), 100):
            await core.signal(key, Expiry())

    async def _rival(self, core: Core, number: int) -> None:
        """Another task's changes are in the same history."""
        self.rivals.append(await core.create([device(number)]))


@pytest.fixture
async def servers(core: Core, second: Database, clock: ManualClock) -> AsyncIterator[Servers]:
    async with another(core, second, clock) as other:
        built = Servers(core, other)
        built.operation = await core.create(["d1"])
        yield built


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=bool(os.environ.get("CI")),  # there the same stories each time; at a desk always new ones
)
@given(
    story=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1), st.integers(0, 1000)), min_size=8, max_size=20)
)
async def test_whatever_happens_on_two_servers_memory_and_sql_are_equal(
    servers: Servers, story: list[tuple[str, int, int]]
) -> None:
    await servers.begin()
    for n, (what, by, number) in enumerate(story):
        await servers.step(what, by, number)
        if n % 4 == 3:
            await agree(servers.reads[by], servers.cores[0], servers.operation)
    for reads in servers.reads:
        await agree(reads, servers.cores[0], servers.operation)


async def test_the_plain_sql_answers_until_the_bitmaps_are_built_in_the_background(core: Core) -> None:
    operation = await core.create([device(n) for n in range(DEVICES)])
    campaign = await campaign_of(core, operation)
    reads = IndexedCampaignReads(core.database)
    await agree(reads, core, operation)
    assert not reads.holds(campaign.key), "nobody has started it"
    reads.start()
    await agree(reads, core, operation)
    await until_held(reads, campaign)
    await core.fail(1)
    await agree(reads, core, operation)
    assert reads.holds(campaign.key)
    await reads.close()
    assert not reads.holds(campaign.key)
    await agree(reads, core, operation)


async def until_held(reads: IndexedCampaignReads, campaign: Campaign) -> None:
    async with asyncio.timeout(60):
        while not reads.holds(campaign.key):  # noqa: ASYNC110 - who asks for a page never waits for it
            await asyncio.sleep(0.005)


async def test_a_task_that_nobody_asks_for_is_let_go_and_so_is_the_oldest_of_too_many(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade_pages, "HELD", 1)
    monkeypatch.setattr(upgrade_pages, "REFRESH_S", 0.01)
    one, two = [await campaign_of(core, await core.create([device(n)])) for n in (0, 1)]
    reads = IndexedCampaignReads(core.database)
    reads.start()
    for campaign, other in ((one, two), (two, one)):
        await reads.upgrades_page(campaign, [UpgradeState.WAIT], 0, PAGE)
        await until_held(reads, campaign)
        assert not reads.holds(other.key)
    monkeypatch.setattr(upgrade_pages, "IDLE_S", 0.0)
    async with asyncio.timeout(60):
        while reads.holds(two.key):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await reads.close()


async def test_states_that_are_not_whole_counters_are_plain_sql(core: Core) -> None:
    operation = await core.create([device(n) for n in range(3)])
    await core.grant(1)
    reads = await held(core.database, await campaign_of(core, operation))
    counters, rows = await reads.upgrades_page(await campaign_of(core, operation), [UpgradeState.OFFERED], 0, PAGE)
    assert (counters.processing, [u.state for u in rows]) == (1, [UpgradeState.OFFERED])


async def test_bitmaps_that_do_not_add_up_to_the_counters_are_given_up(core: Core, second: Database) -> None:
    """Somebody changed rows by hand: what is wrong must not be shown, and the next question has them built anew."""
    operation = await core.create([device(n) for n in range(3)])
    reads = IndexedCampaignReads(core.database)
    await reads.build((await campaign_of(core, operation)).key)
    async with second.transaction() as tx:
        await tx.execute("UPDATE upgrade SET state = 'stop', finished_at = 1 WHERE ordinal = 2")
        await tx.execute("UPDATE campaign_counters SET wait = 2, stop = 1")
    await agree(reads, core, operation)
    assert not reads.holds((await campaign_of(core, operation)).key)
    async with second.transaction() as tx:  # the row of history that was missing
        await tx.execute(
            "INSERT INTO history (upgrade_id, at, from_state, to_state, cause) "
            "SELECT id, 1, 'wait', 'stop', 'test' FROM upgrade WHERE ordinal = 2"
        )


async def test_a_long_history_is_read_in_pieces(core: Core, second: Database) -> None:
    operation = await core.create([device(n) for n in range(DEVICES)])
    reads = await held(core.database, await campaign_of(core, operation))
    async with second.transaction() as tx:
        for n in range(change_log.CHUNK + 5):
            await tx.execute(
                "INSERT INTO history (upgrade_id, at, from_state, to_state, cause) "
                "SELECT id, 0, 'wait', 'wait', 'test' FROM upgrade WHERE ordinal = $1",
                n % DEVICES + 1,
            )
    await core.fail(2)
    await agree(reads, core, operation)
    async with second.transaction() as tx:  # what no law allows must not trouble the check of laws
        await tx.execute("DELETE FROM history WHERE cause = 'test'")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_history_that_commits_out_of_the_order_of_its_ids(
    core: Core, database_url: str, second: Database
) -> None:
    operation = await core.create([device(n) for n in range(DEVICES)])
    rival = await core.create([device(0)])
    reads = await held(core.database, await campaign_of(core, operation))
    early = await asyncpg.connect(database_url)
    under_way = early.transaction()
    await under_way.start()
    await early.execute(
        "WITH moved AS (UPDATE upgrade u SET state = 'stop', finished_at = 1 FROM campaign c "
        "WHERE c.id = u.campaign_id AND c.operation_id = $1 AND u.ordinal = 2 RETURNING u.id) "
        "INSERT INTO history (upgrade_id, at, from_state, to_state, cause) "
        "SELECT id, 1, 'wait', 'stop', 'test' FROM moved",
        operation,
    )
    async with second.transaction() as tx:  # a later id, committed earlier
        await tx.execute(
            "INSERT INTO history (upgrade_id, at, from_state, to_state, cause) SELECT u.id, 1, 'wait', 'fail', 'test' "
            "FROM upgrade u JOIN campaign c ON c.id = u.campaign_id WHERE c.operation_id = $1",
            rival,
        )
    await agree(reads, core, operation)
    await early.execute(
        "UPDATE campaign_counters SET wait = wait - 1, stop = stop + 1 "
        "WHERE campaign_id = (SELECT id FROM campaign WHERE operation_id = $1)",
        operation,
    )
    await under_way.commit()
    await agree(reads, core, operation)
    await early.execute("DELETE FROM history WHERE to_state = 'fail'")
    await early.close()
