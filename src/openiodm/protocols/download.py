"""Sends a package's bytes: whole, in ranges, and no longer than the device may have them; or has nginx send them.

The plan (status, spans, headers) is `ranges.py`'s; this is the part that reads files. Reads of 1 MiB in a thread came
to 0.99 of nginx's sendfile; the 64 KiB that frameworks read by default to 0.39.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from starlette.types import Message, Receive, Send

from openiodm.protocols import ranges
from openiodm.protocols.port import LocalFile
from openiodm.protocols.ranges import Plan, Span

CHUNK_BYTES = 1024 * 1024
LEAST_BYTES = 16 * 1024
FIRST_BYTES = 64 * 1024  # what one reader may keep in memory until it has shown that it is a fast one
SHARED_BYTES = 8 * 1024 * 1024  # for one chunk of each download that is under way
QUICK_S = 0.1  # a chunk that takes longer was too large: the end of a slow download would have to wait for it
SMALL_BYTES = 256 * 1024  # up to this a body is read at once: streaming agents ask for thousands of small ranges
RECHECK_S = 0.5  # a stop ends a running download within this and one chunk

Permission = Callable[[], Awaitable[bool]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a package's bytes that has passed every check. `proxied`: by a proxy that is trusted."""

    method: str
    headers: Mapping[str, str]  # by lower-case name
    proxied: bool
    receive: Receive
    send: Send


class Handover:
    """Leaves the sending to an nginx in front (`X-Accel-Redirect`), which has the same files below `prefix`."""

    def __init__(self, prefix: str, folder: Path) -> None:
        self._prefix = prefix.rstrip("/")
        self._folder = folder

    def uri(self, asked: Asked, plan: Plan, path: Path) -> str | None:
        """Where nginx finds the file; None when we must send: nobody who is trusted stands between, or nginx, which
        looks at the request's own conditions, might come to another answer than `plan`.
        """
        if not asked.proxied or not ranges.is_common(asked.headers, plan):
            return None
        return f"{self._prefix}/{path.relative_to(self._folder).as_posix()}"


class Downloads:
    """All downloads that are under way, which share `SHARED_BYTES`: each may keep two chunks in memory, one that the
    peer is slow to take and the next. Few downloads get large chunks; a thousand slow readers stay small together.
    """

    def __init__(
        self,
        local: LocalFile,
        handover: Handover | None = None,
        elsewhere: Callable[[str], Awaitable[str]] | None = None,
    ) -> None:
        """`handover` is an nginx that may send a file of ours, `elsewhere` gives the address of a SHA-256 that clients
        are redirected to.
        """
        self._local = local
        self._handover = handover
        self._elsewhere = elsewhere
        self.active = 0
        self.sent: Callable[[int], None] = lambda _octets: None
        """Hears of bytes that went out."""
        self.ended: Callable[[str], None] = lambda _how: None
        """Hears how a download ended: whole, broken_off, handed_over."""

    async def send(
        self, asked: "Asked", sha256: str, plan: Plan, headers: Mapping[str, str], still_allowed: Permission
    ) -> bool:
        """Answers by `plan`, with `headers` besides; False when the body was broken off: the client left, the
        permission ended, a read failed.

        A body that is broken off lacks bytes, so the server closes the connection and the device sees that it is cut.

        Raises:
            OSError: there is no such file, or no such bytes in it; nothing was sent.
            PackageAway: it cannot be had now; nothing was sent.
        """
        headers = {**plan.headers, **headers}
        if asked.method != "GET" or not plan.pieces:
            await _whole(asked.send, plan.status, headers)
            return True
        # An entity tag in If-Range would be ours, and unknown elsewhere.
        if self._elsewhere is not None and "if-range" not in asked.headers and ranges.is_common(asked.headers, plan):
            address = await self._elsewhere(sha256)
            moved = {"Location": address, "Cache-Control": "no-store", "Content-Length": "0"}
            await _whole(asked.send, 302, moved)
            return True
        path = await self._local(sha256)
        uri = None if self._handover is None else self._handover.uri(asked, plan, path)
        if uri is not None:
            await asyncio.to_thread(os.stat, path)
            # The proxy counts the length anew, and its own words about ranges: it has the same request before it.
            kept = {k: v for k, v in headers.items() if k not in ("Content-Length", "Content-Range", "Accept-Ranges")}
            await _whole(asked.send, 200, {**kept, "X-Accel-Redirect": uri, "Content-Length": "0"})
            self.ended("handed_over")
            return True
        if (octets := sum(span.size for span in plan.spans)) <= SMALL_BYTES:
            await _whole(asked.send, plan.status, headers, await asyncio.to_thread(_read_small, plan.pieces, path))
            self.sent(octets)
            self.ended("whole")
            return True
        fd = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        gone = asyncio.create_task(_disconnect(asked.receive), name="download-disconnect")
        self.active += 1
        whole = False
        try:
            await asked.send(_start(plan.status, headers))
            whole = await self._stream(plan.pieces, fd, path, gone, asked.send, still_allowed)
            return whole
        except Exception:  # too late for another answer
            log.exception("download_failed", path=str(path))
            return False
        finally:
            self.active -= 1
            self.ended("whole" if whole else "broken_off")
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
                self.sent(len(data))
                at += len(data)
                size = min(size * 2, CHUNK_BYTES) if time.monotonic() - began < QUICK_S else size // 2
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True


def _start(status: int, headers: Mapping[str, str]) -> Message:
    raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": raw}


async def _whole(send: Send, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
    await send(_start(status, headers))
    await send({"type": "http.response.body", "body": body})


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
