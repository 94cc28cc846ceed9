"""The eight calls about groups (section 5.5).

Their errors come with HTTP 200 as the contract shows them, unless the edge is told otherwise.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from openiodm.access.model import Actor
from openiodm.devices.groups import GroupCommands
from openiodm.devices.model import Group, GroupChange, NewGroup, Page
from openiodm.devices.queries import GroupQueries
from openiodm.errors import Reason
from openiodm.http.routes import Call, Needs, Route
from openiodm.northbound.compat.fields import Number, Text, given, own_application, paging

GROUPS = "/iocm/app/devgroup/v1.3.0/devGroups"
MEMBERS = "/iocm/app/dm/v1.2.0/devices/ids"
ADD = "/iocm/app/dm/v1.1.0/devices/addDevGroupTagToDevices"
REMOVE = "/iocm/app/dm/v1.1.0/devices/deleteDevGroupTagFromDevices"

GROUP_PAGE_SIZE, GROUP_PAGE_SIZE_MOST = 1, 500
MEMBER_PAGE_SIZE, MEMBER_PAGE_SIZE_MOST = 10, 1000

# Letters and digits of any script. `$` alone would let a line's end pass.
GroupName = Annotated[str, Meta(min_length=1, max_length=50, pattern=r"^[^\W_]+$(?!\n)")]
GroupId = Annotated[str, Meta(min_length=1, max_length=50)]
Description = Annotated[str, Meta(max_length=1024)]
Most = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class CreateBody(msgspec.Struct, rename="camel"):
    """A new group."""

    name: GroupName
    description: Description | None = None
    app_id: Text | None = None
    max_dev_num: Most | None = None
    device_ids: list[Text] | None = None


class ModifyBody(msgspec.Struct, rename="camel"):
    """What is left out, or null, stays."""

    name: GroupName | None = None
    description: Description | None = None
    max_dev_num: Most | None = None


class MembersBody(msgspec.Struct, rename="camel"):
    """Which devices, which group."""

    dev_group_id: GroupId
    device_ids: list[Text]


class GroupObject(msgspec.Struct, rename="camel"):
    """A group."""

    name: str
    description: str | None
    id: str
    app_id: str
    max_dev_num: int
    cur_dev_num: int
    creator: str | None


class CreatedGroup(msgspec.Struct, rename="camel"):
    """A group as its creation answers it."""

    name: str
    description: str | None
    id: str
    app_id: str
    max_dev_num: int
    cur_dev_num: int
    device_ids: list[str]


class GroupList(msgspec.Struct, rename="camel"):
    """A page of groups; the contract names the member `list`."""

    total_count: int
    page_no: int
    page_size: int
    groups: list[GroupObject] = msgspec.field(name="list")


class MemberList(msgspec.Struct, rename="camel"):
    """A page of a group's devices."""

    total_count: int
    page_no: int
    page_size: int
    device_ids: list[str]


class Added(msgspec.Struct, rename="camel"):
    """What was asked for, once it is done."""

    dev_group_id: str
    device_ids: list[str]


class AppQuery(msgspec.Struct, rename="camel"):
    """Either may name the caller only."""

    access_app_id: Text = ""
    app_id: Text = ""


class ListQuery(msgspec.Struct, rename="camel"):
    """A name matches exactly."""

    access_app_id: Text = ""
    app_id: Text = ""
    name: Text = ""
    page_no: Number = ""
    page_size: Number = ""


class MembersQuery(msgspec.Struct, rename="camel"):
    """Which group."""

    dev_group_id: GroupId
    access_app_id: Text = ""
    app_id: Text = ""
    page_no: Number = ""
    page_size: Number = ""


def routes(commands: GroupCommands, queries: GroupQueries) -> list[Route]:
    """The eight calls."""
    api = _Groups(commands, queries)
    app, unknown = Reason.APPLICATION_UNKNOWN, Reason.GROUP_UNKNOWN
    members = (Reason.GROUP_TOO_MANY_DEVICES, Reason.DEVICE_UNKNOWN, Reason.GROUP_FULL)
    one = GROUPS + "/{devGroupId}"
    return [
        Route(
            "POST",
            GROUPS,
            api.create_group,
            Needs.APPLICATION,
            "Create a group",
            query=AppQuery,
            body=CreateBody,
            answer=CreatedGroup,
            status=201,
            refusals=(app, Reason.GROUP_NAME_TAKEN, *members),
        ),
        Route(
            "GET",
            GROUPS,
            api.list_groups,
            Needs.APPLICATION,
            "Group list",
            query=ListQuery,
            answer=GroupList,
            refusals=(app,),
        ),
        Route(
            "GET",
            one,
            api.get_group,
            Needs.APPLICATION,
            "One group",
            query=AppQuery,
            answer=GroupObject,
            refusals=(app, unknown),
        ),
        Route(
            "PUT",
            one,
            api.modify_group,
            Needs.APPLICATION,
            "Modify a group",
            query=AppQuery,
            body=ModifyBody,
            answer=GroupObject,
            refusals=(app, unknown, Reason.GROUP_NAME_TAKEN, Reason.GROUP_FULL),
        ),
        Route(
            "DELETE",
            one,
            api.delete_group,
            Needs.APPLICATION,
            "Delete a group",
            query=AppQuery,
            refusals=(app, unknown),
        ),
        Route(
            "GET",
            MEMBERS,
            api.list_members,
            Needs.APPLICATION,
            "Devices of a group",
            query=MembersQuery,
            answer=MemberList,
            refusals=(app, unknown),
        ),
        Route(
            "POST",
            ADD,
            api.add_members,
            Needs.APPLICATION,
            "Add devices to a group",
            query=AppQuery,
            body=MembersBody,
            answer=Added,
            refusals=(app, unknown, *members),
        ),
        Route(
            "POST",
            REMOVE,
            api.remove_members,
            Needs.APPLICATION,
            "Remove devices from a group",
            query=AppQuery,
            body=MembersBody,
            refusals=(app, unknown, Reason.GROUP_TOO_MANY_DEVICES),
        ),
    ]


class _Groups:
    def __init__(self, commands: GroupCommands, queries: GroupQueries) -> None:
        self._commands = commands
        self._queries = queries

    async def create_group(self, call: Call) -> CreatedGroup:
        body: CreateBody = call.body
        own_application(call.caller, call.query.access_app_id, call.query.app_id, body.app_id)
        ids = tuple(dict.fromkeys(body.device_ids or ()))
        new = NewGroup(body.name, body.description, body.max_dev_num or 0, ids)
        g = await self._commands.create(call.caller, new)
        return CreatedGroup(
            g.name, g.description, g.group_id, call.caller.app_id, g.max_devices, g.device_count, list(ids)
        )

    async def list_groups(self, call: Call) -> GroupList:
        query: ListQuery = _own(call)
        page = _page(query, GROUP_PAGE_SIZE, GROUP_PAGE_SIZE_MOST)
        total, groups = await self._queries.groups(call.caller, given(query.name), page)
        return GroupList(total, page.number, page.size, [_object(g, call.caller) for g in groups])

    async def get_group(self, call: Call) -> GroupObject:
        _own(call)
        return _object(await self._queries.group(call.caller, call.path["devGroupId"]), call.caller)

    async def modify_group(self, call: Call) -> GroupObject:
        _own(call)
        body: ModifyBody = call.body
        change = GroupChange(body.name, body.description, body.max_dev_num)
        return _object(await self._commands.modify(call.caller, call.path["devGroupId"], change), call.caller)

    async def delete_group(self, call: Call) -> None:
        _own(call)
        await self._commands.delete(call.caller, call.path["devGroupId"])

    async def list_members(self, call: Call) -> MemberList:
        query: MembersQuery = _own(call)
        page = _page(query, MEMBER_PAGE_SIZE, MEMBER_PAGE_SIZE_MOST)
        total, ids = await self._queries.members(call.caller, query.dev_group_id, page)
        return MemberList(total, page.number, page.size, list(ids))

    async def add_members(self, call: Call) -> Added:
        _own(call)
        body: MembersBody = call.body
        await self._commands.add(call.caller, body.dev_group_id, body.device_ids)
        return Added(body.dev_group_id, body.device_ids)

    async def remove_members(self, call: Call) -> None:
        _own(call)
        body: MembersBody = call.body
        await self._commands.remove(call.caller, body.dev_group_id, body.device_ids)


def _own(call: Call) -> Any:
    """The query, once the applications that it names are the caller."""
    own_application(call.caller, call.query.access_app_id, call.query.app_id)
    return call.query


def _page(query: ListQuery | MembersQuery, default: int, most: int) -> Page:
    return Page(*paging(query.page_no, query.page_size, default=default, most=most))


def _object(group: Group, caller: Actor) -> GroupObject:
    return GroupObject(
        group.name,
        group.description,
        group.group_id,
        caller.app_id,
        group.max_devices,
        group.device_count,
        creator=None,
    )
