"""What the rows of a whole database say at one moment, for metrics: counted on a connection of its own."""

from openiodm.clock import Instant
from openiodm.metrics import Overview
from openiodm.storage.engine import Database

_JOBS = """
SELECT kind, sum(CASE WHEN lease_until >= $1 THEN 1 ELSE 0 END),
       sum(CASE WHEN due_at <= $1 AND (lease_until IS NULL OR lease_until < $1) THEN 1 ELSE 0 END)
FROM job GROUP BY kind
"""


async def overview(database: Database, now: Instant) -> Overview:
    """Counts, in one snapshot."""
    async with database.snapshot() as view:
        jobs = await view.fetch(_JOBS, now)
        oldest = await view.fetchval("SELECT min(pending_since) FROM notice WHERE given_up_at IS NULL")
        return Overview(
            jobs_waiting={r[0]: r[2] for r in jobs},
            jobs_leased={r[0]: r[1] for r in jobs},
            notices_pending=await view.fetchval("SELECT count(*) FROM notice WHERE given_up_at IS NULL"),
            notices_undelivered=await view.fetchval("SELECT count(*) FROM notice WHERE given_up_at IS NOT NULL"),
            notices_wait_ms=0 if oldest is None else max(0, now - oldest),
            upgrades_unfinished=await view.fetchval("SELECT count(*) FROM upgrade WHERE finished_at IS NULL"),
        )
