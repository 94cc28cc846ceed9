"""The task list against a naive reference: rows put in by SQL, every combination of filters, every page, both engines.

Whatever stands behind `campaigns.ports.CampaignList` must pass: it is in `LISTS`.
"""

import itertools
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from openiodm.access.model import ApplicationKey, Product
from openiodm.campaigns.model import Campaign, CampaignFilter, CampaignKind, Counters, ExecuteType, Policy
from openiodm.campaigns.ports import CampaignList
from openiodm.campaigns.states import COUNTER_OF, CampaignStatus, UpgradeState
from openiodm.clock import Instant
from openiodm.storage.campaign_list import IndexedCampaignList
from openiodm.storage.campaign_reads import SqlCampaignList
from openiodm.storage.engine import Database, InsertMany

Build = Callable[[Database], Awaitable[CampaignList]]


async def plain(database: Database) -> CampaignList:
    return SqlCampaignList(database)


async def indexed(database: Database) -> CampaignList:
    built = IndexedCampaignList(database)
    await built.build()
    assert built.ready
    return built


LISTS: Sequence[Build] = (plain, indexed)

APPLICATIONS = (1, 2)
PRODUCTS = tuple(Product(t, m, f) for t in ("pump", "Pump") for m in ("m1", "m2") for f in ("acme", ""))
DEVICES_EACH = 4  # per application
TASKS = 90
BORN = 1_700_000_000_000

CAMPAIGN = InsertMany(
    "campaign",
    {
        "id": "bigint",
        "operation_id": "text",
        "application_id": "bigint",
        "kind": "text",
        "package_id": "bigint",
        "product_id": "bigint",
        "device_type": "text",
        "model": "text",
        "manufacturer_name": "text",
        "target_version": "text",
        "target_devices": "text",
        "target_groups": "text",
        "policy_given": "boolean",
        "execute_type": "text",
        "window_start": "bigint",
        "window_end": "bigint",
        "retry_times": "int",
        "round": "int",
        "confirmation": "boolean",
        "clocks": "text",
        "status": "text",
        "work": "text",
        "stopped_by_operator": "boolean",
        "created_at": "bigint",
        "started_at": "bigint",
        "stopped_at": "bigint",
    },
)
COUNTER_NAMES = ("total", "wait", "processing", "success", "fail", "stop", "timeout")
COUNTERS = InsertMany(
    "campaign_counters", {"campaign_id": "bigint", "open": "boolean", **dict.fromkeys(COUNTER_NAMES, "int")}
)
UPGRADE = InsertMany(
    "upgrade",
    {
        "public_id": "text",
        "campaign_id": "bigint",
        "ordinal": "int",
        "device_id": "bigint",
        "state": "text",
        "round": "int",
        "created_at": "bigint",
        "finished_at": "bigint",
    },
)
DEVICE = InsertMany(
    "device",
    {
        "id": "bigint",
        "device_id": "text",
        "application_id": "bigint",
        "node_id": "text",
        "product_id": "bigint",
        "reports_fw": "boolean",
        "reports_sw": "boolean",
        "self_registered": "boolean",
        "attributes": "text",
        "attributes_wanted": "boolean",
        "info": "text",
        "activation_timeout": "bigint",
        "registered_at": "bigint",
        "modified_at": "bigint",
        "attempt_seq": "int",
        "deleted_at": "bigint",
    },
)

FINISHED = (UpgradeState.SUCCESS, UpgradeState.FAIL, UpgradeState.TIMEOUT, UpgradeState.STOP)


@dataclass(frozen=True, slots=True)
class Task:
    """A task as the reference knows it."""

    key: int
    application: int
    kind: CampaignKind
    status: CampaignStatus
    product: Product
    policy: Policy | None
    states: dict[str, UpgradeState]  # device id -> how it stands

    @property
    def counters(self) -> Counters:
        counts = dict.fromkeys(COUNTER_NAMES, 0)
        for state in self.states.values():
            counts[COUNTER_OF[state].value] += 1
        return Counters(**{**counts, "total": len(self.states)})


def device_id(application: int, number: int) -> str:
    return f"dev-{application}-{number}"


def some_tasks(seed: int) -> list[Task]:
    """Random ones; ids have gaps, and no device has two unfinished upgrades (law 1)."""
    chance = random.Random(seed)
    busy: set[str] = set()
    tasks: list[Task] = []
    key = 0
    for _ in range(TASKS):
        key += chance.randint(1, 3)
        application = chance.choice(APPLICATIONS)
        states: dict[str, UpgradeState] = {}
        for number in chance.sample(range(DEVICES_EACH), chance.randint(0, DEVICES_EACH - 1)):
            name = device_id(application, number)
            choices = FINISHED if name in busy else tuple(UpgradeState)
            states[name] = chance.choice(choices)
            if states[name] not in FINISHED:
                busy.add(name)
        tasks.append(
            Task(
                key,
                application,
                chance.choice(list(CampaignKind)),
                chance.choice(list(CampaignStatus)),
                chance.choice(PRODUCTS),
                chance.choice([None, Policy(), Policy(ExecuteType.CUSTOM, Instant(BORN), Instant(BORN + 1), 3)]),
                states,
            )
        )
    return tasks


async def write(database: Database, tasks: Sequence[Task]) -> None:
    async with database.transaction() as tx:
        for application in APPLICATIONS:
            await tx.execute(
                "INSERT INTO application (id, app_id, name, secret_hash, target_tokens, gateway_tokens, created_at) "
                "VALUES ($1, $2, 'a', 'x', TRUE, TRUE, 0)",
                application,
                f"app{application}",
            )
        for n, p in enumerate(PRODUCTS, 1):
            await tx.execute(
                "INSERT INTO product (id, device_type, model, manufacturer_name) VALUES ($1, $2, $3, $4)",
                n,
                p.device_type,
                p.model,
                p.manufacturer_name,
            )
        await tx.execute("INSERT INTO blob (sha256, sha1, md5, size, created_at) VALUES ('aa', 'bb', 'cc', 3, 0)")
        await tx.execute(
            "INSERT INTO package (id, file_id, application_id, file_type, name, version, product_id, source_versions, "
            "extra, sha256, uploaded_at) VALUES (1, 'f', 1, 'firmwarePackage', 'n', 'V', 1, '[]', '{}', 'aa', 0)"
        )
        await tx.insert_many(DEVICE, list(_devices()))
        await tx.insert_many(CAMPAIGN, [_campaign(t) for t in tasks])
        await tx.insert_many(COUNTERS, [_counters(t) for t in tasks])
        await tx.insert_many(UPGRADE, [row for t in tasks for row in _upgrades(t)])


def device_key(name: str) -> int:
    _, application, number = name.split("-")
    return int(application) * 100 + int(number)


def _devices() -> Iterator[tuple[object, ...]]:
    for application in APPLICATIONS:
        for n in range(DEVICES_EACH):
            name = device_id(application, n)
            deleted = BORN if n == 0 else None  # a deleted device's tasks are still found by it
            facts = (1, False, False, False, "{}", True, "{}", 0, 0, 0, 0, deleted)
            yield (device_key(name), name, application, f"n{n}", *facts)


def _campaign(t: Task) -> tuple[object, ...]:
    policy = t.policy or Policy()
    return (
        t.key,
        f"op{t.key}",
        t.application,
        t.kind.value,
        1,
        PRODUCTS.index(t.product) + 1,
        t.product.device_type,
        t.product.model,
        t.product.manufacturer_name,
        "V",
        '["x"]',
        None,
        t.policy is not None,
        policy.execute_type.value,
        policy.window_start,
        policy.window_end,
        policy.retry_times,
        0,
        False,
        "{}",
        t.status.value,
        "idle",
        False,
        BORN + t.key,
        None,
        None,
    )


def _counters(t: Task) -> tuple[object, ...]:
    c = t.counters
    return (t.key, False, c.total, c.wait, c.processing, c.success, c.fail, c.stop, c.timeout)


def _upgrades(t: Task) -> Iterator[tuple[object, ...]]:
    for ordinal, (name, state) in enumerate(t.states.items(), 1):
        finished = BORN if state in FINISHED else None
        yield (f"s{t.key}-{ordinal}", t.key, ordinal, device_key(name), state.value, 0, BORN, finished)


def expected(tasks: Sequence[Task], f: CampaignFilter) -> list[Task]:
    """The rules in the plainest words: own tasks, every condition given holds, newest first."""
    return [
        t
        for t in sorted(tasks, key=lambda t: -t.key)
        if t.application == f.application
        and f.kind in (None, t.kind)
        and f.status in (None, t.status)
        and f.device_type in (None, t.product.device_type)
        and f.model in (None, t.product.model)
        and f.manufacturer_name in (None, t.product.manufacturer_name)
        and (f.device_id is None or f.device_id in t.states)
    ]


def every_combination(seed: int, values_each: int) -> Iterator[CampaignFilter]:
    """Each of the 64 sets of conditions, with `values_each` random choices of values; some match nothing."""
    chance = random.Random(seed)
    for given in itertools.product((False, True), repeat=6):
        kind, status, device_type, model, manufacturer, device = given
        for _ in range(values_each if any(given) else 1):
            yield CampaignFilter(
                ApplicationKey(chance.choice(APPLICATIONS)),
                chance.choice(list(CampaignKind)) if kind else None,
                chance.choice(list(CampaignStatus)) if status else None,
                chance.choice(("pump", "Pump", "PUMP")) if device_type else None,
                chance.choice(("m1", "m2")) if model else None,
                chance.choice(("acme", "")) if manufacturer else None,
                device_id(chance.choice((1, 1, 2)), chance.randrange(DEVICES_EACH + 1)) if device else None,
            )


def shown(c: Campaign) -> tuple[object, ...]:
    return (c.key, c.operation_id, c.kind, c.status, c.product, c.policy, c.created_at, c.counters)


def meant(t: Task) -> tuple[object, ...]:
    return (t.key, f"op{t.key}", t.kind, t.status, t.product, t.policy, BORN + t.key, t.counters)


async def check(task_list: CampaignList, tasks: Sequence[Task], where: CampaignFilter, size: int) -> int:
    """Every page and one past the end; how many tasks there were."""
    matches = expected(tasks, where)
    for number in range(len(matches) // size + 2):
        total, page = await task_list.page(where, number, size)
        assert total == len(matches), where
        assert [shown(c) for c in page] == [meant(t) for t in matches[number * size : (number + 1) * size]], where
    return len(matches)


@pytest.mark.parametrize("build", LISTS)
async def test_every_filter_and_page_agrees_with_the_reference(database: Database, build: Build) -> None:
    tasks = some_tasks(seed=7)
    await write(database, tasks)
    task_list = await build(database)
    found = [await check(task_list, tasks, where, 4) for where in every_combination(seed=8, values_each=6)]
    assert sum(n > 4 for n in found) > 30, "the rows are too few to turn pages"
    assert sum(n == 0 for n in found) > 30


@pytest.mark.parametrize("build", LISTS)
async def test_pages_of_any_size_are_a_partition_of_the_whole(database: Database, build: Build) -> None:
    tasks = some_tasks(seed=9)
    await write(database, tasks)
    task_list = await build(database)
    for size in (1, 7, 10, 100):
        for application in APPLICATIONS:
            assert await check(task_list, tasks, CampaignFilter(ApplicationKey(application)), size) > 20


@pytest.mark.parametrize("build", LISTS)
async def test_each_single_condition_agrees_for_each_of_its_values(database: Database, build: Build) -> None:
    tasks = some_tasks(seed=10)
    await write(database, tasks)
    task_list = await build(database)
    own = ApplicationKey(1)
    singles = [
        *(CampaignFilter(own, kind=kind) for kind in CampaignKind),
        *(CampaignFilter(own, status=status) for status in CampaignStatus),
        *(CampaignFilter(own, device_type=p.device_type) for p in PRODUCTS),
        *(CampaignFilter(own, device_id=device_id(a, n)) for a in APPLICATIONS for n in range(DEVICES_EACH)),
    ]
    found = {where: await check(task_list, tasks, where, 5) for where in singles}
    assert found[CampaignFilter(own, device_id=device_id(2, 1))] == 0, "another application's device"
    assert found[CampaignFilter(own, device_id=device_id(1, 0))] > 0, "a deleted device"
    assert sum(found[CampaignFilter(own, status=s)] for s in CampaignStatus) == len(
        expected(tasks, CampaignFilter(own))
    )


async def test_an_empty_server_has_an_empty_list(database: Database) -> None:
    for build in LISTS:
        assert await (await build(database)).page(CampaignFilter(ApplicationKey(1)), 0, 10) == (0, ())
