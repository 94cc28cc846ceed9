"""The design's laws as checks over the rows of a database, whoever wrote them."""

import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from openiodm.campaigns.states import COUNTER_OF, UPGRADE_TRANSITIONS, Counter, UpgradeState
from openiodm.notifications import bodies
from openiodm.simulator.record import DeviceRecord
from openiodm.storage.engine import Reader


async def broken_laws(db: Reader) -> list[str]:
    """What is wrong with the rows, in sentences; empty when every law holds."""
    return [
        *await _counters(db),
        *await _one_open_upgrade(db),
        *await _histories(db),
        *await _granted_once(db),
        *await _under_way(db),
    ]


async def _counters(db: Reader) -> list[str]:
    """Law 2: counters are the rows, and total is their sum."""
    counted: dict[int, dict[str, int]] = defaultdict(lambda: dict.fromkeys((c.value for c in Counter), 0))
    for r in await db.fetch("SELECT campaign_id, state, count(*) AS n FROM upgrade GROUP BY campaign_id, state"):
        counted[r["campaign_id"]][COUNTER_OF[UpgradeState(r["state"])].value] += r["n"]
    wrong = []
    for r in await db.fetch("SELECT * FROM campaign_counters"):
        rows = counted[r["campaign_id"]]
        kept = {name: r[name] for name in rows}
        if kept != rows or r["total"] != sum(rows.values()):
            wrong.append(f"law 2: campaign {r['campaign_id']}: counters {kept} total {r['total']}, rows {rows}")
    return wrong


async def _under_way(db: Reader) -> list[str]:
    """No task has more devices under way than it may have at once."""
    rows = await db.fetch(
        "SELECT c.id, k.processing, c.max_concurrent FROM campaign c JOIN campaign_counters k ON k.campaign_id = c.id "
        "WHERE k.processing > c.max_concurrent"
    )
    return [f"campaign {r[0]}: {r[1]} devices are under way, {r[2]} may be" for r in rows]


async def _one_open_upgrade(db: Reader) -> list[str]:
    """Law 1."""
    rows = await db.fetch(
        "SELECT device_id, count(*) FROM upgrade WHERE finished_at IS NULL GROUP BY device_id HAVING count(*) > 1"
    )
    return [f"law 1: device {r[0]} has {r[1]} unfinished upgrades" for r in rows]


async def _histories(db: Reader) -> list[str]:
    """Laws 3 and 6: every change legal, no gap between changes, and the last one is where the row stands."""
    legal = {(s.value, to.value) for s, moves in UPGRADE_TRANSITIONS.items() for to in moves.values()}
    histories: defaultdict[int, list[Any]] = defaultdict(list)
    for r in await db.fetch("SELECT upgrade_id, from_state, to_state FROM history ORDER BY id"):
        histories[r["upgrade_id"]].append(r)
    states = {r[0]: r[1] for r in await db.fetch("SELECT id, state FROM upgrade")}
    wrong = []
    for upgrade, changes in histories.items():
        if changes[-1]["to_state"] != states[upgrade]:
            wrong.append(f"law 6: upgrade {upgrade} is {states[upgrade]}, its history ends {changes[-1]['to_state']}")
        for before, after in itertools.pairwise(changes):
            if before["to_state"] != after["from_state"]:
                wrong.append(f"law 6: upgrade {upgrade}: a change is missing after {before['to_state']}")
        wrong += [
            f"law 3: upgrade {upgrade}: {c['from_state']} -> {c['to_state']}"
            for c in changes
            if (c["from_state"], c["to_state"]) not in legal
        ]
    moved = [u for u, s in states.items() if u not in histories and s not in ("wait", "success", "fail")]
    return [*wrong, *(f"law 6: upgrade {u} is {states[u]} without a history" for u in moved)]


async def _granted_once(db: Reader) -> list[str]:
    """An attempt is granted once, whatever was killed in between."""
    rows = await db.fetch(
        "SELECT u.device_id, h.action_id, count(*) FROM history h JOIN upgrade u ON u.id = h.upgrade_id "
        "WHERE h.to_state = 'offered' GROUP BY u.device_id, h.action_id HAVING count(*) > 1"
    )
    return [f"device {r[0]}: attempt {r[1]} was granted {r[2]} times" for r in rows]


async def untold(db: Reader) -> list[str]:
    """Law 6: with a subscriber from the first, nothing being delivered, every change has its notices, once, in order.

    A failure that policy may still retry is not told; one that was retried may have been, if an operator asked.
    """
    notices: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    said: defaultdict[int, list[str]] = defaultdict(list)  # by device, over all its upgrades
    for r in await db.fetch("SELECT device_id, body FROM notice ORDER BY id"):
        body = json.loads(r["body"])
        word = body.get("swUpgradeState") or body.get("stepDesc")
        notices[body["subOperationId"]].append(("state", word) if word else ("result", _result_of(body)))
        if word:
            said[r["device_id"]].append(word)
    histories: defaultdict[int, list[Any]] = defaultdict(list)
    happened: defaultdict[int, list[str]] = defaultdict(list)
    for r in await db.fetch(
        "SELECT h.upgrade_id, h.from_state, h.to_state, u.device_id FROM history h "
        "JOIN upgrade u ON u.id = h.upgrade_id ORDER BY h.id"
    ):
        change = (UpgradeState(r["from_state"]), UpgradeState(r["to_state"]))
        histories[r["upgrade_id"]].append(change)
        happened[r["device_id"]] += bodies.words(*change, newer=True)
    wrong = [f"law 6: device {d} was told as {said[d]}, went {happened[d]}" for d in happened if said[d] != happened[d]]
    for r in await db.fetch("SELECT id, public_id, state, result_owed FROM upgrade"):
        changes = histories[r["id"]]
        born = changes[0][0] if changes else UpgradeState(r["state"])
        expected = _expected([(UpgradeState.WAIT, born), *changes], owed=bool(r["result_owed"]))
        if not _matches(notices.pop(r["public_id"], []), expected):
            wrong.append(f"law 6: upgrade {r['id']} went {changes}, owed {r['result_owed']}: expected {expected}")
    return [*wrong, *(f"law 6: told of nothing: {n}" for n in notices.values())]


Told = tuple[str, str, bool]  # state or result, which, must it be there?


def _expected(changes: list[tuple[UpgradeState, UpgradeState]], *, owed: bool) -> list[Told]:
    told: list[Told] = []
    for i, (before, after) in enumerate(changes):
        last = i == len(changes) - 1
        told += [("state", word, True) for word in bodies.words(before, after, newer=True)]
        if bodies.has_result(before, after) and not (last and owed):
            told.append(("result", "SUCCESS" if after is UpgradeState.SUCCESS else "FAIL", last))
    return told


def _matches(notices: list[tuple[str, str]], expected: list[Told]) -> bool:
    left = list(notices)
    for kind, which, obliged in reversed(expected):  # from the end, where the result must be
        if left and left[-1] == (kind, which):
            left.pop()
        elif obliged:
            return False
    return not left


def _result_of(body: dict[str, Any]) -> str:
    return str(body.get("swUpgradeResult") or body["status"])


async def lost_reports(db: Reader, records: Sequence[DeviceRecord]) -> list[str]:
    """Law 4: every result that a device was answered 2xx for stands in the history of that attempt."""
    told: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    for r in await db.fetch(
        "SELECT d.node_id, h.action_id, h.to_state FROM history h JOIN upgrade u ON u.id = h.upgrade_id "
        "JOIN device d ON d.id = u.device_id WHERE h.action_id IS NOT NULL"
    ):
        told[r[0], r[1]].add(r[2])
    good, bad = {"verifying", "success"}, {"fail", "timeout"}
    lost = []
    for record in records:
        for action in record.actions.values():
            if not action.acknowledged or action.result not in ("success", "failure"):
                continue
            states = told[record.controller_id, int(action.action_id)]
            if not states & (good if action.result == "success" else bad):
                lost.append(
                    f"law 4: {record.controller_id} action {action.action_id}: {action.result} is not in {states}"
                )
    return lost
