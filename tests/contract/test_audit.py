"""The audit trail: every change that somebody asked for leaves its row, in the transaction of the change.

The routes are walked: one that changes something and leaves no row fails here.
"""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from openiodm.access.model import AuditEntry, AuditFilter, AuditPlace
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Route
from openiodm.storage.audit import AuditReads
from openiodm.storage.sqlite import SqliteDatabase
from openiodm.storage.work import Work
from tests.conftest import ManualClock
from tests.support.routes import COMPAT, NATIVE, label
from tests.support.server import PRODUCT as WORLDS_PRODUCT
from tests.support.server import World, build_world
from tests.support.things import API, IOCM, PRODUCT, Request, Things, make_things, own_request

AUTH = f"{IOCM}/sec/v1.1.0"
PEER = "127.0.0.1"  # of httpx' ASGI transport

# What each changing route is called in the trail. A new one fails until it is here.
OPERATION_OF = {
    f"POST {AUTH}/login": "session.login",
    f"POST {AUTH}/refreshToken": "session.refresh",
    f"POST {AUTH}/logout": "session.logout",
    f"POST {IOCM}/reg/v1.1.0/deviceCredentials": "device.register",
    f"PUT {IOCM}/reg/v1.1.0/deviceCredentials/{{deviceId}}": "device.refresh-credentials",
    f"POST {IOCM}/reg/v1.1.0/devices": "device.register",
    f"PUT {IOCM}/reg/v1.1.0/devices/{{deviceId}}": "device.refresh-credentials",
    f"POST {IOCM}/reg/v2.0.0/deviceCredentials": "device.register",
    f"PUT {IOCM}/reg/v2.0.0/deviceCredentials/{{deviceId}}": "device.refresh-secret",
    f"PUT {IOCM}/dm/v1.4.0/devices/{{deviceId}}": "device.modify",
    f"DELETE {IOCM}/dm/v1.4.0/devices/{{deviceId}}": "device.delete",
    f"POST {IOCM}/devgroup/v1.3.0/devGroups": "group.create",
    f"PUT {IOCM}/devgroup/v1.3.0/devGroups/{{devGroupId}}": "group.modify",
    f"DELETE {IOCM}/devgroup/v1.3.0/devGroups/{{devGroupId}}": "group.delete",
    f"POST {IOCM}/dm/v1.1.0/devices/addDevGroupTagToDevices": "group.add-devices",
    f"POST {IOCM}/dm/v1.1.0/devices/deleteDevGroupTagFromDevices": "group.remove-devices",
    "POST /iodm/northbound/v1.5.0/operations/softwareUpgrade": "task.create",
    "POST /iodm/northbound/v1.5.0/operations/firmwareUpgrade": "task.create",
    "DELETE /iodm/northbound/v1.5.0/category/{fileId}": "package.delete",
    "POST /iodm/app/sub/v1.1.0/subscribe": "subscription.create",
    f"POST {IOCM}/sub/v1.2.0/subscriptions": "subscription.create",
    f"DELETE {IOCM}/sub/v1.2.0/subscriptions/{{subscriptionId}}": "subscription.delete",
    f"DELETE {IOCM}/sub/v1.2.0/subscriptions": "subscription.delete-many",
    f"POST {API}/subscriptions/{{subscriptionId}}/replay": "subscription.replay",
    f"POST {API}/notices/{{noticeId}}/replay": "notice.replay",
    f"PUT {API}/application/callbacks/tls": "application.set-callback-tls",
    f"PUT {API}/application/callbacks/signature": "application.set-callback-signature",
    f"POST {API}/packages": "package.upload",
    f"DELETE {API}/packages/{{fileId}}": "package.delete",
    f"POST {API}/devices/bulk": "device.register-many",
    f"POST {API}/devices": "device.register",
    f"DELETE {API}/devices/{{device}}": "device.delete",
    f"PUT {API}/devices/{{device}}/target-token": "device.set-target-token",
    f"DELETE {API}/devices/{{device}}/target-token": "device.remove-target-token",
    f"POST {API}/groups": "group.create",
    f"DELETE {API}/groups/{{group}}": "group.delete",
    f"POST {API}/groups/{{group}}/devices": "group.add-devices",
    f"DELETE {API}/groups/{{group}}/devices": "group.remove-devices",
    f"PUT {API}/application": "application.modify",
    f"POST {API}/gateway-tokens": "gateway-token.create",
    f"DELETE {API}/gateway-tokens/{{tokenId}}": "gateway-token.revoke",
    f"PUT {API}/authorizations/{{appId}}": "application.authorize",
    f"DELETE {API}/authorizations/{{appId}}": "application.unauthorize",
    f"POST {API}/tasks": "task.create",
    f"POST {API}/tasks/{{operationId}}/stop": "task.stop",
    f"POST {API}/tasks/{{operationId}}/retry": "task.retry",
    f"POST {API}/tasks/{{operationId}}/resume": "task.resume",
    f"POST {API}/tasks/{{operationId}}/devices/{{device}}/stop": "task.stop-device",
}


@pytest.fixture
async def world(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    async with build_world(database_url, tmp_path, clock) as built:
        yield built


async def trail(world: World, **wanted: Any) -> Sequence[AuditEntry]:
    """All of it, newest first."""
    return await world.rooms.audit.page(AuditFilter(None, **wanted), None, 100_000)


async def send(world: World, route: Route, request: Request, headers: dict[str, str]) -> httpx.Response:
    return await world.http.request(
        route.method,
        route.path.format(**request.path),
        params=request.query,
        headers=headers,
        **({"content": request.content} if request.content is not None else {}),
        **({"json": request.body} if request.body is not None else {}),
    )


async def session_request(world: World, route: Route, t: Things, fresh: str) -> Request:
    login = await world.rooms.access.login(world.app_id, world.secret)
    t.headers["Authorization"] = f"Bearer {login.access_token}"
    own = {"appId": world.app_id, "secret": world.secret}
    bodies = {
        "login": own,
        "refreshToken": {**own, "refreshToken": login.refresh_token},
        "logout": {"accessToken": login.access_token},
    }
    name = route.path.rpartition("/")[2]
    return Request({}, body=bodies[name]) if name in bodies else own_request(route, t, fresh)


async def test_every_route_that_changes_something_leaves_one_row_that_tells_who_and_what(world: World) -> None:
    wrong = []
    for number, route in enumerate([*COMPAT, *NATIVE]):
        t = await make_things(world, world.app_id, await world.login(), f"Of{number}")
        if "authorizations" in route.path and route.method == "PUT":
            t.friend_id = (await world.rooms.access.create_application("another friend")).app_id
        request = await session_request(world, route, t, f"fresh{number}")
        before = {entry.place for entry in await trail(world)}
        answer = await send(world, route, request, t.headers)
        assert answer.status_code < 300, f"{label(route)}: {answer.status_code} {answer.text}"
        rows = [entry for entry in await trail(world) if entry.place not in before]
        expected = [] if route.method == "GET" else [OPERATION_OF.get(label(route))]
        if [entry.operation for entry in rows] != expected:
            wrong.append(f"{label(route)}: {[entry.operation for entry in rows]}")
        for entry in rows:
            if (entry.app_id, entry.caller, entry.address) != (world.app_id, world.app_id, PEER):
                wrong.append(f"{label(route)}: {entry}")
            if entry.operation != "device.register-many" and (
                not entry.object_id or entry.object_id not in f"{request} {answer.text} {world.app_id} {t.device_id}"
            ):
                wrong.append(f"{label(route)}: whose id is {entry.object_id}?")
    assert wrong == []
    labels = {label(r) for r in (*COMPAT, *NATIVE)}
    assert set(OPERATION_OF) == {name for name in labels if not name.startswith("GET ")}


async def test_no_secret_and_no_token_is_in_any_row(world: World) -> None:
    headers = await world.login()
    t = await make_things(world, world.app_id, headers, "OfA")
    made = await world.http.post(
        f"{IOCM}/reg/v1.1.0/deviceCredentials", headers=headers, json={"nodeId": "n", "psk": "0123456789abcdef"}
    )
    token = await world.http.put(f"{API}/devices/n/target-token", headers=headers, json={})
    rotated = await world.rooms.access.rotate_secret(world.app_id)
    secrets = [
        world.secret,
        rotated.secret,
        world.gateway_token,
        headers["Authorization"].split()[1],
        made.json()["verifyCode"],
        made.json()["psk"],
        token.json()["token"],
        t.others[1],
    ]
    text = str([tuple(row) for row in await world.rooms.database.fetch("SELECT * FROM audit")])
    assert made.json()["deviceId"] in text
    assert [secret for secret in secrets if secret in text] == []


async def test_what_is_done_for_another_application_names_both(world: World) -> None:
    b = await world.rooms.access.create_application("b")
    await world.rooms.access.authorize(world.actor, b.app_id)
    login = await world.rooms.access.login(b.app_id, b.secret)
    headers = {"app_key": b.app_id, "Authorization": f"Bearer {login.access_token}"}
    made = await world.http.post(
        f"{IOCM}/reg/v1.1.0/deviceCredentials", params={"appId": world.app_id}, headers=headers, json={"nodeId": "n"}
    )
    (entry,) = await trail(world, operation="device.register")
    assert (entry.app_id, entry.caller, entry.object_id) == (world.app_id, b.app_id, made.json()["deviceId"])
    own = (await world.http.get(f"{API}/audit", headers=await world.login())).json()["items"]
    assert [(i["caller"], i["operation"]) for i in own if i["operation"] == "device.register"] == [
        (b.app_id, "device.register")
    ]
    of_b = (await world.http.get(f"{API}/audit", headers=headers)).json()["items"]
    assert {i["operation"] for i in of_b} == {"application.create", "session.login"}


async def test_what_is_refused_leaves_no_row(world: World) -> None:
    headers = await world.login()
    t = await make_things(world, world.app_id, headers, "OfA")
    before = await trail(world)
    for method, path, body in (
        ("POST", f"{API}/devices", {"nodeId": t.node_id, **PRODUCT}),
        ("DELETE", f"{API}/packages/{t.file_id}", None),
        ("POST", f"{API}/groups", {"name": t.group_name}),
        ("POST", f"{API}/tasks/{t.operation_id}/retry", None),
        ("DELETE", f"{API}/gateway-tokens/999999", None),
    ):
        refused = await world.http.request(method, path, headers=headers, json=body)
        assert 400 <= refused.status_code < 500, (method, path, refused.text)
    wrong = await world.http.post(f"{AUTH}/login", data={"appId": world.app_id, "secret": "guessed"})
    assert wrong.status_code == 401
    with pytest.raises(Refusal):
        await world.rooms.access.rotate_secret("nobody")
    assert await trail(world) == before


async def test_a_row_goes_with_its_transaction(world: World) -> None:
    """Law 4's other half: there is no row of a change that was rolled back, whenever it was written."""
    before = await trail(world)

    async def refused(work: Work) -> None:
        await work.audit.record(world.actor, "device.delete", "d", world.clock.now())
        raise Refusal(Reason.DEVICE_UNKNOWN)

    with pytest.raises(Refusal):
        await world.rooms.writer.run(refused)
    assert await trail(world) == before


async def test_what_changes_nothing_leaves_no_row(world: World) -> None:
    headers = await world.login()
    friend = (await world.rooms.access.create_application("friend")).app_id
    key = {**headers, "Idempotency-Key": "k"}
    (device,) = await world.register("n1")
    body = {"kind": "firmware_upgrade", "fileId": world.file_id, "targets": {"devices": [device]}}
    for _ in range(2):
        assert (await world.http.put(f"{API}/authorizations/{friend}", headers=headers)).status_code == 204
        assert (await world.http.post(f"{API}/tasks", headers=key, json=body)).status_code in (200, 201)
        assert (await world.http.post(f"{AUTH}/logout", json={"accessToken": "over"})).status_code == 204
    assert len(await trail(world, operation="application.authorize")) == 1
    assert len(await trail(world, operation="task.create")) == 1
    assert await trail(world, operation="session.logout") == []


async def test_what_devices_do_is_not_in_it(world: World) -> None:
    (device,) = await world.register("n1")
    await world.create_task([device])
    before = await trail(world)
    offer = await world.poll("n1")
    action = offer["_links"]["deploymentBase"]["href"].rpartition("/")[2].partition("?")[0]
    assert await world.feedback("n1", action, "closed", "success") == 200
    assert await trail(world) == before
    assert "device.register" not in {entry.operation for entry in before}


async def test_a_bulk_registration_leaves_a_row_for_each_chunk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openiodm.devices.commands.BULK_CHUNK", 3)
    lines = "\n".join(
        f'{{"nodeId":"n{n}","deviceType":"d","model":"m","manufacturerName":"m"}}' for n in (1, 2, 3, 4, 4, 5, 6)
    )
    answer = await world.http.post(f"{API}/devices/bulk", headers=await world.login(), content=lines)
    assert answer.status_code == 200
    rows = await trail(world, operation="device.register-many")
    assert [entry.outcome for entry in rows] == [
        "1 of 1 registered, from n6",
        "2 of 3 registered, from n4",
        "3 of 3 registered, from n1",
    ]


@pytest.mark.parametrize(("trusted", "expected"), [((PEER,), "203.0.113.7"), ((), PEER)])
async def test_the_address_is_the_clients_where_its_proxy_is_trusted(
    database_url: str, tmp_path: Path, clock: ManualClock, trusted: tuple[str, ...], expected: str
) -> None:
    async with build_world(database_url, tmp_path, clock, trusted_proxies=trusted) as world:
        headers = {"X-Forwarded-For": "203.0.113.7"}
        body = {"appId": world.app_id, "secret": world.secret}
        login = await world.http.post(f"{AUTH}/login", data=body, headers=headers)
        headers["Authorization"] = f"Bearer {login.json()['accessToken']}"
        assert (await world.http.put(f"{API}/application", headers=headers, json={})).status_code == 200
        rows = [(e.operation, e.address) for e in (await trail(world))[:2]]
        assert rows == [("application.modify", expected), ("session.login", expected)]


async def test_whoever_runs_the_server_is_named(world: World) -> None:
    access = world.rooms.access
    made = await access.create_application("new", operator="operator:root")
    await access.rotate_secret(made.app_id, operator="operator:root")
    await access.set_frozen(made.app_id, frozen=True)
    await access.set_frozen(made.app_id, frozen=False)
    found = [e for e in await trail(world) if e.app_id == made.app_id]
    assert [(e.operation, e.caller, e.address, e.object_id) for e in reversed(found)] == [
        ("application.create", "operator:root", "", made.app_id),
        ("application.rotate-secret", "operator:root", "", made.app_id),
        ("application.freeze", "operator", "", made.app_id),
        ("application.thaw", "operator", "", made.app_id),
    ]


async def test_the_trail_is_read_page_by_page_and_by_object_operation_and_time(world: World) -> None:
    headers = await world.login()
    ids = []
    for n in range(5):
        world.advance(1)
        for kind in ("a", "b"):  # two within one millisecond
            body = {"nodeId": f"{kind}{n}", **PRODUCT}
            ids.append((await world.http.post(f"{API}/devices", headers=headers, json=body)).json()["deviceId"])

    async def read(**query: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor: dict[str, Any] = {}
        while True:
            answer = await world.http.get(f"{API}/audit", headers=headers, params={"limit": 3, **query, **cursor})
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["items"]) <= 3
            items += answer.json()["items"]
            if (following := answer.json()["nextCursor"]) is None:
                return items
            cursor = {"cursor": following}

    whole = await read()
    assert [i["objectId"] for i in whole if i["operation"] == "device.register"] == ids[::-1]
    assert len(whole) == len(await trail(world))  # this database knows one application
    registered = await read(operation="device.register")
    assert [i["objectId"] for i in registered] == ids[::-1]
    assert [i["objectId"] for i in await read(objectId=ids[4])] == [ids[4]]
    assert await read(objectId=ids[4], operation="device.delete") == []
    since, until = registered[7]["at"], registered[1]["at"]  # of n1's and n4's
    assert [i["objectId"] for i in await read(operation="device.register", since=since, until=until)] == ids[2:8][::-1]
    assert [i["objectId"] for i in await read(since=since, until=until)] == ids[2:8][::-1]
    assert registered[0] == {
        "at": registered[0]["at"],
        "operation": "device.register",
        "objectId": ids[-1],
        "caller": world.app_id,
        "address": PEER,
        "outcome": "done",
    }


@pytest.mark.parametrize(
    "query",
    [
        {"cursor": "x"},
        {"cursor": "1-1\n"},
        {"limit": "0"},
        {"limit": "501"},
        {"since": "yesterday"},
        {"since": "2024-01-01T00:00:00"},
        {"operation": "drop table"},
        {"objectId": "x" * 257},
    ],
)
async def test_a_bad_condition_is_named(world: World, query: dict[str, str]) -> None:
    answer = await world.http.get(f"{API}/audit", headers=await world.login(), params=query)
    assert (answer.status_code, answer.json()["field"]) == (400, next(iter(query)))


async def test_a_cursor_past_everything_finds_nothing(world: World) -> None:
    for cursor in ("0-0", "9999999999999999-999999999999999999"):
        answer = await world.http.get(f"{API}/audit", headers=await world.login(), params={"cursor": cursor})
        assert answer.status_code == 200
    assert await world.rooms.audit.page(AuditFilter(None), AuditPlace(world.clock.now(), 0), 10) == []


async def test_no_condition_makes_it_read_more_than_a_range_of_an_index(world: World) -> None:
    database = world.rooms.database
    if not isinstance(database, SqliteDatabase):
        pytest.skip("an empty table tells nothing of PostgreSQL's plans; the indexes are the same")
    seen = []

    class Explaining:
        async def fetch(self, sql: str, *args: Any) -> Sequence[Any]:
            seen.extend(row[3] for row in await database.fetch(f"EXPLAIN QUERY PLAN {sql}", *args))
            return []

    key, now = world.actor.application, world.clock.now()
    for wanted in (
        AuditFilter(None),
        AuditFilter(key),
        AuditFilter(key, since=now, until=now),
        AuditFilter(key, operation="a.b", since=now),
        AuditFilter(key, object_id="x", until=now),
        AuditFilter(key, operation="a.b", object_id="x", since=now),
    ):
        await AuditReads(Explaining()).page(wanted, AuditPlace(now, 1), 10)  # type: ignore[arg-type]
    assert [line for line in seen if "SCAN e" in line and "ix_audit_at" not in line] == []
    assert [line for line in seen if "TEMP B-TREE" in line] == []


async def test_rows_that_were_kept_long_enough_are_forgotten(
    database_url: str, tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openiodm.access.audit.FORGET_CHUNK", 2)
    async with build_world(database_url, tmp_path, clock, audit_days=30) as world:
        old = len(await trail(world))
        assert old > 2
        world.advance(30 * 86_400)
        assert await world.rooms.audit.forget_old() == 0
        await world.rooms.access.create_gateway_token(world.actor, "kept", WORLDS_PRODUCT)
        clock.advance(1)
        removed = [await world.rooms.audit.forget_old() for _ in range(old)]
        assert sum(removed) == old
        assert removed[0] == 2
        assert [entry.operation for entry in await trail(world)] == ["gateway-token.create"]


async def test_zero_days_keeps_them_for_ever(database_url: str, tmp_path: Path, clock: ManualClock) -> None:
    async with build_world(database_url, tmp_path, clock, audit_days=0) as world:
        world.advance(3_000 * 86_400)
        assert await world.rooms.audit.forget_old() == 0
        assert await trail(world) != []
