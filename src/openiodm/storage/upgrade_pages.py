"""Filtered pages of large campaigns' upgrades from memory: any page at the same cost.

An unfiltered page is a range of keys and needs nothing. A filtered one is found by skipping rows, which takes longer
the deeper it lies, so for campaigns with many upgrades somebody's first question has their bitmaps built, in the
background; they are kept exact by the history, as long as they are asked for. The plain SQL answers until then.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

import structlog

from openiodm.campaigns.model import Campaign, CampaignKey, Counters, Upgrade
from openiodm.campaigns.states import COUNTER_OF, Counter, UpgradeState
from openiodm.storage.campaign_reads import UPGRADE, SqlCampaignReads, counters_of, upgrade_of
from openiodm.storage.change_log import UPGRADES, change_log
from openiodm.storage.engine import Database, Reader, Unreachable
from openiodm.storage.upgrade_bitmaps import UpgradeBitmaps

LARGE = 10_000  # upgrades; below that, skipping rows takes a few milliseconds at most
HELD = 16  # campaigns; some 0.3 to 2 MB each for a million upgrades
BUILD_CHUNK = 10_000  # upgrades, of an index alone
REFRESH_S = 0.25  # the history that gathers in this time is read at once
IDLE_S = 300.0  # nobody has asked for a campaign: the history is not read for it any more

_COUNTERS = "SELECT * FROM campaign_counters WHERE campaign_id = $1"
_BY_ORDINAL = UPGRADE + "WHERE u.campaign_id = $1 AND u.ordinal = ANY($2::int[]) ORDER BY u.ordinal DESC"
_CHUNK = f"""
SELECT ordinal FROM upgrade WHERE campaign_id = $1 AND state = $2 AND ordinal > $3 ORDER BY ordinal LIMIT {BUILD_CHUNK}
"""

log = structlog.get_logger(__name__)

Page = tuple[Counters, Sequence[Upgrade]]


class IndexedCampaignReads(SqlCampaignReads):
    """`campaigns.ports.CampaignReads` with another way to filtered pages. One per server."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._log = change_log(database.engine, UPGRADES)
        self._held: dict[CampaignKey, UpgradeBitmaps] = {}
        self._asked: dict[CampaignKey, float] = {}  # when last, of those that are held or wanted
        self._mark: Any = None  # of all that are held
        self._turn = asyncio.Lock()  # snapshots must be applied in the order in which they were taken
        self._wake = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Builds what is asked for, in the background, and keeps it from falling behind; ends in `close`."""
        self._task = asyncio.create_task(self._run(), name="upgrade-pages")

    async def close(self) -> None:
        """Ends the background task; pages are plain SQL from then on."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        self._held.clear()

    def holds(self, campaign: CampaignKey) -> bool:
        """Do bitmaps answer for it, or the plain SQL?"""
        return campaign in self._held

    async def upgrades_page(
        self, campaign: Campaign, states: Sequence[UpgradeState] | None, number: int, size: int
    ) -> Page:
        """See the port."""
        found = None
        if states is not None and self._may_hold(campaign):
            with contextlib.suppress(Unreachable):  # the plain SQL tries again, on another connection
                found = await self._from_memory(campaign.key, states, number, size)
        return await super().upgrades_page(campaign, states, number, size) if found is None else found

    def _may_hold(self, campaign: Campaign) -> bool:
        """Is it held? Otherwise wants it, if that is worth it: while it is being expanded rows are added."""
        large = campaign.counters.total >= LARGE and campaign.work != "expanding"
        if campaign.key in self._held or (large and self._task is not None):
            self._asked[campaign.key] = asyncio.get_running_loop().time()
        if large and campaign.key not in self._held:
            self._wake.set()
        return campaign.key in self._held

    async def _from_memory(
        self, key: CampaignKey, states: Sequence[UpgradeState], number: int, size: int
    ) -> Page | None:
        """None where there are no bitmaps to answer from."""
        of = {COUNTER_OF[s] for s in states}
        if {s for s in UpgradeState if COUNTER_OF[s] in of} != set(states):
            return None  # not whole counters
        while key in self._held:
            async with AsyncExitStack() as stack:
                async with self._turn:
                    view = await stack.enter_async_context(self._db.moment())
                    counters = counters_of(await view.fetchrow(_COUNTERS, key))
                    ordinals = await self._select(view, key, counters, of, number, size)
                if ordinals is not None:
                    rows = await view.fetch(_BY_ORDINAL, key, ordinals) if ordinals else ()
                    return counters, [upgrade_of(r) for r in rows]
            await asyncio.sleep(0)  # a long tail is read in pieces, each in a moment of its own
        return None

    async def _select(
        self, view: Reader, key: CampaignKey, counters: Counters, of: set[Counter], number: int, size: int
    ) -> list[int] | None:
        """Ordinals of the page, as `view` sees them; None while the bitmaps are not as new as that, or gone."""
        if not await self._apply(view) or key not in self._held:
            return None
        bitmaps = self._held[key]
        if bitmaps.counters() != counters:
            log.error("upgrade_index_drifted", campaign=key, counters=counters, bitmaps=bitmaps.counters())
            del self._held[key]
            return None
        return bitmaps.page(of, number, size)

    async def _apply(self, view: Reader) -> bool:
        """One piece of the history's tail; True when the bitmaps are what `view` sees. The caller has the turn."""
        tail = await self._log.read(view, self._mark)
        for campaign, ordinal, state in tail.changes:
            if campaign in self._held:
                self._held[campaign].put(ordinal, UpgradeState(state))
        self._mark = tail.mark
        return tail.complete

    async def refresh(self) -> None:
        """Applies what the history has."""
        complete = False
        while self._held and not complete:
            async with self._turn, self._db.moment() as view:
                complete = await self._apply(view)
            await asyncio.sleep(0)

    async def build(self, key: CampaignKey) -> None:
        """Reads an index of the campaign's upgrades, in one snapshot and in short pieces."""
        began = perf_counter()
        bitmaps = UpgradeBitmaps()
        async with self._db.snapshot() as view:
            mark = await self._log.start(view)
            for state in UpgradeState:
                last = 0
                while rows := await view.fetch(_CHUNK, key, state.value, last):
                    bitmaps.load(state, [r[0] for r in rows])
                    last = rows[-1][0]
                    await asyncio.sleep(0)
                    if self._closing:
                        return
        async with self._turn:
            self._held[key] = bitmaps
            self._mark = mark  # older than the one before: others read a little of the history twice
        seconds = round(perf_counter() - began, 2)
        log.info("upgrade_index_built", campaign=key, upgrades=bitmaps.counters().total, seconds=seconds)

    def _let_go(self) -> None:
        """Of those that nobody has asked for lately, and of the oldest when there are too many."""
        now = asyncio.get_running_loop().time()
        newest = sorted(self._asked, key=self._asked.__getitem__, reverse=True)
        for n, key in enumerate(newest):
            if n >= HELD or now - self._asked[key] > IDLE_S:
                del self._asked[key]
                self._held.pop(key, None)

    async def _run(self) -> None:
        while not self._closing:
            self._wake.clear()
            try:
                self._let_go()
                wanted = next((k for k in self._asked if k not in self._held), None)
                await (self.refresh() if wanted is None else self.build(wanted))
            except Exception as error:  # the plain SQL goes on answering
                log.warning("upgrade_index_failed", error=f"{type(error).__name__}: {error}")
                self._asked.clear()
                self._held.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), REFRESH_S if self._asked else None)
