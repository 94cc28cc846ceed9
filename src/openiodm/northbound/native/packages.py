"""Native routes of packages: upload (the published contract has none), list, one, delete."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Call, Needs, Route, json_response
from openiodm.northbound.native.edge import PREFIX
from openiodm.northbound.native.times import moment
from openiodm.packages.commands import PackageCommands
from openiodm.packages.model import (
    MAX_TEXT,
    FileType,
    NewPackage,
    Package,
    PackageFilter,
    checked_file_id,
)
from openiodm.packages.queries import MAX_PAGE_SIZE, PackageQueries

PATH = PREFIX + "/packages"
UPLOAD_MEDIA = "application/octet-stream"
# Bodies of these types are not the file's own bytes: a form's framing would be stored as part of the package.
_NOT_A_FILE = ("multipart/", "application/x-www-form-urlencoded")

# Patterns that Python's and ECMA-262's expressions read alike: they go into the OpenAPI document too.
_PRINTABLE = r"^[^\u0000-\u001f\u007f-\u009f]*$(?!\n)"
_SOMETHING = r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$(?!\n)"

# As long as a request line can carry beside the other parameters when every character takes twelve bytes of it.
MAX_SOURCE_VERSIONS_TEXT = 2_048

Text = Annotated[str, Meta(max_length=MAX_TEXT, pattern=_PRINTABLE)]
Named = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT, pattern=_SOMETHING)]


class UploadQuery(msgspec.Struct, rename="camel"):
    """What a file is. A SOTA zip of type softwarePackage may say in its UpgradeDesc.json what is not given here."""

    type: FileType
    name: Named | None = None
    version: Named | None = None
    device_type: Named | None = None
    model: Named | None = None
    manufacturer_name: Named | None = None
    source_versions: Annotated[
        str, Meta(max_length=MAX_SOURCE_VERSIONS_TEXT, description="separated by commas; none = any")
    ] = ""
    description: Text = ""
    protocol_type: Text = ""
    build_date: Text = ""
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}$(?!\n)")] | None = None


class ListQuery(msgspec.Struct, rename="camel"):
    """Conditions that must all hold; an empty one is not given."""

    type: FileType | UnsetType = UNSET  # with None in its place msgspec would take the text "null" for it
    device_type: Text = ""
    model: Text = ""
    manufacturer_name: Text = ""
    version: Text = ""
    page_no: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    page_size: Annotated[int, Meta(ge=1, le=MAX_PAGE_SIZE)] = 10


class DeleteQuery(msgspec.Struct, rename="camel"):
    """How to delete a package."""

    give_up_retries: Annotated[
        bool, Meta(description="Also where a failed task could be retried with it; then it cannot be any more.")
    ] = False


class PackageView(msgspec.Struct, rename="camel"):
    """A package."""

    file_id: str
    type: FileType
    name: str
    version: str
    device_type: str
    model: str
    manufacturer_name: str
    source_versions: Annotated[tuple[str, ...], Meta(description="empty: devices on any version are upgraded")]
    description: str | None
    protocol_type: str | None
    build_date: str | None
    extra: Annotated[Mapping[str, str | int], Meta(description="versionCheckCode, deviceShard, platform of a SOTA zip")]
    size: Annotated[int, Meta(description="bytes")]
    sha256: str
    sha1: str
    md5: str
    uploaded_at: datetime


class PackageList(msgspec.Struct, rename="camel"):
    """One page, newest first; `total` counts all matches."""

    items: list[PackageView]
    total: int
    page_no: int
    page_size: int


def routes(commands: PackageCommands, queries: PackageQueries) -> list[Route]:
    """The four operations on packages."""
    api = _Packages(commands, queries)
    one = PATH + "/{fileId}"
    return [
        Route(
            "POST",
            PATH,
            api.upload_package,
            Needs.APPLICATION,
            "Upload a package",
            query=UploadQuery,
            answer=PackageView,
            status=201,
            description=(
                "The body is the file itself and may be of any size up to the server's limit. `type` is always "
                "needed; `name`, `version`, `deviceType`, `model` and `manufacturerName` too, unless the file is a "
                "SOTA zip that says them. With `sha256` given, other bytes are refused."
            ),
            refusals=(
                Reason.BAD_INPUT,
                Reason.PACKAGE_TOO_LARGE,
                Reason.PACKAGE_DIGEST_MISMATCH,
                Reason.STORE_FULL,
                Reason.STORE_AWAY,
            ),
            request_media=UPLOAD_MEDIA,
            streams_body=True,
        ),
        Route(
            "GET",
            PATH,
            api.list_packages,
            Needs.APPLICATION,
            "List packages, newest first",
            query=ListQuery,
            answer=PackageList,
            bad_input=lambda field: Reason.BAD_PAGING if field in {"pageNo", "pageSize"} else Reason.BAD_FILTER,
            refusals=(Reason.BAD_FILTER, Reason.BAD_PAGING),
        ),
        Route(
            "GET",
            one,
            api.get_package,
            Needs.APPLICATION,
            "Show a package",
            answer=PackageView,
            refusals=(Reason.PACKAGE_UNKNOWN,),
        ),
        Route(
            "DELETE",
            one,
            api.delete_package,
            Needs.APPLICATION,
            "Delete a package",
            query=DeleteQuery,
            status=204,
            description="Refused while an unfinished task needs it, or a failed one that could be retried.",
            refusals=(Reason.BAD_INPUT, Reason.PACKAGE_UNKNOWN, Reason.PACKAGE_IN_USE),
        ),
    ]


class _Packages:
    def __init__(self, commands: PackageCommands, queries: PackageQueries) -> None:
        self._commands = commands
        self._queries = queries

    async def upload_package(self, call: Call) -> Any:
        query: UploadQuery = call.query
        headers = call.request.headers
        media = headers.get("content-type", UPLOAD_MEDIA).casefold()
        if media.startswith(_NOT_A_FILE):
            raise Refusal(Reason.BAD_INPUT, f"send the file itself, as {UPLOAD_MEDIA}", field="Content-Type")
        package = await self._commands.upload(
            call.actor,
            _new_package(query),
            call.request.stream(),
            expected_size=_content_length(headers.get("content-length")),
            sha256=query.sha256,
        )
        response = json_response(_view(package), 201)
        response.headers["Location"] = f"{PATH}/{package.file_id}"
        return response

    async def list_packages(self, call: Call) -> PackageList:
        query: ListQuery = call.query
        wanted = PackageFilter(
            None if query.type is UNSET else query.type,
            query.device_type or None,
            query.model or None,
            query.manufacturer_name or None,
            query.version or None,
        )
        page = await self._queries.page(call.actor, wanted, page_no=query.page_no, page_size=query.page_size)
        return PackageList([_view(p) for p in page.items], page.total, query.page_no, query.page_size)

    async def get_package(self, call: Call) -> PackageView:
        return _view(await self._queries.one(call.actor, checked_file_id(call.path["fileId"])))

    async def delete_package(self, call: Call) -> None:
        query: DeleteQuery = call.query
        file_id = checked_file_id(call.path["fileId"])
        await self._commands.delete(call.actor, file_id, give_up_retries=query.give_up_retries)


def _new_package(query: UploadQuery) -> NewPackage:
    versions = tuple(v.strip() for v in query.source_versions.split(",") if v.strip())
    return NewPackage(
        query.type,
        query.name,
        query.version,
        query.device_type,
        query.model,
        query.manufacturer_name,
        versions or None,
        query.description.strip() or None,
        query.protocol_type.strip() or None,
        query.build_date.strip() or None,
    )


def _content_length(value: str | None) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise Refusal(Reason.BAD_INPUT, "Content-Length is not a number of bytes", field="Content-Length")
    return int(value)


def _view(package: Package) -> PackageView:
    about, blob = package.about, package.blob
    return PackageView(
        package.file_id,
        about.file_type,
        about.name,
        about.version,
        about.product.device_type,
        about.product.model,
        about.product.manufacturer_name,
        about.source_versions,
        about.description,
        about.protocol_type,
        about.build_date,
        about.extra,
        blob.size,
        blob.sha256,
        blob.sha1,
        blob.md5,
        moment(package.uploaded_at),
    )
