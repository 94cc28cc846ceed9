"""Changes of groups. A device may be in many; a group's count is changed with its members, in one commit."""

from collections.abc import Sequence

from openiodm.access.model import Actor
from openiodm.clock import Clock, Instant, random_id
from openiodm.devices.model import (
    GROUP_CHANGE_DEVICES,
    GROUP_NAME_CHARS,
    LINGER,
    DeviceKey,
    Group,
    GroupChange,
    GroupKey,
    NewGroup,
)
from openiodm.devices.ports import DeviceRows, DeviceWork, DeviceWriter
from openiodm.errors import Reason, Refusal

SWEEP_CHUNK = 1000


class GroupCommands:
    """Groups and who is in them. `max_groups`: most live groups of an application; 0 = no limit."""

    def __init__(self, writer: DeviceWriter, clock: Clock, *, max_groups: int = 0) -> None:
        self._writer = writer
        self._clock = clock
        self._max_groups = max_groups

    async def create(self, actor: Actor, new: NewGroup) -> Group:
        """A new group with its first members.

        Raises:
            Refusal: BAD_INPUT, GROUP_NAME_TAKEN, GROUP_LIMIT, DEVICE_UNKNOWN, GROUP_TOO_MANY_DEVICES (more than 1,000,
                or more than the group is to take).
        """
        _check(new.name, new.max_devices)
        if new.max_devices and len(set(new.device_ids)) > new.max_devices:
            raise Refusal(Reason.GROUP_TOO_MANY_DEVICES, field="device_ids")
        group_id = random_id()

        async def create(work: DeviceWork) -> Group:
            rows, now = work.devices, self._clock.now()
            if self._max_groups and await rows.count_groups(actor.application) >= self._max_groups:
                raise Refusal(Reason.GROUP_LIMIT, "the application has as many groups as it may have")
            members = await _members(rows, actor, new.device_ids)
            key = await rows.insert_group(actor.application, group_id, new, now)
            if key is None:
                raise _name_taken()
            await _add(rows, key, members, new.max_devices, count=0)
            await work.audit.record(actor, "group.create", group_id, now, f"{len(members)} devices")
            return Group(key, group_id, new.name, new.description, new.max_devices, len(members), now)

        return await self._writer.run(create)

    async def modify(self, actor: Actor, group_id: str, change: GroupChange) -> Group:
        """Sets the members that are given; the group after it.

        Raises:
            Refusal: BAD_INPUT, GROUP_UNKNOWN, GROUP_NAME_TAKEN, GROUP_FULL (a limit below what is in it).
        """

        async def modify(work: DeviceWork) -> Group:
            group = await _locked(work.devices, actor, group_id)
            limit = group.max_devices if change.max_devices is None else change.max_devices
            _check(group.name if change.name is None else change.name, limit)
            if change.max_devices and group.device_count > limit:
                raise _full()
            if not await work.devices.update_group(group.key, change):
                raise _name_taken()
            await work.audit.record(actor, "group.modify", group_id, self._clock.now())
            return await _locked(work.devices, actor, group_id)

        return await self._writer.run(modify)

    async def delete(self, actor: Actor, group_id: str) -> None:
        """Soft: tasks keep its name. Its members stay devices, and its name is free again.

        Raises:
            Refusal: GROUP_UNKNOWN.
        """

        async def delete(work: DeviceWork) -> None:
            group, now = await _locked(work.devices, actor, group_id), self._clock.now()
            await work.devices.delete_group(group.key, now)
            await work.audit.record(actor, "group.delete", group_id, now)

        await self._writer.run(delete)

    async def add(self, actor: Actor, group_id: str, device_ids: Sequence[str]) -> None:
        """Puts all the devices in, or none. One that is in it already stays.

        Raises:
            Refusal: GROUP_UNKNOWN, GROUP_TOO_MANY_DEVICES (more than 1,000 in one call), DEVICE_UNKNOWN, GROUP_FULL.
        """

        async def add(work: DeviceWork) -> None:
            rows = work.devices
            group = await _locked(rows, actor, group_id)
            members = await _members(rows, actor, device_ids)
            added = await _add(rows, group.key, members, group.max_devices, group.device_count)
            if added:
                now = self._clock.now()
                await work.audit.record(actor, "group.add-devices", group_id, now, f"{added} devices")

        await self._writer.run(add)

    async def remove(self, actor: Actor, group_id: str, device_ids: Sequence[str]) -> None:
        """Takes the devices out. One that is not in it, or is no device, changes nothing.

        Raises:
            Refusal: GROUP_UNKNOWN, GROUP_TOO_MANY_DEVICES.
        """
        _check_number(device_ids)

        async def remove(work: DeviceWork) -> None:
            rows = work.devices
            group = await _locked(rows, actor, group_id)
            devices = await rows.lock_devices(actor.application, device_ids)
            removed = await rows.remove_members(group.key, devices)
            if removed:
                now = self._clock.now()
                await work.audit.record(actor, "group.remove-devices", group_id, now, f"{removed} devices")

        await self._writer.run(remove)

    async def sweep_deleted(self) -> int:
        """Removes at most `SWEEP_CHUNK` member rows of groups that were deleted `LINGER` ago; how many it were."""

        async def sweep(work: DeviceWork) -> int:
            return await work.devices.remove_members_of_deleted(Instant(self._clock.now() - LINGER), SWEEP_CHUNK)

        return await self._writer.run(sweep)


async def _locked(rows: DeviceRows, actor: Actor, group_id: str) -> Group:
    group = await rows.lock_group(actor.application, group_id)
    if group is None:
        raise Refusal(Reason.GROUP_UNKNOWN, "there is no such group")
    return group


async def _members(rows: DeviceRows, actor: Actor, device_ids: Sequence[str]) -> Sequence[DeviceKey]:
    _check_number(device_ids)
    wanted = list(dict.fromkeys(device_ids))
    found = await rows.lock_devices(actor.application, wanted)
    if len(found) != len(wanted):
        raise Refusal(Reason.DEVICE_UNKNOWN, "one of the devices does not exist", field="device_ids")
    return found


async def _add(rows: DeviceRows, group: GroupKey, members: Sequence[DeviceKey], max_devices: int, count: int) -> int:
    added = await rows.add_members(group, members)
    if max_devices and count + added > max_devices:
        raise _full()
    return added


def _check(name: str, max_devices: int) -> None:
    if not 1 <= len(name) <= GROUP_NAME_CHARS:
        raise Refusal(Reason.BAD_INPUT, f"a name has 1 to {GROUP_NAME_CHARS} characters", field="name")
    if not 0 <= max_devices < 2**31:
        raise Refusal(Reason.BAD_INPUT, "the limit is out of range", field="max_devices")


def _check_number(device_ids: Sequence[str]) -> None:
    if len(device_ids) > GROUP_CHANGE_DEVICES:
        raise Refusal(Reason.GROUP_TOO_MANY_DEVICES, field="device_ids")


def _name_taken() -> Refusal:
    return Refusal(Reason.GROUP_NAME_TAKEN, "another group has this name", field="name")


def _full() -> Refusal:
    return Refusal(Reason.GROUP_FULL, "the group has reached its limit")
