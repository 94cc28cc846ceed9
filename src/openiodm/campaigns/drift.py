"""Counts rows again while the server runs: counters are the rows at every commit, and this would see if they were not.

It looks at a few unfinished campaigns at a time, the next ones every time, each in a snapshot of its own.
"""

from collections.abc import Callable

import structlog

from openiodm.campaigns.model import CampaignKey, Counters
from openiodm.campaigns.ports import CampaignReads
from openiodm.campaigns.queries import counted

AT_ONCE = 5  # campaigns a look
LARGEST = 100_000  # devices; larger ones take too long beside everything else

log = structlog.get_logger(__name__)


class DriftCheck:
    """Keeps the place where the last look ended. `told` hears of every recount whether it was exact."""

    def __init__(self, reads: CampaignReads, told: Callable[[bool], None]) -> None:
        self._reads = reads
        self._told = told
        self._after = CampaignKey(0)

    async def look(self) -> None:
        """The next few campaigns; after the last one it begins anew."""
        campaigns = await self._reads.unfinished(self._after, AT_ONCE, LARGEST)
        for campaign in campaigns:
            counters, states = await self._reads.recount(campaign)
            rows: Counters = counted(states)
            if counters != rows:
                log.error("counters_differ", campaign=campaign, counters=str(counters), rows=str(rows))
            self._told(counters == rows)
        self._after = campaigns[-1] if len(campaigns) == AT_ONCE else CampaignKey(0)
