"""Opens the database that a URL names, migrated to this version's schema."""

import asyncio
import sqlite3
from pathlib import Path

import asyncpg

from openiodm.storage.engine import Database
from openiodm.storage.postgres import PostgresDatabase
from openiodm.storage.sqlite import SqliteDatabase

HEAD = "0012"  # the newest revision in migrations/versions; a test holds it equal to Alembic's


def sqlite_path(url: str) -> Path | None:
    """The file of `sqlite:///path`, or None when the URL is not SQLite's."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


async def open_database(url: str) -> Database:
    """`sqlite:///path` or `postgresql://...`; creates and migrates the schema where that is due.

    Alembic is imported only when there is something to migrate: it costs more than the rest of the start together.
    """
    path = sqlite_path(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # it holds keys of devices; its log files take the mode over
        if _sqlite_revision(path) != HEAD:
            await _migrate(url)
        return SqliteDatabase(path)
    if await _postgres_revision(url) != HEAD:
        await _migrate(url)
    return await PostgresDatabase.open(url)


async def revision_of(url: str) -> str | None:
    """The revision that a database is of; None where there is none of ours. Changes nothing."""
    path = sqlite_path(url)
    return await _postgres_revision(url) if path is None else _sqlite_revision(path)


async def _migrate(url: str) -> None:
    from openiodm.storage.migrations.run import upgrade

    await asyncio.to_thread(upgrade, url)


def _sqlite_revision(path: Path) -> str | None:
    if not path.exists():
        return None
    connection = sqlite3.connect(path)
    try:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return None if row is None else str(row[0])
    except sqlite3.OperationalError:
        return None
    finally:
        connection.close()


async def _postgres_revision(url: str) -> str | None:
    try:
        connection = await asyncpg.connect(url)
    except ValueError as error:  # of its parser, which may show the password in pieces
        raise asyncpg.InterfaceError("the database's URL makes no sense") from error
    try:
        value = await connection.fetchval("SELECT version_num FROM alembic_version")
        return None if value is None else str(value)
    except asyncpg.UndefinedTableError:
        return None
    finally:
        await connection.close()
