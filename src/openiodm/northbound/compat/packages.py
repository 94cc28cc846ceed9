"""Packages as the published contract lists them (sections 3.1 and 3.2). There is no upload in it: see `native`."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from openiodm.errors import Reason
from openiodm.http.routes import Call, Needs, Route
from openiodm.northbound.compat.fields import PageNo, Text, given, integer, paging
from openiodm.northbound.compat.times import format_time
from openiodm.packages.commands import PackageCommands
from openiodm.packages.model import FileType, Package, PackageFilter, checked_file_id
from openiodm.packages.queries import MAX_PAGE_SIZE, PackageQueries

PATH = "/iodm/northbound/v1.5.0/category"
DEFAULT_PAGE_SIZE = 10

PageSize = Annotated[str, Meta(extra_json_schema=integer(1, MAX_PAGE_SIZE, DEFAULT_PAGE_SIZE))]


class ListQuery(msgspec.Struct, rename="camel"):
    """The published URL template spells manufacturerName without its first r; both are taken."""

    file_type: Literal["firmwarePackage", "softwarePackage", ""] = ""
    device_type: Text = ""
    model: Text = ""
    manufacturer_name: Text = ""
    manufacture_name: Text = ""
    version: Text = ""
    page_no: PageNo = ""
    page_size: PageSize = ""


class CategoryInfo(msgspec.Struct, rename="camel"):
    """A package: every member is always there, a string or null."""

    file_id: str
    name: str | None
    version: str | None
    file_type: str | None
    device_type: str | None
    model: str | None
    manufacturer_name: str | None
    protocol_type: str | None
    description: str | None
    date: str | None
    upload_time: str | None


class CategoryList(msgspec.Struct, rename="camel"):
    """A page of packages."""

    data: list[CategoryInfo]
    page_no: int
    page_size: int
    total_count: int


def routes(commands: PackageCommands, queries: PackageQueries) -> list[Route]:
    """The three calls of the contract."""
    api = _Category(commands, queries)
    one = PATH + "/{fileId}"
    return [
        Route(
            "GET",
            PATH,
            api.list_categories,
            Needs.APPLICATION,
            "Package list",
            query=ListQuery,
            answer=CategoryList,
            # Paging too: 123029 is for the operations calls alone (section 3.1).
            bad_input=lambda _field: Reason.BAD_FILTER,
            refusals=(Reason.BAD_FILTER,),
        ),
        Route(
            "GET",
            one,
            api.get_category,
            Needs.APPLICATION,
            "One package",
            answer=CategoryInfo,
            refusals=(Reason.BAD_INPUT, Reason.PACKAGE_UNKNOWN),
        ),
        Route(
            "DELETE",
            one,
            api.delete_category,
            Needs.APPLICATION,
            "Delete a package",
            refusals=(Reason.BAD_INPUT, Reason.PACKAGE_UNKNOWN, Reason.PACKAGE_IN_USE),
        ),
    ]


class _Category:
    def __init__(self, commands: PackageCommands, queries: PackageQueries) -> None:
        self._commands = commands
        self._queries = queries

    async def list_categories(self, call: Call) -> CategoryList:
        query: ListQuery = call.query
        wanted = PackageFilter(
            FileType(query.file_type) if query.file_type else None,
            given(query.device_type),
            given(query.model),
            given(query.manufacturer_name or query.manufacture_name),
            given(query.version),
        )
        page_no, page_size = paging(
            query.page_no, query.page_size, default=DEFAULT_PAGE_SIZE, most=MAX_PAGE_SIZE, bad=Reason.BAD_FILTER
        )
        page = await self._queries.page(call.actor, wanted, page_no=page_no, page_size=page_size)
        return CategoryList([_info(p) for p in page.items], page_no, page_size, page.total)

    async def get_category(self, call: Call) -> CategoryInfo:
        return _info(await self._queries.one(call.actor, checked_file_id(call.path["fileId"])))

    async def delete_category(self, call: Call) -> None:
        """None is answered as 200 with an empty body and a Content-Type, which the contract's SDK insists on."""
        await self._commands.delete(call.actor, checked_file_id(call.path["fileId"]))


def _info(package: Package) -> CategoryInfo:
    about = package.about
    return CategoryInfo(
        package.file_id,
        about.name,
        about.version,
        about.file_type.value,
        about.product.device_type,
        about.product.model,
        about.product.manufacturer_name,
        about.protocol_type,
        about.description,
        about.build_date,
        format_time(package.uploaded_at),
    )
