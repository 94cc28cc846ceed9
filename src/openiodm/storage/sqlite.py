"""SQLite: WAL, one writer, `synchronous=FULL`.

Statements run on the event loop (a key lookup costs tens of microseconds, a thread hop as much again); only COMMIT,
which waits for the disk, runs in a thread. While it waits the loop reads on, and what wants to be written meanwhile
becomes the next batch.
"""

import asyncio
import fcntl
import json
import os
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from openiodm.storage.engine import InsertMany, Reader, Row, Tx, UniqueViolation, Unreachable, Unwritable, UpdateMany

CACHED_STATEMENTS = 512
PAGE_CACHE_KIB = 16 * 1024
BUSY_TIMEOUT_MS = 10_000
BUSY_RETRY_S = 0.005

# Primary result codes: the disk is full, or does not take what is written; on a read-only one files cannot be made.
_UNWRITABLE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})

_ANY = re.compile(r"= ANY\(\$(\d+)(?:::\w+\[\])?\)")
_PARAMETER = re.compile(r"\$(\d+)")
_LOCK = re.compile(r"\s+FOR (?:NO KEY UPDATE|UPDATE|KEY SHARE|SHARE)(?: OF \w+(?:, \w+)*)?(?: SKIP LOCKED)?")


@lru_cache(maxsize=1024)
def translate(sql: str) -> str:
    """PostgreSQL's dialect, as far as this project uses it, to SQLite's."""
    sql = _LOCK.sub("", sql)
    sql = _ANY.sub(r"IN (SELECT value FROM json_each(?\1))", sql)
    return _PARAMETER.sub(r"?\1", sql)


@lru_cache(maxsize=256)
def _insert_sql(table: str, columns: tuple[str, ...]) -> str:
    marks = ", ".join("?" for _ in columns)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"


@lru_cache(maxsize=256)
def _update_sql(table: str, keys: tuple[str, ...], assign: tuple[str, ...], add: tuple[str, ...]) -> str:
    # Parameters are numbered in the order of the row: keys first, though SET comes first in the text.
    n, m = len(keys), len(keys) + len(assign)
    sets = [f"{c} = ?{i}" for i, c in enumerate(assign, n + 1)]
    sets += [f"{c} = {c} + ?{i}" for i, c in enumerate(add, m + 1)]
    where = " AND ".join(f"{c} = ?{i}" for i, c in enumerate(keys, 1))
    return f"UPDATE {table} SET {', '.join(sets)} WHERE {where}"


def _bind(args: tuple[Any, ...]) -> tuple[Any, ...]:
    if any(type(a) is list for a in args):
        return tuple(json.dumps(a) if type(a) is list else a for a in args)
    return args


def _unique(error: sqlite3.IntegrityError) -> Exception:
    # "UNIQUE constraint failed: device.verify_code" or "...: index 'uq_device_...'"
    message = str(error)
    if message.startswith("UNIQUE constraint failed"):
        return UniqueViolation(message.partition(": ")[2])
    return error


class _Statements:
    """Runs statements on one connection, as coroutines that never wait."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._c = connection

    async def fetch(self, sql: str, *args: Any) -> Sequence[Row]:
        try:
            return self._c.execute(translate(sql), _bind(args)).fetchall()
        except sqlite3.IntegrityError as error:
            raise _unique(error) from error

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        try:
            cursor = self._c.execute(translate(sql), _bind(args))
            row = cursor.fetchone()
            cursor.close()
        except sqlite3.IntegrityError as error:
            raise _unique(error) from error
        return row

    async def fetchval(self, sql: str, *args: Any) -> Any:
        row = await self.fetchrow(sql, *args)
        return None if row is None else row[0]

    async def execute(self, sql: str, *args: Any) -> int:
        try:
            return self._c.execute(translate(sql), _bind(args)).rowcount
        except sqlite3.IntegrityError as error:
            raise _unique(error) from error

    async def lock(self, sql: str, *args: Any) -> None:
        pass

    async def look_up_by_keys(self) -> None:
        pass

    async def insert_many(self, statement: InsertMany, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            try:
                self._c.executemany(_insert_sql(statement.table, tuple(statement.columns)), rows)
            except sqlite3.IntegrityError as error:
                raise _unique(error) from error

    async def update_many(self, statement: UpdateMany, rows: Sequence[tuple[Any, ...]]) -> int:
        if not rows:
            return 0
        sql = _update_sql(statement.table, tuple(statement.keys), tuple(statement.assign), tuple(statement.add or ()))
        try:
            return self._c.executemany(sql, rows).rowcount
        except sqlite3.IntegrityError as error:
            raise _unique(error) from error

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        self._c.execute("SAVEPOINT s")
        try:
            yield
        except BaseException:
            if self._c.in_transaction:  # a full disk ends the whole of it
                self._c.execute("ROLLBACK TO s")
                self._c.execute("RELEASE s")
            raise
        self._c.execute("RELEASE s")


def statements(connection: sqlite3.Connection) -> Tx:
    """A connection on which somebody else begins and commits."""
    return _Statements(connection)


class SqliteDatabase:
    """One database file: a connection for reads, one for the writer, others for long snapshots."""

    engine = "sqlite"
    empty_write = "PRAGMA user_version = 0"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = self._connect()
        self._write = self._connect()
        self._write.execute("PRAGMA busy_timeout=0")  # see `_begin`
        self._reader = _Statements(self._read)
        self._writer = _Statements(self._write)
        self._commits = ThreadPoolExecutor(1, thread_name_prefix="sqlite-commit")
        self._write_lock = asyncio.Lock()

    def _connect(self) -> sqlite3.Connection:
        c = sqlite3.connect(
            self.path,
            timeout=BUSY_TIMEOUT_MS / 1000,
            isolation_level=None,
            check_same_thread=False,  # the writer's COMMIT runs in its own thread, never beside another statement
            cached_statements=CACHED_STATEMENTS,
        )
        c.row_factory = sqlite3.Row
        c.create_function("random_id", 0, lambda: secrets.token_hex(16))
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            f"cache_size=-{PAGE_CACHE_KIB}",
            "temp_store=MEMORY",
        ):
            c.execute(f"PRAGMA {pragma}")
        return c

    async def fetch(self, sql: str, *args: Any) -> Sequence[Row]:
        """See `Reader`."""
        return await self._reader.fetch(sql, *args)

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        """See `Reader`."""
        return await self._reader.fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """See `Reader`."""
        return await self._reader.fetchval(sql, *args)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Tx]:
        """See `Database`."""
        async with self._write_lock:
            try:
                await self._begin()
                yield self._writer
                loop = asyncio.get_running_loop()
                commit = loop.run_in_executor(self._commits, self._write.execute, "COMMIT")
                # A cancelled caller must not leave the connection in mid-commit for the next one.
                await asyncio.shield(commit)
            except asyncio.CancelledError:
                if self._write.in_transaction:
                    await asyncio.get_running_loop().run_in_executor(self._commits, self._rollback)
                raise
            except sqlite3.OperationalError as error:
                self._rollback()
                if error.sqlite_errorcode & 0xFF in _UNWRITABLE:
                    raise Unwritable(str(error)) from error
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                    raise Unreachable("another process keeps the database file locked") from error
                raise
            except BaseException:
                self._rollback()
                raise

    async def _begin(self) -> None:
        """Another process (a backup, the command line) may hold the lock: SQLite's own wait would stop the loop."""
        loop = asyncio.get_running_loop()
        until = loop.time() + BUSY_TIMEOUT_MS / 1000
        while True:
            try:
                self._write.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or loop.time() > until:
                    raise
                await asyncio.sleep(BUSY_RETRY_S)
            else:
                return

    def _rollback(self) -> None:
        if self._write.in_transaction:
            self._write.execute("ROLLBACK")

    @asynccontextmanager
    async def snapshot(self, *, patient: bool = False) -> AsyncIterator[Reader]:
        """See `Database`. Statements run in a thread: a recount must not hold up polls. All have all the time."""
        with ThreadPoolExecutor(1, thread_name_prefix="sqlite-snapshot") as thread:
            loop = asyncio.get_running_loop()
            connection = await loop.run_in_executor(thread, self._connect)
            try:
                await loop.run_in_executor(thread, connection.execute, "BEGIN")
                yield _ThreadedReader(connection, thread)
            finally:
                await loop.run_in_executor(thread, connection.close)

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[Reader]:
        """See `Database`. A read transaction on the loop's own connection."""
        self._read.execute("BEGIN")
        try:
            yield self._reader
        finally:
            self._read.execute("COMMIT")

    async def now(self) -> int | None:
        """None: the process's clock is the database's."""
        return None

    async def end_abandoned(self) -> int:
        """None: there is one server."""
        return 0

    async def close(self) -> None:
        """Checkpoints what the log holds and closes."""
        self._commits.shutdown(wait=True)
        self._read.close()
        self._write.close()


class _ThreadedReader:
    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._c = connection
        self._thread = thread

    async def fetch(self, sql: str, *args: Any) -> Sequence[Row]:
        def run() -> Sequence[Row]:
            return self._c.execute(translate(sql), _bind(args)).fetchall()

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        rows = await self.fetch(sql, *args)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *args: Any) -> Any:
        row = await self.fetchrow(sql, *args)
        return None if row is None else row[0]


class ServerLock:
    """Says that one server owns a SQLite file. Released by the kernel when the process ends, however it ends."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".server")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)

    def acquire(self) -> bool:
        """True when this process is now the one server of the file."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Lets another server start."""
        os.close(self._fd)
