"""Sends a package's bytes: whole, in ranges, and no longer than the device may have them.

The plan (status, spans, headers) is `ranges.py`'s; this is the part that reads files. Reads of 1 MiB in a thread came
to 0.99 of nginx's sendfile; the 64 KiB that frameworks read by default to 0.39.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog
from starlette.types import Message, Receive, Send

from openiodm.protocols.ranges import Span

CHUNK_BYTES = 1024 * 1024
LEAST_BYTES = 16 * 1024
FIRST_BYTES = 64 * 1024  # what one reader may keep in memory until it has shown that it is a fast one
SHARED_BYTES = 8 * 1024 * 1024  # for one chunk of each download that is under way
QUICK_S = 0.1  # a chunk that takes longer was too large: the end of a slow download would have to wait for it
SMALL_BYTES = 256 * 1024  # up to this a body is read at once: streaming agents ask for thousands of small ranges
RECHECK_S = 0.5  # a stop ends a running download within this and one chunk

Permission = Callable[[], Awaitable[bool]]

log = structlog.get_logger(__name__)


class Downloads:
    """All downloads that are under way, which share `SHARED_BYTES`: each may keep two chunks in memory, one that the
    peer is slow to take and the next. Few downloads get large chunks; a thousand slow readers stay small together.
    """

    def __init__(self) -> None:
        self.active = 0

    async def send(
        self,
        start: Message,
        pieces: Sequence[Span | bytes],
        path: Path,
        receive: Receive,
        send: Send,
        still_allowed: Permission,
    ) -> bool:
        """Sends `start` and the body; False when it was broken off: the client left, the permission ended, a read
        failed.

        A body that is broken off lacks bytes, so the server closes the connection and the device sees that it is cut.

        Raises:
            OSError: there is no such file, or no such bytes in it; nothing was sent.
        """
        if sum(piece.size for piece in pieces if isinstance(piece, Span)) <= SMALL_BYTES:
            body = await asyncio.to_thread(_read_small, pieces, path)
            await send(start)
            await send({"type": "http.response.body", "body": body})
            return True
        fd = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        gone = asyncio.create_task(_disconnect(receive), name="download-disconnect")
        self.active += 1
        try:
            await send(start)
            return await self._stream(pieces, fd, path, gone, send, still_allowed)
        except Exception:  # too late for another answer
            log.exception("download_failed", path=str(path))
            return False
        finally:
            self.active -= 1
            gone.cancel()
            os.close(fd)

    async def _stream(
        self,
        pieces: Sequence[Span | bytes],
        fd: int,
        path: Path,
        gone: "asyncio.Task[None]",
        send: Send,
        still_allowed: Permission,
    ) -> bool:
        checked, size = time.monotonic(), FIRST_BYTES
        for piece in pieces:
            if isinstance(piece, bytes):
                await _send(send, piece)
                continue
            at = piece.start
            while at <= piece.end:
                if gone.done():
                    return False
                if time.monotonic() - checked > RECHECK_S:
                    if not await still_allowed():
                        return False
                    checked = time.monotonic()
                size = max(LEAST_BYTES, min(size, SHARED_BYTES // self.active))
                data = await asyncio.to_thread(_read, fd, min(size, piece.end + 1 - at), at, path)
                began = time.monotonic()
                await _send(send, data)
                at += len(data)
                size = min(size * 2, CHUNK_BYTES) if time.monotonic() - began < QUICK_S else size // 2
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True


def _read_small(pieces: Sequence[Span | bytes], path: Path) -> bytes:
    with path.open("rb") as file:
        return b"".join(p if isinstance(p, bytes) else _read(file.fileno(), p.size, p.start, path) for p in pieces)


def _read(fd: int, size: int, at: int, path: Path) -> bytes:
    data = os.pread(fd, size, at)
    if not data:
        raise OSError(f"{path} is shorter than its row says")
    return data


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
