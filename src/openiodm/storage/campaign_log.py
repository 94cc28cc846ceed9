"""The change log of the task list: which campaigns are new, gone, or have another status, for readers in any process.

Triggers write it (`tables.py`): a transaction's entries are there when it commits, and never otherwise. A reader keeps
a mark of what it has seen; an entry names a campaign and nothing else, and is read together with the campaign as it is
*now*, so reading one twice, or late, does no harm.

What a mark is differs. On SQLite transactions follow each other, so it is the newest id. On PostgreSQL ids are given
before the commit: entry 8 may be seen before entry 7. There a mark is a snapshot, and what is new are the entries whose
transactions that snapshot could not see. Entries of transactions that the present snapshot cannot know either (from a
dump of another cluster, where transactions were numbered otherwise) concern nobody.

The log is cut off at its old end (`trim`); a reader that has not come as far as that is told so (`Trimmed`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from openiodm.storage.engine import Reader, Row, Tx
from openiodm.storage.list_bitmaps import COLUMNS

KEPT = 100_000  # entries, at least; a reader that is further behind reads the table anew
CHUNK = 1000  # entries a read: one short stretch on the loop
TRIM_CHUNK = 5000  # entries a transaction

Mark = Any  # whatever the log's own `read` makes of it


class Trimmed(Exception):
    """The log no longer has all that this reader has not seen."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Changes: (campaign's key, its row of `COLUMNS` or None when it is gone).

    `complete`: with these, all that the view can see has been read. Otherwise read on from `mark`.
    """

    changes: Sequence[tuple[int, Sequence[Any] | None]]
    mark: Mark
    complete: bool


class CampaignLog(Protocol):
    """The log, as a reader uses it."""

    async def start(self, view: Reader) -> Mark:
        """The mark of all that `view` sees."""
        ...

    async def read(self, view: Reader, mark: Mark) -> Tail:
        """Changes beyond `mark` that `view` sees.

        Raises:
            Trimmed: some are not there any more.
        """
        ...

    async def trim(self, tx: Tx, keep: int) -> int:
        """Removes some of the oldest entries beyond the newest `keep`; how many."""
        ...


def campaign_log(engine: str) -> CampaignLog:
    """The log of 'sqlite' or 'postgresql'."""
    return _SqliteLog() if engine == "sqlite" else _PostgresLog()


_TRIMMED = "SELECT mark FROM campaign_change_trimmed WHERE id = 1"
_SET_TRIMMED = """
INSERT INTO campaign_change_trimmed (id, mark) VALUES (1, $1)
ON CONFLICT (id) DO UPDATE SET mark = excluded.mark WHERE campaign_change_trimmed.mark < excluded.mark
"""
_OLDEST = "SELECT min(id), max(id) FROM campaign_change"


async def _oldest(tx: Tx, keep: int) -> int:
    """Entries up to this id may go in one transaction. One stays at least: it tells others that they are behind."""
    assert keep > 0
    row = await tx.fetchrow(_OLDEST)
    if row is None or row[0] is None:
        return 0
    return int(min(row[0] + TRIM_CHUNK - 1, row[1] - keep))


def _changes(rows: Sequence[Row], first: int) -> list[tuple[int, Sequence[Any] | None]]:
    """Rows with the entry's campaign at `first`, and `COLUMNS` (null when it is gone) behind it."""
    return [(r[first], None if r[first + 1] is None else tuple(r)[first + 1 :]) for r in rows]


class _SqliteLog:
    _READ = f"""
    SELECT l.id, ({_TRIMMED}) AS trimmed, l.campaign_id, {COLUMNS}
    FROM campaign_change l LEFT JOIN campaign c ON c.id = l.campaign_id
    WHERE l.id > $1 ORDER BY l.id LIMIT {CHUNK}
    """
    # The sequence and not max(id): it keeps counting when the log is empty.
    _NEWEST = "SELECT seq FROM sqlite_sequence WHERE name = 'campaign_change'"

    async def start(self, view: Reader) -> Mark:
        return await view.fetchval(self._NEWEST) or 0

    async def read(self, view: Reader, mark: Mark) -> Tail:
        # What was trimmed is older than what is kept: where there is nothing new, nothing is missing.
        rows = await view.fetch(self._READ, mark)
        if not rows:
            return Tail((), mark, complete=True)
        if rows[0][1] is not None and rows[0][1] > mark:
            raise Trimmed
        return Tail(_changes(rows, 2), rows[-1][0], complete=len(rows) < CHUNK)

    async def trim(self, tx: Tx, keep: int) -> int:
        last = await _oldest(tx, keep)
        gone = await tx.execute("DELETE FROM campaign_change WHERE id <= $1", last)
        if gone:
            await tx.execute(_SET_TRIMMED, last)
        return gone


@dataclass(frozen=True, slots=True)
class _Seen:
    """All that `snapshot` saw has been read; and, in the middle of a long tail, of what `next` sees, up to an entry."""

    snapshot: str  # as pg_current_snapshot() writes it: xmin:xmax:xids under way
    next: str | None = None
    xid: int = 0
    id: int = 0

    @property
    def xmin(self) -> int:
        """Every transaction before this one had ended."""
        return int(self.snapshot.partition(":")[0])


class _PostgresLog:
    _READ = f"""
    SELECT h.now, h.trimmed, t.* FROM (
      SELECT CAST(pg_current_snapshot() AS text) AS now,
      ({_TRIMMED} AND mark < CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)) AS trimmed
    ) h LEFT JOIN LATERAL (
      SELECT l.xid, l.id AS entry, l.campaign_id, {COLUMNS}
      FROM campaign_change l LEFT JOIN campaign c ON c.id = l.campaign_id
      WHERE (l.xid, l.id) > (CAST($2 AS bigint), CAST($3 AS bigint))
        AND l.xid < CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)
        AND NOT pg_visible_in_snapshot(CAST(CAST(l.xid AS text) AS xid8), CAST(CAST($1 AS text) AS pg_snapshot))
      ORDER BY l.xid, l.id LIMIT {CHUNK}
    ) t ON TRUE
    """
    # A transaction that is under way may still be unseen by a reader that is up to date: its entries stay.
    _TRIM = """
    WITH gone AS (
      DELETE FROM campaign_change WHERE id <= $1 AND (
        xid < CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)
        OR xid >= CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)
      ) RETURNING xid
    ) SELECT count(*), max(xid) FILTER (
      WHERE xid < CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)
    ) FROM gone
    """

    async def start(self, view: Reader) -> Mark:
        return _Seen(await view.fetchval("SELECT CAST(pg_current_snapshot() AS text)"))

    async def read(self, view: Reader, mark: Mark) -> Tail:
        assert isinstance(mark, _Seen)
        after = (mark.xid, mark.id) if mark.next else (mark.xmin, 0)
        rows = await view.fetch(self._READ, mark.snapshot, *after)
        now, trimmed = rows[0][0], rows[0][1]
        if trimmed is not None and trimmed >= mark.xmin:
            raise Trimmed
        found = [r for r in rows if r["xid"] is not None]
        changes = _changes(found, 4)
        if len(found) == CHUNK:
            last = found[-1]
            return Tail(changes, _Seen(mark.snapshot, mark.next or now, last["xid"], last["entry"]), complete=False)
        # Behind a long tail's first piece an older transaction may have committed since: look again from there.
        return Tail(changes, _Seen(mark.next or now), complete=mark.next is None)

    async def trim(self, tx: Tx, keep: int) -> int:
        row = await tx.fetchrow(self._TRIM, await _oldest(tx, keep))
        assert row is not None
        if row[1] is not None:
            await tx.execute(_SET_TRIMMED, row[1])
        return int(row[0])
