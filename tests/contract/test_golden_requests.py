"""Every call of the two published client libraries, byte for byte as they send it, over a real socket (section 1.3).

`tests/support/published_clients.py` says where the bytes come from, and what a library needs of an answer.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openiodm.app import running
from openiodm.packages.model import FileType, NewPackage
from openiodm.rooms import Rooms
from openiodm.settings import load
from tests.support.process import free_port
from tests.support.published_clients import FORM, Java, Library, Php, Sent, check

OPERATIONS = "/iodm/northbound/v1.5.0/operations"
CATEGORY = "/iodm/northbound/v1.5.0/category"
CREDENTIALS = "/iocm/app/reg/v1.1.0/deviceCredentials"
DEVICES = "/iocm/app/dm/v1.4.0/devices"
GROUPS = "/iocm/app/devgroup/v1.3.0/devGroups"
MEMBERS = "/iocm/app/dm/v1.1.0/devices"
MANAGEMENT = "/iodm/app/sub/v1.1.0/subscribe"
SUBSCRIPTIONS = "/iocm/app/sub/v1.2.0/subscriptions"


def texts(names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), str)


# The classes that answers are read into, member by member.
TOKENS = {**texts("accessToken tokenType refreshToken scope"), "expiresIn": int}
REGISTERED = {**texts("deviceId verifyCode psk"), "timeout": int}
INFO = texts(
    "nodeId name description manufacturerId manufacturerName mac location deviceType model swVersion fwVersion "
    "hwVersion protocolType bridgeId status statusDetail mute supportedSecurity isSecurity signalStrength sigVersion "
    "serialNumber batteryLevel"
)
DEVICE = {
    **texts("deviceId gatewayId nodeType createTime lastModifiedTime"),
    "deviceInfo": INFO,
    "services": [{}],
}
PAGED = {"totalCount": int, "pageNo": int, "pageSize": int}
CREATED_GROUP = {**texts("name description id appId"), "maxDevNum": int, "curDevNum": int}
GROUP = {**CREATED_GROUP, "creator": str}
PACKAGE = texts(
    "fileId name version fileType deviceType model manufacturerName protocolType description date uploadTime"
)
TASK = {
    **texts("operationId createTime startTime stopTime operateType status"),
    "targets": texts("deviceType model manufacturerName"),
    "staResult": dict.fromkeys(("total", "wait", "processing", "success", "fail", "stop", "timeout"), int),
    "extendPara": {},
}
SUBTASK = {
    **texts("subOperationId createTime startTime stopTime operateType deviceId status detailInfo"),
    "extendInfo": {},
}
SUBSCRIPTION = texts("subscriptionId notifyType callbackUrl")
TASKS = {"data": [TASK], "pageNo": int, "pageSize": int, "totalSize": int}
ONE_DEVICE = '{"deviceIds":["<device>"],"name":"group1"}'


def login(body: str) -> Sent:
    keeps = {"token": "accessToken", "refresh": "refreshToken"}
    return Sent("log in", "POST", "/iocm/app/sec/v1.1.0/login", body, TOKENS, keeps, media=FORM, anonymous=True)


def refresh() -> Sent:
    body = '{"appId":"<app>","secret":"<secret>","refreshToken":"<refresh>"}'
    keeps = {"token": "accessToken"}
    return Sent("refresh", "POST", "/iocm/app/sec/v1.1.0/refreshToken", body, TOKENS, keeps, anonymous=True)


def reading_one() -> list[Sent]:
    """GETs that look the same in both libraries."""
    activation = {"deviceId": str, "activated": bool, "name": str}
    return [
        Sent("activation", "GET", f"{CREDENTIALS}/<device>", reads=activation),
        Sent("one device", "GET", f"{DEVICES}/<device>?select=imsi", reads=DEVICE),
        Sent("shadow", "GET", "/iocm/app/shadow/v1.5.0/devices/<device>", reads=DEVICE),
        Sent("groups", "GET", f"{GROUPS}?pageNo=0&pageSize=10", reads={**PAGED, "list": [GROUP]}),
        Sent("one group", "GET", f"{GROUPS}/<group>", reads=GROUP),
        Sent(
            "members",
            "GET",
            "/iocm/app/dm/v1.2.0/devices/ids?devGroupId=<group>&pageNo=0&pageSize=10",
            reads={**PAGED, "deviceIds": [str]},
        ),
        Sent("one package", "GET", f"{CATEGORY}/<file>", reads=PACKAGE),
    ]


def members(body: str) -> list[Sent]:
    return [
        Sent("remove members", "POST", f"{MEMBERS}/deleteDevGroupTagFromDevices", body),
        Sent(
            "add members", "POST", f"{MEMBERS}/addDevGroupTagToDevices", body, {"devGroupId": str, "deviceIds": [str]}
        ),
    ]


def creating(body: str) -> list[Sent]:
    made, task = {"operationId": str}, {"task": "operationId"}
    return [
        Sent("create a firmware task", "POST", f"{OPERATIONS}/firmwareUpgrade", body, made, task),
        Sent("a firmware package as software", "POST", f"{OPERATIONS}/softwareUpgrade", body, refused=(400, "120015")),
    ]


def subscribing(management: str, business: str, listing: str) -> list[Sent]:
    """The management class spells callbackurl; in PHP the names of a listing's query carry their class and two NULs."""
    kept = {"subscription": "subscriptionId"}
    return [
        Sent("subscribe, management", "POST", MANAGEMENT, management),
        Sent("subscribe, business", "POST", SUBSCRIPTIONS, business, SUBSCRIPTION, kept),
        Sent("subscriptions", "GET", SUBSCRIPTIONS + listing, reads={**PAGED, "subscriptions": [SUBSCRIPTION]}),
        Sent("one subscription", "GET", f"{SUBSCRIPTIONS}/<subscription>", reads=SUBSCRIPTION),
        Sent("delete a subscription", "DELETE", f"{SUBSCRIPTIONS}/<subscription>"),
        Sent("delete subscriptions", "DELETE", SUBSCRIPTIONS),
        Sent("delete subscriptions again", "DELETE", SUBSCRIPTIONS, refused=(404, "200001")),
    ]


def tasks() -> list[Sent]:
    page = {**PAGED, "data": [SUBTASK]}
    return [
        Sent("one task", "GET", f"{OPERATIONS}/<task>", reads=TASK),
        Sent("subtasks", "GET", f"{OPERATIONS}/<task>/subOperations?pageNo=0&pageSize=10", reads=page),
        Sent("an unknown task", "GET", f"{OPERATIONS}/nothing", refused=(404, "123009")),
    ]


# json-lib puts members in the order of the alphabet and leaves out what is null, and empty lists; primitives it sends
# always (`retryType`, `maxDevNum`). Parameters come in the order of a hash map. appId goes only where a query is sent
# anyway.
JAVA: Sequence[Sent] = [
    login("appId=<app>&secret=<secret>"),
    refresh(),
    Sent(
        "register",
        "POST",
        CREDENTIALS,
        '{"nodeId":"860000000000001","timeout":0,"verifyCode":"860000000000001"}',
        REGISTERED,
        {"device": "deviceId"},
    ),
    Sent("register again", "POST", CREDENTIALS, '{"nodeId":"860000000000001"}', refused=(400, "100426")),
    Sent("register, deprecated", "POST", "/iocm/app/reg/v1.1.0/devices", '{"nodeId":"old-1"}', REGISTERED),
    Sent(
        "modify",
        "PUT",
        f"{DEVICES}/<device>",
        '{"deviceType":"SmartMeter","manufacturerId":"Acme","manufacturerName":"Acme","model":"SM-100",'
        '"name":"meter 1","protocolType":"CoAP"}',
    ),
    Sent(
        "refresh the key",
        "PUT",
        f"{CREDENTIALS}/<device>",
        '{"timeout":10000,"verifyCode":"860000000000009"}',
        {"verifyCode": str, "timeout": int},
    ),
    Sent("devices", "GET", f"{DEVICES}?pageNo=0&pageSize=10&sort=ASC", reads={**PAGED, "devices": [DEVICE]}),
    Sent("devices, nothing given", "GET", DEVICES, refused=(400, "100218")),
    Sent("create a group", "POST", GROUPS, ONE_DEVICE, CREATED_GROUP, {"group": "id"}),
    Sent("a group's name again", "POST", GROUPS, ONE_DEVICE, refused=(200, "100602")),
    *reading_one(),
    Sent("modify a group", "PUT", f"{GROUPS}/<group>", '{"maxDevNum":0,"name":"group2"}', CREATED_GROUP),
    *members('{"devGroupId":"<group>","deviceIds":["<device>"]}'),
    Sent(
        "packages",
        "GET",
        f"{CATEGORY}?pageNo=0&pageSize=10&fileType=firmwarePackage",
        reads={**PAGED, "data": [PACKAGE]},
    ),
    *creating(
        '{"fileId":"<file>","policy":{"executeType":"now","retryType":false},"targets":{"devices":["<device>"]}}'
    ),
    Sent(
        "create a task for a group",
        "POST",
        f"{OPERATIONS}/firmwareUpgrade",
        '{"fileId":"<file>","policy":{"executeType":"device_online","retryTimes":2,"retryType":true},"targets":'
        '{"deviceGroups":["group2"],"deviceType":"SmartMeter","manufacturerName":"Acme","model":"SM-100"}}',
        {"operationId": str},
    ),
    *tasks(),
    Sent(
        "task list",
        "GET",
        f"{OPERATIONS}?deviceType=SmartMeter&manufacturerName=Acme&pageNo=0&pageSize=10"
        "&operationType=firmware_upgrade&model=SM-100&deviceId=<device>",
        reads=TASKS,
    ),
    Sent("task list, nothing given", "GET", OPERATIONS, reads=TASKS),
    Sent("task list, page too large", "GET", f"{OPERATIONS}?pageSize=101", refused=(400, "123029")),
    *subscribing(
        '{"callbackurl":"https://203.0.113.7:8443/callback","notifyType":"fwUpgradeResultNotify"}',
        '{"callbackUrl":"https://203.0.113.7:8443/callback","notifyType":"deviceAdded"}',
        "?pageNo=0&pageSize=10",
    ),
    Sent("delete a package in use", "DELETE", f"{CATEGORY}/<file>", refused=(400, "120015")),
    Sent("delete a group", "DELETE", f"{GROUPS}/<group>"),
    Sent("delete a device", "DELETE", f"{DEVICES}/<device>?cascade=true"),
    Sent("delete a package", "DELETE", f"{CATEGORY}/<unused>"),
    Sent("log out", "POST", "/iocm/app/sec/v1.1.0/logout", '{"accessToken":"<token>"}', anonymous=True),
    Sent("after the log out", "GET", f"{OPERATIONS}/nothing", refused=(403, "1010005")),
]

# Members in the order of the class. The form of the login is not encoded, so a secret must need no encoding. Queries of
# DELETE and POST never leave it, and the slashes of a body's texts are escaped.
PHP_LISTING = "%00iotyun%5Chuaweiiot%5Cclient%5Cdto%5CQueryBatchSubInDTO%00"
PHP: Sequence[Sent] = [
    login("appId=<app>&secret=<secret>"),
    refresh(),
    Sent(
        "register",
        "POST",
        CREDENTIALS,
        '{"nodeId":"86002","timeout":0,"verifyCode":"86002"}',
        REGISTERED,
        {"device": "deviceId"},
    ),
    Sent(
        "modify",
        "PUT",
        f"{DEVICES}/<device>",
        '{"name":"m","manufacturerId":"Acme","manufacturerName":"Acme","deviceType":"SmartMeter","model":"SM-100",'
        '"protocolType":"CoAP"}',
    ),
    Sent(
        "refresh the key",
        "PUT",
        f"{CREDENTIALS}/<device>",
        '{"verifyCode":"86009","timeout":10000}',
        {"verifyCode": str, "timeout": int},
    ),
    Sent("devices", "GET", f"{DEVICES}?pageNo=0&pageSize=10", reads={**PAGED, "devices": [DEVICE]}),
    Sent(
        "create a group",
        "POST",
        GROUPS,
        '{"name":"group1","deviceIds":["<device>"]}',
        CREATED_GROUP,
        {"group": "id"},
    ),
    *reading_one(),
    Sent("modify a group", "PUT", f"{GROUPS}/<group>", '{"name":"group2","maxDevNum":0}', CREATED_GROUP),
    *members('{"devGroupId":"<group>","deviceIds":["<device>"]}'),
    Sent(
        "packages",
        "GET",
        f"{CATEGORY}?fileType=firmwarePackage&pageNo=0&pageSize=10",
        reads={**PAGED, "data": [PACKAGE]},
    ),
    *creating(
        '{"fileId":"<file>","targets":{"devices":["<device>"]},"policy":{"executeType":"now","retryType":false}}'
    ),
    *tasks(),
    Sent(
        "task list",
        "GET",
        f"{OPERATIONS}?operationType=firmware_upgrade&deviceType=SmartMeter&deviceId=<device>&pageNo=0&pageSize=10",
        reads=TASKS,
    ),
    *subscribing(
        r'{"notifyType":"fwUpgradeResultNotify","callbackurl":"https:\/\/203.0.113.7:8443\/callback"}',
        r'{"notifyType":"deviceAdded","callbackUrl":"https:\/\/203.0.113.7:8443\/callback"}',
        f"?{PHP_LISTING}pageNo=0&{PHP_LISTING}pageSize=10",
    ),
    Sent("delete a group", "DELETE", f"{GROUPS}/<group>"),
    Sent("delete a device", "DELETE", f"{DEVICES}/<device>"),
    Sent("delete a package", "DELETE", f"{CATEGORY}/<unused>"),
]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Rooms, int]]:
    port = free_port()
    async with running(load(environ={}, data_dir=str(tmp_path), listen=f"127.0.0.1:{port}")) as rooms:
        yield rooms, port


async def ids_of(rooms: Rooms) -> dict[str, str]:
    """An application with two firmware packages."""
    made = await rooms.access.create_application("golden")
    actor = (await rooms.access_queries.application(made.app_id)).actor

    async def content() -> AsyncIterator[bytes]:
        yield b"firmware"

    async def upload(version: str) -> str:
        about = NewPackage(FileType.FIRMWARE, "fw.bin", version, "SmartMeter", "SM-100", "Acme")
        return (await rooms.packages.upload(actor, about, content())).file_id

    return {"app": made.app_id, "secret": made.secret, "file": await upload("2.0"), "unused": await upload("3.0")}


@pytest.mark.parametrize(("library", "calls"), [(Java, JAVA), (Php, PHP)], ids=["java", "php"])
async def test_every_call_of_a_published_library_is_answered_as_it_needs(
    served: tuple[Rooms, int], library: type[Library], calls: Sequence[Sent]
) -> None:
    rooms, port = served
    client = library(port, await ids_of(rooms))
    for sent in calls:
        body: Any = check(sent, await client.send(sent))
        client.ids.update({name: body[member] for name, member in sent.keeps.items()})
    await client.close()


@pytest.mark.parametrize("library", [Java, Php])
async def test_a_refusal_never_lacks_its_content_type_and_its_codes_are_texts(
    served: tuple[Rooms, int], library: type[Library]
) -> None:
    rooms, port = served
    client = library(port, {**await ids_of(rooms), "token": "none"})
    wrong_secret = replace(login("appId=<app>&secret=no"), reads=None, keeps={}, refused=(401, "100208"))
    for sent in (
        Sent("no such token", "GET", OPERATIONS, refused=(403, "1010005")),
        Sent("no such path", "GET", "/iodm/northbound/v1.5.0/nothing", refused=(404, "120015")),
        Sent("no such method", "PUT", OPERATIONS, refused=(405, "120015")),
        wrong_secret,
    ):
        check(sent, await client.send(sent))
    await client.close()


async def test_secrets_and_tokens_need_no_encoding(served: tuple[Rooms, int]) -> None:
    """The PHP library joins appId and secret to a form as they are."""
    rooms, _ = served
    for number in range(20):
        made = await rooms.access.create_application(f"a{number}")
        assert not set(made.app_id + made.secret) & set("+%&=# ")
