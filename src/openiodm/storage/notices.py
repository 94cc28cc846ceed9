"""Writes notices: the core's port. One read says whether anybody wants to know; if nobody does, that is all.

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
from openiodm.devices.model import Device
from openiodm.notifications import bodies
from openiodm.notifications.bodies import DeviceShown, Facts
from openiodm.notifications.model import UPGRADE_TYPES, NotifyType
from openiodm.storage.engine import InsertMany, Row, Tx

# Whoever is told of these campaigns' devices, with what all of their notices say.
_WANTED = """
SELECT c.id AS campaign_id, c.kind, c.operation_id, c.target_version, a.app_id, s.id AS subscription, s.notify_type
FROM campaign c JOIN application a ON a.id = c.application_id
JOIN subscription s ON s.application_id = c.application_id AND s.deleted_at IS NULL
WHERE c.id = ANY($1::bigint[]) AND s.notify_type = ANY($2::text[])
"""
_UPGRADES = """
SELECT u.id, u.campaign_id, u.public_id, u.device_id, d.device_id AS device, u.source_version, d.fw_version,
    d.sw_version, u.state, u.detail, u.error_code, u.started_at, u.finished_at
FROM upgrade u JOIN device d ON d.id = u.device_id
"""
_BY_KEY = f"{_UPGRADES} WHERE u.id = ANY($1::bigint[]) ORDER BY u.id"
_BORN = f"{_UPGRADES} WHERE u.campaign_id = $1 AND u.ordinal > $2 AND u.state = ANY($3::text[]) ORDER BY u.id"

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


@dataclass(frozen=True, slots=True)
class _Campaign:
    """A campaign whose devices somebody wants to be told of; `by_type` names the subscriptions."""

    facts: Row
    by_type: dict[NotifyType, list[int]]

    def state(self) -> Sequence[int]:
        return self.by_type.get(bodies.STATE_TYPE[CampaignKind(self.facts["kind"])], ())

    def result(self) -> Sequence[int]:
        return self.by_type.get(bodies.RESULT_TYPE[CampaignKind(self.facts["kind"])], ())


class NoticeRows:
    """See `campaigns.ports.NoticeRows`."""

    def __init__(self, tx: Tx, rules: NoticeRules) -> None:
        self._tx = tx
        self._rules = rules

    async def moved(self, moved: Sequence[Moved], owed: Collection[UpgradeKey], now: Instant) -> None:
        """See the port."""
        told = [m for m in moved if m.transitions]
        wanted = await self._wanted({m.before.campaign for m in told})
        told = [m for m in told if m.before.campaign in wanted]
        if not told:
            return
        rows = {r["id"]: r for r in await self._tx.fetch(_BY_KEY, [m.before.upgrade for m in told])}
        notices: list[tuple[Any, ...]] = []
        for m in told:
            campaign, row = wanted[m.before.campaign], rows[m.before.upgrade]
            facts = _facts(campaign.facts, row)
            for t in m.transitions:
                words = bodies.words(t.from_state, t.to_state, newer=self._rules.newer_words)
                for body in bodies.state_bodies(facts, words) if campaign.state() else ():
                    notices += [(s, row["device_id"], body, now, now, 0) for s in campaign.state()]
                if bodies.has_result(t.from_state, t.to_state) and self._is_told(m.before.upgrade, owed):
                    notices += self._result(campaign, row, facts, now)
        await self._insert(notices)

    async def born(
        self, campaign: CampaignKey, after: int, states: Sequence[UpgradeState], now: Instant, *, owed: bool
    ) -> None:
        """See the port."""
        told = [s.value for s in states if s is not UpgradeState.FAIL or not owed or self._rules.every_attempt]
        wanted = await self._wanted({campaign}) if told else {}
        if wanted:
            await self._results(wanted, await self._tx.fetch(_BORN, campaign, after, told), now)

    async def ended(self, campaign: CampaignKey, upgrades: Sequence[UpgradeKey], now: Instant, *, owed: bool) -> None:
        """See the port."""
        wanted = await self._wanted({campaign}) if self._is_told(upgrades[0], upgrades if owed else ()) else {}
        if wanted:
            await self._results(wanted, await self._tx.fetch(_BY_KEY, list(upgrades)), now)

    async def settled(self, campaign: CampaignKey, upgrades: Sequence[UpgradeKey], now: Instant) -> None:
        """See the port."""
        if not self._rules.every_attempt:  # else they were told when they failed
            await self.ended(campaign, upgrades, now, owed=False)

    def _is_told(self, upgrade: UpgradeKey, owed: Collection[UpgradeKey]) -> bool:
        return self._rules.every_attempt or upgrade not in owed

    async def _wanted(self, campaigns: Collection[CampaignKey]) -> dict[CampaignKey, _Campaign]:
        if not campaigns:
            return {}
        found: dict[CampaignKey, _Campaign] = {}
        for r in await self._tx.fetch(_WANTED, sorted(campaigns), _UPGRADE_TYPES):
            campaign = found.setdefault(CampaignKey(r["campaign_id"]), _Campaign(r, {}))
            campaign.by_type.setdefault(NotifyType(r["notify_type"]), []).append(r["subscription"])
        return found

    async def _results(self, wanted: Mapping[CampaignKey, _Campaign], rows: Sequence[Row], now: Instant) -> None:
        notices: list[tuple[Any, ...]] = []
        for row in rows:
            campaign = wanted[CampaignKey(row["campaign_id"])]
            notices += self._result(campaign, row, _facts(campaign.facts, row), now)
        await self._insert(notices)

    @staticmethod
    def _result(campaign: _Campaign, row: Row, facts: Facts, now: Instant) -> list[tuple[Any, ...]]:
        subscriptions = campaign.result()
        body = bodies.result_body(facts) if subscriptions else ""
        return [(s, row["device_id"], body, now, now, 0) for s in subscriptions]

    async def _insert(self, notices: Sequence[tuple[Any, ...]]) -> None:
        if notices:
            await self._tx.insert_many(INSERT, notices)
            self._rules.written()


_UPGRADE_TYPES = sorted(UPGRADE_TYPES)


def _facts(campaign: Row, r: Row) -> Facts:
    kind = CampaignKind(campaign["kind"])
    return Facts(
        kind=kind,
        app_id=campaign["app_id"],
        operation_id=campaign["operation_id"],
        sub_operation_id=r["public_id"],
        device_id=r["device"],
        target_version=campaign["target_version"],
        source_version=r["source_version"],
        version=r["fw_version"] if kind is CampaignKind.FIRMWARE else r["sw_version"],
        state=UpgradeState(r["state"]),
        detail=r["detail"],
        error_code=r["error_code"],
        started_at=r["started_at"],
        finished_at=r["finished_at"],
    )
