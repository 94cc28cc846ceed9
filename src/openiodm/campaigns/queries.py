"""What applications ask about campaigns. Nothing here writes; each read is a key lookup or a bounded range."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace

from openiodm.access.model import Actor
from openiodm.campaigns.model import (
    Campaign,
    CampaignFilter,
    CampaignKind,
    Change,
    Counters,
    Hold,
    IdempotencyKey,
    Upgrade,
)
from openiodm.campaigns.ports import CampaignList, CampaignReads
from openiodm.campaigns.states import COUNTER_OF, CampaignStatus, Counter, UpgradeState
from openiodm.clock import Clock, Instant
from openiodm.errors import Reason, Refusal

EXPORT_PAGE = 100  # rows a read of an export: some 3 ms on the loop


@dataclass(frozen=True, slots=True)
class Recount:
    """Counters as they stand, and as the rows say. They are equal, or the server has a bug."""

    counters: Counters
    rows: Counters
    states: Mapping[UpgradeState, int]

    @property
    def exact(self) -> bool:
        """Law 2."""
        return self.counters == self.rows


class CampaignQueries:
    """Reads for one application at a time: campaigns of others do not exist for it."""

    def __init__(self, reads: CampaignReads, task_list: CampaignList, clock: Clock) -> None:
        self._reads = reads
        self._list = task_list
        self._clock = clock

    async def one(self, actor: Actor, operation_id: str) -> Campaign:
        """A campaign.

        Raises:
            Refusal: CAMPAIGN_UNKNOWN.
        """
        campaign = await self._reads.one(actor.application, operation_id)
        if campaign is None:
            raise Refusal(Reason.CAMPAIGN_UNKNOWN, "no such task", field="operationId")
        return campaign

    async def created_with(self, actor: Actor, asked: IdempotencyKey | None) -> str | None:
        """The operationId that this very request was answered before.

        Asked before the rest of a repeated request is looked at: what was right then may be too late now.

        Raises:
            Refusal: IDEMPOTENCY_KEY_REUSED; the key came with another request.
        """
        earlier = None if asked is None else await self._reads.idempotent(actor.application, asked.key)
        return None if asked is None or earlier is None else asked.answered(*earlier)

    async def page(
        self,
        actor: Actor,
        number: int,
        size: int,
        *,
        kind: CampaignKind | None = None,
        status: CampaignStatus | None = None,
        device_type: str | None = None,
        model: str | None = None,
        manufacturer_name: str | None = None,
        device_id: str | None = None,
    ) -> tuple[int, Sequence[Campaign]]:
        """The task list: exact total of all matches and one page (`number` from 0), newest first."""
        where = CampaignFilter(actor.application, kind, status, device_type, model, manufacturer_name, device_id)
        return await self._list.page(where, number, size)

    async def upgrades(
        self, actor: Actor, operation_id: str, number: int, size: int, states: Sequence[UpgradeState] | None = None
    ) -> tuple[int, Sequence[Upgrade]]:
        """Exact total and one page of a campaign's upgrades, newest first. The total comes from the counters.

        `states` must be whole counters (or None for all): the total is theirs.
        """
        campaign = await self.one(actor, operation_id)
        total = _total(campaign.counters, states)
        if number * size >= total:
            return total, ()
        counters, rows = await self._reads.upgrades_page(campaign, states, number, size)
        return _total(counters, states), rows

    async def upgrades_after(
        self, actor: Actor, operation_id: str, after: int, size: int, states: Sequence[UpgradeState] | None = None
    ) -> Sequence[Upgrade]:
        """The next `size` upgrades beyond ordinal `after`, in order, each waiting one with the reason why."""
        campaign = await self.one(actor, operation_id)
        rows = await self._reads.upgrades_after(campaign.key, after, size, states)
        now = self._clock.now()
        return [replace(u, reason=why_waiting(campaign, u, now)) for u in rows]

    async def export(
        self, actor: Actor, operation_id: str, states: Sequence[UpgradeState] | None = None
    ) -> AsyncIterator[Sequence[Upgrade]]:
        """All upgrades, page by page, each page a read of its own. Between pages everybody else has a turn."""
        after = 0
        while page := await self.upgrades_after(actor, operation_id, after, EXPORT_PAGE, states):
            yield page
            after = page[-1].ordinal
            await asyncio.sleep(0)  # reads on SQLite never wait, nor does a fast client's connection

    async def history(self, actor: Actor, operation_id: str, device: str) -> Sequence[Change]:
        """One device's changes of state, oldest first; `device` is a device id or node id.

        Raises:
            Refusal: CAMPAIGN_UNKNOWN, UPGRADE_UNKNOWN.
        """
        campaign = await self.one(actor, operation_id)
        changes = await self._reads.history(campaign.key, device)
        if changes is None:
            raise Refusal(Reason.UPGRADE_UNKNOWN, "the device is not in this task", field="deviceId")
        return changes

    async def device_log(
        self, actor: Actor, operation_id: str, device: str
    ) -> Sequence[tuple[Instant, int, str, list[str]]]:
        """What the device said: (when, action id, kind, lines), oldest first."""
        campaign = await self.one(actor, operation_id)
        return await self._reads.device_log(campaign.key, device)

    async def recount(self, actor: Actor, operation_id: str) -> Recount:
        """Counts the rows, in one snapshot with the counters (law 2)."""
        campaign = await self.one(actor, operation_id)
        counters, states = await self._reads.recount(campaign.key)
        return Recount(counters, counted(states), states)


def counted(states: Mapping[UpgradeState, int]) -> Counters:
    """The counters that rows of these states must have."""
    sums = dict.fromkeys((c.value for c in Counter), 0)
    for state, count in states.items():
        sums[COUNTER_OF[state].value] += count
    return Counters(total=sum(sums.values()), **sums)


def why_waiting(campaign: Campaign, u: Upgrade, now: Instant) -> str | None:
    """Why a waiting device waits, as a sentence for its operator; None for one that does not wait."""
    if u.state is not UpgradeState.WAIT:
        return None
    policy = campaign.policy
    start = None if policy is None else policy.window_start
    end = None if policy is None else policy.window_end
    if campaign.work == "expanding":
        return "the task is still being expanded over its groups"
    if campaign.status is CampaignStatus.STOP:
        return "the task was stopped; this device is about to be"
    if campaign.hold is Hold.ALL:
        return "the task comes from a backup and is held until its operator resumes or stops it"
    if start is not None and now < start:
        return "the task's time window has not begun"
    if end is not None and now >= end:
        return "the task's time window is over; this device is about to be stopped"
    if u.reports_version and u.current_version is None:
        return "the device has not told its version since a backup was restored"
    if campaign.hold is Hold.UNPROVEN and not u.reports_version:
        return "the device never tells its version, so it may have been upgraded since the backup that was restored"
    if campaign.max_concurrent is not None and campaign.counters.processing >= campaign.max_concurrent:
        return "as many devices of the task are under way as may be at once"
    if campaign.confirmation and u.action_id is not None and not u.confirmed:
        return "the device has denied the upgrade" if u.confirmed is False else "the device is to confirm the upgrade"
    if u.last_seen_at is None:
        return "the device has never been in contact"
    return "the device has not been in contact since"


def _total(counters: Counters, states: Sequence[UpgradeState] | None) -> int:
    if states is None:
        return counters.total
    return sum(getattr(counters, c.value) for c in {COUNTER_OF[s] for s in states})
