"""A database that takes no writes for a while, on both engines: what goes on meanwhile, and that all does afterwards.

The drills D15 fill real disks and forbid real files to be written, in mid-campaign.
"""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
import structlog

from openiodm.storage import writer
from openiodm.storage.engine import Database, Unwritable
from openiodm.storage.sqlite import SqliteDatabase
from tests.conftest import ManualClock
from tests.support.server import World, build_world


@pytest.fixture
async def world(
    database_url: str, tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr(writer, "UNWRITABLE_S", 0.0)
    async with build_world(database_url, tmp_path, clock) as built:
        yield built


@asynccontextmanager
async def read_only(database: Database, url: str) -> AsyncIterator[None]:
    """As after a failover: the sessions of before end, and the new ones may only read."""
    if isinstance(database, SqliteDatabase):
        connection: sqlite3.Connection = database._write
        connection.execute("PRAGMA query_only = ON")
        yield
        connection.execute("PRAGMA query_only = OFF")
        return
    administrator = await asyncpg.connect(url)
    name = await administrator.fetchval("SELECT current_database()")
    others = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
    )
    try:
        await administrator.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        await administrator.fetch(others, name)
        yield
        await administrator.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        await administrator.fetch(others, name)
    finally:
        await administrator.close()


async def until_known(database: Database) -> None:
    """Connections that died in the pool have been met."""
    for _ in range(20):
        try:
            async with database.transaction() as tx:
                await tx.fetch(database.empty_write)
        except Unwritable:
            return
        except Exception:  # dead connections end in several ways
            continue
        return


async def test_writes_are_refused_reads_go_on_and_so_does_everything_afterwards(
    world: World, database_url: str
) -> None:
    (device,) = await world.register("dev1")
    task = await world.create_task([device])
    await world.poll("dev1")
    database = world.rooms.database
    async with read_only(database, database_url):
        await until_known(database)
        with structlog.testing.capture_logs() as logs:
            assert await world.feedback("dev1", 1, "closed", "success") == 500
            assert (await world.http.get("/readyz")).status_code == 503
        assert {(line["event"], line["log_level"]) for line in logs} >= {("database_unwritable", "error")}
        assert not [line for line in logs if line["event"] == "write_failed"]
        assert "deploymentBase" in (await world.poll("dev1"))["_links"]
        assert await world.counters(task) == {"processing": 1}
    await until_known(database)
    assert await world.feedback("dev1", 1, "closed", "success") == 200
    assert (await world.http.get("/readyz")).status_code == 200
    assert await world.counters(task) == {"success": 1}


async def test_a_single_write_that_goes_does_not_make_a_full_disk_ready(
    world: World, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.register("dev1")
    async with read_only(world.rooms.database, database_url):
        await until_known(world.rooms.database)
        assert (await world.http.get("/readyz")).status_code == 503
    await until_known(world.rooms.database)
    monkeypatch.setattr(writer, "UNWRITABLE_S", 3600.0)
    assert (await world.http.get("/readyz")).status_code == 503
    monkeypatch.setattr(writer, "UNWRITABLE_S", 0.0)
    assert (await world.http.get("/readyz")).status_code == 200


async def test_what_writes_nothing_is_refused_as_any_write_is(world: World, database_url: str) -> None:
    database = world.rooms.database
    async with read_only(database, database_url):
        await until_known(database)
        with pytest.raises(Unwritable):
            async with database.transaction() as tx:
                await tx.fetch(database.empty_write)


async def test_a_full_disk_is_unwritable(world: World) -> None:
    database = world.rooms.database
    if not isinstance(database, SqliteDatabase):
        error: type[Exception] = asyncpg.DiskFullError
    else:
        error = sqlite3.OperationalError
    with pytest.raises(Unwritable):
        async with database.transaction():
            raised = error("full")
            if isinstance(raised, sqlite3.OperationalError):
                raised.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise raised
    async with database.transaction() as tx:
        await tx.fetch(database.empty_write)
