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
from openiodm.protocols.port import PackageAway

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
        if found is None or client is None or not await self._allowed(client, found[1]):
            await _empty(send, 404)
            return
        await self._send(scope, receive, send, client, found[1])

    async def _allowed(self, client: Client, action_id: int) -> bool:
        await self._upgrades.look(client)
        unfinished = client.unfinished
        return (
            unfinished is not None and unfinished.standing.action_id == action_id and offers_bytes(unfinished.standing)
        )

    async def _begins(self, client: Client, action_id: int) -> bool:
        """The begin of a download is committed before its first byte; False when a stop was first."""
        assert client.unfinished is not None
        if client.unfinished.standing.state is not UpgradeState.OFFERED:
            return True
        begun = Progress(action_id, LogEntry("lwm2m", ("fetches over HTTP",)), UpgradeEvent.DOWNLOAD_STARTED)
        await self._upgrades.signal(client, [begun])
        return await self._allowed(client, action_id)

    async def _send(self, scope: Scope, receive: Receive, send: Send, client: Client, action_id: int) -> None:
        assert client.unfinished is not None
        file = client.unfinished.file
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        plan = ranges.plan(headers, file.size, f'"{file.sha1}"', file.stored_at, method=scope["method"])
        sends = plan.status in (200, 206) and scope["method"] == "GET"
        if sends and not await self._begins(client, action_id):
            await _empty(send, 404)
            return

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
