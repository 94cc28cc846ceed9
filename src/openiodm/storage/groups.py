"""Rows of groups and their members. `device_group.device_count` is changed with the members, in one transaction.

Locks are taken in one order, the application before groups before devices, so that several servers do not deadlock.
"""

from collections.abc import Sequence

from openiodm.access.model import ApplicationKey
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey, Group, GroupChange, GroupKey, NewGroup
from openiodm.storage.engine import Row, Tx, UniqueViolation

GROUP_COLUMNS = "id, group_id, name, description, max_devices, device_count, created_at"

_LOCK = f"""
SELECT {GROUP_COLUMNS} FROM device_group
WHERE group_id = $1 AND application_id = $2 AND deleted_at IS NULL FOR UPDATE
"""
_INSERT = """
INSERT INTO device_group (group_id, application_id, name, description, max_devices, device_count, created_at)
VALUES ($1, $2, $3, $4, $5, 0, $6) ON CONFLICT DO NOTHING RETURNING id
"""
_UPDATE = """
UPDATE device_group SET name = COALESCE($2, name), description = COALESCE($3, description),
    max_devices = COALESCE($4, max_devices)
WHERE id = $1
"""
# A key-share lock of the foreign key would not do: it lets a deletion (of the soft kind) pass.
_LOCK_DEVICES = """
SELECT id FROM device WHERE application_id = $1 AND device_id = ANY($2::text[]) AND deleted_at IS NULL
ORDER BY id FOR SHARE
"""
_ADD_MEMBERS = """
INSERT INTO group_member (group_id, device_id, product_id)
SELECT CAST($1 AS bigint), id, product_id FROM device WHERE id = ANY($2::bigint[]) ORDER BY id
ON CONFLICT (group_id, device_id) DO NOTHING
"""
_REMOVE_MEMBERS = "DELETE FROM group_member WHERE group_id = $1 AND device_id = ANY($2::bigint[])"
_LOCK_APPLICATION = "SELECT id FROM application WHERE id = $1 FOR NO KEY UPDATE"
_COUNT_GROUPS = "SELECT count(*) FROM device_group WHERE application_id = $1 AND deleted_at IS NULL"
_COUNT = "UPDATE device_group SET device_count = device_count + $2 WHERE id = $1"
_LOCK_GROUPS_OF_DEVICE = """
SELECT g.id FROM device_group g JOIN group_member m ON m.group_id = g.id
JOIN device d ON d.id = m.device_id
WHERE d.device_id = $1 AND d.application_id = $2 AND d.deleted_at IS NULL ORDER BY g.id FOR UPDATE OF g
"""
_LEAVE_ALL = "DELETE FROM group_member WHERE device_id = $1 RETURNING group_id"
_COUNT_ONE_LESS = "UPDATE device_group SET device_count = device_count - 1 WHERE id = ANY($1::bigint[])"
_SWEEP = """
DELETE FROM group_member WHERE id IN (
    SELECT m.id FROM device_group g JOIN group_member m ON m.group_id = g.id WHERE g.deleted_at <= $1 LIMIT $2
)
"""


def group_of(row: Row) -> Group:
    """From `GROUP_COLUMNS`."""
    return Group(GroupKey(row[0]), row[1], row[2], row[3], row[4], row[5], Instant(row[6]))


class GroupRows:
    """See `devices.ports.GroupRows`."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    async def lock_application(self, application: ApplicationKey) -> None:
        """Whoever counts an application's things against a limit does so alone. Before any other lock."""
        await self._tx.lock(_LOCK_APPLICATION, application)

    async def count_groups(self, application: ApplicationKey) -> int:
        """The application's row is locked."""
        await self.lock_application(application)
        return int(await self._tx.fetchval(_COUNT_GROUPS, application))

    async def lock_group(self, application: ApplicationKey, group_id: str) -> Group | None:
        """Locked until the transaction ends."""
        row = await self._tx.fetchrow(_LOCK, group_id, application)
        return None if row is None else group_of(row)

    async def insert_group(
        self, application: ApplicationKey, group_id: str, new: NewGroup, now: Instant
    ) -> GroupKey | None:
        """Empty."""
        key: GroupKey | None = await self._tx.fetchval(
            _INSERT, group_id, application, new.name, new.description, new.max_devices, now
        )
        return key

    async def update_group(self, group: GroupKey, change: GroupChange) -> bool:
        """Inside a savepoint: after a refused statement PostgreSQL would refuse all others."""
        try:
            async with self._tx.savepoint():
                await self._tx.execute(_UPDATE, group, change.name, change.description, change.max_devices)
        except UniqueViolation:
            return False
        return True

    async def delete_group(self, group: GroupKey, now: Instant) -> None:
        """Its members' rows stay for `remove_members_of_deleted`: a task may still be expanding over them."""
        await self._tx.execute("UPDATE device_group SET deleted_at = $2 WHERE id = $1", group, now)

    async def remove_members_of_deleted(self, deleted_before: Instant, limit: int) -> int:
        """At most `limit` rows."""
        return await self._tx.execute(_SWEEP, deleted_before, limit)

    async def lock_devices(self, application: ApplicationKey, device_ids: Sequence[str]) -> Sequence[DeviceKey]:
        """In the order of their keys."""
        return [DeviceKey(r[0]) for r in await self._tx.fetch(_LOCK_DEVICES, application, list(device_ids))]

    async def add_members(self, group: GroupKey, devices: Sequence[DeviceKey]) -> int:
        """Set-based."""
        added = await self._tx.execute(_ADD_MEMBERS, group, list(devices)) if devices else 0
        if added:
            await self._tx.execute(_COUNT, group, added)
        return added

    async def remove_members(self, group: GroupKey, devices: Sequence[DeviceKey]) -> int:
        """Set-based."""
        removed = await self._tx.execute(_REMOVE_MEMBERS, group, list(devices)) if devices else 0
        if removed:
            await self._tx.execute(_COUNT, group, -removed)
        return removed

    async def lock_groups_of_device(self, application: ApplicationKey, device_id: str) -> None:
        """To be called before the device itself is locked."""
        await self._tx.fetch(_LOCK_GROUPS_OF_DEVICE, device_id, application)

    async def leave_all_groups(self, device: DeviceKey) -> None:
        """Takes the device out of its groups and counts."""
        groups = [row[0] for row in await self._tx.fetch(_LEAVE_ALL, device)]
        if groups:
            await self._tx.execute(_COUNT_ONE_LESS, groups)
