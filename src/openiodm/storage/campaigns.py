"""Rows of campaigns, upgrades, counters and history, within the writer's transaction.

Lock order on PostgreSQL, the same everywhere: devices by id, then upgrades by id, then campaign_counters by campaign id
(each with its campaign), then jobs. A lock comes before the statement whose values count: a statement that waits for a
lock sees the locked row as it is then, and every row that it joins to it as that was before.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from openiodm.access.model import ApplicationKey
from openiodm.campaigns import texts
from openiodm.campaigns.model import CampaignKey, CampaignKind, Clocks, Counters, UpgradeKey
from openiodm.campaigns.ports import (
    CampaignDesk,
    CampaignRow,
    DeviceFacts,
    GroupFacts,
    Moved,
    PackageFacts,
    ProductKey,
)
from openiodm.campaigns.rollout import Standing
from openiodm.campaigns.states import COUNTER_OF, FINAL, CampaignStatus, Counter, UpgradeState
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey
from openiodm.packages.model import PackageKey
from openiodm.storage.campaign_reads import IDEMPOTENT
from openiodm.storage.engine import InsertMany, Row, Tx, UniqueViolation, UpdateMany

MAX_LOG_ENTRIES = 1000  # of one attempt
MAX_LOG_LINES = 50  # of one entry
CONFLICT_TRIES = 5  # two servers that expand over the same devices at the same moment

# The columns of a Standing. What differs by kind is chosen by CASE, since one batch holds campaigns of both kinds.
STANDING_COLUMNS = """
u.id AS upgrade, u.device_id, u.campaign_id, c.package_id, u.state, u.round, u.action_id, u.confirmed, u.halted_in,
u.source_version, u.detail, u.error_code, u.started_at, u.finished_at, u.due_at, c.kind, c.target_version,
p.source_versions, c.confirmation, c.clocks, c.window_start, c.window_end, k.open,
CASE WHEN c.kind = 'firmware_upgrade' THEN d.fw_version ELSE d.sw_version END AS version,
CASE WHEN c.kind = 'firmware_upgrade' THEN d.reports_fw ELSE d.reports_sw END AS reports_version,
d.auto_confirm IS NOT NULL AS auto_confirm, d.attempt_seq
"""
STANDING_JOINS = """
JOIN campaign c ON c.id = u.campaign_id
JOIN campaign_counters k ON k.campaign_id = c.id
JOIN package p ON p.id = c.package_id
"""

_STANDINGS = f"""
SELECT {STANDING_COLUMNS} FROM upgrade u JOIN device d ON d.id = u.device_id {STANDING_JOINS}
WHERE u.device_id = ANY($1::bigint[]) AND u.finished_at IS NULL ORDER BY u.id FOR UPDATE OF u
"""

_LOOK = """
SELECT k.campaign_id, c.status, c.work, c.round, c.retry_times, c.window_start, c.window_end, c.clocks, k.open,
k.total, k.wait, k.processing, k.success, k.fail, k.stop, k.timeout
FROM campaign_counters k JOIN campaign c ON c.id = k.campaign_id
WHERE k.campaign_id = ANY($1::bigint[]) ORDER BY k.campaign_id
"""
_LOCK = f"{_LOOK} FOR UPDATE OF k, c"
_LOCK_DEVICES = "SELECT id FROM device WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE"

# One upgrade per chosen device. A device that another campaign holds is born `fail`, one that already runs the version
# `success`, one on a version that the package does not start from `fail`; all others wait.
_INSERT_UPGRADES = """
INSERT INTO upgrade (public_id, campaign_id, ordinal, device_id, state, round, source_version, detail, blocker_id,
                     created_at, finished_at, result_owed)
SELECT random_id(), $1, $2 + row_number() OVER (ORDER BY t.rank, t.id), t.id,
       CASE WHEN t.cause IS NULL THEN 'wait' WHEN t.cause = $7 THEN 'success' ELSE 'fail' END,
       0, t.version, t.cause, t.blocker_id, $3, CASE WHEN t.cause IS NULL THEN NULL ELSE CAST($3 AS bigint) END,
       CASE WHEN t.cause IS NOT NULL AND t.cause <> $7 THEN CAST($10 AS boolean) END
FROM (
    SELECT d.id, s.rank, d.{version} AS version, b.campaign_id AS blocker_id,
           CASE WHEN b.id IS NOT NULL THEN $6
                WHEN d.{version} = $4 THEN $7
                WHEN CAST($5 AS boolean) AND d.{version} IS NOT NULL AND NOT (d.{version} = ANY($9::text[])) THEN $8
           END AS cause
    FROM ({source}) s
    JOIN device d ON d.id = s.device_id AND d.deleted_at IS NULL
    LEFT JOIN upgrade b ON b.device_id = d.id AND b.finished_at IS NULL
    WHERE NOT EXISTS (SELECT 1 FROM upgrade own WHERE own.device_id = d.id AND own.campaign_id = $1)
    FOR KEY SHARE OF d
) t WHERE TRUE
ON CONFLICT (device_id) WHERE finished_at IS NULL DO NOTHING
"""
_LEFT_OUT = """
SELECT 1 FROM ({source}) s JOIN device d ON d.id = s.device_id AND d.deleted_at IS NULL
WHERE NOT EXISTS (SELECT 1 FROM upgrade own WHERE own.device_id = d.id AND own.campaign_id = $1) LIMIT 1
"""
_FROM_DEVICES = "SELECT x.id AS device_id, x.id AS rank FROM device x WHERE x.id = ANY(${0}::bigint[])"
_FROM_MEMBERS = """SELECT m.device_id, m.id AS rank FROM group_member m
WHERE m.group_id = ${0} AND m.product_id = ${1} AND m.id > ${2} AND m.id <= ${3}"""

_BORN = "SELECT state, count(*) FROM upgrade WHERE campaign_id = $1 AND ordinal > $2 GROUP BY state"
_LAST_ORDINAL = "SELECT max(ordinal) FROM upgrade WHERE campaign_id = $1"

_NEXT_GROUP = """
SELECT group_id, watermark, expanded_to FROM campaign_group
WHERE campaign_id = $1 AND expanded_to < watermark ORDER BY group_id LIMIT 1
"""
_CHUNK_END = """
SELECT max(id) FROM (SELECT m.id FROM group_member m
WHERE m.group_id = $1 AND m.product_id = $2 AND m.id > $3 AND m.id <= $4 ORDER BY m.id LIMIT $5) AS chunk
"""

_HISTORY = InsertMany(
    "history",
    {
        "upgrade_id": "bigint",
        "at": "bigint",
        "from_state": "text",
        "to_state": "text",
        "action_id": "int",
        "cause": "text",
    },
)
_UPGRADES = UpdateMany(
    "upgrade",
    {"id": "bigint", "state": "text"},
    {
        "state": "text",
        "action_id": "int",
        "confirmed": "boolean",
        "halted_in": "text",
        "source_version": "text",
        "detail": "text",
        "error_code": "text",
        "started_at": "bigint",
        "finished_at": "bigint",
        "due_at": "bigint",
    },
)
_COUNTERS = UpdateMany(
    "campaign_counters",
    {"campaign_id": "bigint"},
    {},
    {c.value: "int" for c in Counter},
)
_LOGS = InsertMany(
    "device_log",
    {"upgrade_id": "bigint", "action_id": "int", "n": "int", "at": "bigint", "kind": "text", "lines": "text"},
)
_ATTEMPTS = UpdateMany("device", {"id": "bigint"}, {"attempt_seq": "int"})
_WANTED = UpdateMany("device", {"id": "bigint"}, {"attributes_wanted": "boolean"})
_INSTALLED = UpdateMany("device", {"id": "bigint"}, {"installed_action_id": "int"})
_BELIEVED = {
    CampaignKind.FIRMWARE: UpdateMany("device", {"id": "bigint"}, {"fw_version": "text"}),
    CampaignKind.SOFTWARE: UpdateMany("device", {"id": "bigint"}, {"sw_version": "text"}),
}

_CHOOSE = """
SELECT id FROM upgrade WHERE campaign_id = $1 AND state = ANY($2::text[]) ORDER BY ordinal LIMIT $3 FOR UPDATE
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
_PACKAGE = """
SELECT p.id, p.file_type, p.version, p.product_id, t.device_type, t.model, t.manufacturer_name, p.source_versions
FROM package p JOIN product t ON t.id = p.product_id
WHERE p.application_id = $1 AND p.file_id = $2 AND p.deleted_at IS NULL FOR SHARE OF p
"""
_DEVICES = """
SELECT device_id AS name, id, device_id, product_id FROM device
WHERE application_id = $1 AND device_id = ANY($2::text[]) AND deleted_at IS NULL
"""
_DEVICES_BY_NODE = """
SELECT node_id AS name, id, device_id, product_id FROM device
WHERE application_id = $1 AND node_id = ANY($2::text[]) AND deleted_at IS NULL
"""
_GROUPS = """
SELECT g.name, g.id,
  coalesce((SELECT max(m.id) FROM group_member m WHERE m.group_id = g.id AND m.product_id = $3), 0) AS watermark
FROM device_group g WHERE g.application_id = $1 AND g.name = ANY($2::text[]) AND g.deleted_at IS NULL
"""
_INSERT_CAMPAIGN = """
INSERT INTO campaign (operation_id, application_id, kind, package_id, product_id, device_type, model,
  manufacturer_name, target_version, target_devices, target_groups, policy_given, execute_type, window_start,
  window_end, retry_times, round, confirmation, clocks, status, work, stopped_by_operator, created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 0, $17, $18, 'wait', $19, FALSE, $20)
RETURNING id
"""
_INSERT_COUNTERS = """
INSERT INTO campaign_counters (campaign_id, open, total, wait, processing, success, fail, stop, timeout)
VALUES ($1, $2, 0, 0, 0, 0, 0, 0, 0)
"""
_GROW = """
UPDATE campaign_counters SET total = total + $2, wait = wait + $3, success = success + $4, fail = fail + $5
WHERE campaign_id = $1
"""


@lru_cache(maxsize=4096)
def clocks_of(text: str) -> Clocks:
    """Campaigns share few sets of clocks."""
    return msgspec.json.decode(text, type=Clocks)


@lru_cache(maxsize=4096)
def strings_of(text: str) -> tuple[str, ...]:
    """A JSON list of strings."""
    return msgspec.json.decode(text, type=tuple[str, ...])


def standing_of(r: Row) -> Standing:
    """A row that begins with `STANDING_COLUMNS` at "upgrade"."""
    return Standing(
        upgrade=UpgradeKey(r["upgrade"]),
        device=DeviceKey(r["device_id"]),
        campaign=CampaignKey(r["campaign_id"]),
        package=PackageKey(r["package_id"]),
        state=UpgradeState(r["state"]),
        round=r["round"],
        action_id=r["action_id"],
        confirmed=None if r["confirmed"] is None else bool(r["confirmed"]),
        halted_in=None if r["halted_in"] is None else UpgradeState(r["halted_in"]),
        source_version=r["source_version"],
        detail=r["detail"],
        error_code=r["error_code"],
        started_at=r["started_at"],
        finished_at=r["finished_at"],
        due_at=r["due_at"],
        kind=CampaignKind(r["kind"]),
        target_version=r["target_version"],
        source_versions=strings_of(r["source_versions"]),
        confirmation=bool(r["confirmation"]),
        clocks=clocks_of(r["clocks"]),
        window_start=r["window_start"],
        window_end=r["window_end"],
        open=bool(r["open"]),
        version=r["version"],
        reports_version=bool(r["reports_version"]),
        auto_confirm=bool(r["auto_confirm"]),
        attempt_seq=r["attempt_seq"],
    )


def _desk_of(r: Row) -> CampaignDesk:
    return CampaignDesk(
        key=CampaignKey(r["campaign_id"]),
        status=CampaignStatus(r["status"]),
        work=r["work"],
        round=r["round"],
        retry_times=r["retry_times"],
        window_start=r["window_start"],
        window_end=r["window_end"],
        clocks=clocks_of(r["clocks"]),
        open=bool(r["open"]),
        counters=Counters(*(r[n] for n in ("total", "wait", "processing", "success", "fail", "stop", "timeout"))),
    )


def _json(values: Sequence[str] | None) -> str | None:
    return None if values is None else msgspec.json.encode(values).decode()


class CampaignRows:
    """See `campaigns.ports.CampaignRows`."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    # -- what a new campaign stands on

    async def package(self, application: ApplicationKey, file_id: str) -> PackageFacts | None:
        """See the port."""
        r = await self._tx.fetchrow(_PACKAGE, application, file_id)
        if r is None:
            return None
        return PackageFacts(PackageKey(r[0]), r[1], r[2], ProductKey(r[3]), r[4], r[5], r[6], strings_of(r[7]))

    async def devices(
        self, application: ApplicationKey, names: Sequence[str], *, node_ids: bool
    ) -> Mapping[str, DeviceFacts]:
        """See the port."""
        rows = list(await self._tx.fetch(_DEVICES, application, list(names)))
        others = sorted(set(names) - {r[0] for r in rows})
        if node_ids and others:
            rows += await self._tx.fetch(_DEVICES_BY_NODE, application, others)
        return {r[0]: DeviceFacts(r[1], r[2], ProductKey(r[3])) for r in rows}

    async def groups(
        self, application: ApplicationKey, names: Sequence[str], product: ProductKey
    ) -> Mapping[str, GroupFacts]:
        """See the port."""
        rows = await self._tx.fetch(_GROUPS, application, list(names), product)
        return {r[0]: GroupFacts(r[1], r[2], r[2] > 0) for r in rows}

    async def idempotent(self, application: ApplicationKey, key: str) -> tuple[str, str] | None:
        """See the port."""
        r = await self._tx.fetchrow(IDEMPOTENT, application, key)
        return None if r is None else (r[0], r[1])

    async def forget(self, before: Instant) -> int:
        """See the port."""
        return await self._tx.execute("DELETE FROM idempotency WHERE created_at < $1", before)

    async def remember(
        self, application: ApplicationKey, key: str, request_hash: str, operation_id: str, now: Instant
    ) -> bool:
        """See the port. On PostgreSQL the insert waits for a rival that is not committed yet."""
        return bool(
            await self._tx.execute(
                "INSERT INTO idempotency (application_id, key, request_hash, operation_id, created_at) "
                "VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
                application,
                key,
                request_hash,
                operation_id,
                now,
            )
        )

    async def insert(self, row: CampaignRow) -> CampaignKey:
        """See the port."""
        asked, package, policy = row.asked, row.package, row.policy
        key = await self._tx.fetchval(
            _INSERT_CAMPAIGN,
            row.operation_id,
            row.application,
            asked.kind.value,
            package.key,
            package.product,
            package.device_type,
            package.model,
            package.manufacturer_name,
            package.version,
            _json(asked.target.devices),
            _json(asked.target.groups),
            asked.policy is not None,
            policy.execute_type.value,
            policy.window_start,
            policy.window_end,
            policy.retry_times,
            asked.confirmation,
            msgspec.json.encode(row.clocks).decode(),
            row.work,
            row.created_at,
        )
        await self._tx.execute(_INSERT_COUNTERS, key, row.open)
        return CampaignKey(key)

    # -- one upgrade per device

    async def insert_for_devices(
        self, campaign: CampaignKey, devices: Sequence[int], now: Instant, *, owed: bool
    ) -> int:
        """See the port."""
        return await self._grow(campaign, _FROM_DEVICES, (list(devices),), now, owed=owed)

    async def target_groups(self, campaign: CampaignKey, groups: Sequence[GroupFacts]) -> None:
        """See the port."""
        statement = InsertMany(
            "campaign_group",
            {"campaign_id": "bigint", "group_id": "bigint", "watermark": "bigint", "expanded_to": "bigint"},
        )
        await self._tx.insert_many(statement, [(campaign, g.key, g.watermark, 0) for g in groups])

    async def expand(self, campaign: CampaignKey, limit: int, now: Instant, *, owed: bool) -> int | None:
        """See the port."""
        group = await self._tx.fetchrow(_NEXT_GROUP, campaign)
        if group is None:
            return None
        group_id, watermark, done = group[0], group[1], group[2]
        product = await self._tx.fetchval("SELECT product_id FROM campaign WHERE id = $1", campaign)
        end = await self._tx.fetchval(_CHUNK_END, group_id, product, done, watermark, limit)
        if end is None:
            before: int = await self._tx.fetchval(_LAST_ORDINAL, campaign) or 0
        else:
            before = await self._grow(campaign, _FROM_MEMBERS, (group_id, product, done, end), now, owed=owed)
        await self._tx.execute(
            "UPDATE campaign_group SET expanded_to = $3 WHERE campaign_id = $1 AND group_id = $2",
            campaign,
            group_id,
            watermark if end is None else end,
        )
        return before

    async def _grow(
        self, campaign: CampaignKey, source: str, source_args: tuple[Any, ...], now: Instant, *, owed: bool
    ) -> int:
        facts = await self._tx.fetchrow(
            "SELECT c.kind, c.target_version, p.source_versions FROM campaign c JOIN package p ON p.id = c.package_id "
            "WHERE c.id = $1",
            campaign,
        )
        assert facts is not None
        version = "fw_version" if facts[0] == CampaignKind.FIRMWARE else "sw_version"
        sources = list(strings_of(facts[2]))
        sql = _INSERT_UPGRADES.format(version=version, source=source.format(11, 12, 13, 14))
        left_out = _LEFT_OUT.format(source=source.format(2, 3, 4, 5))
        base: int = await self._tx.fetchval(_LAST_ORDINAL, campaign) or 0
        args = (
            campaign,
            base,
            now,
            facts[1],
            bool(sources),
            texts.TASK_CONFLICT,
            texts.SAME_VERSION,
            texts.SOURCE_VERSION,
            sources,
            owed or None,
            *source_args,
        )
        for _ in range(CONFLICT_TRIES):
            try:
                async with self._tx.savepoint():
                    await self._tx.execute(sql, *args)
                    # Did another server take a device in between? Its row shows next time.
                    if await self._tx.fetchval(left_out, campaign, *source_args) is not None:
                        raise UniqueViolation("uq_upgrade_device_id_open")
                break
            except UniqueViolation:
                continue
        else:
            raise RuntimeError(f"campaign {campaign}: devices kept changing hands during the expansion")
        born = {r[0]: r[1] for r in await self._tx.fetch(_BORN, campaign, base)}
        await self._tx.execute(
            _GROW, campaign, sum(born.values()), born.get("wait", 0), born.get("success", 0), born.get("fail", 0)
        )
        return base

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
        owed: bool = False,
    ) -> Sequence[UpgradeKey]:
        """See the port."""
        ids = [r[0] for r in await self._tx.fetch(_CHOOSE, campaign, [s.value for s in states], limit)]
        if not ids:
            return []
        deltas = dict.fromkeys((c.value for c in Counter), 0)
        for state, count in await self._tx.fetch(_CHOSEN_COUNTS, ids):
            deltas[COUNTER_OF[UpgradeState(state)].value] -= count
        deltas[COUNTER_OF[to].value] += len(ids)
        await self._tx.execute(_MOVE_HISTORY, ids, now, to.value, cause)
        finished = now if to in FINAL else None
        await self._tx.execute(_MOVE, ids, to.value, detail, finished, due_at, owed or None)
        await self._tx.update_many(_COUNTERS, [(campaign, *deltas.values())])
        return ids

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
            await self._tx.update_many(_COUNTERS, [(campaign, len(ids), 0, 0, -failed, 0, -timed_out)])
            return int(chosen[-1][1])
        raise RuntimeError(f"campaign {campaign}: devices kept changing hands during the retry")

    # -- single upgrades, in batches

    async def standings(self, devices: Sequence[DeviceKey]) -> Mapping[DeviceKey, Standing]:
        """See the port."""
        await self._tx.lock(_LOCK_DEVICES, list(devices))
        rows = await self._tx.fetch(_STANDINGS, list(devices))
        return {s.device: s for s in map(standing_of, rows)}

    async def ended_as(self, device: DeviceKey, action_id: int) -> tuple[UpgradeState, Instant] | None:
        """See the port."""
        r = await self._tx.fetchrow(
            "SELECT h.to_state, h.at FROM upgrade u JOIN history h ON h.upgrade_id = u.id "
            "WHERE u.device_id = $1 AND h.action_id = $2 AND h.to_state IN ('success', 'fail', 'timeout', 'stop') "
            "ORDER BY h.id DESC LIMIT 1",
            device,
            action_id,
        )
        return None if r is None else (UpgradeState(r[0]), Instant(r[1]))

    async def newest_attempt(self, device: DeviceKey) -> int:
        """See the port."""
        return int(await self._tx.fetchval("SELECT attempt_seq FROM device WHERE id = $1", device) or 0)

    async def save(self, moved: Sequence[Moved], deltas: Mapping[CampaignKey, Mapping[str, int]], now: Instant) -> None:
        """See the port."""
        changed = [m for m in moved if m.after != m.before]
        touched = await self._tx.update_many(_UPGRADES, [_upgrade_values(m) for m in changed])
        if touched != len(changed):  # rows are locked since they were read: this is a bug, not a race
            raise RuntimeError(f"compare-and-set touched {touched} of {len(changed)} upgrades")
        await self._tx.insert_many(
            _HISTORY,
            [
                (m.after.upgrade, now, t.from_state.value, t.to_state.value, t.action_id, t.cause)
                for m in moved
                for t in m.transitions
            ],
        )
        await self._save_logs([m for m in moved if m.logs], now)
        await self._save_devices(changed)
        await self._tx.update_many(
            _COUNTERS, [(c, *(deltas[c].get(n.value, 0) for n in Counter)) for c in sorted(deltas)]
        )

    async def _save_logs(self, moved: Sequence[Moved], now: Instant) -> None:
        if not moved:
            return
        rows = await self._tx.fetch(
            "SELECT u.id, (SELECT max(l.n) FROM device_log l WHERE l.upgrade_id = u.id AND l.action_id = u.action_id) "
            "FROM upgrade u WHERE u.id = ANY($1::bigint[])",
            [m.after.upgrade for m in moved],
        )
        last = {r[0]: r[1] or 0 for r in rows}
        entries = []
        for m in moved:
            for n, entry in enumerate(m.logs, last[m.after.upgrade] + 1):
                if n <= MAX_LOG_ENTRIES:
                    lines = msgspec.json.encode(entry.lines[:MAX_LOG_LINES]).decode()
                    entries.append((m.after.upgrade, m.after.action_id, n, now, entry.kind, lines))
        await self._tx.insert_many(_LOGS, entries)

    async def _save_devices(self, changed: Sequence[Moved]) -> None:
        """Attempt numbers at a grant; at the end of an attempt, what the device is asked for next."""
        await self._tx.update_many(
            _ATTEMPTS,
            [(m.after.device, m.after.attempt_seq) for m in changed if m.after.attempt_seq != m.before.attempt_seq],
        )
        await self._tx.update_many(_WANTED, [(m.after.device, True) for m in changed if _asks_attributes(m)])
        succeeded = [m.after for m in changed if m.after.state is UpgradeState.SUCCESS]
        await self._tx.update_many(_INSTALLED, [(s.device, s.action_id) for s in succeeded if s.action_id is not None])
        for kind, statement in _BELIEVED.items():
            believed = [(s.device, s.version) for s in succeeded if s.kind is kind and not s.reports_version]
            await self._tx.update_many(statement, believed)

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


def _asks_attributes(m: Moved) -> bool:
    """After an installation, once: a device that had to show its version was asked when it said that it was done."""
    entered = {t.to_state for t in m.transitions}
    if UpgradeState.VERIFYING in entered:
        return True
    verified = UpgradeState.VERIFYING in (m.before.state, m.before.halted_in)
    return UpgradeState.SUCCESS in entered and m.after.action_id is not None and not verified


def _upgrade_values(m: Moved) -> tuple[Any, ...]:
    s = m.after
    return (
        s.upgrade,
        m.before.state.value,
        s.state.value,
        s.action_id,
        s.confirmed,
        None if s.halted_in is None else s.halted_in.value,
        s.source_version,
        s.detail,
        s.error_code,
        s.started_at,
        s.finished_at,
        s.due_at,
    )
