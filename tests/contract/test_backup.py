"""Backups of either engine, made beside a server, and databases of either engine made from them."""

import asyncio
import errno
import gzip
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from openiodm.storage import postgres
from openiodm.storage.backup import layout, load
from openiodm.storage.backup.aftermath import Restored
from openiodm.storage.backup.layout import BackupError
from openiodm.storage.backup.write import EMPTIED, LEFT_OUT, Written, write
from openiodm.storage.blobs import FileStore
from openiodm.storage.engine import Reader
from openiodm.storage.migrations.run import upgrade
from openiodm.storage.open import HEAD, open_database, revision_of
from openiodm.storage.sqlite import ServerLock, SqliteDatabase
from openiodm.storage.tables import metadata
from tests.conftest import ENGINES, database_uri
from tests.contract.test_migrations import REVISIONS, SAMPLES, insert, on

BYTES = b"the bytes of a package" * 100
SHA = hashlib.sha256(BYTES).hexdigest()
AT = 1_700_000_000_000
LATER = AT + 86_400_000
NewUrl = Callable[..., str]

# What `settle` changes on purpose; tests/contract/test_restored_fleet.py says why.
SETTLED = {
    ("device", "attempt_seq"), ("device", "attributes_wanted"), ("device", "fw_version"),
    ("upgrade", "due_at"), ("campaign", "hold"), ("campaign_counters", "open"),
    ("receiver", "owner"), ("receiver", "lease_until"), ("lwm2m_registration", "ended_at"),
}  # fmt: skip
GROWN_OR_SHRUNK = {"audit": 2, "restoration": 1, "job": -1}  # rows: of two applications; of this restore; online clocks


@pytest.fixture
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewUrl]:
    """Makes databases that have nothing in them yet, of the engine that is asked for; all are gone afterwards."""
    names: list[str] = []

    def make(engine: str, template: str = "template0") -> str:
        if engine == "sqlite":
            return f"sqlite:///{tmp_path / uuid.uuid4().hex}.db"
        server: str = request.getfixturevalue("postgres_server")
        names.append(f"b_{uuid.uuid4().hex}")
        asyncio.run(administer(server, f"CREATE DATABASE {names[-1]} TEMPLATE {template}"))
        return database_uri(server, names[-1])

    yield make
    for name in names:
        asyncio.run(administer(request.getfixturevalue("postgres_server"), f"DROP DATABASE {name} WITH (FORCE)"))


async def administer(server: str, sql: str) -> None:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


def fill(url: str) -> None:
    """Rows in every table, through all revisions; of packages, one whose bytes `put` has."""
    for revision in REVISIONS:
        upgrade(url, revision)
        on(url, lambda c, rows=SAMPLES[revision]: insert(c, rows))
    package = {"sha256": SHA, "sha1": "b", "md5": "c", "size": len(BYTES), "created_at": 1}
    on(url, lambda c: insert(c, [("blob", package)]))
    on(url, lambda c: c.execute(text(f"UPDATE package SET sha256 = '{SHA}'")))
    on(url, lambda c: c.execute(text(f"DELETE FROM blob WHERE sha256 <> '{SHA}'")))


@pytest.fixture(scope="module")
def filled_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("filled") / "filled.db"
    fill(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="module")
def filled_postgres(postgres_server: str) -> str:
    """A database to copy from; its name."""
    name = f"filled_{uuid.uuid4().hex}"
    asyncio.run(administer(postgres_server, f"CREATE DATABASE {name} TEMPLATE template0"))
    fill(database_uri(postgres_server, name))
    return name


@pytest.fixture(params=ENGINES)
def source(request: pytest.FixtureRequest, new_url: NewUrl, tmp_path: Path) -> str:
    """A database with rows in every table, and the package file that they name, in `tmp_path / "packages"`."""
    put(tmp_path / "packages")
    if request.param == "sqlite":
        url = new_url("sqlite")
        shutil.copy(request.getfixturevalue("filled_sqlite"), url.removeprefix("sqlite:///"))
        return url
    return new_url("postgresql", request.getfixturevalue("filled_postgres"))


def put(folder: Path, content: bytes = BYTES) -> Path:
    path = folder / SHA[:2] / SHA[2:4] / SHA
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def backup(url: str, tmp_path: Path, now: int = AT, *, bucket: bool = False) -> Written:
    async def run() -> Written:
        database = await open_database(url)
        store = FileStore(tmp_path / "packages")
        try:
            return await write(database, None if bucket else store, tmp_path / "backups", now)
        finally:
            await store.close()
            await database.close()

    return asyncio.run(run())


def restore(where: Path, url: str, tmp_path: Path) -> Restored:
    return asyncio.run(load.restore(where, url, tmp_path / "restored", LATER, "operator:test"))


def the_other(url: str) -> str:
    """The engine that the database is not of."""
    return "postgresql" if url.startswith("sqlite") else "sqlite"


def rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    def read(connection: Any) -> dict[str, list[tuple[Any, ...]]]:
        return {
            table.name: sorted(map(tuple, connection.execute(table.select())), key=repr)
            for table in metadata.sorted_tables
        }

    found: dict[str, list[tuple[Any, ...]]] = on(url, read)
    return found


def masked(all_rows: dict[str, list[tuple[Any, ...]]], table: str) -> list[tuple[Any, ...]]:
    """A table's rows without what a restore changes on purpose."""
    changing = {*SETTLED, *EMPTIED}
    columns = [column.name for column in metadata.tables[table].columns]
    kept = [n for n, name in enumerate(columns) if (table, name) not in changing]
    return sorted((tuple(row[n] for n in kept) for row in all_rows[table]), key=repr)


@pytest.mark.parametrize("into", ENGINES)
def test_every_row_and_file_comes_back_on_either_engine(
    source: str, into: str, new_url: NewUrl, tmp_path: Path
) -> None:
    written = backup(source, tmp_path)
    target = new_url(into)
    restored = restore(written.path, target, tmp_path)
    before, after = rows(source), rows(target)
    for table in before:
        if table in LEFT_OUT:
            assert after[table] == [], table
        elif table in GROWN_OR_SHRUNK:
            assert len(after[table]) == len(before[table]) + GROWN_OR_SHRUNK[table], table
        else:
            assert before[table], f"{table} has no rows: this test shows too little"
            assert masked(after, table) == masked(before, table), table
    assert put(tmp_path / "again").read_bytes() == (tmp_path / "restored" / SHA[:2] / SHA[2:4] / SHA).read_bytes()
    assert (restored.taken_at, restored.restored_at) == (AT, LATER)
    assert [held.operation_id for held in restored.held] == ["o"]
    assert asyncio.run(revision_of(target)) == HEAD


def test_ids_go_on_where_they_were_also_those_of_rows_that_are_gone(
    source: str, new_url: NewUrl, tmp_path: Path
) -> None:
    add = text("INSERT INTO product (device_type, model, manufacturer_name) VALUES ('t', 'gone', 'x') RETURNING id")
    if source.startswith("sqlite"):
        on(source, lambda c: c.execute(text("UPDATE sqlite_sequence SET seq = 41 WHERE name = 'product'")))
    else:
        on(source, lambda c: c.execute(text("SELECT setval(pg_get_serial_sequence('product', 'id'), 41)")))
    gone = on(source, lambda c: c.execute(add).scalar_one())
    on(source, lambda c: c.execute(text("DELETE FROM product WHERE model = 'gone'")))
    target = new_url(the_other(source))
    restore(backup(source, tmp_path).path, target, tmp_path)
    assert on(target, lambda c: c.execute(add).scalar_one()) == gone + 1 == 43


def test_only_their_owner_can_read_them_and_other_tools_can_check_them(source: str, tmp_path: Path) -> None:
    written = backup(source, tmp_path)
    for path in (written.path, *written.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", layout.SUMS], cwd=written.path, check=True)
    listed = {line.split("  ")[1] for line in (written.path / layout.SUMS).read_text().splitlines()}
    assert listed == {str(p.relative_to(written.path)) for p in written.path.rglob("*") if p.is_file()} - {layout.SUMS}


def test_the_next_one_links_package_files_and_the_newest_is_taken(source: str, tmp_path: Path) -> None:
    first, second = backup(source, tmp_path), backup(source, tmp_path, AT + 1000)
    assert (first.copied_bytes, second.copied_bytes) == (len(BYTES), 0)
    path = layout.package_of(SHA)
    assert (first.path / path).stat().st_ino == (second.path / path).stat().st_ino
    shutil.rmtree(first.path)
    assert load.check(tmp_path / "backups", packages=True).path == second.path


def test_others_write_meanwhile_and_all_rows_are_as_at_its_beginning(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, begun = layout.create, []

    def change(path: Path, mode: int = layout.FILE_MODE) -> int:
        """Files are created when the view is there: now another process commits."""
        if not begun:
            begun.append(path)
            update = text("UPDATE device SET node_id = 'changed' WHERE id = 4")
            with ThreadPoolExecutor(1) as thread:
                thread.submit(on, source, lambda c: c.execute(update)).result()
        return create(path, mode)

    monkeypatch.setattr(layout, "create", change)
    written = backup(source, tmp_path)
    lines = gzip.decompress((written.path / layout.rows_of("device")).read_bytes())
    assert b"changed" not in lines
    assert lines.count(b"\n") == 4
    assert "changed" in str(rows(source)["device"])


def test_disks_may_take_their_time(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL took a backup for frozen while it copied packages or made a table's file durable, and ended it."""
    monkeypatch.setattr(postgres, "ABANDONED_MS", 200)
    slow: list[str] = []

    def slowed(name: str) -> Callable[..., Any]:
        true = getattr(layout, name)

        def take_time(*args: Any) -> Any:
            if name not in slow:
                slow.append(name)
                time.sleep(0.6)
            return true(*args)

        return take_time

    for name in ("digest", "copy"):
        monkeypatch.setattr(layout, name, slowed(name))
    written = backup(source, tmp_path)
    assert slow == ["digest", "copy"]
    assert (written.manifest.packages, written.manifest.damaged_packages) == (1, [])


def test_no_snapshot_waits_for_package_files(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be many; meanwhile SQLite's log grows, and PostgreSQL keeps every row that is deleted."""
    inside = False

    @asynccontextmanager
    async def snapshot(database: Any, **how: Any) -> AsyncIterator[Reader]:
        nonlocal inside
        async with true(database, **how) as view:
            inside = True
            yield view
            inside = False

    def copy(*args: Any) -> tuple[str, int]:
        assert not inside
        return true_copy(*args)

    kind, true_copy = SqliteDatabase if source.startswith("sqlite") else postgres.PostgresDatabase, layout.copy
    true = kind.snapshot
    monkeypatch.setattr(kind, "snapshot", snapshot)
    monkeypatch.setattr(layout, "copy", copy)
    assert backup(source, tmp_path).manifest.packages == 1


def test_files_are_kept_from_collection_while_one_is_written(source: str, tmp_path: Path) -> None:
    async def run() -> list[bool]:
        store = FileStore(tmp_path / "packages")
        seen = []
        async with store.kept(), store.exclusive(SHA[:2]) as ours:
            seen.append(ours)
        async with store.exclusive(SHA[:2]) as ours:
            seen.append(ours)
        await store.close()
        return seen

    assert asyncio.run(run()) == [False, True]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_package_file_that_is_missing_or_damaged_is_named_and_the_rest_is_kept(
    source: str, damage: str, new_url: NewUrl, tmp_path: Path
) -> None:
    path = put(tmp_path / "packages", BYTES[::-1])
    if damage == "missing":
        path.unlink()
    written = backup(source, tmp_path)
    assert written.manifest.damaged_packages == [SHA]
    target = new_url("sqlite")
    restore(written.path, target, tmp_path)
    assert len(rows(target)["package"]) == 1


def test_without_files_it_has_the_rows_alone(source: str, new_url: NewUrl, tmp_path: Path) -> None:
    """As with packages in a bucket."""
    written = backup(source, tmp_path, bucket=True)
    assert (written.manifest.packages, written.manifest.damaged_packages) == (0, [])
    target = new_url("sqlite")
    restore(written.path, target, tmp_path)
    assert len(rows(target)["package"]) == 1
    assert not (tmp_path / "restored").exists()


# -- what is no backup


def damaged_rows(backup: Path) -> None:
    path = backup / layout.rows_of("device")
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def damaged_package(backup: Path) -> None:
    path = backup / layout.package_of(SHA)
    path.write_bytes(b"x" + path.read_bytes()[1:])


def missing_rows(backup: Path) -> None:
    (backup / layout.rows_of("device")).unlink()


def missing_package(backup: Path) -> None:
    (backup / layout.package_of(SHA)).unlink()


def cut_sums(backup: Path) -> None:
    path = backup / layout.SUMS
    path.write_text(path.read_text()[:-90])


def no_sums(backup: Path) -> None:
    (backup / layout.SUMS).unlink()


@pytest.mark.parametrize(
    ("damage", "into"),
    [
        (damaged_rows, "sqlite"),
        (damaged_package, "sqlite"),
        (damaged_package, "postgresql"),
        (missing_rows, "sqlite"),
        (missing_package, "sqlite"),
        (cut_sums, "sqlite"),
        (no_sums, "sqlite"),
    ],
)
def test_a_damaged_one_is_refused_and_nothing_is_made_of_it(
    damage: Callable[[Path], None], into: str, new_url: NewUrl, sqlite_template: Path, tmp_path: Path
) -> None:
    where = small_backup(sqlite_template, tmp_path)
    damage(where)
    with pytest.raises(BackupError, match=r"damaged|missing|no whole backup"):
        load.check(where, packages=True)
    target = new_url(into)
    with pytest.raises(BackupError, match=r"damaged|missing|no whole backup"):
        restore(where, target, tmp_path)
    assert asyncio.run(revision_of(target)) is None


def small_backup(template: Path, tmp_path: Path) -> Path:
    """Of a SQLite database with a package and nothing else."""
    path = tmp_path / "small.db"
    shutil.copy(template, path)
    package = {"sha256": SHA, "sha1": "b", "md5": "c", "size": len(BYTES), "created_at": 1}
    on(f"sqlite:///{path}", lambda c: insert(c, [("blob", package)]))
    put(tmp_path / "packages")
    return backup(f"sqlite:///{path}", tmp_path).path


def rewritten(where: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Another manifest, with its check sums: as another version would have written it."""
    manifest = json.loads((where / layout.MANIFEST).read_bytes())
    change(manifest)
    (where / layout.MANIFEST).write_text(json.dumps(manifest))
    lines = [
        f"{layout.digest(where / path)}  {path}"
        for path in (line.split("  ")[1] for line in (where / layout.SUMS).read_text().splitlines())
        if (where / path).exists()
    ]
    (where / layout.SUMS).write_text("\n".join(lines) + "\n")


def test_one_of_a_newer_schema_or_format_is_refused(sqlite_template: Path, new_url: NewUrl, tmp_path: Path) -> None:
    where = small_backup(sqlite_template, tmp_path)
    rewritten(where, lambda m: m.update(revision="9999", version="99.0"))
    with pytest.raises(BackupError, match=f"version 99.0, schema 9999; this version knows schemas up to {HEAD}"):
        restore(where, new_url("sqlite"), tmp_path)
    rewritten(where, lambda m: m.update(format=2, something="new"))
    with pytest.raises(BackupError, match="of format 2; this version reads format 1"):
        load.check(where, packages=False)


def test_one_of_an_older_schema_is_migrated(source: str, new_url: NewUrl, tmp_path: Path) -> None:
    where = backup(source, tmp_path).path
    newer = ("hold", "max_concurrent")  # columns of campaign

    def older(manifest: dict[str, Any]) -> None:
        manifest["revision"] = "0008"
        manifest["tables"] = [t for t in manifest["tables"] if t["name"] != "restoration"]
        (where / layout.rows_of("restoration")).unlink()
        (campaign,) = (t for t in manifest["tables"] if t["name"] == "campaign")
        places = [n for n, column in enumerate(campaign["columns"]) if column not in newer]
        campaign["columns"] = {c: t for c, t in campaign["columns"].items() if c not in newer}
        path = where / layout.rows_of("campaign")
        lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        path.write_bytes(gzip.compress(b"".join(json.dumps([r[n] for n in places]).encode() + b"\n" for r in lines)))

    rewritten(where, older)
    target = new_url(the_other(source))
    restore(where, target, tmp_path)
    assert asyncio.run(revision_of(target)) == HEAD
    assert masked(rows(target), "campaign") == masked(rows(source), "campaign")


def test_rows_that_break_a_foreign_key_are_refused(sqlite_template: Path, new_url: NewUrl, tmp_path: Path) -> None:
    where = small_backup(sqlite_template, tmp_path)
    path = where / layout.rows_of("receiver")
    path.write_bytes(gzip.compress(b'[1,"r:1",null,null,null]\n'))
    orphan = where / layout.rows_of("subscription")
    orphan.write_bytes(gzip.compress(b'[1,"s",99,"t","http://r",1,1,null,null,null,null]\n'))

    def counted(manifest: dict[str, Any]) -> None:
        for table in manifest["tables"]:
            if table["name"] in ("receiver", "subscription"):
                table["rows"] = 1

    rewritten(where, counted)
    for engine in ENGINES:
        target = new_url(engine)
        with pytest.raises(BackupError, match="do not fit the schema"):
            restore(where, target, tmp_path)
        assert asyncio.run(revision_of(target)) is None


def test_one_that_was_broken_off_is_none_and_the_next_one_removes_it(sqlite_template: Path, tmp_path: Path) -> None:
    where = small_backup(sqlite_template, tmp_path)
    left = where.with_name(".20230101T000000Z.partial")
    where.rename(left)
    with pytest.raises(BackupError, match="no whole backup"):
        load.check(tmp_path / "backups", packages=False)
    with pytest.raises(BackupError, match="not finished"):
        load.check(left, packages=False)
    again = backup(f"sqlite:///{tmp_path / 'small.db'}", tmp_path, AT + 1000)
    assert [path.name for path in (tmp_path / "backups").iterdir()] == [again.path.name]


def test_a_full_disk_is_said_and_leaves_nothing(
    source: str, sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(layout, "copy", full)
    with pytest.raises(BackupError, match=f"no room is left in {tmp_path / 'backups'}"):
        backup(source, tmp_path)
    assert list((tmp_path / "backups").iterdir()) == []


# -- where no database may be made


def test_a_database_that_is_not_empty_is_refused(source: str, sqlite_template: Path, tmp_path: Path) -> None:
    where = small_backup(sqlite_template, tmp_path)
    before = rows(source)
    with pytest.raises(BackupError, match=r"not empty|there already"):
        restore(where, source, tmp_path)
    assert rows(source) == before
    assert not (tmp_path / "restored").exists()


def test_a_log_file_of_another_database_is_refused(sqlite_template: Path, new_url: NewUrl, tmp_path: Path) -> None:
    where = small_backup(sqlite_template, tmp_path)
    target = new_url("sqlite")
    Path(target.removeprefix("sqlite:///") + "-wal").touch()
    with pytest.raises(BackupError, match="-wal is there already"):
        restore(where, target, tmp_path)


def test_a_running_server_is_refused(sqlite_template: Path, new_url: NewUrl, tmp_path: Path) -> None:
    where = small_backup(sqlite_template, tmp_path)
    target = new_url("sqlite")
    lock = ServerLock(Path(target.removeprefix("sqlite:///")))
    assert lock.acquire()
    with pytest.raises(BackupError, match="stop it first"):
        restore(where, target, tmp_path)
    lock.release()
    restore(where, target, tmp_path)
    path = Path(target.removeprefix("sqlite:///"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
