"""The port that both engines implement, and the few words of SQL in which they differ.

Statements are written once, in PostgreSQL's dialect, with `$1` parameters. `sqlite.py` translates four constructs:
`$n`, `= ANY($n::type[])`, `FOR UPDATE ...` (SQLite has one writer, so nothing to lock) and `random_id()`. What goes by
the hundred in one statement is declared as `InsertMany` / `UpdateMany`, for which each engine has its own fastest form.

A `Row` iterates over its values in the order of the SELECT list and answers `row["column"]`.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from openiodm.errors import Unavailable

Row = Any  # sqlite3.Row | asyncpg.Record: both are sequences of values with names


class UniqueViolation(Exception):
    """A unique index refused a row; `constraint` names the index where the engine tells it."""

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint


class Conflict(Exception):
    """PostgreSQL broke a deadlock, or could not serialize: this transaction is the one to be tried again."""


class Unreachable(Unavailable):
    """The database is not there, or went away: a transaction under way may have been committed or not."""


class Unwritable(Unavailable):
    """The database is there and takes no writes for now: its disk is full, or it is read-only. Nothing is kept."""


@dataclass(frozen=True, slots=True)
class InsertMany:
    """Inserts rows by the hundred. `columns` maps names to PostgreSQL types, in the order of each row's values."""

    table: str
    columns: dict[str, str]


@dataclass(frozen=True, slots=True)
class UpdateMany:
    """Updates rows by the hundred: each row's values are `keys`, then `assign`, in that order.

    `keys` select (and make it a compare-and-set when a state is among them); `assign` are set. `add` columns come
    last and are added to.
    """

    table: str
    keys: dict[str, str]
    assign: dict[str, str]
    add: dict[str, str] | None = None


class Reader(Protocol):
    """Reads, each statement by itself. Only key lookups and bounded ranges belong on the loop.

    All raise `Unreachable` when the database is not there.
    """

    async def fetch(self, sql: str, *args: Any) -> Sequence[Row]:
        """All rows."""
        ...

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        """The first row, or None."""
        ...

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None."""
        ...


class Tx(Reader, Protocol):
    """One open transaction."""

    async def execute(self, sql: str, *args: Any) -> int:
        """Runs a statement; the number of rows it touched.

        Raises:
            UniqueViolation: a unique index refused it.
        """
        ...

    async def lock(self, sql: str, *args: Any) -> None:
        """Runs a SELECT for its row locks alone. Nothing to do on SQLite, which has one writer."""
        ...

    async def look_up_by_keys(self) -> None:
        """For the rest of the transaction joins are look-ups by key, whatever the statistics say: a table that grows by
        a million rows in a minute has none. Nothing to do on SQLite, which plans that way.
        """
        ...

    async def insert_many(self, statement: InsertMany, rows: Sequence[tuple[Any, ...]]) -> None:
        """Inserts all rows or raises."""
        ...

    async def update_many(self, statement: UpdateMany, rows: Sequence[tuple[Any, ...]]) -> int:
        """Updates; the number of rows that matched their keys."""
        ...

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """What is done inside is undone if it raises, and the transaction goes on."""
        ...


class Database(Reader, Protocol):
    """An open database. Reads need no transaction; all writes go through one (the writer's)."""

    engine: str  # 'sqlite' | 'postgresql'
    empty_write: str  # its transaction is written to disk, or refused as any write is; it changes and locks no row

    def transaction(self) -> AbstractAsyncContextManager[Tx]:
        """Begins; commits at the end, rolls back if the body raises. One at a time per process on SQLite.

        Raises:
            Conflict: other servers' transactions were in the way; nothing is kept.
            Unreachable: the connection is gone.
            Unwritable: nothing can be written for now.
        """
        ...

    def snapshot(self, *, patient: bool = False) -> AbstractAsyncContextManager[Reader]:
        """One consistent view on a connection of its own, for recounts and lists; may run long.

        A server that is silent in it for some seconds is taken for frozen and loses it. `patient` says that between
        two reads something may take minutes, such as a slow disk.

        Raises:
            Unreachable: the connection is gone.
        """
        ...

    def moment(self) -> AbstractAsyncContextManager[Reader]:
        """One consistent view for a few key lookups on the loop. Nothing but its reads may be awaited inside: on SQLite
        they never wait, and others share the connection.

        Raises:
            Unreachable: the connection is gone.
        """
        ...

    async def now(self) -> int | None:
        """The database's own clock (ms), or None where the process's clock is the only one (SQLite)."""
        ...

    async def end_abandoned(self) -> int:
        """Ends the transactions that servers which say nothing any more have left open; how many."""
        ...

    async def close(self) -> None:
        """Closes every connection."""
        ...
