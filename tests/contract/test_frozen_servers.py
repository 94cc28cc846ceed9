"""A server that was frozen for longer than its leases wakes up beside those that took its work over: what it has in
hand is refused, and what it left open in the database held nobody up.

Jobs have their own test (`test_jobs.py`); real processes are frozen by the drill D3.
"""

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from openiodm.clock import MINUTE, SECOND, Instant, Millis
from openiodm.devices.model import DeviceKey
from openiodm.notifications.delivery import LEASE, Deliverer
from openiodm.notifications.model import DeliveryRules, NoticeKey, NotifyType
from openiodm.notifications.ports import Pending
from openiodm.storage import postgres
from openiodm.storage.engine import Reader, Unreachable
from openiodm.storage.open import open_database
from openiodm.storage.outbox import OutboxReads
from openiodm.storage.postgres import PostgresDatabase
from tests.conftest import ManualClock
from tests.support.server import World, build_world

RULES = DeliveryRules(timeout=Millis(SECOND), life=Millis(10 * MINUTE), per_receiver=4, at_once=4)

SOCKET = ".s.PGSQL.5432"

postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


class Sending:
    """Attempts end when the test says so, and as it says."""

    def __init__(self, outcome: str | None = None, *, at_once: bool = True) -> None:
        self.tried: list[NoticeKey] = []
        self.outcome = outcome
        self.go_on = asyncio.Event()
        if at_once:
            self.go_on.set()

    async def send(self, notice: Pending) -> str | None:
        self.tried.append(notice.key)
        await self.go_on.wait()
        return self.outcome


@dataclass
class Told:
    """A world with a subscriber, and a notice for it."""

    world: World

    def deliverer(self, owner: str, sender: Sending) -> Deliverer:
        rooms = self.world.rooms
        outbox = OutboxReads(rooms.database)
        return Deliverer(owner, rooms.writer, outbox, sender, rooms.clock, RULES, wake=asyncio.Event(), alone=False)

    async def left(self) -> int:
        return int(await self.world.rooms.database.fetchval("SELECT count(*) FROM notice WHERE given_up_at IS NULL"))

    async def until_left(self, count: int) -> None:
        async with asyncio.timeout(60):
            while await self.left() != count:  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.01)

    async def notice(self, node: str) -> None:
        """One more: the device's offer."""
        (device,) = await self.world.register(node)
        await self.world.create_task([device])
        before = await self.left()
        await self.world.poll(node)
        assert await self.left() == before + 1

    async def health(self) -> tuple[object, ...]:
        sql = "SELECT r.failing_since, s.last_error FROM receiver r JOIN subscription s ON s.receiver_id = r.id"
        return tuple(*await self.world.rooms.database.fetch(sql))


@pytest.fixture
async def told(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Told]:
    async with build_world(database_url, tmp_path, clock, callback_allow=("127.0.0.1",), list_index=False) as world:
        await world.rooms.subscriptions.subscribe(world.actor, NotifyType.FW_STATE, "http://127.0.0.1:9/")
        built = Told(world)
        await built.notice("n1")
        yield built


async def begun(deliverer: Deliverer, sender: Sending) -> None:
    """It has the receiver, and an attempt is under way."""
    await deliverer._look()
    async with asyncio.timeout(60):
        while not sender.tried:  # noqa: ASYNC110 - it is told of in a list
            await asyncio.sleep(0.01)


def out_of_time(told: Told) -> None:
    told.world.clock.advance(LEASE + RULES.timeout + 1)


@postgresql
@pytest.mark.parametrize("outcome", [None, "no answer within 1 s"])
async def test_what_a_frozen_server_knows_of_its_deliveries_is_not_written(told: Told, outcome: str | None) -> None:
    stuck, good = Sending(outcome, at_once=False), Sending()
    frozen, other = told.deliverer("frozen", stuck), told.deliverer("other", good)
    await begun(frozen, stuck)
    out_of_time(told)
    await other._look()
    await told.until_left(0)
    assert good.tried == stuck.tried  # at least once: the frozen one may have been heard
    await told.notice("n2")
    good.go_on.clear()
    async with asyncio.timeout(60):
        while len(good.tried) < 2:
            await other._look()
            await asyncio.sleep(0.01)
    (lane,) = frozen._lanes.values()
    stuck.go_on.set()
    await lane.ended()
    assert await told.health() == (None, None)
    assert await told.left() == 1  # the other one's, which is under way
    good.go_on.set()
    await told.until_left(0)
    await frozen.close()
    await other.close()


@postgresql
async def test_a_receiver_that_another_had_meanwhile_is_not_simply_kept(told: Told) -> None:
    """Its notices in memory are old: later ones may have been delivered since."""
    stuck, good = Sending(at_once=False), Sending()
    frozen, other = told.deliverer("frozen", stuck), told.deliverer("other", good)
    await begun(frozen, stuck)
    (lane,) = frozen._lanes.values()
    out_of_time(told)
    await other._look()
    await told.until_left(0)
    await other.close()  # the receiver is free again
    await frozen._look()
    assert not lane.may_send()
    stuck.go_on.set()
    await lane.ended()
    await told.notice("n2")
    async with asyncio.timeout(60):
        while await told.left():
            await frozen._look()  # takes it anew
            await asyncio.sleep(0.01)
    await frozen.close()


@postgresql
async def test_a_frozen_server_gives_up_nothing_that_another_delivers(told: Told) -> None:
    stuck, slow = Sending("down", at_once=False), Sending(at_once=False)
    frozen, other = told.deliverer("frozen", stuck), told.deliverer("other", slow)
    await begun(frozen, stuck)
    (lane,) = frozen._lanes.values()
    lane._window.failing_since = told.world.rooms.clock.now()  # nothing was delivered before it was frozen
    lane._workers.clear()
    told.world.clock.advance(RULES.life + 1)
    await other._look()
    await begun(other, slow)
    await lane._give_up(told.world.rooms.clock.now())
    assert await told.left() == 1
    slow.go_on.set()
    await told.until_left(0)
    stuck.go_on.set()
    await frozen.close()
    await other.close()


@postgresql
async def test_a_transaction_that_a_frozen_server_left_open_is_undone_and_holds_nobody_up(
    told: Told, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await told.world.register("n2")
    monkeypatch.setattr(postgres, "ABANDONED_MS", 200)
    frozen = await open_database(database_url)
    try:
        with pytest.raises(Unreachable):
            async with frozen.transaction() as tx:
                await tx.execute("UPDATE device SET node_id = 'stale' WHERE node_id = 'n2'")
                async with asyncio.timeout(60):
                    await told.world.rooms.writer.run(  # waits for the row until PostgreSQL ends the session
                        lambda work: work.tx.execute("UPDATE device SET address = 'new' WHERE node_id = 'n2'")
                    )
                await tx.execute("UPDATE device SET node_id = 'staler' WHERE node_id = 'n2'")
    finally:
        await frozen.close()
    sql = "SELECT node_id, address FROM device ORDER BY id DESC LIMIT 1"
    assert tuple(*await told.world.rooms.database.fetch(sql)) == ("n2", "new")


@postgresql
async def test_a_session_whose_server_stopped_within_a_statement_is_ended_by_the_others(
    told: Told, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL takes it for active: it has parsed a statement, and waits to be told to carry it out."""
    monkeypatch.setattr(postgres, "ABANDONED_MS", 200)
    await told.world.register("n2")
    rooms = told.world.rooms
    frozen = await asyncpg.connect(database_url, server_settings={"application_name": "openiodm"})
    await frozen.execute("BEGIN")
    await frozen.execute("UPDATE device SET node_id = 'stale' WHERE node_id = 'n2'")
    await frozen.prepare("SELECT count(*) FROM device")
    waits = asyncio.create_task(
        rooms.writer.run(lambda work: work.tx.execute("UPDATE device SET address = 'new' WHERE node_id = 'n2'"))
    )
    async with asyncio.timeout(60):
        while not await rooms.database.end_abandoned():  # noqa: ASYNC110 - PostgreSQL tells nobody
            await asyncio.sleep(0.01)
        assert await waits == 1
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)):
        await frozen.execute("COMMIT")
    frozen.terminate()
    async with rooms.database.transaction() as tx:  # one that is at work is left alone
        await tx.execute("SELECT pg_sleep(0.3)")
        assert await rooms.database.end_abandoned() == 0


class Lingering:
    """A way to PostgreSQL whose sockets stay open when PostgreSQL has closed them, but while `let_go` is set."""

    def __init__(self, there: str) -> None:
        self._there = there
        self._flows: set[asyncio.Task[None]] = set()
        self.let_go = asyncio.Event()
        self.let_go.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source, sink = await asyncio.open_unix_connection(f"{self._there}/{SOCKET}")
        for way in (self._pass_on(reader, sink, lingers=False), self._pass_on(source, writer, lingers=True)):
            self._flows.add(asyncio.create_task(way))

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, lingers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                sink.write(data)
        if lingers:
            await self.let_go.wait()
        sink.close()

    async def ended(self) -> None:
        await asyncio.gather(*self._flows)


@postgresql
async def test_a_session_that_was_ended_while_its_socket_stays_open_is_unreachable_and_not_used_again(
    database_url: str,
) -> None:
    """The driver has read the last words between two statements, and believes itself within an operation since."""
    there = database_url.partition("?host=")[2]
    way = Lingering(there)
    with tempfile.TemporaryDirectory() as folder:
        async with await asyncio.start_unix_server(way.serve, f"{folder}/{SOCKET}"):
            database = await open_database(database_url.replace(there, folder))
            way.let_go.clear()
            for statement in ("SELECT 1", None):
                with pytest.raises(Unreachable):
                    async with database.transaction() as tx:
                        assert await database.fetchval("SELECT pg_terminate_backend($1)", await own(tx))
                        await asyncio.sleep(0.2)  # for the words to come; sooner or later, it is unreachable
                        if statement:
                            await tx.execute(statement)
            async with database.transaction() as tx:
                assert await own(tx)
            way.let_go.set()
            await database.close()
            await way.ended()


@postgresql
async def test_a_host_that_goes_away_without_a_word_is_noticed_by_the_kernel(database_url: str) -> None:
    """Over TCP; the sockets of the tests' own PostgreSQL are files."""
    there = database_url.partition("?host=")[2]
    way = Lingering(there)
    async with await asyncio.start_server(way.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        database = await open_database(database_url.replace("@/", f"@127.0.0.1:{port}/").partition("?")[0])
        assert isinstance(database, PostgresDatabase)
        async with database._pool.acquire() as connection:
            options = connection._transport.get_extra_info("socket").getsockopt
            assert options(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            kept = {option: options(socket.IPPROTO_TCP, option) for option in postgres.KEEP_ALIVE}
        assert kept == postgres.KEEP_ALIVE
        await database.close()
        await way.ended()


@postgresql
async def test_a_view_whose_session_is_ended_is_unreachable(told: Told) -> None:
    database = told.world.rooms.database
    with pytest.raises(Unreachable):
        async with database.snapshot() as view:
            assert await database.fetchval("SELECT pg_terminate_backend($1, 60000)", await own(view))
            await view.fetchval("SELECT 1")
    with pytest.raises(ConnectionError):  # what else is done meanwhile keeps its own errors
        async with database.snapshot():
            raise ConnectionError


async def own(tx: Reader) -> int:
    return int(await tx.fetchval("SELECT pg_backend_pid()"))


async def test_a_time_of_last_contact_never_goes_back_for_a_server_that_was_frozen_or_slow(told: Told) -> None:
    world = told.world
    key = DeviceKey(await world.rooms.database.fetchval("SELECT id FROM device WHERE node_id = 'n1'"))
    now = world.rooms.clock.now()

    async def written(at: int, address: str) -> tuple[int, str]:
        await world.rooms.writer.run(lambda work: work.devices.touch([(key, Instant(at), address)]))
        row = await world.rooms.database.fetchrow("SELECT last_seen_at, address FROM device WHERE id = $1", key)
        return int(row[0]), str(row[1])

    assert await written(now + 60_000, "new") == (now + 60_000, "new")
    assert await written(now, "stale") == (now + 60_000, "new")
    assert await written(now + 60_000, "same moment") == (now + 60_000, "same moment")
    far = now + 366 * 86_400_000
    assert await written(far, "a wrong clock") == (far, "a wrong clock")
    assert await written(now + 70_000, "right again") == (now + 70_000, "right again")
