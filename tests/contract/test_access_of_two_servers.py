"""Applications, tokens and authorizations on two servers on one PostgreSQL: neither remembers anything alone."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from openiodm.access.model import Login
from openiodm.errors import Refusal
from openiodm.front import Front
from openiodm.rooms import Rooms, open_rooms
from openiodm.settings import load
from tests.conftest import ManualClock
from tests.support.server import BASE, World, build_world

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

DEVICES = "/iocm/app/dm/v1.4.0/devices"


class Two:
    """`world` is one server, `rooms` and `http` are the other."""

    def __init__(self, world: World, rooms: Rooms, http: httpx.AsyncClient) -> None:
        self.world = world
        self.rooms = rooms
        self.http = http

    async def statuses(self, token: str, **query: str) -> set[int]:
        """What both servers answer to the token."""
        headers = {"app_key": self.world.app_id, "Authorization": f"Bearer {token}"}
        params = {"pageNo": "0", **query}
        answers = [await http.get(DEVICES, headers=headers, params=params) for http in (self.world.http, self.http)]
        return {answer.status_code for answer in answers}


@pytest.fixture
async def two(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Two]:
    settings = load(environ={}, database=database_url, data_dir=str(tmp_path / "b"))
    async with build_world(database_url, tmp_path / "a", clock) as world, open_rooms(settings, clock=clock) as rooms:
        transport = httpx.ASGITransport(Front(rooms, applications=True, devices=True))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
            yield Two(world, rooms, http)


async def test_a_token_of_one_server_is_good_on_the_other_until_either_issues_a_newer_one(two: Two) -> None:
    first = await two.world.rooms.access.login(two.world.app_id, two.world.secret)
    assert await two.statuses(first.access_token) == {200}
    second = await two.rooms.access.login(two.world.app_id, two.world.secret)
    assert await two.statuses(first.access_token) == {403}
    assert await two.statuses(second.access_token) == {200}
    await two.world.rooms.access.logout(second.access_token)
    assert await two.statuses(second.access_token) == {403}


async def test_of_servers_that_start_at_once_on_an_empty_database_one_makes_the_first_application(
    database_url: str, tmp_path: Path
) -> None:
    folders = [load(environ={}, database=database_url, data_dir=str(tmp_path / n)) for n in ("a", "b", "c")]
    async with open_rooms(folders[0]) as a, open_rooms(folders[1]) as b, open_rooms(folders[2]) as c:
        made = await asyncio.gather(*(rooms.access.create_first_application("default") for rooms in (a, b, c) * 3))
        (credentials,) = [one for one in made if one is not None]
        (application,) = await b.access_queries.applications()
        assert application.app_id == credentials.app_id
        await c.access.login(credentials.app_id, credentials.secret)


async def test_of_parallel_logins_on_both_exactly_one_token_stays(two: Two) -> None:
    servers = [two.world.rooms.access, two.rooms.access] * 6
    logins = await asyncio.gather(*(s.login(two.world.app_id, two.world.secret) for s in servers))
    answers = [await two.statuses(login.access_token) for login in logins]
    assert sorted(answers, key=str) == [{200}] + [{403}] * 11


async def test_a_refresh_token_that_both_are_shown_at_once_is_taken_by_one(two: Two) -> None:
    login = await two.world.rooms.access.login(two.world.app_id, two.world.secret)
    servers = [two.world.rooms.access, two.rooms.access] * 3
    outcomes = await asyncio.gather(
        *(s.refresh(two.world.app_id, two.world.secret, login.refresh_token) for s in servers), return_exceptions=True
    )
    taken = [o for o in outcomes if isinstance(o, Login)]
    assert len(taken) == 1
    assert all(isinstance(o, Refusal) for o in outcomes if o is not taken[0])
    assert await two.statuses(taken[0].access_token) == {200}


async def test_a_freeze_and_a_new_secret_on_one_hold_on_the_other_at_once(two: Two) -> None:
    login = await two.rooms.access.login(two.world.app_id, two.world.secret)
    await two.world.rooms.access.set_frozen(two.world.app_id, frozen=True)
    assert await two.statuses(login.access_token) == {403}
    for http in (two.world.http, two.http):
        refused = await http.get(two.world.ddi("n1"), headers=two.world.gateway)
        assert refused.status_code == 401
    await two.rooms.access.set_frozen(two.world.app_id, frozen=False)
    login = await two.world.rooms.access.login(two.world.app_id, two.world.secret)
    rotated = await two.rooms.access.rotate_secret(two.world.app_id)
    assert await two.statuses(login.access_token) == {403}
    with pytest.raises(Refusal):
        await two.world.rooms.access.login(two.world.app_id, two.world.secret)
    newest = await two.world.rooms.access.login(two.world.app_id, rotated.secret)
    assert await two.statuses(newest.access_token) == {200}


async def test_an_authorization_on_one_holds_on_the_other_until_it_is_revoked(two: Two) -> None:
    owner = await two.rooms.access.create_application("owner")
    actor = (await two.rooms.access_queries.application(owner.app_id)).actor
    token = (await two.world.rooms.access.login(two.world.app_id, two.world.secret)).access_token
    assert await two.statuses(token, appId=owner.app_id) == {403}
    await two.rooms.access.authorize(actor, two.world.app_id)
    assert await two.statuses(token, appId=owner.app_id) == {200}
    await two.world.rooms.access.unauthorize(actor, two.world.app_id)
    assert await two.statuses(token, appId=owner.app_id) == {403}
