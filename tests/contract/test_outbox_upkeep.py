"""Upkeep of notices and receivers, on the event loop and within the writer's transaction: every look is bounded."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from openiodm.access.model import ApplicationKey
from openiodm.clock import DAY, Instant
from openiodm.notifications.callbacks import Guard
from openiodm.notifications.commands import CHUNK, SubscriptionCommands
from openiodm.notifications.model import NotifyType, ReceiverKey
from openiodm.notifications.ports import NewSubscription
from openiodm.notifications.queries import SubscriptionQueries
from openiodm.storage.engine import Database, InsertMany, Tx
from openiodm.storage.notices import INSERT
from openiodm.storage.outbox import OutboxReads, OutboxRows
from openiodm.storage.subscriptions import LOOKED_AT, SubscriptionRows, SubscriptionStore
from tests.conftest import ManualClock

KEEP_DAYS = 30
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
HERE, THERE = ReceiverKey(1), ReceiverKey(2)
SUBSCRIPTION = InsertMany(
    "subscription",
    {
        "id": "bigint",
        "subscription_id": "text",
        "application_id": "bigint",
        "notify_type": "text",
        "callback_url": "text",
        "receiver_id": "bigint",
        "created_at": "bigint",
        "deleted_at": "bigint",
    },
)
UNDELIVERED = InsertMany("notice", {**INSERT.columns, "given_up_at": "bigint"})


class Seen:
    """A transaction that keeps what it is asked."""

    def __init__(self, tx: Tx) -> None:
        self.tx = tx
        self.statements: list[tuple[str, tuple[Any, ...]]] = []

    async def fetch(self, sql: str, *args: Any) -> Sequence[Any]:
        self.statements.append((sql, args))
        return await self.tx.fetch(sql, *args)

    async def execute(self, sql: str, *args: Any) -> int:
        self.statements.append((sql, args))
        return await self.tx.execute(sql, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tx, name)

    async def plans(self, engine: str) -> str:
        explain = "EXPLAIN QUERY PLAN" if engine == "sqlite" else "EXPLAIN"
        found = []
        for sql, args in self.statements:
            found.append(sql)
            found += [row[3 if engine == "sqlite" else 0] for row in await self.tx.fetch(f"{explain} {sql}", *args)]
        return "\n".join(found)


class Outbox:
    """Rows put in by hand, and the commands on them."""

    def __init__(self, database: Database, clock: ManualClock) -> None:
        self.database = database
        self.clock = clock
        self.seen: Seen | None = None
        queries = SubscriptionQueries(SubscriptionStore(database))
        self.commands = SubscriptionCommands(cast("Any", self), queries, clock, Guard())

    async def run(self, command: Callable[[Any], Awaitable[Any]]) -> Any:
        """As the writer does."""
        async with self.database.transaction() as tx:
            self.seen = Seen(tx)
            rows = cast("Tx", self.seen)
            return await command(SimpleNamespace(subscriptions=SubscriptionRows(rows), outbox=OutboxRows(rows)))

    @asynccontextmanager
    async def looking(self, large: str = "n|notice") -> AsyncIterator[None]:
        """What is asked meanwhile reads no more of these tables than a range of an index."""
        async with self.database.transaction() as tx:
            if self.database.engine == "postgresql":
                await tx.execute("ANALYZE")
        yield
        assert self.seen is not None
        async with self.database.transaction() as tx:
            self.seen.tx = tx
            plans = await self.seen.plans(self.database.engine)
        assert "notice" in plans
        assert not re.search(r"SCAN s(?! USING INDEX \w+_live)", plans), plans
        assert not re.search(rf"SCAN ({large})\b|Seq Scan on ({large})\b", plans), plans
        assert not re.search(rf"Scan using pk_\w+ on ({large})\b.*\n +Filter", plans), plans

    async def insert(self, statement: InsertMany, rows: Sequence[tuple[Any, ...]]) -> None:
        async with self.database.transaction() as tx:
            await tx.insert_many(statement, rows)

    async def receivers(self, keys: Iterable[int], owner: str | None = None, lease_until: int | None = None) -> None:
        statement = InsertMany("receiver", {"id": "bigint", "name": "text", "owner": "text", "lease_until": "bigint"})
        await self.insert(statement, [(k, f"h:{k}", owner, lease_until) for k in keys])

    async def receivers_left(self) -> list[int]:
        return [row[0] for row in await self.database.fetch("SELECT id FROM receiver ORDER BY id")]

    async def subscribe(self, keys: Sequence[int], receiver: ReceiverKey = HERE, *, deleted: bool = False) -> None:
        await self.insert(
            SUBSCRIPTION,
            [(k, f"s{k}", 1, f"t{k}", "http://h:1/", receiver, 1, 2 if deleted else None) for k in keys],
        )

    async def pending(self, subscription: int, count: int, since: int) -> None:
        await self.insert(INSERT, [(subscription, n, "x" * 100, since, since, 0) for n in range(count)])

    async def undelivered(self, subscription: int, count: int, since: int) -> None:
        await self.insert(UNDELIVERED, [(subscription, n, "x" * 100, 1, 1, 3, since) for n in range(count)])

    async def give_up(self, before: int, receiver: ReceiverKey = HERE, limit: int = CHUNK) -> int:
        async def give_up(work: Any) -> int:
            return int(await work.outbox.give_up(receiver, Instant(before), "silent", self.clock.now(), limit))

        return int(await self.run(give_up))

    async def left(self) -> dict[int, tuple[int, int]]:
        """Pending and undelivered ones of each subscription that has any."""
        rows = await self.database.fetch(
            "SELECT subscription_id, count(*) - count(given_up_at), count(given_up_at) FROM notice "
            "GROUP BY subscription_id"
        )
        return {row[0]: (row[1], row[2]) for row in rows}


@pytest.fixture
async def outbox(database: Database, clock: ManualClock) -> Outbox:
    async with database.transaction() as tx:
        await tx.execute(
            "INSERT INTO application (id, app_id, name, secret_hash, target_tokens, gateway_tokens, created_at) "
            "VALUES (1, 'a', 'a', 'x', TRUE, TRUE, 1)"
        )
        await tx.execute("INSERT INTO receiver (id, name) VALUES (1, 'h:1'), (2, 'h:2')")
    return Outbox(database, clock)


def another(name: str) -> NewSubscription:
    return NewSubscription(f"to {name}", ApplicationKey(1), NotifyType.FW_RESULT, f"http://{name}/", name)


async def test_a_full_outbox_with_nothing_to_remove_is_not_read(outbox: Outbox) -> None:
    now = outbox.clock.now()
    await outbox.subscribe([1, 2])
    await outbox.subscribe([3], deleted=True)
    for subscription in (1, 2):
        await outbox.pending(subscription, 4000, now)
        await outbox.undelivered(subscription, 4000, now)
    async with outbox.looking():
        assert await outbox.commands.sweep(KEEP_DAYS) == 0
    async with outbox.looking():
        assert await outbox.give_up(now) == 0


async def test_nor_is_one_with_something_to_remove(outbox: Outbox) -> None:
    now = outbox.clock.now()
    await outbox.subscribe([1, 2])
    await outbox.subscribe([3], deleted=True)
    for subscription in (1, 3):
        await outbox.pending(subscription, 1, now - 2)
        await outbox.undelivered(subscription, 1, now - 31 * DAY)
        await outbox.pending(subscription, 40, now)
    await outbox.pending(2, 4000, now)
    await outbox.undelivered(2, 4000, now)
    async with outbox.looking():
        assert await outbox.commands.sweep(KEEP_DAYS) == 43
    async with outbox.looking():
        assert await outbox.give_up(now) == 1


async def test_notices_of_deleted_subscriptions_go_however_many_those_are(outbox: Outbox) -> None:
    many = range(10, 10 + LOOKED_AT + 1)
    await outbox.subscribe([1])
    await outbox.subscribe(many, deleted=True)
    for subscription in (1, many[0], many[-1]):
        await outbox.pending(subscription, 3, outbox.clock.now())
        await outbox.undelivered(subscription, 2, outbox.clock.now())
    assert await outbox.commands.sweep(KEEP_DAYS) == 5
    assert await outbox.left() == {1: (3, 2), many[-1]: (3, 2)}
    assert await outbox.commands.sweep(KEEP_DAYS) == 5
    assert await outbox.left() == {1: (3, 2)}
    await outbox.pending(many[0], 1, outbox.clock.now())  # of a transaction that saw it before
    assert await outbox.commands.sweep(KEEP_DAYS) == 1


async def test_many_notices_of_a_deleted_subscription_go_in_chunks(outbox: Outbox) -> None:
    await outbox.subscribe(range(10, 10 + LOOKED_AT), deleted=True)
    await outbox.pending(11, CHUNK + 5, outbox.clock.now())
    await outbox.undelivered(12, 4, outbox.clock.now())
    assert [await outbox.commands.sweep(KEEP_DAYS) for _ in range(4)] == [CHUNK, 9, 0, 0]


async def test_undelivered_notices_are_kept_for_their_days(outbox: Outbox) -> None:
    now = outbox.clock.now()
    await outbox.subscribe([1, 2, 3])
    await outbox.undelivered(1, CHUNK + 5, now - KEEP_DAYS * DAY - 1)
    await outbox.undelivered(1, 2, now - KEEP_DAYS * DAY)
    await outbox.undelivered(2, 7, now - KEEP_DAYS * DAY)
    await outbox.undelivered(3, 9, now - KEEP_DAYS * DAY - 1)
    await outbox.pending(3, 1, 1)
    assert [await outbox.commands.sweep(KEEP_DAYS) for _ in range(3)] == [CHUNK, 5 + 9, 0]
    assert await outbox.left() == {1: (0, 2), 2: (0, 7), 3: (1, 0)}


async def test_what_has_waited_for_too_long_is_given_up_of_every_subscription_of_its_receiver(outbox: Outbox) -> None:
    await outbox.subscribe([1, 2, 3])
    await outbox.subscribe([4], THERE)
    await outbox.subscribe([5], deleted=True)
    for subscription in range(1, 6):
        await outbox.pending(subscription, 2, 200 if subscription == 2 else 100)
        await outbox.pending(subscription, 3, 200)
    assert [await outbox.give_up(200, limit=3) for _ in range(3)] == [2, 2, 0]
    assert await outbox.left() == {1: (3, 2), 2: (5, 0), 3: (3, 2), 4: (5, 0), 5: (5, 0)}
    assert await outbox.give_up(201, limit=3) == 3
    row = await outbox.database.fetchrow("SELECT given_up_at, due_at, last_error FROM notice ORDER BY id LIMIT 1")
    assert row is not None
    assert tuple(row) == (outbox.clock.now(), None, "silent")


async def test_receivers_that_no_subscription_names_any_more_go(outbox: Outbox) -> None:
    """One that was redirected from port to port left one each."""
    now = outbox.clock.now()
    await outbox.receivers(range(10, 10 + LOOKED_AT))
    await outbox.receivers([3000], "alive", now)
    await outbox.receivers([3001], "gone", now - 1)
    await outbox.receivers([3002, 3003, 3004])
    await outbox.subscribe([1])
    await outbox.subscribe([2], ReceiverKey(3002))
    await outbox.subscribe([3], ReceiverKey(3003), deleted=True)
    await outbox.pending(2, 1, now)
    for _ in range(2):
        await outbox.commands.sweep(KEEP_DAYS)
    assert await outbox.receivers_left() == [HERE, 3000, 3002, 3003]
    await outbox.receivers([20])
    await outbox.commands.sweep(KEEP_DAYS)
    assert await outbox.receivers_left() == [HERE, 3000, 3002, 3003]


async def test_receivers_that_are_not_wanted_cost_nothing(outbox: Outbox) -> None:
    await outbox.receivers(range(10, 3000), "gone", 1)
    await outbox.receivers([3000])
    await outbox.subscribe([1])
    await outbox.subscribe([2], ReceiverKey(3000))
    await outbox.subscribe([3], ReceiverKey(3000), deleted=True)
    await outbox.subscribe(range(10, 3000), THERE, deleted=True)
    for subscription, count in ((2, 2000), (3, 2), (10, 2)):
        await outbox.pending(subscription, count, outbox.clock.now())

    async def wanting(work: Any) -> Sequence[ReceiverKey]:
        return await OutboxReads(work.subscriptions._tx).wanting(outbox.clock.now(), 10)

    async with outbox.looking("n|notice|r|receiver"):
        assert await outbox.run(wanting) == [3000]
    async with outbox.looking("n|notice|r|receiver"):
        await outbox.commands.sweep(KEEP_DAYS)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_receiver_that_another_server_just_subscribes_to_stays(outbox: Outbox) -> None:
    async with asyncio.timeout(60):
        async with outbox.database.transaction() as tx:
            assert await SubscriptionRows(tx).insert(another("h:2"), outbox.clock.now())
            await outbox.commands.sweep(KEEP_DAYS)  # waits for nobody
        assert await outbox.receivers_left() == [THERE]
        await outbox.commands.sweep(KEEP_DAYS)
    assert await outbox.database.fetchval("SELECT receiver_id FROM subscription") == THERE


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_who_subscribes_to_a_receiver_that_just_goes_gets_a_new_one(outbox: Outbox) -> None:
    async def subscribe(work: Any) -> bool:
        return bool(await work.subscriptions.insert(another("h:2"), outbox.clock.now()))

    async with asyncio.timeout(60):
        async with outbox.database.transaction() as tx:
            assert await SubscriptionRows(tx).forget_receivers(ReceiverKey(0), outbox.clock.now()) == 0
            waits = asyncio.create_task(outbox.run(subscribe))
            while not await outbox.database.fetchval(WAITING):  # noqa: ASYNC110 - PostgreSQL tells nobody
                await asyncio.sleep(0.01)
        assert await waits
    (left,) = await outbox.receivers_left()
    assert left != THERE
    assert await outbox.database.fetchval("SELECT receiver_id FROM subscription") == left
