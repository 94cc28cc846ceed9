"""The reads behind devices' requests: one indexed statement a poll."""

import msgspec

from openiodm.access.model import ApplicationKey, Product
from openiodm.campaigns.model import UpgradeKey
from openiodm.campaigns.rollout import Standing
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey
from openiodm.protocols.port import Contacted, Credential, File, Installed, KnownDevice
from openiodm.storage.engine import Database, Row
from openiodm.storage.standings import STANDING_COLUMNS, STANDING_JOINS, standing_of

FILE_COLUMNS = (
    "p.file_id, p.file_type, p.name, p.version AS file_version, f.sha256, f.sha1, f.md5, f.size, f.created_at"
)
_DEVICE = """
a.id AS application, a.app_id, d.id AS known, d.device_id AS public_id, d.activated_at, d.attributes_wanted,
d.auto_confirm AS auto, d.installed_action_id
"""
_STANDING_AT = 11  # the columns of `_DEVICE` and the three of the gateway's product come before
_UNFINISHED = f"""
LEFT JOIN upgrade u ON u.device_id = d.id AND u.finished_at IS NULL
{STANDING_JOINS.replace("JOIN", "LEFT JOIN")}
LEFT JOIN blob f ON f.sha256 = p.sha256
"""
_BY_GATEWAY = f"""
SELECT {_DEVICE}, t.device_type AS gateway_type, t.model AS gateway_model,
  t.manufacturer_name AS gateway_maker, {STANDING_COLUMNS}, {FILE_COLUMNS}
FROM gateway_token g
JOIN product t ON t.id = g.product_id
JOIN application a ON a.id = g.application_id AND a.gateway_tokens AND a.frozen_at IS NULL AND a.deleted_at IS NULL
LEFT JOIN device d ON d.application_id = a.id AND d.node_id = $2 AND d.deleted_at IS NULL
{_UNFINISHED}
WHERE g.token_hash = $1 AND g.deleted_at IS NULL
"""
# CROSS JOIN makes SQLite begin with the few applications: then devices come by (application, node id), not by a scan.
_BY_TARGET = f"""
SELECT {_DEVICE}, NULL AS gateway_type, NULL AS gateway_model, NULL AS gateway_maker, {STANDING_COLUMNS}, {FILE_COLUMNS}
FROM application a
CROSS JOIN device d
{_UNFINISHED}
WHERE d.application_id = a.id AND d.token_hash = $1 AND d.node_id = $2 AND d.deleted_at IS NULL
  AND a.target_tokens AND a.frozen_at IS NULL AND a.deleted_at IS NULL
"""
_INSTALLED = f"""
SELECT u.id AS upgrade, {FILE_COLUMNS} FROM upgrade u
JOIN campaign c ON c.id = u.campaign_id JOIN package p ON p.id = c.package_id JOIN blob f ON f.sha256 = p.sha256
WHERE u.device_id = $1 AND u.action_id = $2 AND u.state = 'success'
"""
_CURRENT = f"""
SELECT {STANDING_COLUMNS} FROM upgrade u JOIN device d ON d.id = u.device_id {STANDING_JOINS}
JOIN application a ON a.id = d.application_id AND a.frozen_at IS NULL
WHERE u.id = $1 AND u.finished_at IS NULL
"""
_LOG = "SELECT lines FROM device_log WHERE upgrade_id = $1 AND action_id = $2 ORDER BY n DESC LIMIT $3"


class SqlDeviceDirectory:
    """See `protocols.port.DeviceDirectory`."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def contact(self, credential: Credential, token_hash: str, node_id: str) -> Contacted | None:
        """See the port."""
        sql = _BY_GATEWAY if credential is Credential.GATEWAY else _BY_TARGET
        r = await self._db.fetchrow(sql, token_hash, node_id)
        return None if r is None else _contacted(r)

    async def installed(self, device: DeviceKey, action_id: int) -> Installed | None:
        """See the port."""
        r = await self._db.fetchrow(_INSTALLED, device, action_id)
        return None if r is None else Installed(UpgradeKey(r["upgrade"]), file_of(r))

    async def kept_log(self, upgrade: UpgradeKey, action_id: int, entries: int) -> list[str]:
        """See the port."""
        rows = await self._db.fetch(_LOG, upgrade, action_id, entries)
        lines = [line for r in rows for line in reversed(msgspec.json.decode(r[0], type=list[str]))]
        return lines[:entries]

    async def current(self, upgrade: UpgradeKey) -> Standing | None:
        """See the port."""
        r = await self._db.fetchrow(_CURRENT, upgrade)
        return None if r is None else standing_of(r)


def _contacted(r: Row) -> Contacted:
    device = None
    if r["known"] is not None:
        device = KnownDevice(
            key=DeviceKey(r["known"]),
            device_id=r["public_id"],
            activated=r["activated_at"] is not None,
            attributes_wanted=bool(r["attributes_wanted"]),
            auto_confirm=r["auto"],
            installed_action_id=r["installed_action_id"],
        )
    waiting = r["upgrade"] is not None
    return Contacted(
        application=ApplicationKey(r["application"]),
        app_id=r["app_id"],
        gateway_product=None if r["gateway_type"] is None else _product(r),
        device=device,
        standing=standing_of(r, _STANDING_AT) if waiting else None,
        file=file_of(r) if waiting else None,
    )


def _product(r: Row) -> Product:
    return Product(r["gateway_type"], r["gateway_model"], r["gateway_maker"])


def file_of(r: Row) -> File:
    """A row with `FILE_COLUMNS`."""
    return File(
        file_id=r["file_id"],
        file_type=r["file_type"],
        name=r["name"],
        version=r["file_version"],
        sha256=r["sha256"],
        sha1=r["sha1"],
        md5=r["md5"],
        size=r["size"],
        stored_at=Instant(r["created_at"]),
    )
