"""The task calls of both APIs over the real core, on both engines: shapes, codes, filters, pages."""

import csv
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31
from starlette.requests import Request

from openiodm.access.model import Actor, ApplicationKey
from openiodm.campaigns.rollout import Progress, Result
from openiodm.campaigns.states import UpgradeEvent
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import api_router
from openiodm.northbound.compat import tasks as compat
from openiodm.northbound.compat.edge import CompatEdge
from openiodm.northbound.compat.times import format_time
from openiodm.northbound.native import openapi
from openiodm.northbound.native import tasks as native
from openiodm.northbound.native.edge import NativeEdge
from openiodm.storage.engine import Database
from tests.conftest import ManualClock
from tests.support.core import CLOCKS, LOG, Core, build_core

CREATED = "20231114T221320Z"  # where the manual clock stands
HOUR = 3_600_000


class TokenIsTheApplication:
    async def authenticate(self, request: Request) -> Actor:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not token.isdigit():
            raise Refusal(Reason.TOKEN_INVALID)
        return Actor(ApplicationKey(int(token)), f"app{token}")

    async def admit(self, actor: Actor) -> None:
        pass

    async def acting_for(self, actor: Actor, app_id: str) -> Actor:
        raise AssertionError("no call about tasks names an application")


@dataclass
class Api:
    """One application's view of one API."""

    http: httpx.AsyncClient
    path: str

    async def get(self, path: str = "", expect: int = 200, **params: Any) -> Any:
        answer = await self.http.get(self.path + path, params=params)
        return _checked(answer, expect)

    async def post(self, path: str, body: Any, expect: int = 200, **headers: str) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self.http.post(self.path + path, content=content, headers=headers)
        return _checked(answer, expect)


def _checked(answer: httpx.Response, expect: int) -> Any:
    assert answer.status_code == expect, answer.text
    if expect == 204:
        assert answer.content == b""
        return None
    assert answer.headers["content-type"] in {"application/json", "application/problem+json"}
    return answer.json()


@dataclass
class World:
    core: Core
    clock: ManualClock
    compat: Api
    native: Api
    other: Api  # the compatible API as another application sees it
    other_native: Api


@pytest.fixture
async def world(database: Database, clock: ManualClock) -> AsyncIterator[World]:
    core = await build_core(database, clock)
    guard = TokenIsTheApplication()
    published = api_router(compat.routes(core.commands, core.queries, clock), CompatEdge(), guard)
    own = api_router(native.routes(core.commands, core.queries, clock, CLOCKS), NativeEdge(), guard)
    clients = []

    def api(router: Any, path: str, application: int) -> Api:
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(router),
            base_url="http://server",
            headers={"Authorization": f"Bearer {application}"},
        )
        clients.append(client)
        return Api(client, path)

    yield World(
        core,
        clock,
        api(published, compat.PATH, 1),
        api(own, native.PATH, 1),
        api(published, compat.PATH, 2),
        api(own, native.PATH, 2),
    )
    await core.check_laws()
    for client in clients:
        await client.aclose()
    await core.writer.close()


def body(*devices: str, file_id: str = "f1", **more: Any) -> dict[str, Any]:
    return {"fileId": file_id, "targets": {"devices": list(devices)}, **more}


async def refused(api: Api, status: int, code: str, path: str = "", **params: Any) -> None:
    answer = await api.get(path, status, **params)
    assert (set(answer), answer["error_code"]) == ({"error_code", "error_desc"}, code), params


# ---- create ----


async def test_creating_answers_200_with_the_id_alone(world: World) -> None:
    await world.core.add_devices(2)
    firmware = await world.compat.post("/firmwareUpgrade", body("d1"))
    software = await world.compat.post("/softwareUpgrade", body("d2", file_id="s1"))
    assert set(firmware) == set(software) == {"operationId"}
    kinds = [(t["operationId"], t["operateType"]) for t in (await world.compat.get())["data"]]
    assert kinds == [(software["operationId"], "software_upgrade"), (firmware["operationId"], "firmware_upgrade")]


REFUSED: list[tuple[Any, int, str]] = [
    (b"[]", 400, "120015"),
    ({"targets": {"devices": ["d1"]}}, 400, "120015"),
    (body("d1", file_id="s1"), 400, "120015"),  # a software package sent to firmwareUpgrade
    ({"fileId": "f1"}, 400, "123022"),
    (body("d1", policy={"executeType": None}), 400, "123025"),
    (body("d1", policy={"executeType": "custom"}), 400, "123026"),
    (body("d1", policy={"retryType": True}), 400, "123028"),
    (body("d1", file_id="unknown"), 404, "123002"),
    (body("d1", "unknown"), 404, "123002"),
    (body("d1", "d2"), 400, "123016"),  # d2 is of another product
    ({"fileId": "f1", "targets": {"devices": ["d1"], "model": "not m"}}, 400, "123016"),
    (
        {
            "fileId": "f1",
            "targets": {"deviceGroups": ["no"], "deviceType": "t", "model": "m", "manufacturerName": "maker"},
        },
        404,
        "123002",
    ),
]


async def test_codes_of_refused_creations(world: World) -> None:
    await world.core.add_devices(1)
    await world.core.add_devices(1, first=2, product=2)
    for asked, status, code in REFUSED:
        answer = await world.compat.post("/firmwareUpgrade", asked, status)
        assert answer["error_code"] == code, asked
    assert (await world.compat.get())["totalCount"] == 0


async def test_a_repeat_with_the_same_key_creates_one_task(world: World) -> None:
    await world.core.add_devices(1)
    key = {"Idempotency-Key": "k1"}
    first = await world.compat.post("/firmwareUpgrade", body("d1"), **key)
    assert await world.compat.post("/firmwareUpgrade", body("d1"), **key) == first
    assert (await world.compat.get())["totalCount"] == 1
    for path, other in (("/firmwareUpgrade", body("d1", policy={})), ("/softwareUpgrade", body("d1"))):
        assert (await world.compat.post(path, other, 400, **key))["error_code"] == "120015"
    bad = await world.compat.post("/firmwareUpgrade", body("d1"), 400, **{"Idempotency-Key": "a b"})
    assert bad["error_code"] == "120015"


# ---- the task ----


async def test_a_fresh_device_task_shows_every_member(world: World) -> None:
    await world.core.add_devices(2)
    asked = {"fileId": "f1", "targets": {"devices": ["d2", "d1", "d2"]}}
    operation_id = (await world.compat.post("/firmwareUpgrade", asked))["operationId"]
    expected = {
        "operationId": operation_id,
        "createTime": CREATED,
        "startTime": None,
        "stopTime": None,
        "operateType": "firmware_upgrade",
        "targets": {
            "deviceGroups": None,
            "deviceType": "t",
            "model": "m",
            "manufacturerName": "maker",
            "devices": ["d2", "d1"],
        },
        "policy": None,
        "status": "wait",
        "staResult": {"total": 2, "wait": 2, "processing": 0, "success": 0, "fail": 0, "stop": 0, "timeout": 0},
        "extendPara": {"fileVersion": "V2"},
    }
    assert await world.compat.get(f"/{operation_id}") == expected
    page = await world.compat.get()
    assert page == {"data": [expected], "pageNo": 0, "pageSize": 10, "totalCount": 1, "totalSize": 1}


async def test_a_group_task_names_its_groups_and_no_devices(world: World) -> None:
    await world.core.add_devices(3)
    await world.core.add_group('Häuser "1"', 1, 3)
    targets = {"deviceGroups": ['Häuser "1"'], "deviceType": "t", "model": "m", "manufacturerName": "maker"}
    created = await world.compat.post("/softwareUpgrade", {"fileId": "s1", "targets": targets})
    await world.core.run_jobs()
    task = await world.compat.get(f"/{created['operationId']}")
    assert task["targets"] == {**targets, "devices": None}
    assert task["staResult"]["total"] == 3


DEFAULTS = {"executeType": "now", "startTime": None, "endTime": None, "retryType": False, "retryTimes": None}
WINDOW = {"executeType": "custom", "startTime": CREATED, "endTime": "20231115T000000Z"}
POLICIES: list[tuple[Any, Any]] = [
    (None, None),
    ({}, DEFAULTS),
    (
        {"executeType": "device_online", "retryTimes": 3, "startTime": "x"},
        {**DEFAULTS, "executeType": "device_online"},
    ),
    (WINDOW, {**DEFAULTS, **WINDOW}),
    ({"retryType": True, "retryTimes": 2}, {**DEFAULTS, "retryType": True, "retryTimes": 2}),
]


async def test_the_policy_is_echoed_with_its_defaults(world: World) -> None:
    await world.core.add_devices(1)
    for given, shown in POLICIES:
        created = await world.compat.post("/firmwareUpgrade", body("d1", policy=given))
        assert (await world.compat.get(f"/{created['operationId']}"))["policy"] == shown


async def test_what_is_no_task_s_id_is_an_unknown_task(world: World) -> None:
    for operation_id in ("unknown", "x" * 257, "a%20b", "a.b", "%C3%A9", "a%0A"):
        await refused(world.compat, 404, "123009", f"/{operation_id}")
        await refused(world.compat, 404, "123009", f"/{operation_id}/subOperations")


async def test_other_applications_tasks_do_not_exist(world: World) -> None:
    await world.core.add_devices(1)
    operation_id = (await world.compat.post("/firmwareUpgrade", body("d1")))["operationId"]
    await refused(world.other, 404, "123009", f"/{operation_id}")
    await refused(world.other, 404, "123009", f"/{operation_id}/subOperations")
    for params in ({}, {"deviceId": "d1"}):
        empty = await world.other.get(**params)
        assert empty == {"data": [], "pageNo": 0, "pageSize": 10, "totalCount": 0, "totalSize": 0}


# ---- subtasks ----


async def mixed(world: World) -> str:
    """d1 wait, d2 downloading, d3 success, d4 and d5 fail, d6 timeout by its own word, d7 stopped."""
    core = world.core
    devices = await core.add_devices(7)
    operation_id = await core.create(devices)
    action = await core.grant(2)
    await core.signal(2, Progress(action, LOG, UpgradeEvent.DOWNLOAD_STARTED))
    await core.succeed(3)
    await core.fail(4)
    await core.fail(5)
    action = await core.grant(6)
    await core.signal(6, Result(action, False, LOG, detail="gave up", timed_out=True))
    await core.commands.stop_device(core.actor, operation_id, "n7")
    return operation_id


async def test_a_subtask_shows_every_member(world: World) -> None:
    await world.core.add_devices(1)
    operation_id = await world.core.create(["d1"])
    path = f"/{operation_id}/subOperations"
    (waiting,) = (await world.compat.get(path))["data"]
    assert waiting.pop("subOperationId")
    assert waiting == {
        "createTime": CREATED,
        "startTime": None,
        "stopTime": None,
        "operateType": "firmware_upgrade",
        "deviceId": "d1",
        "status": "wait",
        "detailInfo": None,
        "extendInfo": {"sourceVersion": "V1", "targetVersion": "V2", "curVersion": "V1"},
    }
    world.clock.advance(HOUR)
    await world.core.succeed(1)
    page = await world.compat.get(path)
    assert {k: v for k, v in page.items() if k != "data"} == {"pageNo": 0, "pageSize": 10, "totalCount": 1}
    (done,) = page["data"]
    moment = format_time(world.clock.now())
    assert (done["startTime"], done["stopTime"], done["status"]) == (moment, moment, "success")
    assert isinstance(done["detailInfo"], str)
    assert done["extendInfo"] == {"sourceVersion": "V1", "targetVersion": "V2", "curVersion": "V2"}


async def test_subtasks_are_filtered_by_the_five_states_with_exact_totals(world: World) -> None:
    operation_id = await mixed(world)
    path = f"/{operation_id}/subOperations"
    found = {}
    for status in ("wait", "processing", "fail", "success", "stop", ""):
        page = await world.compat.get(path, subOperationStatus=status)
        assert page["totalCount"] == len(page["data"])
        assert {s["status"] for s in page["data"]} == ({status} if status else set(found))
        found[status] = [s["deviceId"] for s in page["data"]]
    assert found == {
        "wait": ["d1"],
        "processing": ["d2"],
        "fail": ["d6", "d5", "d4"],
        "success": ["d3"],
        "stop": ["d7"],
        "": ["d7", "d6", "d5", "d4", "d3", "d2", "d1"],
    }
    counters = (await world.compat.get(f"/{operation_id}"))["staResult"]
    assert counters == {"total": 7, "wait": 1, "processing": 1, "success": 1, "fail": 2, "stop": 1, "timeout": 1}
    for spelling in ("FAIL", "failed", "Failed"):
        page = await world.compat.get(path, subOperationStatus=spelling, pageNo="1", pageSize="2")
        assert ([s["deviceId"] for s in page["data"]], page["totalCount"]) == (["d4"], 3)
    for bad in ("timeout", "offered", "none", "fail "):
        await refused(world.compat, 400, "120015", path, subOperationStatus=bad)


async def test_pages_of_subtasks_are_newest_first_and_complete(world: World) -> None:
    operation_id = await mixed(world)
    path = f"/{operation_id}/subOperations"
    pages = [await world.compat.get(path, pageNo=n, pageSize=3) for n in range(4)]
    assert [[s["deviceId"] for s in p["data"]] for p in pages] == [["d7", "d6", "d5"], ["d4", "d3", "d2"], ["d1"], []]
    assert {(p["totalCount"], p["pageSize"]) for p in pages} == {(7, 3)}


# ---- list: filters and pages ----


async def test_filters_take_any_case_and_both_spellings_of_failed(world: World) -> None:
    await world.core.add_devices(2)
    operation_id = await world.core.create(["d1"])
    await world.core.fail(1)
    await world.core.create(["d2"])
    for status in ("failed", "FAILED", "fail", "FAIL"):
        page = await world.compat.get(operationStatus=status, operationType="Firmware_Upgrade")
        assert [(t["operationId"], t["status"]) for t in page["data"]] == [(operation_id, "failed")]
        assert page["data"][0]["stopTime"] == CREATED


async def test_conditions_must_all_hold_and_empty_ones_are_not_given(world: World) -> None:
    await world.core.add_devices(2)
    operation_id = await world.core.create(["d1"])
    await world.core.create(["d2"])
    all_eight = {
        "operationType": "firmware_upgrade",
        "operationStatus": "wait",
        "deviceType": "t",
        "model": "m",
        "manufacturerName": "maker",
        "deviceId": "d1",
        "pageNo": "0",
        "pageSize": "100",
    }
    page = await world.compat.get(**all_eight)
    assert ([t["operationId"] for t in page["data"]], page["totalCount"]) == ([operation_id], 1)
    for name in ("deviceType", "model", "manufacturerName", "deviceId"):
        for value in ("other", "T", "x" * 256, "'; --", "%", "null"):
            page = await world.compat.get(**{**all_eight, name: value})
            assert (page["data"], page["totalCount"], page["pageSize"]) == ([], 0, 100)
    page = await world.compat.get(**dict.fromkeys(all_eight, ""), unknown="x")
    assert (page["totalCount"], page["pageNo"], page["pageSize"]) == (2, 0, 10)


FILTERS = ("operationType", "operationStatus", "deviceType", "model", "manufacturerName", "deviceId")


async def test_filters_too_long_given_twice_or_unknown_are_bad(world: World) -> None:
    for name in FILTERS:
        await refused(world.compat, 400, "120015", **{name: "x" * 257})
        await refused(world.compat, 400, "120015", **{name: ["wait", "wait"]})
        await refused(world.compat, 400, "120015", **{name: "a\0b"})
    for kind in ("firmwareUpgrade", "fw", " "):
        await refused(world.compat, 400, "120015", operationType=kind)
    for status in ("done", "timeout", " wait"):
        await refused(world.compat, 400, "120015", operationStatus=status)


BAD_NUMBERS = ["-1", "x", "1.0", " 5", "5 ", "+5", "5\n", "1e1", "0x1", "٥", "null", "9" * 18, "9" * 400, "2147483648"]


async def test_bad_paging_has_a_code_of_its_own(world: World) -> None:
    await world.core.add_devices(1)
    operation_id = await world.core.create(["d1"])
    bad = [(name, value) for name in ("pageNo", "pageSize") for value in BAD_NUMBERS]
    bad += [("pageSize", value) for value in ("0", "00", "101")]
    for name, value in bad:
        await refused(world.compat, 400, "123029", **{name: value})
        await refused(world.compat, 400, "123029", f"/{operation_id}/subOperations", **{name: value})


async def test_a_page_past_the_end_is_empty_with_the_true_total(world: World) -> None:
    await world.core.add_devices(1)
    operation_id = await world.core.create(["d1"])
    for page_no in (1, 2**31 - 1):
        page = await world.compat.get(pageNo=page_no, pageSize=100)
        assert page == {"data": [], "pageNo": page_no, "pageSize": 100, "totalCount": 1, "totalSize": 1}
        page = await world.compat.get(f"/{operation_id}/subOperations", pageNo=page_no, pageSize=1)
        assert page == {"data": [], "pageNo": page_no, "pageSize": 1, "totalCount": 1}


async def test_no_token_no_answer(world: World) -> None:
    answer = await world.compat.http.get(compat.PATH, headers={"Authorization": ""})
    assert (answer.status_code, answer.json()["error_code"]) == (403, "1010005")


# ---- the native API ----


async def test_native_create_takes_what_the_contract_lacks(world: World) -> None:
    await world.core.add_devices(1)
    policy = {"executeType": "custom", "startTime": "2023-11-14T22:13:20.250Z", "endTime": "2023-11-15T01:00:00+01:00"}
    asked = body("d1", kind="firmware_upgrade", confirmation=True, clocks={"downloadSeconds": 7}, policy=policy)
    asked["maxConcurrent"] = 3
    answer = await world.native.http.post(native.PATH, json=asked)
    assert answer.status_code == 201, answer.text
    task = answer.json()
    assert answer.headers["location"] == f"{native.PATH}/{task['operationId']}"
    assert task == await world.native.get(f"/{task['operationId']}")
    assert (task["kind"], task["status"], task["confirmation"]) == ("firmware_upgrade", "wait", True)
    assert task["maxConcurrent"] == 3
    assert task["createdAt"] == "2023-11-14T22:13:20Z"
    assert task["policy"]["startTime"].startswith("2023-11-14T22:13:20.250")
    assert task["policy"]["endTime"] == "2023-11-15T00:00:00Z"
    assert task["targets"]["devices"] == ["d1"]
    clocks = await world.core.database.fetchval("SELECT clocks FROM campaign")
    assert json.loads(clocks) == {**msgspec.to_builtins(CLOCKS), "download": 7000}


NATIVE_REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"kind": "firmware"}, 400, "bad-input"),
    ({"clocks": {"onlineSeconds": 0}}, 400, "bad-input"),
    ({"confirmation": None}, 400, "bad-input"),
    ({"maxConcurrent": 0}, 400, "bad-input"),
    ({"maxConcurrent": "3"}, 400, "bad-input"),
    ({"maxConcurrent": 2**31}, 400, "bad-input"),
    ({"targets": {}}, 400, "targets-missing"),
    ({"policy": {"executeType": "custom", "startTime": "x"}}, 400, "window-bad"),
    ({"fileId": "unknown"}, 404, "package-unknown"),
    ({"kind": "software_upgrade"}, 400, "package-type-mismatch"),
]


async def test_native_refusals_are_problems(world: World) -> None:
    await world.core.add_devices(1)
    for change, status, reason in NATIVE_REFUSED:
        problem = await world.native.post("", {**body("d1", kind="firmware_upgrade"), **change}, status)
        assert problem["reason"] == reason


async def test_native_list_has_the_same_filters(world: World) -> None:
    await world.core.add_devices(1)
    operation_id = await world.core.create(["d1"])
    page = await world.native.get(kind="firmware_upgrade", status="wait", deviceType="t", model="m", deviceId="d1")
    assert [t["operationId"] for t in page["items"]] == [operation_id]
    assert (page["total"], page["pageNo"], page["pageSize"]) == (1, 0, 10)
    assert (await world.native.get(manufacturerName="other"))["total"] == 0
    assert (await world.other_native.get())["total"] == 0
    assert (await world.native.get("", 400, kind="fw"))["reason"] == "bad-filter"
    assert (await world.native.get("", 400, pageSize=101))["reason"] == "bad-paging"


async def test_native_creates_for_devices_by_either_name(world: World) -> None:
    """Where one text is the device id of one and the node id of another, the device id counts."""
    await world.core.add_devices(3)
    async with world.core.database.transaction() as tx:
        await tx.execute("UPDATE device SET node_id = 'd1' WHERE device_id = 'd3'")
    targets = {"devices": ["n2", "d1", "d2", "n1"]}
    asked = {"kind": "firmware_upgrade", "fileId": "f1", "targets": targets}
    task = await world.native.post("", json.dumps(asked).encode(), 201)
    assert task["targets"]["devices"] == ["d2", "d1"]
    assert task["counters"]["total"] == 2
    targets["devices"] = ["n9"]
    assert (await world.native.post("", json.dumps(asked).encode(), 404))["reason"] == "device-unknown"


async def test_native_stop_and_retry(world: World) -> None:
    await world.core.add_devices(2)
    failed, stopped = await world.core.create(["d1"]), await world.core.create(["d2"])
    await world.core.fail(1)
    assert (await world.native.post(f"/{stopped}/retry", b"", 409))["reason"] == "campaign-finished"
    await world.native.post(f"/{failed}/retry", b"", 204)
    await world.native.post(f"/{stopped}/stop", b"", 204)
    assert (await world.native.post(f"/{stopped}/stop", b"", 409))["reason"] == "campaign-finished"
    await world.core.run_jobs()
    assert (await world.native.get(f"/{stopped}"))["counters"]["stop"] == 1
    assert (await world.native.get(f"/{failed}"))["counters"]["wait"] == 1
    (retried,) = (await world.native.get(f"/{failed}/devices"))["items"]
    assert retried["attempt"] == 2
    for path in (f"/{failed}/stop", f"/{failed}/retry", "/a.b/stop"):
        assert (await world.other_native.post(path, b"", 404))["reason"] == "campaign-unknown"


async def test_native_resume_needs_no_body_and_refuses_a_bad_one(world: World) -> None:
    await world.core.add_devices(1)
    task = await world.core.create(["d1"])
    for fine in (b"", b"{}", {"unproven": True}):
        await world.native.post(f"/{task}/resume", fine, 204)
    for bad in (b" ", b"null", b"[]", {"unproven": 1}):
        assert (await world.native.post(f"/{task}/resume", bad, 400))["reason"] == "bad-input"
    await world.native.post(f"/{task}/stop", b"", 204)
    assert (await world.native.post(f"/{task}/resume", b"", 409))["reason"] == "campaign-finished"


async def test_native_devices_are_paged_by_cursor_with_core_states(world: World) -> None:
    operation_id = await mixed(world)
    path = f"/{operation_id}/devices"
    seen, cursor = [], 0
    while cursor is not None:
        page = await world.native.get(path, limit=3, cursor=cursor)
        seen += page["items"]
        cursor = page["nextCursor"]
    assert [(d["deviceId"], d["state"]) for d in seen] == [
        ("d1", "wait"),
        ("d2", "downloading"),
        ("d3", "success"),
        ("d4", "fail"),
        ("d5", "fail"),
        ("d6", "timeout"),
        ("d7", "stop"),
    ]
    assert [d["ordinal"] for d in seen] == list(range(1, 8))
    assert [d["reason"] is None for d in seen] == [False] + [True] * 6
    assert seen[1]["dueAt"] == "2023-11-14T23:13:20Z"
    exactly = await world.native.get(path, limit=7)
    assert exactly["nextCursor"] is None
    fails = await world.native.get(path, state="fail", limit=1)
    assert ([d["deviceId"] for d in fails["items"]], fails["nextCursor"]) == (["d4"], 4)
    assert (await world.native.get(path, 400, state="failed"))["reason"] == "bad-filter"
    for bad in ({"cursor": "-1"}, {"limit": "0"}, {"limit": "501"}, {"cursor": "9" * 30}):
        assert (await world.native.get(path, 400, **bad))["reason"] == "bad-paging"


async def test_native_devices_name_the_task_that_holds_them(world: World) -> None:
    await world.core.add_devices(1)
    holder, newcomer = await world.core.create(["d1"]), await world.core.create(["d1"])
    (device,) = (await world.native.get(f"/{newcomer}/devices"))["items"]
    assert (device["state"], device["detail"], device["blocker"]) == ("fail", "Task Conflict", holder)


async def test_native_history_has_changes_and_the_device_s_words(world: World) -> None:
    operation_id = await mixed(world)
    history = await world.native.get(f"/{operation_id}/devices/d2/history")
    assert await world.native.get(f"/{operation_id}/devices/n2/history") == history
    steps = [(c["fromState"], c["toState"], c["cause"]) for c in history["changes"]]
    assert steps == [("wait", "offered", "contact"), ("offered", "downloading", "device")]
    action = history["changes"][0]["actionId"]
    assert history["log"] == [{"at": "2023-11-14T22:13:20Z", "actionId": action, "kind": "device", "lines": ["a line"]}]
    assert (await world.native.get(f"/{operation_id}/devices/none/history", 404))["reason"] == "upgrade-unknown"


async def test_native_stops_one_device(world: World) -> None:
    operation_id = await mixed(world)
    await world.native.post(f"/{operation_id}/devices/d1/stop", b"", 204)
    assert (await world.native.post(f"/{operation_id}/devices/d1/stop", b"", 410))["reason"] == "upgrade-closed"
    assert (await world.native.post(f"/{operation_id}/devices/no/stop", b"", 404))["reason"] == "upgrade-unknown"
    assert (await world.native.get(f"/{operation_id}"))["counters"]["stop"] == 2


async def test_native_exports_in_two_formats(world: World) -> None:
    operation_id = await mixed(world)
    listed = (await world.native.get(f"/{operation_id}/devices"))["items"]
    export = f"{native.PATH}/{operation_id}/export"
    answer = await world.native.http.get(export)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line) for line in answer.text.splitlines()] == listed
    answer = await world.native.http.get(export, params={"format": "csv", "state": "fail"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == f'attachment; filename="{operation_id}.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(r["deviceId"], r["state"], r["detail"], r["reason"]) for r in rows] == [
        ("d4", "fail", "broken", ""),
        ("d5", "fail", "broken", ""),
    ]
    assert list(rows[0]) == list(listed[0])
    assert (await world.native.get("/unknown/export", 404))["reason"] == "campaign-unknown"
    assert (await world.native.get(f"/{operation_id}/export", 400, format="xml"))["reason"] == "bad-filter"


async def test_native_exports_go_over_many_reads(world: World) -> None:
    devices = await world.core.add_devices(1203)
    await world.core.add_group("g", 1, len(devices))
    operation_id = await world.core.create(groups=["g"])
    await world.core.run_jobs()
    answer = await world.native.http.get(f"{native.PATH}/{operation_id}/export")
    assert [json.loads(line)["ordinal"] for line in answer.text.splitlines()] == list(range(1, 1204))


async def test_native_invariants_say_that_counters_are_the_rows(world: World) -> None:
    operation_id = await mixed(world)
    found = await world.native.get(f"/{operation_id}/invariants")
    assert found["exact"] is True
    assert found["counters"] == found["rows"]
    assert found["counters"]["total"] == 7
    assert found["states"] == {"wait": 1, "downloading": 1, "success": 1, "fail": 2, "timeout": 1, "stop": 1}
    async with world.core.database.transaction() as tx:
        await tx.execute("UPDATE campaign_counters SET wait = wait + 1, fail = fail - 1")
    assert (await world.native.get(f"/{operation_id}/invariants"))["exact"] is False
    async with world.core.database.transaction() as tx:
        await tx.execute("UPDATE campaign_counters SET wait = wait - 1, fail = fail + 1")


def test_both_apis_describe_themselves_in_valid_openapi() -> None:
    unused: Any = None
    for routes in (native.routes(unused, unused, unused, CLOCKS), compat.routes(unused, unused, unused)):
        document = msgspec.json.decode(msgspec.json.encode(openapi.native_document(routes, "1.0")))
        jsonschema_rs.Draft202012Validator(OPENAPI_31).validate(document)
        operations = [o for path in document["paths"].values() for o in path.values()]
        assert len({o["operationId"] for o in operations}) == len(routes)
        for schema in document["components"]["schemas"].values():
            jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
