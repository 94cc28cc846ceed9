"""Single upgrades within the writer's transaction, in batches: where devices stand, and what a commit changes of it.

The order of locks is in `campaigns.py`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from openiodm.campaigns.model import CampaignKey, CampaignKind, Clocks, Hold, UpgradeKey
from openiodm.campaigns.ports import (
    Moved,
)
from openiodm.campaigns.rollout import Standing
from openiodm.campaigns.states import Counter, UpgradeState
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey
from openiodm.packages.model import PackageKey
from openiodm.storage.engine import InsertMany, Row, Tx, UpdateMany

MAX_LOG_ENTRIES = 1000  # of one attempt
MAX_LOG_LINES = 50  # of one entry
_STANDING_WIDTH = len(Standing.__struct_fields__)
# The columns of a Standing, in its order. What differs by kind is chosen by CASE, since one batch holds campaigns of
# both kinds.
STANDING_COLUMNS = """
u.id AS upgrade, u.device_id, u.campaign_id, c.package_id, u.state, u.round, u.action_id, u.confirmed, u.halted_in,
u.source_version, u.detail, u.error_code, u.started_at, u.finished_at, u.due_at, c.kind, c.target_version,
p.source_versions, c.confirmation, c.clocks, c.window_start, c.window_end, k.open,
CASE WHEN c.kind = 'firmware_upgrade' THEN d.fw_version ELSE d.sw_version END AS version,
CASE WHEN c.kind = 'firmware_upgrade' THEN d.reports_fw ELSE d.reports_sw END AS reports_version,
d.auto_confirm IS NOT NULL AS auto_confirm, d.attempt_seq, u.public_id AS sub_operation_id,
d.device_id AS device_public_id, c.hold, k.processing >= c.max_concurrent AS is_full
"""
STANDING_JOINS = """
JOIN campaign c ON c.id = u.campaign_id
JOIN campaign_counters k ON k.campaign_id = c.id
JOIN package p ON p.id = c.package_id
"""
_STANDINGS = f"""
SELECT {STANDING_COLUMNS} FROM upgrade u JOIN device d ON d.id = u.device_id {STANDING_JOINS}
WHERE u.device_id = ANY($1::bigint[]) AND u.finished_at IS NULL ORDER BY u.id FOR UPDATE OF u
"""
_LOCK_DEVICES = "SELECT id FROM device WHERE id = ANY($1::bigint[]) ORDER BY id FOR NO KEY UPDATE"
_HISTORY = InsertMany(
    "history",
    {
        "upgrade_id": "bigint",
        "at": "bigint",
        "from_state": "text",
        "to_state": "text",
        "action_id": "int",
        "cause": "text",
    },
)
_UPGRADES = UpdateMany(
    "upgrade",
    {"id": "bigint", "state": "text"},
    {
        "state": "text",
        "action_id": "int",
        "confirmed": "boolean",
        "halted_in": "text",
        "source_version": "text",
        "detail": "text",
        "error_code": "text",
        "started_at": "bigint",
        "finished_at": "bigint",
        "due_at": "bigint",
    },
)
_COUNTERS = tuple(c.value for c in Counter)
COUNTERS = UpdateMany(
    "campaign_counters",
    {"campaign_id": "bigint"},
    {},
    dict.fromkeys(_COUNTERS, "int"),
)
_LOGS = InsertMany(
    "device_log",
    {"upgrade_id": "bigint", "action_id": "int", "n": "int", "at": "bigint", "kind": "text", "lines": "text"},
)
_ATTEMPTS = UpdateMany("device", {"id": "bigint"}, {"attempt_seq": "int"})
_WANTED = UpdateMany("device", {"id": "bigint"}, {"attributes_wanted": "boolean"})
_INSTALLED = UpdateMany("device", {"id": "bigint"}, {"installed_action_id": "int"})
_BELIEVED = {
    CampaignKind.FIRMWARE: UpdateMany("device", {"id": "bigint"}, {"fw_version": "text"}),
    CampaignKind.SOFTWARE: UpdateMany("device", {"id": "bigint"}, {"sw_version": "text"}),
}


@lru_cache(maxsize=4096)
def clocks_of(text: str) -> Clocks:
    """Campaigns share few sets of clocks."""
    return msgspec.json.decode(text, type=Clocks)


@lru_cache(maxsize=4096)
def strings_of(text: str) -> tuple[str, ...]:
    """A JSON list of strings."""
    return msgspec.json.decode(text, type=tuple[str, ...])


def standing_of(r: Row, first: int = 0) -> Standing:
    """A row with `STANDING_COLUMNS` from its `first` column on.

    By position and not by name: SQLite looks a name up by comparing it with one column after the other.
    """
    (
        upgrade,
        device,
        campaign,
        package,
        state,
        round_,
        action_id,
        confirmed,
        halted_in,
        source_version,
        detail,
        error_code,
        started_at,
        finished_at,
        due_at,
        kind,
        target_version,
        source_versions,
        confirmation,
        clocks,
        window_start,
        window_end,
        is_open,
        version,
        reports_version,
        auto_confirm,
        attempt_seq,
        sub_operation_id,
        device_id,
        hold,
        full,
    ) = r[first : first + _STANDING_WIDTH]
    return Standing(
        upgrade=UpgradeKey(upgrade),
        device=DeviceKey(device),
        campaign=CampaignKey(campaign),
        package=PackageKey(package),
        state=UpgradeState(state),
        round=round_,
        action_id=action_id,
        confirmed=None if confirmed is None else bool(confirmed),
        halted_in=None if halted_in is None else UpgradeState(halted_in),
        source_version=source_version,
        detail=detail,
        error_code=error_code,
        started_at=started_at,
        finished_at=finished_at,
        due_at=due_at,
        kind=CampaignKind(kind),
        target_version=target_version,
        source_versions=strings_of(source_versions),
        confirmation=bool(confirmation),
        clocks=clocks_of(clocks),
        window_start=window_start,
        window_end=window_end,
        open=bool(is_open),
        version=version,
        reports_version=bool(reports_version),
        auto_confirm=bool(auto_confirm),
        attempt_seq=attempt_seq,
        sub_operation_id=sub_operation_id,
        device_id=device_id,
        hold=None if hold is None else Hold(hold),
        full=bool(full),
    )


class StandingRows:
    """The part of `campaigns.ports.CampaignRows` that the report desk works with."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx

    async def standings(self, devices: Sequence[DeviceKey]) -> Mapping[DeviceKey, Standing]:
        """See the port."""
        await self._tx.lock(_LOCK_DEVICES, list(devices))
        rows = await self._tx.fetch(_STANDINGS, list(devices))
        return {s.device: s for s in map(standing_of, rows)}

    async def ended_as(self, device: DeviceKey, action_id: int) -> tuple[UpgradeState, Instant] | None:
        """See the port."""
        r = await self._tx.fetchrow(
            "SELECT h.to_state, h.at FROM upgrade u JOIN history h ON h.upgrade_id = u.id "
            "WHERE u.device_id = $1 AND h.action_id = $2 AND h.to_state IN ('success', 'fail', 'timeout', 'stop') "
            "ORDER BY h.id DESC LIMIT 1",
            device,
            action_id,
        )
        return None if r is None else (UpgradeState(r[0]), Instant(r[1]))

    async def newest_attempt(self, device: DeviceKey) -> int:
        """See the port."""
        return int(await self._tx.fetchval("SELECT attempt_seq FROM device WHERE id = $1", device) or 0)

    async def save(self, moved: Sequence[Moved], deltas: Mapping[CampaignKey, Mapping[str, int]], now: Instant) -> None:
        """See the port."""
        changed = [m for m in moved if m.after != m.before]
        touched = await self._tx.update_many(_UPGRADES, [_upgrade_values(m) for m in changed])
        if touched != len(changed):  # rows are locked since they were read: this is a bug, not a race
            raise RuntimeError(f"compare-and-set touched {touched} of {len(changed)} upgrades")
        await self._tx.insert_many(
            _HISTORY,
            [
                (m.after.upgrade, now, t.from_state.value, t.to_state.value, t.action_id, t.cause)
                for m in moved
                for t in m.transitions
            ],
        )
        await self._save_logs([m for m in moved if m.logs], now)
        await self._save_devices(changed)
        sums = sorted(deltas.items())
        await self._tx.update_many(
            COUNTERS, [(c, *[changes.get(name, 0) for name in _COUNTERS]) for c, changes in sums]
        )

    async def _save_logs(self, moved: Sequence[Moved], now: Instant) -> None:
        if not moved:
            return
        rows = await self._tx.fetch(
            "SELECT u.id, (SELECT max(l.n) FROM device_log l WHERE l.upgrade_id = u.id AND l.action_id = u.action_id) "
            "FROM upgrade u WHERE u.id = ANY($1::bigint[])",
            [m.after.upgrade for m in moved],
        )
        last = {r[0]: r[1] or 0 for r in rows}
        entries = []
        for m in moved:
            for n, entry in enumerate(m.logs, last[m.after.upgrade] + 1):
                if n <= MAX_LOG_ENTRIES:
                    lines = msgspec.json.encode(entry.lines[:MAX_LOG_LINES]).decode()
                    entries.append((m.after.upgrade, m.after.action_id, n, now, entry.kind, lines))
        await self._tx.insert_many(_LOGS, entries)

    async def _save_devices(self, changed: Sequence[Moved]) -> None:
        """Attempt numbers at a grant; at the end of an attempt, what the device is asked for next."""
        await self._tx.update_many(
            _ATTEMPTS,
            [(m.after.device, m.after.attempt_seq) for m in changed if m.after.attempt_seq != m.before.attempt_seq],
        )
        await self._tx.update_many(_WANTED, [(m.after.device, True) for m in changed if _asks_attributes(m)])
        succeeded = [m.after for m in changed if m.after.state is UpgradeState.SUCCESS]
        await self._tx.update_many(_INSTALLED, [(s.device, s.action_id) for s in succeeded if s.action_id is not None])
        for kind, statement in _BELIEVED.items():
            believed = [(s.device, s.version) for s in succeeded if s.kind is kind and not s.reports_version]
            await self._tx.update_many(statement, believed)


def _asks_attributes(m: Moved) -> bool:
    """After an installation, once: a device that had to show its version was asked when it said that it was done."""
    entered = {t.to_state for t in m.transitions}
    if UpgradeState.VERIFYING in entered:
        return True
    verified = UpgradeState.VERIFYING in (m.before.state, m.before.halted_in)
    return UpgradeState.SUCCESS in entered and m.after.action_id is not None and not verified


def _upgrade_values(m: Moved) -> tuple[Any, ...]:
    s = m.after
    return (
        s.upgrade,
        m.before.state.value,
        s.state.value,
        s.action_id,
        s.confirmed,
        None if s.halted_in is None else s.halted_in.value,
        s.source_version,
        s.detail,
        s.error_code,
        s.started_at,
        s.finished_at,
        s.due_at,
    )
