"""Rows of a new campaign within the writer's transaction: what it stands on, and an upgrade for each of its devices."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from openiodm.access.model import ApplicationKey
from openiodm.campaigns import texts
from openiodm.campaigns.model import CampaignKey, CampaignKind
from openiodm.campaigns.ports import (
    CampaignRow,
    DeviceFacts,
    GroupFacts,
    PackageFacts,
    ProductKey,
)
from openiodm.clock import Instant
from openiodm.packages.model import PackageKey
from openiodm.storage.campaign_reads import IDEMPOTENT
from openiodm.storage.engine import InsertMany, Tx, UniqueViolation
from openiodm.storage.standings import strings_of

CONFLICT_TRIES = 5  # two servers that expand over the same devices at the same moment
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
  window_end, retry_times, round, confirmation, clocks, status, work, stopped_by_operator, created_at,
  max_concurrent)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 0, $17, $18, 'wait', $19, FALSE, $20,
  $21)
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


def _json(values: Sequence[str] | None) -> str | None:
    return None if values is None else msgspec.json.encode(values).decode()


class NewCampaignRows:
    """The part of `campaigns.ports.CampaignRows` that creation and expansion work with."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

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
            asked.max_concurrent,
        )
        await self._tx.execute(_INSERT_COUNTERS, key, row.open)
        return CampaignKey(key)

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
        await self._tx.look_up_by_keys()
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
