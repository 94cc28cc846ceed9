"""The access and devices rooms behind the compatible API's real routes, on one database, without the rest."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx

from openiodm.access.commands import AccessCommands
from openiodm.access.flow import MemoryFlow
from openiodm.access.login_limit import LoginLimit
from openiodm.access.model import Actor, TokenLives
from openiodm.access.ports import FlowControl
from openiodm.access.queries import AccessQueries
from openiodm.clock import DAY, HOUR, SECOND, Clock, Instant, Millis
from openiodm.devices.commands import DeviceCommands
from openiodm.devices.groups import GroupCommands
from openiodm.devices.last_seen import LastSeen
from openiodm.devices.model import DeviceKey, Silences
from openiodm.devices.queries import DeviceQueries, GroupQueries
from openiodm.http.routes import Route, api_router
from openiodm.northbound.compat import auth, credentials, devices, groups
from openiodm.northbound.compat.edge import CompatEdge
from openiodm.northbound.compat.guard import CompatGuard
from openiodm.storage.access import AccessReads, AccessRows
from openiodm.storage.audit import AuditRows
from openiodm.storage.device_notices import DeviceNoticeRows
from openiodm.storage.devices import DeviceRows, DeviceStore
from openiodm.storage.engine import Database, Tx
from openiodm.storage.writer import Writer
from tests.support.core import RULES

LIVES = TokenLives(life=HOUR, skew=Millis(60 * SECOND), grace=Millis(0), refresh=DAY)


class MovedClock(Clock, Protocol):
    def advance(self, milliseconds: int) -> None: ...


class Work:
    def __init__(self, tx: Tx) -> None:
        self.access = AccessRows(tx)
        self.audit = AuditRows(tx)
        self.devices = DeviceRows(tx)
        self.device_notices = DeviceNoticeRows(tx, RULES)


class Deletions:
    """Stands for the campaigns room: remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[DeviceKey, Instant]] = []

    async def device_deleted(self, work: Any, device: DeviceKey, now: Instant) -> None:
        assert isinstance(work, Work)
        self.told.append((device, now))

    async def node_id_changed(self, work: Any, device: DeviceKey) -> None:
        assert isinstance(work, Work)


class Server:
    """Everything, wired. `client()` speaks to it over ASGI."""

    def __init__(
        self,
        database: Database,
        clock: MovedClock,
        *,
        flow: FlowControl | None = None,
        lives: TokenLives = LIVES,
        wrong_secrets: int = 0,
        errors_as_4xx: bool = False,
        max_devices: int = 0,
        max_groups: int = 0,
    ) -> None:
        self.database = database
        self.clock = clock
        self.writer = Writer(database, Work)
        self.access = AccessCommands(self.writer, clock, lives, LoginLimit(clock, wrong_secrets))
        self.access_queries = AccessQueries(AccessReads(database), clock)
        self.deletions = Deletions()
        silences = Silences(Millis(25 * HOUR), Millis(49 * HOUR))
        self.devices = DeviceCommands(self.writer, clock, self.deletions, silences, max_devices=max_devices)
        self.store = DeviceStore(database)
        self.device_queries = DeviceQueries(self.store, clock, silences)
        self.groups = GroupCommands(self.writer, clock, max_groups=max_groups)
        self.group_queries = GroupQueries(self.store)
        self.last_seen = LastSeen(self.writer, clock, 3600)
        guard = CompatGuard(self.access_queries, flow or MemoryFlow(clock, 0))
        self.router = api_router(self.routes(), CompatEdge(errors_as_4xx=errors_as_4xx), guard)

    def routes(self) -> Sequence[Route]:
        return [
            *auth.routes(self.access),
            *credentials.routes(self.devices, self.device_queries),
            *devices.routes(self.devices, self.device_queries),
            *groups.routes(self.groups, self.group_queries),
        ]

    def client(self, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.router)
        return httpx.AsyncClient(transport=transport, base_url="https://server", headers=headers)

    async def application(self, name: str = "app") -> "App":
        """A new application, logged in."""
        credentials = await self.access.create_application(name)
        actor = (await self.access_queries.application(credentials.app_id)).actor
        app = App(actor, credentials.secret, self.client(app_key=actor.app_id))
        await self.log_in(app)
        return app

    async def log_in(self, app: "App") -> None:
        """Again, once time has passed."""
        login = await self.access.login(app.app_id, app.secret)
        app.http.headers["Authorization"] = f"Bearer {login.access_token}"


class App:
    """An application as its owner has it: an HTTP client with its headers."""

    def __init__(self, actor: Actor, secret: str, http: httpx.AsyncClient) -> None:
        self.actor = actor
        self.app_id = actor.app_id
        self.secret = secret
        self.http = http

    async def register(self, node_id: str, **body: Any) -> str:
        answer = await self.http.post(credentials.CREDENTIALS, json={"nodeId": node_id, **body})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["deviceId"])

    async def group(self, name: str, device_ids: Sequence[str] = (), **body: Any) -> str:
        answer = await self.http.post(groups.GROUPS, json={"name": name, "deviceIds": list(device_ids), **body})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


@asynccontextmanager
async def serving(database: Database, clock: MovedClock, **options: Any) -> AsyncIterator[Server]:
    """A server whose writer runs."""
    server = Server(database, clock, **options)
    server.writer.start()
    try:
        yield server
    finally:
        await server.writer.close()


def no(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, whose body must be exactly the contract's."""
    body = answer.json()
    assert set(body) == {"error_code", "error_desc"}
    assert answer.headers["content-type"].startswith("application/json")
    assert all(isinstance(value, str) for value in body.values())
    return answer.status_code, body["error_code"]
