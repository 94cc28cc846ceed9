"""Queries of campaigns outside transactions: by key, by bounded range, or (recounts) on a connection of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from openiodm.access.model import ApplicationKey, Product
from openiodm.campaigns.model import (
    Campaign,
    CampaignFilter,
    CampaignKey,
    CampaignKind,
    Change,
    Counters,
    ExecuteType,
    Hold,
    Policy,
    Upgrade,
)
from openiodm.campaigns.states import CampaignStatus, UpgradeState
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey
from openiodm.storage.engine import Database, Row

CAMPAIGN = """
SELECT c.id, c.operation_id, c.kind, c.device_type, c.model, c.manufacturer_name, c.target_version, c.target_devices,
  c.target_groups, c.policy_given, c.execute_type, c.window_start, c.window_end, c.retry_times, c.confirmation,
  c.status, c.round, c.work, c.created_at, c.started_at, c.stopped_at, c.hold, c.max_concurrent,
  k.total, k.wait, k.processing, k.success, k.fail, k.stop, k.timeout
FROM campaign c JOIN campaign_counters k ON k.campaign_id = c.id
"""
_ONE = CAMPAIGN + "WHERE c.application_id = $1 AND c.operation_id = $2"

IDEMPOTENT = "SELECT request_hash, operation_id FROM idempotency WHERE application_id = $1 AND key = $2"

UPGRADE = """
SELECT u.ordinal, u.public_id, d.device_id, d.node_id, u.state, u.round, u.action_id, u.source_version,
  CASE WHEN c.kind = 'firmware_upgrade' THEN d.fw_version ELSE d.sw_version END AS current_version,
  CASE WHEN c.kind = 'firmware_upgrade' THEN d.reports_fw ELSE d.reports_sw END AS reports_version,
  u.detail, u.error_code, u.created_at, u.started_at, u.finished_at, u.due_at, u.confirmed, d.last_seen_at,
  (SELECT b.operation_id FROM campaign b WHERE b.id = u.blocker_id) AS blocker
FROM upgrade u JOIN device d ON d.id = u.device_id JOIN campaign c ON c.id = u.campaign_id
"""
_PAGE_ALL = UPGRADE + "WHERE u.campaign_id = $1 AND u.ordinal > $2 AND u.ordinal <= $3 ORDER BY u.ordinal DESC"
_PAGE_STATES = f"""
SELECT k.total, k.wait, k.processing, k.success, k.fail, k.stop, k.timeout, p.*
FROM campaign_counters k LEFT JOIN (
  {UPGRADE} JOIN (
    SELECT id FROM upgrade WHERE campaign_id = $1 AND state = ANY($2::text[]) ORDER BY ordinal DESC LIMIT $3 OFFSET $4
  ) AS page ON page.id = u.id
) AS p ON true WHERE k.campaign_id = $1 ORDER BY p.ordinal DESC
"""
# Ordinals are dense: the next rows are a range of keys, whatever a planner without statistics believes.
_AFTER = UPGRADE + "WHERE u.campaign_id = $1 AND u.ordinal > $2 AND u.ordinal <= $3 ORDER BY u.ordinal"
_AFTER_STATES = f"""
{UPGRADE} JOIN (
  SELECT id FROM upgrade WHERE campaign_id = $1 AND ordinal > $2 AND state = ANY($4::text[]) ORDER BY ordinal LIMIT $3
) AS page ON page.id = u.id ORDER BY u.ordinal
"""
_UPGRADE_ID = """
SELECT u.id FROM upgrade u JOIN device d ON d.id = u.device_id
WHERE u.campaign_id = $1 AND d.application_id = (SELECT application_id FROM campaign WHERE id = $1)
  AND (d.device_id = $2 OR d.node_id = $2) ORDER BY d.device_id = $2 DESC, u.id DESC LIMIT 1
"""
_UNFINISHED = """
SELECT c.id FROM campaign c JOIN campaign_counters k ON k.campaign_id = c.id
WHERE c.id > $1 AND c.status IN ('wait', 'processing') AND k.total <= $3 ORDER BY c.id LIMIT $2
"""
_DUE = "SELECT device_id FROM upgrade WHERE due_at <= $1 ORDER BY due_at LIMIT $2"


def campaign_of(r: Row) -> Campaign:
    """A row of `CAMPAIGN`."""
    policy = None
    if r["policy_given"]:
        policy = Policy(ExecuteType(r["execute_type"]), r["window_start"], r["window_end"], r["retry_times"])
    return Campaign(
        key=CampaignKey(r["id"]),
        operation_id=r["operation_id"],
        kind=CampaignKind(r["kind"]),
        product=Product(r["device_type"], r["model"], r["manufacturer_name"]),
        target_version=r["target_version"],
        target_devices=r["target_devices"],
        target_groups=r["target_groups"],
        policy=policy,
        confirmation=bool(r["confirmation"]),
        status=CampaignStatus(r["status"]),
        round=r["round"],
        work=r["work"],
        created_at=r["created_at"],
        started_at=r["started_at"],
        stopped_at=r["stopped_at"],
        counters=counters_of(r),
        hold=None if r["hold"] is None else Hold(r["hold"]),
        max_concurrent=r["max_concurrent"],
    )


def counters_of(r: Row) -> Counters:
    """A row of `campaign_counters`."""
    return Counters(r["total"], r["wait"], r["processing"], r["success"], r["fail"], r["stop"], r["timeout"])


def upgrade_of(r: Row) -> Upgrade:
    """A row of `UPGRADE`."""
    return Upgrade(
        ordinal=r["ordinal"],
        public_id=r["public_id"],
        device_id=r["device_id"],
        node_id=r["node_id"],
        state=UpgradeState(r["state"]),
        round=r["round"],
        action_id=r["action_id"],
        source_version=r["source_version"],
        current_version=r["current_version"],
        detail=r["detail"],
        error_code=r["error_code"],
        created_at=r["created_at"],
        started_at=r["started_at"],
        finished_at=r["finished_at"],
        due_at=r["due_at"],
        confirmed=None if r["confirmed"] is None else bool(r["confirmed"]),
        last_seen_at=r["last_seen_at"],
        reports_version=bool(r["reports_version"]),
        blocker=r["blocker"],
    )


class SqlCampaignReads:
    """See `campaigns.ports.CampaignReads`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def one(self, application: ApplicationKey, operation_id: str) -> Campaign | None:
        """See the port."""
        r = await self._db.fetchrow(_ONE, application, operation_id)
        return None if r is None else campaign_of(r)

    async def idempotent(self, application: ApplicationKey, key: str) -> tuple[str, str] | None:
        """See the port."""
        r = await self._db.fetchrow(IDEMPOTENT, application, key)
        return None if r is None else (r[0], r[1])

    async def upgrades_page(
        self, campaign: Campaign, states: Sequence[UpgradeState] | None, number: int, size: int
    ) -> tuple[Counters, Sequence[Upgrade]]:
        """See the port. Ordinals are dense, so an unfiltered page is a range of keys and needs no OFFSET.

        A filtered page and its counters are one statement, or a total could tell of another moment than its rows.
        """
        if states is None:
            newest = campaign.counters.total - number * size
            rows = await self._db.fetch(_PAGE_ALL, campaign.key, newest - size, newest)
            return campaign.counters, [upgrade_of(r) for r in rows]
        names = [s.value for s in states]
        rows = await self._db.fetch(_PAGE_STATES, campaign.key, names, size, number * size)
        return counters_of(rows[0]), [upgrade_of(r) for r in rows if r["ordinal"] is not None]

    async def upgrades_after(
        self, campaign: CampaignKey, after: int, size: int, states: Sequence[UpgradeState] | None
    ) -> Sequence[Upgrade]:
        """See the port."""
        if states is None:
            rows = await self._db.fetch(_AFTER, campaign, after, after + size)
        else:
            rows = await self._db.fetch(_AFTER_STATES, campaign, after, size, [s.value for s in states])
        return [upgrade_of(r) for r in rows]

    async def history(self, campaign: CampaignKey, device: str) -> Sequence[Change] | None:
        """See the port."""
        upgrade = await self._db.fetchval(_UPGRADE_ID, campaign, device)
        if upgrade is None:
            return None
        rows = await self._db.fetch(
            "SELECT at, from_state, to_state, action_id, cause FROM history WHERE upgrade_id = $1 ORDER BY id", upgrade
        )
        return [Change(Instant(r[0]), UpgradeState(r[1]), UpgradeState(r[2]), r[3], r[4]) for r in rows]

    async def device_log(self, campaign: CampaignKey, device: str) -> Sequence[tuple[Instant, int, str, list[str]]]:
        """See the port."""
        upgrade = await self._db.fetchval(_UPGRADE_ID, campaign, device)
        if upgrade is None:
            return ()
        rows = await self._db.fetch(
            "SELECT at, action_id, kind, lines FROM device_log WHERE upgrade_id = $1 ORDER BY action_id, n", upgrade
        )
        return [(Instant(r[0]), r[1], r[2], msgspec.json.decode(r[3], type=list[str])) for r in rows]

    async def recount(self, campaign: CampaignKey) -> tuple[Counters, Mapping[UpgradeState, int]]:
        """See the port."""
        async with self._db.snapshot() as view:
            counters = await view.fetchrow("SELECT * FROM campaign_counters WHERE campaign_id = $1", campaign)
            rows = await view.fetch(
                "SELECT state, count(*) FROM upgrade WHERE campaign_id = $1 GROUP BY state", campaign
            )
        return counters_of(counters), {UpgradeState(r[0]): r[1] for r in rows}

    async def unfinished(self, after: CampaignKey, limit: int, most: int) -> Sequence[CampaignKey]:
        """See the port."""
        async with self._db.snapshot() as view:
            return [CampaignKey(r[0]) for r in await view.fetch(_UNFINISHED, after, limit, most)]

    async def due(self, now: Instant, limit: int) -> Sequence[DeviceKey]:
        """See the port."""
        return [DeviceKey(r[0]) for r in await self._db.fetch(_DUE, now, limit)]


class SqlCampaignList:
    """The task list in plain SQL: the reference that any index is compared with (`campaigns.ports.CampaignList`)."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def page(self, where: CampaignFilter, number: int, size: int) -> tuple[int, Sequence[Campaign]]:
        """See the port. One statement, so that the total is of the same moment as the rows."""
        conditions, args = _conditions(where)
        n = len(args)
        rows_of_page = f"{CAMPAIGN} WHERE {conditions} ORDER BY c.id DESC LIMIT ${n + 1} OFFSET ${n + 2}"
        sql = (
            f"SELECT t.matches, p.* FROM (SELECT count(*) AS matches FROM campaign c WHERE {conditions}) AS t "
            f"LEFT JOIN ({rows_of_page}) AS p ON true ORDER BY p.id DESC"
        )
        rows = await self._db.fetch(sql, *args, size, number * size)
        return rows[0]["matches"], tuple(campaign_of(r) for r in rows if r["id"] is not None)


def _conditions(where: CampaignFilter) -> tuple[str, list[Any]]:
    parts: list[str] = ["c.application_id = $1"]
    args: list[Any] = [where.application]
    for column, value in (
        ("c.kind", where.kind),
        ("c.status", where.status),
        ("c.device_type", where.device_type),
        ("c.model", where.model),
        ("c.manufacturer_name", where.manufacturer_name),
    ):
        if value is not None:
            args.append(str(value))
            parts.append(f"{column} = ${len(args)}")
    if where.device_id is not None:
        args.append(where.device_id)
        parts.append(
            "EXISTS (SELECT 1 FROM device d JOIN upgrade u ON u.device_id = d.id AND u.campaign_id = c.id "
            f"WHERE d.application_id = $1 AND d.device_id = ${len(args)})"
        )
    return " AND ".join(parts), args
