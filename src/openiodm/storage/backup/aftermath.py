"""What a database must not believe that was made from a backup: the world went on since (ADR 23).

Devices have been upgraded, have failed, were given attempt numbers; tasks were created and stopped; sessions were
ended. None of it is in the rows. So
 * no attempt number is ever given that may have been given before, whoever got it;
 * every task that could give something to a device is held until an operator resumes it or stops it;
 * what a device runs is not known until it tells;
 * clocks stood still in between, leases and sessions are over.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from openiodm.storage.engine import Tx

# Attempt numbers after a restore begin at the seconds since then: later restores begin higher, whatever backup they are
# of, since no device is given an attempt a second. 32 bits last until 2088.
EPOCH = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp())

_STATEMENTS = (
    # Asked for its confirmation: asked again, as a new attempt.
    "UPDATE upgrade SET action_id = NULL, confirmed = NULL WHERE state = 'wait' AND action_id IS NOT NULL",
    "UPDATE campaign SET hold = 'all' WHERE status IN ('wait', 'processing')",
    # It may be retried.
    "UPDATE campaign SET hold = 'unproven' WHERE status = 'failed'",
    "UPDATE campaign_counters SET open = FALSE WHERE campaign_id IN (SELECT id FROM campaign WHERE hold = 'all')",
    # Nobody's patience runs out while a task is held; resuming it begins the clock anew.
    "DELETE FROM job WHERE kind = 'campaign.online' AND subject IN (SELECT id FROM campaign WHERE hold = 'all')",
    "UPDATE job SET owner = NULL, lease_until = NULL, epoch = epoch + 1",
    "UPDATE receiver SET owner = NULL, lease_until = NULL",
    "DELETE FROM campaign_change",
    # LwM2M devices are asked what software they have before they are given any, and tell it at no other time.
    """UPDATE device SET attributes_wanted = TRUE,
    fw_version = CASE WHEN reports_fw THEN NULL ELSE fw_version END,
    sw_version = CASE WHEN reports_sw AND NOT EXISTS (
        SELECT 1 FROM lwm2m_registration r WHERE r.device_id = device.id
    ) THEN NULL ELSE sw_version END""",
)
_HELD = """
SELECT a.app_id, a.name, c.operation_id, c.target_version, k.total, k.wait, k.processing
FROM campaign c JOIN campaign_counters k ON k.campaign_id = c.id JOIN application a ON a.id = c.application_id
WHERE c.hold = 'all' ORDER BY c.id
"""


@dataclass(frozen=True, slots=True)
class Held:
    """A task that goes on when its operator says so."""

    app_id: str
    application: str
    operation_id: str
    target_version: str
    total: int
    wait: int
    processing: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of a restore. `attempt_base`: attempt numbers begin above it."""

    taken_at: int
    restored_at: int
    attempt_base: int
    devices: int
    held: list[Held]


async def settle(tx: Tx, taken_at: int, now: int, operator: str) -> Restored:
    """Takes from the rows what only the time of the backup knew; which tasks are held."""
    newest = await tx.fetchval(
        "SELECT max(n) FROM (SELECT max(attempt_seq) AS n FROM device "
        "UNION ALL SELECT max(attempt_base) FROM restoration) AS numbers"
    )
    base = max(now // 1000 - EPOCH, int(newest or 0) + 1)
    for statement in _STATEMENTS:
        await tx.execute(statement)
    devices = await tx.execute("UPDATE device SET attempt_seq = $1", base)
    passed = max(0, now - taken_at)
    await tx.execute("UPDATE upgrade SET due_at = due_at + $1 WHERE due_at IS NOT NULL", passed)
    await tx.execute("UPDATE lwm2m_registration SET ended_at = $1 WHERE ended_at IS NULL", now)
    await tx.execute(
        "INSERT INTO restoration (restored_at, taken_at, attempt_base) VALUES ($1, $2, $3)", now, taken_at, base
    )
    await tx.execute(
        "INSERT INTO audit (application_id, at, caller, address, operation, object_id, outcome) "
        "SELECT id, CAST($1 AS bigint), CAST($2 AS text), '', 'server.restore', NULL, 'done' FROM application",
        now,
        operator,
    )
    return Restored(taken_at, now, base, devices, [_held(row) for row in await tx.fetch(_HELD)])


def _held(row: Any) -> Held:
    return Held(*row)
