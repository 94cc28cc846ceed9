"""Faults that the acceptance of the first version found, each held down by the test that showed it."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from openiodm.campaigns.queries import EXPORT_PAGE
from openiodm.storage.campaign_reads import _AFTER, _AFTER_STATES
from openiodm.storage.engine import Database
from tests.conftest import ManualClock
from tests.support.core import Core, build_core


@pytest.fixture
async def core(database: Database, clock: ManualClock) -> AsyncIterator[Core]:
    built = await build_core(database, clock)
    yield built
    await built.check_laws()
    await built.writer.close()


# -- exports


async def test_everybody_else_has_a_turn_between_the_pages_of_an_export(core: Core) -> None:
    """Reads on SQLite never wait: an export of 100,000 devices kept the whole server from answering for seconds."""
    await core.add_devices(5 * EXPORT_PAGE)
    await core.add_group("all", 1, 5 * EXPORT_PAGE)
    operation = await core.create(groups=["all"])
    await core.run_jobs()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    pages = [page async for page in core.queries.export(core.actor, operation)]
    other.cancel()
    assert len(pages) == 5
    assert turns >= len(pages)


async def test_a_page_of_an_export_reads_its_own_rows_alone(core: Core) -> None:
    """A planner without statistics (after a large expansion) read and joined all that was left, every time."""
    if core.database.engine == "sqlite":
        plan = await core.database.fetch(f"EXPLAIN QUERY PLAN {_AFTER}", 1, 0, 100)
        assert any("campaign_id=? AND ordinal>? AND ordinal<?" in row["detail"] for row in plan)
        return
    await core.add_devices(3000)
    await core.add_group("all", 1, 3000)
    await core.create(groups=["all"])
    await core.run_jobs()
    for sql in (
        _AFTER.replace("$1", "1").replace("$2", "500").replace("$3", "600"),
        _AFTER_STATES.replace("$1", "1").replace("$2", "500").replace("$3", "100").replace("$4", "'{wait}'"),
    ):
        plan = [row[0] for row in await core.database.fetch(f"EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF) {sql}")]
        joined = next(line for line in plan if " on device d" in line)
        assert "loops=100)" in joined or "rows=100" in joined, "\n".join(plan)
