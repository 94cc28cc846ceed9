"""A task for a large group, on both engines: accepted at once, expanded and stopped in pieces, exact all the while.

The whole server runs, scheduler included, in the test's own loop: what is answered during an expansion or a sweep is
answered between its pieces. Nothing here measures time.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from openiodm.storage.engine import Database
from tests.conftest import ManualClock
from tests.support.core import DEVICES
from tests.support.laws import broken_laws
from tests.support.server import PRODUCT, World, build_world

LARGE = {"sqlite": 100_000, "postgresql": 30_000}
MIDDLE = {"sqlite": 20_000, "postgresql": 30_000}
OTHERS = 25  # members of another product
CREATE = "/iodm/northbound/v1.5.0/operations/firmwareUpgrade"
TASKS = "/api/v1/tasks"
TARGET = {"deviceType": PRODUCT.device_type, "model": PRODUCT.model, "manufacturerName": PRODUCT.manufacturer_name}


@dataclass
class Fleet:
    """A group "all" of `size` devices of the package's product and `OTHERS` of another one."""

    world: World
    headers: dict[str, str]
    size: int

    @property
    def database(self) -> Database:
        return self.world.rooms.database

    async def call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        await asyncio.sleep(0)  # reads on SQLite never wait, and the server's tasks share this loop
        answer = await self.world.http.request(method, path, headers=self.headers, **kwargs)
        assert answer.status_code < 300, answer.text
        return answer

    async def create(self) -> str:
        body = {"fileId": self.world.file_id, "targets": {"deviceGroups": ["all"], **TARGET}}
        return str((await self.call("POST", CREATE, json=body)).json()["operationId"])

    async def task(self, operation: str) -> Any:
        return (await self.call("GET", f"{TASKS}/{operation}")).json()

    async def exact(self, operation: str) -> dict[str, int]:
        """The counters, which must be the rows."""
        found = (await self.call("GET", f"{TASKS}/{operation}/invariants")).json()
        assert found["exact"], found
        counters: dict[str, int] = found["counters"]
        total = counters.pop("total")
        assert total == sum(counters.values())
        return {"total": total, **{name: n for name, n in counters.items() if n}}

    async def offered(self, node_id: str) -> bool:
        return "deploymentBase" in (await self.world.poll(node_id)).get("_links", {})

    async def until_idle(self, operation: str) -> list[dict[str, int]]:
        """Counters sampled until the server has no work left with the task; in between a stranger polls."""
        samples = [await self.exact(operation)]
        async with asyncio.timeout(120):
            while (await self.task(operation))["work"] != "idle":
                assert not await self.offered("stranger")
                samples.append(await self.exact(operation))
        return [*samples, await self.exact(operation)]


@asynccontextmanager
async def fleet_of(sizes: dict[str, int], database_url: str, folder: Path, clock: ManualClock) -> AsyncIterator[Fleet]:
    async with build_world(database_url, folder, clock) as world:
        fleet = Fleet(world, await world.login(), sizes[world.rooms.database.engine])
        await _fill(fleet)
        await world.poll("stranger")
        await world.rooms.scheduler.start()
        try:
            yield fleet
        finally:
            await world.rooms.scheduler.close()


async def _fill(fleet: Fleet) -> None:
    application = fleet.world.actor.application
    async with fleet.database.transaction() as tx:
        ours = await tx.fetchval("SELECT product_id FROM package")
        other = await tx.fetchval(
            "INSERT INTO product (device_type, model, manufacturer_name) VALUES ('x', 'y', 'z') RETURNING id"
        )
        group = await tx.fetchval(
            "INSERT INTO device_group (group_id, application_id, name, max_devices, device_count, created_at) "
            "VALUES ('g-all', $1, 'all', 0, $2, 0) RETURNING id",
            application,
            fleet.size + OTHERS,
        )
        for start in range(0, fleet.size + OTHERS, 10_000):
            await tx.insert_many(
                DEVICES,
                [
                    (f"id{n}", application, f"n{n}", ours if n < fleet.size else other, "V1", False, False, False,
                     "{}", False, "{}", 0, 0, 0, 0)
                    for n in range(start, min(start + 10_000, fleet.size + OTHERS))
                ],
            )  # fmt: skip
        await tx.execute(
            "INSERT INTO group_member (group_id, device_id, product_id) "
            "SELECT CAST($1 AS bigint), id, product_id FROM device ORDER BY id",
            group,
        )


async def test_a_large_group_is_accepted_at_once_expanded_exactly_and_stopped_exactly(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    async with fleet_of(LARGE, database_url, tmp_path, clock) as fleet:
        size, world = fleet.size, fleet.world

        # The answer does not wait for the group.
        operation = await fleet.create()
        task = await fleet.task(operation)
        assert (task["work"], task["status"]) == ("expanding", "wait")
        assert task["counters"]["total"] < size

        # While it is expanded: others are answered, nobody of the group has a turn, and the group is as it was.
        assert not await fleet.offered("stranger")
        assert not await fleet.offered("n0")
        await fleet.call("DELETE", f"/api/v1/devices/n{size - 1}")
        (late,) = await world.register("late")
        await fleet.call("POST", "/api/v1/groups/g-all/devices", json={"deviceIds": [late]})
        assert (await fleet.task(operation))["counters"]["total"] < size

        samples = await fleet.until_idle(operation)
        totals = [s["total"] for s in samples]
        assert totals == sorted(totals)
        assert all(set(s) <= {"total", "wait"} for s in samples)
        members = size - 1  # the deleted one was skipped, the late one and those of another product do not belong
        assert samples[-1] == {"total": members, "wait": members}
        assert (await fleet.task(operation))["status"] == "wait"
        ordinals = "SELECT count(DISTINCT ordinal), min(ordinal), max(ordinal), count(DISTINCT device_id) FROM upgrade"
        assert tuple(await fleet.database.fetchrow(ordinals) or ()) == (members, 1, members, members)

        # Now they have their turn.
        for node_id in ("n0", "n1", f"n{size // 2}"):
            assert await fleet.offered(node_id)
        assert not await fleet.offered("late")
        assert await fleet.exact(operation) == {"total": members, "wait": members - 3, "processing": 3}

        # A stop is one commit; the sweep comes after it, and nobody is granted in between.
        await fleet.call("POST", f"{TASKS}/{operation}/stop")
        stopped = await fleet.task(operation)
        assert (stopped["status"], stopped["work"]) == ("stop", "sweeping")
        assert stopped["counters"]["wait"] > 0
        assert not await fleet.offered(f"n{size - 2}")
        samples = await fleet.until_idle(operation)
        waiting = [s.get("wait", 0) for s in samples]
        assert waiting == sorted(waiting, reverse=True)
        assert len(set(waiting)) > 2
        assert {s["total"] for s in samples} == {members}
        assert samples[-1] == {"total": members, "processing": 3, "stop": members - 3}

        # Those under way are asked to give up, and do.
        for node_id in ("n0", "n1", f"n{size // 2}"):
            links = (await world.poll(node_id))["_links"]
            action = links["cancelAction"]["href"].rpartition("/")[2]
            done = {"status": {"execution": "closed", "result": {"finished": "success"}, "details": []}}
            path = world.ddi(node_id, f"/cancelAction/{action}/feedback")
            answer = await world.http.post(path, headers=world.gateway, json=done)
            assert answer.status_code == 200
        assert await fleet.exact(operation) == {"total": members, "stop": members}
        final = await fleet.task(operation)
        assert (final["status"], final["work"]) == ("stop", "idle")
        assert await broken_laws(fleet.database) == []


async def test_a_stop_during_the_expansion_ends_both(database_url: str, tmp_path: Path, clock: ManualClock) -> None:
    async with fleet_of(MIDDLE, database_url, tmp_path, clock) as fleet:
        operation = await fleet.create()
        async with asyncio.timeout(30):
            while (await fleet.task(operation))["counters"]["total"] == 0:
                assert not await fleet.offered("stranger")
        await fleet.call("POST", f"{TASKS}/{operation}/stop")
        at_stop = await fleet.task(operation)
        assert at_stop["status"] == "stop"
        assert 0 < at_stop["counters"]["total"] < fleet.size
        samples = await fleet.until_idle(operation)
        assert {s["total"] for s in samples} == {at_stop["counters"]["total"]}  # nobody was added after it
        assert samples[-1] == {"total": samples[0]["total"], "stop": samples[0]["total"]}
        for n in (0, fleet.size - 1):
            assert not await fleet.offered(f"n{n}")
        again = await fleet.create()  # and the group is free for the next task
        assert (await fleet.until_idle(again))[-1] == {"total": fleet.size, "wait": fleet.size}
        assert await broken_laws(fleet.database) == []


async def test_a_second_task_for_the_same_group_conflicts_device_by_device(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    async with fleet_of({"sqlite": 5_000, "postgresql": 12_000}, database_url, tmp_path, clock) as fleet:
        operations = [await fleet.create(), await fleet.create()]  # both expand at the same time
        ends = [(await fleet.until_idle(operation))[-1] for operation in operations]
        assert all(end["total"] == fleet.size for end in ends)
        assert sum(end.get("wait", 0) for end in ends) == fleet.size  # each device is in exactly one of them
        assert sum(end.get("fail", 0) for end in ends) == fleet.size
        reasons = await fleet.database.fetch("SELECT DISTINCT detail FROM upgrade WHERE state = 'fail'")
        assert [tuple(r) for r in reasons] == [("Task Conflict",)]
        assert await broken_laws(fleet.database) == []


@pytest.mark.parametrize("retired", ["device", "group"])
async def test_a_device_that_is_deleted_before_its_turn_is_left_out_and_a_deleted_group_is_not(
    database_url: str, tmp_path: Path, clock: ManualClock, retired: str
) -> None:
    async with fleet_of(MIDDLE, database_url, tmp_path, clock) as fleet:
        operation = await fleet.create()
        path = f"/api/v1/devices/n{fleet.size - 1}" if retired == "device" else "/api/v1/groups/g-all"
        await fleet.call("DELETE", path)
        end = (await fleet.until_idle(operation))[-1]
        assert end == {"total": end["total"], "wait": end["total"]}
        # A deleted device is left out; a deleted group was the target when the task was made, and still is.
        assert end["total"] == fleet.size - (1 if retired == "device" else 0)
        assert await broken_laws(fleet.database) == []
