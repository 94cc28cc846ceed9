"""Rows behind devices that register with the server and are spoken to: LwM2M registrations, keys, unfinished work."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from openiodm.campaigns.model import CampaignKind
from openiodm.campaigns.ports import PackageFacts
from openiodm.campaigns.rollout import Standing
from openiodm.clock import Clock, Instant
from openiodm.devices.model import DeviceKey
from openiodm.protocols.port import EndpointDevice, KeptRegistration, Unfinished
from openiodm.storage.contacts import FILE_COLUMNS, file_of
from openiodm.storage.engine import Database, Row
from openiodm.storage.standings import STANDING_COLUMNS, STANDING_JOINS, standing_of
from openiodm.storage.work import Work

_LIVE = "a.frozen_at IS NULL AND a.deleted_at IS NULL AND d.deleted_at IS NULL"
# CROSS JOIN makes SQLite begin with the few applications: then devices come by (application, node id), not by a scan.
_DEVICES_OF = f"""
SELECT a.app_id, d.id, d.device_id, d.info, coalesce(r.secure, FALSE)
FROM application a CROSS JOIN device d LEFT JOIN lwm2m_registration r ON r.device_id = d.id
WHERE d.application_id = a.id AND d.node_id = $1 AND {_LIVE} ORDER BY a.id
"""
_KEY_OF = f"""
SELECT a.app_id, d.id, d.psk FROM application a CROSS JOIN device d
WHERE d.application_id = a.id AND d.node_id = $1 AND d.psk IS NOT NULL AND {_LIVE} ORDER BY a.id
"""
_KEYS_AFTER = "SELECT id, node_id, psk FROM device WHERE id > $1 AND psk IS NOT NULL AND deleted_at IS NULL"
# An attempt that is not the newest was under way when a backup was made that has been restored since: the device is not
# spoken to about it (`rollout.is_from_backup`).
_UNFINISHED = f"""
SELECT {STANDING_COLUMNS}, {FILE_COLUMNS}, p.extra
FROM upgrade u JOIN device d ON d.id = u.device_id {STANDING_JOINS} JOIN blob f ON f.sha256 = p.sha256
WHERE u.device_id = ANY($1::bigint[]) AND u.finished_at IS NULL
  AND (u.action_id IS NULL OR u.action_id = d.attempt_seq)
"""

_COLUMNS = """
r.device_id, d.device_id AS public_id, r.endpoint, r.location, r.token, r.address, r.secure, r.lifetime_s, r.version,
r.binding, r.links, r.speaks_pcp, r.registered_at, d.last_seen_at, d.attempt_seq > 0 AS attempted,
d.activated_at IS NOT NULL AS activated
"""
_FROM = "FROM lwm2m_registration r JOIN device d ON d.id = r.device_id AND d.deleted_at IS NULL"
_LIVE_ONE = f"""
SELECT {_COLUMNS} {_FROM} JOIN application a ON a.id = d.application_id WHERE r.ended_at IS NULL AND {_LIVE}
"""
_AT = f"{_LIVE_ONE} AND r.location = $1"
_OF_TOKEN = f"{_LIVE_ONE} AND r.token = $1"
_AFTER = f"SELECT {_COLUMNS} {_FROM} WHERE r.device_id > $1 AND r.ended_at IS NULL ORDER BY r.device_id LIMIT $2"
_OF = f"SELECT {_COLUMNS} {_FROM} WHERE r.device_id = $1"
_LOCK_DEVICE = "SELECT id FROM device WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE"
_PUT = """
INSERT INTO lwm2m_registration (device_id, endpoint, location, token, address, secure, lifetime_s, version, binding,
                                links, speaks_pcp, registered_at, ended_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, NULL)
ON CONFLICT (device_id) DO UPDATE SET endpoint = excluded.endpoint, location = excluded.location,
  address = excluded.address, secure = excluded.secure, lifetime_s = excluded.lifetime_s, version = excluded.version,
  binding = excluded.binding, links = excluded.links, speaks_pcp = excluded.speaks_pcp,
  registered_at = excluded.registered_at, ended_at = NULL
"""
_PROTOCOL = "UPDATE device SET protocol_type = 'LWM2M' WHERE id = $1 AND coalesce(protocol_type, '') = ''"
_MOVED = "UPDATE lwm2m_registration SET address = $3 WHERE device_id = $1 AND location = $2"
_END = "UPDATE lwm2m_registration SET ended_at = $3 WHERE device_id = $1 AND location = $2 AND ended_at IS NULL"

_PACKAGE = """
SELECT f.size, p.extra FROM package p JOIN blob f ON f.sha256 = p.sha256 WHERE p.id = $1
"""
_PCP_DEVICE = "SELECT 1 FROM lwm2m_registration WHERE device_id = ANY($1::bigint[]) AND speaks_pcp LIMIT 1"
_PCP_MEMBER = """
SELECT 1 FROM group_member m JOIN lwm2m_registration r ON r.device_id = m.device_id AND r.speaks_pcp
WHERE m.group_id = ANY($1::bigint[]) AND m.product_id = $2 LIMIT 1
"""

_extra = msgspec.json.Decoder(dict[str, Any])
_info = msgspec.json.Decoder(dict[str, Any])


class SqlEndpointDirectory:
    """See `protocols.port.EndpointDirectory`. `default_fragment` is the fragment size of packages that name none."""

    def __init__(self, database: Database, default_fragment: int) -> None:
        self._db = database
        self._default_fragment = default_fragment

    async def devices_of(self, node_id: str) -> Sequence[EndpointDevice]:
        """See the port."""
        rows = await self._db.fetch(_DEVICES_OF, node_id)
        return [EndpointDevice(r[0], DeviceKey(r[1]), r[2], bool(r[4]) or _says_secure(r[3])) for r in rows]

    async def unfinished(self, devices: Sequence[DeviceKey]) -> Mapping[DeviceKey, Unfinished]:
        """See the port."""
        rows = await self._db.fetch(_UNFINISHED, list(devices))
        return {DeviceKey(r["device_id"]): self._unfinished(r) for r in rows}

    def _unfinished(self, r: Row) -> Unfinished:
        standing: Standing = standing_of(r)
        fragment = _extra.decode(r["extra"]).get("deviceShard", self._default_fragment)
        return Unfinished(standing, file_of(r), int(fragment))

    async def keys_after(self, device: DeviceKey, limit: int) -> Sequence[tuple[DeviceKey, str, str]]:
        """See the port."""
        rows = await self._db.fetch(f"{_KEYS_AFTER} ORDER BY id LIMIT $2", device, limit)
        return [(DeviceKey(r[0]), r[1], r[2]) for r in rows]

    async def key_of(self, node_id: str) -> Sequence[tuple[str, DeviceKey, str]]:
        """See the port."""
        return [(r[0], DeviceKey(r[1]), r[2]) for r in await self._db.fetch(_KEY_OF, node_id)]


def _says_secure(info: str) -> bool:
    return _info.decode(info).get("isSecure") is True


class Writing(Protocol):
    """The writer."""

    async def run(self, command: Callable[[Work], Any]) -> Any:
        """Durable when it returns."""
        ...


class SqlRegistrations:
    """See `protocols.port.Registrations`."""

    def __init__(self, database: Database, writer: Writing, clock: Clock) -> None:
        self._db = database
        self._writer = writer
        self._clock = clock

    async def put(self, registration: KeptRegistration) -> KeptRegistration | None:
        """See the port. It also says how the device is connected, where nobody has said so."""
        r = registration
        values = (r.device, r.endpoint, r.location, r.token, r.address, r.secure, r.lifetime_s, r.version, r.binding)

        async def command(work: Work) -> KeptRegistration | None:
            if await work.tx.fetchval(_LOCK_DEVICE, r.device) is None:
                return None
            await work.tx.execute(_PUT, *values, r.links, r.speaks_pcp, r.registered_at)
            await work.tx.execute(_PROTOCOL, r.device)
            row = await work.tx.fetchrow(_OF, r.device)
            return None if row is None else _kept(row)

        kept: KeptRegistration | None = await self._writer.run(command)
        return kept

    async def moved(self, device: DeviceKey, location: str, address: str) -> None:
        """See the port."""

        async def command(work: Work) -> None:
            await work.tx.execute(_MOVED, device, location, address)

        await self._writer.run(command)

    async def end(self, device: DeviceKey, location: str) -> None:
        """See the port."""
        now = self._clock.now()

        async def command(work: Work) -> None:
            await work.tx.execute(_END, device, location, now)

        await self._writer.run(command)

    async def at(self, location: str) -> KeptRegistration | None:
        """See the port."""
        row = await self._db.fetchrow(_AT, location)
        return None if row is None else _kept(row)

    async def of_token(self, token: str) -> KeptRegistration | None:
        """See the port."""
        row = await self._db.fetchrow(_OF_TOKEN, token)
        return None if row is None else _kept(row)

    async def after(self, device: DeviceKey, limit: int) -> Sequence[KeptRegistration]:
        """See the port."""
        return [_kept(r) for r in await self._db.fetch(_AFTER, device, limit)]


def _kept(r: Row) -> KeptRegistration:
    return KeptRegistration(
        device=DeviceKey(r["device_id"]),
        device_id=r["public_id"],
        endpoint=r["endpoint"],
        location=r["location"],
        token=r["token"],
        address=r["address"],
        secure=bool(r["secure"]),
        lifetime_s=r["lifetime_s"],
        version=r["version"],
        binding=r["binding"],
        links=r["links"],
        speaks_pcp=bool(r["speaks_pcp"]),
        registered_at=Instant(r["registered_at"]),
        last_seen_at=None if r["last_seen_at"] is None else Instant(r["last_seen_at"]),
        attempted=bool(r["attempted"]),
        activated=bool(r["activated"]),
    )


class PcpTargets:
    """See `campaigns.ports.DeliveryLimits`: packages that PCP cannot carry are refused where a target speaks it.

    Which devices do is known from their registrations, and from nothing an application has said. `unfit` says why a
    package is unfit, from its version, its size and the size of its fragments.
    """

    def __init__(self, unfit: Callable[[str, int, int], str | None], default_fragment: int) -> None:
        self._unfit = unfit
        self._default_fragment = default_fragment

    async def objection(
        self, work: Work, package: PackageFacts, devices: Sequence[int] | None, groups: Sequence[int] | None
    ) -> str | None:
        """The devices are looked at for a package that is unfit alone, which is rare."""
        if package.file_type != CampaignKind.SOFTWARE.file_type:
            return None
        row = await work.tx.fetchrow(_PACKAGE, package.key)
        assert row is not None
        fragment = int(_extra.decode(row[1]).get("deviceShard", self._default_fragment))
        why = self._unfit(package.version, row[0], fragment)
        if why is None:
            return None
        if devices is not None:
            found = await work.tx.fetchval(_PCP_DEVICE, list(devices))
        else:
            found = await work.tx.fetchval(_PCP_MEMBER, list(groups or ()), package.product)
        return None if found is None else f"a target speaks PCP: {why}"
