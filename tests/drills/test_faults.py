"""Two drills of `python -m tests.drills` on every run, and small; `make drills` has all of them."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.drills.faults import disk_full, postgres_killed
from tests.drills.world import Report

pytestmark = pytest.mark.drill


async def test_postgresql_killed_under_load_loses_nothing_acknowledged(tmp_path: Path) -> None:
    report = Report("D2", "postgresql")
    await postgres_killed(report, tmp_path, devices=60, kills=1)
    assert report.wrong == []
    assert report.figures["success"] + report.figures["fail"] == 60


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux" or shutil.which("mount") is None, reason="mounts a file system"
)
async def test_a_full_disk_in_mid_campaign_loses_nothing_and_the_server_goes_on_by_itself(tmp_path: Path) -> None:
    report = Report("D15", "sqlite")
    await disk_full(report, tmp_path, devices=60)
    assert report.wrong == []
    assert report.figures["success"] + report.figures["fail"] == 60
