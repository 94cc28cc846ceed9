"""The subscription calls of the compatible API: every row of sections 4.1 to 4.3, and the callback rule of 4.6."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from openiodm.northbound.compat.subscriptions import MANAGEMENT, SUBSCRIPTIONS
from openiodm.notifications.model import UPGRADE_TYPES, NotifyType
from tests.conftest import ManualClock
from tests.support.compat_server import no
from tests.support.server import World, build_world

URL = "http://receiver.example:8080/push"


class Application:
    """What an application sends, and what it has."""

    def __init__(self, world: World, headers: Mapping[str, str]) -> None:
        self.world = world
        self.headers = dict(headers)

    async def send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return await self.world.http.request(method, path, headers=self.headers, **kwargs)

    async def manage(self, **body: Any) -> httpx.Response:
        return await self.send("POST", MANAGEMENT, json=body)

    async def subscribe(self, notify_type: str = "deviceAdded", url: str = URL, **body: Any) -> httpx.Response:
        return await self.send("POST", SUBSCRIPTIONS, json={"notifyType": notify_type, "callbackUrl": url, **body})

    async def page(self, **query: Any) -> dict[str, Any]:
        answer = await self.send("GET", SUBSCRIPTIONS, params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    async def types(self, **query: Any) -> list[str]:
        return [s["notifyType"] for s in (await self.page(pageSize=100, **query))["subscriptions"]]


@pytest.fixture
async def app(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Application]:
    async with build_world(database_url, tmp_path, clock) as world:
        yield Application(world, await world.login())


async def test_4_1_each_upgrade_type_is_subscribed_to_with_either_spelling(app: Application) -> None:
    for spelling in ("callbackUrl", "callbackurl"):
        for notify_type in sorted(UPGRADE_TYPES):
            answer = await app.manage(notifyType=notify_type, **{spelling: f"{URL}/{spelling}"})
            assert (answer.status_code, answer.content) == (200, b"")
            assert answer.headers["content-type"] == "application/json"
        subscriptions = (await app.page())["subscriptions"]
        assert {s["notifyType"] for s in subscriptions} == UPGRADE_TYPES
        assert {s["callbackUrl"] for s in subscriptions} == {f"{URL}/{spelling}"}


async def test_4_1_subscribing_again_replaces_the_address(app: Application) -> None:
    await app.manage(notifyType="fwUpgradeResultNotify", callbackUrl=URL)
    (first,) = (await app.page())["subscriptions"]
    await app.manage(notifyType="fwUpgradeResultNotify", callbackUrl="https://other.example:443/")
    (second,) = (await app.page())["subscriptions"]
    assert second == {**first, "callbackUrl": "https://other.example:443/"}


async def test_4_1_100228_for_what_makes_no_sense(app: Application) -> None:
    bodies: list[dict[str, Any]] = [
        {},
        {"callbackUrl": URL},
        {"notifyType": "deviceAdded", "callbackUrl": URL},  # not management data
        {"notifyType": "nonsense", "callbackUrl": URL},
        {"notifyType": 5, "callbackUrl": URL},
        {"notifyType": "fwUpgradeResultNotify", "callbackUrl": 5},
        {"notifyType": "x" * 257, "callbackUrl": URL},
    ]
    for body in bodies:
        assert no(await app.send("POST", MANAGEMENT, json=body)) == (400, "100228"), body
    assert await app.types() == []


BAD_CALLBACKS = [
    "",
    "http://receiver.example/push",  # no port
    "http://receiver.example:8080",  # no path
    "http://192.0.2.1/push",
    "ftp://receiver.example:21/",
    "receiver.example:8080/push",
    "http://user:password@receiver.example:8080/",
    "http://user@receiver.example:8080/",
    "http://:8080/",
    "http://receiver.example:0/",
    "http://receiver.example:65536/",
    "http://receiver.example:port/",
    "http://receiver.example:8080/#part",
    "http://receiver.example:8080/a b",
    "http://receiver.example:8080/\r\nX-Header: 1",
    "http://receiver.example:8080/" + "x" * 1024,
    "http://" + "x" * 64 + ".example:8080/",
    "http://[::1:8080/",
    # this machine, its network, its cloud
    "http://localhost:8080/",
    "http://LOCALHOST.:8080/",
    "http://a.localhost:8080/",
    "http://127.0.0.1:8080/",
    "http://127.1:8080/",
    "http://2130706433:8080/",
    "http://0x7f000001:8080/",
    "http://127。0。0。1:8080/",  # IDNA takes this stop for a dot
    "http://①②⑦.0.0。①:8080/",
    "http://127.0.0.１:8080/",
    "http://ⓛocalhost:8080/",
    "http://169。254。169。254:80/latest/meta-data",
    "http://0.0.0.0:8080/",
    "http://0.1.2.3:8080/",
    "http://169.254.169.254:80/latest/meta-data",
    "http://100.100.100.200:80/",
    "http://224.0.0.1:8080/",
    "http://255.255.255.255:8080/",
    "http://[::1]:8080/",
    "http://[::]:8080/",
    "http://[::ffff:127.0.0.1]:8080/",
    "http://[::127.0.0.1]:8080/",
    "http://[64:ff9b::7f00:1]:8080/",
    "http://[2002:7f00:1::]:8080/",
    "http://[fe80::1]:8080/",
    "http://[fd00:ec2::254]:80/",
    "http://[ff02::1]:8080/",
]


async def test_4_6_100222_for_an_illegal_callback_in_both_calls(app: Application) -> None:
    for url in BAD_CALLBACKS:
        answer = await app.manage(notifyType="fwUpgradeResultNotify", callbackUrl=url)
        assert no(answer) == (400, "100222"), url
        assert no(await app.subscribe(url=url)) == (400, "100222"), url
    assert no(await app.manage(notifyType="fwUpgradeResultNotify")) == (400, "100222")
    assert no(await app.send("POST", SUBSCRIPTIONS, json={"notifyType": "deviceAdded"})) == (400, "100222")
    assert await app.types() == []


async def test_4_6_legal_callbacks_are_taken_and_shown_as_they_were_given(app: Application) -> None:
    urls = [
        "http://192.0.2.1:80/",
        "https://receiver.example:8443/a/b?c=d&e=%20",
        "HTTPS://Receiver.Example:443/",
        "http://10.0.0.5:8080/",  # those who run their own server have private networks
        "http://192.168.1.2:8080/push",
        "http://[2001:db8::1]:8080/",
        "http://[fd12:3456::1]:8080/",
        "http://bücher.example:8080/",
        "http://receiver.example:8080/" + "x" * 995,
    ]
    for url, notify_type in zip(urls, NotifyType, strict=False):
        assert len(url) <= 1024
        assert (await app.subscribe(notify_type.value, url)).status_code == 201, url
    assert [s["callbackUrl"] for s in (await app.page())["subscriptions"]] == urls[::-1]


async def test_an_allow_list_opens_what_is_refused_otherwise(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    allow = ("127.0.0.0/8", "localhost")
    async with build_world(database_url, tmp_path, clock, callback_allow=allow) as world:
        app = Application(world, await world.login())
        assert (await app.subscribe("deviceAdded", "http://127.0.0.1:1/")).status_code == 201
        assert (await app.subscribe("deviceDeleted", "http://localhost:1/")).status_code == 201
        assert no(await app.subscribe("bindDevice", "http://[::1]:1/")) == (400, "100222")


async def test_4_2_a_business_subscription_is_answered_with_its_id(app: Application) -> None:
    answer = await app.subscribe(channel="HTTP", appId=app.world.app_id)
    assert answer.status_code == 201
    made = answer.json()
    assert made == {"subscriptionId": made["subscriptionId"], "notifyType": "deviceAdded", "callbackUrl": URL}
    one = await app.send("GET", f"{SUBSCRIPTIONS}/{made['subscriptionId']}", params={"appId": app.world.app_id})
    assert (one.status_code, one.json()) == (200, made)


async def test_4_5_every_type_may_be_subscribed_to(app: Application) -> None:
    for notify_type in NotifyType:
        assert (await app.subscribe(notify_type.value)).status_code == 201
    assert await app.types() == [t.value for t in reversed(NotifyType)]
    assert len(NotifyType) == 21


async def test_4_2_100227_for_a_type_that_is_subscribed_to(app: Application) -> None:
    await app.subscribe()
    assert no(await app.subscribe(url="http://other.example:1/")) == (409, "100227")
    await app.manage(notifyType="swUpgradeResultNotify", callbackUrl=URL)
    assert no(await app.subscribe("swUpgradeResultNotify")) == (409, "100227")
    assert [s["callbackUrl"] for s in (await app.page())["subscriptions"]] == [URL, URL]


async def test_4_2_50400_for_what_makes_no_sense(app: Application) -> None:
    wrong: list[tuple[dict[str, str], dict[str, Any]]] = [
        ({}, {"notifyType": "nonsense"}),
        ({}, {"notifyType": None}),
        ({}, {"channel": "MQTT"}),
        ({}, {"channel": "x" * 33}),
        ({"ownerFlag": "perhaps"}, {}),
    ]
    for query, body in wrong:
        asked = {"notifyType": "deviceAdded", "callbackUrl": URL, **body}
        assert no(await app.send("POST", SUBSCRIPTIONS, params=query, json=asked)) == (400, "50400"), (query, body)
    assert await app.types() == []


async def test_4_2_the_owner_flag_is_taken(app: Application) -> None:
    for flag, notify_type in (("true", "deviceAdded"), ("false", "deviceDeleted")):
        asked = {"notifyType": notify_type, "callbackUrl": URL}
        answer = await app.send("POST", SUBSCRIPTIONS, params={"ownerFlag": flag}, json=asked)
        assert answer.status_code == 201


async def test_4_3_the_list_is_paged_newest_first_and_filtered(app: Application) -> None:
    for notify_type in ("deviceAdded", "deviceDeleted", "ruleEvent"):
        await app.subscribe(notify_type)
    page = await app.page(pageNo=0, pageSize=2)
    assert {k: page[k] for k in ("totalCount", "pageNo", "pageSize")} == {"totalCount": 3, "pageNo": 0, "pageSize": 2}
    assert [s["notifyType"] for s in page["subscriptions"]] == ["ruleEvent", "deviceDeleted"]
    page = await app.page(pageNo=1, pageSize=2)
    assert [s["notifyType"] for s in page["subscriptions"]] == ["deviceAdded"]
    page = await app.page(pageNo=9)
    assert (page["totalCount"], page["pageSize"], page["subscriptions"]) == (3, 10, [])
    assert await app.types(notifyType="deviceDeleted") == ["deviceDeleted"]
    assert await app.types(notifyType="nonsense") == []
    for query in ({"pageSize": "0"}, {"pageSize": "101"}, {"pageNo": "-1"}, {"pageNo": "x"}):
        assert no(await app.send("GET", SUBSCRIPTIONS, params=query)) == (400, "50400")


async def test_4_3_one_is_deleted_with_204_and_then_unknown(app: Application) -> None:
    made = (await app.subscribe()).json()
    one = f"{SUBSCRIPTIONS}/{made['subscriptionId']}"
    answer = await app.send("DELETE", one)
    assert (answer.status_code, answer.content) == (204, b"")
    assert no(await app.send("DELETE", one)) == (404, "100225")
    assert no(await app.send("GET", one)) == (404, "100225")
    assert no(await app.send("GET", f"{SUBSCRIPTIONS}/x")) == (404, "100225")
    assert (await app.subscribe()).json()["subscriptionId"] != made["subscriptionId"]


async def test_4_3_many_are_deleted_by_filters_that_must_all_hold(app: Application) -> None:
    for notify_type in ("deviceAdded", "deviceDeleted", "ruleEvent"):
        await app.subscribe(notify_type)
    await app.manage(notifyType="fwUpgradeResultNotify", callbackUrl="http://other.example:1/")
    assert no(await delete(app, notifyType="deviceAdded", callbackUrl="http://other.example:1/")) == (404, "200001")
    assert no(await delete(app, channel="MQTT")) == (404, "200001")
    assert (await delete(app, notifyType="deviceAdded", callbackUrl=URL, channel="HTTP")).status_code == 204
    assert (await delete(app, callbackUrl="http://other.example:1/")).status_code == 204
    assert await app.types() == ["ruleEvent", "deviceDeleted"]
    answer = await delete(app)
    assert (answer.status_code, answer.content) == (204, b"")
    assert await app.types() == []
    assert no(await delete(app)) == (404, "200001")


async def delete(app: Application, **query: str) -> httpx.Response:
    return await app.send("DELETE", SUBSCRIPTIONS, params=query)


async def test_1_4_403_without_a_token_and_beyond_the_flow(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    async with build_world(database_url, tmp_path, clock, calls_per_minute=1) as world:
        app = Application(world, await world.login())
        stranger = Application(world, {})
        for method, path in (("POST", MANAGEMENT), ("POST", SUBSCRIPTIONS), ("GET", SUBSCRIPTIONS)):
            assert no(await stranger.send(method, path)) == (403, "1010005")
        assert await app.types() == []
        for method, path in (("POST", MANAGEMENT), ("POST", SUBSCRIPTIONS), ("DELETE", SUBSCRIPTIONS)):
            assert no(await app.send(method, path)) == (403, "1010009")
