"""What every drill needs: real servers on one database, an application, its devices and package, and the verdict."""

import copy
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from openiodm.simulator import Behaviour, DeviceProfile, Fleet, Pace, TokenKind, make_profiles
from openiodm.simulator.record import DeviceRecord
from openiodm.storage.open import open_database
from tests.support.laws import broken_laws, lost_reports
from tests.support.process import Northbound, Server, free_port, gateway_token

SEED = 7
REGISTER_WITHIN_S = 300.0
POLLS_PER_SECOND = 400
PROFILE = DeviceProfile("template", attributes={"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"})


def end_within(devices: int) -> float:
    """Seconds that a campaign may take on a machine that has other things to do as well."""
    return 240 + devices / 20


def pace_of(devices: int, *, at_least_s: float = 1.0) -> Pace:
    """A large fleet that waits polls more rarely, so that what is at work gets its turn on the machine they share."""
    return Pace(poll_seconds=max(at_least_s, devices / POLLS_PER_SECOND), backoff_first=0.1, backoff_most=1.0)


@dataclass
class Report:
    """What one drill did and found. `figures` go into the report's table, `wrong` must be empty."""

    name: str
    engine: str
    what: str = ""
    wrong: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class World:
    """Servers that share a database, one application, one package; and the rows behind them."""

    def __init__(self, engine: str, database: str, servers: Sequence[Server], application: dict[str, str]) -> None:
        self.engine = engine
        self.database = database
        self.servers = servers
        self.application = application
        self.token = ""
        self.api: Northbound
        self.http: httpx.AsyncClient

    @property
    def server(self) -> Server:
        """The first one."""
        return self.servers[0]

    def profiles(self, count: int, behaviour: Behaviour | None = None, *, first: int = 0) -> list[DeviceProfile]:
        """Devices `drill-<first>` and on, all with the gateway token."""
        return make_profiles(
            count,
            prefix="drill",
            first=first,
            template=PROFILE,
            token_kind=TokenKind.GATEWAY,
            token=self.token,
            behaviour=behaviour,
        )

    def fleet(self, profiles: Sequence[DeviceProfile], *, within: float, server: Server | None = None) -> Fleet:
        """Devices that make their first poll one after another `within` so many seconds, at one of the servers."""
        url = (server or self.server).url
        return Fleet(url, profiles, seed=SEED, pace=pace_of(len(profiles)), max_connections=48, ramp_seconds=within)

    async def register(self, count: int) -> None:
        """Registers devices by the thousand, and gives the group `drill` all of them."""
        for first in range(0, count, 5000):
            numbers = range(first, min(first + 5000, count))
            lines = "\n".join(
                f'{{"nodeId":"drill-{n:06d}","deviceType":"sensor","model":"m1","manufacturerName":"acme"}}'
                for n in numbers
            )
            headers = {"Content-Type": "application/x-ndjson"}
            await self.api.send("POST", "/api/v1/devices/bulk", content=lines, headers=headers)
        await self.api.create_group("drill", await self.api.device_ids(count))

    async def campaign(self, **policy: Any) -> str:
        """A task for the group `drill`; its operationId."""
        file_id = await self.api.upload("drill.bin", random.Random(SEED).randbytes(20_000))
        targets = {"deviceGroups": ["drill"], "deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
        return await self.api.create_task(file_id, policy=policy or None, **targets)

    async def wrong_rows(self, records: Sequence[DeviceRecord] = ()) -> list[str]:
        """Broken laws in the rows, and results acknowledged by now that are not there; servers may go on meanwhile."""
        said = copy.deepcopy(records)
        database = await open_database(self.database)
        try:
            async with database.snapshot() as rows:
                return [*await broken_laws(rows), *await lost_reports(rows, said)]
        finally:
            await database.close()

    async def rows(self, sql: str, *args: Any) -> list[Any]:
        """A query on the drill's own connection, past every server."""
        database = await open_database(self.database)
        try:
            return list(await database.fetch(sql, *args))
        finally:
            await database.close()


@asynccontextmanager
async def world(engine: str, database: str, folder: Path, *, servers: int = 1, **settings: str) -> AsyncIterator[World]:
    """`servers` real servers on `database`, started, with an application that is logged in; ended at the exit."""
    made = [Server(folder, database, free_port(), log=f"server{n}.log", **settings) for n in range(servers)]
    application = await made[0].cli("app", "create", "drill", "--json")
    here = World(engine, database, made, application)
    here.token = await gateway_token(made[0], application["appId"])
    async with AsyncExitStack() as stack:
        for server in made:
            await server.start()
            stack.push_async_callback(server.end, signal.SIGTERM)
        here.http = await stack.enter_async_context(httpx.AsyncClient(base_url=here.server.url, timeout=60))
        here.api = Northbound(here.http, application["appId"], application["secret"])
        yield here
