"""Packages over HTTP(S), for LwM2M devices that fetch them so: under the same names, and as long, as over CoAP."""

from collections.abc import Awaitable, Callable

import structlog
from starlette.types import Receive, Scope, Send

from openiodm.campaigns.model import LogEntry
from openiodm.campaigns.rollout import Progress, offers_bytes
from openiodm.campaigns.states import UpgradeEvent, UpgradeState
from openiodm.http.clients import peer_of
from openiodm.protocols import ranges
from openiodm.protocols.download import Asked, Downloads
from openiodm.protocols.lwm2m.clients import Client
from openiodm.protocols.lwm2m.files import package_of
from openiodm.protocols.lwm2m.places import HTTP_PATH
from openiodm.protocols.lwm2m.upgrades import Upgrades
from openiodm.protocols.port import File, PackageAway

log = structlog.get_logger(__name__)


class PackageSite:
    """The ASGI application of `/lwm2m/...`. `find` gives the client of a seed.

    It needs no CoAP port in this process: the server may be one of several, and another may have the ports.
    """

    def __init__(
        self,
        find: Callable[[bytes], Awaitable[Client | None]],
        upgrades: Upgrades,
        downloads: Downloads,
        trusted_proxies: frozenset[str],
    ) -> None:
        self._find = find
        self._upgrades = upgrades
        self._downloads = downloads
        self._trusted_proxies = trusted_proxies

    @staticmethod
    def serves(path: str) -> bool:
        """Is it a path of this site?"""
        return path.startswith(HTTP_PATH)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request: the package of the open attempt, whole or in ranges, or 404."""
        if scope["method"] not in ("GET", "HEAD"):
            await _empty(send, 405, [(b"allow", b"GET, HEAD")])
            return
        found = package_of(scope["path"].removeprefix(HTTP_PATH))
        client = None if found is None else await self._find(found[0])
        file = None if found is None or client is None else await self._open(client, found[1])
        if found is None or client is None or file is None:
            await _empty(send, 404)
            return
        await self._send(scope, receive, send, client, found[1], file)

    async def _open(self, client: Client, action_id: int) -> File | None:
        """The package, if the attempt may have it now; the begin of a download is committed before its first byte."""
        if not await self._allowed(client, action_id):
            return None
        unfinished = client.unfinished
        assert unfinished is not None
        if unfinished.standing.state is UpgradeState.OFFERED:
            begun = Progress(action_id, LogEntry("lwm2m", ("fetches over HTTP",)), UpgradeEvent.DOWNLOAD_STARTED)
            await self._upgrades.signal(client, [begun])
        return unfinished.file if await self._allowed(client, action_id) else None

    async def _allowed(self, client: Client, action_id: int) -> bool:
        await self._upgrades.look(client)
        unfinished = client.unfinished
        return (
            unfinished is not None and unfinished.standing.action_id == action_id and offers_bytes(unfinished.standing)
        )

    async def _send(
        self, scope: Scope, receive: Receive, send: Send, client: Client, action_id: int, file: File
    ) -> None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        plan = ranges.plan(headers, file.size, f'"{file.sha1}"', file.stored_at, method=scope["method"])

        async def still_allowed() -> bool:
            return await self._allowed(client, action_id)

        asked = Asked(scope["method"], headers, peer_of(scope) in self._trusted_proxies, receive, send)
        try:
            await self._downloads.send(asked, file.sha256, plan, {}, still_allowed)
        except FileNotFoundError:
            log.error("package_file_missing", file_id=file.file_id, sha256=file.sha256)
            await _empty(send, 404)
        except PackageAway as error:
            log.error("package_away", sha256=file.sha256, error=str(error))
            await _empty(send, 503)


async def _empty(send: Send, status: int, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [*(headers or []), (b"content-length", b"0")]}
    )
    await send({"type": "http.response.body", "body": b""})
