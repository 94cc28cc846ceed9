"""Every row of the compatible API's error tables is reached by a request, on both engines.

The rows are walked, not listed: one that nobody has made up a request for fails here, so that a code cannot be added
untested. A request must be answered with the status and code of its row, for the very reason that the row names.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from openiodm.clock import SECOND, Instant
from openiodm.errors import Reason, Refusal
from openiodm.northbound.compat.credentials import CREDENTIALS, SECRETS
from openiodm.northbound.compat.devices import DEVICES, SHADOW
from openiodm.northbound.compat.edge import COMMON, FAMILIES, CompatEdge, No
from openiodm.northbound.compat.groups import ADD, GROUPS
from openiodm.northbound.compat.packages import PATH as CATEGORY
from openiodm.northbound.compat.subscriptions import MANAGEMENT, SUBSCRIPTIONS
from openiodm.northbound.compat.tasks import PATH as OPERATIONS
from openiodm.northbound.compat.times import format_time
from tests.conftest import ManualClock
from tests.support.server import World, build_world
from tests.support.things import API, IOCM, PRODUCT, Things, make_things

LOGIN, REFRESH = f"{IOCM}/sec/v1.1.0/login", f"{IOCM}/sec/v1.1.0/refreshToken"

MALFORMED = "malformed"
Row = tuple[str, str]  # family, and the reason or MALFORMED


def rows() -> Iterator[tuple[Row, No]]:
    """Every answer that the edge has in its tables."""
    for reason, no in COMMON.items():
        yield ("common", reason), no
    for family in dict.fromkeys(family.name for _, family in FAMILIES):
        table = next(f for _, f in FAMILIES if f.name == family)
        yield (family, MALFORMED), table.bad_request
        for reason, no in table.rows.items():
            yield (family, reason), no


@dataclass
class Caller:
    """An application with one of each thing, another one without, and how to ask."""

    world: World
    things: Things
    seen: list[Reason]

    async def ask(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        headers = kwargs.pop("headers", self.things.headers)
        return await self.world.http.request(method, path, headers=headers, **kwargs)

    async def post(self, path: str, body: Any, **query: Any) -> httpx.Response:
        return await self.ask("POST", path, json=body, params=query)

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self.ask("GET", path, params=query)

    async def create(self, policy: Any = None, **targets: Any) -> httpx.Response:
        targets = targets or {"devices": [self.things.spare_id]}
        body = {"fileId": self.things.file_id, "targets": targets, "policy": policy}
        return await self.post(f"{OPERATIONS}/firmwareUpgrade", body)

    async def window(self, start_s: int, end_s: int) -> httpx.Response:
        """From and to so many seconds after now."""
        now = self.world.rooms.clock.now()
        start, end = (format_time(Instant(now + s * SECOND)) for s in (start_s, end_s))
        return await self.create({"executeType": "custom", "startTime": start, "endTime": end})

    async def log_in(self, **form: str) -> httpx.Response:
        return await self.ask("POST", LOGIN, data=form, headers={})


async def frozen(c: Caller) -> Any:
    """An application that was frozen after it logged in."""
    made = await c.world.rooms.access.create_application("frozen")
    login = await c.world.rooms.access.login(made.app_id, made.secret)
    await c.world.rooms.access.set_frozen(made.app_id, frozen=True)
    return made, {"app_key": made.app_id, "Authorization": f"Bearer {login.access_token}"}


async def frozen_login(c: Caller) -> httpx.Response:
    made, _ = await frozen(c)
    return await c.log_in(appId=made.app_id, secret=made.secret)


async def throttled(c: Caller) -> httpx.Response:
    """A stranger calls too often: the others' buckets are their own."""
    made = await c.world.rooms.access.create_application("busy")
    login = await c.world.rooms.access.login(made.app_id, made.secret)
    headers = {"app_key": made.app_id, "Authorization": f"Bearer {login.access_token}"}
    answers = [await c.ask("GET", f"{OPERATIONS}/x", headers=headers) for _ in range(CALLS + 1)]
    return answers[-1]


async def online(c: Caller) -> httpx.Response:
    (device_id,) = await c.world.register("online")
    await c.world.rooms.last_seen.flush()
    return await c.ask("PUT", f"{CREDENTIALS}/{device_id}", json={})


async def node_id_taken(c: Caller) -> httpx.Response:
    return await c.post(CREDENTIALS, {"nodeId": c.things.node_id})


async def verify_code_taken(c: Caller) -> httpx.Response:
    assert (await c.post(CREDENTIALS, {"nodeId": "v1", "verifyCode": "v"})).status_code == 200
    return await c.post(CREDENTIALS, {"nodeId": "v2", "verifyCode": "v"})


async def too_many_devices(c: Caller) -> httpx.Response:
    for i in range(MOST):
        answer = await c.post(SECRETS, {"deviceInfo": {"nodeId": f"many{i}"}})
        if answer.status_code != 200:
            break
    return answer


async def too_many_groups(c: Caller) -> httpx.Response:
    for i in range(MOST):
        answer = await c.post(GROUPS, {"name": f"many{i}"})
        if answer.status_code != 201:
            break
    return answer


async def full_group(c: Caller) -> httpx.Response:
    made = await c.post(GROUPS, {"name": "full", "maxDevNum": 1, "deviceIds": [c.things.device_id]})
    return await c.post(ADD, {"devGroupId": made.json()["id"], "deviceIds": [c.things.spare_id]})


async def other_product(c: Caller) -> httpx.Response:
    made = await c.post(CREDENTIALS, {"nodeId": "lamp", "deviceInfo": {**PRODUCT, "model": "lamp"}})
    return await c.create(devices=[made.json()["deviceId"]])


CALLBACK = "http://192.0.2.1:8080/notices"  # of RFC 5737: nobody is there, and nobody is asked
ADDED = {"notifyType": "deviceAdded", "callbackUrl": CALLBACK}


async def subscribed_twice(c: Caller) -> httpx.Response:
    await c.post(SUBSCRIPTIONS, ADDED)
    return await c.post(SUBSCRIPTIONS, ADDED)


def group_target(without: str) -> Callable[[Caller], Awaitable[httpx.Response]]:
    async def ask(c: Caller) -> httpx.Response:
        return await c.create(deviceGroups=[c.things.group_name], **{k: v for k, v in PRODUCT.items() if k != without})

    return ask


R = Reason
REQUESTS: dict[Row, Callable[[Caller], Awaitable[httpx.Response]]] = {
    ("common", R.TOKEN_INVALID): lambda c: c.ask("GET", OPERATIONS, headers={"app_key": c.things.app_id}),
    ("common", R.THROTTLED): throttled,
    ("common", R.APPLICATION_UNKNOWN): lambda c: c.get(GROUPS, accessAppId="nobody"),
    ("common", R.APPLICATION_UNAUTHORIZED): lambda c: c.get(DEVICES, pageNo=0, appId=c.things.friend_id),
    ("auth", MALFORMED): lambda c: c.ask("POST", REFRESH, content=b"{", headers={}),
    ("auth", R.CREDENTIALS_MISSING): lambda c: c.log_in(appId=c.things.app_id),
    ("auth", R.CREDENTIALS_WRONG): lambda c: c.log_in(appId=c.things.app_id, secret="wrong"),
    ("auth", R.APPLICATION_FROZEN): frozen_login,
    ("credentials", MALFORMED): lambda c: c.post(CREDENTIALS, {"nodeId": "n", "timeout": -1}),
    ("credentials", R.MESSAGE_BAD): lambda c: c.post(CREDENTIALS, {}),
    ("credentials", R.VERIFY_CODE_BAD): lambda c: c.post(CREDENTIALS, {"nodeId": "n", "verifyCode": 1}),
    ("credentials", R.VERIFY_CODE_TAKEN): verify_code_taken,
    ("credentials", R.NODE_ID_TAKEN): node_id_taken,
    ("credentials", R.DEVICE_ONLINE): online,
    ("credentials", R.DEVICE_UNKNOWN): lambda c: c.get(f"{CREDENTIALS}/nobody"),
    ("credentials", R.DEVICE_LIMIT): too_many_devices,
    ("devices", MALFORMED): lambda c: c.ask("PUT", f"{DEVICES}/{c.things.device_id}", json={"name": 1}),
    ("devices", R.DEVICE_LIST_UNBOUND): lambda c: c.get(DEVICES),
    ("devices", R.BAD_FILTER): lambda c: c.get(DEVICES, pageNo=0, pageSize=251),
    ("devices", R.DEVICE_UNKNOWN): lambda c: c.get(f"{DEVICES}/nobody"),
    ("shadow", MALFORMED): lambda c: c.get(f"{SHADOW}/{c.things.device_id}", appId="x" * 257),
    ("shadow", R.DEVICE_UNKNOWN): lambda c: c.get(f"{SHADOW}/nobody"),
    ("groups", MALFORMED): lambda c: c.get(GROUPS, pageSize=501),
    ("groups", R.DEVICE_UNKNOWN): lambda c: c.post(ADD, {"devGroupId": c.things.group_id, "deviceIds": ["nobody"]}),
    ("groups", R.GROUP_FULL): full_group,
    ("groups", R.GROUP_NAME_TAKEN): lambda c: c.post(GROUPS, {"name": c.things.group_name}),
    ("groups", R.GROUP_UNKNOWN): lambda c: c.get(f"{GROUPS}/nothing"),
    ("groups", R.GROUP_LIMIT): too_many_groups,
    ("groups", R.GROUP_TOO_MANY_DEVICES): lambda c: c.post(
        ADD, {"devGroupId": c.things.group_id, "deviceIds": ["x"] * 1001}
    ),
    ("packages", MALFORMED): lambda c: c.get(CATEGORY, pageSize=0),
    ("packages", R.PACKAGE_UNKNOWN): lambda c: c.get(f"{CATEGORY}/nothing"),
    ("tasks", MALFORMED): lambda c: c.get(OPERATIONS, operationStatus="done"),
    ("tasks", R.BAD_PAGING): lambda c: c.get(OPERATIONS, pageSize=101),
    ("tasks", R.CAMPAIGN_UNKNOWN): lambda c: c.get(f"{OPERATIONS}/nothing"),
    ("tasks", R.PACKAGE_UNKNOWN): lambda c: c.post(
        f"{OPERATIONS}/softwareUpgrade", {"fileId": "nothing", "targets": {"devices": [c.things.spare_id]}}
    ),
    ("tasks", R.DEVICE_UNKNOWN): lambda c: c.create(devices=["nobody"]),
    ("tasks", R.GROUP_UNKNOWN): lambda c: c.create(deviceGroups=["nothing"], **PRODUCT),
    ("tasks", R.TARGET_MISMATCH): other_product,
    ("tasks", R.TARGET_MANUFACTURER_MISSING): group_target(without="manufacturerName"),
    ("tasks", R.TARGET_DEVICE_TYPE_MISSING): group_target(without="deviceType"),
    ("tasks", R.TARGET_MODEL_MISSING): group_target(without="model"),
    ("tasks", R.TARGETS_MISSING): lambda c: c.create(devices=[]),
    ("tasks", R.TARGETS_BOTH): lambda c: c.create(devices=["a"], deviceGroups=["b"], **PRODUCT),
    ("tasks", R.TARGETS_TOO_MANY): lambda c: c.create(devices=[f"d{i}" for i in range(257)]),
    ("tasks", R.EXECUTE_TYPE_BAD): lambda c: c.create({"executeType": "later"}),
    ("tasks", R.WINDOW_BAD): lambda c: c.create({"executeType": "custom", "startTime": "tomorrow"}),
    ("tasks", R.RETRY_TIMES_BAD): lambda c: c.create({"executeType": "now", "retryType": True, "retryTimes": 6}),
    ("tasks", R.WINDOW_REVERSED): lambda c: c.window(7200, 3600),
    ("tasks", R.WINDOW_IN_PAST): lambda c: c.window(-120, 3600),
    ("tasks", R.WINDOW_TOO_SHORT): lambda c: c.window(60, 359),
    ("management subscriptions", MALFORMED): lambda c: c.post(MANAGEMENT, {"notifyType": "x", "callbackUrl": CALLBACK}),
    ("management subscriptions", R.CALLBACK_BAD): lambda c: c.post(
        MANAGEMENT, {"notifyType": "swUpgradeStateChangeNotify", "callbackUrl": "http://192.0.2.1/without-a-port"}
    ),
    ("subscriptions", MALFORMED): lambda c: c.post(SUBSCRIPTIONS, {"notifyType": 5, "callbackUrl": CALLBACK}),
    ("subscriptions", R.CALLBACK_BAD): lambda c: c.post(SUBSCRIPTIONS, {**ADDED, "callbackUrl": "http://192.0.2.1:80"}),
    ("subscriptions", R.SUBSCRIPTION_UNKNOWN): lambda c: c.get(f"{SUBSCRIPTIONS}/nothing"),
    ("subscriptions", R.SUBSCRIPTIONS_NONE): lambda c: c.ask(
        "DELETE", SUBSCRIPTIONS, params={"notifyType": "bindDevice"}
    ),
    ("subscriptions", R.SUBSCRIPTION_EXISTS): subscribed_twice,
}

# Limits of the world in which they are asked.
CALLS, MOST = 200, 30
LAST = (R.DEVICE_LIMIT, R.GROUP_LIMIT)  # after these nothing more can be made


@pytest.fixture
async def caller(
    database_url: str, tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Caller]:
    seen: list[Reason] = []
    refuse = CompatEdge.refusal

    def refusal(self: CompatEdge, refusal: Refusal, request: HttpRequest) -> Response:
        seen.append(refusal.reason)
        return refuse(self, refusal, request)

    monkeypatch.setattr(CompatEdge, "refusal", refusal)
    limits = {"calls_per_minute": CALLS, "devices_per_application": MOST, "groups_per_application": MOST}
    async with build_world(database_url, tmp_path, clock, **limits) as world:
        things = await make_things(world, world.app_id, await world.login(), "Own")
        yield Caller(world, things, seen)


def told(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json().get("error_code")


async def test_every_row_of_the_error_tables_is_reached_by_a_request(caller: Caller) -> None:
    table = dict(rows())
    assert set(REQUESTS) == set(table), "a row without a request, or a request without a row"
    wrong = []
    for row in sorted(table, key=lambda row: row[1] in LAST):
        answer = await REQUESTS[row](caller)
        reason = caller.seen[-1]
        expected = table[row]
        for_it = reason.startswith("bad-") if row[1] == MALFORMED else reason == row[1]
        if told(answer) != (expected.status, expected.code) or not for_it:
            wrong.append(f"{row}: {answer.status_code} {answer.text}, for {reason}")
    assert wrong == []


@pytest.mark.parametrize(
    "path", [f"{IOCM}/nothing", "/iodm/northbound/v1.5.0/nothing", f"{IOCM}/batchtask/v1.1.0/tasks", "/nothing"]
)
async def test_section_8_and_unknown_paths_are_answered_with_the_error_body(caller: Caller, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE"):
        assert told(await caller.ask(method, path)) == (404, "120015")


async def test_a_wrong_method_is_answered_with_the_error_body(caller: Caller) -> None:
    answer = await caller.ask("PUT", OPERATIONS)
    assert (told(answer), answer.headers["allow"]) == ((405, "120015"), "GET, HEAD")


async def test_a_fault_of_the_server_is_answered_with_the_error_body(caller: Caller) -> None:
    database = caller.world.rooms.database
    async with database.transaction() as tx:
        await tx.execute("ALTER TABLE campaign RENAME TO gone")
    for answer in (await caller.get(OPERATIONS), await caller.create()):
        assert told(answer) == (500, "50252")
    assert (await caller.ask("GET", API + "/tasks")).status_code == 500
