"""Two kills in mid-delivery on every run, one engine after the other."""

from pathlib import Path

import pytest

from tests.drills.notices import drill
from tests.support.process import fresh_database


@pytest.mark.drill
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_two_kills_in_mid_delivery_lose_no_notice(engine: str, tmp_path: Path) -> None:
    async with fresh_database(engine, tmp_path) as url:
        assert await drill(url, tmp_path, kills=2, devices=60) == []
