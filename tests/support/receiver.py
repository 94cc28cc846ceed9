"""A receiver of notices on a real socket, which behaves as a test tells it to."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Answer = Callable[[dict[str, Any]], Any]  # a status, a ready response, seconds to wait (float), or None: hang up


@dataclass
class Heard:
    """One request, as it came."""

    path: str
    headers: dict[str, str]
    raw: bytes
    answered: Any

    @property
    def body(self) -> dict[str, Any]:
        return dict(json.loads(self.raw))


@dataclass
class Receiver:
    """Remembers all requests. `answer` decides by the body; what it answers 2xx counts as taken."""

    port: int = 0
    scheme: str = "http"
    answer: Answer = lambda body: 200
    heard: list[Heard] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0

    def url(self, path: str = "/push") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    @property
    def taken(self) -> list[dict[str, Any]]:
        return [h.body for h in self.heard if h.answered == 200]

    async def until(self, count: int, within: float = 60.0) -> list[dict[str, Any]]:
        """The bodies taken, once there are so many."""
        end = time.monotonic() + within
        while len(self.taken) < count:
            assert time.monotonic() < end, f"{len(self.taken)} of {count} notices came: {self.heard[-3:]}"
            await asyncio.sleep(0.01)
        return self.taken

    async def until_heard(self, count: int, within: float = 60.0) -> None:
        end = time.monotonic() + within
        while len(self.heard) < count:
            assert time.monotonic() < end, f"{len(self.heard)} of {count} attempts came"
            await asyncio.sleep(0.01)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        heard = Heard(request.path_qs, {k.lower(): v for k, v in request.headers.items()}, raw, None)
        heard.answered = self.answer(heard.body)
        self.heard.append(heard)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            if isinstance(heard.answered, web.StreamResponse):
                return heard.answered
            if heard.answered is None:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            if isinstance(heard.answered, float):
                await asyncio.sleep(heard.answered)
                heard.answered = 200
            return web.Response(status=heard.answered, text="ok")
        finally:
            self._now -= 1


@asynccontextmanager
async def receiving(answer: Answer = lambda body: 200, port: int = 0, ssl: Any = None) -> AsyncIterator[Receiver]:
    receiver = Receiver(port, "https" if ssl else "http", answer)
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", receiver._handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=ssl)
    await site.start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()
