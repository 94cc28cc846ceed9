"""A whole server without sockets: every room on a real database, its ASGI application driven by httpx."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from openiodm.access.model import Actor, Product
from openiodm.app import expire_due
from openiodm.campaigns.model import CampaignKind, NewCampaign, Target
from openiodm.front import Front
from openiodm.packages.model import FileType, NewPackage
from openiodm.rooms import Rooms, open_rooms
from openiodm.settings import load
from tests.conftest import ManualClock

PRODUCT = Product("sensor", "m1", "acme")
BASE = "http://server.test"
FIRMWARE = bytes(range(256)) * 400  # 100 KiB
UNLIMITED = {
    "calls_per_minute": 0,
    "native_calls_per_minute": 0,
    "address_requests_per_minute": 0,
    "device_requests_per_minute": 0,
}
"""A clock that is moved by hand gives no turn back, and a slow machine asks more often while it waits."""


@dataclass
class World:
    """One application with a gateway token and a firmware package `V2`."""

    rooms: Rooms
    clock: ManualClock
    http: httpx.AsyncClient
    app_id: str
    secret: str
    gateway_token: str
    actor: Actor
    file_id: str

    def ddi(self, node_id: str, path: str = "", tenant: str = "DEFAULT") -> str:
        return f"/{tenant}/controller/v1/{node_id}{path}"

    @property
    def gateway(self) -> dict[str, str]:
        return {"Authorization": f"GatewayToken {self.gateway_token}"}

    async def login(self) -> dict[str, str]:
        answer = await self.http.post("/iocm/app/sec/v1.1.0/login", data={"appId": self.app_id, "secret": self.secret})
        token = answer.json()["accessToken"]
        return {"app_key": self.app_id, "Authorization": f"Bearer {token}"}

    async def register(self, *node_ids: str) -> list[str]:
        """Devices that make their first contact with the gateway token; their device ids."""
        ids = []
        for node_id in node_ids:
            answer = await self.http.get(self.ddi(node_id), headers=self.gateway)
            assert answer.status_code == 200, answer.text
            found = await self.rooms.device_queries.device_by_node(self.actor, node_id)
            ids.append(found.device.device_id)
        return ids

    async def create_task(self, device_ids: list[str], *, confirmation: bool = False) -> str:
        target = Target(devices=tuple(device_ids))
        asked = NewCampaign(CampaignKind.FIRMWARE, self.file_id, target, confirmation=confirmation)
        return await self.rooms.campaigns.create(self.actor, asked)

    async def poll(self, node_id: str, **kwargs: Any) -> dict[str, Any]:
        answer = await self.http.get(self.ddi(node_id), headers=self.gateway, **kwargs)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def feedback(
        self, node_id: str, action: int | str, execution: str, finished: str = "none", *details: str
    ) -> int:
        answer = await self.http.post(
            self.ddi(node_id, f"/deploymentBase/{action}/feedback"),
            headers=self.gateway,
            json={"status": {"execution": execution, "result": {"finished": finished}, "details": list(details)}},
        )
        return answer.status_code

    async def counters(self, operation_id: str) -> dict[str, int]:
        campaign = await self.rooms.campaign_queries.one(self.actor, operation_id)
        c = campaign.counters
        return {n: getattr(c, n) for n in ("wait", "processing", "success", "fail", "stop", "timeout") if getattr(c, n)}

    async def status(self, operation_id: str) -> str:
        return (await self.rooms.campaign_queries.one(self.actor, operation_id)).status.value

    async def run_jobs(self) -> None:
        """Runs what is due, as the scheduler does, until nothing is."""
        scheduler = self.rooms.scheduler
        while await scheduler.run_due():
            pass
        await expire_due(self.rooms)
        while await scheduler.run_due():
            pass

    def advance(self, seconds: float) -> None:
        self.clock.advance(int(seconds * 1000))


@asynccontextmanager
async def build_world(database_url: str, folder: Path, clock: ManualClock, **settings: Any) -> AsyncIterator[World]:
    """Limits by the minute are off but for those given in `settings`."""
    loaded = load(environ={}, database=database_url, data_dir=str(folder), **(UNLIMITED | settings))
    async with open_rooms(loaded, clock=clock) as rooms:
        application = await rooms.access.create_application("test")
        actor = await _actor(rooms, application.app_id, application.secret)
        _, token = await rooms.access.create_gateway_token(actor, "fleet", PRODUCT)

        async def chunks() -> AsyncIterator[bytes]:
            yield FIRMWARE

        package = await rooms.packages.upload(
            actor,
            NewPackage(
                type=FileType.FIRMWARE,
                name="image.swu",
                version="V2",
                device_type=PRODUCT.device_type,
                model=PRODUCT.model,
                manufacturer_name=PRODUCT.manufacturer_name,
            ),
            chunks(),
        )
        front = Front(rooms, applications=True, devices=True)
        transport = httpx.ASGITransport(front)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
            yield World(rooms, clock, http, application.app_id, application.secret, token, actor, package.file_id)


async def _actor(rooms: Rooms, app_id: str, secret: str) -> Actor:
    login = await rooms.access.login(app_id, secret)
    return await rooms.access_queries.authenticate(app_id, login.access_token)
