"""Writes notices: the core's port. One read gives what is to be told to whom; if nobody wants to know, that is all.

Bodies are rendered from rows as they stand within the transaction, and go in by one statement.

Order: a device's notices rise by key in the order of its changes, also with several servers. Whoever changes an upgrade
holds its row's lock until the commit, and takes keys from the sequence only then: of two changes of one upgrade the
second gets higher keys, and the first is visible before. An upgrade of another campaign begins only after the one
before has committed its end (`uq_upgrade_device_id_open`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openiodm.campaigns.model import CampaignKey, CampaignKind, UpgradeKey
from openiodm.campaigns.ports import Moved
from openiodm.campaigns.states import UpgradeState
from openiodm.clock import Instant
from openiodm.devices.model import Device, DeviceKey
from openiodm.notifications import bodies
from openiodm.notifications.bodies import DeviceShown, Facts
from openiodm.storage.devices import read_devices
from openiodm.storage.engine import InsertMany, Row, Tx

# One row for each upgrade and each subscription to the state changes, or to the results, of its kind; none where nobody
# subscribed. From single upgrades and not from their campaigns: batches are small under a load that comes evenly.
_TOLD = """
SELECT u.id, u.public_id, u.device_id, d.device_id AS device, u.source_version, d.fw_version, d.sw_version, u.state,
    u.detail, u.error_code, u.started_at, u.finished_at, c.kind, c.operation_id, c.target_version, a.app_id,
    s.id AS subscription, s.notify_type
FROM upgrade u JOIN campaign c ON c.id = u.campaign_id
JOIN subscription s ON s.application_id = c.application_id AND s.deleted_at IS NULL AND s.notify_type IN (
    CASE c.kind WHEN 'firmware_upgrade' THEN 'fwUpgradeStateChangeNotify' ELSE 'swUpgradeStateChangeNotify' END,
    CASE c.kind WHEN 'firmware_upgrade' THEN 'fwUpgradeResultNotify' ELSE 'swUpgradeResultNotify' END
)
JOIN application a ON a.id = c.application_id JOIN device d ON d.id = u.device_id
"""
_BY_KEY = f"{_TOLD} WHERE u.id = ANY($1::bigint[]) ORDER BY u.id, s.id"
_BORN = f"{_TOLD} WHERE u.campaign_id = $1 AND u.ordinal > $2 AND u.state = ANY($3::text[]) ORDER BY u.id, s.id"
# Subscriptions to changes of these devices.
_CHANGED = """
SELECT d.device_id, s.id AS subscription FROM device d
JOIN subscription s ON s.application_id = d.application_id AND s.deleted_at IS NULL
    AND s.notify_type = 'deviceInfoChanged'
WHERE d.id = ANY($1::bigint[])
"""
_WANTED = """
SELECT 1 FROM campaign c JOIN subscription s ON s.application_id = c.application_id AND s.deleted_at IS NULL
WHERE c.id = $1 LIMIT 1
"""

INSERT = InsertMany(
    "notice",
    {
        "subscription_id": "bigint",
        "device_id": "bigint",
        "body": "text",
        "created_at": "bigint",
        "pending_since": "bigint",
        "attempts": "int",
    },
)


@dataclass(frozen=True, slots=True)
class NoticeRules:
    """How this server tells.

    `show` renders a device as the published contract does. `written` is called when a transaction has written notices;
    it may still fail.
    """

    show: Callable[[Device, Instant], DeviceShown]
    newer_words: bool = True
    every_attempt: bool = False
    written: Callable[[], None] = lambda: None


class _Told:
    """An upgrade that somebody wants to be told of: its facts, and the subscriptions."""

    __slots__ = ("device", "facts", "result", "state")

    def __init__(self, row: Row) -> None:
        self.device: int = row["device_id"]
        self.facts = _facts(row)
        self.state: list[int] = []
        self.result: list[int] = []


class NoticeRows:
    """See `campaigns.ports.NoticeRows`."""

    def __init__(self, tx: Tx, rules: NoticeRules) -> None:
        self._tx = tx
        self._rules = rules

    async def moved(self, moved: Sequence[Moved], owed: Collection[UpgradeKey], now: Instant) -> None:
        """See the port."""
        went = [m for m in moved if m.transitions]
        told = await self._told(_BY_KEY, [m.before.upgrade for m in went]) if went else {}
        notices: list[tuple[Any, ...]] = []
        for m in went if told else ():
            upgrade = told.get(m.before.upgrade)
            if upgrade is None:
                continue
            for t in m.transitions:
                if upgrade.state:
                    words = bodies.words(t.from_state, t.to_state, newer=self._rules.newer_words)
                    for body in bodies.state_bodies(upgrade.facts, words):
                        notices += [(s, upgrade.device, body, now, now, 0) for s in upgrade.state]
                if bodies.has_result(t.from_state, t.to_state) and self._is_told(m.before.upgrade, owed):
                    notices += _results(upgrade, now)
        notices += await self._changed([m.after.device for m in went if _is_believed(m)], now)
        await self._insert(notices)

    async def _changed(self, devices: Sequence[DeviceKey], now: Instant) -> list[tuple[Any, ...]]:
        """What is told of devices whose version this server entered itself: they tell none."""
        rows = await self._tx.fetch(_CHANGED, list(devices)) if devices else []
        wanted: dict[str, list[int]] = {}
        for row in rows:
            wanted.setdefault(row["device_id"], []).append(row["subscription"])
        found = await read_devices(self._tx, list(wanted)) if wanted else []
        shown = [(device, bodies.device_info_changed(self._rules.show(device, now))) for device in found]
        return [(s, d.key, body, now, now, 0) for d, body in shown for s in wanted[d.device_id]]

    async def born(
        self, campaign: CampaignKey, after: int, states: Sequence[UpgradeState], now: Instant, *, owed: bool
    ) -> None:
        """See the port."""
        ends = [s.value for s in states if s is not UpgradeState.FAIL or not owed or self._rules.every_attempt]
        if ends and await self._tx.fetchval(_WANTED, campaign) is not None:
            await self._tell_results(await self._told(_BORN, campaign, after, ends), now)

    async def ended(self, campaign: CampaignKey, upgrades: Sequence[UpgradeKey], now: Instant, *, owed: bool) -> None:
        """See the port."""
        if (self._rules.every_attempt or not owed) and await self._tx.fetchval(_WANTED, campaign) is not None:
            await self._tell_results(await self._told(_BY_KEY, list(upgrades)), now)

    async def settled(self, campaign: CampaignKey, upgrades: Sequence[UpgradeKey], now: Instant) -> None:
        """See the port."""
        if not self._rules.every_attempt:  # else they were told when they failed
            await self.ended(campaign, upgrades, now, owed=False)

    def _is_told(self, upgrade: UpgradeKey, owed: Collection[UpgradeKey]) -> bool:
        return self._rules.every_attempt or upgrade not in owed

    async def _told(self, sql: str, *args: Any) -> dict[UpgradeKey, _Told]:
        found: dict[UpgradeKey, _Told] = {}
        for row in await self._tx.fetch(sql, *args):
            key = UpgradeKey(row["id"])
            told = found.get(key)
            if told is None:
                told = found[key] = _Told(row)
            (told.state if row["notify_type"] in _STATE_TYPES else told.result).append(row["subscription"])
        return found

    async def _tell_results(self, told: Mapping[UpgradeKey, _Told], now: Instant) -> None:
        await self._insert([notice for upgrade in told.values() for notice in _results(upgrade, now)])

    async def _insert(self, notices: Sequence[tuple[Any, ...]]) -> None:
        if notices:
            await self._tx.insert_many(INSERT, notices)
            self._rules.written()


_STATE_TYPES = frozenset(t.value for t in bodies.STATE_TYPE.values())


def _is_believed(m: Moved) -> bool:
    """Did the upgrade's success alone say which version the device has now, another one?"""
    s = m.after
    return s.state is UpgradeState.SUCCESS and not s.reports_version and s.version != m.before.version


def _results(told: _Told, now: Instant) -> list[tuple[Any, ...]]:
    if not told.result:
        return []
    body = bodies.result_body(told.facts)
    return [(s, told.device, body, now, now, 0) for s in told.result]


def _facts(r: Row) -> Facts:
    kind = CampaignKind(r["kind"])
    return Facts(
        kind=kind,
        app_id=r["app_id"],
        operation_id=r["operation_id"],
        sub_operation_id=r["public_id"],
        device_id=r["device"],
        target_version=r["target_version"],
        source_version=r["source_version"],
        version=r["fw_version"] if kind is CampaignKind.FIRMWARE else r["sw_version"],
        state=UpgradeState(r["state"]),
        detail=r["detail"],
        error_code=r["error_code"],
        started_at=r["started_at"],
        finished_at=r["finished_at"],
    )
