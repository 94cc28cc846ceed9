"""Rows of the access room, and the flow control that several servers share."""

from collections.abc import Sequence

from openiodm.access.flow import PERIOD_MS, MemoryFlow, Refused, throttled
from openiodm.access.model import (
    Actor,
    Application,
    ApplicationKey,
    Authorization,
    Gateway,
    GatewayToken,
    GatewayTokenKey,
    Product,
    TokenHolder,
    TokenKind,
)
from openiodm.clock import Clock, Instant
from openiodm.storage.engine import Reader, Row, Tx, Unwritable
from openiodm.storage.products import product_key

_APPLICATION = "a.id, a.app_id, a.name, a.target_tokens, a.gateway_tokens, a.frozen_at"

_BY_APP_ID = f"SELECT {_APPLICATION} FROM application a WHERE a.app_id = $1 AND a.deleted_at IS NULL"
_ALL = f"SELECT {_APPLICATION} FROM application a WHERE a.deleted_at IS NULL ORDER BY a.id"
_LOCK = f"""
SELECT {_APPLICATION}, a.secret_hash FROM application a
WHERE a.app_id = $1 AND a.deleted_at IS NULL FOR UPDATE
"""
_HOLDER = """
SELECT a.id, a.app_id, t.expires_at
FROM access_token t JOIN application a ON a.id = t.application_id
WHERE t.token_hash = $1 AND t.kind = 'access' AND a.frozen_at IS NULL AND a.deleted_at IS NULL
"""
_GATEWAY = f"""
SELECT {_APPLICATION}, t.id, p.device_type, p.model, p.manufacturer_name
FROM gateway_token t
JOIN application a ON a.id = t.application_id
JOIN product p ON p.id = t.product_id
WHERE t.token_hash = $1 AND t.deleted_at IS NULL AND a.deleted_at IS NULL
"""
_GATEWAY_TOKENS = """
SELECT t.id, t.name, p.device_type, p.model, p.manufacturer_name, t.created_at
FROM gateway_token t JOIN product p ON p.id = t.product_id
WHERE t.application_id = $1 AND t.deleted_at IS NULL ORDER BY t.id
"""
# $1 is who calls, $2 whom it names.
_NAMED = f"""
SELECT {_APPLICATION}, g.application_id IS NOT NULL
FROM application a LEFT JOIN application_authorization g ON g.application_id = a.id AND g.authorized_id = $1
WHERE a.app_id = $2 AND a.deleted_at IS NULL
"""
_GRANTED = """
SELECT a.app_id, a.name, g.created_at
FROM application_authorization g JOIN application a ON a.id = g.authorized_id
WHERE g.application_id = $1 AND a.deleted_at IS NULL ORDER BY g.created_at, a.id
"""
_RECEIVED = """
SELECT a.app_id, a.name, g.created_at
FROM application_authorization g JOIN application a ON a.id = g.application_id
WHERE g.authorized_id = $1 AND a.deleted_at IS NULL ORDER BY g.created_at, a.id
"""
_AUTHORIZE = """
INSERT INTO application_authorization (application_id, authorized_id, created_at) VALUES ($1, $2, $3)
ON CONFLICT (application_id, authorized_id) DO NOTHING
"""
_UNAUTHORIZE = "DELETE FROM application_authorization WHERE application_id = $1 AND authorized_id = $2"
_INSERT_APPLICATION = """
INSERT INTO application (app_id, name, secret_hash, target_tokens, gateway_tokens, created_at)
VALUES ($1, $2, $3, TRUE, TRUE, $4) RETURNING id
"""
_INSERT_SESSION = """
INSERT INTO access_token (application_id, kind, token_hash, issued_at, expires_at) VALUES ($1, $2, $3, $4, $5)
"""
_END_ACCESS = """
UPDATE access_token SET expires_at = $2 WHERE application_id = $1 AND kind = 'access' AND expires_at > $2
"""
_TAKE_REFRESH = """
DELETE FROM access_token
WHERE token_hash = $2 AND application_id = $1 AND kind = 'refresh' AND expires_at > $3
"""
_END_SESSION = """
DELETE FROM access_token WHERE token_hash = $1 AND kind = 'access' RETURNING application_id, issued_at
"""
_END_ITS_REFRESH = "DELETE FROM access_token WHERE application_id = $1 AND kind = 'refresh' AND issued_at = $2"
_CLEAN = """
DELETE FROM access_token WHERE id IN (
    SELECT id FROM access_token WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2
)
"""
_INSERT_GATEWAY = """
INSERT INTO gateway_token (application_id, name, product_id, token_hash, created_at)
VALUES ($1, $2, $3, $4, $5) RETURNING id
"""
_REVOKE_GATEWAY = """
UPDATE gateway_token SET deleted_at = $3, token_hash = token_hash || ' ' || id
WHERE id = $2 AND application_id = $1 AND deleted_at IS NULL
"""


class AccessReads:
    """See `access.ports.AccessReads`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def application(self, app_id: str) -> Application | None:
        """By public id."""
        row = await self._reader.fetchrow(_BY_APP_ID, app_id)
        return None if row is None else _application(row)

    async def applications(self) -> Sequence[Application]:
        """Oldest first."""
        return [_application(row) for row in await self._reader.fetch(_ALL)]

    async def token_holder(self, token_hash: str) -> TokenHolder | None:
        """One indexed read."""
        row = await self._reader.fetchrow(_HOLDER, token_hash)
        if row is None:
            return None
        return TokenHolder(Actor(row[0], row[1]), Instant(row[2]))

    async def named(self, caller: ApplicationKey, app_id: str) -> tuple[Application, bool] | None:
        """One indexed read."""
        row = await self._reader.fetchrow(_NAMED, caller, app_id)
        return None if row is None else (_application(row), bool(row[6]))

    async def authorized_by(self, application: ApplicationKey) -> Sequence[Authorization]:
        """Oldest first."""
        return [_authorization(row) for row in await self._reader.fetch(_GRANTED, application)]

    async def authorizing(self, application: ApplicationKey) -> Sequence[Authorization]:
        """Oldest first."""
        return [_authorization(row) for row in await self._reader.fetch(_RECEIVED, application)]

    async def gateway(self, token_hash: str) -> Gateway | None:
        """One indexed read."""
        row = await self._reader.fetchrow(_GATEWAY, token_hash)
        return None if row is None else Gateway(_application(row), row[6], Product(row[7], row[8], row[9]))

    async def gateway_tokens(self, application: ApplicationKey) -> Sequence[GatewayToken]:
        """Oldest first."""
        rows = await self._reader.fetch(_GATEWAY_TOKENS, application)
        return [GatewayToken(r[0], r[1], Product(r[2], r[3], r[4]), Instant(r[5])) for r in rows]


class AccessRows(AccessReads):
    """See `access.ports.AccessRows`."""

    def __init__(self, tx: Tx) -> None:
        super().__init__(tx)
        self._tx = tx

    async def has_no_application(self) -> bool:
        """Nobody makes one until the transaction ends."""
        await self._tx.lock("LOCK TABLE application IN SHARE ROW EXCLUSIVE MODE")
        return not await self.applications()

    async def insert_application(self, app_id: str, name: str, secret_hash: str, now: Instant) -> ApplicationKey:
        """With both kinds of device tokens allowed."""
        key = await self._tx.fetchval(_INSERT_APPLICATION, app_id, name, secret_hash, now)
        return ApplicationKey(key)

    async def lock_application(self, app_id: str) -> tuple[Application, str] | None:
        """Locked until the transaction ends."""
        row = await self._tx.fetchrow(_LOCK, app_id)
        return None if row is None else (_application(row), row[6])

    async def set_secret(self, application: ApplicationKey, secret_hash: str) -> None:
        """Replaces it."""
        await self._tx.execute("UPDATE application SET secret_hash = $2 WHERE id = $1", application, secret_hash)

    async def set_frozen(self, application: ApplicationKey, frozen_at: Instant | None) -> None:
        """None thaws."""
        await self._tx.execute("UPDATE application SET frozen_at = $2 WHERE id = $1", application, frozen_at)

    async def set_device_tokens(self, application: ApplicationKey, *, target: bool, gateway: bool) -> None:
        """Both at once."""
        await self._tx.execute(
            "UPDATE application SET target_tokens = $2, gateway_tokens = $3 WHERE id = $1",
            application,
            target,
            gateway,
        )

    async def authorize(self, application: ApplicationKey, other: ApplicationKey, now: Instant) -> bool:
        """A repeat keeps the first moment."""
        return await self._tx.execute(_AUTHORIZE, application, other, now) == 1

    async def unauthorize(self, application: ApplicationKey, other: ApplicationKey) -> bool:
        """Deletes it."""
        return await self._tx.execute(_UNAUTHORIZE, application, other) == 1

    async def insert_token(
        self, application: ApplicationKey, kind: TokenKind, token_hash: str, now: Instant, expires_at: Instant
    ) -> None:
        """A session's two tokens carry the same `now`; `end_session` finds the second by it."""
        await self._tx.execute(_INSERT_SESSION, application, kind.value, token_hash, now, expires_at)

    async def end_access_tokens(self, application: ApplicationKey, at: Instant) -> None:
        """Shortens, never lengthens."""
        await self._tx.execute(_END_ACCESS, application, at)

    async def take_refresh_token(self, application: ApplicationKey, token_hash: str, now: Instant) -> bool:
        """Deletes it."""
        return await self._tx.execute(_TAKE_REFRESH, application, token_hash, now) == 1

    async def end_session(self, token_hash: str) -> None:
        """Deletes both tokens."""
        row = await self._tx.fetchrow(_END_SESSION, token_hash)
        if row is not None:
            await self._tx.execute(_END_ITS_REFRESH, row[0], row[1])

    async def end_all_sessions(self, application: ApplicationKey) -> None:
        """Deletes all its tokens."""
        await self._tx.execute("DELETE FROM access_token WHERE application_id = $1", application)

    async def remove_expired_tokens(self, now: Instant, limit: int) -> int:
        """Oldest first."""
        return await self._tx.execute(_CLEAN, now, limit)

    async def insert_gateway_token(
        self, application: ApplicationKey, name: str, product: Product, token_hash: str, now: Instant
    ) -> GatewayTokenKey:
        """Interns the product."""
        product_id = await product_key(self._tx, product)
        key = await self._tx.fetchval(_INSERT_GATEWAY, application, name, product_id, token_hash, now)
        return GatewayTokenKey(key)

    async def revoke_gateway_token(self, application: ApplicationKey, token: GatewayTokenKey, now: Instant) -> bool:
        """Soft-deleted. Its hash goes, since an authority may be made again."""
        return await self._tx.execute(_REVOKE_GATEWAY, application, token, now) == 1


def _authorization(row: Row) -> Authorization:
    return Authorization(row[0], row[1], Instant(row[2]))


def _application(row: Row) -> Application:
    return Application(row[0], row[1], row[2], bool(row[3]), bool(row[4]), row[5] is not None)


# A server whose clock is behind the one that wrote last neither refills nor sets the row's moment back; but one that is
# behind by more than a period counts the bucket as full from its own moment on, since one of the two clocks is wrong.
# A call does not wait for the disk: what a power loss forgets is a few calls.
_SET_BACK = f"b.updated_at > CAST($3 AS bigint) + {PERIOD_MS}"
_REFILLED = f"""LEAST(CAST($2 AS double precision), CASE WHEN {_SET_BACK} THEN CAST($2 AS double precision)
ELSE b.tokens + GREATEST(0, CAST($3 AS bigint) - b.updated_at) * CAST($5 AS double precision) END)"""
_TAKE_ONE = f"""
INSERT INTO {{table}} AS b (application_id, tokens, updated_at)
SELECT CAST($1 AS bigint), CAST($2 AS double precision) - CAST($4 AS double precision), CAST($3 AS bigint)
FROM set_config('synchronous_commit', 'off', TRUE)
ON CONFLICT (application_id) DO UPDATE
SET tokens = {_REFILLED} - CAST($4 AS double precision),
    updated_at = CASE WHEN {_SET_BACK} THEN CAST($3 AS bigint) ELSE GREATEST(b.updated_at, CAST($3 AS bigint)) END
WHERE {_REFILLED} >= CAST($4 AS double precision)
RETURNING tokens
"""
_LEVEL = "SELECT tokens, updated_at FROM {table} WHERE application_id = $1"


class SharedFlow:
    """Flow control in a row that all servers of a PostgreSQL database share: one short statement of its own a call.

    `tokens` is counted in 1/60000 calls: whole numbers, which doubles add exactly. A refusing server remembers the
    refusal until the next token is due. Each API has a table of its own. While the database takes no writes each server
    counts for itself, so that what is only read can be read.
    """

    def __init__(self, database: Reader, clock: Clock, per_minute: int, table: str = "flow_control") -> None:
        self._take_one, self._level = _TAKE_ONE.format(table=table), _LEVEL.format(table=table)
        self._database = database
        self._clock = clock
        self._per_minute = per_minute
        self._refused = Refused()
        self._alone = MemoryFlow(clock, per_minute)

    async def admit(self, application: ApplicationKey) -> None:
        """See `access.ports.FlowControl`."""
        n = self._per_minute
        if n == 0:
            return
        now = self._clock.now()
        if self._refused.holds(application, now):
            raise throttled(n)
        full, call, per_ms = float(n * PERIOD_MS), float(PERIOD_MS), float(n)
        try:
            taken = await self._database.fetchval(self._take_one, application, full, now, call, per_ms)
        except Unwritable:
            await self._alone.admit(application)
            return
        if taken is None:
            self._refused.remember(application, now, await self._next(application, now))
            raise throttled(n)

    async def _next(self, application: ApplicationKey, now: Instant) -> Instant:
        row = await self._database.fetchrow(self._level, application)
        if row is None:
            return now
        missing_ms = -(-(PERIOD_MS - int(row[0])) // self._per_minute)
        return Instant(row[1] + missing_ms)
