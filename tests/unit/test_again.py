"""What `make test` does with tests that failed: `tests/again.py`, on real runs of pytest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAKY = """
from pathlib import Path
def test_second_time():
    seen = Path("seen")
    assert seen.exists() or seen.touch()
"""
BROKEN = """
import pytest
@pytest.mark.parametrize("n", range({}))
def test_broken(n):
    assert n < 0
"""


def run(folder: Path, tests: str) -> tuple[int, str]:
    """The status of both runs together, and what the second one printed."""
    (folder / "test_it.py").write_text(tests)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.run([sys.executable, "-m", "pytest", "-q", "test_it.py"], cwd=folder, check=False).returncode
    command = [sys.executable, "-m", "tests.again", str(first)]
    second = subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True, text=True)
    return second.returncode, second.stdout


def test_what_passes_alone_passes_and_is_named(tmp_path: Path) -> None:
    status, said = run(tmp_path, FLAKY)
    assert status == 0
    assert said.splitlines()[-2:] == [
        "FLAKY, failed among the others and passed alone:",
        "  test_it.py::test_second_time",
    ]


@pytest.mark.parametrize(("count", "said"), [(3, "3 failed and run once more"), (4, "4 tests failed; none is run")])
def test_what_fails_twice_fails_and_many_are_not_run_again(tmp_path: Path, count: int, said: str) -> None:
    status, output = run(tmp_path, BROKEN.format(count))
    assert status == 1
    assert said in output
    assert "FLAKY" not in output


def test_a_run_that_could_not_be_made_stays_failed(tmp_path: Path) -> None:
    status, _ = run(tmp_path, "")  # no test at all: pytest's status 5
    assert status == 5
