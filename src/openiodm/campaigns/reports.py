"""What devices say, committed in groups: the only place where single upgrades change.

A `ReportDesk` is the writer's `Batcher` for everything that concerns one device: contacts, reports, cancel answers,
versions, clocks. For a batch it
 1. locks and reads the unfinished upgrades of all its devices in one query (in the order of keys),
 2. locks the counters of their campaigns, where anything may be granted or end,
 3. folds each device's signals, in the order they came, through `rollout.step` (pure),
 4. writes states by compare-and-set, history, log lines, device rows, and each counter row once,
 5. tells those who subscribed,
 6. ends campaigns that have no device left to end, or begins their next round of retries.
The writer commits, and then every device of the batch gets its answer.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from openiodm.campaigns import rollout
from openiodm.campaigns.endings import end_if_complete, result_owed
from openiodm.campaigns.model import CampaignKey, LogEntry
from openiodm.campaigns.ports import CampaignDesk, Moved, Work
from openiodm.campaigns.rollout import Answer, CancelAnswer, Progress, Result, Standing, Step, Transition, What
from openiodm.campaigns.states import COUNTER_OF, CampaignStatus, Counter, UpgradeState
from openiodm.clock import Clock, Instant
from openiodm.devices.model import DeviceKey

REPEAT_WINDOW_MS = 10 * 60_000  # a result repeated within this of its attempt's end is answered as the first time


class Signal(msgspec.Struct, frozen=True):
    """Something that happened to one device."""

    device: DeviceKey
    what: What


class Outcome(msgspec.Struct, frozen=True):
    """What the device is to be told, and where it stands now (None: it has no upgrade under way)."""

    answer: Answer
    standing: Standing | None


class _Fold:
    """One device's signals of a batch, folded."""

    __slots__ = ("before", "logs", "now", "transitions")

    def __init__(self, standing: Standing) -> None:
        self.before = standing
        self.now = standing
        self.transitions: list[Transition] = []
        self.logs: list[LogEntry] = []

    def take(self, step: Step) -> None:
        self.now = step.standing
        if step.transition is not None:
            self.transitions.append(step.transition)
        if step.log is not None:
            self.logs.append(step.log)

    @property
    def changed(self) -> bool:
        return bool(self.logs) or self.now != self.before

    def moved(self) -> Moved:
        return Moved(self.before, self.now, tuple(self.transitions), tuple(self.logs))


class ReportDesk:
    """Processes signals in batches. One per server; the writer calls it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def process(self, work: Work, items: Sequence[Signal]) -> Sequence[Outcome]:
        """One outcome per signal, in order."""
        now = self._clock.now()
        standings = await work.campaigns.standings(sorted({s.device for s in items}))
        folds = {device: _Fold(standing) for device, standing in standings.items()}
        desks = await self._lock(work, items, standings)
        under_way = {key: desk.counters.processing for key, desk in desks.items()}
        outcomes: list[Outcome] = []
        for signal in items:
            fold = folds.get(signal.device)
            if fold is None:
                outcomes.append(Outcome(await self._without_upgrade(work, signal, now), None))
                continue
            standing = _fenced(fold.now, desks, under_way)
            step = rollout.step(standing, signal.what, now)
            if step.standing is not standing or step.log is not None:
                fold.take(step)
            if step.transition is not None and fold.before.campaign in under_way:
                under_way[fold.before.campaign] += _grows_by(step.transition)
            answer = step.answer
            if answer is Answer.GONE and isinstance(signal.what, Result | CancelAnswer):
                answer = await self._past(work, signal.device, signal.what, now)
            outcomes.append(Outcome(answer, step.standing))
        await self._write(work, [f.moved() for f in folds.values() if f.changed], desks, now)
        return outcomes

    async def _lock(
        self, work: Work, items: Sequence[Signal], standings: Mapping[DeviceKey, Standing]
    ) -> Mapping[CampaignKey, CampaignDesk]:
        """Progress moves nobody between counters and is never the last word, so it needs no campaign's lock."""
        concerned = {
            standings[s.device].campaign for s in items if s.device in standings and not isinstance(s.what, Progress)
        }
        return await work.campaigns.lock(sorted(concerned)) if concerned else {}

    async def _without_upgrade(self, work: Work, signal: Signal, now: Instant) -> Answer:
        what = signal.what
        if isinstance(what, Result | CancelAnswer):
            return await self._past(work, signal.device, what, now)
        action_id = getattr(what, "action_id", None)
        if action_id is None:
            return Answer.DONE
        newest = await work.campaigns.newest_attempt(signal.device)
        return Answer.GONE if 0 < action_id <= newest else Answer.UNKNOWN

    async def _past(self, work: Work, device: DeviceKey, what: Result | CancelAnswer, now: Instant) -> Answer:
        """The last word on an attempt that is over: the same again is welcome for a while, another is too late."""
        ended = await work.campaigns.ended_as(device, what.action_id)
        if ended is None:
            newest = await work.campaigns.newest_attempt(device)
            return Answer.GONE if 0 < what.action_id <= newest else Answer.UNKNOWN
        state, at = ended
        return rollout.repeated(state, what) if now - at <= REPEAT_WINDOW_MS else Answer.GONE

    async def _write(
        self, work: Work, moved: Sequence[Moved], desks: Mapping[CampaignKey, CampaignDesk], now: Instant
    ) -> None:
        if not moved:
            return
        deltas = counter_deltas(moved)
        await work.campaigns.save(moved, deltas, now)
        owed = {m.after.upgrade for m in moved if _fails(m) and result_owed(desks[m.after.campaign], now)}
        await work.campaigns.owe(owed)
        await work.notices.moved(moved, owed, now)
        granted = {m.before.campaign for m in moved if any(t.to_state is UpgradeState.OFFERED for t in m.transitions)}
        for campaign, change in sorted(deltas.items()):
            desk = desks[campaign]
            if desk.status is CampaignStatus.WAIT and campaign in granted:
                await work.campaigns.set_status(campaign, CampaignStatus.PROCESSING, started_at=now)
            if desk.counters.unfinished + change.get("wait", 0) + change.get("processing", 0) == 0:
                await end_if_complete(work, campaign, now)


def _fails(m: Moved) -> bool:
    """Did it fail in a way that a round of retries may mend? A deleted device's never is."""
    failed = m.after.state in (UpgradeState.FAIL, UpgradeState.TIMEOUT)
    return failed and bool(m.transitions) and m.transitions[-1].cause != rollout.DEVICE_DELETED


def counter_deltas(moved: Sequence[Moved]) -> dict[CampaignKey, dict[str, int]]:
    """campaign -> counter -> change, zero ones left out: a counter row is touched once a batch."""
    sums: defaultdict[CampaignKey, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for m in moved:
        left, entered = COUNTER_OF[m.before.state], COUNTER_OF[m.after.state]
        if left is not entered:
            sums[m.before.campaign][left.value] -= 1
            sums[m.before.campaign][entered.value] += 1
    return {c: {k: v for k, v in d.items() if v} for c, d in sums.items() if any(d.values())}


def _grows_by(t: Transition) -> int:
    """How many devices more are under way."""
    return (COUNTER_OF[t.to_state] is Counter.PROCESSING) - (COUNTER_OF[t.from_state] is Counter.PROCESSING)


def _fenced(s: Standing, desks: Mapping[CampaignKey, CampaignDesk], under_way: Mapping[CampaignKey, int]) -> Standing:
    """With the fence as it is under the lock, where a stop that has committed since the row was read must be seen; and
    without room, if other devices have taken it since then or in this batch.
    """
    desk = desks.get(s.campaign)
    if desk is None or s.state is not UpgradeState.WAIT:
        return s
    full = desk.max_concurrent is not None and under_way[s.campaign] >= desk.max_concurrent
    if (desk.open, full) == (s.open, s.full):
        return s
    return rollout.with_fence(s, is_open=desk.open, full=full)
