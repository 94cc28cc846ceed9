"""The core's job handlers: expansion, sweep, retry round, end of window, online clock, results that are owed.

Each does one bounded piece.

A piece is one transaction that queues behind stops and reports, so its size is bounded in time: see `CHUNK`.
"""

from openiodm.campaigns import endings, texts
from openiodm.campaigns.endings import end_if_complete, result_owed, settle
from openiodm.campaigns.model import CampaignKey, Hold
from openiodm.campaigns.ports import Work
from openiodm.campaigns.states import BORN_FINAL, CAMPAIGN_FINAL, GRANTED, UpgradeState
from openiodm.clock import SECOND, Instant
from openiodm.scheduler.model import Done, Job, JobHandler, Later, More, Progress

# Upgrades a transaction. SQLite runs on the event loop (some 20 ms); on PostgreSQL only the commit's latency counts.
CHUNK = {"sqlite": 1000, "postgresql": 2000}
EXPAND_CHUNK = {"sqlite": 1000, "postgresql": 4000}

_CANCELLABLE = [s for s in UpgradeState if s in GRANTED and s is not UpgradeState.CANCELLING]


class Expand:
    """Upgrades for the members of the task's groups, chunk by chunk. Until the last one nobody is granted."""

    def __init__(self, engine: str) -> None:
        self._chunk = EXPAND_CHUNK[engine]

    async def run(self, work: Work, job: Job, now: Instant) -> Progress:
        """One chunk."""
        key = CampaignKey(job.subject)
        desk = (await work.campaigns.lock([key]))[key]
        if desk.work != "expanding":
            return Done()
        owed = result_owed(desk, now)
        before = await work.campaigns.expand(desk.key, self._chunk, now, owed=owed)
        if before is not None:
            await work.notices.born(desk.key, before, BORN_FINAL, now, owed=owed)
            return More()
        await work.campaigns.set_work(desk.key, "idle")
        await work.campaigns.set_open(desk.key, desk.hold is not Hold.ALL)
        await end_if_complete(work, desk.key, now)
        return Done()


class Sweep:
    """After a stop: waiting devices end `stop`, granted ones are asked to cancel."""

    def __init__(self, engine: str) -> None:
        self._chunk = CHUNK[engine]

    async def run(self, work: Work, job: Job, now: Instant) -> Progress:
        """One chunk; the job's cursor is the ordinal up to which nobody waits."""
        key = CampaignKey(job.subject)
        rows = work.campaigns
        waiting, cause, detail = [UpgradeState.WAIT], "operator", texts.STOPPED
        moved = await rows.move_many(key, waiting, UpgradeState.STOP, cause, detail, self._chunk, now, after=job.cursor)
        if moved is not None:
            return More(moved[0])
        desk = await rows.look(key)
        if job.cursor and desk.counters.wait:  # somebody waits again, or still
            return More()
        due = Instant(now + desk.clocks.cancel)
        if await rows.move_many(key, _CANCELLABLE, UpgradeState.CANCELLING, cause, detail, self._chunk, now, due):
            return More(job.cursor)
        if await settle(work, key, 0, self._chunk, now) is not None:
            return More(job.cursor)
        await rows.lock([key])
        await rows.set_work(key, "idle")
        return Done()


class RetryRound:
    """Failed and timed-out devices go back to `wait`, except those that another task holds."""

    def __init__(self, engine: str) -> None:
        self._chunk = CHUNK[engine]

    async def run(self, work: Work, job: Job, now: Instant) -> Progress:
        """One chunk; the job's cursor is the ordinal it has come to."""
        key = CampaignKey(job.subject)
        if await work.jobs.exists(endings.SETTLE, key):  # an operator was quick: first those results are told
            return Later(Instant(now + SECOND))
        last = await work.campaigns.retry_many(key, job.cursor, self._chunk, now)
        if last is not None:
            return More(last)
        await work.campaigns.lock([key])
        await work.campaigns.set_work(key, "idle")
        await end_if_complete(work, key, now)
        return Done()


class EndWaiting:
    """Ends what still waits: at the end of the window as `stop`, at the online clock's end as `timeout`."""

    def __init__(self, engine: str, to: UpgradeState, cause: str, detail: str) -> None:
        self._chunk = CHUNK[engine]
        self._to = to
        self._cause = cause
        self._detail = detail

    async def run(self, work: Work, job: Job, now: Instant) -> Progress:
        """One chunk; the job's cursor is the ordinal up to which nobody waits."""
        desk = await work.campaigns.look(CampaignKey(job.subject))
        if desk.status in CAMPAIGN_FINAL:
            return Done()
        if desk.work in ("expanding", "retrying"):  # there may be more to end when that is over
            return Later(Instant(now + SECOND))
        owed = self._to is UpgradeState.TIMEOUT and result_owed(desk, now)
        waiting, cause, detail = [UpgradeState.WAIT], self._cause, self._detail
        moved = await work.campaigns.move_many(
            desk.key, waiting, self._to, cause, detail, self._chunk, now, after=job.cursor, owed=owed
        )
        if moved is not None:
            last, upgrades = moved
            if self._to is UpgradeState.TIMEOUT:  # what is stopped while it waits is not told
                await work.notices.ended(desk.key, upgrades, now, owed=owed)
            return More(last)
        desk = (await work.campaigns.lock([desk.key]))[desk.key]
        if desk.work == "retrying":  # since it was looked at
            return Later(Instant(now + SECOND))
        if job.cursor and desk.counters.wait:  # a round has put somebody back behind it
            return More()
        if self._to is UpgradeState.STOP and desk.retry_times:  # no round begins any more, though some are under way
            await work.jobs.put(endings.SETTLE, desk.key, now)
        await end_if_complete(work, desk.key, now)
        return Done()


class Settle:
    """A task that failed, or whose window is over, tells the results that waited for a round that will not come."""

    def __init__(self, engine: str) -> None:
        self._chunk = CHUNK[engine]

    async def run(self, work: Work, job: Job, now: Instant) -> Progress:
        """One chunk; the job's cursor is the ordinal it has come to."""
        last = await settle(work, CampaignKey(job.subject), job.cursor, self._chunk, now)
        return Done() if last is None else More(last)


def handlers(engine: str) -> dict[str, JobHandler]:
    """kind -> handler, for the scheduler."""
    return {
        endings.EXPAND: Expand(engine),
        endings.SWEEP: Sweep(engine),
        endings.RETRY: RetryRound(engine),
        endings.SETTLE: Settle(engine),
        endings.WINDOW_END: EndWaiting(engine, UpgradeState.STOP, "window", texts.WINDOW_OVER),
        endings.ONLINE: EndWaiting(engine, UpgradeState.TIMEOUT, "clock", texts.ONLINE_TIMEOUT),
    }
