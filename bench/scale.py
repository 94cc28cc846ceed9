"""The arithmetic of docs/scale.md: what ten million devices need, by the costs that were measured on PostgreSQL.

Pure but for `measured`, which reads `results/*.json`. CPU costs are those of the largest fleet that was measured; that
they stay so beyond it is what the page assumes, and says.
"""

import json
from dataclasses import dataclass
from typing import Any

from server import HERE

RESULTS = HERE / "results"

DEVICES = 10_000_000
INTERVALS_S = (60, 600, 3600, 86_400)
INTERVAL_S = 3600  # the one that the rest of the page is for
ROLLOUT_DAYS = (1, 7, 30)
ROLLOUT_DAY = 7
ROLLOUTS_A_YEAR = 4
TASKS_A_YEAR = 1_000_000
PACKAGE_MB = 100
CARD_GBIT_S = 10.0
NOTICES_AN_UPDATE = 5
LOG_ROWS_AN_UPDATE = 3  # one a report
DAY_S = 86_400


@dataclass(frozen=True)
class Costs:
    """What was measured, and where."""

    fleet: int  # devices, of the server on which the costs below were measured
    poll_ms: float  # CPU of the server's process, with the writing of its last contact
    poll_db_ms: float  # CPU of PostgreSQL
    poll_wal: float  # bytes
    report_ms: float
    report_db_ms: float
    update_ms: float  # a whole one: six requests
    update_db_ms: float
    update_wal: float
    history_rows: float  # an update
    page_ms: float  # p50 of a page of the task list at a million tasks, in the server
    list_mib: float  # bitmaps, a million tasks
    list_build_s: float
    rows: dict[str, float]  # bytes of a row by table, its indexes included
    notices_s: float  # delivered a second, by one server
    download_mb_s: float  # one server on one core, loopback
    subtask_mib: float  # bitmaps of a task with a million sub-tasks, growth of the process
    subtask_build_s: float


def _results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def measured() -> Costs:
    fleet = _results("growth")["devices"]["postgres"][-1]
    lists = _results("list")["engines"]["postgres"]
    subtasks = _results("subtasks")["engines"]
    live = [one["live"] for one in _results("notices")["rounds"]]
    return Costs(
        fleet=fleet["devices"],
        poll_ms=fleet["contact"]["cpu_ms"],
        poll_db_ms=fleet["contact"]["database_cpu_ms"],
        poll_wal=fleet["contact"]["wal_bytes"],
        report_ms=fleet["report"]["cpu_ms"],
        report_db_ms=fleet["report"]["database_cpu_ms"],
        update_ms=fleet["update"]["cpu_ms"],
        update_db_ms=fleet["update"]["database_cpu_ms"],
        update_wal=fleet["update"]["wal_bytes"],
        history_rows=fleet["update"]["history_rows"],
        page_ms=lists["request_ms"]["undisturbed"]["p50"],
        list_mib=lists["bitmaps_mib"],
        list_build_s=lists["build_s"],
        rows={name: one["bytes"] + one["index_bytes"] for name, one in fleet["rows"].items()},
        notices_s=sorted(one["notices"] / one["all_delivered_after_s"] for one in live)[len(live) // 2],
        download_mb_s=_results("latest")["ours"]["download_best_mb_per_s"],
        subtask_mib=subtasks["sqlite"]["rss_growth_mib"],
        subtask_build_s=subtasks["postgres"]["build_s"],
    )


@dataclass(frozen=True)
class Polls:
    """Idle polls of all devices at one interval."""

    interval_s: int
    per_s: float
    cores: float
    database_cores: float
    wal_mb_s: float


def polls(costs: Costs, interval_s: int) -> Polls:
    per_s = DEVICES / interval_s
    cores, database = per_s * costs.poll_ms / 1000, per_s * costs.poll_db_ms / 1000
    return Polls(interval_s, per_s, cores, database, per_s * costs.poll_wal / 1e6)


@dataclass(frozen=True)
class Rollout:
    """One package for all devices, evenly over some days."""

    days: int
    updates_s: float
    reports_s: float
    cores: float
    database_cores: float
    wal_mb_s: float
    notices_s: float
    gbit_s: float


def rollout(costs: Costs, days: int) -> Rollout:
    per_s = DEVICES / (days * DAY_S)
    return Rollout(
        days,
        per_s,
        LOG_ROWS_AN_UPDATE * per_s,
        per_s * costs.update_ms / 1000,
        per_s * costs.update_db_ms / 1000,
        per_s * costs.update_wal / 1e6,
        NOTICES_AN_UPDATE * per_s,
        per_s * PACKAGE_MB * 8 / 1000,
    )


def rows_a_year(costs: Costs) -> dict[str, tuple[float, float]]:
    """By table: millions of rows that a year adds, and GB; `device` and `group_member` are what is there throughout."""
    updates = DEVICES * ROLLOUTS_A_YEAR
    rows = {
        "device": float(DEVICES),
        "group_member": float(DEVICES),
        "upgrade": float(updates),
        "history": updates * costs.history_rows,
        "device_log": float(updates * LOG_ROWS_AN_UPDATE),
    }
    return {name: (count / 1e6, count * costs.rows[name] / 1e9) for name, count in rows.items()}


@dataclass(frozen=True)
class Limit:
    """What hourly polls and a rollout in seven days need together, and what one of it gives."""

    what: str
    needed: float
    gives: float
    unit: str


def limits(costs: Costs) -> list[Limit]:
    idle, busy = polls(costs, INTERVAL_S), rollout(costs, ROLLOUT_DAY)
    return [
        Limit("a core with a server process", idle.cores + busy.cores, 1.0, "cores"),
        Limit("a core with PostgreSQL", idle.database_cores + busy.database_cores, 1.0, "cores"),
        Limit("a server that delivers notices", busy.notices_s, costs.notices_s, "/s"),
        Limit("a server that sends packages, loopback", busy.gbit_s, costs.download_mb_s * 8 / 1000, "Gbit/s"),
        Limit("a network card", busy.gbit_s, CARD_GBIT_S, "Gbit/s"),
        Limit("bitmaps of the task list, a million tasks", TASKS_A_YEAR / 1e6 * costs.list_mib, costs.list_mib, "MiB"),
        Limit(
            "bitmaps of a task for all, a million devices", DEVICES / 1e6 * costs.subtask_mib, costs.subtask_mib, "MiB"
        ),
        Limit("building them, a million devices", DEVICES / 1e6 * costs.subtask_build_s, costs.subtask_build_s, "s"),
    ]
