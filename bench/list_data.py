"""A database full of tasks, put in by bulk: what `task_list.py` reads. The same rows on both engines."""

import random
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import asyncpg

from openiodm.storage.open import open_database, sqlite_path
from openiodm.storage.tables import TRIGGERS

BATCH = 50_000
DEVICES_A_TASK = 2
STATUSES = ("success", "failed", "wait", "stop", "processing")
STATUS_WEIGHTS = (90, 5, 2, 2, 1)
TYPES, MAKERS, MODELS = 20, 50, 500
BORN = 1_700_000_000_000
FIRST_PRODUCT = 1001  # a gateway token of the application may have made some before

CAMPAIGN = (
    "id, operation_id, application_id, kind, package_id, product_id, device_type, model, manufacturer_name, "
    "target_version, target_devices, policy_given, execute_type, retry_times, round, confirmation, clocks, status, "
    "work, stopped_by_operator, created_at"
)
COUNTERS = "campaign_id, open, total, wait, processing, success, fail, stop, timeout"
UPGRADE = "public_id, campaign_id, ordinal, device_id, state, round, created_at, finished_at"
DEVICE = (
    "id, device_id, application_id, node_id, product_id, reports_fw, reports_sw, self_registered, attributes, "
    "attributes_wanted, info, activation_timeout, registered_at, modified_at, attempt_seq"
)
PRODUCT = "id, device_type, model, manufacturer_name"

Rows = Iterator[tuple[Any, ...]]


@dataclass(frozen=True)
class Size:
    """How much of everything. Applications are there already, with ids from 1."""

    tasks: int
    applications: int
    devices: int


@dataclass(frozen=True)
class Product:
    id: int
    device_type: str
    model: str
    maker: str


def products() -> list[Product]:
    """One a model; a maker has ten, a type is made by many."""
    return [
        Product(FIRST_PRODUCT + n, f"type-{n % TYPES}", f"model-{n}", f"maker-{n // 10 % MAKERS}")
        for n in range(MODELS)
    ]


def device_of(dice: random.Random, application: int, size: Size) -> int:
    """The first device of each application is a test device that every fiftieth task is for."""
    if dice.random() < 0.02:
        return application
    return dice.randrange(size.devices // size.applications) * size.applications + application


def device_rows(size: Size) -> Rows:
    for n in range(1, size.devices + 1):
        application = (n - 1) % size.applications + 1
        yield (
            n,
            f"dev-{n}",
            application,
            f"node-{n}",
            FIRST_PRODUCT,
            False,
            False,
            False,
            "{}",
            False,
            "{}",
            0,
            0,
            0,
            0,
        )


def task_rows(size: Size) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...], list[tuple[Any, ...]]]]:
    """Campaign, counters, upgrades; models as Zipf has it."""
    dice = random.Random(1)
    every = products()
    weights = [1 / (n + 1) for n in range(MODELS)]
    chosen = iter(dice.choices(every, weights, k=size.tasks))
    for key in range(1, size.tasks + 1):
        application, product = dice.randint(1, size.applications), next(chosen)
        kind = "firmware_upgrade" if dice.random() < 0.8 else "software_upgrade"
        devices = {device_of(dice, application, size) for _ in range(DEVICES_A_TASK)}
        targets = "[" + ",".join(f'"dev-{d}"' for d in devices) + "]"
        campaign = (
            key, f"{key:032x}", application, kind, application, product.id, product.device_type, product.model,
            product.maker, "2.0", targets, False, "now", 0, 0, False, "{}",
            dice.choices(STATUSES, STATUS_WEIGHTS)[0], "idle", False, BORN + key,
        )  # fmt: skip
        counters = (key, False, len(devices), 0, 0, len(devices), 0, 0, 0)
        upgrades = [(f"{key:x}-{n}", key, n, d, "success", 0, BORN, BORN) for n, d in enumerate(sorted(devices), 1)]
        yield campaign, counters, upgrades


async def fill(url: str, size: Size) -> None:
    """Writes all of it, past the triggers: as a database that is older than they are."""
    database = await open_database(url)
    async with database.transaction() as tx:
        await tx.execute("INSERT INTO blob (sha256, sha1, md5, size, created_at) VALUES ('aa', 'bb', 'cc', 3, 0)")
        for p in products():
            sql = f"INSERT INTO product ({PRODUCT}) VALUES ($1, $2, $3, $4)"
            await tx.execute(sql, p.id, p.device_type, p.model, p.maker)
        for n in range(1, size.applications + 1):
            await tx.execute(
                "INSERT INTO package (id, file_id, application_id, file_type, name, version, product_id, "
                "source_versions, extra, sha256, uploaded_at) "
                "VALUES ($1, $2, $1, 'firmwarePackage', 'n', '2.0', $3, '[]', '{}', 'aa', 0)",
                n,
                f"file-{n}",
                FIRST_PRODUCT,
            )
    await database.close()
    path = sqlite_path(url)
    if path is None:
        await _fill_postgres(url, size)
    else:
        _fill_sqlite(str(path), size)


def _batches(size: Size) -> Iterator[list[tuple[str, str, list[tuple[Any, ...]]]]]:
    """(table, columns, rows) of up to `BATCH` tasks."""
    devices = device_rows(size)
    while rows := list(islice(devices, BATCH)):
        yield [("device", DEVICE, rows)]
    tasks = task_rows(size)
    while some := list(islice(tasks, BATCH)):
        yield [
            ("campaign", CAMPAIGN, [t[0] for t in some]),
            ("campaign_counters", COUNTERS, [t[1] for t in some]),
            ("upgrade", UPGRADE, [row for t in some for row in t[2]]),
        ]


def _fill_sqlite(path: str, size: Size) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA synchronous=OFF")
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    for batch in _batches(size):
        db.execute("BEGIN")
        for table, columns, rows in batch:
            marks = ", ".join("?" for _ in columns.split(","))
            db.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)
        db.execute("COMMIT")
    for trigger in TRIGGERS["sqlite"]:
        db.execute(trigger)
    db.execute("ANALYZE")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()


async def _fill_postgres(url: str, size: Size) -> None:
    db = await asyncpg.connect(url)
    await db.execute("SET session_replication_role = replica")  # no triggers, no foreign keys
    for batch in _batches(size):
        for table, columns, rows in batch:
            await db.copy_records_to_table(table, records=rows, columns=columns.split(", "))
    for table in ("campaign", "device", "product", "package"):
        await db.execute(f"SELECT setval('{table}_id_seq', (SELECT max(id) FROM {table}))")
    await db.execute("VACUUM ANALYZE")
    await db.close()
