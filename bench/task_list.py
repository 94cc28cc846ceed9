#!/usr/bin/env python3
"""The task list at a million tasks, inside the server, while tasks change: the index beside the plain SQL.

    python bench/task_list.py                       both engines, 1,000,000 tasks, five rounds (some ten minutes)
    python bench/task_list.py --tasks 100000        less of everything
    python bench/task_list.py --engine sqlite       one engine

A round is every combination of the six filters, each with the first, the middle and the last page of 100, in random
order: as requests to the compatible API (in the process: routing, token, list, JSON; no socket), while 500 tasks a
second change their status through the writer. A sample of the same pages is then asked of the plain SQL. Times are of
the samples of all rounds together, ratios are medians over the rounds; `results/list.json` has them.

A shared machine takes the core away for milliseconds at a time. The kernel tells for how long a runnable thread had to
wait for one, so each sample is either undisturbed (ours and PostgreSQL's waited for less than 0.3 ms) or not, and the
figures of both kinds are kept: `all` and `undisturbed`, with how many there were. `others_pct` is the CPU others took.
"""

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from compare import machine
from inside import (
    ENGINES,
    Cpu,
    Engine,
    Metrics,
    Stopwatch,
    engine,
    get,
    own_rss_mib,
    run,
    say,
    shape,
    shapes,
    timed,
)
from list_data import STATUSES, Size, device_of, fill, products
from server import HERE, WORK

from openiodm.access.model import ApplicationKey
from openiodm.app import answer_evenly
from openiodm.campaigns.model import CampaignFilter, CampaignKey, CampaignKind
from openiodm.campaigns.states import CampaignStatus
from openiodm.front import Front
from openiodm.rooms import Rooms, open_rooms
from openiodm.settings import Settings
from openiodm.storage.campaign_list import IndexedCampaignList
from openiodm.storage.campaign_reads import SqlCampaignList
from openiodm.storage.work import Work

RESULTS = HERE / "results" / "list.json"
TARGET_P99_MS = 5.0
TARGET_START_S = 3.0
TARGET_MIB = 30.0
PAGE_SIZE = 100
CHANGES_PER_S = 500
TICK_S = 0.02
PLAIN_SAMPLE = 60  # pages of plain SQL a round: the slow ones take a second each
PAUSE_S = 0.002
PATH = "/iodm/northbound/v1.5.0/operations"
FIELDS = ("operationType", "operationStatus", "deviceType", "model", "manufacturerName", "deviceId")


@dataclass(frozen=True)
class Query:
    """One page: which application, which filters, which part of the list."""

    application: int
    values: tuple[str | None, ...]  # in the order of FIELDS
    part: str  # first, middle or last

    def where(self) -> CampaignFilter:
        kind, status, device_type, model, maker, device = self.values
        return CampaignFilter(
            ApplicationKey(self.application),
            None if kind is None else CampaignKind(kind),
            None if status is None else CampaignStatus(status),
            device_type,
            model,
            maker,
            device,
        )

    def number(self, total: int) -> int:
        last = max(0, (total - 1) // PAGE_SIZE)
        return {"first": 0, "middle": last // 2, "last": last}[self.part]


def queries(size: Size, dice: random.Random) -> Iterator[Query]:
    """All 64 sets of filters, each with its three pages. Most values are common ones, some are rare."""
    every = products()
    for given in itertools.product((False, True), repeat=len(FIELDS)):
        application = dice.randint(1, size.applications)
        product = every[min(int(dice.expovariate(0.1)), len(every) - 1)]
        values: tuple[str, ...] = (
            dice.choice(["firmware_upgrade", "firmware_upgrade", "software_upgrade"]),
            dice.choice(["success", "success", *STATUSES]),
            product.device_type,
            product.model,
            product.maker,
            f"dev-{application if dice.random() < 0.1 else device_of(dice, application, size)}",
        )
        for part in ("first", "middle", "last"):
            yield Query(application, tuple(v if g else None for v, g in zip(values, given, strict=True)), part)


class Bench:
    """One engine's server, in this process."""

    def __init__(self, rooms: Rooms, size: Size, watch: Stopwatch) -> None:
        self.rooms = rooms
        self.watch = watch
        self.size = size
        self.front = Front(rooms, applications=True, devices=False)
        self.plain = SqlCampaignList(rooms.database)
        self.tokens: list[tuple[bytes, bytes]] = []
        self.changed = 0

    @property
    def index(self) -> IndexedCampaignList:
        (found,) = (i for i in self.rooms.indexes if isinstance(i, IndexedCampaignList))
        return found

    async def request(self, query: Query, number: int) -> int:
        """A request as uvicorn hands it on; the total it was answered with."""
        asked = {k: v for k, v in zip(FIELDS, query.values, strict=True) if v is not None}
        asked |= {"pageNo": str(number), "pageSize": str(PAGE_SIZE)}
        app_id, token = self.tokens[query.application - 1]
        headers = [(b"app_key", app_id), (b"authorization", b"Bearer " + token)]
        answer = await get(self.front, PATH, asked, headers)
        return int(answer["totalCount"])

    @contextlib.asynccontextmanager
    async def changing(self, per_s: int) -> AsyncIterator[None]:
        """Tasks change their status, some at once, each a command of its own."""
        dice = random.Random(5)
        stop = asyncio.Event()

        async def change() -> None:
            key, status = CampaignKey(dice.randint(1, self.size.tasks)), CampaignStatus(dice.choice(STATUSES))

            async def command(work: Work) -> None:
                await work.campaigns.set_status(key, status)

            await self.rooms.writer.run(command)
            self.changed += 1

        async def run() -> None:
            due = time.perf_counter()
            while not stop.is_set():
                await asyncio.gather(*(change() for _ in range(int(per_s * TICK_S))))
                due += TICK_S
                await asyncio.sleep(max(0.0, due - time.perf_counter()))

        task = asyncio.create_task(run())
        try:
            yield
        finally:
            stop.set()
            await task


async def round_of(bench: Bench, number: int) -> Metrics:
    dice = random.Random(number)
    asked = list(queries(bench.size, dice))
    dice.shuffle(asked)
    requests, inside, plain, again = [], [], [], []
    began, changed = time.perf_counter(), bench.changed
    bench.watch.look_around()
    async with bench.changing(CHANGES_PER_S):
        await asyncio.sleep(0.5)
        for query in asked:
            total, _ = await bench.index.page(query.where(), 0, 1)
            page = query.number(total)
            await asyncio.sleep(PAUSE_S)
            requests.append(await bench.watch.time(lambda q=query, p=page: bench.request(q, p)))
            await asyncio.sleep(PAUSE_S)
            inside.append(await bench.watch.time(lambda q=query, p=page: bench.index.page(q.where(), p, PAGE_SIZE)))
        rate = (bench.changed - changed) / (time.perf_counter() - began)
        for query in dice.sample(asked, PLAIN_SAMPLE):
            total, _ = await bench.index.page(query.where(), 0, 1)
            page = query.number(total)
            again.append(await bench.watch.time(lambda q=query, p=page: bench.index.page(q.where(), p, PAGE_SIZE)))
            plain.append(await bench.watch.time(lambda q=query, p=page: bench.plain.page(q.where(), p, PAGE_SIZE)))
    if not bench.index.ready:
        raise SystemExit("the index was lost under way")
    return {
        "samples": {"request_ms": requests, "list_ms": inside, "plain_sql_ms": plain},
        "ratio_p99": round(shape(plain)["p99"] / shape(again)["p99"], 1),
        "ratio_p50": round(shape(plain)["p50"] / shape(again)["p50"], 1),
        "changes_per_s": round(rate),
    }


async def built(bench: Bench) -> Metrics:
    """Start-up: how long until the index is there, what it takes, and for how long it ever held up the loop."""
    gc.collect()
    before = own_rss_mib()
    longest, over = 0.0, asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not over.is_set():
            longest = max(longest, await timed(lambda: asyncio.sleep(0.001)) - 1)

    watcher = asyncio.create_task(watch())
    cpu = time.process_time()
    seconds = await timed(bench.index.build) / 1000
    cpu = time.process_time() - cpu
    over.set()
    await watcher
    gc.collect()
    after = own_rss_mib()
    index = bench.index._bitmaps
    assert index is not None
    bitmaps = [index._all, *index._of.values()]
    return {
        "build_s": round(seconds, 2),
        "build_cpu_s": round(cpu, 2),
        "build_longest_stretch_ms": round(longest, 1),
        "bitmaps": len(bitmaps),
        "bitmaps_mib": round(sum(len(b.serialize()) for b in bitmaps) / 2**20, 1),
        "rss_growth_mib": round(after - before, 1),
    }


async def measure(engine: Engine, size: Size, rounds: int) -> Metrics:
    settings = Settings(data_dir=str(WORK / "list"), database=engine.url, calls_per_minute=0, native_calls_per_minute=0)
    async with open_rooms(settings) as rooms:
        answer_evenly()
        bench = Bench(rooms, size, Stopwatch(engine.postmaster))
        began = time.perf_counter()
        made = [await rooms.access.create_application(f"app {n}") for n in range(size.applications)]
        await fill(engine.url, size)
        say(f"{size.tasks} tasks are there after {time.perf_counter() - began:.0f} s")
        for each in made:
            login = await rooms.access.login(each.app_id, each.secret)
            bench.tokens.append((each.app_id.encode(), login.access_token.encode()))
        cpu = Cpu(engine.pids)
        start = await built(bench)
        say(f"index: {start}")
        bench.index.start()
        await round_of(bench, 0)  # caches are warm and statements prepared
        results = []
        for number in range(1, rounds + 1):
            results.append(await round_of(bench, number))
            say(f"round {number}: {shown(results[-1])}")
        await bench.index.close()
    return {**start, **together(results), "others_pct": cpu.others_pct()}


def shown(one: Metrics) -> Metrics:
    return {**{k: shapes(v) for k, v in one["samples"].items()}, **{k: v for k, v in one.items() if k != "samples"}}


def together(rounds: list[Metrics]) -> Metrics:
    """The shapes of all samples, and the medians of the rest."""
    kinds = rounds[0]["samples"]
    found: Metrics = {kind: shapes([s for one in rounds for s in one["samples"][kind]]) for kind in kinds}
    rest = [key for key in rounds[0] if key != "samples"]
    return found | {key: round(statistics.median(one[key] for one in rounds), 3) for key in rest}


def table(results: dict[str, Metrics]) -> str:
    lines = [f"{'':44}" + "".join(f"{name:>12}" for name in results)]

    def row(title: str, value: Callable[[Metrics], float]) -> None:
        lines.append(f"{title:44}" + "".join(f"{value(m):>12,.2f}" for m in results.values()))

    for kind, title in (("request_ms", "request"), ("list_ms", "list alone"), ("plain_sql_ms", "plain SQL")):
        for which in ("undisturbed", "all"):
            for part in ("p50", "p99", "max", "n"):
                row(f"{title}, {which}, {part}", lambda m, k=kind, w=which, p=part: m[k][w][p])
    row("plain SQL / index, p99", lambda m: m["ratio_p99"])
    row("plain SQL / index, p50", lambda m: m["ratio_p50"])
    row("status changes a second", lambda m: m["changes_per_s"])
    row("start: building the index, s", lambda m: m["build_s"])
    row("start: longest stretch on the loop, ms", lambda m: m["build_longest_stretch_ms"])
    row("memory: bitmaps, MiB", lambda m: m["bitmaps_mib"])
    row("memory: growth of the process, MiB", lambda m: m["rss_growth_mib"])
    row("CPU others took, %", lambda m: m["others_pct"])
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--applications", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args()
    size = Size(options.tasks, options.applications, max(options.tasks // 10, options.applications))
    results: dict[str, Metrics] = {}
    for name in ENGINES:
        if options.engine in (None, name):
            with engine(name) as found:
                results[name] = run(measure(found, size, options.rounds))
    report = {
        "list_p99_ms": {name: m["request_ms"]["undisturbed"]["p99"] for name, m in results.items()},
        "ratios": {"list": round(min(m["ratio_p99"] for m in results.values()), 1)},
        "tasks": options.tasks,
        "applications": options.applications,
        "machine": machine(),
        "engines": results,
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(table(results))
    scale = 1_000_000 / options.tasks
    met = all(
        m["request_ms"]["undisturbed"]["p99"] < TARGET_P99_MS
        and m["build_s"] * scale < TARGET_START_S
        and m["rss_growth_mib"] * scale < TARGET_MIB
        for m in results.values()
    )
    return int(options.check and not met)


if __name__ == "__main__":
    sys.exit(main())
