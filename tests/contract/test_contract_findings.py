"""What a second reader found by attacking a running server with raw requests, each with the section it broke."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from openiodm.campaigns.model import CampaignFilter
from openiodm.campaigns.queries import CampaignQueries
from openiodm.campaigns.states import UpgradeState
from openiodm.storage.campaign_reads import SqlCampaignList, SqlCampaignReads
from openiodm.storage.engine import Database, Row
from tests.conftest import ManualClock
from tests.support.core import Core, build_core
from tests.support.server import World, build_world

OPERATIONS = "/iodm/northbound/v1.5.0/operations"
DEEP = "[" * 7000 + "]" * 7000  # deeper than the parser goes, shorter than any limit of size


@pytest.fixture
async def world(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    async with build_world(database_url, tmp_path / "data", clock) as built:
        yield built


@pytest.fixture
async def core(database: Database, clock: ManualClock) -> AsyncIterator[Core]:
    built = await build_core(database, clock)
    yield built
    await built.check_laws()
    await built.writer.close()


class Meanwhile:
    """A database in which something else is committed right after every statement of ours."""

    def __init__(self, database: Database, change: Callable[[], Awaitable[Any]]) -> None:
        self._db = database
        self._change = change

    async def fetch(self, sql: str, *args: Any) -> Sequence[Row]:
        rows = await self._db.fetch(sql, *args)
        await self._change()
        return rows

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        row = await self._db.fetchrow(sql, *args)
        await self._change()
        return row

    async def fetchval(self, sql: str, *args: Any) -> Any:
        value = await self._db.fetchval(sql, *args)
        await self._change()
        return value


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"{OPERATIONS}/firmwareUpgrade", "120015"),
        ("/iocm/app/reg/v1.1.0/deviceCredentials", "100007"),
        ("/iocm/app/devgroup/v1.3.0/devGroups", "50400"),
    ],
)
async def test_a_body_nested_too_deep_is_the_callers_fault(world: World, path: str, code: str) -> None:
    """Section 1.4: it was 500/50252."""
    headers = {**await world.login(), "Content-Type": "application/json"}
    answer = await world.http.post(path, headers=headers, content='{"unknown":' + DEEP + "}")
    assert (answer.status_code, answer.json()["error_code"]) == (400, code)


async def test_a_bulk_line_nested_too_deep_costs_only_itself(world: World) -> None:
    product = {"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
    good = [json.dumps({"nodeId": node, **product}) for node in ("a", "b")]
    lines = [good[0], '{"nodeId":"deep","unknown":' + DEEP + "}", good[1]]
    answer = await world.http.post("/api/v1/devices/bulk", headers=await world.login(), content="\n".join(lines))
    told = [json.loads(line) for line in answer.text.splitlines()]
    assert [line.get("nodeId") for line in told] == ["a", None, "b"]
    assert told[1]["error"]["reason"] == "bad-input"


async def test_total_count_of_the_task_list_is_of_the_same_moment_as_its_rows(core: Core, database: Database) -> None:
    """Section 3.6: under load it told fewer than it showed."""
    await core.add_devices(5)
    await core.create(["d1"])
    created = 1

    async def change() -> None:
        nonlocal created
        created += 1
        await core.create([f"d{created}"])

    task_list = SqlCampaignList(Meanwhile(database, change))  # type: ignore[arg-type]
    for number in (0, 9):
        total, rows = await task_list.page(CampaignFilter(core.actor.application), number, 10)
        assert len(rows) == (total if number == 0 else 0)
    assert (total, created) == (2, 3)


async def test_total_count_of_subtasks_is_of_the_same_moment_as_its_rows(core: Core, database: Database) -> None:
    """Section 3.5: as above, for `subOperationStatus`."""
    await core.add_devices(4)
    task = await core.create(["d1", "d2", "d3", "d4"])
    moved = 0

    async def change() -> None:
        nonlocal moved
        moved += 1
        await core.contact(moved)

    meanwhile: Any = Meanwhile(database, change)
    queries = CampaignQueries(SqlCampaignReads(meanwhile), SqlCampaignList(meanwhile), core.clock)
    total, rows = await queries.upgrades(core.actor, task, 0, 10, [UpgradeState.WAIT])
    assert total == len(rows) == 3
