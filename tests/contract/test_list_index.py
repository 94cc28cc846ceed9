"""The index of the task list against the plain SQL: whatever changes, by whomever, both give the same answers."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openiodm import app
from openiodm.access.model import ApplicationKey
from openiodm.campaigns.model import CampaignFilter, CampaignKind, Policy
from openiodm.campaigns.rollout import Result
from openiodm.campaigns.states import CampaignStatus
from openiodm.errors import Refusal
from openiodm.settings import Settings
from openiodm.storage import campaign_list, change_log
from openiodm.storage.campaign_list import IndexedCampaignList
from openiodm.storage.campaign_reads import SqlCampaignList
from openiodm.storage.engine import Database, Tx, Unreachable
from openiodm.storage.open import open_database
from tests.conftest import ManualClock
from tests.support.core import LOG, Core, another, build_core

OWN = ApplicationKey(1)
PAGE = 3


def filters(devices: int) -> Iterator[CampaignFilter]:
    """Each condition by itself, and pairs and triples with a status."""
    for application in (OWN, ApplicationKey(2)):
        yield CampaignFilter(application)
        yield CampaignFilter(application, kind=CampaignKind.SOFTWARE)
        yield CampaignFilter(application, device_type="t", model="m", manufacturer_name="maker")
        for status in CampaignStatus:
            yield CampaignFilter(application, status=status)
            yield CampaignFilter(application, status=status, kind=CampaignKind.FIRMWARE, model="m")
    for device in range(1, devices + 1):
        yield CampaignFilter(OWN, device_id=f"d{device}")
        yield CampaignFilter(OWN, device_id=f"d{device}", status=CampaignStatus.FAILED)
    yield CampaignFilter(OWN, device_type="no such type")
    yield CampaignFilter(OWN, device_id="no such device")


async def agree(index: IndexedCampaignList, database: Database, devices: int = 3) -> None:
    """Every page of every filter, and one past the end."""
    plain = SqlCampaignList(database)
    for where in filters(devices):
        for number in itertools.count():
            want = await plain.page(where, number, PAGE)
            assert await index.page(where, number, PAGE) == want, (where, number)
            if not want[1]:
                break


async def statuses(index: IndexedCampaignList) -> dict[str, int]:
    return {s.value: (await index.page(CampaignFilter(OWN, status=s), 0, 1))[0] for s in CampaignStatus}


class OnlyIndex(IndexedCampaignList):
    """Fails where the plain SQL would have to answer: then a test would compare that with itself."""

    class _None:
        async def page(self, where: CampaignFilter, number: int, size: int) -> Any:
            raise AssertionError("the index did not answer")

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._plain = self._None()  # type: ignore[assignment]


@pytest.fixture
async def core(database: Database, clock: ManualClock) -> AsyncIterator[Core]:
    built = await build_core(database, clock, subscribed=False)
    await built.add_devices(3, version=None)
    yield built
    await built.check_laws()
    await built.writer.close()


@pytest.fixture
async def index(core: Core) -> OnlyIndex:
    built = OnlyIndex(core.database)
    await built.build()
    return built


@pytest.fixture
async def second(database_url: str) -> AsyncIterator[Database]:
    """The same database as another process has it open."""
    opened = await open_database(database_url)
    yield opened
    await opened.close()


async def put_status(tx: Tx, operation: str, status: str) -> None:
    await tx.execute("UPDATE campaign SET status = $2 WHERE operation_id = $1", operation, status)


# -- by chance, two servers

STEPS = ("create", "create", "group", "contact", "fail", "fail", "succeed", "stop", "retry", "jobs", "delete", "undo")


class Servers:
    """Two servers on one database (on SQLite: a server and a tool beside it), each with an index of its own."""

    def __init__(self, first: Core, second: Core) -> None:
        self.cores = (first, second)
        self.indexes: tuple[OnlyIndex, ...] = ()
        self.operations: list[str] = []

    async def begin(self) -> None:
        """New indexes, of a database that the story before has left behind."""
        self.indexes = (OnlyIndex(self.cores[0].database), OnlyIndex(self.cores[1].database))
        await self.indexes[0].build()
        for operation in self.operations:
            await self._delete(self.cores[0], operation)
        self.operations = []
        await self.indexes[1].build()

    async def step(self, what: str, by: int, number: int) -> None:
        core = self.cores[by]
        with contextlib.suppress(Refusal):  # which of them apply is by chance
            if what == "create":
                kind, file = ((CampaignKind.FIRMWARE, "f1"), (CampaignKind.SOFTWARE, "s1"))[number % 2]
                policy = Policy(retry_times=number % 3)
                self.operations.append(await core.create([_device(number)], kind=kind, file_id=file, policy=policy))
            elif what == "group":
                self.operations.append(await core.create(groups=["everybody"]))
            elif what == "contact":
                await core.contact(number % 3 + 1)
            elif what in ("fail", "succeed"):
                outcome = await core.contact(number % 3 + 1)
                if outcome.standing is not None and outcome.standing.action_id is not None:
                    result = Result(outcome.standing.action_id, what == "succeed", LOG, detail="broken")
                    await core.signal(number % 3 + 1, result)
            elif what == "jobs":
                core.clock.advance(60_000)
                await core.run_jobs()
            elif self.operations:
                operation = self.operations[number % len(self.operations)]
                actions: dict[str, Callable[[], Awaitable[Any]]] = {
                    "stop": lambda: core.commands.stop(core.actor, operation),
                    "retry": lambda: core.commands.retry(core.actor, operation),
                    "delete": lambda: self._delete(core, operation),
                    "undo": lambda: self._undo(core, operation),
                }
                await actions[what]()

    async def _delete(self, core: Core, operation: str) -> None:
        """Nothing in the server removes a task's row; whoever does so by SQL is followed too."""
        async with core.database.transaction() as tx:
            key = await tx.fetchval("SELECT id FROM campaign WHERE operation_id = $1", operation)
            of_upgrade = "WHERE upgrade_id IN (SELECT id FROM upgrade WHERE campaign_id = $1)"
            for statement in (
                f"DELETE FROM history {of_upgrade}",
                f"DELETE FROM device_log {of_upgrade}",
                "DELETE FROM upgrade WHERE campaign_id = $1",
                "DELETE FROM campaign_group WHERE campaign_id = $1",
                "DELETE FROM campaign_counters WHERE campaign_id = $1",
                "DELETE FROM job WHERE subject = $1",
                "DELETE FROM campaign WHERE id = $1",
            ):
                await tx.execute(statement, key)
        if operation in self.operations:
            self.operations.remove(operation)

    async def _undo(self, core: Core, operation: str) -> None:
        with pytest.raises(ZeroDivisionError):
            async with core.database.transaction() as tx:
                await put_status(tx, operation, "stop")
                raise ZeroDivisionError

    async def check(self) -> None:
        """Both servers' first pages; after a whole story `agree` looks at everything."""
        plain = SqlCampaignList(self.cores[0].database)
        for where in (CampaignFilter(OWN), *(CampaignFilter(OWN, status=s) for s in CampaignStatus)):
            want = await plain.page(where, 0, 100)
            for index in self.indexes:
                assert await index.page(where, 0, 100) == want, where


def _device(number: int) -> str:
    return f"d{number % 3 + 1}"


@pytest.fixture
async def servers(core: Core, second: Database, clock: ManualClock) -> AsyncIterator[Servers]:
    await core.add_group("everybody", 1, 3)
    async with another(core, second, clock) as other:
        yield Servers(core, other)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=bool(os.environ.get("CI")),  # there the same stories each time; at a desk always new ones
)
@given(
    story=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1), st.integers(0, 1000)), min_size=5, max_size=15)
)
async def test_whatever_two_servers_do_index_and_sql_are_equal(
    servers: Servers, story: list[tuple[str, int, int]]
) -> None:
    await servers.begin()
    for what, by, number in story:
        await servers.step(what, by, number)
        await servers.check()
    for index in servers.indexes:
        await agree(index, servers.cores[0].database)


# -- single stories


async def test_what_was_rolled_back_is_not_in_the_index(core: Core, index: OnlyIndex, second: Database) -> None:
    task = await core.create(["d1"])
    with pytest.raises(ZeroDivisionError):
        async with second.transaction() as tx:
            await put_status(tx, task, "failed")
            assert (await statuses(index))["failed"] == 0, "another's transaction is not seen before it commits"
            raise ZeroDivisionError
    assert await statuses(index) == {"wait": 1, "processing": 0, "success": 0, "failed": 0, "stop": 0}
    async with second.transaction() as tx:
        with pytest.raises(ZeroDivisionError):
            async with tx.savepoint():
                await put_status(tx, task, "failed")
                raise ZeroDivisionError
        await put_status(tx, task, "success")
    assert await statuses(index) == {"wait": 0, "processing": 0, "success": 1, "failed": 0, "stop": 0}


async def test_the_first_start_on_an_existing_database_builds_from_the_table(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_list, "_CHUNK", campaign_list._CHUNK.replace("LIMIT 2000", "LIMIT 2"))
    for n in range(7):
        await core.create([f"d{n % 3 + 1}"])
    async with core.database.transaction() as tx:  # as before this version: no entry for them
        await tx.execute("DELETE FROM campaign_change")
    index = OnlyIndex(core.database)
    await index.build()
    await agree(index, core.database)


async def test_until_the_index_is_there_and_after_its_end_the_plain_sql_answers(core: Core) -> None:
    task = await core.create(["d1"])
    index = IndexedCampaignList(core.database)

    async def works() -> None:
        total, rows = await index.page(CampaignFilter(OWN), 0, 10)
        assert (total, [c.operation_id for c in rows]) == (1, [task])

    assert not index.ready
    await works()
    index.start()
    await until_ready(index)
    await works()
    await index.close()
    assert not index.ready
    await works()


async def until_ready(index: IndexedCampaignList) -> None:
    async with asyncio.timeout(60):
        while not index.ready:  # noqa: ASYNC110 - who asks for a page never waits for it, so nothing announces it
            await asyncio.sleep(0.005)


async def test_changes_while_the_table_is_read_are_not_lost(
    core: Core, second: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read sees one moment; what comes after it, the log tells."""
    monkeypatch.setattr(campaign_list, "_CHUNK", campaign_list._CHUNK.replace("LIMIT 2000", "LIMIT 1"))
    tasks = [await core.create(["d1"]) for _ in range(4)]
    index = OnlyIndex(core.database)
    building = asyncio.create_task(index.build())
    for n, task in enumerate(tasks * 3):
        async with second.transaction() as tx:
            await put_status(tx, task, ("failed", "stop", "success")[n % 3])
    await building
    await agree(index, core.database)


async def test_a_reader_that_was_away_applies_a_long_tail_in_pieces(
    core: Core, index: OnlyIndex, second: Database
) -> None:
    tasks = [await core.create(["d1"]) for _ in range(3)]
    async with second.transaction() as tx:
        for n in range(change_log.CHUNK):
            await put_status(tx, tasks[n % 3], ("failed", "stop")[n % 2])
    for task in tasks:
        async with second.transaction() as tx:
            await put_status(tx, task, "success")
    await agree(index, core.database)


async def trim(database: Database, keep: int) -> int:
    gone = 0
    log = change_log.change_log(database.engine, change_log.CAMPAIGNS)
    while True:
        async with database.transaction() as tx:
            now = await log.trim(tx, keep)
        if not now:
            return gone
        gone += now


async def test_a_trimmed_log_leaves_a_reader_that_is_up_to_date_alone(
    core: Core, index: OnlyIndex, second: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_log, "TRIM_CHUNK", 3)
    for _ in range(8):
        await core.create(["d1"])
    await agree(index, core.database)
    entries = await core.database.fetchval("SELECT count(*) FROM campaign_change")
    assert await trim(second, 2) == entries - 2
    await agree(index, core.database)
    await core.create(["d2"])
    await agree(index, core.database)
    assert await trim(second, 2) == 1
    await agree(index, core.database)
    assert await trim(second, 2) == 0


async def test_a_reader_that_the_log_no_longer_reaches_reads_the_table_anew(
    core: Core, index: OnlyIndex, second: Database
) -> None:
    tasks = [await core.create(["d1"]) for _ in range(5)]
    async with second.transaction() as tx:
        await put_status(tx, tasks[0], "stop")
    await trim(second, 1)
    index._plain = SqlCampaignList(core.database)  # type: ignore[assignment]
    await agree(index, core.database)
    assert not index.ready, "an index that misses changes must not answer"
    index.start()
    await until_ready(index)
    await agree(index, core.database)
    await index.close()


async def test_it_tells_its_size_and_how_far_it_is_behind(core: Core, index: OnlyIndex, second: Database) -> None:
    tasks = [await core.create(["d1"]) for _ in range(3)]
    await index.refresh()
    seen = await index.look()
    assert seen is not None
    assert (seen.tasks, seen.behind) == (3, 0)
    assert seen.octets > 0
    for task in tasks[:2]:
        async with second.transaction() as tx:
            await put_status(tx, task, "stop")
    seen = await index.look()
    assert seen is not None
    assert seen.behind == 2
    await index.refresh()
    seen = await index.look()
    assert seen is not None
    assert seen.behind == 0
    await index.close()
    assert await index.look() is None


async def test_a_deleted_application_leaves_the_lists_of_others_as_they_were(core: Core, index: OnlyIndex) -> None:
    await core.create(["d1"])
    async with core.database.transaction() as tx:
        await tx.execute("UPDATE application SET deleted_at = 1 WHERE id = 1")
        await tx.execute(
            "INSERT INTO campaign (operation_id, application_id, kind, package_id, product_id, device_type, model, "
            "manufacturer_name, target_version, policy_given, execute_type, retry_times, round, confirmation, clocks, "
            "status, work, stopped_by_operator, created_at) SELECT 'other', 2, kind, package_id, product_id, "
            "device_type, model, manufacturer_name, target_version, policy_given, execute_type, retry_times, round, "
            "confirmation, clocks, 'stop', work, stopped_by_operator, created_at FROM campaign"
        )
        await tx.execute(
            "INSERT INTO campaign_counters (campaign_id, open, total, wait, processing, success, fail, stop, timeout) "
            "SELECT id, FALSE, 0, 0, 0, 0, 0, 0, 0 FROM campaign WHERE operation_id = 'other'"
        )
    await agree(index, core.database)
    assert (await index.page(CampaignFilter(ApplicationKey(2)), 0, 10))[0] == 1


async def test_everything_in_an_answer_is_of_one_moment(core: Core, index: OnlyIndex, second: Database) -> None:
    """A row that changes between the look into the log and the look at the row shows as the log knew it."""
    task = await core.create(["d1"])
    other = OnlyIndex(second)
    await other.build()
    moment = core.database.moment

    @asynccontextmanager
    async def slow() -> AsyncIterator[Any]:
        async with moment() as view:
            yield Between(view)

    class Between:
        def __init__(self, view: Any) -> None:
            self._view = view

        async def fetch(self, sql: str, *args: Any) -> Any:
            if "= ANY" in sql:  # the rows of the page
                async with second.transaction() as tx:
                    await put_status(tx, task, "failed")
            return await self._view.fetch(sql, *args)

    core.database.moment = slow  # type: ignore[method-assign]
    total, rows = await index.page(CampaignFilter(OWN, status=CampaignStatus.WAIT), 0, 10)
    core.database.moment = moment  # type: ignore[method-assign]
    assert (total, [r.status for r in rows]) == (1, [CampaignStatus.WAIT])
    assert (await statuses(index))["failed"] == 1


async def until_at_rest(database: Database) -> None:
    """The server's own scheduler ends the tasks, whose time-outs are long past: before, two reads need not agree."""
    while await database.fetchval("SELECT count(*) FROM campaign WHERE status IN ('wait', 'processing')"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("on", [True, False])
async def test_a_server_builds_its_index_after_it_has_started_and_keeps_the_log_short(
    core: Core, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    monkeypatch.setattr(app, "CLEAN_UP_S", 0.05)
    monkeypatch.setattr(change_log, "KEPT", 2)
    tasks = [await core.create(["d1"]) for _ in range(5)]
    asked = Settings(data_dir=str(tmp_path), database=database_url, listen="127.0.0.1:0", list_index=on)
    async with app.running(asked) as rooms, asyncio.timeout(60):
        total, rows = await rooms.campaign_queries.page(core.actor, 0, 10)
        assert (total, [c.operation_id for c in rows]) == (5, tasks[::-1])
        assert bool(rooms.indexes) is on
        for index in rooms.indexes:
            if isinstance(index, IndexedCampaignList):
                await until_ready(index)
                await until_at_rest(core.database)
                await agree(index, core.database)
        while await core.database.fetchval("SELECT count(*) FROM campaign_change") > 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
class TestPostgres:
    async def test_transactions_that_commit_out_of_the_order_of_their_ids(
        self, core: Core, index: OnlyIndex, database_url: str
    ) -> None:
        """The classical trap: the later id is seen first, and who remembers it as "seen up to here" loses the other."""
        tasks = [await core.create(["d1"]) for _ in range(3)]
        early, late = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
        sql = "UPDATE campaign SET status = 'stop' WHERE operation_id = $1"
        first = early.transaction()
        await first.start()
        await early.execute(sql, tasks[0])
        await late.execute(sql, tasks[1])
        assert (await statuses(index))["stop"] == 1
        await late.execute(sql, tasks[2])
        assert (await statuses(index))["stop"] == 2
        await first.commit()
        assert (await statuses(index))["stop"] == 3
        await agree(index, core.database)
        await early.close()
        await late.close()

    async def test_entries_of_transactions_under_way_are_not_trimmed(
        self, core: Core, index: OnlyIndex, second: Database, database_url: str
    ) -> None:
        tasks = [await core.create(["d1"]) for _ in range(5)]
        early = await asyncpg.connect(database_url)
        under_way = early.transaction()
        await under_way.start()
        await early.execute("UPDATE campaign SET status = 'stop' WHERE operation_id = $1", tasks[0])
        for task in tasks[1:]:
            async with second.transaction() as tx:
                await put_status(tx, task, "failed")
        await statuses(index)
        await trim(second, 1)
        assert (await statuses(index))["failed"] == 4, "up to date, and so not to be told that it is behind"
        await under_way.commit()
        await trim(second, 1)
        assert await statuses(index) == {"wait": 0, "processing": 0, "success": 0, "failed": 4, "stop": 1}
        await early.close()

    async def test_entries_from_a_dump_of_another_cluster_concern_nobody(self, core: Core, second: Database) -> None:
        task = await core.create(["d1"])
        async with second.transaction() as tx:
            await tx.execute("INSERT INTO campaign_change (campaign_id, xid) VALUES (99, $1)", 2**40)
            await tx.execute("INSERT INTO campaign_change_trimmed (id, mark) VALUES (1, $1)", 2**40 - 1)
        index = OnlyIndex(core.database)
        await index.build()
        await agree(index, core.database)
        async with second.transaction() as tx:
            await put_status(tx, task, "failed")
        await trim(second, 1)
        await agree(index, core.database)
        assert await second.fetchval("SELECT count(*) FROM campaign_change WHERE xid >= $1", 2**39) == 0

    async def test_a_long_tail_with_a_transaction_that_commits_meanwhile(
        self, core: Core, index: OnlyIndex, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the middle of a tail of several pieces an older transaction commits, behind what has been read."""
        tasks = [await core.create(["d1"]) for _ in range(2)]
        await statuses(index)
        early, late = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
        sql = "UPDATE campaign SET status = $2 WHERE operation_id = $1"
        under_way = early.transaction()
        await under_way.start()
        await early.execute(sql, tasks[0], "success")
        async with late.transaction():
            for n in range(change_log.CHUNK + 10):
                await late.execute(sql, tasks[1], ("failed", "stop")[n % 2])
        read = index._log.read
        calls = 0

        async def reading(view: Any, mark: Any) -> Any:
            nonlocal calls
            tail = await read(view, mark)
            calls += 1
            if calls == 1:
                assert not tail.complete
                await under_way.commit()
            return tail

        monkeypatch.setattr(index._log, "read", reading)
        assert (await statuses(index))["success"] == 1
        assert calls > 2
        await agree(index, core.database)
        await early.close()
        await late.close()

    async def test_a_connection_that_breaks_in_mid_read_is_answered_by_plain_sql(self, core: Core) -> None:
        task = await core.create(["d1"])
        index = IndexedCampaignList(core.database)
        await index.build()

        class Broken:
            async def fetch(self, sql: str, *args: Any) -> Any:
                raise Unreachable("gone")

        @asynccontextmanager
        async def broken() -> AsyncIterator[Any]:
            yield Broken()

        core.database.moment = broken  # type: ignore[method-assign]
        total, rows = await index.page(CampaignFilter(OWN), 0, 10)
        assert (total, [c.operation_id for c in rows]) == (1, [task])
