"""A database that takes no writes for a while, on both engines: what goes on meanwhile, and that all does afterwards.

The drills D15 fill real disks and forbid real files to be written, in mid-campaign.
"""

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog

from openiodm.protocols.coap.codec import Code, Option
from openiodm.storage import writer
from openiodm.storage.engine import Database, Unwritable
from openiodm.storage.postgres import PostgresDatabase
from openiodm.storage.sqlite import SqliteDatabase
from tests.conftest import ManualClock
from tests.support.lwm2m import ask, build_field
from tests.support.server import World, build_world

OPERATIONS = "/iodm/northbound/v1.5.0/operations"


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
        assert not traces(logs)
    await until_known(database)
    assert await world.feedback("dev1", 1, "closed", "success") == 200
    assert (await world.http.get("/readyz")).status_code == 200
    assert await world.counters(task) == {"success": 1}


def traces(logs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The events that were told with a trace: a database that is away is no bug, and the disk of the log is finite."""
    return [line["event"] for line in logs if line.get("exc_info")]


async def test_a_caller_is_told_to_ask_again(world: World, database_url: str) -> None:
    headers = await world.login()
    async with read_only(world.rooms.database, database_url):
        await until_known(world.rooms.database)
        with structlog.testing.capture_logs() as logs:
            native = await world.http.post("/api/v1/groups", json={"name": "g"}, headers=headers)
            login = {"appId": world.app_id, "secret": world.secret}
            compatible = await world.http.post("/iocm/app/sec/v1.1.0/login", data=login)
    assert (native.status_code, native.json()["reason"], native.headers["Retry-After"]) == (503, "database-away", "1")
    assert (compatible.status_code, compatible.json()["error_code"]) == (500, "50252")
    assert not traces(logs)


async def test_what_is_only_read_can_be_read_and_flow_control_goes_on(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    async with build_world(database_url, tmp_path, clock, calls_per_minute=5, native_calls_per_minute=3) as world:
        headers = await world.login()
        for path, limit, refused in ((OPERATIONS, 5, 403), ("/api/v1/tasks", 3, 429)):
            assert (await world.http.get(path, headers=headers)).status_code == 200
            async with read_only(world.rooms.database, database_url):
                await until_known(world.rooms.database)
                seen = [(await world.http.get(path, headers=headers)).status_code for _ in range(limit + 1)]
            assert seen[:-2] == [200] * (limit - 1)
            assert seen[-1] == refused
            await until_known(world.rooms.database)


async def test_a_database_that_is_away_is_told_without_a_trace_a_request(world: World) -> None:
    database = world.rooms.database
    if not isinstance(database, PostgresDatabase):
        pytest.skip("a SQLite file is not away")
    headers = await world.login()
    await world.register("dev1")
    await database.close()
    with structlog.testing.capture_logs() as logs:
        assert (await world.http.get(world.ddi("dev1"), headers=world.gateway)).status_code == 500
        assert (await world.http.get("/api/v1/tasks", headers=headers)).status_code == 503
    assert not traces(logs)
    assert {line["event"] for line in logs} >= {"request_not_served", "ddi_request_not_served"}


async def test_a_lwm2m_device_is_told_to_ask_again_and_when(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 7252 section 5.9.3.4: 5.03, and the seconds in Max-Age."""
    monkeypatch.setattr(writer, "UNWRITABLE_S", 0.0)
    async with build_field(database_url, tmp_path) as field:
        await field.register("n1")
        database = field.world.rooms.database
        with ask(field) as register:
            async with read_only(database, database_url):
                await until_known(database)
                refused = await register("n1")
            await until_known(database)
            assert (await register("n1")).code == Code.CREATED
        assert (refused.code, refused.option(Option.MAX_AGE)) == (Code.SERVICE_UNAVAILABLE, bytes([30]))


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
