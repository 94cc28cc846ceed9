"""What an application has, one of each kind, and a request for every route that succeeds with it.

For tests that walk all routes: a route that nobody can make up a request for fails them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from openiodm.http.routes import Route
from openiodm.storage.engine import Database
from openiodm.storage.tables import metadata
from tests.support.routes import label
from tests.support.server import World

PRODUCT = {"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
CALLBACK = "http://receiver.example:80/"
IOCM, IODM, API = "/iocm/app", "/iodm/northbound/v1.5.0", "/api/v1"


@dataclass
class Things:
    """What one application has, one of each kind, made anew for every route that is tried."""

    app_id: str
    headers: dict[str, str]
    mark: str
    device_id: str = ""
    node_id: str = ""
    spare_id: str = ""  # a device in no group and no task
    group_id: str = ""
    group_name: str = ""
    file_id: str = ""
    software_id: str = ""
    unused_id: str = ""  # a package that no task needs
    operation_id: str = ""
    failed_id: str = ""
    token_id: str = ""
    subscription_id: str = ""
    notice_id: str = ""  # an undelivered one, of that subscription
    friend_id: str = ""  # an application that it has authorized
    others: list[str] = field(default_factory=list)

    def texts(self) -> set[str]:
        """Everything that nobody else may read."""
        own = {v for k, v in vars(self).items() if isinstance(v, str) and k not in ("mark", "token_id", "notice_id")}
        return {*own, self.mark, *self.others}


@dataclass
class Request:
    """One request, before it is sent."""

    path: dict[str, str]
    query: dict[str, str] = field(default_factory=dict)
    body: Any = None
    content: bytes | None = None


# Member of a path -> the things of an application that it may name.
PATH: dict[str, Callable[[Things], list[str]]] = {
    "deviceId": lambda t: [t.device_id],
    "device": lambda t: [t.device_id, t.node_id],
    "devGroupId": lambda t: [t.group_id],
    "group": lambda t: [t.group_id],
    "fileId": lambda t: [t.file_id],
    "operationId": lambda t: [t.operation_id],
    "tokenId": lambda t: [t.token_id],
    "subscriptionId": lambda t: [t.subscription_id],
    "noticeId": lambda t: [t.notice_id],
    "appId": lambda t: [t.friend_id],
}


def own_request(route: Route, t: Things, fresh: str) -> Request:
    """A request for the caller's own things, which succeeds. KeyError: a path parameter that nobody knows."""
    path = {name: PATH[name](t)[0] for name in re.findall(r"{(\w+)}", route.path)}
    request = Request(path)
    match label(route).replace(IOCM, "iocm").replace(IODM, "iodm").replace(API, "api"):
        case "POST iocm/reg/v1.1.0/deviceCredentials" | "POST iocm/reg/v1.1.0/devices":
            request.body = {"nodeId": fresh}
        case "PUT iocm/reg/v1.1.0/deviceCredentials/{deviceId}" | "PUT iocm/reg/v1.1.0/devices/{deviceId}":
            request.body = {"verifyCode": fresh}
        case "POST iocm/reg/v2.0.0/deviceCredentials":
            request.body = {"deviceInfo": {"nodeId": fresh}}
        case "PUT iocm/reg/v2.0.0/deviceCredentials/{deviceId}":
            request.body = {"timeout": 60}
        case "GET iocm/dm/v1.4.0/devices":
            request.query = {"pageNo": "0"}
        case "PUT iocm/dm/v1.4.0/devices/{deviceId}" | "PUT iocm/devgroup/v1.3.0/devGroups/{devGroupId}":
            request.body = {"name": fresh}
        case "POST iocm/devgroup/v1.3.0/devGroups" | "POST api/groups":
            request.body = {"name": fresh, "deviceIds": [t.device_id]}
        case "GET iocm/dm/v1.2.0/devices/ids":
            request.query = {"devGroupId": t.group_id}
        case "POST iocm/dm/v1.1.0/devices/addDevGroupTagToDevices":
            request.body = {"devGroupId": t.group_id, "deviceIds": [t.spare_id]}
        case "POST iocm/dm/v1.1.0/devices/deleteDevGroupTagFromDevices":
            request.body = {"devGroupId": t.group_id, "deviceIds": [t.device_id]}
        case "POST /iodm/app/sub/v1.1.0/subscribe":
            request.body = {"notifyType": "fwUpgradeResultNotify", "callbackUrl": CALLBACK}
        case "POST iocm/sub/v1.2.0/subscriptions":
            request.body = {"notifyType": "ruleEvent", "callbackUrl": CALLBACK}
        case "POST iodm/operations/softwareUpgrade":
            request.body = {"fileId": t.software_id, "targets": {"devices": [t.spare_id]}}
        case "POST iodm/operations/firmwareUpgrade":
            request.body = {"fileId": t.file_id, "targets": {"devices": [t.spare_id]}}
        case "DELETE iodm/category/{fileId}" | "DELETE api/packages/{fileId}":
            request.path["fileId"] = t.unused_id
        case "POST api/packages":
            request.query = {"type": "firmwarePackage", "name": fresh, "version": "1", **PRODUCT}
            request.content = b"bytes"
        case "POST api/devices/bulk":
            request.content = b'{"nodeId":"%s","deviceType":"d","model":"m","manufacturerName":"m"}' % fresh.encode()
        case "POST api/devices":
            request.body = {"nodeId": fresh, **PRODUCT}
        case "PUT api/devices/{device}/target-token" | "PUT api/application":
            request.body = {}
        case "POST api/groups/{group}/devices":
            request.body = {"deviceIds": [t.spare_id]}
        case "DELETE api/groups/{group}/devices":
            request.body = {"deviceIds": [t.device_id]}
        case "PUT api/application/callbacks/tls":
            request.body = {}
        case "PUT api/application/callbacks/signature":
            request.body = {"signed": False}
        case "POST api/gateway-tokens":
            request.body = {"name": fresh, **PRODUCT}
        case "POST api/tasks":
            request.body = {"kind": "firmware_upgrade", "fileId": t.file_id, "targets": {"devices": [t.spare_id]}}
        case "POST api/tasks/{operationId}/resume":
            request.body = {}
        case "GET api/audit":
            request.query = {"operation": "device.register"}
        case "POST api/tasks/{operationId}/retry":
            request.path["operationId"] = t.failed_id
    return request


async def make_things(world: World, app_id: str, headers: dict[str, str], mark: str) -> Things:
    """One of each kind, by the native API."""

    async def post(path: str, **kwargs: Any) -> dict[str, Any]:
        answer = await world.http.post(API + path, headers=headers, **kwargs)
        assert answer.status_code in (201, 204), answer.text
        return dict(answer.json()) if answer.content else {}

    async def device(node_id: str) -> str:
        return str((await post("/devices", json={"nodeId": node_id, "name": mark, **PRODUCT}))["deviceId"])

    async def package(kind: str, version: str) -> str:
        query = {"type": kind, "name": mark, "version": version, **PRODUCT}
        return str((await post("/packages", params=query, content=mark.encode()))["fileId"])

    t = Things(app_id, headers, mark)
    t.node_id = f"{mark}-n1"
    t.device_id, t.spare_id = await device(t.node_id), await device(f"{mark}-n2")
    failing = await device(f"{mark}-n3")
    t.group_name = mark
    t.group_id = (await post("/groups", json={"name": mark, "deviceIds": [t.device_id]}))["groupId"]
    t.file_id, t.software_id = await package("firmwarePackage", "V2"), await package("softwarePackage", "V2")
    t.unused_id = await package("firmwarePackage", "V3")
    task = {"kind": "firmware_upgrade", "fileId": t.file_id}
    t.failed_id = (await post("/tasks", json={**task, "targets": {"devices": [failing]}}))["operationId"]
    await _fail(world, headers, failing)
    t.operation_id = (await post("/tasks", json={**task, "targets": {"devices": [t.device_id]}}))["operationId"]
    token = await post("/gateway-tokens", json={"name": mark, **PRODUCT})
    t.token_id = token["tokenId"]
    subscribed = await world.http.post(
        f"{IOCM}/sub/v1.2.0/subscriptions",
        headers=headers,
        json={"notifyType": "deviceAdded", "callbackUrl": f"{CALLBACK}{mark}"},
    )
    subscription = subscribed.json().get("subscriptionId") or await _subscription(world, headers)
    t.subscription_id = subscription
    t.notice_id = await _undelivered(world, subscription, mark)
    t.friend_id = (await world.rooms.access.create_application(f"friend of {mark}")).app_id
    authorized = await world.http.put(f"{API}/authorizations/{t.friend_id}", headers=headers)
    assert authorized.status_code == 204, authorized.text
    t.others = [failing, token["token"]]
    return t


async def _subscription(world: World, headers: dict[str, str]) -> str:
    """The one that is there already."""
    listed = await world.http.get(
        f"{IOCM}/sub/v1.2.0/subscriptions", headers=headers, params={"notifyType": "deviceAdded"}
    )
    return str(listed.json()["subscriptions"][0]["subscriptionId"])


async def _undelivered(world: World, subscription_id: str, mark: str) -> str:
    """A notice that was given up."""
    async with world.rooms.database.transaction() as tx:
        key = await tx.fetchval(
            "INSERT INTO notice (subscription_id, device_id, body, created_at, pending_since, attempts, given_up_at) "
            "SELECT id, 1, CAST($2 AS text), 1, 1, 1, 1 FROM subscription WHERE subscription_id = $1 RETURNING id",
            subscription_id,
            f'{{"told":"{mark}"}}',
        )
    return str(key)


async def _fail(world: World, headers: dict[str, str], device_id: str) -> None:
    """The device takes its offer and reports a failure, with a token of its own."""
    made = await world.http.put(f"{API}/devices/{device_id}/target-token", headers=headers, json={})
    as_device = {"Authorization": f"TargetToken {made.json()['token']}"}
    node_id = made.json()["nodeId"]
    offer = (await world.http.get(world.ddi(node_id), headers=as_device)).json()
    action = offer["_links"]["deploymentBase"]["href"].rpartition("/")[2].partition("?")[0]
    feedback = {"status": {"execution": "closed", "result": {"finished": "failure"}, "details": []}}
    path = world.ddi(node_id, f"/deploymentBase/{action}/feedback")
    assert (await world.http.post(path, headers=as_device, json=feedback)).status_code == 200


async def rows(database: Database) -> dict[str, set[tuple[Any, ...]]]:
    """Every row of every table but those of sessions and limits."""
    passing = ("access_token", "flow_control", "native_flow_control", "login_count")
    tables = [name for name in metadata.tables if name not in passing]
    return {name: {tuple(r) for r in await database.fetch(f"SELECT * FROM {name}")} for name in tables}
