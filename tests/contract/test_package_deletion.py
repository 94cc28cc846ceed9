"""Section 3.2: what keeps a package and what does not, with devices that really fail."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ManualClock
from tests.support.server import World, build_world
from tests.support.things import rows

CATEGORY, OPERATIONS = "/iodm/northbound/v1.5.0/category", "/iodm/northbound/v1.5.0/operations"


@pytest.fixture
async def world(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    async with build_world(database_url, tmp_path, clock) as world:
        yield world


async def fail(world: World, node_id: str) -> None:
    """The device takes what it is offered, and reports a failure."""
    action = (await world.poll(node_id))["_links"]["deploymentBase"]["href"].rpartition("/")[2].partition("?")[0]
    assert await world.feedback(node_id, action, "closed", "failure") == 200
    await world.run_jobs()


async def test_section_3_2_a_package_stays_for_retries_and_a_retry_without_it_says_so(world: World) -> None:
    headers = await world.login()
    (device,) = await world.register("d")
    policy = {"executeType": "now", "retryType": True, "retryTimes": 1}
    body = {"fileId": world.file_id, "targets": {"devices": [device]}, "policy": policy}
    created = await world.http.post(f"{OPERATIONS}/firmwareUpgrade", headers=headers, json=body)
    operation = f"{OPERATIONS}/{created.json()['operationId']}"
    package = f"{CATEGORY}/{world.file_id}"

    async def delete() -> tuple[int, Any]:
        answer = await world.http.delete(package, headers=headers)
        return answer.status_code, answer.json()["error_code"]

    async def task() -> Any:
        return (await world.http.get(operation, headers=headers)).json()

    assert await delete() == (400, "120015")
    await fail(world, "d")
    assert (await task())["status"] == "processing"
    assert await delete() == (400, "120015")
    await fail(world, "d")
    before = await task()
    assert before["status"] == "failed"
    assert await delete() == (400, "120015")
    given_up = await world.http.delete(f"/api/v1/packages/{world.file_id}?giveUpRetries=true", headers=headers)
    assert given_up.status_code == 204
    assert (await world.http.get(package, headers=headers)).json()["error_code"] == "123002"

    kept = await rows(world.rooms.database)
    retry = f"/api/v1/tasks/{created.json()['operationId']}/retry"
    answer = await world.http.post(retry, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (409, "nothing-to-retry")
    assert "package was deleted" in answer.json()["detail"]
    await world.run_jobs()
    assert await rows(world.rooms.database) == kept
    assert await task() == before
    assert before["extendPara"] == {"fileVersion": "V2"}
    assert await world.status(created.json()["operationId"]) == "failed"


async def test_section_3_2_a_task_of_the_deleted_package_is_not_made(world: World) -> None:
    headers = await world.login()
    (device,) = await world.register("d")
    assert (await world.http.delete(f"{CATEGORY}/{world.file_id}", headers=headers)).status_code == 200
    body = {"fileId": world.file_id, "targets": {"devices": [device]}}
    answer = await world.http.post(f"{OPERATIONS}/firmwareUpgrade", headers=headers, json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (404, "123002")
