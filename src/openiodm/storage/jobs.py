"""Rows of the job table: leases with an epoch as fence."""

from collections.abc import Sequence

from openiodm.clock import Instant
from openiodm.scheduler.model import Job
from openiodm.storage.engine import Tx

_DUE = """
SELECT id FROM job WHERE due_at <= $1 AND (lease_until IS NULL OR lease_until < $1)
ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
"""
_LEASE = """
UPDATE job SET owner = $2, lease_until = $3, epoch = epoch + 1 WHERE id = ANY($1::bigint[])
RETURNING id, kind, subject, epoch, cursor, failures
"""
_HOLDS = "SELECT epoch FROM job WHERE id = $1"
_PUT = """
INSERT INTO job (kind, subject, due_at, epoch, failures, cursor) VALUES ($1, $2, $3, 0, 0, 0)
ON CONFLICT (kind, subject) DO UPDATE
SET due_at = excluded.due_at, owner = NULL, lease_until = NULL, epoch = job.epoch + 1, failures = 0, cursor = 0
"""
_ADVANCE = "UPDATE job SET cursor = $3, lease_until = $4, failures = 0 WHERE id = $1 AND epoch = $2"
_POSTPONE = """
UPDATE job SET due_at = $3, failures = $4, owner = NULL, lease_until = NULL WHERE id = $1 AND epoch = $2
"""
_RELEASE = """
UPDATE job SET owner = NULL, lease_until = NULL, epoch = epoch + 1
WHERE owner IS NOT NULL AND (owner = $1 OR CAST($1 AS text) IS NULL)
"""
_FINISH = "DELETE FROM job WHERE id = $1 AND epoch = $2"
_REMOVE = "DELETE FROM job WHERE kind = $1 AND subject = $2"


class JobRows:
    """See `scheduler.model.JobRows`."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self._changed: set[tuple[str, int]] = set()  # in this transaction, by `put` and `remove`

    async def lease(self, now: Instant, owner: str, until: Instant, limit: int) -> Sequence[Job]:
        """Takes due jobs."""
        ids = [row[0] for row in await self._tx.fetch(_DUE, now, limit)]
        if not ids:
            return []
        return [Job(*row) for row in await self._tx.fetch(_LEASE, ids, owner, until)]

    async def holds(self, job: Job) -> bool:
        """Compares epochs; without a lock, which a stop that holds the campaign may be waiting for."""
        return bool(await self._tx.fetchval(_HOLDS, job.id) == job.epoch)

    async def exists(self, kind: str, subject: int) -> bool:
        """By its unique index."""
        sql = "SELECT 1 FROM job WHERE kind = $1 AND subject = $2"
        return await self._tx.fetchval(sql, kind, subject) is not None

    async def put(self, kind: str, subject: int, due_at: Instant) -> None:
        """Makes it due."""
        self._changed.add((kind, subject))
        await self._tx.execute(_PUT, kind, subject, due_at)

    async def advance(self, job: Job, cursor: int, until: Instant) -> bool:
        """By its epoch."""
        return bool(await self._tx.execute(_ADVANCE, job.id, job.epoch, cursor, until))

    async def postpone(self, job: Job, due_at: Instant, failures: int) -> bool:
        """By its epoch."""
        return bool(await self._tx.execute(_POSTPONE, job.id, job.epoch, due_at, failures))

    async def release(self, owner: str | None) -> int:
        """Frees leases; whoever held one finds its epoch gone."""
        return await self._tx.execute(_RELEASE, owner)

    async def finish(self, job: Job) -> bool:
        """Deletes it by its epoch, unless the step itself has made it due again or removed it."""
        return bool(await self._tx.execute(_FINISH, job.id, job.epoch)) or (job.kind, job.subject) in self._changed

    async def remove(self, kind: str, subject: int) -> None:
        """Deletes it."""
        self._changed.add((kind, subject))
        await self._tx.execute(_REMOVE, kind, subject)
