"""Faults that a review of the core found, each held down by the test that showed it."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from openiodm.campaigns.model import Counters, ExecuteType, Policy
from openiodm.clock import DAY, HOUR, Instant
from openiodm.errors import Unavailable
from openiodm.protocols.download import Asked, Downloads
from openiodm.protocols.port import File
from openiodm.protocols.ranges import Plan, Span
from openiodm.scheduler.model import Done, Job, Progress
from openiodm.scheduler.runner import Scheduler
from openiodm.storage import sqlite
from openiodm.storage.blobs import FileStore
from openiodm.storage.engine import Database, Unreachable
from openiodm.storage.postgres import PostgresDatabase
from openiodm.storage.sqlite import SqliteDatabase
from openiodm.storage.writer import MAX_BATCH, Lane, Writer
from tests.conftest import ManualClock
from tests.support.core import CLOCKS, Core, build_core
from tests.support.server import FIRMWARE, World, build_world


@pytest.fixture
async def core(database: Database, clock: ManualClock) -> AsyncIterator[Core]:
    built = await build_core(database, clock)
    yield built
    await built.check_laws()
    await built.writer.close()


@pytest.fixture
async def world(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    async with build_world(database_url, tmp_path / "data", clock) as built:
        yield built


FILE = File("f", "firmwarePackage", "file", "V2", "aa", "bb", "cc", 8 * 1024 * 1024, Instant(0))


# -- the writer


class _Echo:
    """A batcher that answers what it is given."""

    async def process(self, work: Any, items: Any) -> Any:
        return list(items)


async def _flood(writer: Writer[Any], stop: asyncio.Event) -> None:
    echo = _Echo()
    while not stop.is_set():
        await writer.report(echo, 1)


@pytest.mark.parametrize("lane", [Lane.COMMAND, Lane.CHUNK])
async def test_a_flood_of_reports_starves_nobody(core: Core, lane: Lane) -> None:
    stop = asyncio.Event()
    floods = [asyncio.create_task(_flood(core.writer, stop)) for _ in range(3 * MAX_BATCH)]
    await asyncio.sleep(0.05)
    try:
        async with asyncio.timeout(60):
            for _ in range(5):
                await core.writer.run(lambda work: asyncio.sleep(0), lane)
    finally:
        stop.set()
        await asyncio.gather(*floods)


async def test_a_full_disk_fails_writes_and_nothing_else(core: Core) -> None:
    if not isinstance(core.database, SqliteDatabase):
        pytest.skip("SQLite's disk")
    task = await core.create(await core.add_devices(60))
    disk: sqlite3.Connection = core.database._write
    size = disk.execute("PRAGMA page_count").fetchone()[0]
    disk.execute(f"PRAGMA max_page_count = {size}")
    many = await asyncio.gather(*(core.create(None, groups=["none"]) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(m, Exception) for m in many)

    async def grow(work: Any) -> None:
        for n in range(2000):
            await work.tx.execute("INSERT INTO idempotency VALUES (1, $1, $2, 'o', 0)", f"key-{n}", "x" * 400)

    results = await asyncio.gather(
        core.writer.run(grow), core.contact(1), core.writer.run(grow), core.contact(2), return_exceptions=True
    )
    assert [type(r).__name__ for r in results] == ["Unavailable", "Outcome", "Unavailable", "Outcome"]
    disk.execute("PRAGMA max_page_count = 1000000")
    await core.writer.run(grow)
    await core.check_laws()
    assert (await core.queries.one(core.actor, task)).counters == Counters(total=60, wait=58, processing=2)


async def test_a_connection_killed_in_mid_batch_costs_one_batch(core: Core, database_url: str) -> None:
    if not isinstance(core.database, PostgresDatabase):
        pytest.skip("PostgreSQL's connections")
    await core.create(await core.add_devices(50))
    admin = await asyncpg.connect(database_url)
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> $1"
    mine = await admin.fetchval("SELECT pg_backend_pid()")

    async def die(work: Any) -> None:
        await admin.fetch(kill, mine)
        await work.tx.execute("SELECT 1")

    first = asyncio.create_task(core.writer.run(die))
    answers = await asyncio.gather(*(core.contact(n) for n in range(1, 51)), return_exceptions=True)
    with pytest.raises(Unavailable):
        await first
    granted = sum(not isinstance(a, BaseException) for a in answers)
    kept = await core.database.fetchval("SELECT count(*) FROM upgrade WHERE state = 'offered'")
    assert kept >= granted, "acknowledged is durable"
    assert (await core.contact(50)).standing is not None
    await admin.close()


async def test_a_commit_of_unknown_outcome_is_not_done_twice(core: Core, database_url: str) -> None:
    """The connection breaks as the commit is under way: a command that may have been done is not done again."""
    if not isinstance(core.database, PostgresDatabase):
        pytest.skip("SQLite's commit is in this process")
    runs = []

    async def command(work: Any) -> None:
        runs.append(1)
        await work.tx.execute(
            "INSERT INTO application (app_id, name, secret_hash, target_tokens, gateway_tokens, "
            "created_at) VALUES ($1, 'n', 'x', TRUE, TRUE, 0)",
            f"twice{len(runs)}",
        )

    admin = await asyncpg.connect(database_url)
    await admin.execute(
        "CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END $$"
    )
    await admin.execute(
        "CREATE CONSTRAINT TRIGGER broken AFTER INSERT ON application DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION broken()"
    )
    results = await asyncio.gather(core.writer.run(command), core.writer.run(_nothing), return_exceptions=True)
    assert [type(r) for r in results] == [Unavailable, Unavailable]
    assert len(runs) == 1
    await admin.close()
    await core.writer.run(_nothing)


async def _nothing(_work: Any) -> None:
    pass


async def test_an_unreachable_database_fails_a_batch_at_once(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = 0
    whole = core.database.transaction

    def broken() -> Any:
        nonlocal opened
        opened += 1
        raise Unreachable

    monkeypatch.setattr(core.database, "transaction", broken)
    answers = await asyncio.gather(*(core.contact(1) for _ in range(100)), return_exceptions=True)
    assert {type(a) for a in answers} == {Unavailable}
    assert opened <= 2, "not one attempt per waiting device"
    monkeypatch.setattr(core.database, "transaction", whole)
    await core.contact(1)


async def test_a_sqlite_file_that_another_process_keeps_locked_fails_a_batch_at_once(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(core.database, SqliteDatabase):
        pytest.skip("a SQLite file has one lock")
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 100)
    file = core.database._write.execute("PRAGMA database_list").fetchone()[2]
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    opened = 0
    whole = core.database.transaction

    def counted() -> Any:
        nonlocal opened
        opened += 1
        return whole()

    monkeypatch.setattr(core.database, "transaction", counted)
    answers = await asyncio.gather(*(core.contact(1) for _ in range(100)), return_exceptions=True)
    assert {type(a) for a in answers} == {Unavailable}
    assert opened <= 2, "not one wait per waiting device"
    other.close()
    await core.contact(1)


def test_files_that_another_process_removes_meanwhile_are_no_reason_not_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path)
    store.incoming.mkdir(parents=True)
    for name in ("a", "b"):
        (store.incoming / name).touch()
    listed = Path.iterdir

    def stale(path: Path) -> Iterator[Path]:
        yield path / "gone"
        yield from listed(path)

    monkeypatch.setattr(Path, "iterdir", stale)
    assert store._sweep() == 2


# -- jobs


async def test_a_job_that_this_server_does_not_know_harms_nothing(core: Core, clock: ManualClock) -> None:
    """Another server on the same database may be newer."""
    calls = []

    class Known:
        async def run(self, work: Any, job: Job, now: Instant) -> Progress:
            calls.append(job.kind)
            return Done()

    async def put(work: Any) -> None:
        await work.jobs.put("future", 1, clock.now())
        await work.jobs.put("known", 1, clock.now())

    await core.writer.run(put)
    slow = lambda command: core.writer.run(command, Lane.CHUNK)  # noqa: E731
    scheduler = Scheduler("one", clock, core.writer.run, slow, {"known": Known()}, alone=False)
    await scheduler.start()
    await asyncio.sleep(0.2)
    await scheduler.close()
    assert calls == ["known"]
    assert await core.database.fetchval("SELECT count(*) FROM job WHERE kind = 'future'") == 1


async def test_no_more_jobs_are_leased_than_are_worked_on(core: Core, clock: ManualClock) -> None:
    """A lease that waits for its turn runs out, and its job starts again from the end of the queue."""
    running = most = 0
    gate = asyncio.Event()

    class Slow:
        async def run(self, work: Any, job: Job, now: Instant) -> Progress:
            return Done()

    async def slow(command: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return await core.writer.run(command, Lane.CHUNK)

    async def put(work: Any) -> None:
        for n in range(200):
            await work.jobs.put("k", n, clock.now())

    await core.writer.run(put)
    scheduler = Scheduler("one", clock, core.writer.run, slow, {"k": Slow()}, alone=False)
    await scheduler.start()
    for _ in range(20):
        scheduler.wake()
        await asyncio.sleep(0.01)
    assert most <= 32
    gate.set()
    async with asyncio.timeout(10):
        while await core.database.fetchval("SELECT count(*) FROM job"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await scheduler.close()


async def test_the_online_clock_of_a_retry_begins_with_the_window(core: Core, clock: ManualClock) -> None:
    blocker = await core.create(devices := await core.add_devices(1))
    start = Instant(clock.now() + 3 * DAY)
    policy = Policy(ExecuteType.CUSTOM, start, Instant(start + DAY), 1)
    task = await core.create(devices, policy=policy)
    await core.commands.stop_device(core.actor, blocker, "n1")  # free before the round begins
    await core.run_jobs()
    clock.at = Instant(start + HOUR)
    await core.run_jobs()
    await core.contact(1)
    assert (await core.queries.one(core.actor, task)).counters == Counters(total=1, processing=1)
    assert CLOCKS.online < 3 * DAY


# -- DDI


@pytest.mark.parametrize(
    "path",
    ["/DEFAULT%2Fcontroller%2Fv1%2Fdev", "/DEFAULT/controller%2Fv1/dev", "/DEFAULT/controller/v1%2Fdev"],
)
async def test_an_encoded_slash_where_the_api_has_slashes_is_an_unknown_path(world: World, path: str) -> None:
    answer = await world.http.get(path, headers=world.gateway)
    assert answer.status_code in (401, 404)


@pytest.mark.parametrize("node_id", ["a%00b", "%FF", "%C3%28", "x" * 257])
async def test_a_controller_id_that_cannot_be_one_is_refused(world: World, node_id: str) -> None:
    for path in ("", "/deploymentBase/1"):
        answer = await world.http.get(f"/DEFAULT/controller/v1/{node_id}{path}", headers=world.gateway)
        assert answer.status_code in (400, 404), (node_id, path, answer.status_code)


@pytest.mark.parametrize("node_id", ["a%2Fb", "%E4%B8%AD%E6%96%87", "a%20b%25", "x" * 256])
async def test_a_controller_id_may_be_any_text(world: World, node_id: str) -> None:
    answer = await world.http.get(
        httpx.URL("http://server.test", raw_path=f"/DEFAULT/controller/v1/{node_id}".encode()), headers=world.gateway
    )
    assert answer.status_code == 200, node_id


async def _offered(world: World, node_id: str) -> tuple[str, str]:
    """(operation, path of the artifact)."""
    operation = await world.create_task(await world.register(node_id))
    href = (await world.poll(node_id))["_links"]["deploymentBase"]["href"]
    chunk = (await world.http.get(href, headers=world.gateway)).json()["deployment"]["chunks"][0]
    links = chunk["artifacts"][0]["_links"]
    return operation, (links.get("download") or links["download-http"])["href"]


async def test_a_package_file_that_is_missing_is_answered_before_any_byte(world: World) -> None:
    _, artifact = await _offered(world, "dev")
    for path in world.rooms.settings.package_dir.rglob("*"):
        if path.is_file() and path.stat().st_size == len(FIRMWARE):
            path.unlink()
    answer = await world.http.get(artifact, headers=world.gateway)
    assert answer.status_code == 404
    assert (await world.poll("dev"))["_links"]["deploymentBase"]


def at(path: Path) -> Callable[[str], Awaitable[Path]]:
    """A store of one file."""

    async def local(_sha256: str) -> Path:
        return path

    return local


async def test_a_failure_in_mid_download_cuts_it_and_asks_for_no_second_answer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1024 * 1024))
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def still_allowed() -> bool:
        return True

    whole = Plan(200, {}, (Span(0, 2 * 1024 * 1024 - 1),))  # the row says more than there is
    asked = Asked("GET", {}, False, receive, send)
    downloads, ends = Downloads(at(path)), []
    downloads.ended = ends.append
    assert not await downloads.send(asked, FILE, whole, {}, still_allowed)
    assert sent[0] == "http.response.start"
    assert ends == ["broken_off"]
    with pytest.raises(FileNotFoundError):
        await Downloads(at(tmp_path / "none")).send(asked, FILE, whole, {}, still_allowed)


async def test_a_slow_reader_costs_little_memory_and_is_cut_soon_after_a_stop(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8 * 1024 * 1024))
    allowed, sent = True, 0
    largest: list[int] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        nonlocal sent
        size = len(message.get("body", b""))
        sent += size
        largest.append(size)
        await asyncio.sleep(size / 200_000)  # 200 KB/s

    async def still_allowed() -> bool:
        return allowed

    plan = Plan(200, {}, (Span(0, FILE.size - 1),))
    asked = Asked("GET", {}, False, receive, send)
    downloads, told = Downloads(at(path)), []
    downloads.sent = told.append
    task = asyncio.create_task(downloads.send(asked, FILE, plan, {}, still_allowed))
    await asyncio.sleep(1)
    before, allowed = sent, False
    assert not await task
    assert sum(told) == sent
    assert max(largest) <= 64 * 1024
    assert sent - before <= 300_000


async def test_one_poll_of_a_device_with_its_own_token_is_by_index(core: Core) -> None:
    """Not a scan of all devices, also where one application has them all."""
    from openiodm.storage import contacts

    await core.add_devices(2000)
    if isinstance(core.database, SqliteDatabase):
        rows = await core.database.fetch(f"EXPLAIN QUERY PLAN {contacts._BY_TARGET}", "h", "n1")
        plan = "\n".join(r["detail"] for r in rows)
        assert "SCAN d" not in plan, plan
    else:
        async with core.database.transaction() as tx:
            await tx.execute("ANALYZE device")
            await tx.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            rows = await tx.fetch("EXPLAIN " + contacts._BY_TARGET.replace("$1", "'h'").replace("$2", "'n1'"))
        plan = "\n".join(r[0] for r in rows)
        assert "Seq Scan on device" not in plan, plan
