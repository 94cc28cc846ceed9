"""Three kills per engine on every run; `make drills` does twenty with ten times the devices."""

from pathlib import Path

import pytest

from tests.drills.kills import drill
from tests.support.process import fresh_database


@pytest.mark.drill
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_three_kills_lose_nothing_acknowledged_and_start_nobody_twice(engine: str, tmp_path: Path) -> None:
    async with fresh_database(engine, tmp_path) as url:
        report = await drill(engine, url, tmp_path, kills=3, devices=200)
    assert report.wrong == []
    assert report.kills == 3
    assert report.task["status"] == "failed"  # some devices fail on purpose, and the policy has no retries
    assert report.task["staResult"]["total"] == 200
