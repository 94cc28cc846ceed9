"""Flow control as callers meet it: the whole server, as `app` wires it from its settings, on both engines.

`tests/contract/test_access.py` has the bucket itself; here is who is counted, with what, and in which order.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from openiodm.http.routes import Needs
from openiodm.rooms import DatabaseClock
from openiodm.settings import Settings
from tests.conftest import ManualClock
from tests.support.routes import COMPAT, NATIVE
from tests.support.server import World, build_world

LIST = "/iodm/northbound/v1.5.0/operations"
CREATE = f"{LIST}/firmwareUpgrade"
NATIVE_LIST = "/api/v1/tasks"
LOGIN = "/iocm/app/sec/v1.1.0/login"

OK = (200, None)
THROTTLED = (403, "1010009")
DENIED = (403, "1010005")

DEFAULTS = {name: getattr(Settings(), name) for name in ("calls_per_minute", "native_calls_per_minute")}

Build = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def build(database_url: str, tmp_path: Path, clock: ManualClock) -> Build:
    return lambda **settings: build_world(database_url, tmp_path, clock, **settings)


@pytest.fixture
async def world(build: Build) -> AsyncIterator[World]:
    async with build(**DEFAULTS) as built:
        yield built


def said(answer: httpx.Response) -> tuple[int, Any]:
    return answer.status_code, answer.json().get("error_code")


async def another(world: World) -> dict[str, str]:
    """The headers of a second application."""
    made = await world.rooms.access.create_application("another")
    login = await world.rooms.access.login(made.app_id, made.secret)
    return {"app_key": made.app_id, "Authorization": f"Bearer {login.access_token}"}


async def calls(world: World, headers: dict[str, str], count: int, path: str = LIST) -> list[tuple[int, Any]]:
    return [said(await world.http.get(path, headers=headers)) for _ in range(count)]


async def exhaust(world: World, headers: dict[str, str]) -> None:
    assert await calls(world, headers, 100) == [OK] * 100


async def test_a_hundred_calls_of_a_minute_are_answered_and_the_next_is_refused(world: World) -> None:
    headers = await world.login()
    assert await calls(world, headers, 102) == [OK] * 100 + [THROTTLED] * 2


async def test_a_call_comes_back_every_six_hundred_milliseconds(world: World) -> None:
    headers = await world.login()
    await exhaust(world, headers)
    world.clock.advance(599)
    assert await calls(world, headers, 1) == [THROTTLED]
    world.clock.advance(1)
    assert await calls(world, headers, 2) == [OK, THROTTLED]
    world.clock.advance(10 * 60_000)  # a bucket holds a hundred, however long it was left alone
    assert await calls(world, headers, 101) == [OK] * 100 + [THROTTLED]


async def test_a_clock_that_was_an_hour_ahead_shuts_nobody_out_when_it_is_set_right(world: World) -> None:
    world.clock.advance(3_600_000)
    assert await calls(world, await world.login(), 101) == [OK] * 100 + [THROTTLED]
    world.clock.advance(-3_600_000)
    assert await calls(world, await world.login(), 101) == [OK] * 100 + [THROTTLED]


async def test_parallel_calls_are_counted_one_by_one(world: World) -> None:
    headers = await world.login()
    answers = await asyncio.gather(*(world.http.get(LIST, headers=headers) for _ in range(150)))
    assert sorted(map(said, answers), key=repr) == [OK] * 100 + [THROTTLED] * 50


async def test_applications_do_not_share_a_bucket(world: World) -> None:
    await exhaust(world, await world.login())
    assert await calls(world, await another(world), 1) == [OK]


async def test_all_calls_of_the_compatible_api_count_whatever_becomes_of_them(world: World) -> None:
    headers = await world.login()
    refused = [
        await world.http.get(f"{LIST}/none", headers=headers),
        await world.http.get(LIST, params={"pageSize": "0"}, headers=headers),
        await world.http.post(CREATE, content=b"{", headers=headers),
        await world.http.get("/iocm/app/dm/v1.4.0/devices", headers=headers),
    ]
    assert [a.status_code for a in refused] == [404, 400, 400, 400]
    assert await calls(world, headers, 97) == [OK] * 96 + [THROTTLED]


async def test_a_new_login_brings_no_new_bucket(world: World) -> None:
    await exhaust(world, await world.login())
    assert await calls(world, await world.login(), 1) == [THROTTLED]


async def test_logins_and_devices_are_not_counted(build: Build) -> None:
    async with build(calls_per_minute=1, native_calls_per_minute=1) as world:
        for _ in range(5):
            headers = await world.login()
            await world.poll("dev1")
        assert await calls(world, headers, 2) == [OK, THROTTLED]


async def test_credentials_come_first_then_flow_control_then_the_body(world: World) -> None:
    headers = await world.login()
    assert said(await world.http.post(CREATE, content=b"{", headers=headers)) == (400, "120015")
    assert await calls(world, headers, 99) == [OK] * 99
    for content in (b"{", b'{"fileId": "none"}', b"x" * 5_000_000):
        assert said(await world.http.post(CREATE, content=content, headers=headers)) == THROTTLED
    assert said(await world.http.get(LIST, params={"pageSize": "x"}, headers=headers)) == THROTTLED
    assert said(await world.http.get(f"{LIST}/none", headers=headers)) == THROTTLED
    for wrong in ({}, {"app_key": world.app_id}, {**headers, "Authorization": "Bearer none"}):
        assert said(await world.http.post(CREATE, content=b"{", headers=wrong)) == DENIED


async def test_a_refused_call_changes_nothing(world: World) -> None:
    headers = await world.login()
    (device,) = await world.register("dev1")
    await exhaust(world, headers)
    body = {"fileId": world.file_id, "targets": {"devices": [device]}}
    assert said(await world.http.post(CREATE, json=body, headers=headers)) == THROTTLED
    assert await world.rooms.database.fetchval("SELECT count(*) FROM campaign") == 0


async def test_wrong_credentials_use_up_nobodys_calls(world: World) -> None:
    headers = await world.login()
    wrong = {**headers, "Authorization": "Bearer none"}
    assert await calls(world, wrong, 150) == [DENIED] * 150
    assert await calls(world, headers, 1) == [OK]


async def test_the_native_api_is_counted_apart(world: World) -> None:
    headers = await world.login()
    await exhaust(world, headers)
    assert await calls(world, headers, 150, NATIVE_LIST) == [OK] * 150
    assert await calls(world, headers, 1) == [THROTTLED]


async def test_the_native_api_has_its_own_limit_and_says_when_to_come_again(build: Build) -> None:
    async with build(native_calls_per_minute=3) as world:
        headers = await world.login()
        assert await calls(world, headers, 3, NATIVE_LIST) == [OK] * 3
        refused = await world.http.post(NATIVE_LIST, content=b"{", headers=headers)
        assert (refused.status_code, refused.json()["reason"]) == (429, "throttled")
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["retry-after"]) >= 1
        no_token = await world.http.post(NATIVE_LIST, content=b"{")
        assert (no_token.status_code, no_token.json()["reason"]) == (401, "token-invalid")
        assert await calls(world, headers, 1) == [OK]  # of the compatible API
        world.clock.advance(20_000)
        assert await calls(world, headers, 1, NATIVE_LIST) == [OK]


async def test_every_route_that_needs_a_token_is_counted(build: Build) -> None:
    async with build(calls_per_minute=1, native_calls_per_minute=1) as world:
        headers = await world.login()
        assert await calls(world, headers, 1) == [OK]
        assert await calls(world, headers, 1, NATIVE_LIST) == [OK]
        uncounted = []
        for route in (*COMPAT, *NATIVE):
            if route.needs is Needs.NOTHING:
                continue
            path = route.path.replace("{", "").replace("}", "")
            answer = await world.http.request(route.method, path, headers=headers)
            if answer.status_code != 429 and said(answer) != THROTTLED:
                uncounted.append(f"{route.method} {route.path}: {answer.status_code}")
        assert uncounted == []


@pytest.mark.parametrize("per_minute", [1, 7, 250])
async def test_the_limit_is_a_setting(build: Build, per_minute: int) -> None:
    async with build(calls_per_minute=per_minute) as world:
        headers = await world.login()
        assert await calls(world, headers, per_minute + 1) == [OK] * per_minute + [THROTTLED]


async def test_nought_turns_it_off(build: Build) -> None:
    async with build(calls_per_minute=0, native_calls_per_minute=0) as world:
        headers = await world.login()
        assert await calls(world, headers, 300) == [OK] * 300
        assert await calls(world, headers, 300, NATIVE_LIST) == [OK] * 300
        if world.rooms.database.engine == "postgresql":
            assert await world.rooms.database.fetchval("SELECT count(*) FROM flow_control") == 0


async def test_two_servers_on_one_postgresql_share_a_hundred(build: Build, database_url: str, tmp_path: Path) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("a SQLite file has one server")
    async with (
        build(**DEFAULTS) as first,
        build_world(database_url, tmp_path / "second", first.clock, **DEFAULTS) as second,
    ):
        for world in (first, second):  # both tell the database's time; a second between their starts is not meant here
            assert isinstance(world.rooms.clock, DatabaseClock)
            await world.rooms.clock.measure()
        headers = await first.login()
        answers = []
        for turn in range(120):
            answers += await calls((first, second)[turn % 2], headers, 1)
        assert answers == [OK] * 100 + [THROTTLED] * 20
