"""One application acts for another that has authorized it (sections 1.1, 1.4, 5.1, 5.5), on every call that can say so.

The calls are walked: a route whose query or body has a member `appId` or `accessAppId` declares it in `acts_for`, and
is then called with its own token and the other's things.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from openiodm.access.model import Actor
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Needs, Route
from tests.conftest import ManualClock
from tests.support.routes import COMPAT, NATIVE, label, members
from tests.support.server import World, build_world
from tests.support.things import API, IOCM, IODM, Request, Things, make_things, own_request, rows

NAMES = {"appId", "accessAppId"}
ACTING = [(route, name) for route in COMPAT for name in route.acts_for]
UNAUTHORIZED, UNKNOWN = (403, "100217"), (403, "100203")
DEVICES = f"{IOCM}/dm/v1.4.0/devices"


@dataclass
class Three:
    """A, who has things; B, who calls; C, whom nobody has authorized."""

    world: World
    a: Things
    b: Things

    async def authorize(self) -> None:
        answer = await self.world.http.put(f"{API}/authorizations/{self.b.app_id}", headers=self.a.headers)
        assert (answer.status_code, answer.content) == (204, b"")

    async def send(self, route: Route, request: Request, name: str, app_id: str) -> httpx.Response:
        """B's call of a route, with `app_id` as the member `name` of its query or body."""
        query, body = dict(request.query), request.body
        if name in members(route.query):
            query[name] = app_id
        else:
            body = {**body, name: app_id}
        path = route.path.format(**request.path)
        return await self.world.http.request(
            route.method, path, params=query, headers=self.b.headers, **({} if body is None else {"json": body})
        )


@pytest.fixture
async def three(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Three]:
    async with build_world(database_url, tmp_path, clock) as world:
        made = await world.rooms.access.create_application("b")
        login = await world.rooms.access.login(made.app_id, made.secret)
        b = Things(made.app_id, {"app_key": made.app_id, "Authorization": f"Bearer {login.access_token}"}, mark="OfB")
        yield Three(world, await make_things(world, world.app_id, await world.login(), "OfA"), b)


def code(answer: httpx.Response) -> tuple[int, str | None]:
    return answer.status_code, answer.json().get("error_code") if answer.content else None


def test_every_member_that_names_an_application_is_declared() -> None:
    for route in (*COMPAT, *NATIVE):
        named = {*members(route.query), *members(route.body)} if route.needs is Needs.APPLICATION else set()
        assert set(route.acts_for) == named & NAMES, label(route)
    assert len(ACTING) > 20


def test_the_calls_about_tasks_and_packages_name_no_application() -> None:
    """Section 3.6 documents no such parameter, nor do its siblings."""
    assert {label(r).split()[1].split("/")[1] for r, _ in ACTING} == {"iocm"}


async def test_section_1_1_an_authorized_application_acts_on_the_others_things(three: Three) -> None:
    await three.authorize()
    wrong = []
    for number, (route, name) in enumerate(ACTING):
        a = await make_things(three.world, three.a.app_id, three.a.headers, f"OfA{number}")
        answer = await three.send(route, own_request(route, a, f"fresh{number}"), name, a.app_id)
        if answer.status_code >= 300 or "error_code" in answer.text:
            wrong.append(f"{label(route)} with {name}: {answer.status_code} {answer.text}")
    assert wrong == []
    owners = await three.world.rooms.database.fetch(
        "SELECT DISTINCT application_id FROM device UNION SELECT application_id FROM device_group"
    )
    assert [row[0] for row in owners] == [three.world.actor.application]


async def test_section_1_4_who_is_not_authorized_is_refused_and_changes_nothing(three: Three) -> None:
    before = await rows(three.world.rooms.database)
    for route, name in ACTING:
        request = own_request(route, three.a, "fresh")
        assert code(await three.send(route, request, name, three.a.app_id)) == UNAUTHORIZED, label(route)
        assert code(await three.send(route, request, name, "0" * 32)) == UNKNOWN, label(route)
    assert await rows(three.world.rooms.database) == before


async def test_an_authorization_is_one_way_and_not_passed_on(three: Three) -> None:
    await three.authorize()
    http = three.world.http
    query = {"pageNo": "0", "appId": three.b.app_id}
    assert code(await http.get(DEVICES, params=query, headers=three.a.headers)) == UNAUTHORIZED
    c = await three.world.rooms.access.create_application("c")
    login = await three.world.rooms.access.login(c.app_id, c.secret)
    of_c = {"app_key": c.app_id, "Authorization": f"Bearer {login.access_token}"}
    assert (await http.put(f"{API}/authorizations/{c.app_id}", headers=three.b.headers)).status_code == 204
    query = {"pageNo": "0", "appId": three.a.app_id}
    assert code(await http.get(DEVICES, params=query, headers=of_c)) == UNAUTHORIZED


async def test_it_ends_with_its_revocation_and_rests_while_the_application_is_frozen(three: Three) -> None:
    world, query = three.world, {"pageNo": "0", "appId": three.a.app_id}

    async def listed() -> tuple[int, str | None]:
        return code(await world.http.get(DEVICES, params=query, headers=three.b.headers))

    await three.authorize()
    assert await listed() == (200, None)
    await world.rooms.access.set_frozen(three.a.app_id, frozen=True)
    assert await listed() == UNAUTHORIZED
    await world.rooms.access.set_frozen(three.a.app_id, frozen=False)
    assert await listed() == (200, None)
    await world.rooms.access.unauthorize(world.actor, three.b.app_id)
    assert await listed() == UNAUTHORIZED


async def test_naming_oneself_is_naming_nobody_and_two_names_must_agree(three: Three) -> None:
    await three.authorize()
    http, groups = three.world.http, f"{IOCM}/devgroup/v1.3.0/devGroups"
    a, b = three.a.app_id, three.b.app_id

    async def total(**query: str) -> Any:
        answer = await http.get(groups, params=query, headers=three.b.headers)
        return answer.json().get("totalCount", code(answer))

    assert await total() == await total(accessAppId=b) == await total(appId=b) == await total(appId="") == 0
    assert await total(accessAppId=a) == await total(accessAppId=a, appId=a) == 1
    assert await total(accessAppId=a, appId=b) == (400, "50400")
    body = {"name": "g1", "appId": b}
    assert code(await http.post(groups, params={"accessAppId": a}, json=body, headers=three.b.headers)) == (
        400,
        "50400",
    )


async def test_the_groups_appid_is_the_owners(three: Three) -> None:
    """Section 5.5: the answer tells whose group it is."""
    await three.authorize()
    http, groups = three.world.http, f"{IOCM}/devgroup/v1.3.0/devGroups"
    made = await http.post(groups, json={"name": "g1", "appId": three.a.app_id}, headers=three.b.headers)
    assert (made.status_code, made.json()["appId"]) == (201, three.a.app_id)
    own = await http.get(groups, params={"name": "g1"}, headers=three.a.headers)
    assert [g["id"] for g in own.json()["list"]] == [made.json()["id"]]


async def test_calls_about_tasks_stay_the_callers_own(three: Three) -> None:
    """Section 3.6 has no appId: it is a parameter that nobody knows, and filters nothing."""
    await three.authorize()
    listed = await three.world.http.get(f"{IODM}/operations", params={"appId": three.a.app_id}, headers=three.b.headers)
    assert (listed.status_code, listed.json()["totalCount"]) == (200, 0)


async def test_flow_control_counts_on_the_caller(database_url: str, tmp_path: Path, clock: ManualClock) -> None:
    async with build_world(database_url, tmp_path, clock, calls_per_minute=2) as world:
        made = await world.rooms.access.create_application("b")
        await world.rooms.access.authorize(world.actor, made.app_id)
        login = await world.rooms.access.login(made.app_id, made.secret)
        b = {"app_key": made.app_id, "Authorization": f"Bearer {login.access_token}"}
        query = {"pageNo": "0", "appId": world.app_id}
        answers = [code(await world.http.get(DEVICES, params=query, headers=b)) for _ in range(3)]
        assert answers == [(200, None), (200, None), (403, "1010009")]
        own = await world.http.get(DEVICES, params={"pageNo": "0"}, headers=await world.login())
        assert own.status_code == 200


async def test_both_sides_list_their_authorizations(three: Three) -> None:
    http, path = three.world.http, f"{API}/authorizations"
    three.world.advance(1)
    await three.authorize()
    await three.authorize()  # a repeat changes nothing

    async def lists(headers: dict[str, str]) -> tuple[list[str], list[str]]:
        body = (await http.get(path, headers=headers)).json()
        return [a["appId"] for a in body["granted"]], [a["appId"] for a in body["received"]]

    assert await lists(three.a.headers) == ([three.a.friend_id, three.b.app_id], [])
    assert await lists(three.b.headers) == ([], [three.a.app_id])
    assert (await http.delete(f"{path}/{three.b.app_id}", headers=three.a.headers)).status_code == 204
    gone = await http.delete(f"{path}/{three.b.app_id}", headers=three.a.headers)
    assert (gone.status_code, gone.json()["reason"]) == (404, "authorization-unknown")
    assert await lists(three.b.headers) == ([], [])
    nobody = await http.put(f"{path}/nobody", headers=three.a.headers)
    assert (nobody.status_code, nobody.json()["reason"]) == (404, "application-unknown")
    itself = await http.put(f"{path}/{three.a.app_id}", headers=three.a.headers)
    assert (itself.status_code, itself.json()["field"]) == (400, "appId")


async def test_the_actor_of_a_command_is_the_owner_and_remembers_the_caller(three: Three) -> None:
    await three.authorize()
    access = three.world.rooms.access_queries
    b = (await access.application(three.b.app_id)).actor
    acting = await access.acting_for(b, three.a.app_id)
    assert acting == Actor(three.world.actor.application, three.a.app_id, three.b.app_id)
    assert await access.acting_for(b, three.b.app_id) is b
    with pytest.raises(Refusal) as refused:
        await access.acting_for(three.world.actor, three.b.app_id)
    assert refused.value.reason is Reason.APPLICATION_UNAUTHORIZED
