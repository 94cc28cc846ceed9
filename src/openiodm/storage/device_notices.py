"""Writes notices about devices: the devices room's port. One read says whether anybody wants to know."""

from collections.abc import Callable, Sequence

from openiodm.access.model import ApplicationKey
from openiodm.clock import Instant
from openiodm.devices.model import Device, DeviceKey
from openiodm.notifications import bodies
from openiodm.notifications.bodies import DeviceShown
from openiodm.notifications.model import NotifyType
from openiodm.storage.devices import read_devices
from openiodm.storage.engine import Tx
from openiodm.storage.notices import INSERT, NoticeRules

_WANTED = """
SELECT s.id FROM subscription s WHERE s.application_id = $1 AND s.notify_type = $2 AND s.deleted_at IS NULL
"""


class DeviceNoticeRows:
    """See `devices.ports.DeviceNotices`."""

    def __init__(self, tx: Tx, rules: NoticeRules) -> None:
        self._tx = tx
        self._rules = rules

    async def added(self, application: ApplicationKey, device_ids: Sequence[str], now: Instant) -> None:
        """See the port."""
        await self._tell(application, NotifyType.DEVICE_ADDED, device_ids, bodies.device_added, now)

    async def changed(self, application: ApplicationKey, device_id: str, now: Instant) -> None:
        """See the port."""
        await self._tell(application, NotifyType.DEVICE_INFO_CHANGED, [device_id], bodies.device_info_changed, now)

    async def deleted(self, application: ApplicationKey, device: DeviceKey, device_id: str, now: Instant) -> None:
        """See the port."""
        body = bodies.device_deleted(device_id)
        await self._insert([(s, device, body) for s in await self._wanted(application, NotifyType.DEVICE_DELETED)], now)

    async def _tell(
        self,
        application: ApplicationKey,
        notify_type: NotifyType,
        device_ids: Sequence[str],
        body: Callable[[DeviceShown], str],
        now: Instant,
    ) -> None:
        subscriptions = await self._wanted(application, notify_type) if device_ids else []
        if not subscriptions:
            return
        devices: Sequence[Device] = await read_devices(self._tx, device_ids)
        shown = [(d.key, body(self._rules.show(d, now))) for d in devices]
        await self._insert([(s, key, text) for key, text in shown for s in subscriptions], now)

    async def _wanted(self, application: ApplicationKey, notify_type: NotifyType) -> list[int]:
        return [r[0] for r in await self._tx.fetch(_WANTED, application, notify_type.value)]

    async def _insert(self, notices: Sequence[tuple[int, int, str]], now: Instant) -> None:
        if notices:
            await self._tx.insert_many(INSERT, [(s, device, body, now, now, 0) for s, device, body in notices])
            self._rules.written()
