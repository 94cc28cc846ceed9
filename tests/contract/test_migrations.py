"""Migrated equals fresh, on both engines; and a database with rows comes through every revision with all of them.

The first suite reads each engine's own catalogue, so that nothing that Alembic does not compare (checks, the WHERE of
a partial index, triggers, AUTOINCREMENT) gets lost on the way. A new revision needs an entry in `SAMPLES`.
"""

import asyncio
import json
import re
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

from openiodm.storage import migrations
from openiodm.storage.migrations.run import upgrade
from openiodm.storage.open import HEAD, open_database
from openiodm.storage.tables import metadata
from tests.conftest import ENGINES, database_uri

SCRIPTS = ScriptDirectory(str(Path(migrations.__file__).parent))
REVISIONS = [r.revision for r in reversed(list(SCRIPTS.walk_revisions()))]  # oldest first

Schema = dict[str, Any]
NewDatabase = Callable[[], str]

DEVICE: dict[str, Any] = {
    "id": 9,
    "device_id": "d9",
    "application_id": 1,
    "node_id": "n9",
    "product_id": 1,
    "reports_fw": False,
    "reports_sw": False,
    "self_registered": False,
    "attributes": "{}",
    "attributes_wanted": False,
    "info": '{"mac":"m","location":"a \\"quoted\\" roof"}',
    "activation_timeout": 60,
    "registered_at": 1_000,
    "modified_at": 1_000,
    "attempt_seq": 0,
}

# revision -> rows that a database of that revision may hold: (table, row). They are inserted right after it has been
# reached, stay while later ones are applied, and must be found at the head as they were put in.
SAMPLES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "0001": [
        (
            "application",
            {
                "id": 1,
                "app_id": "a",
                "name": "A",
                "secret_hash": "s",
                "target_tokens": True,
                "gateway_tokens": False,
                "created_at": 1,
                "frozen_at": None,
            },
        ),
        ("flow_control", {"application_id": 1, "tokens": 99.5, "updated_at": 1}),
        (
            "access_token",
            {"id": 1, "token_hash": "t", "application_id": 1, "kind": "access", "issued_at": 1, "expires_at": 2},
        ),
        ("product", {"id": 1, "device_type": "t", "model": "m", "manufacturer_name": "x"}),
        (
            "gateway_token",
            {"id": 1, "application_id": 1, "token_hash": "g", "name": "G", "product_id": 1, "created_at": 1},
        ),
        *(
            (
                "device",
                {
                    "id": n,
                    "device_id": f"d{n}",
                    "application_id": 1,
                    "node_id": f"n{n}",
                    "product_id": 1,
                    "fw_version": "V1",
                    "reports_fw": True,
                    "reports_sw": False,
                    "self_registered": n == 3,
                    "attributes": '{"k": "v"}',
                    "attributes_wanted": False,
                    "info": "{}",
                    "activation_timeout": 0,
                    "registered_at": 1,
                    "modified_at": 1,
                    "attempt_seq": n,
                    "deleted_at": None if n < 3 else 5,
                },
            )
            for n in (1, 2, 3)
        ),
        (
            "device_group",
            {
                "id": 1,
                "group_id": "g",
                "application_id": 1,
                "name": "G",
                "max_devices": 0,
                "device_count": 1,
                "created_at": 1,
            },
        ),
        ("group_member", {"id": 7, "group_id": 1, "device_id": 1, "product_id": 1}),
        ("blob", {"sha256": "aa", "sha1": "bb", "md5": "cc", "size": 2**40, "created_at": 1}),
        (
            "package",
            {
                "id": 1,
                "file_id": "f",
                "application_id": 1,
                "file_type": "firmwarePackage",
                "name": "x.swu",
                "version": "V2",
                "product_id": 1,
                "source_versions": '["V1"]',
                "extra": "{}",
                "sha256": "aa",
                "uploaded_at": 1,
            },
        ),
        (
            "campaign",
            {
                "id": 1,
                "operation_id": "o",
                "application_id": 1,
                "kind": "firmware_upgrade",
                "package_id": 1,
                "product_id": 1,
                "device_type": "t",
                "model": "m",
                "manufacturer_name": "x",
                "target_version": "V2",
                "target_devices": '["d1"]',
                "policy_given": True,
                "execute_type": "custom",
                "window_start": 1_700_000_000_000,
                "window_end": 1_800_000_000_000,
                "retry_times": 2,
                "round": 1,
                "confirmation": False,
                "clocks": "{}",
                "status": "processing",
                "work": "idle",
                "stopped_by_operator": False,
                "created_at": 1,
            },
        ),
        ("campaign_group", {"campaign_id": 1, "group_id": 1, "watermark": 7, "expanded_to": 7}),
        (
            "campaign_counters",
            {
                "campaign_id": 1,
                "open": True,
                "total": 2,
                "wait": 0,
                "processing": 1,
                "success": 0,
                "fail": 1,
                "stop": 0,
                "timeout": 0,
            },
        ),
        *(
            (
                "upgrade",
                {
                    "id": n,
                    "public_id": f"u{n}",
                    "campaign_id": 1,
                    "ordinal": n,
                    "device_id": n,
                    "state": state,
                    "round": 0,
                    "action_id": 1,
                    "confirmed": None,
                    "detail": detail,
                    "created_at": 1,
                    "finished_at": end,
                    "due_at": due,
                },
            )
            for n, state, detail, end, due in ((1, "offered", None, None, 9), (2, "fail", "Task Conflict", 4, None))
        ),
        (
            "history",
            {
                "id": 5,
                "upgrade_id": 1,
                "at": 2,
                "from_state": "wait",
                "to_state": "offered",
                "action_id": 1,
                "cause": "contact",
            },
        ),
        (
            "device_log",
            {"upgrade_id": 1, "action_id": 1, "n": 1, "at": 2, "kind": "proceeding", "lines": '["a line"]'},
        ),
        (
            "job",
            {
                "id": 3,
                "kind": "campaign.online",
                "subject": 1,
                "due_at": 10,
                "owner": None,
                "lease_until": None,
                "epoch": 4,
                "failures": 0,
                "cursor": 0,
            },
        ),
        (
            "idempotency",
            {"application_id": 1, "key": "k", "request_hash": "h", "operation_id": "o", "created_at": 1},
        ),
    ],
    "0002": [
        (
            "application",
            {
                "id": 2,
                "app_id": "b",
                "name": "B",
                "secret_hash": "s2",
                "target_tokens": True,
                "gateway_tokens": True,
                "created_at": 2,
            },
        ),
        ("application_authorization", {"application_id": 1, "authorized_id": 2, "created_at": 3}),
    ],
    "0003": [("device", {**DEVICE, "id": 4, "location": "roof", "activation_due_at": 61_001})],
    "0004": [
        ("campaign_change", {"id": 9, "campaign_id": 1, "xid": 7}),
        ("campaign_change_trimmed", {"id": 1, "mark": 8}),
    ],
    "0005": [
        (
            "audit",
            {
                "id": 9,
                "application_id": 1,
                "at": 4,
                "caller": "b",
                "address": "::1",
                "operation": "device.delete",
                "object_id": "d1",
                "outcome": "done",
            },
        ),
    ],
    "0006": [
        ("receiver", {"id": 1, "name": "example.org:80", "owner": "s", "lease_until": 2, "failing_since": None}),
        (
            "subscription",
            {
                "id": 1,
                "subscription_id": "s",
                "application_id": 1,
                "notify_type": "fwUpgradeResultNotify",
                "callback_url": "http://example.org:80/",
                "receiver_id": 1,
                "created_at": 1,
            },
        ),
        (
            "notice",
            {
                "id": 9,
                "subscription_id": 1,
                "device_id": 1,
                "body": "{}",
                "created_at": 1,
                "pending_since": 2,
                "attempts": 2,
                "due_at": 3,
            },
        ),
        ("callback_security", {"application_id": 1, "ca_pem": "PEM", "signing_secret": "s", "changed_at": 1}),
    ],
    "0007": [
        (
            "history",
            {
                "id": 6,
                "upgrade_id": 1,
                "at": 3,
                "from_state": "offered",
                "to_state": "downloading",
                "action_id": 1,
                "cause": "report",
                "xid": 7,
            },
        ),
    ],
    "0008": [
        (
            "lwm2m_registration",
            {
                "device_id": 1,
                "endpoint": "n1",
                "location": "aa",
                "token": "00" * 8,
                "address": '["127.0.0.1",5683]',
                "secure": True,
                "lifetime_s": 3600,
                "version": "1.1",
                "binding": "UQ",
                "links": "3/0 5/0",
                "speaks_pcp": False,
                "registered_at": 5,
                "ended_at": None,
            },
        ),
    ],
    "0009": [
        ("restoration", {"id": 4, "restored_at": 9, "taken_at": 8, "attempt_base": 200_000_000}),
    ],
    "0010": [
        ("native_flow_control", {"application_id": 1, "tokens": 5.5, "updated_at": 2}),
        ("login_count", {"application": "a", "network": "::", "known_at": 1, "owed": 60_000, "updated_at": 2}),
    ],
    "0011": [],  # a column that is empty in old rows
    "0012": [],  # an index
}

# What a row of SAMPLES is when a later revision changes it on purpose: (table, column) -> old value to new value.
CHANGED: dict[tuple[str, str], Callable[[Any], Any]] = {}


@pytest.fixture(params=ENGINES)
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewDatabase]:
    """Makes empty databases of one engine; all are gone afterwards."""
    if request.param == "sqlite":
        yield lambda: f"sqlite:///{tmp_path / uuid.uuid4().hex}.db"
        return
    server: str = request.getfixturevalue("postgres_server")
    names: list[str] = []

    async def run(sql: str) -> None:
        connection = await asyncpg.connect(server)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    def create() -> str:
        names.append(f"m_{uuid.uuid4().hex}")
        asyncio.run(run(f"CREATE DATABASE {names[-1]} TEMPLATE template0"))
        return database_uri(server, names[-1])

    yield create
    for name in names:
        asyncio.run(run(f"DROP DATABASE {name} WITH (FORCE)"))


def on(url: str, action: Callable[[Connection], Any]) -> Any:
    """Runs `action` on a connection and commits. SQLite enforces foreign keys, as the server's connections do."""
    if not url.startswith("sqlite"):
        return asyncio.run(_on_postgres(url, action))
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA foreign_keys=ON")

    try:
        with engine.begin() as connection:
            return action(connection)
    finally:
        engine.dispose()


async def _on_postgres(url: str, action: Callable[[Connection], Any]) -> Any:
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url))
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(action)
    finally:
        await engine.dispose()


def one_line(sql: str | None) -> str:
    return " ".join((sql or "").split())


def schema(connection: Connection) -> Schema:
    """All of the schema that the engine's catalogue tells, in words that do not depend on the order of creation."""
    return _sqlite_schema(connection) if connection.dialect.name == "sqlite" else _postgres_schema(connection)


def _sqlite_schema(c: Connection) -> Schema:
    found: Schema = {}
    for kind, name, table, sql in c.execute(text("SELECT type, name, tbl_name, sql FROM sqlite_master")).all():
        if name.startswith("sqlite_") or table == "alembic_version":
            continue  # automatic indexes show with their tables
        if kind != "table":
            found[f"{kind} {name}"] = one_line(sql)
            continue
        found[f"table {name}"] = {
            "columns": {r[1]: tuple(r[2:]) for r in c.execute(text(f"PRAGMA table_xinfo({name})")).all()},
            "foreign keys": {tuple(r[2:]) for r in c.execute(text(f"PRAGMA foreign_key_list({name})")).all()},
            "unique": _sqlite_uniques(c, name),
            "constraints": sqlite_constraints(sql),
            "autoincrement": "AUTOINCREMENT" in sql.upper(),
        }
    return found


def _sqlite_uniques(c: Connection, table: str) -> set[tuple[str, tuple[str, ...]]]:
    """Those that constraints make: (origin, columns)."""
    return {
        (origin, tuple(r[2] for r in c.execute(text(f"PRAGMA index_info({index})")).all()))
        for _, index, _, origin, _ in c.execute(text(f"PRAGMA index_list({table})")).all()
        if origin != "c"
    }


def sqlite_constraints(sql: str) -> set[str]:
    """`CONSTRAINT name ...` clauses of a CREATE TABLE, each with its balanced parentheses."""
    sql = one_line(sql).replace('"', "")
    found = set()
    for match in re.finditer(r"CONSTRAINT ", sql):
        depth, end = 0, match.end()
        while end < len(sql) and not (depth == 0 and sql[end] in ",)"):
            depth += {"(": 1, ")": -1}.get(sql[end], 0)
            end += 1
        found.add(sql[match.start() : end].strip())
    return found


_POSTGRES = {
    "column": """
        SELECT c.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
               pg_get_expr(d.adbin, d.adrelid)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm')
          AND a.attnum > 0 AND NOT a.attisdropped""",
    "constraint": """
        SELECT conrelid::regclass || '.' || conname, contype::text, convalidated, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace""",
    "index": """
        SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'""",
    "trigger": """
        SELECT tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid), tgenabled::text
        FROM pg_trigger WHERE NOT tgisinternal""",
    "function": """
        SELECT oid::regprocedure::text, pg_get_functiondef(oid)
        FROM pg_proc WHERE pronamespace = 'public'::regnamespace""",
    "sequence": """
        SELECT sequencename, data_type::text, cycle FROM pg_sequences WHERE schemaname = 'public'""",
    "view": """
        SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'""",
}


def _postgres_schema(c: Connection) -> Schema:
    return {
        f"{kind} {row[0]}": tuple(row[1:])
        for kind, sql in _POSTGRES.items()
        for row in c.execute(text(sql)).all()
        if not str(row[0]).startswith("alembic_version")
    }


def test_a_migrated_database_has_the_schema_of_a_fresh_one(new_database: NewDatabase) -> None:
    migrated, fresh = new_database(), new_database()
    upgrade(migrated)
    on(fresh, metadata.create_all)
    have, want = on(migrated, schema), on(fresh, schema)
    assert set(have) == set(want)
    assert {k: (have[k], want[k]) for k in want if have[k] != want[k]} == {}


def test_what_is_compared_includes_all_that_carries_a_rule(new_database: NewDatabase) -> None:
    """The comparison above is worth as much as what it sees: the index of law 1, its check, ids that rise for ever."""
    url = new_database()
    upgrade(url)
    seen = on(url, schema)
    assert "finished_at IS NULL" in str(seen["index uq_upgrade_device_id_open"])
    assert "UNIQUE" in str(seen["index uq_upgrade_device_id_open"])
    if url.startswith("sqlite"):
        upgrades = seen["table upgrade"]
        assert upgrades["autoincrement"]
        assert any("ck_upgrade_final CHECK" in c for c in upgrades["constraints"])
        assert any("ck_upgrade_state CHECK" in c and "'stop')" in c for c in upgrades["constraints"])
        assert {fk[0] for fk in upgrades["foreign keys"]} == {"campaign", "device"}
        assert upgrades["columns"]["state"][:2] == ("TEXT", 1)
        assert ("u", ("app_id",)) in seen["table application"]["unique"]
    else:
        assert seen["constraint upgrade.ck_upgrade_final"][0] == "c"
        assert seen["constraint upgrade.fk_upgrade_device_id"][0] == "f"
        assert seen["column upgrade.state"][:2] == ("text", True)
        assert seen["column upgrade.id"][0] == "bigint"
        assert seen["sequence upgrade_id_seq"][0] == "bigint"


def test_a_trigger_that_only_one_side_has_would_be_seen(new_database: NewDatabase) -> None:
    url = new_database()
    upgrade(url)
    before = on(url, schema)
    if url.startswith("sqlite"):
        statements = ["CREATE TRIGGER tr AFTER INSERT ON job BEGIN SELECT 1; END"]
    else:
        statements = [
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
            "CREATE TRIGGER tr AFTER INSERT ON job FOR EACH ROW EXECUTE FUNCTION f()",
        ]
    on(url, lambda c: [c.execute(text(s)) for s in statements])
    assert any(k.startswith("trigger ") for k in set(on(url, schema)) - set(before))


def test_triggers_that_batch_mode_dropped_are_there_again_after_a_migration(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'batch.db'}"
    upgrade(url)
    before = on(url, schema)

    def recreate(connection: Connection) -> None:
        with Operations(MigrationContext.configure(connection)).batch_alter_table("campaign", recreate="always"):
            pass

    connection = create_engine(url)
    with connection.begin() as c:
        recreate(c)
    connection.dispose()
    assert not any(k.startswith("trigger tr_campaign") for k in on(url, schema))
    upgrade(url)
    assert {k: v for k, v in on(url, schema).items() if k.startswith("trigger")} == {
        k: v for k, v in before.items() if k.startswith("trigger")
    }
    assert sum(k.startswith("trigger tr_campaign") for k in before) == 3


def test_alembic_finds_no_difference_to_the_tables(new_database: NewDatabase) -> None:
    url = new_database()
    upgrade(url)

    def difference(connection: Connection) -> list[Any]:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    assert on(url, difference) == []


def test_the_revisions_are_one_line_and_the_server_knows_its_head() -> None:
    assert SCRIPTS.get_heads() == [HEAD]
    assert SCRIPTS.get_bases() == REVISIONS[:1]
    assert [r.is_merge_point or r.is_branch_point for r in SCRIPTS.walk_revisions()] == [False] * len(REVISIONS)
    assert sorted(REVISIONS) == REVISIONS


def test_every_revision_has_sample_rows_or_says_that_it_needs_none() -> None:
    assert list(SAMPLES) == REVISIONS


def test_the_first_revision_has_a_row_in_every_table_of_its_schema(new_database: NewDatabase) -> None:
    url = new_database()
    upgrade(url, REVISIONS[0])
    if url.startswith("sqlite"):
        sql = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    else:
        sql = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    tables = set(on(url, lambda c: c.execute(text(sql)).scalars().all())) - {"alembic_version"}
    assert {table for table, _ in SAMPLES[REVISIONS[0]]} == tables


def insert(connection: Connection, rows: list[tuple[str, dict[str, Any]]]) -> None:
    for table, row in rows:
        names = ", ".join(row)
        marks = ", ".join(f":{name}" for name in row)
        connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), row)


def test_rows_of_every_revision_come_through_all_later_ones(new_database: NewDatabase) -> None:
    url = new_database()
    kept: list[tuple[str, dict[str, Any]]] = []
    for revision in REVISIONS:
        upgrade(url, revision)
        on(url, lambda c, rows=SAMPLES[revision]: insert(c, rows))
        kept += SAMPLES[revision]
    upgrade(url)  # nothing left to do, and doing it is harmless

    def lost(connection: Connection) -> list[tuple[str, dict[str, Any]]]:
        missing = []
        for table, row in kept:
            want = {c: CHANGED.get((table, c), lambda v: v)(v) for c, v in row.items()}
            rows = connection.execute(text(f"SELECT * FROM {table}")).mappings().all()
            if not any(all(r[c] == v for c, v in want.items()) for r in rows):
                missing.append((table, row))
        return missing

    def counts(connection: Connection) -> dict[str, int]:
        tables = {table for table, _ in kept}
        return {t: connection.execute(text(f"SELECT count(*) FROM {t}")).scalar_one() for t in tables}

    assert on(url, lost) == []
    assert on(url, counts) == {table: sum(t == table for t, _ in kept) for table, _ in kept}


def test_0003_fills_in_what_the_device_list_reads_by_index(new_database: NewDatabase) -> None:
    url = new_database()
    upgrade(url, "0002")
    rows = [row for row in SAMPLES["0001"] if row[0] in {"application", "product"}]
    long = "".join(chr(0x20000 + i * 37) for i in range(1024))  # more than an index of PostgreSQL takes
    info = json.dumps({"location": long}, ensure_ascii=False)
    forever = {**DEVICE, "id": 8, "device_id": "d8", "node_id": "n8", "info": info, "activation_timeout": 0}
    on(url, lambda c: insert(c, [*rows, ("device", DEVICE), ("device", forever)]))
    upgrade(url)
    sql = text("SELECT location, activation_due_at FROM device ORDER BY id DESC")
    assert on(url, lambda c: [tuple(row) for row in c.execute(sql)]) == [
        ('a "quoted" roof', 61_000),
        (long[:256], None),
    ]


def test_a_server_opens_an_old_database_with_its_rows_and_migrates_it(new_database: NewDatabase) -> None:
    url = new_database()
    upgrade(url, REVISIONS[0])
    on(url, lambda c: insert(c, SAMPLES[REVISIONS[0]]))

    async def open_and_read() -> tuple[str, int]:
        for _ in range(2):
            database = await open_database(url)
            revision = await database.fetchval("SELECT version_num FROM alembic_version")
            count = await database.fetchval("SELECT count(*) FROM upgrade")
            await database.close()
        return revision, count

    assert asyncio.run(open_and_read()) == (HEAD, 2)


def test_ids_of_emptied_tables_are_never_given_again(new_database: NewDatabase) -> None:
    """What a reader remembers as "seen up to here" must not come back (AUTOINCREMENT on SQLite)."""
    url = new_database()
    upgrade(url)
    add = text("INSERT INTO product (device_type, model, manufacturer_name) VALUES ('t', 'm', 'x') RETURNING id")
    first = on(url, lambda c: c.execute(add).scalar_one())
    on(url, lambda c: c.execute(text("DELETE FROM product")))
    assert on(url, lambda c: c.execute(add).scalar_one()) > first


def test_a_migration_that_breaks_a_foreign_key_on_sqlite_is_refused(tmp_path: Path) -> None:
    """Foreign keys are off while batch mode re-creates tables; what is broken afterwards must not go unseen."""
    path = tmp_path / "broken.db"
    upgrade(f"sqlite:///{path}")
    connection = sqlite3.connect(path)  # foreign keys are off by default
    connection.execute("INSERT INTO flow_control (application_id, tokens, updated_at) VALUES (99, 1, 1)")
    connection.commit()
    connection.close()
    with pytest.raises(RuntimeError, match="foreign keys are broken"):
        upgrade(f"sqlite:///{path}")
