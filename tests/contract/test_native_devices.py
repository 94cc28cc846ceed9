"""Native routes of devices, groups and the application itself, on every engine."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.conftest import ManualClock
from tests.support.server import World, build_world

DEVICES = "/api/v1/devices"
GROUPS = "/api/v1/groups"
TOKENS = "/api/v1/gateway-tokens"
PRODUCT = {"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
TARGET_TOKEN = "a-token-of-24-characters"


class Api:
    """The native API as one application uses it."""

    def __init__(self, world: World, headers: dict[str, str]) -> None:
        self.world = world
        self.headers = headers

    async def send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return await self.world.http.request(method, path, headers=self.headers, **kwargs)

    async def ok(self, method: str, path: str, **kwargs: Any) -> Any:
        answer = await self.send(method, path, **kwargs)
        assert answer.status_code < 300, answer.text
        return answer.json() if answer.content else None

    async def no(self, method: str, path: str, **kwargs: Any) -> tuple[int, str, str | None]:
        answer = await self.send(method, path, **kwargs)
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        problem = answer.json()
        return answer.status_code, problem["reason"], problem["field"]

    async def register(self, node_id: str, **body: Any) -> str:
        return str((await self.ok("POST", DEVICES, json={"nodeId": node_id, **PRODUCT, **body}))["deviceId"])

    async def bulk(self, lines: list[Any]) -> list[dict[str, Any]]:
        content = b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines)
        answer = await self.send("POST", f"{DEVICES}/bulk", content=content)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.text.splitlines()]

    async def polls_with(self, token: str, node_id: str, scheme: str = "TargetToken") -> int:
        headers = {"Authorization": f"{scheme} {token}"}
        return (await self.world.http.get(self.world.ddi(node_id), headers=headers)).status_code


@pytest.fixture
async def world(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    async with build_world(database_url, tmp_path / "data", clock) as built:
        yield built


@pytest.fixture
async def api(world: World) -> Api:
    return Api(world, await world.login())


@pytest.fixture
async def other(world: World) -> Api:
    credentials = await world.rooms.access.create_application("other")
    login = await world.rooms.access.login(credentials.app_id, credentials.secret)
    return Api(world, {"Authorization": f"Bearer {login.access_token}"})


# ----------------------------------------------------------------- devices


async def test_a_registered_device_is_found_by_both_its_ids(api: Api) -> None:
    answer = await api.send("POST", DEVICES, json={"nodeId": "n1", **PRODUCT, "name": "one", "fwVersion": "V1"})
    assert answer.status_code == 201
    made = answer.json()
    assert set(made) == {"deviceId", "nodeId", "verifyCode", "psk"}
    assert answer.headers["location"] == f"{DEVICES}/{made['deviceId']}"
    for name in (made["deviceId"], "n1"):
        found = await api.ok("GET", f"{DEVICES}/{name}")
        assert (found["nodeId"], found["name"], found["fwVersion"]) == ("n1", "one", "V1")
        assert (found["status"], found["activatedAt"], found["hasTargetToken"]) == ("INACTIVE", None, False)


async def test_what_a_device_told_of_itself_is_shown(api: Api, world: World) -> None:
    await world.register("n1")
    path = world.ddi("n1", "/configData")
    body = {"mode": "merge", "data": {"fwVersion": "V7", "serial": "4711"}}
    answer = await world.http.put(path, headers=world.gateway, json=body)
    assert answer.status_code == 200, answer.text
    found = await api.ok("GET", f"{DEVICES}/n1")
    assert (found["attributes"], found["fwVersion"]) == (body["data"], "V7")
    assert found["status"] == "ONLINE"


async def test_the_list_filters_and_pages_newest_first(api: Api) -> None:
    for n in range(5):
        await api.register(f"n{n}", model="even" if n % 2 == 0 else "odd")
    found = await api.ok("GET", DEVICES, params={"model": "even", "pageNo": 1, "pageSize": 2})
    assert (found["total"], [d["nodeId"] for d in found["items"]]) == (3, ["n0"])
    found = await api.ok("GET", DEVICES, params={"nodeId": "n3", "status": "INACTIVE"})
    assert [d["nodeId"] for d in found["items"]] == ["n3"]
    assert (await api.ok("GET", DEVICES, params={"status": "ONLINE"}))["total"] == 0


@pytest.mark.parametrize(
    ("query", "reason"),
    [({"pageSize": "501"}, "bad-paging"), ({"pageNo": "-1"}, "bad-paging"), ({"status": "up"}, "bad-filter")],
)
async def test_a_bad_list_query_is_refused_with_its_name(api: Api, query: dict[str, str], reason: str) -> None:
    assert await api.no("GET", DEVICES, params=query) == (400, reason, next(iter(query)))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**PRODUCT}, "nodeId"),
        ({"nodeId": "", **PRODUCT}, "nodeId"),
        ({"nodeId": "n", "deviceType": "t", "model": "m"}, "manufacturerName"),
        ({"nodeId": "n", **PRODUCT, "psk": "xyz"}, "psk"),
        ({"nodeId": "n", **PRODUCT, "timeout": 2**31}, "timeout"),
        ({"nodeId": "n", **PRODUCT, "targetToken": "short"}, "targetToken"),
        ({"nodeId": "n", **PRODUCT, "targetToken": "with blank in it, long enough"}, "targetToken"),
    ],
)
async def test_a_bad_device_is_refused_with_the_member(api: Api, body: dict[str, Any], field: str) -> None:
    assert await api.no("POST", DEVICES, json=body) == (400, "bad-input", field)


async def test_a_taken_node_id_is_refused_with_the_member(api: Api) -> None:
    await api.register("n1", verifyCode="code")
    assert await api.no("POST", DEVICES, json={"nodeId": "n1", **PRODUCT}) == (409, "node-id-taken", "nodeId")
    taken = await api.no("POST", DEVICES, json={"nodeId": "n2", **PRODUCT, "verifyCode": "code"})
    assert taken == (409, "verify-code-taken", "verifyCode")


async def test_a_deleted_device_is_gone_and_its_node_id_free(api: Api) -> None:
    first = await api.register("n1")
    assert (await api.send("DELETE", f"{DEVICES}/n1")).status_code == 204
    assert await api.no("GET", f"{DEVICES}/{first}") == (404, "device-unknown", None)
    assert await api.no("DELETE", f"{DEVICES}/n1") == (404, "device-unknown", None)
    assert await api.register("n1") != first


async def test_a_node_id_that_no_path_can_name_is_found_by_the_list(api: Api) -> None:
    """See docs/native-api.md: a slash parts a path, and `bulk` is the registration of many."""
    for node_id, status in (("bulk", 405), ("a/b", 404)):
        device = await api.register(node_id)
        for method in ("GET", "DELETE"):
            assert (await api.no(method, f"{DEVICES}/{quote(node_id, safe='')}"))[0] == status
        (found,) = (await api.ok("GET", DEVICES, params={"nodeId": node_id}))["items"]
        assert found["deviceId"] == device
        assert (await api.ok("GET", f"{DEVICES}/{device}"))["nodeId"] == node_id
        assert (await api.send("DELETE", f"{DEVICES}/{device}")).status_code == 204


async def test_a_target_token_lets_its_device_in_until_it_is_replaced_or_removed(api: Api) -> None:
    await api.register("n1", targetToken=TARGET_TOKEN)
    assert await api.polls_with(TARGET_TOKEN, "n1") == 200
    made = await api.ok("PUT", f"{DEVICES}/n1/target-token", json={})
    assert await api.polls_with(TARGET_TOKEN, "n1") == 401
    assert await api.polls_with(made["token"], "n1") == 200
    again = await api.ok("PUT", f"{DEVICES}/n1/target-token")  # no body at all
    assert (await api.polls_with(made["token"], "n1"), await api.polls_with(again["token"], "n1")) == (401, 200)
    given = await api.ok("PUT", f"{DEVICES}/{made['deviceId']}/target-token", json={"token": TARGET_TOKEN})
    assert given["token"] == TARGET_TOKEN
    assert (await api.ok("GET", f"{DEVICES}/n1"))["hasTargetToken"] is True
    assert (await api.send("DELETE", f"{DEVICES}/n1/target-token")).status_code == 204
    assert await api.polls_with(TARGET_TOKEN, "n1") == 401


# -------------------------------------------------------------------- bulk


async def test_bulk_answers_each_line_and_refuses_only_bad_ones(api: Api) -> None:
    results = await api.bulk(
        [
            {"nodeId": "n1", **PRODUCT, "verifyCode": "v1", "psk": "00112233", "targetToken": TARGET_TOKEN},
            b"",
            {"nodeId": "n1", **PRODUCT},
            b"{not json",
            {"nodeId": "n2", "deviceType": "t", "model": "m"},
            {"nodeId": "n3", **PRODUCT, "verifyCode": "v1"},
            b'{"nodeId": "' + b"x" * 20_000 + b'"}',
            b'"text"',
            {"nodeId": "n4\u0000", **PRODUCT},
            b'{"nodeId": "\xff"}',
            {"nodeId": "n5", **PRODUCT},
        ]
    )
    assert [r["line"] for r in results] == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert {k: results[0][k] for k in ("nodeId", "verifyCode", "psk")} == {
        "nodeId": "n1",
        "verifyCode": "v1",
        "psk": "00112233",
    }
    errors = [(r["error"]["reason"], r["error"]["field"]) for r in results[1:-1]]
    assert errors == [
        ("node-id-taken", "nodeId"),
        ("bad-input", None),
        ("bad-input", "manufacturerName"),
        ("verify-code-taken", "verifyCode"),
        ("bad-input", None),
        ("bad-input", None),
        ("bad-input", None),
        ("bad-input", None),
    ]
    assert "deviceId" in results[-1]
    assert await api.polls_with(TARGET_TOKEN, "n1") == 200
    assert (await api.ok("GET", DEVICES))["total"] == 2


async def test_bulk_of_nothing_answers_nothing(api: Api) -> None:
    assert await api.bulk([]) == []


async def test_bulk_takes_more_than_a_chunk(api: Api) -> None:
    results = await api.bulk([{"nodeId": f"n{n}", **PRODUCT} for n in range(1201)])
    assert [r["line"] for r in results] == list(range(1, 1202))
    assert (await api.ok("GET", DEVICES))["total"] == 1201
    again = await api.bulk([{"nodeId": "n1200", **PRODUCT}, {"nodeId": "new", **PRODUCT}])
    assert ["error" in r for r in again] == [True, False]


# ------------------------------------------------------------------ groups


async def test_a_group_takes_devices_by_either_id(api: Api) -> None:
    ids = [await api.register(f"n{n}") for n in range(4)]
    answer = await api.send("POST", GROUPS, json={"name": "Hall 3", "nodeIds": ["n0", "n0"]})
    assert answer.status_code == 201
    group = answer.json()
    assert (group["name"], group["deviceCount"]) == ("Hall 3", 1)
    one = f"{GROUPS}/{group['groupId']}"
    assert answer.headers["location"] == one
    assert (await api.ok("POST", f"{one}/devices", json={"deviceIds": ids[1:3]}))["deviceCount"] == 3
    assert (await api.ok("POST", f"{one}/devices", json={"nodeIds": ["n3", "n0"]}))["deviceCount"] == 4
    found = await api.ok("GET", f"{one}/devices", params={"pageSize": 3})
    assert (found["total"], [d["nodeId"] for d in found["items"]]) == (4, ["n3", "n2", "n1"])
    left = await api.ok("DELETE", f"{one}/devices", json={"nodeIds": ["n3", "unknown"]})
    assert left["deviceCount"] == 3
    assert [g["name"] for g in (await api.ok("GET", GROUPS, params={"name": "Hall 3"}))["items"]] == ["Hall 3"]
    assert (await api.send("DELETE", one)).status_code == 204
    assert await api.no("GET", one) == (404, "group-unknown", None)


async def test_a_group_refuses_what_it_cannot_hold(api: Api) -> None:
    first = await api.register("n1")
    await api.register("n2")
    group = await api.ok("POST", GROUPS, json={"name": "g", "maxDevices": 1, "deviceIds": [first]})
    members = f"{GROUPS}/{group['groupId']}/devices"
    assert await api.no("POST", members, json={"nodeIds": ["n2"]}) == (409, "group-full", None)
    assert await api.no("POST", members, json={"nodeIds": ["unknown"]}) == (404, "device-unknown", "nodeIds")
    assert await api.no("POST", members, json={"deviceIds": ["unknown"]}) == (404, "device-unknown", "deviceIds")
    both = {"nodeIds": ["n2"], "deviceIds": [first]}
    assert await api.no("POST", members, json=both) == (400, "bad-input", "nodeIds")
    assert await api.no("POST", GROUPS, json={"name": "g"}) == (409, "group-name-taken", "name")
    assert await api.no("POST", GROUPS, json={"name": "  "}) == (400, "bad-input", "name")
    assert (await api.ok("GET", f"{GROUPS}/{group['groupId']}"))["deviceCount"] == 1


# ------------------------------------------------------------- application


async def test_a_gateway_token_is_shown_once_and_lets_devices_in_until_it_is_revoked(api: Api) -> None:
    made = await api.ok("POST", TOKENS, json={"name": "line 2", **PRODUCT})
    assert await api.polls_with(made["token"], "n1", "GatewayToken") == 200
    device = await api.ok("GET", f"{DEVICES}/n1")
    assert {k: device[k] for k in PRODUCT} == PRODUCT
    listed = (await api.ok("GET", TOKENS))["items"]
    assert [t["name"] for t in listed] == ["fleet", "line 2"]
    assert all("token" not in t for t in listed)
    assert (await api.send("DELETE", f"{TOKENS}/{made['tokenId']}")).status_code == 204
    assert await api.polls_with(made["token"], "n1", "GatewayToken") == 401
    assert [t["name"] for t in (await api.ok("GET", TOKENS))["items"]] == ["fleet"]


@pytest.mark.parametrize("token_id", ["0", "x", "9" * 30, "²", "-1"])
async def test_a_gateway_token_that_is_none_is_refused(api: Api, token_id: str) -> None:
    status, reason, _ = await api.no("DELETE", f"{TOKENS}/{token_id}")
    assert (status, reason) == (404, "gateway-token-unknown")


async def test_kinds_of_tokens_are_switched_one_by_one(api: Api, world: World) -> None:
    await api.register("n1", targetToken=TARGET_TOKEN)
    view = await api.ok("PUT", "/api/v1/application", json={"targetTokens": False})
    assert view == {"appId": world.app_id, "name": "test", "targetTokens": False, "gatewayTokens": True}
    assert await api.polls_with(TARGET_TOKEN, "n1") == 401
    assert await api.polls_with(world.gateway_token, "n2", "GatewayToken") == 200
    view = await api.ok("PUT", "/api/v1/application", json={"targetTokens": True, "gatewayTokens": False})
    assert (view["targetTokens"], view["gatewayTokens"]) == (True, False)
    assert await api.polls_with(TARGET_TOKEN, "n1") == 200
    assert await api.polls_with(world.gateway_token, "n2", "GatewayToken") == 401
    assert await api.ok("GET", "/api/v1/application") == view


# ------------------------------------------------------------------- law 8


async def test_nothing_of_another_application_is_there(api: Api, other: Api) -> None:
    device = await api.register("n1", targetToken=TARGET_TOKEN)
    group = (await api.ok("POST", GROUPS, json={"name": "g", "nodeIds": ["n1"]}))["groupId"]
    token = (await api.ok("POST", TOKENS, json={"name": "t", **PRODUCT}))["tokenId"]
    own = (await other.ok("POST", GROUPS, json={"name": "g"}))["groupId"]

    for name in (device, "n1"):
        for method, path in (("GET", ""), ("DELETE", ""), ("DELETE", "/target-token")):
            assert await other.no(method, f"{DEVICES}/{name}{path}") == (404, "device-unknown", None)
        assert (await other.no("PUT", f"{DEVICES}/{name}/target-token", json={}))[0] == 404
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/devices")):
        assert await other.no(method, f"{GROUPS}/{group}{path}") == (404, "group-unknown", None)
    for method in ("POST", "DELETE"):
        assert (await other.no(method, f"{GROUPS}/{group}/devices", json={"deviceIds": []}))[0] == 404
    assert (await other.no("POST", f"{GROUPS}/{own}/devices", json={"deviceIds": [device]}))[0] == 404
    assert (await other.no("POST", f"{GROUPS}/{own}/devices", json={"nodeIds": ["n1"]}))[0] == 404
    assert (await other.no("DELETE", f"{TOKENS}/{token}"))[0] == 404
    assert (await other.ok("GET", DEVICES))["total"] == 0
    assert (await other.ok("GET", TOKENS))["items"] == []
    assert [g["groupId"] for g in (await other.ok("GET", GROUPS))["items"]] == [own]

    assert (await other.bulk([{"nodeId": "n1", **PRODUCT}]))[0]["nodeId"] == "n1"  # names are per application
    assert (await api.ok("GET", f"{GROUPS}/{group}"))["deviceCount"] == 1
    assert await api.polls_with(TARGET_TOKEN, "n1") == 200
    assert len((await api.ok("GET", TOKENS))["items"]) == 2
