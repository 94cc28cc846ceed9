"""The running check of counters against rows: it sees a drift, goes on from where it was, and leaves out the large."""

from collections.abc import AsyncIterator

import pytest

from openiodm.campaigns import drift
from openiodm.campaigns.drift import AT_ONCE, DriftCheck
from openiodm.storage.engine import Database
from tests.conftest import ManualClock
from tests.support.core import Core, build_core


@pytest.fixture
async def core(database: Database, clock: ManualClock) -> AsyncIterator[Core]:
    built = await build_core(database, clock)
    yield built
    await built.writer.close()


async def test_counters_that_are_their_rows_are_told_exact_each_in_turn(core: Core) -> None:
    for device in await core.add_devices(AT_ONCE + 2):
        await core.create([device])
    told: list[bool] = []
    check = DriftCheck(core.reads, told.append)
    await check.look()
    assert told == [True] * AT_ONCE
    await check.look()
    assert told == [True] * (AT_ONCE + 2)
    await check.look()  # and from the first again
    assert len(told) == 2 * AT_ONCE + 2


async def test_a_drift_is_seen_and_logged(core: Core, capsys: pytest.CaptureFixture[str]) -> None:
    await core.create(await core.add_devices(3))
    async with core.database.transaction() as tx:
        await tx.execute("UPDATE campaign_counters SET wait = wait - 1, success = success + 1")
    told: list[bool] = []
    await DriftCheck(core.reads, told.append).look()
    assert told == [False]
    assert "counters_differ" in capsys.readouterr().out


async def test_finished_and_large_campaigns_are_left_alone(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "LARGEST", 2)
    await core.create(await core.add_devices(3))
    finished = await core.create(await core.add_devices(1, version="V2", first=10))
    assert (await core.queries.one(core.actor, finished)).status == "success"
    told: list[bool] = []
    await DriftCheck(core.reads, told.append).look()
    assert told == []
