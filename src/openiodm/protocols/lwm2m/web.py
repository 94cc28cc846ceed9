"""Packages over HTTP(S), for LwM2M devices that fetch them so: under the same names, and as long, as over CoAP."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
from starlette.types import Receive, Scope, Send

from openiodm.campaigns.model import LogEntry
from openiodm.campaigns.rollout import Progress, offers_bytes
from openiodm.campaigns.states import UpgradeEvent, UpgradeState
from openiodm.protocols import ranges
from openiodm.protocols.download import Downloads
from openiodm.protocols.lwm2m.clients import Client
from openiodm.protocols.lwm2m.files import package_of
from openiodm.protocols.lwm2m.places import HTTP_PATH
from openiodm.protocols.lwm2m.upgrades import Upgrades
from openiodm.protocols.port import File

log = structlog.get_logger(__name__)


class PackageSite:
    """The ASGI application of `/lwm2m/...`. `path_of` gives the file of a SHA-256, `find` the client of a seed.

    It needs no CoAP port in this process: the server may be one of several, and another may have the ports.
    """

    def __init__(
        self, find: Callable[[bytes], Awaitable[Client | None]], upgrades: Upgrades, path_of: Callable[[str], Path]
    ) -> None:
        self._find = find
        self._upgrades = upgrades
        self._path_of = path_of
        self._downloads = Downloads()

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
        raw = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in plan.headers.items()]
        start: dict[str, Any] = {"type": "http.response.start", "status": plan.status, "headers": raw}
        if plan.status not in (200, 206) or scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return

        async def still_allowed() -> bool:
            return await self._allowed(client, action_id)

        try:
            await self._downloads.send(start, plan.pieces, self._path_of(file.sha256), receive, send, still_allowed)
        except FileNotFoundError:
            log.error("package_file_missing", file_id=file.file_id, sha256=file.sha256)
            await _empty(send, 404)


async def _empty(send: Send, status: int, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [*(headers or []), (b"content-length", b"0")]}
    )
    await send({"type": "http.response.body", "body": b""})
