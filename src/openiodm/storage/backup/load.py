"""Makes a database from a backup: rows, package files, migrations, and what cannot be believed taken away.

All or nothing: PostgreSQL gets everything in one transaction, SQLite in a file that has another name until it is whole.
"""

import asyncio
import gzip
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import msgspec
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from openiodm.storage import blobs, migrations, postgres, sqlite
from openiodm.storage.backup import layout
from openiodm.storage.backup.aftermath import Restored, settle
from openiodm.storage.backup.layout import BackupError, Manifest, Sums
from openiodm.storage.engine import InsertMany, Tx
from openiodm.storage.migrations.run import ADVISORY_LOCK, config, upgrade
from openiodm.storage.open import HEAD, sqlite_path
from openiodm.storage.sqlite import ServerLock

BATCH = 2000  # rows a statement
UNFINISHED = ".restoring"  # the end of a SQLite file's name until it is whole

T = TypeVar("T")

_row = msgspec.json.Decoder(list[Any])


@dataclass(frozen=True, slots=True)
class Checked:
    """A backup whose rows are as they were written, of a schema that this version knows."""

    sums: Sums
    manifest: Manifest

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.sums.backup

    def packages(self) -> list[str]:
        """Paths of the package files in it."""
        return [path for path in self.sums.of if path.startswith(f"{layout.PACKAGES}/")]


def check(source: Path, *, packages: bool) -> Checked:
    """The backup in `source`, or the newest of those in it; its package files are read too, if asked for.

    Raises:
        BackupError: there is none, it is damaged, or of a newer schema.
    """
    with layout.explained(source):
        sums = Sums(layout.chosen(source))
        manifest = layout.read_manifest(sums)
        known = {r.revision for r in ScriptDirectory(str(Path(migrations.__file__).parent)).walk_revisions()}
        if manifest.revision not in known:
            raise BackupError(
                f"{sums.backup} is of version {manifest.version}, schema {manifest.revision}; this version knows "
                f"schemas up to {HEAD}: restore it with a version as new as the backup's"
            )
        checked = Checked(sums, manifest)
        for path in checked.packages() if packages else ():
            sums.check(path)
    return checked


async def restore(source: Path, url: str, package_dir: Path, now: int, operator: str) -> Restored:
    """Fills the empty database at `url`, and `package_dir`, from a backup; see `aftermath.settle`.

    Raises:
        BackupError: the backup is no good, the database is not empty, a server runs on it, or the disk is full.
    """
    checked = await asyncio.to_thread(check, source, packages=False)
    path = sqlite_path(url)
    if path is None:
        await _require_empty(url)
        await asyncio.to_thread(_packages, checked, package_dir)
        return await _into_postgres(checked, url, now, operator)
    with layout.explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = ServerLock(path)
        try:
            if not lock.acquire():
                raise BackupError(f"a server runs on {path}: stop it first")
            for there in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
                if there.exists():
                    raise BackupError(f"{there} is there already: move it away first")
            await asyncio.to_thread(_packages, checked, package_dir)
            return await asyncio.to_thread(_into_sqlite, checked, path, now, operator)
        finally:
            lock.release()


def _packages(checked: Checked, folder: Path) -> None:
    """Before the rows: a file without a row is collected some day, a row without its file is a broken package."""
    with layout.explained(folder):
        for path in checked.packages():
            sha256 = Path(path).name
            target = folder / sha256[:2] / sha256[2:4] / sha256
            if target.exists() and layout.digest(target) == sha256:
                continue
            fresh = target.with_name(sha256 + UNFINISHED)
            layout.make_folder(target.parent, blobs.FOLDER_MODE)
            fresh.unlink(missing_ok=True)
            found, _ = layout.copy(checked.path / path, fresh, blobs.FILE_MODE)
            if found != checked.sums.of[path] or found != sha256:
                fresh.unlink()
                raise BackupError(f"{checked.path}: {path} is not what was written: the backup is damaged")
            fresh.replace(target)
            layout.sync_folder(target.parent)


# -- SQLite


def _into_sqlite(checked: Checked, path: Path, now: int, operator: str) -> Restored:
    fresh = path.with_name(path.name + UNFINISHED)
    _remove(fresh)
    try:
        os.close(layout.create(fresh))
        upgrade(f"sqlite:///{fresh}", checked.manifest.revision)
        _in_sqlite(fresh, lambda tx: _rows(tx, checked, _sqlite_last_id))
        upgrade(f"sqlite:///{fresh}")
        restored = _in_sqlite(fresh, lambda tx: settle(tx, checked.manifest.taken_at, now, operator))
        with closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
            found = connection.execute("PRAGMA quick_check").fetchone()[0]
            if found != "ok":
                raise BackupError(f"{checked.path}: the rows make no whole database: {found}")
            connection.execute("PRAGMA journal_mode=DELETE")  # one file alone: what the log holds comes in
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(path)
        layout.sync_folder(path.parent)
        return restored
    except sqlite3.IntegrityError as error:
        raise BackupError(f"{checked.path}: the rows do not fit the schema: {error}") from error
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise BackupError(f"no room is left in {path.parent}") from error
        raise
    finally:
        _remove(fresh)


def _remove(file: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        file.with_name(file.name + end).unlink(missing_ok=True)


def _in_sqlite(file: Path, action: Callable[[Tx], Awaitable[T]]) -> T:
    """One transaction. Statements on SQLite never wait, so a loop of its own is no more than a way to run them."""
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=OFF")  # the file is made durable at the end, as a whole
        connection.execute("PRAGMA foreign_keys=ON")
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        result = asyncio.run(_awaited(action(sqlite.statements(connection))))
        connection.execute("COMMIT")
        return result
    finally:
        connection.close()


async def _awaited(what: Awaitable[T]) -> T:
    return await what


async def _sqlite_last_id(tx: Tx, table: str, last_id: int) -> None:
    await tx.execute("DELETE FROM sqlite_sequence WHERE name = $1", table)
    await tx.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ($1, $2)", table, last_id)


# -- PostgreSQL


async def _require_empty(url: str) -> None:
    try:
        connection = await asyncpg.connect(url)
    except ValueError as error:  # of its parser, which may show the password in pieces
        raise BackupError("the database's URL makes no sense") from error
    try:
        _refuse_tables(await connection.fetch(_TABLES))
    finally:
        await connection.close()


_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY tablename LIMIT 1"


def _refuse_tables(found: Sequence[Any]) -> None:
    if found:
        raise BackupError(f"the database is not empty: it has a table {found[0][0]!r}. Restore into a new one")


async def _into_postgres(checked: Checked, url: str, now: int, operator: str) -> Restored:
    """One transaction: DDL too is taken back if anything fails, or if we are killed."""
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url))
    try:
        async with engine.begin() as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
            _refuse_tables((await connection.execute(text(_TABLES))).fetchall())
            raw = (await connection.get_raw_connection()).driver_connection
            assert isinstance(raw, asyncpg.Connection)
            tx = postgres.statements(raw)
            await connection.run_sync(lambda sync: command.upgrade(config(sync), checked.manifest.revision))
            await _rows(tx, checked, _postgres_last_id)
            await connection.run_sync(lambda sync: command.upgrade(config(sync), "head"))
            return await settle(tx, checked.manifest.taken_at, now, operator)
    except asyncpg.IntegrityConstraintViolationError as error:
        raise BackupError(f"{checked.path}: the rows do not fit the schema: {error}") from error
    except asyncpg.DiskFullError as error:
        raise BackupError("no room is left on the disk of PostgreSQL") from error
    finally:
        await engine.dispose()


async def _postgres_last_id(tx: Tx, table: str, last_id: int) -> None:
    sequence = "SELECT setval(pg_get_serial_sequence($1, 'id'), $2, $3)"
    await tx.fetchval(sequence, table, max(last_id, 1), last_id > 0)


# -- both


async def _rows(tx: Tx, checked: Checked, set_last_id: Callable[[Tx, str, int], Awaitable[None]]) -> None:
    for table in checked.manifest.tables:
        statement = InsertMany(table.name, table.columns)
        count = 0
        for rows in _read(checked.path / layout.rows_of(table.name)):
            await tx.insert_many(statement, rows)
            count += len(rows)
        if count != table.rows:
            raise BackupError(f"{checked.path}: {count} rows of {table.name} instead of {table.rows}")
        if table.last_id is not None:
            await set_last_id(tx, table.name, table.last_id)


def _read(path: Path) -> Iterator[list[tuple[Any, ...]]]:
    with gzip.open(path, "rb") as lines:
        while rows := [tuple(_row.decode(line)) for line in islice(lines, BATCH)]:
            yield rows
