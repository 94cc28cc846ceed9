"""Native routes of groups: the contract's, with node ids beside device ids, and devices shown by both."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from openiodm.access.model import Actor
from openiodm.devices.groups import GroupCommands
from openiodm.devices.model import GROUP_CHANGE_DEVICES, GROUP_NAME_CHARS, Group, NewGroup, Page
from openiodm.devices.queries import DeviceQueries, GroupQueries
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Call, Needs, Route, json_response
from openiodm.northbound.native.devices import PageNo, PageSize, Text, in_camel_case
from openiodm.northbound.native.edge import PREFIX
from openiodm.northbound.native.times import moment

PATH = PREFIX + "/groups"

# Not blank. A task names groups, so that names are for people to type.
GroupName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=GROUP_NAME_CHARS,
        pattern=r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f][^\u0000-\u001f\u007f-\u009f]*$(?!\n)",
    ),
]
Id = Annotated[str, Meta(min_length=1, max_length=256)]
Ids = Annotated[list[Id], Meta(max_length=GROUP_CHANGE_DEVICES)]


class NewGroupBody(msgspec.Struct, rename="camel"):
    """A group with its first members, by `deviceIds` or by `nodeIds`. `maxDevices` 0 = no limit."""

    name: GroupName
    description: Annotated[str, Meta(max_length=1024)] | None = None
    max_devices: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    device_ids: Ids | None = None
    node_ids: Ids | None = None


class MembersBody(msgspec.Struct, rename="camel"):
    """Which devices: `deviceIds` or `nodeIds`, at most 1,000."""

    device_ids: Ids | None = None
    node_ids: Ids | None = None


class ListQuery(msgspec.Struct, rename="camel"):
    """A name matches exactly; an empty one is not given."""

    name: Text = ""
    page_no: PageNo = 0
    page_size: PageSize = 50


class MembersQuery(msgspec.Struct, rename="camel"):
    """Which page."""

    page_no: PageNo = 0
    page_size: PageSize = 50


class GroupView(msgspec.Struct, rename="camel"):
    """A group."""

    group_id: str
    name: str
    description: str | None
    max_devices: int
    device_count: int
    created_at: datetime


class GroupList(msgspec.Struct, rename="camel"):
    """One page, newest first; `total` counts all matches."""

    items: list[GroupView]
    total: int
    page_no: int
    page_size: int


class MemberView(msgspec.Struct, rename="camel"):
    """A device of a group."""

    device_id: str
    node_id: str


class MemberList(msgspec.Struct, rename="camel"):
    """One page, newest device first; `total` counts all members."""

    items: list[MemberView]
    total: int
    page_no: int
    page_size: int


def routes(commands: GroupCommands, queries: GroupQueries, devices: DeviceQueries) -> list[Route]:
    """The seven operations on groups."""
    api = _Groups(commands, queries, devices)
    one, members = PATH + "/{group}", PATH + "/{group}/devices"
    unknown = (Reason.GROUP_UNKNOWN,)
    adding = (Reason.DEVICE_UNKNOWN, Reason.GROUP_FULL, Reason.GROUP_TOO_MANY_DEVICES)

    def paged(field: str | None) -> Reason:
        return Reason.BAD_PAGING if field in {"pageNo", "pageSize"} else Reason.BAD_FILTER

    return [
        Route(
            "POST",
            PATH,
            api.create_group,
            Needs.APPLICATION,
            "Create a group",
            body=NewGroupBody,
            answer=GroupView,
            status=201,
            refusals=(Reason.GROUP_NAME_TAKEN, *adding),
        ),
        Route(
            "GET",
            PATH,
            api.list_groups,
            Needs.APPLICATION,
            "List groups, newest first",
            query=ListQuery,
            answer=GroupList,
            bad_input=paged,
            refusals=(Reason.BAD_FILTER, Reason.BAD_PAGING),
        ),
        Route("GET", one, api.get_group, Needs.APPLICATION, "Show a group", answer=GroupView, refusals=unknown),
        Route(
            "DELETE",
            one,
            api.delete_group,
            Needs.APPLICATION,
            "Delete a group",
            status=204,
            description="Its devices stay, and so do tasks that were made for it.",
            refusals=unknown,
        ),
        Route(
            "GET",
            members,
            api.list_members,
            Needs.APPLICATION,
            "List a group's devices, newest first",
            query=MembersQuery,
            answer=MemberList,
            bad_input=paged,
            refusals=(*unknown, Reason.BAD_PAGING),
        ),
        Route(
            "POST",
            members,
            api.add_members,
            Needs.APPLICATION,
            "Put devices into a group",
            body=MembersBody,
            answer=GroupView,
            description="All of them, or none. One that is in it already stays.",
            refusals=(*unknown, *adding),
        ),
        Route(
            "DELETE",
            members,
            api.remove_members,
            Needs.APPLICATION,
            "Take devices out of a group",
            body=MembersBody,
            answer=GroupView,
            description="One that is not in it, or does not exist, changes nothing.",
            refusals=(*unknown, Reason.GROUP_TOO_MANY_DEVICES),
        ),
    ]


class _Groups:
    def __init__(self, commands: GroupCommands, queries: GroupQueries, devices: DeviceQueries) -> None:
        self._commands = commands
        self._queries = queries
        self._devices = devices

    async def create_group(self, call: Call) -> Any:
        body: NewGroupBody = call.body
        ids = await self._device_ids(call.actor, body.device_ids, body.node_ids)
        try:
            new = NewGroup(body.name, body.description, body.max_devices, tuple(dict.fromkeys(ids)))
            group = await self._commands.create(call.actor, new)
        except Refusal as refusal:
            raise in_camel_case(refusal) from refusal
        response = json_response(_view(group), 201)
        response.headers["Location"] = f"{PATH}/{group.group_id}"
        return response

    async def list_groups(self, call: Call) -> GroupList:
        query: ListQuery = call.query
        page = Page(query.page_no, query.page_size)
        total, groups = await self._queries.groups(call.actor, query.name or None, page)
        return GroupList([_view(g) for g in groups], total, page.number, page.size)

    async def get_group(self, call: Call) -> GroupView:
        return _view(await self._queries.group(call.actor, call.path["group"]))

    async def delete_group(self, call: Call) -> None:
        await self._commands.delete(call.actor, call.path["group"])

    async def list_members(self, call: Call) -> MemberList:
        query: MembersQuery = call.query
        page = Page(query.page_no, query.page_size)
        total, ids = await self._queries.members(call.actor, call.path["group"], page)
        members = [await self._member(call.actor, device_id) for device_id in ids]
        return MemberList([m for m in members if m is not None], total, page.number, page.size)

    async def add_members(self, call: Call) -> GroupView:
        body: MembersBody = call.body
        ids = await self._device_ids(call.actor, body.device_ids, body.node_ids)
        return await self._change(call, self._commands.add, ids)

    async def remove_members(self, call: Call) -> GroupView:
        body: MembersBody = call.body
        ids = await self._device_ids(call.actor, body.device_ids, body.node_ids, unknown_too=True)
        return await self._change(call, self._commands.remove, ids)

    async def _change(self, call: Call, change: Any, ids: list[str]) -> GroupView:
        try:
            await change(call.actor, call.path["group"], ids)
        except Refusal as refusal:
            raise in_camel_case(refusal) from refusal
        return _view(await self._queries.group(call.actor, call.path["group"]))

    async def _member(self, actor: Actor, device_id: str) -> MemberView | None:
        """None for one that was deleted since the page was read."""
        try:
            device = (await self._devices.device(actor, device_id)).device
        except Refusal as refusal:
            if refusal.reason is not Reason.DEVICE_UNKNOWN:
                raise
            return None
        return MemberView(device.device_id, device.node_id)

    async def _device_ids(
        self,
        actor: Actor,
        device_ids: list[str] | None,
        node_ids: list[str] | None,
        *,
        unknown_too: bool = False,
    ) -> list[str]:
        """What was given, as device ids; with `unknown_too` node ids of no device are left out.

        Raises:
            Refusal: BAD_INPUT for both lists, DEVICE_UNKNOWN.
        """
        if device_ids and node_ids:
            raise Refusal(Reason.BAD_INPUT, "give deviceIds or nodeIds, not both", field="nodeIds")
        found = list(device_ids or ())
        for node_id in node_ids or ():
            try:
                found.append((await self._devices.device_by_node(actor, node_id)).device.device_id)
            except Refusal as refusal:
                if refusal.reason is not Reason.DEVICE_UNKNOWN:
                    raise
                if not unknown_too:
                    raise Refusal(refusal.reason, f"there is no device {node_id}", field="nodeIds") from refusal
        return found


def _view(group: Group) -> GroupView:
    return GroupView(
        group.group_id,
        group.name,
        group.description,
        group.max_devices,
        group.device_count,
        moment(group.created_at),
    )
