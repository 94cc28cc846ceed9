"""What applications may ask about their packages."""

from openiodm.access.model import Actor
from openiodm.errors import Reason, Refusal
from openiodm.packages.model import Package, PackageFilter, PackagePage, is_searchable
from openiodm.packages.ports import PackageReads

MAX_PAGE_SIZE = 100
_LAST_OFFSET = 2**62  # a page further on is as empty, and its offset fits neither engine's integers


class PackageQueries:
    """Reads only; packages of other applications do not exist here."""

    def __init__(self, packages: PackageReads) -> None:
        self._packages = packages

    async def one(self, actor: Actor, file_id: str) -> Package:
        """A package by its public id.

        Raises:
            Refusal: PACKAGE_UNKNOWN.
        """
        package = await self._packages.one(actor.application, file_id) if is_searchable(file_id) else None
        if package is None:
            raise Refusal(Reason.PACKAGE_UNKNOWN, field="fileId")
        return package

    async def page(self, actor: Actor, wanted: PackageFilter, *, page_no: int, page_size: int) -> PackagePage:
        """A page (from 0) of the packages that match, newest first; empty beyond the last one.

        Raises:
            Refusal: BAD_PAGING, BAD_FILTER.
        """
        if page_no < 0 or not 1 <= page_size <= MAX_PAGE_SIZE:
            raise Refusal(Reason.BAD_PAGING, "pageNo or pageSize is out of range")
        for name, value in (
            ("deviceType", wanted.device_type),
            ("model", wanted.model),
            ("manufacturerName", wanted.manufacturer_name),
            ("version", wanted.version),
        ):
            if value is not None and not is_searchable(value):
                raise Refusal(Reason.BAD_FILTER, f"{name} is too long or has control characters", field=name)
        offset = min(page_no * page_size, _LAST_OFFSET)
        return await self._packages.page(actor.application, wanted, offset=offset, limit=page_size)
