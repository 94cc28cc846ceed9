"""Streams of lines, one JSON value each: in and out at the same time, never whole in memory."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

MEDIA = "application/x-ndjson"
MAX_LINE_BYTES = 16 * 1024
SENT_BYTES = 64 * 1024  # of the answer at once


async def lines(chunks: AsyncIterator[bytes], limit: int = MAX_LINE_BYTES) -> AsyncIterator[tuple[int, bytes | None]]:
    """Number (from 1) and bytes of each line that is not blank; None for one that is longer than `limit`.

    At most `limit` bytes and one chunk are held.
    """
    number, held, skipping = 1, b"", False
    async for chunk in chunks:
        first, *more = chunk.split(b"\n")
        held = b"" if skipping else held + first
        for piece in more:
            if skipping or len(held) > limit:
                yield number, None
            elif held.strip():
                yield number, held
            number, held, skipping = number + 1, piece, False
        if len(held) > limit:
            held, skipping = b"", True
    if skipping:
        yield number, None
    elif held.strip():
        yield number, held


class _Spool:
    """Bytes on their way from one task to another. A file keeps what is not taken yet, so that neither waits.

    Used as a context; its parts end with it.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `__exit__`
        self._put = self._taken = 0
        self._ended = False
        self._news = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def put(self, piece: bytes) -> None:
        """Adds to what is to be taken."""
        rest = memoryview(piece)
        while rest:
            written = os.pwrite(self._file.fileno(), rest, self._put)
            self._put += written
            rest = rest[written:]
        self._news.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._news.set()

    async def take(self) -> bytes:
        """The next bytes, as soon as there are some; none at the end."""
        while self._taken == self._put and not self._ended:
            self._news.clear()
            await self._news.wait()
        piece = os.pread(self._file.fileno(), min(SENT_BYTES, self._put - self._taken), self._taken)
        self._taken += len(piece)
        return piece


class LineStream(Response):
    """Answers with pieces as they come, while the request is still being read.

    Most clients read no answer before they have sent everything. So the pieces go on being made, which is what reads
    the request, however long the client leaves them lying. Unlike Starlette's own it leaves `receive` alone, which
    belongs to whoever reads the request; and its head is sent with the first piece, so that a client that waits for
    "100 Continue" is told to go on.
    """

    media_type = MEDIA

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self.status_code = 200
        self.background = None
        self.init_headers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends everything. An error in the middle cuts the connection: the answer is seen to be incomplete."""
        with _Spool() as spool:
            making = asyncio.create_task(self._make(spool), name="line-stream")
            try:
                await self._send(spool, send, making)
            except ClientDisconnect:
                return
            finally:
                making.cancel()
                await asyncio.wait([making])  # it writes into the spool

    async def _make(self, spool: _Spool) -> None:
        try:
            async for piece in self._pieces:
                spool.put(piece)
        finally:
            spool.end()

    async def _send(self, spool: _Spool, send: Send, making: "asyncio.Task[None]") -> None:
        piece = await spool.take()
        if not piece:
            await making  # raises what went wrong before anything was sent
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        while piece:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            piece = await spool.take()
        await making
        await send({"type": "http.response.body", "body": b""})
