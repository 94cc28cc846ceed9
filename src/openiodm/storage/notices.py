"""Writes notices: the core's port. One read says who subscribed to what of a campaign; if nobody did, that is all.

Bodies are rendered from upgrades as they stand within the transaction, and go in by one statement.

Order: a device's notices rise by key in the order of its changes, also with several servers. Whoever changes an upgrade
holds its row's lock until the commit, and takes keys from the sequence only then: of two changes of one upgrade the
second gets higher keys, and the first is visible before. An upgrade of another campaign begins only after the one
before has committed its end (`uq_upgrade_device_id_open`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from openiodm.campaigns.model import CampaignKey, CampaignKind, UpgradeKey
from openiodm.campaigns.ports import Moved
from openiodm.campaigns.rollout import Standing
from openiodm.campaigns.states import UpgradeState
from openiodm.clock import Instant
from openiodm.devices.model import Device, DeviceKey
from openiodm.notifications import bodies
from openiodm.notifications.bodies import DeviceShown, Facts
from openiodm.storage.devices import read_devices
from openiodm.storage.engine import InsertMany, Tx

# Who subscribed to the state changes, or to the results, of a campaign's kind; no row where nobody did.
_AUDIENCES = """
SELECT c.id, a.app_id, c.operation_id, s.id, s.notify_type
FROM campaign c JOIN application a ON a.id = c.application_id
JOIN subscription s ON s.application_id = c.application_id AND s.deleted_at IS NULL AND s.notify_type IN (
    CASE c.kind WHEN 'firmware_upgrade' THEN 'fwUpgradeStateChangeNotify' ELSE 'swUpgradeStateChangeNotify' END,
    CASE c.kind WHEN 'firmware_upgrade' THEN 'fwUpgradeResultNotify' ELSE 'swUpgradeResultNotify' END
) WHERE c.id = ANY($1::bigint[]) ORDER BY c.id, s.id
"""
_FACTS = """
SELECT u.device_id, c.kind, u.public_id, d.device_id, c.target_version, u.source_version,
    CASE WHEN c.kind = 'firmware_upgrade' THEN d.fw_version ELSE d.sw_version END,
    u.state, u.detail, u.error_code, u.started_at, u.finished_at
FROM upgrade u JOIN campaign c ON c.id = u.campaign_id JOIN device d ON d.id = u.device_id
"""
_BY_KEY = f"{_FACTS} WHERE u.id = ANY($1::bigint[]) ORDER BY u.id"
_BORN = f"{_FACTS} WHERE u.campaign_id = $1 AND u.ordinal > $2 AND u.state = ANY($3::text[]) ORDER BY u.id"
# Subscriptions to changes of these devices.
_CHANGED = """
SELECT d.device_id, s.id AS subscription FROM device d
JOIN subscription s ON s.application_id = d.application_id AND s.deleted_at IS NULL
    AND s.notify_type = 'deviceInfoChanged'
WHERE d.id = ANY($1::bigint[])
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


class _Audience:
    """What a campaign's notices have in common, and the subscriptions that they go to."""

    __slots__ = ("app_id", "operation_id", "result", "state")

    def __init__(self, app_id: str, operation_id: str) -> None:
        self.app_id = app_id
        self.operation_id = operation_id
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
        audiences = await self._audiences({m.after.campaign for m in went}) if went else {}
        notices: list[tuple[Any, ...]] = []
        for m in went:
            audience = audiences.get(m.after.campaign)
            if audience is None:
                continue
            facts = _facts_of(m.after, audience)
            for t in m.transitions:
                if audience.state:
                    words = bodies.words(t.from_state, t.to_state, newer=self._rules.newer_words)
                    for body in bodies.state_bodies(facts, words):
                        notices += [(s, m.after.device, body, now, now, 0) for s in audience.state]
                if bodies.has_result(t.from_state, t.to_state) and self._is_told(m.after.upgrade, owed):
                    notices += _results(audience, m.after.device, facts, now)
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
        if ends:
            await self._tell_results(campaign, now, _BORN, campaign, after, ends)

    async def ended(self, campaign: CampaignKey, upgrades: Sequence[UpgradeKey], now: Instant, *, owed: bool) -> None:
        """See the port."""
        if self._rules.every_attempt or not owed:
            await self._tell_results(campaign, now, _BY_KEY, list(upgrades))

    async def settled(self, campaign: CampaignKey, upgrades: Sequence[UpgradeKey], now: Instant) -> None:
        """See the port."""
        if not self._rules.every_attempt:  # else they were told when they failed
            await self.ended(campaign, upgrades, now, owed=False)

    def _is_told(self, upgrade: UpgradeKey, owed: Collection[UpgradeKey]) -> bool:
        return self._rules.every_attempt or upgrade not in owed

    async def _audiences(self, campaigns: Collection[CampaignKey]) -> dict[CampaignKey, _Audience]:
        found: dict[CampaignKey, _Audience] = {}
        for campaign, app_id, operation_id, subscription, notify_type in await self._tx.fetch(
            _AUDIENCES, sorted(campaigns)
        ):
            audience = found.get(campaign)
            if audience is None:
                audience = found[campaign] = _Audience(app_id, operation_id)
            (audience.state if notify_type in _STATE_TYPES else audience.result).append(subscription)
        return found

    async def _tell_results(self, campaign: CampaignKey, now: Instant, sql: str, *args: Any) -> None:
        audience = (await self._audiences([campaign])).get(campaign)
        if audience is None or not audience.result:
            return
        notices: list[tuple[Any, ...]] = []
        for device, *facts in await self._tx.fetch(sql, *args):
            notices += _results(audience, device, _facts_in(facts, audience), now)
        await self._insert(notices)

    async def _insert(self, notices: Sequence[tuple[Any, ...]]) -> None:
        if notices:
            await self._tx.insert_many(INSERT, notices)
            self._rules.written()


_STATE_TYPES = frozenset(t.value for t in bodies.STATE_TYPE.values())


def _is_believed(m: Moved) -> bool:
    """Did the upgrade's success alone say which version the device has now, another one?"""
    s = m.after
    return s.state is UpgradeState.SUCCESS and not s.reports_version and s.version != m.before.version


def _results(audience: _Audience, device: int, facts: Facts, now: Instant) -> list[tuple[Any, ...]]:
    if not audience.result:
        return []
    body = bodies.result_body(facts)
    return [(s, device, body, now, now, 0) for s in audience.result]


def _facts_of(s: Standing, audience: _Audience) -> Facts:
    return Facts(
        app_id=audience.app_id,
        operation_id=audience.operation_id,
        kind=s.kind,
        sub_operation_id=s.sub_operation_id,
        device_id=s.device_id,
        target_version=s.target_version,
        source_version=s.source_version,
        version=s.version,
        state=s.state,
        detail=s.detail,
        error_code=s.error_code,
        started_at=s.started_at,
        finished_at=s.finished_at,
    )


def _facts_in(row: Sequence[Any], audience: _Audience) -> Facts:
    """A row of `_FACTS` behind its first column."""
    kind, sub_operation, device, target, source, version, state, detail, error_code, started_at, finished_at = row
    return Facts(
        app_id=audience.app_id,
        operation_id=audience.operation_id,
        kind=CampaignKind(kind),
        sub_operation_id=sub_operation,
        device_id=device,
        target_version=target,
        source_version=source,
        version=version,
        state=UpgradeState(state),
        detail=detail,
        error_code=error_code,
        started_at=started_at,
        finished_at=finished_at,
    )
