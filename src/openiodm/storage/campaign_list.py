"""The task list from memory: exact totals and any page of any filter without counting or skipping rows.

The plain SQL (`campaign_reads.SqlCampaignList`) answers until the index is built, after a reader was away for longer
than the change log reaches back, and when the database's connection breaks in mid-read. Both give the same answers.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

import structlog

from openiodm.campaigns.model import Campaign, CampaignFilter
from openiodm.metrics import ListIndex
from openiodm.storage.campaign_reads import CAMPAIGN, SqlCampaignList, campaign_of
from openiodm.storage.change_log import CAMPAIGNS, Trimmed, change_log
from openiodm.storage.engine import Database, Reader, Unreachable
from openiodm.storage.list_bitmaps import COLUMNS, CampaignBitmaps

BUILD_CHUNK = 2000  # campaigns: some milliseconds on the loop
REFRESH_S = 0.5  # how much of the log may gather before it is read, whether anybody asks or not
RETRY_S = 5.0

_BY_KEY = CAMPAIGN + "WHERE c.id = ANY($1::bigint[]) ORDER BY c.id DESC"
_CHUNK = f"SELECT {COLUMNS} FROM campaign c WHERE c.id > $1 ORDER BY c.id LIMIT {BUILD_CHUNK}"
_OF_DEVICE = """
SELECT u.campaign_id FROM device d JOIN upgrade u ON u.device_id = d.id WHERE d.application_id = $1 AND d.device_id = $2
"""

log = structlog.get_logger(__name__)


class IndexedCampaignList:
    """See `campaigns.ports.CampaignList`. One per server; each brings its bitmaps up to date before it answers.

    Whatever was committed before a page is asked for is in it, whichever server committed it, and everything in an
    answer is of one moment: log, bitmaps and rows are read in one snapshot.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._plain = SqlCampaignList(database)
        self._log = change_log(database.engine, CAMPAIGNS)
        self._bitmaps: CampaignBitmaps | None = None
        self._mark: Any = None
        self._turn = asyncio.Lock()  # snapshots must be applied in the order in which they were taken
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Does the index answer, or still (or again) the plain SQL?"""
        return self._bitmaps is not None

    async def look(self) -> ListIndex | None:
        """How large it is, and how far behind; None while there is none."""
        async with self._db.moment() as view:
            if self._bitmaps is None:
                return None
            behind = await self._log.behind(view, self._mark)
        return ListIndex(len(self._bitmaps), self._bitmaps.octets, behind)

    def start(self) -> None:
        """Builds the index in the background and keeps it from falling behind; ends in `close`."""
        self._task = asyncio.create_task(self._run(), name="list-index")

    async def close(self) -> None:
        """Ends the background task; pages are plain SQL from then on."""
        self._stop.set()
        if self._task is not None:
            await self._task
        self._bitmaps = None

    async def page(self, where: CampaignFilter, number: int, size: int) -> tuple[int, Sequence[Campaign]]:
        """See the port."""
        try:
            found = await self._from_memory(where, number, size)
        except Unreachable:
            found = None
        return await self._plain.page(where, number, size) if found is None else found

    async def build(self) -> None:
        """Reads the whole table, in one snapshot and in short pieces."""
        began = perf_counter()
        bitmaps, last = CampaignBitmaps(), 0
        async with self._db.snapshot() as view:
            mark = await self._log.start(view)
            while rows := await view.fetch(_CHUNK, last):
                bitmaps.load(rows)
                last = rows[-1][0]
                await asyncio.sleep(0)
                if self._stop.is_set():
                    return
        bitmaps.optimize()
        async with self._turn:
            self._bitmaps, self._mark = bitmaps, mark
        log.info("list_index_built", tasks=len(bitmaps), seconds=round(perf_counter() - began, 2))

    async def refresh(self) -> None:
        """Applies what the log has."""
        complete = False
        while self._bitmaps is not None and not complete:
            async with self._turn, self._db.moment() as view:
                complete = await self._apply(view)
            await asyncio.sleep(0)

    async def _from_memory(
        self, where: CampaignFilter, number: int, size: int
    ) -> tuple[int, Sequence[Campaign]] | None:
        """None where there are no bitmaps to answer from."""
        while self._bitmaps is not None:
            async with AsyncExitStack() as stack:
                async with self._turn:
                    view = await stack.enter_async_context(self._db.moment())
                    selected = await self._select(view, where, number, size)
                if selected is not None:
                    total, keys = selected
                    rows = await view.fetch(_BY_KEY, keys) if keys else ()
                    return total, tuple(campaign_of(r) for r in rows)
            await asyncio.sleep(0)  # a long tail is read in pieces, each in a moment of its own
        return None

    async def _select(
        self, view: Reader, where: CampaignFilter, number: int, size: int
    ) -> tuple[int, list[int]] | None:
        """Total and keys of the page, as `view` sees them; None while the bitmaps are not as new as that."""
        of_device = None
        if where.device_id is not None:
            of_device = [r[0] for r in await view.fetch(_OF_DEVICE, where.application, where.device_id)]
        if not await self._apply(view) or self._bitmaps is None:
            return None
        return self._bitmaps.page(where, of_device, number, size)

    async def _apply(self, view: Reader) -> bool:
        """One piece of the log's tail; True when the bitmaps are now what `view` sees. The caller has the turn."""
        if self._bitmaps is None:
            return False
        try:
            tail = await self._log.read(view, self._mark)
        except Trimmed:
            log.warning("list_index_too_far_behind")
            self._bitmaps = None
            return False
        for key, *row in tail.changes:
            if row[0] is None:
                self._bitmaps.remove(key)
            else:
                self._bitmaps.put(row)
        self._mark = tail.mark
        return tail.complete

    async def _run(self) -> None:
        while not self._stop.is_set():
            pause = REFRESH_S
            try:
                await (self.build() if self._bitmaps is None else self.refresh())
            except Exception as error:  # the plain SQL goes on answering
                log.warning("list_index_failed", error=f"{type(error).__name__}: {error}")
                pause = RETRY_S
            try:
                await asyncio.wait_for(self._stop.wait(), pause)
            except TimeoutError:
                continue
