"""Jobs are rows: leased, fenced by an epoch, retried with back-off, and never lost with the server that held them."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from openiodm.clock import Instant
from openiodm.scheduler.model import BACKOFF_MS, LEASE_MS, Done, Job, JobHandler, Later, More, Progress
from openiodm.scheduler.runner import Scheduler
from openiodm.storage.engine import Database
from openiodm.storage.jobs import JobRows
from openiodm.storage.writer import Lane, Writer
from tests.conftest import ManualClock


class Steps:
    """A handler that does what it is told, and remembers when it was called."""

    def __init__(self, *progress: Progress | Exception) -> None:
        self.progress = list(progress)
        self.calls: list[tuple[int, int]] = []

    async def run(self, work: Any, job: Job, now: Instant) -> Progress:
        self.calls.append((job.subject, job.cursor))
        step = self.progress.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


class Bench:
    """Schedulers of several servers on one database."""

    def __init__(self, database: Database, clock: ManualClock) -> None:
        self.database = database
        self.clock = clock
        self.writer: Writer[Any] = Writer(database, lambda tx: SimpleNamespace(jobs=JobRows(tx)))
        self.writer.start()

    def scheduler(self, owner: str, handler: JobHandler, *, alone: bool = False) -> Scheduler:
        slow = lambda command: self.writer.run(command, Lane.CHUNK)  # noqa: E731
        return Scheduler(owner, self.clock, self.writer.run, slow, {"k": handler}, alone=alone)

    async def put(self, subject: int, due_in: int = 0) -> None:
        due = Instant(self.clock.now() + due_in)
        await self.writer.run(lambda work: work.jobs.put("k", subject, due))

    async def lease(self, owner: str) -> list[Job]:
        now = self.clock.now()
        return list(await self.writer.run(lambda work: work.jobs.lease(now, owner, now + LEASE_MS, 10)))

    async def left(self) -> int:
        return int(await self.database.fetchval("SELECT count(*) FROM job"))


@pytest.fixture
async def bench(database: Database, clock: ManualClock) -> AsyncIterator[Bench]:
    built = Bench(database, clock)
    yield built
    await built.writer.close()


async def test_a_job_runs_when_it_is_due_and_not_before(bench: Bench) -> None:
    handler = Steps(Done())
    scheduler = bench.scheduler("a", handler)
    await bench.put(7, due_in=1000)
    assert await scheduler.run_due() == 0
    bench.clock.advance(1000)
    assert await scheduler.run_due() == 1
    assert (handler.calls, await bench.left()) == ([(7, 0)], 0)


async def test_a_job_goes_on_from_its_cursor_until_it_is_done(bench: Bench) -> None:
    handler = Steps(More(10), More(20), Done())
    await bench.put(1)
    await bench.scheduler("a", handler).run_due()
    assert handler.calls == [(1, 0), (1, 10), (1, 20)]


async def test_a_postponed_job_comes_back_then(bench: Bench) -> None:
    handler = Steps(Later(Instant(bench.clock.now() + 500)), Done())
    scheduler = bench.scheduler("a", handler)
    await bench.put(1)
    await scheduler.run_due()
    assert await scheduler.run_due() == 0
    bench.clock.advance(500)
    assert await scheduler.run_due() == 1


async def test_a_failing_job_is_tried_again_after_its_back_off_and_keeps_its_cursor(bench: Bench) -> None:
    handler = Steps(More(5), ValueError("a bug"), Done())
    scheduler = bench.scheduler("a", handler)
    await bench.put(1)
    await scheduler.run_due()
    assert await scheduler.run_due() == 0
    bench.clock.advance(BACKOFF_MS[0])
    assert await scheduler.run_due() == 1
    assert handler.calls == [(1, 0), (1, 5), (1, 5)]


async def test_two_servers_never_hold_one_job(bench: Bench) -> None:
    await bench.put(1)
    (job,) = await bench.lease("a")
    assert await bench.lease("b") == []
    bench.clock.advance(LEASE_MS + 1)
    (taken,) = await bench.lease("b")
    assert taken.epoch == job.epoch + 1
    assert await bench.writer.run(lambda work: work.jobs.holds(job)) is False
    assert await bench.writer.run(lambda work: work.jobs.holds(taken)) is True


async def test_a_server_that_lost_its_lease_commits_nothing(bench: Bench) -> None:
    await bench.put(1)
    (job,) = await bench.lease("frozen")
    bench.clock.advance(LEASE_MS + 1)
    await bench.lease("other")
    frozen = Steps(Done())
    await bench.scheduler("frozen", frozen)._work_off(job)
    assert (frozen.calls, await bench.left()) == ([], 1)


async def test_a_server_that_starts_alone_frees_what_a_killed_one_held(bench: Bench) -> None:
    await bench.put(1)
    await bench.lease("killed")
    handler = Steps(Done())
    scheduler = bench.scheduler("new", handler, alone=True)
    assert await scheduler.run_due() == 0
    await scheduler.start()
    await scheduler.close()
    assert await bench.scheduler("newer", handler).run_due() + len(handler.calls) >= 1
    assert await bench.left() == 0


async def test_a_closed_server_gives_its_leases_back(bench: Bench) -> None:
    await bench.put(1)
    await bench.lease("a")
    scheduler = bench.scheduler("a", Steps())
    await scheduler.close()
    assert len(await bench.lease("b")) == 1
