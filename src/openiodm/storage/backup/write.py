"""Makes a backup, beside running servers: one snapshot of the rows, then the package files that it names."""

import fcntl
import gzip
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Boolean, Float, Integer, Text
from sqlalchemy import Table as Definition

from openiodm import __version__
from openiodm.storage.backup import layout
from openiodm.storage.backup.layout import BackupError, Manifest, Table
from openiodm.storage.blobs import FileStore
from openiodm.storage.engine import Database, Reader, Row
from openiodm.storage.open import HEAD
from openiodm.storage.tables import metadata

PAGE = 5000  # rows a read

# Not rows that anybody misses: sessions (all log in again), the task list's change log, the rate limit's buckets.
LEFT_OUT = frozenset(
    {"access_token", "campaign_change", "campaign_change_trimmed", "flow_control", "native_flow_control", "login_count"}
)
# Numbers of transactions mean nothing in another database.
EMPTIED = {("history", "xid")}
_TYPES = (
    (Boolean, "boolean"),
    (BigInteger, "bigint"),
    (Integer, "integer"),
    (Float, "double precision"),
    (Text, "text"),
)


@dataclass(frozen=True, slots=True)
class Written:
    """A backup that is on disk. `copied`: package bytes that the backup before did not have."""

    path: Path
    manifest: Manifest
    copied_bytes: int


async def write(database: Database, store: FileStore | None, folder: Path, now: int) -> Written:
    """A new backup in `folder`. Without a `store`, of the rows alone: packages are in a bucket.

    Package files are kept from collection meanwhile, so that each one that the rows name is there.

    Raises:
        BackupError: the disk is full, or `folder` cannot be written; nothing is left of the attempt.
    """
    name = datetime.fromtimestamp(now / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    with layout.explained(folder), _partial(folder, name) as partial:
        async with AsyncExitStack() as stack:
            if store is not None:
                await stack.enter_async_context(store.kept())
            writer = _Writer(database.engine, store, partial, layout.backups(folder))
            async with database.snapshot(patient=True) as view:
                await writer.read(view)
            written = writer.finish(now)  # files take their time, and a snapshot that waits for them is in others' way
        _publish(partial, folder / name)
    return Written(folder / name, *written)


@contextmanager
def _partial(folder: Path, name: str) -> Iterator[Path]:
    """A folder to write in, locked while we do, and gone if we fail. Those that a killed program left go first."""
    layout.make_folder(folder)
    if (folder / name).exists():
        raise BackupError(f"{folder / name} is there already")
    for left in folder.glob(".*.partial"):
        with _locked(left) as ours:
            if ours:
                shutil.rmtree(left)
    partial = folder / f".{name}.partial"
    try:
        partial.mkdir(mode=layout.FOLDER_MODE)
    except FileExistsError as error:
        raise BackupError(f"another backup is being written to {folder} at this moment") from error
    with _locked(partial):
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)


def _publish(partial: Path, final: Path) -> None:
    """All of it durable, then its name."""
    for folder, _, _ in os.walk(partial):
        layout.sync_folder(Path(folder))
    partial.rename(final)
    layout.sync_folder(final.parent)


class _Writer:
    def __init__(self, engine: str, store: FileStore | None, folder: Path, before: Sequence[Path]) -> None:
        self._engine = engine
        self._store = store
        self._folder = folder
        self._before = before[-1] if before else None
        self._tables: list[Table] = []
        self._blobs: list[tuple[str, int]] = []
        self._sums: dict[str, str] = {}

    async def read(self, view: Reader) -> None:
        """Writes all rows, and remembers which package files they name."""
        revision = await view.fetchval("SELECT version_num FROM alembic_version")
        if revision != HEAD:
            raise BackupError(f"the database is of revision {revision}, this program of {HEAD}")
        layout.make_folder(self._folder / layout.ROWS)
        self._tables = [await self._table(view, t) for t in metadata.sorted_tables if t.name not in LEFT_OUT]
        async for rows in _pages(view, metadata.tables["blob"]):
            self._blobs += [(row["sha256"], row["size"]) for row in rows]

    def finish(self, now: int) -> tuple[Manifest, int]:
        """Everything else but the folder's name; the manifest, and the bytes of packages that were copied."""
        packages = size = copied = 0
        damaged = []
        for sha256, expected in self._blobs:
            if self._store is None:
                break
            added = self._package(self._store, sha256, expected)
            if added is None:
                damaged.append(sha256)
                continue
            packages, size, copied = packages + 1, size + expected, copied + added
        manifest = Manifest(layout.FORMAT, __version__, HEAD, self._engine, now, self._tables, packages, size, damaged)
        self._put(layout.MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        sums = "".join(f"{sha256}  {path}\n" for path, sha256 in self._sums.items())
        self._put(layout.SUMS, sums.encode())
        return manifest, copied

    async def _table(self, view: Reader, table: Definition) -> Table:
        columns = {str(column.name): _type(column.type) for column in table.columns}
        path = self._folder / layout.rows_of(table.name)
        count = 0
        with os.fdopen(layout.create(path), "wb") as file:
            with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
                async for rows in _pages(view, table):
                    packed.write(b"".join(b"%b\n" % msgspec.json.encode(_plain(row, table)) for row in rows))
                    count += len(rows)
            file.flush()
            os.fsync(file.fileno())
        self._sums[layout.rows_of(table.name)] = layout.digest(path)
        return Table(str(table.name), columns, count, await self._last_id(view, table))

    async def _last_id(self, view: Reader, table: Definition) -> int | None:
        """Also of rows that are gone: ids are never given twice."""
        if [column.name for column in table.primary_key.columns] != ["id"] or table.columns[
            "id"
        ].autoincrement is False:
            return None
        if self._engine == "sqlite":
            return int(await view.fetchval("SELECT seq FROM sqlite_sequence WHERE name = $1", table.name) or 0)
        sequence = await view.fetchval("SELECT pg_get_serial_sequence($1, 'id')", table.name)
        return int(await view.fetchval(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {sequence}"))

    def _package(self, store: FileStore, sha256: str, size: int) -> int | None:
        """Bytes copied: none when the backup before has the file; None when ours is missing or damaged."""
        path = layout.package_of(sha256)
        target = self._folder / path
        layout.make_folder(target.parent)
        if self._before is not None and _linked(self._before / path, target, size):
            self._sums[path] = sha256
            return 0
        try:
            found, length = layout.copy(store.path(sha256), target)
        except FileNotFoundError:
            return None
        if (found, length) != (sha256, size):
            target.unlink()
            return None
        self._sums[path] = sha256
        return length

    def _put(self, path: str, content: bytes) -> None:
        with os.fdopen(layout.create(self._folder / path), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._sums[path] = hashlib.sha256(content).hexdigest()


async def _pages(view: Reader, table: Definition) -> AsyncIterator[Sequence[Row]]:
    """All rows in the order of the primary key, each page a range of it."""
    names = ", ".join(column.name for column in table.columns)
    key = [column.name for column in table.primary_key.columns]
    listed = ", ".join(key)
    places = ", ".join(f"${n}" for n in range(1, len(key) + 1))
    first = f"SELECT {names} FROM {table.name} ORDER BY {listed} LIMIT {PAGE}"
    after = f"SELECT {names} FROM {table.name} WHERE ({listed}) > ({places}) ORDER BY {listed} LIMIT {PAGE}"
    rows = await view.fetch(first)
    while rows:
        yield rows
        if len(rows) < PAGE:
            return
        rows = await view.fetch(after, *(rows[-1][name] for name in key))


def _linked(source: Path, target: Path, size: int) -> bool:
    try:
        if source.stat().st_size != size:
            return False
        os.link(source, target)
    except OSError:  # not there, or a file system without links: then it is copied
        return False
    return True


def _type(of: Any) -> str:
    return next(name for kind, name in _TYPES if isinstance(of, kind))


def _plain(row: Row, table: Definition) -> list[Any]:
    """A row's values. SQLite keeps booleans as numbers."""
    values = list(row)
    for n, column in enumerate(table.columns):
        if (table.name, column.name) in EMPTIED:
            values[n] = None
        elif isinstance(column.type, Boolean) and values[n] is not None:
            values[n] = bool(values[n])
    return values
