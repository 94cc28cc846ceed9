"""One roaring bitmap per counter of a campaign: the ordinals of the upgrades that it counts. In memory, no I/O."""

from collections.abc import Collection, Sequence

from pyroaring import BitMap

from openiodm.campaigns.model import Counters
from openiodm.campaigns.states import COUNTER_OF, Counter, UpgradeState


class UpgradeBitmaps:
    """The upgrades of one campaign by counter."""

    def __init__(self) -> None:
        self._of = {counter: BitMap() for counter in Counter}

    def load(self, state: UpgradeState, ordinals: Sequence[int]) -> None:
        """Upgrades that are not in it yet, many at once."""
        self._of[COUNTER_OF[state]].update(ordinals)

    def put(self, ordinal: int, state: UpgradeState) -> None:
        """An upgrade whose state has changed."""
        for bitmap in self._of.values():
            bitmap.discard(ordinal)
        self._of[COUNTER_OF[state]].add(ordinal)

    def counters(self) -> Counters:
        """What they add up to: the campaign's counters, or something is wrong."""
        counts = {counter.value: len(bitmap) for counter, bitmap in self._of.items()}
        return Counters(total=sum(counts.values()), **counts)

    def page(self, of: Collection[Counter], number: int, size: int) -> list[int]:
        """Ordinals of the `number`-th page of `size`, newest first."""
        matching = BitMap.union(*(self._of[counter] for counter in of))
        end = len(matching) - number * size
        return [] if end <= 0 else list(reversed(matching[max(0, end - size) : end]))
