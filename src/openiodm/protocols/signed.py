"""Signed addresses of packages, for a CDN that fetches from us: `/cdn/<sha256>/<name>?expires=...&signature=...`.

A CDN knows no device and keeps what it has fetched under its address. So nothing of a device is in one: the signature
(HMAC-SHA256) is over the path and the end of its time, and all devices that are told in the same span of time are told
the same address. Whoever has it may have the bytes until then.
"""

import asyncio
import hmac
import re
from typing import Final
from urllib.parse import parse_qs, quote, unquote

import structlog
from starlette.types import Receive, Scope, Send

from openiodm.clock import SECOND, Clock, Instant
from openiodm.http.clients import peer_of
from openiodm.protocols import ranges
from openiodm.protocols.download import Asked, Downloads
from openiodm.protocols.port import File, LocalFile, PackageAway

CDN_PATH: Final = "/cdn/"

_PATH: Final = re.compile(r"/cdn/([0-9a-f]{64})/([^/]+)", re.ASCII)
_EXPIRES: Final = re.compile(r"[0-9]{1,12}", re.ASCII)

log = structlog.get_logger(__name__)


class SignedLinks:
    """Makes and checks addresses below `base`; each is valid for one to two times `life_s`."""

    def __init__(self, base: str, key: str, life_s: int) -> None:
        self._base = base.rstrip("/")
        self._key = key.encode()
        self._life_s = life_s

    def url(self, file: File, now: Instant) -> str:
        """Where the bytes are; the same for all who ask within the same `life_s`, so that a CDN keeps one copy."""
        path = f"{CDN_PATH}{file.sha256}/{quote(file.name, safe='')}"
        expires = (now // SECOND // self._life_s + 2) * self._life_s
        return f"{self._base}{path}?expires={expires}&signature={self._signature(path, expires)}"

    def left_s(self, path: str, query: str, now: Instant) -> int | None:
        """Seconds that an address, as it was asked for, has left; None when it is over, or not ours."""
        told = parse_qs(query)
        expires, signature = told.get("expires", []), told.get("signature", [])
        if len(expires) != 1 or len(signature) != 1 or not _EXPIRES.fullmatch(expires[0]):
            return None
        until = int(expires[0])
        if not hmac.compare_digest(signature[0].encode(), self._signature(path, until).encode()):
            return None
        left = until - now // SECOND
        return left if left > 0 else None

    def _signature(self, path: str, expires: int) -> str:
        return hmac.digest(self._key, f"{path}\n{expires}".encode(), "sha256").hex()


class SignedSite:
    """The ASGI application of `/cdn/...`: the bytes to whoever has a valid address, and how long they may be kept."""

    def __init__(
        self,
        links: SignedLinks,
        local: LocalFile,
        downloads: Downloads,
        clock: Clock,
        trusted_proxies: frozenset[str] = frozenset(),
    ) -> None:
        self._links = links
        self._local = local
        self._downloads = downloads
        self._clock = clock
        self._trusted_proxies = trusted_proxies

    @staticmethod
    def serves(path: str) -> bool:
        """Is it a path of this site?"""
        return path.startswith(CDN_PATH)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request: 405, 403 (another signature, or its time is over), 404, 503, or as a download."""
        if scope["method"] not in ("GET", "HEAD"):
            await _empty(send, 405, [(b"allow", b"GET, HEAD")])
            return
        raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
        path, query = raw.decode("latin-1"), scope["query_string"].decode("latin-1")
        found = _PATH.fullmatch(path)
        left = None if found is None else self._links.left_s(path, query, self._clock.now())
        if found is None or left is None:
            await _empty(send, 403)
            return
        sha256 = found[1]
        try:
            await self._send(scope, receive, send, sha256, unquote(found[2]), left)
        except FileNotFoundError:
            await _empty(send, 404)
        except PackageAway as error:
            log.error("package_away", sha256=sha256, error=str(error))
            await _empty(send, 503)

    async def _send(self, scope: Scope, receive: Receive, send: Send, sha256: str, name: str, left: int) -> None:
        size = (await asyncio.to_thread((await self._local(sha256)).stat)).st_size
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        # The bytes of a digest never change: any date is true, and this one is the same on every server.
        plan = ranges.plan(headers, size, f'"{sha256}"', Instant(0), method=scope["method"])
        until = self._clock.now() + left * SECOND

        async def still_allowed() -> bool:
            return self._clock.now() < until

        # What the conditions of one request made of it (412, 416) is no answer to the next.
        lasts = plan.status in (200, 206, 304)
        about = {
            "Content-Disposition": ranges.content_disposition(name),
            "Cache-Control": f"public, max-age={left}, immutable" if lasts else "no-store",
        }
        asked = Asked(scope["method"], headers, peer_of(scope) in self._trusted_proxies, receive, send)
        await self._downloads.send(asked, sha256, plan, about, still_allowed)


async def _empty(send: Send, status: int, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    raw = [*(headers or []), (b"content-length", b"0"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
