"""The real core on SQLite, driven by chance: many devices and campaigns, everything that can happen to them, any order.

Jobs run in steps of two rows, so that stops, reports and clocks fall between the pieces of a sweep, an expansion or a
retry round; a step may also be the last that its server does, and the job comes back when the lease is over. After
every step the laws hold over all rows, and from wherever the machine stops every campaign can be brought to its end.
"""

import asyncio
import itertools
import os
import random
import shutil
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from openiodm.campaigns import endings
from openiodm.campaigns import jobs as campaign_jobs
from openiodm.campaigns.model import CampaignKind, Counters, ExecuteType, Policy
from openiodm.campaigns.rollout import CancelAnswer, Confirmation, Contact, Expiry, Progress, Result, Versions, What
from openiodm.campaigns.states import CAMPAIGN_FINAL, FINAL, GRANTED, CampaignStatus, UpgradeEvent, UpgradeState
from openiodm.clock import DAY, MINUTE, Instant
from openiodm.errors import Reason, Refusal
from openiodm.scheduler.model import LEASE_MS, Job, JobHandler
from openiodm.scheduler.runner import Scheduler
from openiodm.storage.engine import Database
from openiodm.storage.sqlite import SqliteDatabase
from openiodm.storage.writer import Lane
from tests.conftest import ManualClock
from tests.support.core import CLOCKS, LOG, Core, build_core

CHUNK = 2  # rows a step of a job
MAX_STEPS = 10_000
MAX_DEVICES = 8
ROUNDS_TO_THE_END = 60

T = TypeVar("T")

chance = st.integers(0, 2**32 - 1)
PHASES = (UpgradeEvent.DOWNLOAD_STARTED, UpgradeEvent.DOWNLOADED, UpgradeEvent.INSTALL_STARTED)


class Died(Exception):
    """The server is gone: nothing it does from now on reaches the database."""


class Mortal:
    """What a scheduler submits to, for a server that lives for so many steps and takes its jobs in any order."""

    def __init__(self, core: Core, dice: random.Random, steps: int) -> None:
        self._core = core
        self._dice = dice
        self._left = steps

    async def quick(self, command: Any) -> Any:
        if self._left < 0:
            raise Died
        result = await self._core.writer.run(command)
        if isinstance(result, list):
            self._dice.shuffle(result)
        return result

    async def slow(self, command: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise Died
        return await self._core.writer.run(command, Lane.CHUNK)


class Watched:
    """A job handler whose failures do not end in a log."""

    def __init__(self, handler: JobHandler, failures: list[BaseException]) -> None:
        self._handler = handler
        self._failures = failures

    async def run(self, work: Any, job: Job, now: Instant) -> Any:
        try:
            return await self._handler.run(work, job, now)
        except BaseException as error:
            self._failures.append(error)
            raise


def scheduler(core: Core, server: Mortal, failures: list[BaseException]) -> Scheduler:
    handlers = {k: Watched(h, failures) for k, h in campaign_jobs.handlers(core.database.engine).items()}
    return Scheduler("test", core.clock, server.quick, server.slow, handlers, alone=False)


class Campaigns(RuleBasedStateMachine):
    """One application's fleet. Each rule is something that a device, an application, a clock or a job does."""

    template: Path
    folder: Path
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        path = self.folder / f"{next(self.numbers)}.db"
        shutil.copy(self.template, path)
        self.path = path
        self.clock = ManualClock()
        self.core: Core = self.do(self._build(path))
        self.devices = 0
        self.deleted: set[int] = set()
        self.groups: list[str] = []
        self.operations: list[str] = []
        self.failures: list[BaseException] = []  # of job handlers
        self.stopped: dict[str, int] = {}  # operation -> newest history row when its stop was committed

    async def _build(self, path: Path) -> Core:
        return await build_core(SqliteDatabase(path), self.clock)

    def do(self, what: Awaitable[T]) -> T:
        async def run() -> T:
            return await what

        return self.runner.run(run())

    def try_to(self, what: Awaitable[T]) -> tuple[T | None, Reason | None]:
        """The result, or the reason why not."""
        try:
            return self.do(what), None
        except Refusal as refusal:
            return None, refusal.reason

    def teardown(self) -> None:
        try:
            self.do(self._drive_to_the_end())
        finally:
            self.do(self.core.writer.close())
            self.do(self.core.database.close())
            self.runner.close()
            for path in self.folder.glob(f"{self.path.name}*"):
                path.unlink()

    # -- fleet

    @initialize(count=st.integers(2, 5), version=st.sampled_from(["V1", "V1", None]))
    def first_devices(self, count: int, version: str | None) -> None:
        self.do(self.core.add_devices(count, version))
        self.devices = count

    @precondition(lambda self: self.devices < MAX_DEVICES)
    @rule(version=st.sampled_from([None, "V0", "V1", "V2"]))
    def add_device(self, version: str | None) -> None:
        self.do(self.core.add_devices(1, version, first=self.devices + 1))
        self.devices += 1

    @precondition(lambda self: len(self.groups) < 3)
    @rule(seed=chance)
    def add_group(self, seed: int) -> None:
        dice = random.Random(seed)
        first = dice.randint(1, self.devices)
        name = f"g{len(self.groups)}"
        self.do(self.core.add_group(name, first, dice.randint(1, self.devices)))
        self.groups.append(name)

    @precondition(lambda self: len(self.deleted) < self.devices // 2)
    @rule(seed=chance)
    def delete_device(self, seed: int) -> None:
        device = random.Random(seed).choice(self._living())
        self.deleted.add(device)

        async def delete(work: Any) -> None:
            await work.tx.execute("DELETE FROM group_member WHERE device_id = $1", device)
            await work.tx.execute("UPDATE device SET deleted_at = $2 WHERE id = $1", device, self.clock.now())
            await self.core.commands.device_deleted(work, device, self.clock.now())

        self.do(self.core.writer.run(delete))

    @rule(seed=chance, more=st.sampled_from([0, 0, 1, 3]))
    def swap_hardware(self, seed: int, more: int) -> None:
        """Another node id, which may have had more attempts than this one."""
        device = random.Random(seed).choice(self._living())

        async def swap(work: Any) -> None:
            await work.tx.execute("UPDATE device SET attempt_seq = attempt_seq + $2 WHERE id = $1", device, more)
            await self.core.commands.node_id_changed(work, device)

        self.do(self.core.writer.run(swap))

    def _living(self) -> list[int]:
        return [n for n in range(1, self.devices + 1) if n not in self.deleted]

    # -- applications

    @precondition(lambda self: len(self.operations) < 8)
    @rule(seed=chance, times=st.sampled_from([0, 0, 1, 2]), groups=st.booleans(), asking=st.sampled_from([0, 0, 1]))
    def create(self, seed: int, times: int, groups: bool, asking: int) -> None:
        dice = random.Random(seed)
        policy = Policy(retry_times=times)
        if dice.random() < 0.3:
            start = self.clock.now() + dice.choice([-MINUTE, 0, 30 * MINUTE])
            end = self.clock.now() + dice.choice([20 * MINUTE, 90 * MINUTE, 2 * DAY])
            policy = Policy(ExecuteType.CUSTOM, Instant(start), Instant(max(end, start + 5 * MINUTE)), times)
        if groups and self.groups:
            target: dict[str, Any] = {"groups": dice.sample(self.groups, dice.randint(1, len(self.groups)))}
        else:
            living = self._living()
            chosen = dice.sample(living, dice.randint(1, len(living)))
            target = {"devices": [f"d{n}" for n in chosen]}
        kind, file = dice.choice(
            [(CampaignKind.FIRMWARE, "f1")] * 4 + [(CampaignKind.FIRMWARE, "f-from-V0"), (CampaignKind.SOFTWARE, "s1")]
        )
        most = dice.choice([None, None, 1, 2])
        asked = self.core.create(
            **target, policy=policy, kind=kind, file_id=file, confirmation=bool(asking), max_concurrent=most
        )
        operation, refused = self.try_to(asked)
        if operation is None:
            assert refused is Reason.TARGET_MISMATCH  # every member of the groups was deleted
            assert "groups" in target
        else:
            self.operations.append(operation)

    @precondition(lambda self: self.operations)
    @rule(seed=chance)
    def stop(self, seed: int) -> None:
        operation = random.Random(seed).choice(self.operations)
        ended = self.do(self.core.queries.one(self.core.actor, operation)).status in CAMPAIGN_FINAL
        _, refused = self.try_to(self.core.commands.stop(self.core.actor, operation))
        assert refused is (Reason.CAMPAIGN_FINISHED if ended else None)
        if not ended:
            newest = self.do(self.core.database.fetchval("SELECT max(id) FROM history"))
            self.stopped[operation] = newest or 0

    @precondition(lambda self: self.operations)
    @rule(seed=chance)
    def retry(self, seed: int) -> None:
        operation = random.Random(seed).choice(self.operations)
        status = self.do(self.core.queries.one(self.core.actor, operation)).status
        _, refused = self.try_to(self.core.commands.retry(self.core.actor, operation))
        if status is CampaignStatus.FAILED:
            assert refused in (None, Reason.NOTHING_TO_RETRY)
        else:
            assert refused is Reason.CAMPAIGN_FINISHED

    @precondition(lambda self: self.operations)
    @rule(seed=chance)
    def stop_one_device(self, seed: int) -> None:
        dice = random.Random(seed)
        operation, device = dice.choice(self.operations), dice.choice(self._living())
        _, refused = self.try_to(self.core.commands.stop_device(self.core.actor, operation, f"n{device}"))
        assert refused in (None, Reason.UPGRADE_UNKNOWN, Reason.UPGRADE_CLOSED)

    # -- devices

    @rule(seed=chance, count=st.integers(1, 4))
    def contacts(self, seed: int, count: int) -> None:
        """Some at once, the same device among them twice or not."""
        dice = random.Random(seed)
        self._signal([(dice.choice(self._living()), Contact()) for _ in range(count)])

    @rule(seed=chance, count=st.integers(1, 5))
    def reports(self, seed: int, count: int) -> None:
        """Some in one batch: early, late, repeated, of the open attempt and of others."""
        dice = random.Random(seed)
        heard = [(n := dice.choice(self._living()), self._report(dice, n)) for _ in range(count)]
        self._signal(heard + heard[: dice.randint(0, 2)])

    @rule(seed=chance)
    def one_device_goes_its_whole_way(self, seed: int) -> None:
        dice = random.Random(seed)
        device = dice.choice(self._living())
        self._signal([(device, Contact())])
        number = self._attempt(device)
        for event in PHASES:
            if dice.random() < 0.7:
                self._signal([(device, Progress(number, LOG, event))])
        self._signal([(device, Result(number, dice.random() < 0.5, LOG, timed_out=dice.random() < 0.2))])

    @rule(seed=chance, version=st.sampled_from(["V0", "V1", "V2", "V2"]))
    def tell_version(self, seed: int, version: str) -> None:
        device = random.Random(seed).choice(self._living())

        async def tell(work: Any) -> None:
            sql = "UPDATE device SET fw_version = $2, reports_fw = TRUE WHERE id = $1"
            await work.tx.execute(sql, device, version)

        self.do(self.core.writer.run(tell))
        self._signal([(device, Versions(fw=version))])

    def _attempt(self, device: int) -> int:
        number: int = self.do(self.core.database.fetchval("SELECT attempt_seq FROM device WHERE id = $1", device))
        return number

    def _report(self, dice: random.Random, device: int) -> What:
        number = self._attempt(device) + dice.choice([0, 0, 0, 0, -1, -2, 1])
        kind = dice.choice(["progress", "progress", "result", "result", "cancel", "confirm"])
        if kind == "progress":
            return Progress(number, LOG, dice.choice([None, *PHASES]))
        if kind == "result":
            return Result(number, dice.random() < 0.5, LOG, detail="broken", timed_out=dice.random() < 0.1)
        if kind == "cancel":
            return CancelAnswer(number, dice.choice([None, True, False]), LOG)
        return Confirmation(number, dice.random() < 0.7, LOG)

    def _signal(self, signals: list[tuple[int, What]]) -> None:
        async def together() -> list[Any]:
            return await asyncio.gather(*(self.core.signal(n, what) for n, what in signals))

        for (device, _), outcome in zip(signals, self.do(together()), strict=True):
            assert outcome.standing is None or outcome.standing.device == device

    # -- time and jobs

    @rule(minutes=st.sampled_from([1, 5, 11, 31, 61, 24 * 60]))
    def time_passes(self, minutes: int) -> None:
        self.clock.advance(minutes * MINUTE)

    @rule()
    def clocks_run_out(self) -> None:
        self.do(self._sweep_clocks())

    @rule()
    def jobs_run(self) -> None:
        self.do(self._run_jobs())

    @rule(seed=chance, steps=st.integers(0, 3))
    def a_server_does_a_few_steps_and_dies(self, seed: int, steps: int) -> None:
        """Nothing is lost: its jobs come back, from where they were, when the leases are over."""
        self.do(self._scheduler(Mortal(self.core, random.Random(seed), steps)).run_due())
        self.clock.advance(LEASE_MS + 1)

    def _scheduler(self, server: Mortal) -> Scheduler:
        return scheduler(self.core, server, self.failures)

    async def _run_jobs(self) -> None:
        scheduler = self._scheduler(Mortal(self.core, random.Random(0), MAX_STEPS))
        while await scheduler.run_due():
            pass

    async def _sweep_clocks(self) -> None:
        for device in await self.core.reads.due(self.clock.now(), 100):
            await self.core.signal(device, Expiry())

    # -- what always holds

    @invariant()
    def laws(self) -> None:
        self.do(self.core.check_laws())

    @invariant()
    def no_job_fails(self) -> None:
        assert self.failures == []

    @invariant()
    def rows_make_sense(self) -> None:
        self.do(self._check_rows())

    async def _check_rows(self) -> None:
        fetch = self.core.database.fetch
        campaigns = {
            r["id"]: r for r in await fetch("SELECT * FROM campaign c JOIN campaign_counters k ON k.campaign_id = c.id")
        }
        for u in await fetch("SELECT * FROM upgrade"):
            state, campaign = UpgradeState(u["state"]), campaigns[u["campaign_id"]]
            assert (u["due_at"] is not None) is (state in GRANTED)
            assert (u["started_at"] is not None) or state not in GRANTED
            assert u["device_id"] not in self.deleted or state in FINAL
            if state not in FINAL and campaign["status"] in CAMPAIGN_FINAL:
                assert campaign["status"] == CampaignStatus.STOP, "a campaign ends after its devices, unless stopped"
        jobs = {r[0] for r in await fetch("SELECT subject FROM job")}
        for c in campaigns.values():
            ended = c["status"] in CAMPAIGN_FINAL
            assert (c["stopped_at"] is not None) is ended
            assert not (c["open"] and (ended or c["work"] == "expanding"))
            assert ended or c["processing"] or c["id"] in jobs, "neither a device nor a job will ever end it"
        await self._check_attempts()
        await self._check_stopped()

    async def _check_attempts(self) -> None:
        """Each attempt is granted once, a device's numbers rise, and an open attempt has the newest."""
        sql = "SELECT u.id FROM upgrade u JOIN device d ON d.id = u.device_id"
        assert not await self.core.database.fetch(f"{sql} WHERE u.finished_at IS NULL AND u.action_id <> d.attempt_seq")
        granted: dict[int, list[int]] = {}
        for device, number in await self.core.database.fetch(
            "SELECT u.device_id, h.action_id FROM history h JOIN upgrade u ON u.id = h.upgrade_id "
            "WHERE h.to_state = 'offered' ORDER BY h.id"
        ):
            granted.setdefault(device, []).append(number)
        for numbers in granted.values():
            assert numbers == sorted(set(numbers))

    async def _check_stopped(self) -> None:
        for operation, newest in self.stopped.items():
            late = await self.core.database.fetchval(
                "SELECT count(*) FROM history h JOIN upgrade u ON u.id = h.upgrade_id "
                "JOIN campaign c ON c.id = u.campaign_id "
                "WHERE c.operation_id = $1 AND h.id > $2 AND h.to_state = 'offered'",
                operation,
                newest,
            )
            assert late == 0, "law 5: no grant commits after the stop"

    # -- the end

    async def _drive_to_the_end(self) -> None:
        """Nobody speaks any more: clocks and jobs alone must end everything, in bounded time."""
        for _ in range(ROUNDS_TO_THE_END):
            await self._run_jobs()
            await self._sweep_clocks()
            unfinished = await self._unfinished()
            if not unfinished:
                break
            self.clock.advance(CLOCKS.online // 2)
        assert not unfinished, f"these never end: {unfinished}"
        await self._run_jobs()  # the last clock may have ended a task whose results are still to be told
        await self.core.check_laws()
        await self._check_rows()
        for operation in self.operations:
            assert (await self.core.queries.recount(self.core.actor, operation)).exact
        assert await self.core.database.fetchval("SELECT count(*) FROM job") == 0, "an ended campaign leaves no job"
        owed = await self.core.database.fetchval("SELECT count(*) FROM upgrade WHERE result_owed IS NOT NULL")
        assert owed == 0, "a result that nobody will ever be told"

    async def _unfinished(self) -> list[tuple[Any, ...]]:
        rows = await self.core.database.fetch(
            "SELECT c.id, c.status, c.work, k.wait, k.processing FROM campaign c "
            "JOIN campaign_counters k ON k.campaign_id = c.id "
            "WHERE c.status IN ('wait', 'processing') OR c.work <> 'idle' OR k.wait + k.processing > 0"
        )
        return [tuple(r) for r in rows]


def test_the_core_keeps_its_laws_whatever_comes(
    sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(campaign_jobs.CHUNK, "sqlite", CHUNK)
    monkeypatch.setitem(campaign_jobs.EXPAND_CHUNK, "sqlite", CHUNK)

    class Machine(Campaigns):
        template = sqlite_template
        folder = tmp_path

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=bool(os.environ.get("CI")),  # there the same stories each time; at a desk always new ones
        ),
    )


# -- stories that the machine has found


@pytest.fixture
async def core(database: Database, clock: ManualClock) -> AsyncIterator[Core]:
    built = await build_core(database, clock)
    yield built
    await built.check_laws()
    await built.writer.close()


async def work_off(core: Core) -> None:
    failures: list[BaseException] = []
    while await scheduler(core, Mortal(core, random.Random(0), MAX_STEPS), failures).run_due():
        pass
    assert failures == []


async def stands(core: Core, operation: str) -> tuple[CampaignStatus, Counters]:
    campaign = await core.queries.one(core.actor, operation)
    return campaign.status, campaign.counters


async def test_rounds_in_which_nobody_can_be_retried_follow_each_other_to_the_end(core: Core) -> None:
    """A job that is made due again by its own last step must not go with that step."""
    devices = await core.add_devices(2)
    await core.create(devices)
    conflicting = await core.create(devices, policy=Policy(retry_times=3))
    await work_off(core)
    assert await stands(core, conflicting) == (CampaignStatus.FAILED, Counters(total=2, fail=2))


async def test_every_round_has_its_own_online_clock(core: Core) -> None:
    task = await core.create(await core.add_devices(2), policy=Policy(retry_times=2))
    for _ in range(2):
        core.clock.advance(CLOCKS.online)
        await work_off(core)
        assert await stands(core, task) == (CampaignStatus.WAIT, Counters(total=2, wait=2))
    core.clock.advance(CLOCKS.online)
    await work_off(core)
    assert await stands(core, task) == (CampaignStatus.FAILED, Counters(total=2, timeout=2))


@pytest.mark.parametrize("kind", [endings.ONLINE, endings.WINDOW_END])
async def test_a_deadline_that_passes_before_the_expansion_is_done_is_not_forgotten(core: Core, kind: str) -> None:
    await core.add_devices(3)
    await core.add_group("g", 1, 3)
    now = core.clock.now()
    policy = Policy(ExecuteType.CUSTOM, now, Instant(now + 5 * MINUTE)) if kind == endings.WINDOW_END else Policy()
    task = await core.create(groups=["g"], policy=policy)
    core.clock.advance(CLOCKS.online)
    async with core.database.transaction() as tx:  # as when its first server fails over it and is backing off
        await tx.execute("UPDATE job SET due_at = due_at + $1 WHERE kind = $2", CLOCKS.online + MINUTE, endings.EXPAND)
    for _ in range(3):
        await work_off(core)
        core.clock.advance(2 * MINUTE)
    status, counters = await stands(core, task)
    assert status in CAMPAIGN_FINAL
    assert (counters.total, counters.wait) == (3, 0)
