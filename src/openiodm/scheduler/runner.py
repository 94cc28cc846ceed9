"""The loop that leases due jobs and runs them, step by step, through the writer."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import structlog

from openiodm.clock import Clock, Instant
from openiodm.scheduler.model import (
    BACKOFF_MS,
    LEASE_MS,
    Done,
    Job,
    JobHandler,
    JobRows,
    Later,
    LeaseLost,
    More,
    Progress,
)

POLL_S = 0.5  # how late a job may start that another server made due
LEASES_AT_ONCE = 16
JOBS_AT_ONCE = 32  # a lease that waits longer than its time for a turn is lost, and its job never comes to an end

log = structlog.get_logger(__name__)


class HasJobs(Protocol):
    """The part of a transaction that the scheduler uses."""

    @property
    def jobs(self) -> JobRows:
        """The job rows."""
        ...


Command = Callable[[Callable[[Any], Awaitable[Any]]], Awaitable[Any]]


class Scheduler:
    """Runs jobs of this server until it is closed.

    `slow` and `quick` submit a command to the writer: steps of jobs go the slow way, so that they queue behind devices.
    `alone`: no other server shares the database, so leases that are there at the start belong to nobody alive.
    """

    def __init__(
        self,
        owner: str,
        clock: Clock,
        quick: Command,
        slow: Command,
        handlers: Mapping[str, JobHandler],
        *,
        alone: bool,
    ) -> None:
        self._alone = alone
        self._owner = owner
        self._clock = clock
        self._quick = quick
        self._slow = slow
        self._handlers = handlers
        self.stepped: Callable[[str, str, float], None] = lambda _kind, _end, _seconds: None
        """Hears of every step: of which kind of job, how it ended (done, failed, lost), and how long it took."""
        self._wake = asyncio.Event()
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins; the tasks belong to this object and end in `close`."""
        if self._alone:
            await self._release(None)
        self._loop = asyncio.create_task(self._run(), name="scheduler")

    def wake(self) -> None:
        """A job was made due just now."""
        self._wake.set()

    async def close(self) -> None:
        """Lets every running step commit, then ends. What is left is free for whoever comes next."""
        self._closing = True
        self._wake.set()
        if self._loop is not None:
            await self._loop
        if self._tasks:
            await asyncio.gather(*self._tasks)
        try:
            await self._release(self._owner)
        except Exception:
            log.exception("leases_not_released")  # they will run out

    async def _release(self, owner: str | None) -> None:
        async def release(work: HasJobs) -> int:
            return await work.jobs.release(owner)

        await self._quick(release)

    async def _run(self) -> None:
        while not self._closing:
            try:
                if len(self._tasks) < JOBS_AT_ONCE:
                    await self._lease_and_start()
            except Exception:
                log.exception("lease_failed")
            try:
                await asyncio.wait_for(self._wake.wait(), POLL_S)
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def run_due(self) -> int:
        """Leases what is due now and works it off, in turn; how many jobs that were."""
        jobs = await self._lease()
        for job in jobs:
            await self._work_off(job)
        return len(jobs)

    async def _lease(self) -> list[Job]:
        now = self._clock.now()

        async def lease(work: HasJobs) -> list[Job]:
            limit = min(LEASES_AT_ONCE, JOBS_AT_ONCE - len(self._tasks))
            return list(await work.jobs.lease(now, self._owner, _lease_end(now), limit))

        leased: list[Job] = await self._quick(lease)
        return leased

    async def _lease_and_start(self) -> None:
        leased = await self._lease()
        for job in leased:
            task = asyncio.create_task(self._work_off(job), name=f"job:{job.kind}:{job.subject}")
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        if len(leased) == LEASES_AT_ONCE:  # there may be more
            self._wake.set()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if len(self._tasks) >= JOBS_AT_ONCE:  # others may wait for the place
            self._wake.set()
        self._tasks.discard(task)

    async def _work_off(self, job: Job) -> None:
        handler = self._handlers.get(job.kind)
        if handler is None:  # a newer server's, on the same database
            log.warning("job_unknown", kind=job.kind, subject=job.subject)
            await self._back_off(job)
            return
        while not self._closing:
            current = job

            async def one_step(work: HasJobs, current: Job = current) -> Progress | None:
                return await self._step(work, handler, current)

            began, end = time.perf_counter(), "failed"
            try:
                progress = await self._slow(one_step)
                end = "lost" if progress is None else "done"
            except LeaseLost:
                end = "lost"
                log.warning("lease_lost", kind=job.kind, subject=job.subject)
                return
            except Exception:
                log.exception("job_failed", kind=job.kind, subject=job.subject, failures=job.failures + 1)
                await self._back_off(job)
                return
            finally:
                self.stepped(job.kind, end, time.perf_counter() - began)
            if not isinstance(progress, More):
                return
            job = Job(job.id, job.kind, job.subject, job.epoch, progress.cursor, 0)
            await asyncio.sleep(0)

    async def _step(self, work: HasJobs, handler: JobHandler, job: Job) -> Progress | None:
        if not await work.jobs.holds(job):
            log.warning("lease_lost", kind=job.kind, subject=job.subject)
            return None
        now = self._clock.now()
        progress = await handler.run(work, job, now)
        match progress:
            case More():
                held = await work.jobs.advance(job, progress.cursor, _lease_end(now))
            case Later():
                held = await work.jobs.postpone(job, progress.due_at, 0)
            case Done():
                held = await work.jobs.finish(job)
        if not held:
            raise LeaseLost
        return progress

    async def _back_off(self, job: Job) -> None:
        delay = BACKOFF_MS[min(job.failures, len(BACKOFF_MS) - 1)]
        due = Instant(self._clock.now() + delay)

        async def postpone(work: HasJobs) -> None:
            if await work.jobs.holds(job):
                await work.jobs.postpone(job, due, job.failures + 1)

        try:
            await self._quick(postpone)
        except Exception:
            log.exception("job_not_postponed", kind=job.kind, subject=job.subject)  # its lease will run out


def _lease_end(now: Instant) -> Instant:
    return Instant(now + LEASE_MS)


class Periodic:
    """Runs `action` every `seconds`; a failure is logged and does not end it."""

    def __init__(self, name: str, seconds: float, action: Callable[[], Awaitable[object]]) -> None:
        self._name = name
        self._seconds = seconds
        self._action = action
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins; ends in `close`."""
        self._task = asyncio.create_task(self._run(), name=f"periodic:{self._name}")

    async def close(self) -> None:
        """Waits for the action under way, then ends."""
        self._stop.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while not self._stop.is_set():
            try:
                await asyncio.wait_for(self._stop.wait(), self._seconds)
            except TimeoutError:
                try:
                    await self._action()
                except Exception:
                    log.exception("periodic_failed", name=self._name)
