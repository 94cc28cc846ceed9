"""Streams of lines, one JSON value each: in and out at the same time, never whole in memory."""

from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

MEDIA = "application/x-ndjson"
MAX_LINE_BYTES = 16 * 1024


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


class LineStream(Response):
    """Answers with pieces as they come.

    Unlike Starlette's own it leaves `receive` alone, which belongs to whoever reads the request meanwhile; and its
    head is sent with the first piece, so that a client that waits for "100 Continue" is told to go on.
    """

    media_type = MEDIA

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces
        self.status_code = 200
        self.background = None
        self.init_headers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends everything. An error in the middle cuts the connection: the answer is seen to be incomplete."""
        begun = False
        try:
            async for piece in self._pieces:
                if not begun:
                    await self._begin(send)
                    begun = True
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except ClientDisconnect:
            return
        if not begun:
            await self._begin(send)
        await send({"type": "http.response.body", "body": b""})

    async def _begin(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
