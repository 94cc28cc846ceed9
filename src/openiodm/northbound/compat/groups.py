"""The eight calls about groups (section 5.5).

Their errors come with HTTP 200 as the contract shows them, unless the edge is told otherwise.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from openiodm.access.model import Actor
from openiodm.devices.groups import GroupCommands
from openiodm.devices.model import Group, GroupChange, NewGroup, Page
from openiodm.devices.queries import GroupQueries
from openiodm.errors import Reason
from openiodm.http.routes import Call, Needs, Route
from openiodm.northbound.compat.fields import PageNo, Text, given, integer, paging

GROUPS = "/iocm/app/devgroup/v1.3.0/devGroups"
MEMBERS = "/iocm/app/dm/v1.2.0/devices/ids"
ADD = "/iocm/app/dm/v1.1.0/devices/addDevGroupTagToDevices"
REMOVE = "/iocm/app/dm/v1.1.0/devices/deleteDevGroupTagFromDevices"

ACTS_FOR = ("accessAppId", "appId")  # the published pages name it by either (section 5.5)

GROUP_PAGE_SIZE, GROUP_PAGE_SIZE_MOST = 1, 500
MEMBER_PAGE_SIZE, MEMBER_PAGE_SIZE_MOST = 10, 1000

# Letters and digits of any script. `$` alone would let a line's end pass.
GroupName = Annotated[str, Meta(min_length=1, max_length=50, pattern=r"^[^\W_]+$(?!\n)")]
GroupId = Annotated[str, Meta(min_length=1, max_length=50)]
Description = Annotated[str, Meta(max_length=1024)]
GroupPageSize = Annotated[str, Meta(extra_json_schema=integer(1, GROUP_PAGE_SIZE_MOST, GROUP_PAGE_SIZE))]
MemberPageSize = Annotated[str, Meta(extra_json_schema=integer(1, MEMBER_PAGE_SIZE_MOST, MEMBER_PAGE_SIZE))]
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
    """Whose groups: the caller's, or those of an application that has authorized it."""

    access_app_id: Text = ""
    app_id: Text = ""


class ListQuery(msgspec.Struct, rename="camel"):
    """A name matches exactly."""

    access_app_id: Text = ""
    app_id: Text = ""
    name: Text = ""
    page_no: PageNo = ""
    page_size: GroupPageSize = ""


class MembersQuery(msgspec.Struct, rename="camel"):
    """Which group."""

    dev_group_id: GroupId
    access_app_id: Text = ""
    app_id: Text = ""
    page_no: PageNo = ""
    page_size: MemberPageSize = ""


def routes(commands: GroupCommands, queries: GroupQueries) -> list[Route]:
    """The eight calls."""
    api = _Groups(commands, queries)
    unknown = Reason.GROUP_UNKNOWN
    members = (Reason.GROUP_TOO_MANY_DEVICES, Reason.DEVICE_UNKNOWN, Reason.GROUP_FULL)
    one = GROUPS + "/{devGroupId}"
    return [
        Route(
            "POST",
            GROUPS,
            api.create_group,
            Needs.APPLICATION,
            "Create a group",
            acts_for=ACTS_FOR,
            query=AppQuery,
            body=CreateBody,
            answer=CreatedGroup,
            status=201,
            refusals=(Reason.GROUP_NAME_TAKEN, Reason.GROUP_LIMIT, *members),
        ),
        Route(
            "GET",
            GROUPS,
            api.list_groups,
            Needs.APPLICATION,
            "Group list",
            acts_for=ACTS_FOR,
            query=ListQuery,
            answer=GroupList,
        ),
        Route(
            "GET",
            one,
            api.get_group,
            Needs.APPLICATION,
            "One group",
            acts_for=ACTS_FOR,
            query=AppQuery,
            answer=GroupObject,
            refusals=(unknown,),
        ),
        Route(
            "PUT",
            one,
            api.modify_group,
            Needs.APPLICATION,
            "Modify a group",
            acts_for=ACTS_FOR,
            query=AppQuery,
            body=ModifyBody,
            answer=GroupObject,
            refusals=(unknown, Reason.GROUP_NAME_TAKEN, Reason.GROUP_FULL),
        ),
        Route(
            "DELETE",
            one,
            api.delete_group,
            Needs.APPLICATION,
            "Delete a group",
            acts_for=ACTS_FOR,
            query=AppQuery,
            refusals=(unknown,),
        ),
        Route(
            "GET",
            MEMBERS,
            api.list_members,
            Needs.APPLICATION,
            "Devices of a group",
            acts_for=ACTS_FOR,
            query=MembersQuery,
            answer=MemberList,
            refusals=(unknown,),
        ),
        Route(
            "POST",
            ADD,
            api.add_members,
            Needs.APPLICATION,
            "Add devices to a group",
            acts_for=ACTS_FOR,
            query=AppQuery,
            body=MembersBody,
            answer=Added,
            refusals=(unknown, *members),
        ),
        Route(
            "POST",
            REMOVE,
            api.remove_members,
            Needs.APPLICATION,
            "Remove devices from a group",
            acts_for=ACTS_FOR,
            query=AppQuery,
            body=MembersBody,
            refusals=(unknown, Reason.GROUP_TOO_MANY_DEVICES),
        ),
    ]


class _Groups:
    def __init__(self, commands: GroupCommands, queries: GroupQueries) -> None:
        self._commands = commands
        self._queries = queries

    async def create_group(self, call: Call) -> CreatedGroup:
        body: CreateBody = call.body
        ids = tuple(dict.fromkeys(body.device_ids or ()))
        new = NewGroup(body.name, body.description, body.max_dev_num or 0, ids)
        g = await self._commands.create(call.actor, new)
        return CreatedGroup(
            g.name, g.description, g.group_id, call.actor.app_id, g.max_devices, g.device_count, list(ids)
        )

    async def list_groups(self, call: Call) -> GroupList:
        query: ListQuery = call.query
        page = _page(query, GROUP_PAGE_SIZE, GROUP_PAGE_SIZE_MOST)
        total, groups = await self._queries.groups(call.actor, given(query.name), page)
        return GroupList(total, page.number, page.size, [_object(g, call.actor) for g in groups])

    async def get_group(self, call: Call) -> GroupObject:
        return _object(await self._queries.group(call.actor, call.path["devGroupId"]), call.actor)

    async def modify_group(self, call: Call) -> GroupObject:
        body: ModifyBody = call.body
        change = GroupChange(body.name, body.description, body.max_dev_num)
        return _object(await self._commands.modify(call.actor, call.path["devGroupId"], change), call.actor)

    async def delete_group(self, call: Call) -> None:
        await self._commands.delete(call.actor, call.path["devGroupId"])

    async def list_members(self, call: Call) -> MemberList:
        query: MembersQuery = call.query
        page = _page(query, MEMBER_PAGE_SIZE, MEMBER_PAGE_SIZE_MOST)
        total, ids = await self._queries.members(call.actor, query.dev_group_id, page)
        return MemberList(total, page.number, page.size, list(ids))

    async def add_members(self, call: Call) -> Added:
        body: MembersBody = call.body
        await self._commands.add(call.actor, body.dev_group_id, body.device_ids)
        return Added(body.dev_group_id, body.device_ids)

    async def remove_members(self, call: Call) -> None:
        body: MembersBody = call.body
        await self._commands.remove(call.actor, body.dev_group_id, body.device_ids)


def _page(query: ListQuery | MembersQuery, default: int, most: int) -> Page:
    return Page(*paging(query.page_no, query.page_size, default=default, most=most))


def _object(group: Group, actor: Actor) -> GroupObject:
    return GroupObject(
        group.name,
        group.description,
        group.group_id,
        actor.app_id,
        group.max_devices,
        group.device_count,
        creator=None,
    )
