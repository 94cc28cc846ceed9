#!/usr/bin/env python3
"""Pages of one task's sub-tasks at a million of them, inside the server, while devices are granted their turn.

    python bench/subtask_pages.py                       both engines, 1,000,000 sub-tasks, five rounds
    python bench/subtask_pages.py --rows 100000         less of everything

A round is each status and none, each with 16 pages of 100 from the first to the last, in random order: as requests to
the compatible API, while 500 waiting devices a second make contact and are granted their turn by the real core. The
same pages are then asked of the plain SQL. How samples are taken and shown is told in `task_list.py`. The result is
`results/subtasks.json`.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from compare import machine
from inside import ENGINES, Cpu, Engine, Metrics, Stopwatch, engine, get, own_rss_mib, run, say, shape, shapes
from server import HERE, WORK

from openiodm.access.model import Actor, ApplicationKey
from openiodm.app import answer_evenly
from openiodm.campaigns.model import Campaign
from openiodm.campaigns.rollout import Contact
from openiodm.campaigns.states import UpgradeState
from openiodm.devices.model import DeviceKey
from openiodm.front import Front
from openiodm.rooms import Rooms, open_rooms
from openiodm.settings import Settings
from openiodm.storage.campaign_reads import SqlCampaignReads
from openiodm.storage.upgrade_pages import IndexedCampaignReads

RESULTS = HERE / "results" / "subtasks.json"
TARGET_MS = 10.0
PAGE_SIZE = 100
DEPTHS = 16
CONTACTS_PER_S = 500
TICK_S = 0.02
PAUSE_S = 0.002
PLAIN_SAMPLE = 24
OPERATION = f"{1:032x}"
PATH = f"/iodm/northbound/v1.5.0/operations/{OPERATION}/subOperations"
BORN = 1_700_000_000_000

# status of the contract -> the states it stands for
FILTERS: dict[str, list[UpgradeState] | None] = {
    "": None,
    "wait": [UpgradeState.WAIT],
    "processing": [
        UpgradeState.OFFERED,
        UpgradeState.DOWNLOADING,
        UpgradeState.DOWNLOADED,
        UpgradeState.INSTALLING,
        UpgradeState.VERIFYING,
        UpgradeState.CANCELLING,
    ],
    "success": [UpgradeState.SUCCESS],
    "fail": [UpgradeState.FAIL, UpgradeState.TIMEOUT],
    "stop": [UpgradeState.STOP],
}
COUNTER = {"": "total"} | {status: status for status in FILTERS if status}

# A state for each hundredth part of the rows; `x` spreads them over the ordinals.
STATE = """CASE WHEN x < 30 THEN 'success' WHEN x < 40 THEN 'fail' WHEN x < 45 THEN 'timeout' WHEN x < 50 THEN 'stop'
WHEN x < 60 THEN 'downloading' WHEN x < 65 THEN 'installing' WHEN x < 70 THEN 'offered' ELSE 'wait' END"""
NUMBERS = """WITH RECURSIVE n(i) AS (SELECT CAST(1 AS bigint) UNION ALL SELECT i + 1 FROM n WHERE i < {rows}),
r AS (SELECT i, (i * i * 31 + i * 17 + i / 97) % 100 AS x FROM n)"""
FILL = (
    "INSERT INTO blob (sha256, sha1, md5, size, created_at) VALUES ('aa', 'bb', 'cc', 3, 0)",
    "INSERT INTO product (id, device_type, model, manufacturer_name) VALUES (1, 't', 'm', 'x')",
    """INSERT INTO package (id, file_id, application_id, file_type, name, version, product_id, source_versions, extra,
    sha256, uploaded_at) VALUES (1, 'f', 1, 'firmwarePackage', 'n', '2.0', 1, '[]', '{{}}', 'aa', 0)""",
    NUMBERS
    + """INSERT INTO device (id, device_id, application_id, node_id, product_id, reports_fw, reports_sw,
    self_registered, attributes, attributes_wanted, info, activation_timeout, registered_at, modified_at, attempt_seq)
    SELECT i, 'dev-' || i, 1, 'node-' || i, 1, FALSE, FALSE, FALSE, '{{}}', FALSE, '{{}}', 0, 0, 0, 1 FROM r""",
    """INSERT INTO campaign (id, operation_id, application_id, kind, package_id, product_id, device_type, model,
    manufacturer_name, target_version, policy_given, execute_type, retry_times, round, confirmation, clocks, status,
    work, stopped_by_operator, created_at) VALUES (1, '{operation}', 1, 'firmware_upgrade', 1, 1, 't', 'm', 'x', '2.0',
    FALSE, 'now', 0, 0, FALSE, '{clocks}', 'processing', 'idle', FALSE, {born})""",
    NUMBERS
    + f"""INSERT INTO upgrade (public_id, campaign_id, ordinal, device_id, state, round, action_id, created_at,
    started_at, finished_at, due_at) SELECT 'sub-' || i, 1, i, i, {STATE}, 0, CASE WHEN x < 70 THEN 1 END, {{born}},
    CASE WHEN x < 70 THEN {{born}} END, CASE WHEN x < 50 THEN {{born}} END, NULL FROM r""",
    """INSERT INTO campaign_counters (campaign_id, open, total, wait, processing, success, fail, stop, timeout)
    SELECT 1, TRUE, count(*), sum(CASE WHEN state = 'wait' THEN 1 ELSE 0 END),
    sum(CASE WHEN state IN ('downloading', 'installing', 'offered') THEN 1 ELSE 0 END),
    sum(CASE WHEN state = 'success' THEN 1 ELSE 0 END), sum(CASE WHEN state = 'fail' THEN 1 ELSE 0 END),
    sum(CASE WHEN state = 'stop' THEN 1 ELSE 0 END), sum(CASE WHEN state = 'timeout' THEN 1 ELSE 0 END)
    FROM upgrade""",
)
CLOCKS = '{{"online": 864000000, "download": 864000000, "install": 864000000, "verify": 864000000, "cancel": 600000}}'


class Bench:
    """One engine's server, in this process, with one large task of application 1."""

    def __init__(self, rooms: Rooms, rows: int, watch: Stopwatch, headers: list[tuple[bytes, bytes]]) -> None:
        self.rooms = rooms
        self.rows = rows
        self.watch = watch
        self.headers = headers
        self.front = Front(rooms, applications=True, devices=False)
        self.plain = SqlCampaignReads(rooms.database)
        self.granted = 0
        self._next = 0

    @property
    def reads(self) -> IndexedCampaignReads:
        (found,) = (i for i in self.rooms.indexes if isinstance(i, IndexedCampaignReads))
        return found

    async def campaign(self) -> Campaign:
        return await self.rooms.campaign_queries.one(Actor(ApplicationKey(1), ""), OPERATION)

    async def request(self, status: str, number: int) -> int:
        query = {"pageNo": str(number), "pageSize": str(PAGE_SIZE)} | ({"subOperationStatus": status} if status else {})
        answer = await get(self.front, PATH, query, self.headers)
        return int(answer["totalCount"])

    @contextlib.asynccontextmanager
    async def contacts(self) -> AsyncIterator[None]:
        """Devices make contact, some at once; three of ten wait and are granted their turn."""
        stop = asyncio.Event()

        async def contact() -> None:
            self._next = self._next % self.rows + 1
            await self.rooms.campaigns.signal(DeviceKey(self._next), Contact())
            self.granted += 1

        async def all_of_them() -> None:
            due = time.perf_counter()
            while not stop.is_set():
                await asyncio.gather(*(contact() for _ in range(int(CONTACTS_PER_S * TICK_S))))
                due += TICK_S
                await asyncio.sleep(max(0.0, due - time.perf_counter()))

        task = asyncio.create_task(all_of_them())
        try:
            yield
        finally:
            stop.set()
            await task


async def round_of(bench: Bench, number: int) -> Metrics:
    dice = random.Random(number)
    asked = [(status, depth) for status in FILTERS for depth in range(DEPTHS)]
    dice.shuffle(asked)
    bench.watch.look_around()
    filtered, unfiltered, plain, again = [], [], [], []
    began, granted = time.perf_counter(), bench.granted
    async with bench.contacts():
        for status, depth in asked:
            counters = (await bench.campaign()).counters
            total = counters.fail + counters.timeout if status == "fail" else getattr(counters, COUNTER[status])
            page = (total - 1) // PAGE_SIZE * depth // (DEPTHS - 1)
            await asyncio.sleep(PAUSE_S)
            sample = await bench.watch.time(lambda s=status, p=page: bench.request(s, p))
            (filtered if status else unfiltered).append(sample)
        rate = (bench.granted - granted) / (time.perf_counter() - began)
        for status, depth in dice.sample([a for a in asked if a[0]], PLAIN_SAMPLE):
            campaign, states = await bench.campaign(), FILTERS[status]
            counters = campaign.counters
            total = counters.fail + counters.timeout if status == "fail" else getattr(counters, COUNTER[status])
            page = (total - 1) // PAGE_SIZE * depth // (DEPTHS - 1)
            for reads, into in ((bench.reads, again), (bench.plain, plain)):
                into.append(
                    await bench.watch.time(
                        lambda r=reads, c=campaign, s=states, p=page: r.upgrades_page(c, s, p, PAGE_SIZE)
                    )
                )
    if not bench.reads.holds((await bench.campaign()).key):
        raise SystemExit("the bitmaps were lost under way")
    return {
        "samples": {"filtered_ms": filtered, "unfiltered_ms": unfiltered, "plain_sql_ms": plain},
        "ratio_p99": round(shape(plain)["p99"] / shape(again)["p99"], 1),
        "contacts_per_s": round(rate),
    }


async def measure(engine: Engine, rows: int, rounds: int) -> Metrics:
    settings = Settings(data_dir=str(WORK / "list"), database=engine.url, calls_per_minute=0, native_calls_per_minute=0)
    async with open_rooms(settings) as rooms:
        answer_evenly()
        began = time.perf_counter()
        made = await rooms.access.create_application("bench")
        async with rooms.database.transaction() as tx:
            for statement in FILL:
                values = {"rows": rows, "operation": OPERATION, "born": BORN, "clocks": CLOCKS.format()}
                await tx.execute(statement.format(**values))
        async with rooms.database.transaction() as tx:
            await tx.execute("ANALYZE")
        say(f"{rows} sub-tasks are there after {time.perf_counter() - began:.0f} s")
        login = await rooms.access.login(made.app_id, made.secret)
        headers = [(b"app_key", made.app_id.encode()), (b"authorization", f"Bearer {login.access_token}".encode())]
        bench = Bench(rooms, rows, Stopwatch(engine.postmaster), headers)
        cpu = Cpu(engine.pids)
        key = (await bench.campaign()).key
        before, began, cpu_before = own_rss_mib(), time.perf_counter(), time.process_time()
        await bench.reads.build(key)
        built = {
            "build_s": round(time.perf_counter() - began, 2),
            "build_cpu_s": round(time.process_time() - cpu_before, 2),
            "rss_growth_mib": round(own_rss_mib() - before, 1),
        }
        say(str(built))
        bench.reads.start()
        await round_of(bench, 0)
        results = []
        for number in range(1, rounds + 1):
            results.append(await round_of(bench, number))
            say(f"round {number}: {[(k, shapes(v)) for k, v in results[-1]['samples'].items()]}")
        await bench.reads.close()
    kinds = results[0]["samples"]
    found: Metrics = {kind: shapes([s for one in results for s in one["samples"][kind]]) for kind in kinds}
    for name in ("ratio_p99", "contacts_per_s"):
        found[name] = statistics.median(one[name] for one in results)
    return {**built, **found, "others_pct": cpu.others_pct()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args()
    results: dict[str, Metrics] = {}
    for name in ENGINES:
        if options.engine in (None, name):
            with engine(name) as found:
                results[name] = run(measure(found, options.rows, options.rounds))
    report = {"rows": options.rows, "machine": machine(), "engines": results}
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    met = all(
        m[kind]["undisturbed"]["p99"] < TARGET_MS for m in results.values() for kind in ("filtered_ms", "unfiltered_ms")
    )
    return int(options.check and not met)


if __name__ == "__main__":
    sys.exit(main())
