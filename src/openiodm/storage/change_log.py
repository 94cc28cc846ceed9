"""Change logs, read exactly by any process: what has happened to campaigns (new, gone, another status) or upgrades.

Entries are written in the transaction of the change, so they are there when it commits, and never otherwise. A reader
keeps a mark of what it has seen; an entry names a row and nothing else, and is read together with that row as it is
*now*, so reading one twice, or late, does no harm.

What a mark is differs. On SQLite transactions follow each other, so it is the newest id. On PostgreSQL ids are given
before the commit: entry 8 may be seen before entry 7. There a mark is a snapshot, and what is new are the entries whose
transactions that snapshot could not see. Entries of transactions that the present snapshot cannot know either (from a
dump of another cluster, where transactions were numbered otherwise) concern nobody.

A log may be cut off at its old end (`trim`); a reader that has not come as far as that is told so (`Trimmed`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from openiodm.storage.engine import Reader, Row, Tx
from openiodm.storage.list_bitmaps import COLUMNS

KEPT = 100_000  # entries of a log that is trimmed, at least; a reader that is further behind reads the table anew
CHUNK = 1000  # entries a read: one short stretch on the loop
TRIM_CHUNK = 5000  # entries a transaction

Mark = Any  # whatever the log's own `read` makes of it


@dataclass(frozen=True, slots=True)
class Source:
    """Where a log's entries are, and what a reader gets of the rows that they name."""

    table: str  # has an id, and on PostgreSQL a transaction's number in xid
    columns: str
    join: str  # of the rows named to the entry `l`
    trimmed: str | None = None  # table that says how far it was cut off; None: it never is


# Triggers write this one (`tables.py`). The campaign's key, and its `COLUMNS`: null when it is gone.
CAMPAIGNS = Source(
    "campaign_change",
    f"l.campaign_id, {COLUMNS}",
    "LEFT JOIN campaign c ON c.id = l.campaign_id",
    "campaign_change_trimmed",
)
# Every change of an upgrade's state has its row of history (law 6).
UPGRADES = Source("history", "u.campaign_id, u.ordinal, u.state", "JOIN upgrade u ON u.id = l.upgrade_id")


class Trimmed(Exception):
    """The log no longer has all that this reader has not seen."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Changes, each a row of the source's columns.

    `complete`: with these, all that the view can see has been read. Otherwise read on from `mark`.
    """

    changes: Sequence[Sequence[Any]]
    mark: Mark
    complete: bool


class ChangeLog(Protocol):
    """A log, as a reader uses it."""

    async def start(self, view: Reader) -> Mark:
        """The mark of all that `view` sees."""
        ...

    async def read(self, view: Reader, mark: Mark) -> Tail:
        """Changes beyond `mark` that `view` sees.

        Raises:
            Trimmed: some are not there any more.
        """
        ...

    async def behind(self, view: Reader, mark: Mark) -> int:
        """How many entries beyond `mark` the view sees."""
        ...

    async def trim(self, tx: Tx, keep: int) -> int:
        """Removes some of the oldest entries beyond the newest `keep` (one at least); how many."""
        ...


def change_log(engine: str, source: Source) -> ChangeLog:
    """The log on 'sqlite' or 'postgresql'."""
    return _SqliteLog(source) if engine == "sqlite" else _PostgresLog(source)


def _trimmed(source: Source) -> str:
    return "NULL" if source.trimmed is None else f"SELECT mark FROM {source.trimmed} WHERE id = 1"


async def _set_trimmed(tx: Tx, source: Source, mark: int) -> None:
    await tx.execute(
        f"INSERT INTO {source.trimmed} (id, mark) VALUES (1, $1) "
        f"ON CONFLICT (id) DO UPDATE SET mark = excluded.mark WHERE {source.trimmed}.mark < excluded.mark",
        mark,
    )


async def _oldest(tx: Tx, source: Source, keep: int) -> int:
    """Entries up to this id may go in one transaction. One stays at least: it tells others that they are behind."""
    assert source.trimmed is not None
    assert keep > 0
    row = await tx.fetchrow(f"SELECT min(id), max(id) FROM {source.table}")
    if row is None or row[0] is None:
        return 0
    return int(min(row[0] + TRIM_CHUNK - 1, row[1] - keep))


def _changes(rows: Sequence[Row], first: int) -> list[Sequence[Any]]:
    return [tuple(r)[first:] for r in rows]


class _SqliteLog:
    # The sequence and not max(id): it keeps counting when the log is empty.
    _NEWEST = "SELECT seq FROM sqlite_sequence WHERE name = $1"

    def __init__(self, source: Source) -> None:
        self._source = source
        self._read = (
            f"SELECT l.id, ({_trimmed(source)}) AS trimmed, {source.columns} FROM {source.table} l {source.join} "
            f"WHERE l.id > $1 ORDER BY l.id LIMIT {CHUNK}"
        )

    async def start(self, view: Reader) -> Mark:
        return await view.fetchval(self._NEWEST, self._source.table) or 0

    async def read(self, view: Reader, mark: Mark) -> Tail:
        # What was trimmed is older than what is kept: where there is nothing new, nothing is missing.
        rows = await view.fetch(self._read, mark)
        if not rows:
            return Tail((), mark, complete=True)
        if rows[0][1] is not None and rows[0][1] > mark:
            raise Trimmed
        return Tail(_changes(rows, 2), rows[-1][0], complete=len(rows) < CHUNK)

    async def behind(self, view: Reader, mark: Mark) -> int:
        return int(await self.start(view)) - int(mark)

    async def trim(self, tx: Tx, keep: int) -> int:
        last = await _oldest(tx, self._source, keep)
        gone = await tx.execute(f"DELETE FROM {self._source.table} WHERE id <= $1", last)
        if gone:
            await _set_trimmed(tx, self._source, last)
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


_NOW_XMIN = "CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)"
_NOW_XMAX = "CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)"


class _PostgresLog:
    def __init__(self, source: Source) -> None:
        self._source = source
        trimmed = _trimmed(source) if source.trimmed is None else f"{_trimmed(source)} AND mark < {_NOW_XMAX}"
        self._read = f"""
        SELECT h.now, h.trimmed, t.* FROM (
          SELECT CAST(pg_current_snapshot() AS text) AS now, CAST(({trimmed}) AS bigint) AS trimmed
        ) h LEFT JOIN LATERAL (
          SELECT l.xid AS entry_xid, l.id AS entry_id, {source.columns} FROM {source.table} l {source.join}
          WHERE (l.xid, l.id) > (CAST($2 AS bigint), CAST($3 AS bigint)) AND l.xid < {_NOW_XMAX}
            AND NOT pg_visible_in_snapshot(CAST(CAST(l.xid AS text) AS xid8), CAST(CAST($1 AS text) AS pg_snapshot))
          ORDER BY l.xid, l.id LIMIT {CHUNK}
        ) t ON TRUE
        """
        self._behind = f"""
        SELECT count(*) FROM {source.table} l WHERE l.xid >= CAST($2 AS bigint) AND l.xid < {_NOW_XMAX}
          AND NOT pg_visible_in_snapshot(CAST(CAST(l.xid AS text) AS xid8), CAST(CAST($1 AS text) AS pg_snapshot))
        """
        # A transaction that is under way may still be unseen by a reader that is up to date: its entries stay.
        self._trim = f"""
        WITH gone AS (
          DELETE FROM {source.table} WHERE id <= $1 AND (xid < {_NOW_XMIN} OR xid >= {_NOW_XMAX}) RETURNING xid
        ) SELECT count(*), max(xid) FILTER (WHERE xid < {_NOW_XMIN}) FROM gone
        """

    async def start(self, view: Reader) -> Mark:
        return _Seen(await view.fetchval("SELECT CAST(pg_current_snapshot() AS text)"))

    async def read(self, view: Reader, mark: Mark) -> Tail:
        assert isinstance(mark, _Seen)
        after = (mark.xid, mark.id) if mark.next else (mark.xmin, 0)
        rows = await view.fetch(self._read, mark.snapshot, *after)
        now, trimmed = rows[0][0], rows[0][1]
        if trimmed is not None and trimmed >= mark.xmin:
            raise Trimmed
        found = [r for r in rows if r["entry_id"] is not None]
        changes = _changes(found, 4)
        if len(found) == CHUNK:
            last = found[-1]
            mark = _Seen(mark.snapshot, mark.next or now, last["entry_xid"], last["entry_id"])
            return Tail(changes, mark, complete=False)
        # Behind a long tail's first piece an older transaction may have committed since: look again from there.
        return Tail(changes, _Seen(mark.next or now), complete=mark.next is None)

    async def behind(self, view: Reader, mark: Mark) -> int:
        assert isinstance(mark, _Seen)
        return int(await view.fetchval(self._behind, mark.snapshot, mark.xmin))

    async def trim(self, tx: Tx, keep: int) -> int:
        row = await tx.fetchrow(self._trim, await _oldest(tx, self._source, keep))
        assert row is not None
        if row[1] is not None:
            await _set_trimmed(tx, self._source, row[1])
        return int(row[0])
