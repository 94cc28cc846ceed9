"""Applies migrations, on either engine, in the calling thread."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from openiodm.storage.tables import TRIGGERS

ADVISORY_LOCK = 0x0D10DA  # PostgreSQL: two servers that start together migrate one after the other


def config(connection: Connection) -> Config:
    """Alembic's configuration without a file; `env.py` finds the connection in it."""
    result = Config()
    result.set_main_option("script_location", str(Path(__file__).parent))
    result.attributes["connection"] = connection
    return result


def upgrade(url: str, revision: str = "head") -> None:
    """Brings the database at `url` (`sqlite:///path` or `postgresql://...`) to `revision`."""
    if url.startswith("sqlite"):
        _upgrade_sqlite(url, revision)
    else:
        asyncio.run(_upgrade_postgres(url, revision))


def _upgrade_sqlite(url: str, revision: str) -> None:
    # Batch mode re-creates tables: with foreign keys on, dropping the old one would cascade its children away.
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=OFF")

    try:
        with engine.connect() as connection:
            command.upgrade(config(connection), revision)
            if revision == "head":  # what batch mode dropped with the tables that it made anew
                for trigger in TRIGGERS["sqlite"]:
                    connection.execute(text(trigger))
            connection.commit()
            broken = connection.execute(text("PRAGMA foreign_key_check")).fetchall()
            if broken:
                raise RuntimeError(f"foreign keys are broken after the migration: {broken[:5]}")
    finally:
        engine.dispose()


async def _upgrade_postgres(url: str, revision: str) -> None:
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url))
    try:
        async with engine.begin() as connection:
            await connection.execute(text(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})"))
            await connection.run_sync(lambda sync: command.upgrade(config(sync), revision))
    finally:
        await engine.dispose()
