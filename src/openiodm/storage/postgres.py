"""PostgreSQL through asyncpg: a pool for reads, one connection for the writer's transactions."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

import asyncpg

from openiodm.storage.engine import (
    Conflict,
    InsertMany,
    Reader,
    Row,
    Tx,
    UniqueViolation,
    Unreachable,
    Unwritable,
    UpdateMany,
)

READ_CONNECTIONS = 8
READ_TRIES = 3
READ_RETRY_S = 0.02
ABANDONED_MS = 10_000
"""A transaction whose server says nothing for so long is ended: that server may be frozen, or gone without a word, and
what it has locked holds others up. Shorter than a job's lease: what is left open is undone before another takes over.
"""
PATIENCE_MS = 600_000
"""The same for a `patient` snapshot. It locks no row; what it holds up is VACUUM, and a migration."""
# PostgreSQL's own timeout (see `open`) does not see a session whose server stopped between the parse of a statement and
# what follows: it is "active", and waits for its client. The same user may end it. COPY waits so by nature.
_END_ABANDONED = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user AND application_name = 'openiodm'
AND state = 'active' AND wait_event = 'ClientRead' AND query NOT ILIKE 'copy%'
AND state_change < clock_timestamp() - CAST($1 AS bigint) * interval '1 millisecond'
"""
KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 3,
    socket.TCP_USER_TIMEOUT: 20_000,
}
"""In seconds, seconds, times and milliseconds: when a host that went away without a word is gone for us, too. By itself
the kernel waits for a quarter of an hour, and with it the writer. A host that is only slow answers it all.
"""
WRITE_CONNECTIONS = 2  # the writer's, and one for administration beside it
REPLAN_S = 5.0


@lru_cache(maxsize=1024)
def translate(sql: str) -> str:
    """Gives `random_id()` its name here; everything else is PostgreSQL's own dialect already."""
    return sql.replace("random_id()", "replace(gen_random_uuid()::text, '-', '')")


def _arrays(columns: dict[str, str]) -> str:
    return ", ".join(f"${i}::{kind}[]" for i, kind in enumerate(columns.values(), 1))


@lru_cache(maxsize=256)
def _insert_sql(table: str, columns: tuple[tuple[str, str], ...]) -> str:
    spec = dict(columns)
    return f"INSERT INTO {table} ({', '.join(spec)}) SELECT * FROM unnest({_arrays(spec)})"


@lru_cache(maxsize=256)
def _update_sql(
    table: str,
    keys: tuple[tuple[str, str], ...],
    assign: tuple[tuple[str, str], ...],
    add: tuple[tuple[str, str], ...],
) -> str:
    # A column may be compared and assigned in one statement, so the array columns have names of their own.
    named = [(f"k_{c}", t) for c, t in keys] + [(f"v_{c}", t) for c, t in assign + add]
    sets = [f"{c} = v_{c}" for c, _ in assign] + [f"{c} = t.{c} + v_{c}" for c, _ in add]
    where = " AND ".join(f"t.{c} = k_{c}" for c, _ in keys)
    return (
        f"UPDATE {table} t SET {', '.join(sets)} "
        f"FROM unnest({_arrays(dict(named))}) AS v({', '.join(c for c, _ in named)}) WHERE {where}"
    )


def _touched(status: str) -> int:
    # "UPDATE 3", "INSERT 0 3", "DELETE 1", "CREATE TABLE"
    last = status.rpartition(" ")[2]
    return int(last) if last.isdigit() else 0


# There is no connection, or none any more.
_GONE = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)
# What the driver says besides, when it has not yet understood that.
_LOST = (*_GONE, asyncpg.InterfaceError, asyncpg.InternalClientError)

_REFUSES = (asyncpg.ReadOnlySQLTransactionError, asyncpg.DiskFullError)

# Until the transaction ends.
_BY_KEYS = "SELECT " + ", ".join(
    f"set_config('enable_{way}', 'off', true)" for way in ("seqscan", "hashjoin", "mergejoin")
)


async def _keep_session(_connection: Any) -> None:
    """Nothing of ours outlives its transaction in a session, so RESET ALL (a round trip a read) undoes nothing.

    What is still open when a connection comes back (a transaction whose task was cancelled) asyncpg ends before this.
    """


class _Session(asyncpg.Connection):
    """A connection that makes its plans anew every few seconds.

    PostgreSQL keeps the plan of a prepared statement until a table of it is analysed. One that was made while a table
    was nearly empty reads all of it, for every poll, when a task has put a million rows there a moment later; and that
    lasts until autovacuum has come by, a minute or more. A plan is made with the size that a table has then.
    """

    __slots__ = ("_planned_at",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._planned_at = asyncio.get_running_loop().time()
        self._watch()

    def _watch(self) -> None:
        sock = self._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        if sock is None or sock.family == socket.AF_UNIX:
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)

    async def plan_anew(self, after_s: float) -> None:
        """Unless that was done in the last `after_s` seconds."""
        now = asyncio.get_running_loop().time()
        if now - self._planned_at >= after_s:
            self._planned_at = now
            await self.execute("DISCARD PLANS")


Connection = Any  # asyncpg.Connection or its pool proxy


def _is_closed(connection: Connection) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # it died between two statements, and the pool has taken it back already
        return True


class _Statements:
    def __init__(self, connection: Connection) -> None:
        self._c = connection

    async def fetch(self, sql: str, *args: Any) -> Sequence[Row]:
        try:
            rows: Sequence[Row] = await self._c.fetch(translate(sql), *args)
        except asyncpg.UniqueViolationError as error:
            raise UniqueViolation(error.constraint_name or "") from error
        return rows

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        try:
            return await self._c.fetchrow(translate(sql), *args)
        except asyncpg.UniqueViolationError as error:
            raise UniqueViolation(error.constraint_name or "") from error

    async def fetchval(self, sql: str, *args: Any) -> Any:
        row = await self.fetchrow(sql, *args)
        return None if row is None else row[0]

    async def execute(self, sql: str, *args: Any) -> int:
        try:
            return _touched(await self._c.execute(translate(sql), *args))
        except asyncpg.UniqueViolationError as error:
            raise UniqueViolation(error.constraint_name or "") from error

    async def lock(self, sql: str, *args: Any) -> None:
        await self._c.fetch(sql, *args)

    async def look_up_by_keys(self) -> None:
        await self._c.fetchrow(_BY_KEYS)

    async def insert_many(self, statement: InsertMany, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            sql = _insert_sql(statement.table, tuple(statement.columns.items()))
            await self.execute(sql, *map(list, zip(*rows, strict=True)))

    async def update_many(self, statement: UpdateMany, rows: Sequence[tuple[Any, ...]]) -> int:
        if not rows:
            return 0
        sql = _update_sql(
            statement.table,
            tuple(statement.keys.items()),
            tuple(statement.assign.items()),
            tuple((statement.add or {}).items()),
        )
        return await self.execute(sql, *map(list, zip(*rows, strict=True)))

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        async with self._c.transaction():
            yield


def statements(connection: Connection) -> Tx:
    """A connection on which somebody else begins and commits."""
    return _Statements(connection)


class PostgresDatabase:
    """A pool of connections to one PostgreSQL database."""

    engine = "postgresql"
    # The update is refused by a read-only database; the message goes to the log on disk, and nobody reads it.
    empty_write = """
    WITH nothing AS (UPDATE application SET name = name WHERE false RETURNING id)
    SELECT pg_logical_emit_message(true, 'openiodm', '') FROM (SELECT count(*) FROM nothing) n
    """

    def __init__(self, pool: "asyncpg.Pool[Any]") -> None:
        self._pool = pool
        self._write_slots = asyncio.Semaphore(WRITE_CONNECTIONS)

    @classmethod
    async def open(cls, url: str, replan_s: float = REPLAN_S) -> "PostgresDatabase":
        """Connects; raises what asyncpg raises when it cannot.

        Sessions run with `synchronous_commit=on`: what a device was answered must survive the server's power loss.
        """

        async def set_up(session: Any) -> None:
            # Before it is used, not when it comes back: then a failure would be taken for that of a commit.
            await session.plan_anew(replan_s)

        pool = await asyncpg.create_pool(
            url,
            min_size=2,
            max_size=READ_CONNECTIONS + WRITE_CONNECTIONS,
            connection_class=_Session,
            setup=set_up,
            reset=_keep_session,
            server_settings={
                "synchronous_commit": "on",
                "jit": "off",
                "application_name": "openiodm",
                "idle_in_transaction_session_timeout": str(ABANDONED_MS),
            },
        )
        return cls(pool)

    async def fetch(self, sql: str, *args: Any) -> Sequence[Row]:
        """See `Reader`."""
        rows: Sequence[Row] = await self._read(self._pool.fetch, sql, args)
        return rows

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        """See `Reader`."""
        return await self._read(self._pool.fetchrow, sql, args)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """See `Reader`."""
        return await self._read(self._pool.fetchval, sql, args)

    async def _read(self, read: Callable[..., Awaitable[Any]], sql: str, args: tuple[Any, ...]) -> Any:
        """A read may meet a connection that died in the pool, and can be sent again on another."""
        tries = READ_TRIES
        while True:
            tries -= 1
            try:
                return await read(translate(sql), *args)
            except (OSError, *_LOST) as error:
                if not tries:
                    raise Unreachable(str(error) or type(error).__name__) from error
                await asyncio.sleep(READ_RETRY_S)  # by then the loop has seen which others are dead
            except _REFUSES as error:  # flow control writes in a statement of its own
                raise Unwritable(str(error)) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        """See `Database`."""
        async with self._write_slots:
            try:
                connection = await self._pool.acquire()
            except (OSError, *_GONE) as error:
                raise Unreachable(str(error) or type(error).__name__) from error
            try:
                async with connection.transaction():
                    yield _Statements(connection)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError) as error:
                raise Conflict(str(error)) from error
            except _GONE as error:
                raise Unreachable(str(error)) from error
            except _REFUSES as error:
                raise Unwritable(str(error)) from error
            except Exception as error:
                if _is_closed(connection):  # what a statement or the rollback on it says then is by chance
                    raise Unreachable(str(error)) from error
                raise
            finally:
                await self._pool.release(connection)

    @asynccontextmanager
    async def snapshot(self, *, patient: bool = False) -> AsyncIterator[Reader]:
        """See `Database`."""
        try:
            connection = await self._pool.acquire()
        except (OSError, *_LOST) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                if patient:
                    await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = {PATIENCE_MS}")
                yield _Statements(connection)
        except _LOST as error:  # no other OSError: much else may be done meanwhile
            raise Unreachable(str(error) or type(error).__name__) from error
        finally:
            await self._pool.release(connection)

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[Reader]:
        """See `Database`."""
        async with self.snapshot() as view:
            yield view

    async def now(self) -> int | None:
        """The server's wall clock: several of our processes may share the database, not their clocks."""
        value = await self._pool.fetchval("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)")
        return int(value)

    async def end_abandoned(self) -> int:
        """See `Database`."""
        return int(await self._pool.fetchval(_END_ABANDONED, ABANDONED_MS))

    async def close(self) -> None:
        """Waits for statements under way, then closes."""
        await self._pool.close()
