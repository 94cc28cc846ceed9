"""One roaring bitmap per value of each listed attribute: which campaigns have it. In memory, no I/O.

A filter is the intersection of its bitmaps, its total their cardinality, its page a slice from the newest end. Keys of
campaigns are row ids and must fit 32 bits. Of a campaign's attributes only the status ever changes.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from pyroaring import BitMap

from openiodm.campaigns.model import CampaignFilter
from openiodm.campaigns.states import CampaignStatus

# A campaign as the index needs it, in this order.
COLUMNS = "c.id, c.application_id, c.kind, c.status, c.device_type, c.model, c.manufacturer_name"
_STATUS = 2  # of the attributes, which are the columns without the id

Value = tuple[int, Any]  # (which attribute, its value)


class CampaignBitmaps:
    """Campaigns by attribute. Whoever owns it applies changes and asks between two awaits."""

    def __init__(self) -> None:
        self._of: defaultdict[Value, BitMap] = defaultdict(BitMap)
        self._all = BitMap()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def octets(self) -> int:
        """Memory of the bitmaps' containers."""
        told = [bitmap.get_statistics() for bitmap in (self._all, *self._of.values())]
        return sum(
            s["n_bytes_array_containers"] + s["n_bytes_run_containers"] + s["n_bytes_bitset_containers"] for s in told
        )

    def load(self, rows: Sequence[Sequence[Any]]) -> None:
        """Campaigns that are not in it yet, many at once. A row is `COLUMNS`."""
        if not rows:
            return
        keys, *columns = zip(*rows, strict=True)
        self._all.update(keys)
        for attribute, values in enumerate(columns):
            having: defaultdict[Any, list[int]] = defaultdict(list)
            for key, value in zip(keys, values, strict=True):
                having[value].append(key)
            for value, those in having.items():
                self._of[attribute, value].update(those)

    def put(self, row: Sequence[Any]) -> None:
        """A campaign that is new, or whose status has changed. A row is `COLUMNS`."""
        key, *values = row
        if key in self._all:
            for status in CampaignStatus:
                self._of[_STATUS, status.value].discard(key)
            self._of[_STATUS, values[_STATUS]].add(key)
            return
        self._all.add(key)
        for value in enumerate(values):
            self._of[value].add(key)

    def remove(self, key: int) -> None:
        """A campaign that is gone."""
        if key in self._all:
            self._all.discard(key)
            for bitmap in self._of.values():
                bitmap.discard(key)

    def optimize(self) -> None:
        """Gives back what loading left over."""
        for bitmap in (self._all, *self._of.values()):
            bitmap.run_optimize()
            bitmap.shrink_to_fit()

    def page(
        self, where: CampaignFilter, of_device: Iterable[int] | None, number: int, size: int
    ) -> tuple[int, list[int]]:
        """How many match, and the keys of the `number`-th page of `size`, newest first.

        `of_device`: the campaigns that the device of the filter is in, where it names one.
        """
        matching = self._matching(where, of_device)
        end = len(matching) - number * size
        if end <= 0:
            return len(matching), []
        return len(matching), list(reversed(matching[max(0, end - size) : end]))

    def _matching(self, where: CampaignFilter, of_device: Iterable[int] | None) -> BitMap:
        attributes = (
            where.application,
            where.kind,
            where.status,
            where.device_type,
            where.model,
            where.manufacturer_name,
        )
        # `get` and not `[]`: what somebody asks for must not grow the index. A StrEnum is equal to its text.
        bitmaps = [self._of.get(v) for v in enumerate(attributes) if v[1] is not None]
        if of_device is not None:
            bitmaps.append(BitMap(of_device))
        found = [b for b in bitmaps if b is not None]
        if len(found) < len(bitmaps):
            return BitMap()
        found.sort(key=len)
        matching = found[0]
        for bitmap in found[1:]:
            matching = matching & bitmap
        return matching
