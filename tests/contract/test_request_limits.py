"""Limits of addresses and devices as peers meet them: the whole server, as its settings have it, on both engines.

`tests/unit/test_request_limit.py` has who is counted with whom; here is what they are answered, and what it may cost.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from openiodm.app import clean_up
from openiodm.protocols.coap.codec import Code, Option
from tests.conftest import ManualClock
from tests.support.lwm2m import ask, build_field
from tests.support.server import BASE, FIRMWARE, World, build_world

TASKS = "/iodm/northbound/v1.5.0/operations"
HERE = {"X-Forwarded-For": "203.0.113.1"}
THERE = {"X-Forwarded-For": "203.0.113.2"}

Build = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def build(database_url: str, tmp_path: Path, clock: ManualClock) -> Build:
    return lambda **settings: build_world(database_url, tmp_path, clock, trusted_proxies=("127.0.0.1",), **settings)


async def polled(world: World, node_id: str, came: dict[str, str] = HERE, **headers: str) -> httpx.Response:
    return await world.http.get(world.ddi(node_id), headers={**world.gateway, **came, **headers})


async def until_refused(world: World, node_id: str, came: dict[str, str] = HERE) -> int:
    """Polls until the first 429; how many were answered before."""
    count = 0
    while (answer := await polled(world, node_id, came)).status_code != 429:
        assert answer.status_code == 200
        count += 1
    return count


@pytest.fixture
async def floods(build: Build) -> AsyncIterator[World]:
    """A device that may ask 300 times a minute has done so, in the middle of its upgrade."""
    async with build(device_requests_per_minute=300) as world:
        (device,) = await world.register("dev1")
        await world.create_task([device])
        assert "deploymentBase" in (await world.poll("dev1"))["_links"]
        await until_refused(world, "dev1")
        yield world


async def test_a_device_beyond_its_limit_is_told_when_to_come_again_and_the_next_one_is_served(build: Build) -> None:
    async with build(device_requests_per_minute=60) as world:
        await world.register("dev1", "dev2")
        assert await until_refused(world, "dev1") == 59  # the first contact was one
        answer = await polled(world, "dev1")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert answer.json()["message"] == "too many requests of this device"
        assert (await polled(world, "dev2")).status_code == 200
        world.advance(1)
        assert [(await polled(world, "dev1")).status_code for _ in range(2)] == [200, 429]


async def test_a_refused_request_costs_no_statement(floods: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def statement(*_args: Any) -> None:
        raise AssertionError("the database was asked")

    for name in ("fetch", "fetchrow", "fetchval"):
        monkeypatch.setattr(floods.rooms.database, name, statement)
    assert (await polled(floods, "dev1")).status_code == 429


async def test_a_report_of_a_device_beyond_its_limit_waits_its_turn_and_counts(floods: World) -> None:
    assert await floods.feedback("dev1", 1, "closed", "failure") == 200
    assert (await polled(floods, "dev1")).status_code == 429
    operations = (await floods.http.get(TASKS, headers=await floods.login())).json()["data"]
    assert operations[0]["staResult"]["fail"] == 1


async def test_a_download_of_a_device_beyond_its_limit_goes_on(floods: World) -> None:
    floods.advance(1)  # a few turns, for the offer
    offer = await floods.http.get(floods.ddi("dev1", "/deploymentBase/1"), headers=floods.gateway)
    (artifact,) = offer.json()["deployment"]["chunks"][0]["artifacts"]
    href = str(artifact["_links"]["download-http"]["href"]).removeprefix(BASE)
    await until_refused(floods, "dev1")
    pieces = []
    for start in range(0, len(FIRMWARE), 10_240):
        piece = {"Range": f"bytes={start}-{start + 10_239}"}
        answer = await floods.http.get(href, headers={**floods.gateway, **piece})
        assert answer.status_code == 206
        pieces.append(answer.content)
    assert b"".join(pieces) == FIRMWARE


async def test_an_address_beyond_its_limit_is_refused_by_every_api_in_its_own_words(build: Build) -> None:
    async with build(address_requests_per_minute=60) as world:
        await world.register("dev1")
        headers = await world.login()
        for _ in range(10):  # what a quiet address has in advance, and no token is needed to use it up
            assert (await world.http.get(TASKS, headers=HERE)).json()["error_code"] == "1010005"
        compat = await world.http.get(TASKS, headers={**headers, **HERE})
        assert (compat.status_code, compat.json()["error_code"]) == (403, "1010009")
        native = await world.http.get("/api/v1/tasks", headers={**headers, **HERE})
        assert (native.status_code, native.json()["reason"]) == (429, "throttled")
        assert native.headers["retry-after"] == "1"
        login = await world.http.post("/iocm/app/sec/v1.1.0/login", headers=HERE)
        assert login.json()["error_code"] == "1010009"
        poll = await polled(world, "dev2")
        assert (poll.status_code, poll.headers["retry-after"]) == (429, "1")
        assert poll.json()["message"] == "too many requests from this address"
        for path in ("/healthz", "/readyz"):
            assert (await world.http.get(path, headers=HERE)).status_code == 200
        assert (await polled(world, "dev2", THERE)).status_code == 200
        assert (await world.http.get(TASKS, headers={**headers, **THERE})).status_code == 200
        world.advance(1)
        assert (await polled(world, "dev2")).status_code == 200


async def test_who_shares_an_address_with_a_flood_still_reports_and_downloads(build: Build) -> None:
    async with build(address_requests_per_minute=60) as world:
        (device,) = await world.register("dev1")
        task = await world.create_task([device])
        assert (await polled(world, "dev1", THERE)).status_code == 200
        while (await world.http.get(TASKS, headers=HERE)).json()["error_code"] != "1010009":
            pass
        assert (await polled(world, "dev1")).status_code == 429
        for execution, finished in (("downloaded", "none"), ("closed", "success")):
            answer = await world.http.post(
                world.ddi("dev1", "/deploymentBase/1/feedback"),
                headers={**world.gateway, **HERE},
                json={"status": {"execution": execution, "result": {"finished": finished}}},
            )
            assert answer.status_code == 200
        assert await world.counters(task) == {"success": 1}


async def test_wrong_credentials_from_an_address_are_looked_at_so_many_times_a_minute(build: Build) -> None:
    async with build(credential_failures_per_minute=3) as world:
        await world.register("dev1")
        wrong = {"Authorization": "TargetToken guess"}
        said = [(await polled(world, f"guess-{n}", HERE, **wrong)).status_code for n in range(5)]
        assert said == [401] * 3 + [429] * 2
        assert (await polled(world, "dev1")).status_code == 200
        assert (await polled(world, "guess", THERE, **wrong)).status_code == 401
        world.advance(20)
        assert (await polled(world, "new")).status_code == 200


async def test_what_was_refused_is_one_line_of_the_log(floods: World) -> None:
    for _ in range(20):
        await polled(floods, "dev1")
    with structlog.testing.capture_logs() as logs:
        await clean_up(floods.rooms)
        await clean_up(floods.rooms)
    assert [line for line in logs if line["event"] == "requests_refused"] == [
        {"event": "requests_refused", "log_level": "warning", "device": 21}
    ]


async def test_however_many_ask_whether_the_server_is_ready_one_look_is_under_way(build: Build) -> None:
    async with build() as world:
        before = world.rooms.writer.items
        answers = await asyncio.gather(*(world.http.get("/readyz") for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        assert world.rooms.writer.items == before + 1
        assert (await world.http.get("/readyz")).status_code == 200
        assert world.rooms.writer.items == before + 2  # and the next one looks anew


async def test_a_step_of_the_clean_up_that_fails_keeps_no_other_back(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with build() as world:
        steps: list[str] = []

        async def fails() -> None:
            raise OSError("a disk that cannot be written")

        async def runs(_keep_days: int) -> None:
            steps.append("subscriptions")

        monkeypatch.setattr(world.rooms.packages, "collect", fails)
        monkeypatch.setattr(world.rooms.subscriptions, "sweep", runs)
        with structlog.testing.capture_logs() as logs:
            await clean_up(world.rooms)
        assert [(line["event"], line["step"]) for line in logs] == [("clean_up_failed", "packages")]
        assert steps == ["subscriptions"]


async def test_without_limits_nobody_is_refused(build: Build) -> None:
    off = {"address_requests_per_minute": 0, "device_requests_per_minute": 0, "credential_failures_per_minute": 0}
    async with build(**off) as world:
        assert {(await polled(world, "dev1")).status_code for _ in range(1000)} == {200}
        wrong = {"Authorization": "TargetToken guess"}
        assert {(await polled(world, "dev1", HERE, **wrong)).status_code for _ in range(1000)} == {401}


async def test_a_lwm2m_peer_beyond_its_limit_is_told_when_to_come_again_and_the_next_one_is_served(
    database_url: str, tmp_path: Path
) -> None:
    """RFC 8516: 4.29, and the seconds in Max-Age."""
    async with build_field(database_url, tmp_path, device_requests_per_minute=2) as field:
        await field.register("n1")
        with ask(field) as first, ask(field) as second:
            assert [(await first("n1")).code for _ in range(2)] == [Code.CREATED] * 2
            refused = await first("n1")
            assert (refused.code, refused.option(Option.MAX_AGE)) == (Code.TOO_MANY_REQUESTS, bytes([30]))
            assert (await second("nobody")).code == Code.FORBIDDEN
            assert (await second("n1")).code == Code.CREATED
