"""The eight calls about groups, on both engines, through the contract's own routes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from openiodm.clock import DAY
from openiodm.devices.model import LINGER, BulkRecord, Group, NewDevice, NewGroup, Registered
from openiodm.northbound.compat.devices import DEVICES
from openiodm.northbound.compat.groups import ADD, GROUPS, MEMBERS, REMOVE
from openiodm.storage.engine import Database
from tests.support.compat_server import App, MovedClock, Server, no, serving

FULL, NAME_TAKEN, UNKNOWN = (200, "100601"), (200, "100602"), (200, "100603")
BAD, NO_DEVICE, TOO_MANY = (400, "50400"), (400, "100604"), (400, "100609")


@pytest.fixture
async def server(database: Database, clock: MovedClock) -> AsyncIterator[Server]:
    async with serving(database, clock) as running:
        yield running


@pytest.fixture
async def app(server: Server) -> App:
    return await server.application()


async def devices_of(app: App, number: int) -> list[str]:
    return [await app.register(f"n{i}") for i in range(number)]


async def members_of(app: App, group_id: str, **query: Any) -> tuple[int, list[str]]:
    answer = await app.http.get(MEMBERS, params={"devGroupId": group_id, "pageSize": 1000, **query})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert set(body) == {"totalCount", "pageNo", "pageSize", "deviceIds"}
    return body["totalCount"], body["deviceIds"]


async def change_members(app: App, url: str, group_id: str, device_ids: list[str]) -> Any:
    return await app.http.post(url, json={"devGroupId": group_id, "deviceIds": device_ids})


async def counts_are_exact(database: Database) -> None:
    wrong = await database.fetch(
        "SELECT g.id FROM device_group g WHERE g.deleted_at IS NULL AND g.device_count <> "
        "(SELECT count(*) FROM group_member m WHERE m.group_id = g.id)"
    )
    assert list(wrong) == []


async def test_a_group_is_created_with_its_first_members(app: App) -> None:
    ids = await devices_of(app, 2)
    body = {"name": "Meters1", "description": "d", "maxDevNum": 5, "deviceIds": [*ids, ids[0]]}
    answer = await app.http.post(GROUPS, json=body)
    group = answer.json()
    assert answer.status_code == 201
    group_id = group.pop("id")
    assert group == {
        "name": "Meters1",
        "description": "d",
        "appId": app.app_id,
        "maxDevNum": 5,
        "curDevNum": 2,
        "deviceIds": ids,
    }
    assert await members_of(app, group_id) == (2, ids[::-1])
    one = (await app.http.get(f"{GROUPS}/{group_id}")).json()
    assert set(one) == {"name", "description", "id", "appId", "maxDevNum", "curDevNum", "creator"}
    assert (one["id"], one["curDevNum"]) == (group_id, 2)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": "two words"},
        {"name": "line\n"},
        {"name": "x" * 51},
        {"name": "g", "description": "x" * 1025},
        {"name": "g", "maxDevNum": -1},
        {"name": "g", "maxDevNum": 2**31},
        {"name": "g", "deviceIds": "n"},
    ],
)
async def test_a_bad_group_is_refused_and_leaves_nothing(app: App, database: Database, body: Any) -> None:
    assert no(await app.http.post(GROUPS, json=body)) == BAD
    assert await database.fetchval("SELECT count(*) FROM device_group") == 0


async def test_a_name_is_unique_within_the_application(server: Server, app: App) -> None:
    other = await server.application()
    group_id = await app.group("g1")
    assert no(await app.http.post(GROUPS, json={"name": "g1"})) == NAME_TAKEN
    await other.group("g1")
    second = await app.group("g2")
    assert no(await app.http.put(f"{GROUPS}/{second}", json={"name": "g1"})) == NAME_TAKEN
    assert (await app.http.delete(f"{GROUPS}/{group_id}")).status_code == 200
    assert (await app.http.put(f"{GROUPS}/{second}", json={"name": "g1"})).json()["name"] == "g1"


async def test_modify_answers_the_group_after_it(app: App) -> None:
    group_id = await app.group("g1", description="old", maxDevNum=3)
    answer = await app.http.put(f"{GROUPS}/{group_id}", json={"description": "new", "name": None})
    assert answer.status_code == 200
    after = answer.json()
    assert (after["name"], after["description"], after["maxDevNum"]) == ("g1", "new", 3)
    assert after == (await app.http.get(f"{GROUPS}/{group_id}")).json()


async def test_a_limit_holds_and_may_not_fall_below_what_is_in(app: App) -> None:
    a, b, c = await devices_of(app, 3)
    group_id = await app.group("g1", [a], maxDevNum=2)
    assert no(await change_members(app, ADD, group_id, [b, c])) == FULL
    assert await members_of(app, group_id) == (1, [a])
    assert (await change_members(app, ADD, group_id, [a, b])).status_code == 200
    assert no(await app.http.put(f"{GROUPS}/{group_id}", json={"maxDevNum": 1})) == FULL
    assert (await app.http.put(f"{GROUPS}/{group_id}", json={"maxDevNum": 0})).status_code == 200
    assert (await change_members(app, ADD, group_id, [c])).status_code == 200
    assert no(await app.http.post(GROUPS, json={"name": "g2", "maxDevNum": 1, "deviceIds": [a, b]})) == TOO_MANY
    assert (await app.http.get(GROUPS)).json()["totalCount"] == 1
    assert no(await app.http.get(f"{GROUPS}/g2")) == UNKNOWN


async def test_section_5_5_an_unknown_device_makes_no_group(app: App, database: Database) -> None:
    (a,) = await devices_of(app, 1)
    assert no(await app.http.post(GROUPS, json={"name": "g", "deviceIds": [a, "nobody"]})) == NO_DEVICE
    assert await database.fetchval("SELECT count(*) FROM device_group") == 0


async def test_adding_is_all_or_nothing_and_repeats_change_nothing(app: App, database: Database) -> None:
    a, b = await devices_of(app, 2)
    group_id = await app.group("g1")
    assert no(await change_members(app, ADD, group_id, [a, "nobody"])) == NO_DEVICE
    assert await members_of(app, group_id) == (0, [])
    for _ in range(2):
        answer = await change_members(app, ADD, group_id, [a, b])
        assert (answer.status_code, answer.json()) == (200, {"devGroupId": group_id, "deviceIds": [a, b]})
        assert await members_of(app, group_id) == (2, [b, a])
    assert no(await change_members(app, ADD, group_id, ["x"] * 1001)) == TOO_MANY
    assert no(await change_members(app, REMOVE, group_id, ["x"] * 1001)) == TOO_MANY
    await counts_are_exact(database)


async def test_a_thousand_devices_are_added_by_one_call(server: Server, app: App, database: Database) -> None:
    async def records() -> AsyncIterator[BulkRecord]:
        for i in range(1000):
            yield BulkRecord(i, NewDevice(f"n{i}"))

    results = [r.outcome async for r in server.devices.register_many(app.actor, records())]
    ids = [r.device_id for r in results if isinstance(r, Registered)]
    group_id = await app.group("g1")
    assert (await change_members(app, ADD, group_id, ids)).status_code == 200
    assert await members_of(app, group_id, pageNo=1, pageSize=300) == (1000, ids[::-1][300:600])
    await counts_are_exact(database)


async def test_removing_takes_out_those_that_are_in(app: App, database: Database) -> None:
    a, b = await devices_of(app, 2)
    group_id = await app.group("g1", [a, b])
    answer = await change_members(app, REMOVE, group_id, [a, "nobody"])
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == "application/json"
    assert (await change_members(app, REMOVE, group_id, [a])).status_code == 200
    assert await members_of(app, group_id) == (1, [b])
    await counts_are_exact(database)


async def test_a_device_may_be_in_many_groups_and_leaves_them_all_when_deleted(app: App, database: Database) -> None:
    a, b = await devices_of(app, 2)
    groups = [await app.group(f"g{i}", [a, b]) for i in range(3)]
    await app.http.delete(f"{DEVICES}/{a}")
    for group_id in groups:
        assert await members_of(app, group_id) == (1, [b])
    await counts_are_exact(database)


async def test_a_deleted_group_is_gone_and_its_member_rows_go_later(
    server: Server, app: App, database: Database, clock: MovedClock
) -> None:
    (a,) = await devices_of(app, 1)
    group_id = await app.group("g1", [a])
    kept = await app.group("g2", [a])
    answer = await app.http.delete(f"{GROUPS}/{group_id}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert no(await app.http.get(f"{GROUPS}/{group_id}")) == UNKNOWN
    assert no(await app.http.delete(f"{GROUPS}/{group_id}")) == UNKNOWN
    assert no(await change_members(app, ADD, group_id, [a])) == UNKNOWN
    assert no(await change_members(app, REMOVE, group_id, [a])) == UNKNOWN
    assert no(await app.http.get(MEMBERS, params={"devGroupId": group_id})) == UNKNOWN
    assert await server.groups.sweep_deleted() == 0
    assert LINGER == DAY
    clock.advance(LINGER)
    assert await server.groups.sweep_deleted() == 1
    await server.log_in(app)
    assert await members_of(app, kept) == (1, [a])
    assert await database.fetchval("SELECT count(*) FROM group_member") == 1


async def test_the_list_of_groups_is_paged_one_by_one_unless_asked(app: App) -> None:
    ids = [await app.group(f"g{i}") for i in range(3)]
    first = (await app.http.get(GROUPS)).json()
    assert {k: first[k] for k in ("totalCount", "pageNo", "pageSize")} == {
        "totalCount": 3,
        "pageNo": 0,
        "pageSize": 1,
    }
    assert [g["id"] for g in first["list"]] == [ids[2]]
    rest = (await app.http.get(GROUPS, params={"pageNo": 1, "pageSize": 2})).json()
    assert [g["id"] for g in rest["list"]] == [ids[0]]
    named = (await app.http.get(GROUPS, params={"name": "g1"})).json()
    assert (named["totalCount"], [g["id"] for g in named["list"]]) == (1, [ids[1]])
    none = (await app.http.get(GROUPS, params={"name": "g9"})).json()
    assert (none["totalCount"], none["list"]) == (0, [])


@pytest.mark.parametrize("query", [{"pageSize": 0}, {"pageSize": 501}, {"pageNo": "x"}, {"name": "x" * 257}])
async def test_a_bad_query_of_the_group_list_is_refused(app: App, query: Any) -> None:
    assert no(await app.http.get(GROUPS, params=query)) == BAD


@pytest.mark.parametrize(
    "query", [{}, {"devGroupId": ""}, {"devGroupId": "x" * 51}, {"devGroupId": "g", "pageSize": 1001}]
)
async def test_a_bad_query_of_the_member_list_is_refused(app: App, query: Any) -> None:
    assert no(await app.http.get(MEMBERS, params=query)) == BAD


async def test_errors_come_as_4xx_where_that_is_set(database: Database, clock: MovedClock) -> None:
    async with serving(database, clock, errors_as_4xx=True) as server:
        app = await server.application()
        group_id = await app.group("g1", maxDevNum=1)
        assert no(await app.http.get(f"{GROUPS}/nothing")) == (404, "100603")
        assert no(await app.http.post(GROUPS, json={"name": "g1"})) == (409, "100602")
        ids = await devices_of(app, 2)
        assert no(await change_members(app, ADD, group_id, ids)) == (409, "100601")


async def test_an_application_sees_and_changes_only_its_own_groups(server: Server, app: App) -> None:
    """Law 8, on all eight calls, and for devices of others in one's own group."""
    stranger = await server.application()
    (a,) = await devices_of(app, 1)
    theirs = await app.group("g1", [a])
    own = await stranger.group("g1")
    for method, url, body in (
        ("GET", f"{GROUPS}/{theirs}", None),
        ("PUT", f"{GROUPS}/{theirs}", {"name": "mine"}),
        ("DELETE", f"{GROUPS}/{theirs}", None),
        ("GET", f"{MEMBERS}?devGroupId={theirs}", None),
        ("POST", ADD, {"devGroupId": theirs, "deviceIds": []}),
        ("POST", REMOVE, {"devGroupId": theirs, "deviceIds": [a]}),
    ):
        assert no(await stranger.http.request(method, url, json=body)) == UNKNOWN, (method, url)
    assert (await stranger.http.get(GROUPS)).json()["totalCount"] == 1
    assert no(await change_members(stranger, ADD, own, [a])) == NO_DEVICE
    assert no(await stranger.http.post(GROUPS, json={"name": "g2", "deviceIds": [a]})) == NO_DEVICE
    assert (await change_members(stranger, REMOVE, own, [a])).status_code == 200
    assert no(await stranger.http.get(GROUPS, params={"accessAppId": app.app_id})) == (403, "100217")
    assert no(await stranger.http.post(GROUPS, json={"name": "g3", "appId": app.app_id})) == (403, "100217")
    assert await members_of(app, theirs) == (1, [a])


async def test_counts_stay_exact_while_servers_add_remove_and_delete(database: Database, clock: MovedClock) -> None:
    async with serving(database, clock) as one, serving(database, clock) as two:
        servers = (one, two) if database.engine == "postgresql" else (one, one)
        app = await one.application()
        ids = await devices_of(app, 30)
        groups = [await app.group(f"g{i}") for i in range(3)]

        async def quietly(command: Any) -> None:
            # Two servers may meet in a deadlock that PostgreSQL breaks, or find a device gone: both are answers.
            await asyncio.gather(command, return_exceptions=True)

        work = []
        for i, device_id in enumerate(ids):
            for j, group_id in enumerate(groups):
                commands = servers[(i + j) % 2].groups
                work.append(quietly(commands.add(app.actor, group_id, [device_id])))
                if (i + j) % 3 == 0:
                    work.append(quietly(commands.remove(app.actor, group_id, [device_id])))
            if i % 2:
                work.append(quietly(servers[i // 2 % 2].devices.delete(app.actor, device_id)))
        await asyncio.gather(*work)
        await counts_are_exact(database)
        ghosts = (
            "SELECT count(*) FROM group_member m JOIN device d ON d.id = m.device_id WHERE d.deleted_at IS NOT NULL"
        )
        assert await database.fetchval(ghosts) == 0


async def test_section_5_5_concurrent_adds_never_exceed_max_dev_num(database: Database, clock: MovedClock) -> None:
    async with serving(database, clock) as one, serving(database, clock) as two:
        servers = (one, two) if database.engine == "postgresql" else (one, one)
        app = await one.application()
        ids = await devices_of(app, 24)
        group_id = await app.group("g", maxDevNum=10)

        async def add(i: int) -> int:
            async with servers[i % 2].client(**app.http.headers) as http:
                body = {"devGroupId": group_id, "deviceIds": ids[i * 2 : i * 2 + 3]}  # each device twice
                answer = await http.post(ADD, json=body)
            assert answer.status_code == 200
            code = answer.json().get("error_code")
            assert code in (None, "100601")
            return code is None

        done = await asyncio.gather(*(add(i) for i in range(11)))
        number, members = await members_of(app, group_id)
        assert number == len(members) == len(set(members)) <= 10
        assert sum(done) >= 3
        await counts_are_exact(database)


async def test_section_5_5_an_application_has_no_more_groups_than_it_may(database: Database, clock: MovedClock) -> None:
    async with serving(database, clock, max_groups=2) as server:
        app, other = await server.application(), await server.application()
        first = await app.group("g1")
        await app.group("g2")
        assert no(await app.http.post(GROUPS, json={"name": "g3"})) == (200, "100607")
        await other.group("g3")
        assert (await app.http.put(f"{GROUPS}/{first}", json={"name": "g4"})).status_code == 200
        await app.http.delete(f"{GROUPS}/{first}")
        await app.group("g3")
    async with serving(database, clock, max_groups=2, errors_as_4xx=True) as server:
        await server.log_in(app)
        async with server.client(**app.http.headers) as http:
            assert no(await http.post(GROUPS, json={"name": "g9"})) == (409, "100607")


async def test_section_5_5_groups_made_at_the_same_time_keep_to_the_limit(
    database: Database, clock: MovedClock
) -> None:
    async with serving(database, clock, max_groups=5) as one, serving(database, clock, max_groups=5) as two:
        servers = (one, two) if database.engine == "postgresql" else (one, one)
        actor = (await one.application()).actor
        made = await asyncio.gather(
            *(servers[i % 2].groups.create(actor, NewGroup(f"g{i}")) for i in range(12)), return_exceptions=True
        )
        assert sum(isinstance(each, Group) for each in made) == 5
        assert await database.fetchval("SELECT count(*) FROM device_group") == 5


async def test_section_5_5_an_unknown_device_is_refused_at_add_and_passed_over_at_remove(app: App) -> None:
    (a,) = await devices_of(app, 1)
    group_id = await app.group("g", [a])
    gone = await app.register("gone")
    await app.http.delete(f"{DEVICES}/{gone}")
    assert no(await change_members(app, ADD, group_id, [gone])) == NO_DEVICE
    assert no(await change_members(app, ADD, group_id, ["\U0001f600"])) == NO_DEVICE
    assert (await change_members(app, REMOVE, group_id, [gone])).status_code == 200
    assert await members_of(app, group_id) == (1, [a])


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"devGroupId": "g"},
        {"deviceIds": ["d"]},
        {"devGroupId": "", "deviceIds": []},
        {"devGroupId": "g", "deviceIds": "d"},
        {"devGroupId": "g", "deviceIds": [1]},
        {"devGroupId": "g", "deviceIds": [None]},
        {"devGroupId": "g", "deviceIds": ["x" * 257]},
        {"devGroupId": 5, "deviceIds": []},
        [],
    ],
)
async def test_section_5_5_a_malformed_change_of_members_is_refused(app: App, body: Any) -> None:
    for url in (ADD, REMOVE):
        assert no(await app.http.post(url, json=body)) == BAD


async def test_section_5_5_members_are_paged_by_ten_unless_asked(app: App) -> None:
    ids = await devices_of(app, 12)
    group_id = await app.group("g", ids)
    page = (await app.http.get(MEMBERS, params={"devGroupId": group_id})).json()
    assert (page["totalCount"], page["pageNo"], page["pageSize"]) == (12, 0, 10)
    assert page["deviceIds"] == ids[::-1][:10]
    past = (await app.http.get(MEMBERS, params={"devGroupId": group_id, "pageNo": 9})).json()
    assert (past["totalCount"], past["deviceIds"]) == (12, [])
