"""Rows of campaigns, and of many upgrades that are moved alike, within the writer's transaction.

Lock order on PostgreSQL, the same everywhere: devices by id, then upgrades by id, then campaign_counters by campaign id
(each with its campaign), then jobs. A lock comes before the statement whose values count: a statement that waits for a
lock sees the locked row as it is then, and every row that it joins to it as that was before.
"""

from collections.abc import Collection, Mapping, Sequence

from openiodm.access.model import ApplicationKey
from openiodm.campaigns.model import CampaignKey, Counters, Hold, UpgradeKey
from openiodm.campaigns.ports import (
    CampaignDesk,
)
from openiodm.campaigns.states import COUNTER_OF, FINAL, CampaignStatus, Counter, UpgradeState
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey
from openiodm.storage.engine import Row, UniqueViolation
from openiodm.storage.new_campaigns import CONFLICT_TRIES, NewCampaignRows
from openiodm.storage.standings import COUNTERS, StandingRows, clocks_of

_LOOK = """
SELECT k.campaign_id, c.status, c.work, c.round, c.retry_times, c.window_start, c.window_end, c.clocks, k.open, c.hold,
c.max_concurrent, k.total, k.wait, k.processing, k.success, k.fail, k.stop, k.timeout
FROM campaign_counters k JOIN campaign c ON c.id = k.campaign_id
WHERE k.campaign_id = ANY($1::bigint[]) ORDER BY k.campaign_id
"""
_LOCK = f"{_LOOK} FOR UPDATE OF k, c"
# One state a statement: then the index on campaign, state and ordinal gives them in order. Beyond an ordinal: on
# PostgreSQL entries of rows that left the state stay in the index for a while, and each would be looked at again.
_CHOOSE = """
SELECT id, ordinal FROM upgrade WHERE campaign_id = $1 AND state = $2 AND ordinal > $3
ORDER BY ordinal LIMIT $4 FOR UPDATE
"""
_CHOSEN_COUNTS = "SELECT state, count(*) FROM upgrade WHERE id = ANY($1::bigint[]) GROUP BY state"
_MOVE_HISTORY = """
INSERT INTO history (upgrade_id, at, from_state, to_state, action_id, cause)
SELECT id, $2, state, $3, action_id, $4 FROM upgrade WHERE id = ANY($1::bigint[]) ORDER BY id
"""
_MOVE = """
UPDATE upgrade SET halted_in = CASE WHEN $2 = 'cancelling' THEN state ELSE halted_in END, state = $2,
detail = coalesce($3, detail), finished_at = $4, due_at = $5, result_owed = $6 WHERE id = ANY($1::bigint[])
"""
_CHOOSE_OWED = """
SELECT id, ordinal FROM upgrade WHERE campaign_id = $1 AND result_owed IS NOT NULL AND ordinal > $2
ORDER BY ordinal LIMIT $3 FOR UPDATE
"""
_CHOOSE_RETRY = """
SELECT u.id, u.ordinal FROM upgrade u JOIN device d ON d.id = u.device_id AND d.deleted_at IS NULL
WHERE u.campaign_id = $1 AND u.state IN ('fail', 'timeout') AND u.ordinal > $2
  AND NOT EXISTS (SELECT 1 FROM upgrade o WHERE o.device_id = u.device_id AND o.finished_at IS NULL)
ORDER BY u.ordinal LIMIT $3 FOR UPDATE OF u FOR KEY SHARE OF d
"""
_RETRY = """
UPDATE upgrade SET state = 'wait', round = round + 1, action_id = NULL, confirmed = NULL, halted_in = NULL,
detail = NULL, error_code = NULL, blocker_id = NULL, started_at = NULL, finished_at = NULL, due_at = NULL,
result_owed = NULL WHERE id = ANY($1::bigint[])
"""


def _desk_of(r: Row) -> CampaignDesk:
    """A row of `_LOOK`."""
    key, status, work, round_, retry_times, window_start, window_end, clocks, is_open, hold, most, *counters = r
    return CampaignDesk(
        key=CampaignKey(key),
        status=CampaignStatus(status),
        work=work,
        round=round_,
        retry_times=retry_times,
        window_start=window_start,
        window_end=window_end,
        clocks=clocks_of(clocks),
        open=bool(is_open),
        counters=Counters(*counters),
        hold=None if hold is None else Hold(hold),
        max_concurrent=most,
    )


class CampaignRows(NewCampaignRows, StandingRows):
    """See `campaigns.ports.CampaignRows`."""

    # -- the campaign itself

    async def lock(self, campaigns: Sequence[CampaignKey]) -> Mapping[CampaignKey, CampaignDesk]:
        """See the port."""
        return {d.key: d for d in map(_desk_of, await self._tx.fetch(_LOCK, list(campaigns)))}

    async def look(self, campaign: CampaignKey) -> CampaignDesk:
        """See the port."""
        row = await self._tx.fetchrow(_LOOK, [campaign])
        assert row is not None
        return _desk_of(row)

    async def find(self, application: ApplicationKey, operation_id: str) -> CampaignKey | None:
        """See the port."""
        sql = "SELECT id FROM campaign WHERE application_id = $1 AND operation_id = $2"
        key = await self._tx.fetchval(sql, application, operation_id)
        return None if key is None else CampaignKey(key)

    async def locked_by_operation(self, application: ApplicationKey, operation_id: str) -> CampaignDesk | None:
        """See the port."""
        key = await self.find(application, operation_id)
        return None if key is None else (await self.lock([key]))[key]

    async def set_status(
        self,
        campaign: CampaignKey,
        status: CampaignStatus,
        *,
        started_at: Instant | None = None,
        stopped_at: Instant | None = None,
    ) -> None:
        """See the port."""
        await self._tx.execute(
            "UPDATE campaign SET status = $2, started_at = coalesce(started_at, $3), stopped_at = $4 WHERE id = $1",
            campaign,
            status.value,
            started_at,
            stopped_at,
        )

    async def set_work(self, campaign: CampaignKey, work: str) -> None:
        """See the port."""
        await self._tx.execute("UPDATE campaign SET work = $2 WHERE id = $1", campaign, work)

    async def set_open(self, campaign: CampaignKey, is_open: bool) -> None:
        """See the port."""
        await self._tx.execute("UPDATE campaign_counters SET open = $2 WHERE campaign_id = $1", campaign, is_open)

    async def set_hold(self, campaign: CampaignKey, hold: Hold | None) -> None:
        """See the port."""
        value = None if hold is None else hold.value
        await self._tx.execute("UPDATE campaign SET hold = $2 WHERE id = $1", campaign, value)

    async def mark_stopped(self, campaign: CampaignKey, now: Instant) -> None:
        """See the port."""
        await self.set_open(campaign, False)
        await self._tx.execute(
            "UPDATE campaign SET status = 'stop', work = 'sweeping', stopped_by_operator = TRUE, stopped_at = $2 "
            "WHERE id = $1",
            campaign,
            now,
        )

    async def package_lives(self, campaign: CampaignKey) -> bool:
        """See the port."""
        sql = """SELECT p.deleted_at IS NULL FROM campaign c JOIN package p ON p.id = c.package_id
        WHERE c.id = $1 FOR SHARE OF p"""
        return bool(await self._tx.fetchval(sql, campaign))

    async def begin_round(self, campaign: CampaignKey, *, reopened: bool) -> None:
        """See the port."""
        await self._tx.execute(
            "UPDATE campaign SET round = round + 1, work = 'retrying' WHERE id = $1",
            campaign,
        )
        if reopened:
            await self._tx.execute(
                "UPDATE campaign SET status = 'processing', stopped_at = NULL WHERE id = $1", campaign
            )
            await self.set_open(campaign, True)

    async def upgrade_of(self, campaign: CampaignKey, device: str) -> tuple[DeviceKey, bool] | None:
        """See the port."""
        r = await self._tx.fetchrow(
            "SELECT d.id, u.finished_at IS NULL FROM upgrade u JOIN device d ON d.id = u.device_id "
            "WHERE u.campaign_id = $1 AND d.application_id = (SELECT application_id FROM campaign WHERE id = $1) "
            "AND (d.device_id = $2 OR d.node_id = $2) ORDER BY d.device_id = $2 DESC, u.id DESC LIMIT 1",
            campaign,
            device,
        )
        return None if r is None else (DeviceKey(r[0]), bool(r[1]))

    # -- many upgrades at once, all moved alike

    async def move_many(
        self,
        campaign: CampaignKey,
        states: Sequence[UpgradeState],
        to: UpgradeState,
        cause: str,
        detail: str | None,
        limit: int,
        now: Instant,
        due_at: Instant | None = None,
        *,
        after: int = 0,
        owed: bool = False,
    ) -> tuple[int, Sequence[UpgradeKey]] | None:
        """See the port."""
        for state in states:
            chosen = await self._tx.fetch(_CHOOSE, campaign, state.value, after, limit)
            if chosen:
                break
        else:
            return None
        ids = [r[0] for r in chosen]
        deltas = dict.fromkeys((c.value for c in Counter), 0)
        deltas[COUNTER_OF[state].value] -= len(ids)
        deltas[COUNTER_OF[to].value] += len(ids)
        await self._tx.execute(_MOVE_HISTORY, ids, now, to.value, cause)
        finished = now if to in FINAL else None
        await self._tx.execute(_MOVE, ids, to.value, detail, finished, due_at, owed or None)
        await self._tx.update_many(COUNTERS, [(campaign, *deltas.values())])
        return int(chosen[-1][1]), ids

    async def owe(self, upgrades: Collection[UpgradeKey]) -> None:
        """See the port."""
        if upgrades:
            sql = "UPDATE upgrade SET result_owed = TRUE WHERE id = ANY($1::bigint[])"
            await self._tx.execute(sql, sorted(upgrades))

    async def settle(self, campaign: CampaignKey, after: int, limit: int) -> tuple[int, Sequence[UpgradeKey]] | None:
        """See the port."""
        chosen = await self._tx.fetch(_CHOOSE_OWED, campaign, after, limit)
        if not chosen:
            return None
        ids = [r[0] for r in chosen]
        await self._tx.execute("UPDATE upgrade SET result_owed = NULL WHERE id = ANY($1::bigint[])", ids)
        return int(chosen[-1][1]), ids

    async def retry_many(self, campaign: CampaignKey, after: int, limit: int, now: Instant) -> int | None:
        """See the port."""
        await self._tx.look_up_by_keys()
        for _ in range(CONFLICT_TRIES):
            chosen = await self._tx.fetch(_CHOOSE_RETRY, campaign, after, limit)
            if not chosen:
                return None
            ids = [r[0] for r in chosen]
            states = {r[0]: r[1] for r in await self._tx.fetch(_CHOSEN_COUNTS, ids)}
            try:
                async with self._tx.savepoint():
                    await self._tx.execute(_MOVE_HISTORY, ids, now, "wait", "retry")
                    await self._tx.execute(_RETRY, ids)
            except UniqueViolation:  # another server gave one of the devices to another campaign just now
                continue
            failed, timed_out = states.get("fail", 0), states.get("timeout", 0)
            await self._tx.update_many(COUNTERS, [(campaign, len(ids), 0, 0, -failed, 0, -timed_out)])
            return int(chosen[-1][1])
        raise RuntimeError(f"campaign {campaign}: devices kept changing hands during the retry")
