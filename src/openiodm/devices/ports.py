"""What the devices room needs of storage, and of the room that upgrades them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from openiodm.access.model import ApplicationKey, Product
from openiodm.access.ports import Audited
from openiodm.clock import Instant
from openiodm.devices.model import (
    Device,
    DeviceFilter,
    DeviceKey,
    Group,
    GroupChange,
    GroupKey,
    NewGroup,
    Page,
    PreparedDevice,
    Silences,
)

T = TypeVar("T")


class DeviceReads(Protocol):
    """Reads by key. Deleted devices and groups, and those of other applications, are not there."""

    async def device(self, application: ApplicationKey, device_id: str) -> Device | None:
        """By our id."""
        ...

    async def device_by_node(self, application: ApplicationKey, node_id: str) -> Device | None:
        """By its own name."""
        ...

    async def group(self, application: ApplicationKey, group_id: str) -> Group | None:
        """By public id."""
        ...


class DeviceLists(DeviceReads, Protocol):
    """Reads of lists, each one consistent view: the total is exact for the page beside it."""

    async def devices(
        self, wanted: DeviceFilter, silences: Silences, now: Instant, page: Page, *, newest_first: bool
    ) -> tuple[int, Sequence[Device]]:
        """How many match, and those of the page, in the order of registration."""
        ...

    async def groups(self, application: ApplicationKey, name: str | None, page: Page) -> tuple[int, Sequence[Group]]:
        """How many match, and those of the page, newest first."""
        ...

    async def members(self, group: GroupKey, page: Page) -> tuple[int, Sequence[str]]:
        """How many devices the group has, and the ids of those of the page, newest device first."""
        ...

    async def unactivated(self, now: Instant, limit: int) -> Sequence[tuple[ApplicationKey, str]]:
        """Devices (application, device id) that made no contact within their time-out."""
        ...


class GroupRows(Protocol):
    """Groups within one transaction."""

    async def count_groups(self, application: ApplicationKey) -> int:
        """Its live groups. The number does not rise before this transaction ends."""
        ...

    async def lock_group(self, application: ApplicationKey, group_id: str) -> Group | None:
        """The group, locked: its count changes with its members, and by one at a time."""
        ...

    async def insert_group(
        self, application: ApplicationKey, group_id: str, new: NewGroup, now: Instant
    ) -> GroupKey | None:
        """An empty group; None when the name is taken."""
        ...

    async def update_group(self, group: GroupKey, change: GroupChange) -> bool:
        """False when the name is taken."""
        ...

    async def delete_group(self, group: GroupKey, now: Instant) -> None:
        """Soft; the rows of its members stay for a while."""
        ...

    async def remove_members_of_deleted(self, deleted_before: Instant, limit: int) -> int:
        """Member rows of groups deleted before that; how many it were."""
        ...

    async def lock_devices(self, application: ApplicationKey, device_ids: Sequence[str]) -> Sequence[DeviceKey]:
        """Those that exist, held: none is deleted or changes its product before this transaction ends."""
        ...

    async def add_members(self, group: GroupKey, devices: Sequence[DeviceKey]) -> int:
        """Puts them in and counts them; how many were not in it before."""
        ...

    async def remove_members(self, group: GroupKey, devices: Sequence[DeviceKey]) -> int:
        """Takes them out and counts; how many were in it."""
        ...


class DeviceRows(DeviceReads, GroupRows, Protocol):
    """Devices and groups within one transaction."""

    async def count_devices(self, application: ApplicationKey, most: int) -> int:
        """Its live devices, `most` or more of them as `most`. The number does not rise before this transaction ends."""
        ...

    async def insert_device(
        self, application: ApplicationKey, device: PreparedDevice, now: Instant
    ) -> DeviceKey | None:
        """None when the node id (of a live device) or the verify code is taken."""
        ...

    async def insert_devices(
        self, application: ApplicationKey, devices: Sequence[PreparedDevice], now: Instant
    ) -> None:
        """Inserts those whose node ids and verify codes are free; `device_ids_present` tells which."""
        ...

    async def device_ids_present(self, device_ids: Sequence[str]) -> frozenset[str]:
        """Which of our ids are rows."""
        ...

    async def node_ids_taken(self, application: ApplicationKey, node_ids: Sequence[str]) -> frozenset[str]:
        """Which of them a live device has."""
        ...

    async def insert_contact(
        self,
        application: ApplicationKey,
        device: PreparedDevice,
        protocol_type: str,
        address: str,
        now: Instant,
    ) -> None:
        """A device that registers itself by its first contact; nothing when its node id is a live device."""
        ...

    async def lock_device(self, application: ApplicationKey, device_id: str) -> Device | None:
        """The device, locked."""
        ...

    async def update_device(
        self,
        device: DeviceKey,
        *,
        name: str | None,
        protocol_type: str | None,
        info: Mapping[str, Any],
        now: Instant,
    ) -> None:
        """Sets these members."""
        ...

    async def set_product(self, device: DeviceKey, product: Product) -> None:
        """Sets it, in the device and in its memberships."""
        ...

    async def set_credentials(
        self, device: Device, node_id: str, verify_code: str, timeout_s: int, now: Instant
    ) -> bool:
        """Sets them, and the time-out anew; False when the node id or the verify code is another's."""
        ...

    async def set_target_token(self, device: DeviceKey, token_hash: str | None, now: Instant) -> None:
        """Sets it, or takes it away."""
        ...

    async def delete_device(self, application: ApplicationKey, device_id: str, now: Instant) -> DeviceKey | None:
        """Soft; leaves its groups, which are counted. None when there is no such device."""
        ...

    async def is_unactivated(self, application: ApplicationKey, device_id: str, now: Instant) -> bool:
        """Is it one that made no contact within its time-out?"""
        ...

    async def touch(self, seen: Sequence[tuple[DeviceKey, Instant, str]]) -> None:
        """Times and addresses of last contact."""
        ...

    async def activate(self, devices: Sequence[DeviceKey]) -> None:
        """The last contact was the first one, where there was none before."""
        ...


class DeviceNotices(Protocol):
    """Where changes of devices are told to those who subscribed, within the transaction that makes them.

    Called with rows as they are after the change. Costs one read where nobody subscribed.
    """

    async def added(self, application: ApplicationKey, device_ids: Sequence[str], now: Instant) -> None:
        """These were registered."""
        ...

    async def changed(self, application: ApplicationKey, device_id: str, now: Instant) -> None:
        """What is told of it changed."""
        ...

    async def deleted(self, application: ApplicationKey, device: DeviceKey, device_id: str, now: Instant) -> None:
        """It was deleted."""
        ...


class DeviceWork(Audited, Protocol):
    """A transaction, as far as this room sees it."""

    @property
    def devices(self) -> DeviceRows:
        """This room's rows."""
        ...

    @property
    def device_notices(self) -> DeviceNotices:
        """Where changes are told."""
        ...


class DeviceWriter(Protocol):
    """Runs commands, each in a transaction of its own as far as it can tell."""

    async def run(self, command: Callable[[DeviceWork], Awaitable[T]]) -> T:
        """The command's result, once it is durable."""
        ...


class UnfinishedWork(Protocol):
    """What the room that upgrades devices must do when one is deleted, or is other hardware from now on.

    In the same transaction; `work` is the writer's, with that room's rows.
    """

    async def device_deleted(self, work: Any, device: DeviceKey, now: Instant) -> None:
        """Ends the device's open upgrade."""
        ...

    async def node_id_changed(self, work: Any, device: DeviceKey) -> None:
        """Ends the attempt that was under way under the old node id. The rows have the new one."""
        ...
