"""Several server processes on the same addresses: one parent, which serves nothing itself, and its workers.

The parent forks before any of them has a thread, a loop or a connection, starts again whatever ends, and ends them all
when it is told to. A worker learns by a pipe that its parent has gone, however that ended, and stops as if by SIGTERM.

The first worker starts alone: the schema, and the very first application, are made once. It is also the one with what
only one process can have (`Worker.first`).
"""

import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

import structlog

MOST = 64
BACK_OFF_S = (0.0, 1.0, 2.0, 5.0, 15.0, 30.0)
"""Pauses before a worker is started again, by how often in a row it has ended soon."""
LASTING_S = 60.0
"""A worker that ran for so long did not end soon."""
CLOSE_S = 5.0
"""What a stop may take beyond the grace for requests; then workers are killed."""

_STOPS = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Worker:
    """Which of how many this process is, from 1. `parent`: a descriptor that becomes readable when the parent ends."""

    number: int = 1
    of: int = 1
    parent: int | None = None

    @property
    def first(self) -> bool:
        """Is it the one that has what cannot be shared?"""
        return self.number == 1


ALONE = Worker()
"""A server of one process."""

Serve = Callable[[Worker, Callable[[], None]], int]
"""Runs one worker to its end and returns its exit status; calls what it is given when it serves."""


@dataclass(slots=True)
class _Place:
    """Of one worker: the process that has it, or when it gets the next one (on `time.monotonic`)."""

    number: int
    pid: int | None = None
    since: float = 0.0
    due_at: float = 0.0
    short_lives: int = 0


def pause_s(short_lives: int) -> float:
    """How long to wait before a worker is started again that has ended soon so often in a row."""
    return BACK_OFF_S[min(short_lives, len(BACK_OFF_S) - 1)]


class Supervisor:
    """The parent. `hopeless` is the exit status of a worker whose start cannot succeed: a setting, a taken address.

    At the first start that ends everything; later (the database may be away for a while) it is tried again.
    """

    def __init__(self, serve: Serve, count: int, *, grace_s: float, hopeless: int) -> None:
        self._serve = serve
        self._places = [_Place(number) for number in range(1, count + 1)]
        self._grace_s = grace_s
        self._hopeless = hopeless
        self._waiting = set(range(1, count + 1))  # those that have not served yet
        self._kill_at: float | None = None  # the end of the grace, once everything is to end
        self._status = 0
        self._alive = os.pipe()  # nothing is ever written: its far end closes with this process
        self._serving = os.pipe()  # workers write their numbers
        os.set_blocking(self._serving[0], False)

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit status, 0 if every worker ended in order."""
        gc.freeze()  # what is there now stays shared memory: a collection would write to it
        with _signals() as wakeup:
            while True:
                self._start()
                if self._kill_at is not None and not any(place.pid for place in self._places):
                    return self._status
                select.select([wakeup, self._serving[0]], [], [], self._wait_s())
                if not set(_STOPS).isdisjoint(_read(wakeup)):
                    self._stop()
                self._note(_read(self._serving[0]))
                self._reap()
                self._kill_late()

    def _start(self) -> None:
        """Those that are due; others than the first only when that one serves."""
        if self._kill_at is not None:
            return
        for place in self._places[: 1 if 1 in self._waiting else None]:
            if place.pid is None and place.due_at <= time.monotonic():
                place.since = time.monotonic()
                place.pid = self._fork(place.number)

    def _wait_s(self) -> float | None:
        """Until something is due; None: until something happens."""
        if self._kill_at is not None:
            due = [self._kill_at]
        else:
            due = [place.due_at for place in self._places[: 1 if 1 in self._waiting else None] if place.pid is None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _note(self, serving: bytes) -> None:
        if not self._waiting:
            return
        self._waiting -= set(serving)
        if not self._waiting:
            log.info("workers_started", workers=len(self._places))

    def _stop(self) -> None:
        if self._kill_at is not None:
            return
        log.info("workers_stopping")
        self._kill_at = time.monotonic() + self._grace_s + CLOSE_S
        for place in self._places:
            if place.pid is not None:
                os.kill(place.pid, signal.SIGTERM)

    def _kill_late(self) -> None:
        if self._kill_at is None or time.monotonic() < self._kill_at:
            return
        self._kill_at += CLOSE_S  # a second time would be no use, and a busy loop none either
        for place in self._places:
            if place.pid is not None:
                log.error("worker_killed", number=place.number, pid=place.pid)
                os.kill(place.pid, signal.SIGKILL)

    def _reap(self) -> None:
        for place in self._places:
            if place.pid is None:
                continue
            pid, status = os.waitpid(place.pid, os.WNOHANG)
            if pid:
                self._ended(place, os.waitstatus_to_exitcode(status))

    def _ended(self, place: _Place, status: int) -> None:
        pid, place.pid = place.pid, None
        if self._kill_at is not None:
            if status not in (0, -signal.SIGTERM) and not self._status:  # SIGTERM: it had not begun to serve
                self._status = 1
            return
        if status == self._hopeless and place.number in self._waiting:
            self._status = status
            self._stop()
            return
        now = time.monotonic()
        place.short_lives = 0 if now - place.since >= LASTING_S else place.short_lives + 1
        again_in_s = pause_s(max(0, place.short_lives - 1))
        place.due_at = now + again_in_s
        log.warning("worker_ended", number=place.number, pid=pid, status=status, again_in_s=again_in_s)

    def _fork(self, number: int) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # one that comes now must not meet our handlers in the worker
        try:
            pid = os.fork()
            if pid == 0:
                self._be(number)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        return pid

    def _be(self, number: int) -> NoReturn:
        """The worker, from the fork to its end."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in _STOPS:  # until the server has handlers of its own
                signal.signal(each, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
            os.close(self._alive[1])
            structlog.contextvars.bind_contextvars(worker=number)
            worker = Worker(number, len(self._places), self._alive[0])
            status = self._serve(worker, lambda: _tell(self._serving[1], number))
        except BaseException:
            traceback.print_exc()
        finally:  # whatever happens, nothing may run on in the parent's frames
            with suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)


def _tell(fd: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the parent has gone, which the worker is about to see
        os.write(fd, bytes([number]))


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b""


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor from which the numbers of the signals are read that this process gets."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in (*_STOPS, signal.SIGCHLD)}
    signal.set_wakeup_fd(far.fileno(), warn_on_full_buffer=False)
    try:
        yield near.fileno()
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        near.close()
        far.close()
