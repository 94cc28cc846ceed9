"""The one writer of a server: everything that changes a row goes through it and is committed in groups.

There is no timer: a batch is what came while the last commit ran, at most `MAX_BATCH` items, taken in the order of
their lanes (stop, reports, commands, chunks). Whoever submitted an item is answered after the commit, never before.
Stops have commits of their own, and so has every chunk: they touch many rows, and in one transaction with reports they
would take locks in an order that deadlocks with other servers. Under any flood of reports commands and chunks go on.

Items that share a `Batcher` (device reports) are handled together, set-based; a command is handled by itself inside a
savepoint, so that its refusal undoes only its own doing. When a batch fails for a reason of ours or of the engine's
(a deadlock, a bug), its items are tried again one by one: one bad item never fails the others. Not when the database
is gone: then all fail at once, since trying each would keep everybody waiting, and what was being committed when the
connection broke may be there.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Any, Generic, Protocol, TypeVar, cast

import structlog

from openiodm.errors import Refusal, Unavailable
from openiodm.scheduler.model import LeaseLost
from openiodm.storage.engine import Conflict, Database, Tx, Unreachable, Unwritable

MAX_BATCH = 200  # items a commit
COMMAND_SHARE = 50  # of these for commands, however many reports there are
UNWRITABLE_S = 5.0
CONFLICT_TRIES = 5  # of one item that other servers' transactions are in the way of

log = structlog.get_logger(__name__)

T = TypeVar("T")
W = TypeVar("W")
W_contra = TypeVar("W_contra", contravariant=True)


class Lane(IntEnum):
    """Who goes first into the next commit."""

    STOP = 0
    REPORT = 1
    COMMAND = 2
    CHUNK = 3


class Batcher(Protocol[W_contra]):
    """Handles many items of one kind in one transaction."""

    async def process(self, work: W_contra, items: Sequence[Any]) -> Sequence[Any]:
        """One result per item, in order; a result that is an exception is raised to its submitter."""
        ...


class _Item(Generic[W]):
    __slots__ = ("batcher", "command", "future", "origin", "payload")

    def __init__(
        self,
        command: Callable[[W], Awaitable[Any]] | None,
        batcher: Batcher[W] | None,
        payload: Any,
        future: "asyncio.Future[Any]",
    ) -> None:
        self.command = command
        self.batcher = batcher
        self.payload = payload
        self.future = future
        self.origin: Any = None


class Tracer(Protocol):
    """Sees what was handed in and where it was committed, for traces."""

    def origin(self) -> Any:
        """What is going on where something is handed in."""
        ...

    def commit(self, origins: Sequence[Any]) -> AbstractContextManager[None]:
        """A commit of what was handed in there."""
        ...


class WriterClosed(Exception):
    """The server is stopping and takes no more work."""


class Writer(Generic[W]):
    """Owns the write side of one database. `bind` turns a transaction into the rooms' rows (`Work`)."""

    def __init__(self, database: Database, bind: Callable[[Tx], W]) -> None:
        self._database = database
        self._bind = bind
        self._lanes: dict[Lane, deque[_Item[W]]] = {lane: deque() for lane in Lane}
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._unwritable_at = -UNWRITABLE_S
        self.commits = 0
        self.items = 0
        self.committed: Callable[[float, int], None] = lambda _seconds, _items: None
        """Hears of every commit: how long it took, and of how many items it was."""
        self.tracer: Tracer | None = None

    def start(self) -> None:
        """Begins to work; the task belongs to this object and ends in `close`."""
        self._task = asyncio.create_task(self._run(), name="writer")

    @property
    def is_writable(self) -> bool:
        """False as long as the last write that a full or read-only database refused is `UNWRITABLE_S` away.

        A full disk still has room for one more small row here and there, so a single write that goes says little.
        """
        return time.monotonic() - self._unwritable_at >= UNWRITABLE_S

    def waiting(self) -> dict[str, int]:
        """How many items wait in each lane."""
        return {lane.name.lower(): len(items) for lane, items in self._lanes.items()}

    async def close(self) -> None:
        """Commits what was taken, then ends."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task

    async def run(self, command: Callable[[W], Awaitable[T]], lane: Lane = Lane.COMMAND) -> T:
        """Runs `command` in a transaction and returns its result once that is durable.

        Raises:
            Refusal: the command's own; nothing of it is kept.
            WriterClosed: the server is stopping.
        """
        return cast("T", await self._submit(_Item(command, None, None, self._future()), lane))

    async def report(self, batcher: Batcher[W], payload: Any, lane: Lane = Lane.REPORT) -> Any:
        """Hands `payload` to `batcher` together with its like; the result, once that is durable."""
        return await self._submit(_Item(None, batcher, payload, self._future()), lane)

    @staticmethod
    def _future() -> "asyncio.Future[Any]":
        return asyncio.get_running_loop().create_future()

    def _submit(self, item: _Item[W], lane: Lane) -> "asyncio.Future[Any]":
        if self._closing:
            raise WriterClosed
        if self.tracer is not None:
            item.origin = self.tracer.origin()
        self._lanes[lane].append(item)
        self._wake.set()
        return item.future

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while any(self._lanes.values()):
                await self._commit(self._take(Lane.STOP, MAX_BATCH))
                commands = min(len(self._lanes[Lane.COMMAND]), COMMAND_SHARE)
                reports = self._take(Lane.REPORT, MAX_BATCH - commands)
                await self._commit(reports + self._take(Lane.COMMAND, MAX_BATCH - len(reports)))
                await self._commit(self._take(Lane.CHUNK, 1))
            if self._closing:
                return

    def _take(self, lane: Lane, most: int) -> list[_Item[W]]:
        batch: list[_Item[W]] = []
        waiting = self._lanes[lane]
        while waiting and len(batch) < most:
            item = waiting.popleft()
            if not item.future.cancelled():  # a client that went away before its turn
                batch.append(item)
        return batch

    async def _commit(self, batch: list[_Item[W]], tries: int = CONFLICT_TRIES) -> None:
        if not batch:
            return
        began = time.perf_counter()
        try:
            if self.tracer is None:
                results = await self._in_transaction(batch)
            else:
                with self.tracer.commit([item.origin for item in batch]):
                    results = await self._in_transaction(batch)
        except Unreachable as error:
            log.error("database_unreachable", items=len(batch), error=str(error) or type(error).__name__)
            results = [Unavailable(str(error)) for _ in batch]
        except Unwritable as error:
            if self.is_writable:  # once, not for everything that is tried meanwhile
                log.error("database_unwritable", error=str(error))
            self._unwritable_at = time.monotonic()
            if len(batch) > 1:  # a full disk may have room for some of them
                for item in batch:
                    await self._commit([item])
                return
            results = [Unavailable(str(error))]
        except Exception as error:
            if len(batch) == 1 and isinstance(error, Conflict) and tries > 1:
                log.warning("write_conflicted", error=str(error))
                await self._commit(batch, tries - 1)
                return
            if len(batch) == 1:
                log.exception("write_failed")
                results = [WriteFailed()]
            else:
                log.warning("batch_failed_and_is_split", items=len(batch), exc_info=True)
                for item in batch:
                    await self._commit([item])
                return
        else:
            self.commits += 1
            self.items += len(batch)
            self.committed(time.perf_counter() - began, len(batch))
        for item, result in zip(batch, results, strict=True):
            if item.future.done():
                continue
            if isinstance(result, BaseException):
                item.future.set_exception(result)
            else:
                item.future.set_result(result)

    async def _in_transaction(self, batch: list[_Item[W]]) -> list[Any]:
        results: dict[int, Any] = {}
        async with self._database.transaction() as tx:
            work = self._bind(tx)
            for batcher, items in _groups(batch):
                if batcher is None:
                    for item in items:
                        results[id(item)] = await self._one(tx, work, item)
                else:
                    outcomes = await batcher.process(work, [item.payload for item in items])
                    results.update(zip(map(id, items), outcomes, strict=True))
        return [results[id(item)] for item in batch]

    @staticmethod
    async def _one(tx: Tx, work: W, item: _Item[W]) -> Any:
        assert item.command is not None
        try:
            async with tx.savepoint():
                return await item.command(work)
        except (Refusal, LeaseLost) as answer:
            return answer


class WriteFailed(Exception):
    """A write failed by our own fault; the log has the trace. Nothing of it was kept."""


def _groups(batch: list[_Item[W]]) -> list[tuple[Batcher[W] | None, list[_Item[W]]]]:
    """Items of one batcher together, in the order in which the first of each came."""
    groups: dict[int, tuple[Batcher[W] | None, list[_Item[W]]]] = {}
    for item in batch:
        groups.setdefault(id(item.batcher), (item.batcher, []))[1].append(item)
    return list(groups.values())
