"""Rows behind `devices/told.py`."""

from collections.abc import Mapping

import msgspec

from openiodm.access.model import ApplicationKey, Product
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey
from openiodm.devices.told import Kept
from openiodm.storage.devices import DeviceRows
from openiodm.storage.engine import Tx

# Before the device is read, not with it: see `storage.devices`.
_LOCK = "SELECT id FROM device WHERE id = $1 FOR NO KEY UPDATE"
_KEPT = """
SELECT d.application_id, d.device_id, d.attributes,
    t.device_type, t.model, t.manufacturer_name, d.self_registered, d.fw_version, d.sw_version
FROM device d JOIN product t ON t.id = d.product_id WHERE d.id = $1 AND d.deleted_at IS NULL
"""
_VERSIONS = """
UPDATE device SET fw_version = coalesce($2, fw_version), sw_version = coalesce($3, sw_version),
  reports_fw = reports_fw OR $4, reports_sw = reports_sw OR $5, modified_at = $6 WHERE id = $1
"""
_OPEN_KIND = """
SELECT c.kind = 'software_upgrade' FROM upgrade u JOIN campaign c ON c.id = u.campaign_id
WHERE u.device_id = $1 AND u.finished_at IS NULL
"""
_PACKAGE_KIND = """
SELECT p.file_type = 'softwarePackage' FROM package p JOIN device d ON d.application_id = p.application_id
WHERE d.id = $1 AND p.name = $2 AND p.version = $3 ORDER BY p.id DESC LIMIT 1
"""


class ToldRows:
    """See `devices.told.ToldRows`."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    async def lock(self, device: DeviceKey) -> Kept | None:
        """See the port."""
        await self._tx.lock(_LOCK, device)
        r = await self._tx.fetchrow(_KEPT, device)
        if r is None:
            return None
        attributes = msgspec.json.decode(r["attributes"], type=dict[str, str])
        product = Product(r["device_type"], r["model"], r["manufacturer_name"])
        return Kept(
            ApplicationKey(r["application_id"]),
            r["device_id"],
            attributes,
            product,
            bool(r["self_registered"]),
            r["fw_version"],
            r["sw_version"],
        )

    async def keep_attributes(self, device: DeviceKey, attributes: Mapping[str, str], now: Instant) -> None:
        """See the port."""
        text = msgspec.json.encode(attributes).decode()
        await self._tx.execute(
            "UPDATE device SET attributes = $2, attributes_wanted = FALSE, modified_at = $3 WHERE id = $1",
            device,
            text,
            now,
        )

    async def keep_versions(self, device: DeviceKey, fw: str | None, sw: str | None, now: Instant) -> None:
        """See the port."""
        await self._tx.execute(_VERSIONS, device, fw, sw, fw is not None, sw is not None, now)

    async def keep_product(self, device: DeviceKey, product: Product) -> None:
        """See the port."""
        await DeviceRows(self._tx).set_product(device, product)

    async def is_software(self, device: DeviceKey, name: str, version: str) -> bool:
        """See the port. An upgrade under way decides; else a package of that name and version; else firmware."""
        kind = await self._tx.fetchval(_OPEN_KIND, device)
        if kind is None:
            kind = await self._tx.fetchval(_PACKAGE_KIND, device, name, version)
        return bool(kind)

    async def keep_auto_confirm(self, device: DeviceKey, state: str | None) -> bool:
        """See the port."""
        was = "NOT NULL" if state is None else "NULL"
        sql = f"UPDATE device SET auto_confirm = $2 WHERE id = $1 AND auto_confirm IS {was}"
        return bool(await self._tx.execute(sql, device, state))
