"""Wrong secrets and known pairs in rows that all servers of a PostgreSQL database share.

An attempt costs one read of three keys. Only a wrong secret is written, and the first login of an application from an
address; neither waits for the disk, since what a power loss forgets is a few guesses.
"""

from collections.abc import Mapping, Sequence

from openiodm.access.flow import PERIOD_MS
from openiodm.access.ports import LoginKey, LoginStanding
from openiodm.clock import DAY, Instant
from openiodm.storage.engine import Reader

KEPT = 30 * DAY  # pairs that have not logged in for so long are strangers again
FORGET_CHUNK = 1000

_LOOK = """
SELECT l.application, l.network, l.known_at, l.owed, l.updated_at
FROM unnest($1::text[], $2::text[]) AS k(application, network) JOIN login_count l USING (application, network)
"""
# What was counted more than a period ahead was counted by a clock that was wrong (`access.flow.PERIOD_MS`).
_SET_BACK = f"l.updated_at > CAST({{now}} AS bigint) + {PERIOD_MS}"
_OWED = f"""CASE WHEN {_SET_BACK} THEN 0
ELSE GREATEST(0, l.owed - GREATEST(0, CAST({{now}} AS bigint) - l.updated_at) * CAST({{n}} AS bigint)) END"""
# In the order of the keys, or two servers would wait for each other.
_ADD = f"""
INSERT INTO login_count AS l (application, network, owed, updated_at)
SELECT k.application, k.network, {PERIOD_MS}, CAST($3 AS bigint)
FROM unnest($1::text[], $2::text[]) AS k(application, network), set_config('synchronous_commit', 'off', TRUE)
ORDER BY k.application, k.network
ON CONFLICT (application, network) DO UPDATE
SET owed = {_OWED.format(now="$3", n="$4")} + {PERIOD_MS}, updated_at = CASE
    WHEN {_SET_BACK.format(now="$3")} THEN CAST($3 AS bigint) ELSE GREATEST(l.updated_at, CAST($3 AS bigint)) END
"""
_KNOW = """
INSERT INTO login_count AS l (application, network, known_at, owed, updated_at)
SELECT $1, $2, CAST($3 AS bigint), 0, CAST($3 AS bigint) FROM set_config('synchronous_commit', 'off', TRUE)
ON CONFLICT (application, network) DO UPDATE SET known_at = GREATEST(l.known_at, CAST($3 AS bigint))
"""
_FORGET = f"""
DELETE FROM login_count WHERE (application, network) IN (
    SELECT l.application, l.network FROM login_count l
    WHERE coalesce(l.known_at, 0) < $3 AND {_OWED.format(now="$1", n="$2")} = 0
    LIMIT {FORGET_CHUNK} FOR UPDATE SKIP LOCKED
)
"""


class SharedCounts:
    """See `access.ports.LoginCounts`."""

    def __init__(self, database: Reader, per_minute: int) -> None:
        self._database = database
        self._per_minute = per_minute

    async def look(self, keys: Sequence[LoginKey], now: Instant) -> Mapping[LoginKey, LoginStanding]:
        """One read by key."""
        found = {}
        for r in await self._database.fetch(_LOOK, *_columns(keys)):
            owed = max(0, r[3] - max(0, now - r[4]) * self._per_minute) if r[4] <= now + PERIOD_MS else 0
            found[r[0], r[1]] = LoginStanding(r[2] is not None, owed, r[2] is not None and r[2] < now - DAY)
        return found

    async def add(self, keys: Sequence[LoginKey], now: Instant) -> None:
        """One statement."""
        await self._database.fetch(_ADD, *_columns(keys), now, self._per_minute)

    async def know(self, pair: LoginKey, now: Instant) -> None:
        """One statement."""
        await self._database.fetch(_KNOW, *pair, now)

    async def forget_old(self, now: Instant) -> None:
        """Some of them; the next time comes soon."""
        await self._database.fetch(_FORGET, now, self._per_minute, now - KEPT)


def _columns(keys: Sequence[LoginKey]) -> tuple[list[str], list[str]]:
    return [key[0] for key in keys], [key[1] for key in keys]
