"""Rows of the audit trail."""

from collections.abc import Sequence

from openiodm.access.model import Actor, AuditEntry, AuditFilter, AuditPlace
from openiodm.clock import Instant
from openiodm.storage.engine import Reader, Row, Tx

_RECORD = """
INSERT INTO audit (application_id, at, caller, address, operation, object_id, outcome)
VALUES ($1, $2, $3, $4, $5, $6, $7)
"""
_SELECT = """
SELECT e.at, e.id, a.app_id, e.caller, e.address, e.operation, e.object_id, e.outcome
FROM audit e JOIN application a ON a.id = e.application_id
"""
_FORGET = "DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at < $1 ORDER BY at, id LIMIT $2)"


class AuditReads:
    """See `access.ports.AuditReads`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def page(self, wanted: AuditFilter, after: AuditPlace | None, limit: int) -> Sequence[AuditEntry]:
        """A range of one of four indexes: which one, the conditions decide."""
        given = [
            (condition, value)
            for condition, value in (
                ("e.application_id = ${}", wanted.application),
                ("e.operation = ${}", wanted.operation),
                ("e.object_id = ${}", wanted.object_id),
                ("e.at >= ${}", wanted.since),
                ("e.at < ${}", wanted.until),
            )
            if value is not None
        ]
        conditions = [condition.format(n) for n, (condition, _) in enumerate(given, 1)]
        values: list[object] = [value for _, value in given]
        if after is not None:
            conditions.append(f"(e.at, e.id) < (${len(values) + 1}, ${len(values) + 2})")
            values += after
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        sql = f"{_SELECT} {where} ORDER BY e.at DESC, e.id DESC LIMIT ${len(values) + 1}"
        return [_entry(row) for row in await self._reader.fetch(sql, *values, limit)]


class AuditRows:
    """See `access.ports.AuditRows`."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    async def record(
        self, actor: Actor, operation: str, object_id: str | None, now: Instant, outcome: str = "done"
    ) -> None:
        """One row."""
        await self._tx.execute(
            _RECORD, actor.application, now, actor.asked_by, actor.address, operation, object_id, outcome
        )

    async def forget(self, before: Instant, limit: int) -> int:
        """Oldest first."""
        return await self._tx.execute(_FORGET, before, limit)


def _entry(row: Row) -> AuditEntry:
    return AuditEntry(AuditPlace(Instant(row[0]), row[1]), row[2], row[3], row[4], row[5], row[6], row[7])
