"""The parent of several workers: what it starts, when again, and how it ends. Workers here serve nothing."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from openiodm.workers import BACK_OFF_S, pause_s

PARENT = """
import os, signal, sys, time
import structlog
from openiodm import workers

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one piece, beside others

class Log:
    def msg(self, message):
        say(message)
    info = warning = error = msg

structlog.configure(processors=[lambda _logger, _name, event: event["event"]], logger_factory=lambda *_: Log())
workers.CLOSE_S = 0.1
workers.BACK_OFF_S = (0.0, 0.01)

def serve(worker, serving):
{body}

sys.exit(workers.Supervisor(serve, {count}, grace_s=0.1, hopeless=2).run())
"""


@contextmanager
def parent(body: str, count: int = 2) -> Iterator["subprocess.Popen[str]"]:
    code = PARENT.replace("{body}", textwrap.indent(textwrap.dedent(body), "    ")).replace("{count}", str(count))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and its workers
        process.communicate()


def words(process: "subprocess.Popen[str]", start: str, count: int = 1) -> list[list[str]]:
    """The next lines that begin so, split."""
    found: list[list[str]] = []
    assert process.stdout is not None
    while len(found) < count:
        line = process.stdout.readline()
        assert line, f"the parent has ended: {process.stderr.read() if process.stderr else ''}"
        if line.startswith(start):
            found.append(line.split())
    return found


def test_pauses_grow_with_short_lives_up_to_the_longest() -> None:
    pauses = [pause_s(n) for n in range(10)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.0, BACK_OFF_S[-1])


def test_the_first_serves_before_the_others_start_and_all_end_with_the_parent() -> None:
    body = """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    say("starts", worker.number, worker.of)
    time.sleep(0.1 if worker.first else 0)
    say("serves", worker.number)
    serving()
    signal.sigwait({signal.SIGTERM})
    return 0
    """
    with parent(body, 3) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().split() for _ in range(2)]
        assert said == [["starts", "1", "3"], ["serves", "1"]]
        assert sorted(words(process, "serves", 2)) == [["serves", "2"], ["serves", "3"]]
        words(process, "workers_started")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_one_that_ends_is_started_again_and_the_others_go_on() -> None:
    body = """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    serving()
    say("serves", worker.number, os.getpid())
    signal.sigwait({signal.SIGTERM})
    return 0
    """
    with parent(body) as process:
        first, second = sorted(words(process, "serves", 2))
        subprocess.run(["kill", "-9", second[2]], check=True)
        (again,) = words(process, "serves")
        assert again[1] == "2"
        assert again[2] != second[2]
        subprocess.run(["kill", "-TERM", first[2]], check=True)  # ending in order is no reason to stay away
        assert words(process, "serves")[0][1] == "1"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_start_that_cannot_succeed_ends_everything_with_its_status_but_later_it_is_tried_again() -> None:
    with parent("return 2") as process:
        assert process.wait(30) == 2
    body = """
    if not worker.first:
        time.sleep(0.05)
        return 2
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    serving()
    say("serves")
    signal.sigwait({signal.SIGTERM})
    return 0
    """
    with parent(body) as process:
        assert process.wait(30) == 2
        assert process.communicate()[0].count("serves") == 1
    body = """
    say("starts", worker.number)
    serving()
    time.sleep(0.2)
    return 2
    """
    with parent(body) as process:
        words(process, "starts", 8)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, 1)  # whether it caught one at its end


def test_a_crash_at_the_first_start_is_tried_again() -> None:
    with parent('say("starts", worker.number); raise RuntimeError("a bug")') as process:
        assert words(process, "starts", 4) == [["starts", "1"]] * 4
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        assert process.stderr is not None
        assert "RuntimeError: a bug" in process.stderr.read()


def test_what_does_not_end_in_time_is_killed_and_said() -> None:
    body = """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serving()
    say("serves", os.getpid())
    time.sleep(600)
    """
    with parent(body) as process:
        words(process, "serves", 2)
        process.send_signal(signal.SIGTERM)
        words(process, "worker_killed", 2)
        assert process.wait(30) == 1


def test_workers_see_the_end_of_a_parent_that_was_killed() -> None:
    body = """
    serving()
    say("serves", worker.number)
    os.read(worker.parent, 1)
    say("alone", worker.number)
    return 0
    """
    with parent(body) as process:
        words(process, "serves", 2)
        process.send_signal(signal.SIGKILL)
        assert sorted(words(process, "alone", 2)) == [["alone", "1"], ["alone", "2"]]
