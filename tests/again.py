"""Runs the few tests that failed in the run before once more, alone: `python -m tests.again STATUS`.

Real processes, kills and network on a crowded machine: some test among thousands may fail for what else runs there. So
what failed is run again without company, as CPython's own test runner does. What fails twice is broken. What passes
then is flaky: its name stands in the last lines of the output, and it is a bug of the test or of the server, to be
mended, not to be run until it passes. More than a few failures are no accident and are not run again.
"""

import json
import subprocess
import sys
from pathlib import Path

FAILED = 1
"""pytest's exit status when tests were run and some failed; whatever else it says stands."""
MOST = 3
LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")


def again(status: int) -> int:
    """The exit status of the whole: `status` of the first run, unless all that failed in it passes now."""
    if status != FAILED:
        return status
    names = sorted(json.loads(LAST_FAILED.read_text()))
    if not 0 < len(names) <= MOST:
        print(f"{len(names)} tests failed; none is run again")
        return status
    print(f"{len(names)} failed and run once more, alone:", flush=True)
    second = subprocess.run([sys.executable, "-m", "pytest", *names], check=False).returncode
    if second == 0:
        print("FLAKY, failed among the others and passed alone:", *names, sep="\n  ")
    return second


if __name__ == "__main__":
    sys.exit(again(int(sys.argv[1])))
