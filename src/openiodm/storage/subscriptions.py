"""Rows of subscriptions, and of notices as their owner sees them."""

from collections.abc import Sequence
from typing import Any

from openiodm.access.model import ApplicationKey
from openiodm.clock import Instant
from openiodm.notifications.model import (
    CallbackSecurity,
    Notice,
    NoticeKey,
    NotifyType,
    ReceiverKey,
    Subscription,
    SubscriptionFilter,
    SubscriptionHealth,
    SubscriptionKey,
)
from openiodm.notifications.ports import NewSubscription
from openiodm.storage.engine import Database, Reader, Row, Tx

LOOKED_AT = 200  # deleted subscriptions, whose rows stay, and receivers

_LIVE = "application_id = $1 AND deleted_at IS NULL"
_COLUMNS = "id, subscription_id, notify_type, callback_url, created_at"
_WHERE = f"""{_LIVE} AND (CAST($2 AS text) IS NULL OR notify_type = $2)
AND (CAST($3 AS text) IS NULL OR callback_url = $3)"""

_RECEIVER = """
INSERT INTO receiver (name) VALUES ($1) ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id
"""
_INSERT = """
INSERT INTO subscription (subscription_id, application_id, notify_type, callback_url, receiver_id, created_at)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (application_id, notify_type) WHERE deleted_at IS NULL DO NOTHING
"""
_REDIRECT = f"UPDATE subscription SET callback_url = $3, receiver_id = $4 WHERE {_LIVE} AND notify_type = $2"
_DELETE = f"UPDATE subscription SET deleted_at = $3 WHERE {_LIVE} AND subscription_id = $2"
_DELETE_MANY = f"UPDATE subscription SET deleted_at = $4 WHERE {_WHERE}"

# Every index of `notice` is of the pending or of the undelivered ones of subscriptions: what fits none reads them all.
_DELETED = f"""
SELECT id FROM subscription WHERE id > $1 AND deleted_at IS NOT NULL ORDER BY id LIMIT {LOOKED_AT}
"""
_SWEEP = """
DELETE FROM notice WHERE id IN (
    SELECT id FROM notice WHERE subscription_id = ANY($1::bigint[]) AND given_up_at IS NULL
    UNION ALL SELECT id FROM notice WHERE subscription_id = ANY($1::bigint[]) AND given_up_at IS NOT NULL LIMIT $2
)
"""
# BETWEEN for "=", or PostgreSQL would look for the first of one subscription by the key of all notices.
_PRUNABLE = """
SELECT s.id FROM subscription s WHERE s.deleted_at IS NULL AND (
    SELECT n.given_up_at FROM notice n WHERE n.subscription_id BETWEEN s.id AND s.id AND n.given_up_at IS NOT NULL
    ORDER BY n.subscription_id, n.id LIMIT 1
) < $1 ORDER BY s.receiver_id
"""
_UNDELIVERED_FIRST = """
SELECT id, given_up_at FROM notice WHERE subscription_id BETWEEN $1 AND $1 AND given_up_at IS NOT NULL
ORDER BY subscription_id, id LIMIT $2
"""
_PRUNE = "DELETE FROM notice WHERE id = ANY($1::bigint[]) AND given_up_at < $2"
_REPLAY = """
UPDATE notice SET given_up_at = NULL, due_at = NULL, first_tried_at = NULL, attempts = 0, pending_since = $2
WHERE id = ANY($1::bigint[])
"""
_UNDELIVERED = f"""
SELECT n.id FROM notice n JOIN subscription s ON s.id = n.subscription_id
WHERE s.{_LIVE} AND n.given_up_at IS NOT NULL
"""
_UNDELIVERED_ONE = f"{_UNDELIVERED} AND n.id = $2 FOR UPDATE OF n"
_UNDELIVERED_OF = f"{_UNDELIVERED} AND s.subscription_id = $2 AND n.id > $3 ORDER BY n.id LIMIT $4 FOR UPDATE OF n"

_RECEIVERS = f"SELECT id FROM receiver WHERE id > $1 ORDER BY id LIMIT {LOOKED_AT}"
_UNUSED = """
r.id = ANY($1::bigint[]) AND (r.owner IS NULL OR r.lease_until < $2)
AND NOT EXISTS (SELECT 1 FROM subscription s WHERE s.receiver_id = r.id)
"""
# Who subscribes holds its row's lock; what such a transaction has committed before ours came by, the DELETE sees.
_LOCK_UNUSED = f"SELECT r.id FROM receiver r WHERE {_UNUSED} ORDER BY r.id FOR UPDATE OF r SKIP LOCKED"
_FORGET = f"DELETE FROM receiver AS r WHERE {_UNUSED}"

_SECURITY = """
SELECT ca_pem, certificate_pem, key_pem, signing_secret, changed_at FROM callback_security WHERE application_id = $1
"""
_SET_SECURITY = """
INSERT INTO callback_security (application_id, ca_pem, certificate_pem, key_pem, signing_secret, changed_at)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (application_id) DO UPDATE SET ca_pem = excluded.ca_pem,
certificate_pem = excluded.certificate_pem, key_pem = excluded.key_pem, signing_secret = excluded.signing_secret,
changed_at = excluded.changed_at
"""

_HEALTH = f"""
SELECT {_COLUMNS}, last_delivered_at, last_error, last_error_at,
    (SELECT count(*) FROM notice n WHERE n.subscription_id = s.id AND n.given_up_at IS NULL) AS pending,
    (SELECT count(*) FROM notice n WHERE n.subscription_id = s.id AND n.given_up_at IS NOT NULL) AS undelivered
FROM subscription s WHERE {_LIVE} ORDER BY id DESC
"""
_NOTICES = """
SELECT id, subscription_id, body, created_at, attempts, due_at, last_error, given_up_at FROM notice
WHERE subscription_id = $1 AND id > $2 AND given_up_at IS {} ORDER BY id LIMIT $3
"""


class SubscriptionRows:
    """See `notifications.ports.SubscriptionRows`."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    async def insert(self, new: NewSubscription, now: Instant) -> bool:
        """See the port."""
        receiver = await self._receiver(new.receiver)
        return bool(
            await self._tx.execute(
                _INSERT,
                new.subscription_id,
                new.application,
                new.notify_type.value,
                new.callback_url,
                receiver,
                now,
            )
        )

    async def redirect(self, new: NewSubscription) -> None:
        """See the port."""
        receiver = await self._receiver(new.receiver)
        await self._tx.execute(_REDIRECT, new.application, new.notify_type.value, new.callback_url, receiver)

    async def _receiver(self, name: str) -> Any:
        return await self._tx.fetchval(_RECEIVER, name)

    async def delete(self, application: ApplicationKey, subscription_id: str, now: Instant) -> bool:
        """See the port."""
        return bool(await self._tx.execute(_DELETE, application, subscription_id, now))

    async def delete_many(self, application: ApplicationKey, where: SubscriptionFilter, now: Instant) -> int:
        """See the port."""
        return await self._tx.execute(_DELETE_MANY, application, where.notify_type, where.callback_url, now)

    async def sweep(self, after: SubscriptionKey, limit: int) -> tuple[int, SubscriptionKey]:
        """See the port."""
        deleted = [row[0] for row in await self._tx.fetch(_DELETED, after)]
        count = await self._tx.execute(_SWEEP, deleted, limit) if deleted else 0
        if count == limit:
            return count, after
        return count, SubscriptionKey(deleted[-1] if len(deleted) == LOOKED_AT else 0)

    async def prune(self, before: Instant, limit: int) -> int:
        """See the port."""
        old = await oldest(self._tx, _UNDELIVERED_FIRST, await self._tx.fetch(_PRUNABLE, before), before, limit)
        return await self._tx.execute(_PRUNE, old, before) if old else 0

    async def forget_receivers(self, after: ReceiverKey, now: Instant) -> ReceiverKey:
        """See the port."""
        looked_at = [row[0] for row in await self._tx.fetch(_RECEIVERS, after)]
        unused = [row[0] for row in await self._tx.fetch(_LOCK_UNUSED, looked_at, now)] if looked_at else []
        if unused:
            await self._tx.execute(_FORGET, unused, now)
        return ReceiverKey(looked_at[-1] if len(looked_at) == LOOKED_AT else 0)

    async def replay(self, application: ApplicationKey, notice: NoticeKey, now: Instant) -> bool:
        """See the port."""
        if await self._tx.fetchval(_UNDELIVERED_ONE, application, notice) is None:
            return False
        await self._tx.execute(_REPLAY, [notice], now)
        return True

    async def replay_many(
        self, application: ApplicationKey, subscription_id: str, after: NoticeKey, limit: int, now: Instant
    ) -> Sequence[NoticeKey]:
        """See the port."""
        rows = await self._tx.fetch(_UNDELIVERED_OF, application, subscription_id, after, limit)
        keys = [NoticeKey(row[0]) for row in rows]
        await self._tx.execute(_REPLAY, keys, now)
        return keys

    async def set_security(self, application: ApplicationKey, security: CallbackSecurity) -> None:
        """See the port."""
        s = security
        await self._tx.execute(
            _SET_SECURITY, application, s.ca_pem, s.certificate_pem, s.key_pem, s.signing_secret, s.changed_at
        )

    async def lock_security(self, application: ApplicationKey) -> CallbackSecurity:
        """By the application's row, since there may be none of its own yet."""
        await self._tx.lock("SELECT id FROM application WHERE id = $1 FOR NO KEY UPDATE", application)
        return await read_security(self._tx, application)


class SubscriptionStore:
    """See `notifications.ports.SubscriptionReads`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def one(self, application: ApplicationKey, subscription_id: str) -> Subscription | None:
        """See the port."""
        sql = f"SELECT {_COLUMNS} FROM subscription WHERE {_LIVE} AND subscription_id = $2"
        row = await self._database.fetchrow(sql, application, subscription_id)
        return None if row is None else _subscription(row)

    async def page(
        self, application: ApplicationKey, where: SubscriptionFilter, number: int, size: int
    ) -> tuple[int, Sequence[Subscription]]:
        """There is one of each type at most, so all are read."""
        sql = f"SELECT {_COLUMNS} FROM subscription WHERE {_WHERE} ORDER BY id DESC"
        rows = await self._database.fetch(sql, application, where.notify_type, where.callback_url)
        return len(rows), [_subscription(row) for row in rows[number * size : (number + 1) * size]]

    async def health(self, application: ApplicationKey) -> Sequence[SubscriptionHealth]:
        """See the port."""
        async with self._database.snapshot() as view:
            rows = await view.fetch(_HEALTH, application)
        return [
            SubscriptionHealth(
                _subscription(r),
                r["pending"],
                r["undelivered"],
                r["last_delivered_at"],
                r["last_error"],
                r["last_error_at"],
            )
            for r in rows
        ]

    async def notices(
        self,
        application: ApplicationKey,
        after: NoticeKey,
        limit: int,
        *,
        undelivered: bool,
        subscription_id: str | None,
    ) -> Sequence[Notice]:
        """A range of the index of each subscription (they are few), merged."""
        sql = _NOTICES.format("NOT NULL" if undelivered else "NULL")
        _, subscriptions = await self.page(application, SubscriptionFilter(), 0, len(NotifyType))
        found: list[Notice] = []
        for s in subscriptions:
            if subscription_id in (None, s.subscription_id):
                found += [_notice(s, row) for row in await self._database.fetch(sql, s.key, after, limit)]
        return sorted(found, key=lambda n: n.key)[:limit]

    async def security(self, application: ApplicationKey) -> CallbackSecurity:
        """See the port."""
        return await read_security(self._database, application)


async def oldest(tx: Tx, first: str, subscriptions: Sequence[Row], before: Instant, limit: int) -> list[NoticeKey]:
    """Which of the first notices of these subscriptions are older than that; `limit` are looked at, over all of them.

    `first` reads a subscription's first notices by key, with their times, which rise with their keys. One that was
    replayed is younger than the next: it hides those for as long as it is.
    """
    found: list[NoticeKey] = []
    for subscription in subscriptions:
        rows = await tx.fetch(first, subscription[0], limit)
        found += [row[0] for row in rows if row[1] < before]
        limit -= len(rows)
        if not limit:
            break
    return found


async def read_security(reader: Reader, application: ApplicationKey) -> CallbackSecurity:
    """What an application set; all None when it set nothing."""
    row = await reader.fetchrow(_SECURITY, application)
    return CallbackSecurity() if row is None else CallbackSecurity(*row)


def _subscription(row: Row) -> Subscription:
    return Subscription(SubscriptionKey(row[0]), row[1], NotifyType(row[2]), row[3], Instant(row[4]))


def _notice(subscription: Subscription, r: Row) -> Notice:
    return Notice(
        key=NoticeKey(r["id"]),
        subscription_id=subscription.subscription_id,
        notify_type=subscription.notify_type,
        body=r["body"],
        created_at=Instant(r["created_at"]),
        attempts=r["attempts"],
        due_at=r["due_at"],
        last_error=r["last_error"],
        given_up_at=r["given_up_at"],
    )
