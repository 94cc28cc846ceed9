"""The audit trail: who changed what, when and from where. Commands write it (`AuditRows.record`); here it is read.

A row is written in the transaction of the change, so there is none without the other. What was refused changed nothing
and has no row; what devices report is in the histories of their upgrades.
"""

from collections.abc import Sequence

from openiodm.access.model import Actor, AuditEntry, AuditFilter, AuditPlace
from openiodm.access.ports import AccessWork, AccessWriter, AuditReads
from openiodm.clock import DAY, Clock, Instant

FORGET_CHUNK = 1000
"""Most rows that one transaction removes."""


class AuditTrail:
    """Reads the trail, newest first, and forgets what is old."""

    def __init__(self, reads: AuditReads, writer: AccessWriter, clock: Clock, days: int) -> None:
        """`days` is how long rows are kept; 0 = for ever."""
        self._reads = reads
        self._writer = writer
        self._clock = clock
        self._days = days

    async def page(self, wanted: AuditFilter, after: AuditPlace | None, limit: int) -> Sequence[AuditEntry]:
        """At most `limit` entries, older than the place where the page before ended."""
        return await self._reads.page(wanted, after, limit)

    async def of(
        self,
        actor: Actor,
        after: AuditPlace | None,
        limit: int,
        *,
        operation: str | None = None,
        object_id: str | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
    ) -> Sequence[AuditEntry]:
        """A page of what was done to the actor's own things, by whomever."""
        wanted = AuditFilter(actor.application, operation, object_id, since, until)
        return await self.page(wanted, after, limit)

    async def forget_old(self) -> int:
        """Removes at most `FORGET_CHUNK` rows that were kept long enough; how many it were."""
        if self._days == 0:
            return 0
        before = Instant(self._clock.now() - self._days * DAY)

        async def forget(work: AccessWork) -> int:
            return await work.audit.forget(before, FORGET_CHUNK)

        return await self._writer.run(forget)
