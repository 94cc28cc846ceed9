"""Rows of the outbox, for delivery: who delivers to whom, what is due, what became of it."""

from collections.abc import Sequence
from typing import Any

from openiodm.access.model import ApplicationKey
from openiodm.clock import Instant
from openiodm.notifications.model import CallbackSecurity, NoticeKey, ReceiverKey, SubscriptionKey
from openiodm.notifications.ports import Failed, Health, Pending, Receiver
from openiodm.storage.engine import Reader, Tx, UpdateMany
from openiodm.storage.subscriptions import oldest, read_security

_WANTING = """
SELECT DISTINCT s.receiver_id FROM subscription s JOIN receiver r ON r.id = s.receiver_id
WHERE s.deleted_at IS NULL AND (r.owner IS NULL OR r.lease_until < $1)
AND EXISTS (SELECT 1 FROM notice n WHERE n.subscription_id = s.id AND n.given_up_at IS NULL) LIMIT $2
"""
_LOCK = "SELECT id FROM receiver WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE"
# One that was taken by another and given back since is free, and not ours to be lengthened.
_LEASE = """
UPDATE receiver SET owner = $2, lease_until = $4
WHERE id = ANY($1::bigint[]) AND owner = $2 OR id = ANY($5::bigint[]) AND (owner IS NULL OR lease_until < $3)
RETURNING id, name, failing_since
"""
_HOLDS = "SELECT 1 FROM receiver WHERE id = $1 AND owner = $2 FOR NO KEY UPDATE"
_RELEASE = """
UPDATE receiver SET owner = NULL, lease_until = NULL
WHERE owner IS NOT NULL AND (owner = $1 OR CAST($1 AS text) IS NULL)
"""
_SUBSCRIPTIONS = """
SELECT s.id, s.subscription_id, s.application_id, s.callback_url, c.changed_at
FROM subscription s LEFT JOIN callback_security c ON c.application_id = s.application_id
WHERE s.receiver_id = $1 AND s.deleted_at IS NULL
"""
_DUE = """
SELECT n.id, n.device_id, n.body, n.attempts, n.first_tried_at FROM notice n
WHERE n.subscription_id = $1 AND n.given_up_at IS NULL AND (n.due_at IS NULL OR n.due_at <= $2)
AND n.device_id NOT IN (
    SELECT w.device_id FROM notice w
    WHERE w.subscription_id = ANY($4::bigint[]) AND w.due_at IS NOT NULL AND w.given_up_at IS NULL AND w.due_at > $2
)
ORDER BY n.id LIMIT $3
"""
_NEXT_DUE = """
SELECT n.due_at FROM notice n JOIN subscription s ON s.id = n.subscription_id
WHERE s.receiver_id = $1 AND s.deleted_at IS NULL AND n.due_at IS NOT NULL AND n.given_up_at IS NULL
ORDER BY n.due_at LIMIT 1
"""
_FAILED = UpdateMany(
    "notice",
    {"id": "bigint"},
    {
        "attempts": "int",
        "first_tried_at": "bigint",
        "due_at": "bigint",
        "last_error": "text",
        "given_up_at": "bigint",
    },
)
_DELIVERED_AT = UpdateMany("subscription", {"id": "bigint"}, {"last_delivered_at": "bigint"})
_ERROR = UpdateMany("subscription", {"id": "bigint"}, {"last_error": "text", "last_error_at": "bigint"})
# As `_PRUNABLE` and `_UNDELIVERED_FIRST` in `subscriptions.py`.
_OVERDUE = """
SELECT s.id FROM subscription s WHERE s.receiver_id = $1 AND s.deleted_at IS NULL AND (
    SELECT n.pending_since FROM notice n WHERE n.subscription_id BETWEEN s.id AND s.id AND n.given_up_at IS NULL
    ORDER BY n.subscription_id, n.id LIMIT 1
) < $2 ORDER BY s.id
"""
_PENDING_FIRST = """
SELECT id, pending_since FROM notice WHERE subscription_id BETWEEN $1 AND $1 AND given_up_at IS NULL
ORDER BY subscription_id, id LIMIT $2
"""
_GIVE_UP = """
UPDATE notice SET given_up_at = $4, due_at = NULL, last_error = $3
WHERE id = ANY($1::bigint[]) AND given_up_at IS NULL AND pending_since < $2
"""


class OutboxRows:
    """See `notifications.ports.OutboxRows`."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    async def lease(
        self, owner: str, now: Instant, until: Instant, held: Sequence[ReceiverKey], wanted: Sequence[ReceiverKey]
    ) -> Sequence[Receiver]:
        """See the port."""
        await self._tx.lock(_LOCK, [*held, *wanted])
        rows = await self._tx.fetch(_LEASE, list(held), owner, now, until, list(wanted))
        return [Receiver(ReceiverKey(r[0]), r[1], r[2]) for r in rows]

    async def holds(self, owner: str, receiver: ReceiverKey) -> bool:
        """See the port."""
        return await self._tx.fetchval(_HOLDS, receiver, owner) is not None

    async def release(self, owner: str | None, receivers: Sequence[ReceiverKey] | None = None) -> None:
        """See the port."""
        if receivers is None:
            await self._tx.execute(_RELEASE, owner)
        else:
            await self._tx.execute(f"{_RELEASE} AND id = ANY($2::bigint[])", owner, list(receivers))

    async def delivered(self, notices: Sequence[NoticeKey]) -> None:
        """See the port."""
        if notices:
            await self._tx.execute("DELETE FROM notice WHERE id = ANY($1::bigint[])", list(notices))

    async def failed(self, notices: Sequence[Failed], now: Instant) -> None:
        """See the port."""
        rows = [
            (f.key, f.attempts, f.first_tried_at, f.due_at, f.error, now if f.due_at is None else None) for f in notices
        ]
        await self._tx.update_many(_FAILED, rows)

    async def note(self, receiver: ReceiverKey, failing_since: Instant | None, health: Sequence[Health]) -> None:
        """See the port."""
        await self._tx.execute("UPDATE receiver SET failing_since = $2 WHERE id = $1", receiver, failing_since)
        good = [(h.subscription, h.delivered_at) for h in health if h.delivered_at is not None]
        await self._tx.update_many(_DELIVERED_AT, good)
        bad = [(h.subscription, h.error, h.error_at) for h in health if h.error is not None]
        await self._tx.update_many(_ERROR, bad)

    async def give_up(self, receiver: ReceiverKey, before: Instant, error: str, now: Instant, limit: int) -> int:
        """See the port."""
        overdue = await self._tx.fetch(_OVERDUE, receiver, before)
        old = await oldest(self._tx, _PENDING_FIRST, overdue, before, limit)
        return await self._tx.execute(_GIVE_UP, old, before, error, now) if old else 0


class OutboxReads:
    """See `notifications.ports.OutboxReads`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def wanting(self, now: Instant, limit: int) -> Sequence[ReceiverKey]:
        """See the port."""
        return [ReceiverKey(r[0]) for r in await self._reader.fetch(_WANTING, now, limit)]

    async def due(self, receiver: ReceiverKey, now: Instant, limit: int) -> Sequence[Pending]:
        """A range of the index for each of its subscriptions; they are few.

        Those with more than was read end the answer for all, or one would run ahead of another of the same address.
        """
        found: list[Pending] = []
        horizon: NoticeKey | None = None
        subscriptions = await self._reader.fetch(_SUBSCRIPTIONS, receiver)
        for s in subscriptions:
            same_address = [o[0] for o in subscriptions if o[3] == s[3]]
            rows = await self._reader.fetch(_DUE, s[0], now, limit, same_address)
            found += [_pending(s, n) for n in rows]
            if len(rows) == limit:
                horizon = min(horizon or found[-1].key, found[-1].key)
        return sorted((p for p in found if horizon is None or p.key <= horizon), key=lambda p: p.key)

    async def next_due(self, receiver: ReceiverKey) -> Instant | None:
        """See the port."""
        at = await self._reader.fetchval(_NEXT_DUE, receiver)
        return None if at is None else Instant(at)

    async def security(self, application: ApplicationKey) -> CallbackSecurity:
        """See the port."""
        return await read_security(self._reader, application)


def _pending(s: Any, n: Any) -> Pending:
    return Pending(
        key=NoticeKey(n[0]),
        subscription=SubscriptionKey(s[0]),
        subscription_id=s[1],
        application=ApplicationKey(s[2]),
        device=n[1],
        callback_url=s[3],
        body=n[2],
        attempts=n[3],
        first_tried_at=n[4],
        security_changed_at=s[4],
    )
