"""What an application may see of its devices and groups."""

from collections.abc import Sequence
from dataclasses import dataclass

from openiodm.access.model import Actor
from openiodm.clock import Clock
from openiodm.devices.model import Device, DeviceFilter, DeviceStatus, Group, Page, Silences
from openiodm.devices.ports import DeviceLists
from openiodm.errors import Reason, Refusal


@dataclass(frozen=True, slots=True)
class SeenDevice:
    """A device and its status at this moment."""

    device: Device
    status: DeviceStatus


class DeviceQueries:
    """Devices: one, many."""

    def __init__(self, lists: DeviceLists, clock: Clock, silences: Silences) -> None:
        self._lists = lists
        self._clock = clock
        self._silences = silences

    async def device(self, actor: Actor, device_id: str) -> SeenDevice:
        """One device by our id.

        Raises:
            Refusal: DEVICE_UNKNOWN.
        """
        return self._seen(await self._lists.device(actor.application, device_id))

    async def device_by_node(self, actor: Actor, node_id: str) -> SeenDevice:
        """One device by its own name.

        Raises:
            Refusal: DEVICE_UNKNOWN.
        """
        return self._seen(await self._lists.device_by_node(actor.application, node_id))

    async def devices(
        self, wanted: DeviceFilter, page: Page, *, newest_first: bool = True
    ) -> tuple[int, Sequence[SeenDevice]]:
        """The exact number that matches, and those of the page, in the order of registration."""
        now = self._clock.now()
        total, found = await self._lists.devices(wanted, self._silences, now, page, newest_first=newest_first)
        return total, [SeenDevice(d, self._silences.status(d.last_seen_at, now)) for d in found]

    def _seen(self, device: Device | None) -> SeenDevice:
        if device is None:
            raise Refusal(Reason.DEVICE_UNKNOWN, "there is no such device")
        return SeenDevice(device, self._silences.status(device.last_seen_at, self._clock.now()))


class GroupQueries:
    """Groups: one, many, and who is in them."""

    def __init__(self, lists: DeviceLists) -> None:
        self._lists = lists

    async def group(self, actor: Actor, group_id: str) -> Group:
        """One group.

        Raises:
            Refusal: GROUP_UNKNOWN.
        """
        group = await self._lists.group(actor.application, group_id)
        if group is None:
            raise Refusal(Reason.GROUP_UNKNOWN, "there is no such group")
        return group

    async def groups(self, actor: Actor, name: str | None, page: Page) -> tuple[int, Sequence[Group]]:
        """The exact number, and those of the page, newest first. `name` matches exactly."""
        return await self._lists.groups(actor.application, name, page)

    async def members(self, actor: Actor, group_id: str, page: Page) -> tuple[int, Sequence[str]]:
        """The exact number of members, and the device ids of the page, newest device first.

        Raises:
            Refusal: GROUP_UNKNOWN.
        """
        group = await self.group(actor, group_id)
        return await self._lists.members(group.key, page)
