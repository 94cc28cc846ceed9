"""Packages in memory maps, and the names under which devices fetch them.

A block is a slice, and the kernel's page cache is the only cache. A name carries the device's own random bytes and the
attempt: devices fetch it with nothing else in hand, some from another socket than the one that they registered on.
"""

import mmap
import re
from collections import OrderedDict
from typing import Final

from openiodm.protocols.port import LocalFile

OPEN: Final = 64
"""Most packages that are mapped at the same time. One that goes stays mapped for those who still read it."""


_NAME: Final = re.compile(r"fw-([0-9a-f]{14})-([0-9]{1,9})", re.ASCII)


def package_name(seed: bytes, action_id: int) -> str:
    """One segment of a path, since a device may know no more."""
    return f"fw-{seed.hex()}-{action_id}"


def package_of(name: str) -> tuple[bytes, int] | None:
    """(the device's seed, action id), or None when it is no such name."""
    found = _NAME.fullmatch(name)
    return None if found is None else (bytes.fromhex(found[1]), int(found[2]))


class PackageFiles:
    """Opens each package once."""

    def __init__(self, local: LocalFile) -> None:
        self._local = local
        self._open: OrderedDict[str, mmap.mmap] = OrderedDict()

    def mapped(self, sha256: str) -> mmap.mmap | None:
        """The package's bytes, if it is open."""
        found = self._open.get(sha256)
        if found is not None:
            self._open.move_to_end(sha256)
        return found

    async def open(self, sha256: str) -> mmap.mmap:
        """The package's bytes, which may have to be fetched.

        Raises:
            OSError: it is not in the store.
            PackageAway: it cannot be had now.
        """
        mapped = self.mapped(sha256)
        if mapped is None:
            path = await self._local(sha256)
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            while len(self._open) >= OPEN:
                self._open.popitem(last=False)
            self._open[sha256] = mapped
        return mapped

    def close(self) -> None:
        """Forgets all."""
        self._open.clear()
