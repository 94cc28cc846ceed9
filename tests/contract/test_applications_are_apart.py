"""Law 8: a caller sees and changes only its own application's things, on every route of both northbound APIs.

The routes are walked, not listed: for each one every member of its path, its query and its body is either an
identifier, which is then tried with another application's, or known to carry none. A new route with a member of a new
name, or a body that nobody can make up, fails here until somebody has said what it is.
"""

import copy
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from openiodm.campaigns.model import CampaignKind, NewCampaign, Target
from openiodm.http.routes import Needs, Route
from tests.conftest import ManualClock
from tests.support.routes import COMPAT, NATIVE, label, members
from tests.support.server import World, build_world
from tests.support.things import API, IOCM, IODM, PATH, PRODUCT, Request, Things, make_things, own_request, rows

# Routes that need no token: whoever calls them shows a secret instead, or is told nothing of anybody.
OPEN = {
    f"POST {IOCM}/sec/v1.1.0/login",
    f"POST {IOCM}/sec/v1.1.0/refreshToken",
    f"POST {IOCM}/sec/v1.1.0/logout",
    f"GET {API}/openapi.json",
    f"GET {API}/compat-openapi.json",
    "GET /api/docs",
    "GET /api/docs/compatible",
    "GET /api/docs/native",
}

COMPAT_NOT_FOUND = {"100225", "100403", "100418", "100603", "123002", "123009"}


# ------------------------------------------------------- what the members are

# Where any application may be named: to authorize it takes nothing from it.
NAMES_ANYBODY = {(f"PUT {API}/authorizations/{{appId}}", "appId")}
QUERY: dict[str, Callable[[Things], str]] = {
    "appId": lambda t: t.app_id,
    "accessAppId": lambda t: t.app_id,
    "gatewayId": lambda t: t.device_id,
    "deviceId": lambda t: t.device_id,
    "nodeId": lambda t: t.node_id,
    "devGroupId": lambda t: t.group_id,
    "subscriptionId": lambda t: t.subscription_id,
    "objectId": lambda t: t.device_id,
}
BODY: dict[str, Callable[[Things], Any]] = {
    "appId": lambda t: t.app_id,
    "devGroupId": lambda t: t.group_id,
    "deviceIds": lambda t: [t.device_id],
    "nodeIds": lambda t: [t.node_id],
    "fileId": lambda t: t.file_id,
    "targets.devices": lambda t: [t.device_id],
    "targets.deviceGroups": lambda t: [t.group_name],
}
# Of a list an application's own words may be asked for; of a new thing they are its own to choose.
NAMES_IN_A_LIST: dict[str, Callable[[Things], str]] = {"name": lambda t: t.mark}

# Members that name nothing that anybody owns. `nodeId` and `verifyCode` of a registration are the device's own texts;
# an application may register a node id that another one has.
PLAIN_WORDS = """
    name description version sourceVersions protocolType buildDate sha256 type fileType kind status state format
    pageNo pageSize cursor limit since until operation sort select startTime endTime location nodeType cascade
    deviceType model manufacturerName manufactureName manufacturerId operationType operationStatus subOperationStatus
    caPem certificatePem keyPem signed
    notifyType callbackUrl callbackurl channel ownerFlag
    nodeId verifyCode endUserId endUser imsi psk timeout isSecure productId token targetToken info
    mute region organization timezone customFields customFields.fieldName customFields.fieldType customFields.fieldValue
    deviceConfig deviceConfig.dataConfig deviceConfig.dataConfig.dataAgingTime maxDevNum maxDevices
    deviceInfo deviceInfo.name deviceInfo.description deviceInfo.manufacturerId deviceInfo.manufacturerName
    deviceInfo.mac deviceInfo.location deviceInfo.deviceType deviceInfo.model deviceInfo.swVersion
    deviceInfo.fwVersion deviceInfo.hwVersion deviceInfo.protocolType deviceInfo.bridgeId deviceInfo.mute
    deviceInfo.supportedSecurity deviceInfo.isSecurity deviceInfo.sigVersion deviceInfo.serialNumber
    deviceInfo.nodeId deviceName mqttConnect secret
    giveUpRetries fwVersion swVersion targetTokens gatewayTokens confirmation
    targets targets.deviceType targets.model targets.manufacturerName
    unproven policy policy.executeType policy.startTime policy.endTime policy.retryType policy.retryTimes
    clocks clocks.onlineSeconds clocks.downloadSeconds clocks.installSeconds clocks.verifySeconds clocks.cancelSeconds
    maxConcurrent
"""
PLAIN = set(PLAIN_WORDS.split())

# Another application's id is answered with success here: by a list in which it finds nothing, or, where things are
# taken out of a group, as one that is not in it.
QUIET = {
    (f"GET {IOCM}/dm/v1.4.0/devices", "gatewayId"),
    (f"GET {IOCM}/dm/v1.4.0/devices", "name"),
    (f"GET {IOCM}/devgroup/v1.3.0/devGroups", "name"),
    (f"POST {IOCM}/dm/v1.1.0/devices/deleteDevGroupTagFromDevices", "deviceIds"),
    (f"GET {IODM}/operations", "deviceId"),
    (f"GET {API}/devices", "nodeId"),
    (f"GET {API}/devices", "name"),
    (f"GET {API}/groups", "name"),
    (f"GET {API}/tasks", "deviceId"),
    (f"GET {API}/audit", "objectId"),
    (f"DELETE {API}/groups/{{group}}/devices", "deviceIds"),
    (f"DELETE {API}/groups/{{group}}/devices", "nodeIds"),
}


def foreign_requests(route: Route, own: Request, other: Things) -> Iterator[tuple[str, Request]]:
    """The same request with one identifier after the other replaced by the other application's."""
    for name in own.path:
        if (label(route), name) in NAMES_ANYBODY:
            continue
        for value in PATH[name](other):
            yield name, _with(own, path={**own.path, name: value})
    names = {**QUERY, **(NAMES_IN_A_LIST if route.method == "GET" else {})}
    for name in members(route.query):
        if name in names:
            yield name, _with(own, query={**own.query, name: names[name](other)})
        else:
            assert name in PLAIN, f"{label(route)}: what is the query's {name!r}?"
    for name in members(route.body):
        if name in BODY:
            yield name, _with(own, body=_body_with(route, own.body, name, BODY[name](other)))
        else:
            assert name in PLAIN, f"{label(route)}: what is the body's {name!r}?"


def _with(request: Request, **changes: Any) -> Request:
    return Request(**{**copy.deepcopy(vars(request)), **changes})


def _body_with(route: Route, body: Any, name: str, value: Any) -> Any:
    body = copy.deepcopy(body)
    if name == "targets.deviceGroups":
        body["targets"] = {"deviceGroups": value, **PRODUCT}
    elif name == "targets.devices":
        body["targets"]["devices"] += value  # beside an own one: nothing at all may come of it
    elif name == "nodeIds":
        body.pop("deviceIds")
        body["nodeIds"] = value
    elif name == "deviceIds" and (label(route), name) not in QUIET:
        body["deviceIds"] += value
    else:
        body[name] = value
    return body


# ---------------------------------------------------------------- two applications


@dataclass
class Two:
    """A, whose things are at stake, and B, who calls."""

    world: World
    a: Things
    b: dict[str, str]  # headers
    b_id: str

    async def send(self, route: Route, request: Request, headers: dict[str, str]) -> httpx.Response:
        return await self.world.http.request(
            route.method,
            route.path.format(**request.path),
            params=request.query,
            headers=headers,
            **({"content": request.content} if request.content is not None else {}),
            **({"json": request.body} if request.body is not None else {}),
        )


@pytest.fixture
async def two(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Two]:
    async with build_world(database_url, tmp_path, clock) as world:
        application = await world.rooms.access.create_application("b")
        login = await world.rooms.access.login(application.app_id, application.secret)
        b = {"app_key": application.app_id, "Authorization": f"Bearer {login.access_token}"}
        a = await make_things(world, world.app_id, await world.login(), "BelongsToA")
        yield Two(world, a, b, application.app_id)


# ------------------------------------------------------------------------- tests


def test_a_route_needs_a_token_unless_it_is_known_to_be_open() -> None:
    routes = [*COMPAT, *NATIVE]
    assert {label(r) for r in routes if r.needs is Needs.NOTHING} == OPEN
    assert len({label(r) for r in routes}) == len(routes)


async def frozen(two: Two) -> dict[str, str]:
    """Headers of an application that A has authorized, and that was frozen after it logged in."""
    access = two.world.rooms.access
    made = await access.create_application("frozen")
    await access.authorize(two.world.actor, made.app_id)
    login = await access.login(made.app_id, made.secret)
    await access.set_frozen(made.app_id, frozen=True)
    return {"app_key": made.app_id, "Authorization": f"Bearer {login.access_token}"}


async def test_no_route_of_the_compatible_api_answers_without_the_callers_own_token(two: Two) -> None:
    own_key, other_token = {"app_key": two.b_id}, {"Authorization": two.a.headers["Authorization"]}
    wrong = {
        "nothing": {},
        "no token": own_key,
        "no app_key": {"Authorization": two.b["Authorization"]},
        "another application's token": {**own_key, **other_token},
        "a token that is none": {**own_key, "Authorization": "Bearer nonsense"},
        "another application's app_key": {"app_key": two.a.app_id, "Authorization": two.b["Authorization"]},
        "the token of a frozen application": await frozen(two),
    }
    before = await rows(two.world.rooms.database)
    answered = []
    for route in COMPAT:
        if route.needs is Needs.NOTHING:
            continue
        for name, headers in wrong.items():
            answer = await two.send(route, own_request(route, two.a, "fresh"), headers)
            if (answer.status_code, answer.json().get("error_code")) != (403, "1010005"):
                answered.append(f"{label(route)} with {name}: {answer.status_code} {answer.text}")
    assert answered == []
    assert await rows(two.world.rooms.database) == before


async def test_no_route_of_the_native_api_answers_without_a_valid_token(two: Two) -> None:
    wrong = {
        "nothing": {},
        "a token that is none": {"Authorization": "Bearer nonsense"},
        "another scheme": {"Authorization": two.b["Authorization"].replace("Bearer", "GatewayToken")},
        "another application's token": {"app_key": two.b_id, "Authorization": two.a.headers["Authorization"]},
        "a gateway token": {"Authorization": f"Bearer {two.world.gateway_token}"},
        "the token of a frozen application": await frozen(two),
    }
    before = await rows(two.world.rooms.database)
    answered = []
    for route in NATIVE:
        if route.needs is Needs.NOTHING:
            continue
        for name, headers in wrong.items():
            answer = await two.send(route, own_request(route, two.a, "fresh"), headers)
            if (answer.status_code, answer.json().get("reason")) != (401, "token-invalid"):
                answered.append(f"{label(route)} with {name}: {answer.status_code} {answer.text}")
    assert answered == []
    assert await rows(two.world.rooms.database) == before


async def test_another_applications_ids_are_refused_on_every_route_and_nothing_changes(two: Two) -> None:
    database = two.world.rooms.database
    at_stake = await rows(database)
    wrong = []
    for number, route in enumerate(r for r in (*COMPAT, *NATIVE) if r.needs is Needs.APPLICATION):
        b = await make_things(two.world, two.b_id, two.b, f"OfB{number}")
        own = own_request(route, b, f"fresh{number}")
        before = await rows(database)
        for name, request in foreign_requests(route, own, two.a):
            answer = await two.send(route, request, two.b)
            quiet = (label(route), name) in QUIET
            if not (_finds_nothing(answer) if quiet else _is_refused(route, name, answer)):
                wrong.append(f"{label(route)} with another's {name}: {answer.status_code} {answer.text}")
            if leaked := _leaks(answer, request, two.a):
                wrong.append(f"{label(route)} with another's {name} tells {leaked}")
            if changed := _changed(before, await rows(database)):
                wrong.append(f"{label(route)} with another's {name} changed rows of {changed}")
                before = await rows(database)
        answer = await two.send(route, own, two.b)  # the very same request is answered for the caller's own things
        if answer.status_code >= 300 or "error_code" in answer.text:
            wrong.append(f"{label(route)} with own ids: {answer.status_code} {answer.text}")
        if leaked := _leaks(answer, own, two.a):
            wrong.append(f"{label(route)} with own ids tells {leaked}")
    assert wrong == []
    after = await rows(database)
    assert {name: kept - after[name] for name, kept in at_stake.items() if kept - after[name]} == {}


def _is_refused(route: Route, member: str, answer: httpx.Response) -> bool:
    if route in NATIVE:
        return answer.status_code == 404 and answer.json()["reason"] != "path-unknown"
    if member in route.acts_for:  # that application has not authorized the caller
        return (answer.status_code, answer.json().get("error_code")) == (403, "100217")
    # The published group calls have no code of their own for a device that is not there.
    not_found = {"100604"} if member == "deviceIds" else COMPAT_NOT_FOUND
    return answer.json().get("error_code") in not_found


def _finds_nothing(answer: httpx.Response) -> bool:
    if answer.status_code != 200:
        return False
    body = answer.json() if answer.content else {}
    return not any(body.get(name) for name in ("total", "totalCount", "items", "data", "devices", "list", "granted"))


def _leaks(answer: httpx.Response, request: Request, other: Things) -> set[str]:
    """What the answer tells of the other application that the caller did not say itself."""
    return {text for text in other.texts() if text in answer.text and text not in repr(request)}


def _changed(before: dict[str, set[Any]], after: dict[str, set[Any]]) -> list[str]:
    return [name for name in before if before[name] != after[name]]


async def test_an_application_that_has_nothing_finds_nothing_in_any_list(two: Two) -> None:
    wrong = []
    lists = [r for r in (*COMPAT, *NATIVE) if r.method == "GET" and "{" not in r.path and r.needs is Needs.APPLICATION]
    for route in lists:
        request = own_request(route, Things(two.b_id, two.b, "OfB"), "fresh")
        answer = await two.send(route, request, two.b)
        if answer.status_code >= 400 and members(route.query)[:1] == ["devGroupId"]:
            continue  # the list of a group's devices, and there is no group to name
        if not _finds_nothing(answer) or _leaks(answer, request, two.a):
            wrong.append(f"{label(route)}: {answer.status_code} {answer.text}")
    assert wrong == []
    assert len(lists) > 8


async def test_an_idempotency_key_is_its_applications_own(two: Two) -> None:
    b = await make_things(two.world, two.b_id, two.b, "OfB")
    created = []
    for t in (two.a, b):
        answer = await two.world.http.post(
            f"{IODM}/operations/firmwareUpgrade",
            headers={**t.headers, "Idempotency-Key": "the-same"},
            json={"fileId": t.file_id, "targets": {"devices": [t.spare_id]}},
        )
        assert answer.status_code == 200, answer.text
        created.append(answer.json()["operationId"])
    assert created[0] != created[1]


async def test_one_applications_secret_opens_no_session_of_another(two: Two) -> None:
    world = two.world
    b = await world.rooms.access.create_application("c")
    kept = await world.rooms.access.login(world.app_id, world.secret)
    login = await world.http.post(f"{IOCM}/sec/v1.1.0/login", data={"appId": world.app_id, "secret": b.secret})
    assert (login.status_code, login.json()["error_code"]) == (401, "100208")
    refresh = f"{IOCM}/sec/v1.1.0/refreshToken"
    stolen = {"appId": b.app_id, "secret": b.secret, "refreshToken": kept.refresh_token}
    answer = await world.http.post(refresh, json=stolen)
    assert (answer.status_code, "accessToken" in answer.text) == (401, False)
    own = {"appId": world.app_id, "secret": world.secret, "refreshToken": kept.refresh_token}
    assert (await world.http.post(refresh, json=own)).status_code == 200  # it was not used up by the attempt


async def test_one_applications_sessions_end_without_the_others(two: Two) -> None:
    world = two.world
    b = await world.rooms.access.create_application("c")
    kept = await world.rooms.access.login(world.app_id, world.secret)
    ended = await world.rooms.access.login(b.app_id, b.secret)  # within the same millisecond
    logout = await world.http.post(f"{IOCM}/sec/v1.1.0/logout", json={"accessToken": ended.access_token})
    assert logout.status_code == 204
    await world.rooms.access.rotate_secret(b.app_id)
    a = {"app_key": world.app_id, "Authorization": f"Bearer {kept.access_token}"}
    assert (await world.http.get(f"{IODM}/operations", headers=a)).status_code == 200
    own = {"appId": world.app_id, "secret": world.secret, "refreshToken": kept.refresh_token}
    assert (await world.http.post(f"{IOCM}/sec/v1.1.0/refreshToken", json=own)).status_code == 200


async def test_the_same_node_id_is_two_devices_in_two_applications(two: Two) -> None:
    path = f"{API}/devices"
    body = {"nodeId": two.a.node_id, **PRODUCT}
    made = await two.world.http.post(path, headers=two.b, json=body)
    assert made.status_code == 201
    assert made.json()["deviceId"] != two.a.device_id
    deleted = await two.world.http.delete(f"{path}/{two.a.node_id}", headers=two.b)
    assert deleted.status_code == 204
    assert (await two.world.http.get(f"{path}/{two.a.node_id}", headers=two.a.headers)).status_code == 200
    target = Target(devices=(two.a.spare_id,))  # and its owner goes on with it
    assert await two.world.rooms.campaigns.create(
        two.world.actor, NewCampaign(CampaignKind.FIRMWARE, two.world.file_id, target)
    )
