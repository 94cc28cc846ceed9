"""Sections 5.1 to 5.3: registration in both modes, new credentials, activation, limits, time-outs; on both engines."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from openiodm.access.model import Product, hash_secret
from openiodm.clock import DAY, HOUR
from openiodm.devices.model import BulkRecord, NewDevice, Registered
from openiodm.errors import Reason, Refusal
from openiodm.northbound.compat.credentials import CREDENTIALS, DEPRECATED, SECRETS
from openiodm.northbound.compat.devices import DEVICES, SHADOW
from openiodm.storage.engine import Database
from tests.support.compat_server import App, MovedClock, Server, no, serving

BAD, BAD_MESSAGE, BAD_CODE = (400, "50400"), (400, "100007"), (400, "100003")
ONLINE, NO_ROOM = (400, "100611"), (500, "100412")
SECRET = "0123456789abcdef0123"


@pytest.fixture
async def server(database: Database, clock: MovedClock) -> AsyncIterator[Server]:
    async with serving(database, clock) as running:
        yield running


@pytest.fixture
async def app(server: Server) -> App:
    return await server.application()


async def heard(server: Server, app: App, device_id: str) -> None:
    """The device makes contact now."""
    key = (await server.device_queries.device(app.actor, device_id)).device.key
    server.last_seen.seen(key, "::1", activated=False)
    await server.last_seen.flush()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, BAD_MESSAGE),
        ({"nodeId": ""}, BAD_MESSAGE),
        ({"nodeId": None}, BAD_MESSAGE),
        ([], BAD_MESSAGE),
        ("n", BAD_MESSAGE),
        ({"nodeId": "n", "verifyCode": "x" * 257}, BAD_CODE),
        ({"nodeId": "n", "verifyCode": 5}, BAD_CODE),
        ({"nodeId": "n", "timeout": "180"}, BAD),
        ({"nodeId": "n", "isSecure": "TRUE"}, BAD),
    ],
)
async def test_section_5_2_says_what_is_wrong_with_a_registration(
    app: App, database: Database, body: Any, expected: tuple[int, str]
) -> None:
    assert no(await app.http.post(CREDENTIALS, json=body)) == expected
    assert await database.fetchval("SELECT count(*) FROM device") == 0


@pytest.mark.parametrize("raw", [b"", b"{", b"nodeId=n", b"\xff\xfe", b'{"nodeId": "\xff"}', b"[" * 100_000])
async def test_section_5_2_a_registration_that_is_no_json_is_a_bad_message(app: App, raw: bytes) -> None:
    assert no(await app.http.post(CREDENTIALS, content=raw)) == BAD_MESSAGE


async def test_section_5_2_keeps_every_member_of_a_registration(server: Server, app: App) -> None:
    told = {
        "name": "kitchen",
        "description": "d",
        "manufacturerId": "mid",
        "manufacturerName": "Acme",
        "mac": "aa:bb",
        "location": "roof",
        "deviceType": "Meter",
        "model": "M1",
        "swVersion": "S1",
        "fwVersion": "F1",
        "hwVersion": "H1",
        "protocolType": "LWM2M",
        "bridgeId": "b",
        "mute": "FALSE",
        "supportedSecurity": "TRUE",
        "sigVersion": "1",
        "serialNumber": "42",
    }
    beside = {"endUserId": "e", "imsi": "460", "productId": "p", "customFields": [{"fieldName": "a", "fieldValue": 1}]}
    device_id = await app.register("n", isSecure=True, deviceInfo=told, **beside)
    info = (await app.http.get(f"{DEVICES}/{device_id}")).json()["deviceInfo"]
    assert {k: info[k] for k in told} == told
    assert info["isSecurity"] == "TRUE"
    kept = (await server.device_queries.device(app.actor, device_id)).device.info
    assert {k: kept[k] for k in beside} == beside


async def test_section_5_1_the_deprecated_paths_are_the_same_calls(server: Server, app: App, clock: MovedClock) -> None:
    answer = await app.http.post(
        DEPRECATED, json={"nodeId": "n", "verifyCode": "v", "deviceName": "old", "timeout": 60}
    )
    assert answer.status_code == 200
    body = answer.json()
    assert (set(body), body["verifyCode"], body["timeout"]) == (
        {"deviceId", "verifyCode", "timeout", "psk"},
        "v",
        60,
    )
    url = f"{DEPRECATED}/{body['deviceId']}"
    assert (await app.http.get(url)).json() == {"deviceId": body["deviceId"], "activated": False, "name": "old"}
    assert (await app.http.put(url, json={"verifyCode": "w"})).json() == {"verifyCode": "w", "timeout": 60}
    assert no(await app.http.post(DEPRECATED, json={"nodeId": "n"})) == (400, "100426")
    await heard(server, app, body["deviceId"])
    assert no(await app.http.put(url, json={})) == ONLINE


async def test_section_5_1_secret_mode_answers_a_secret_that_is_the_devices_token(app: App, database: Database) -> None:
    answer = await app.http.post(SECRETS, json={"deviceInfo": {"nodeId": "n", "name": "x", "deviceType": "Meter"}})
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"deviceId", "secret", "psk"}
    assert (len(body["secret"]), int(body["secret"], 16) >= 0, len(body["psk"])) == (20, True, 32)
    assert await database.fetchval("SELECT token_hash FROM device") == hash_secret(body["secret"])
    device = (await app.http.get(f"{DEVICES}/{body['deviceId']}")).json()["deviceInfo"]
    assert (device["nodeId"], device["name"], device["deviceType"]) == ("n", "x", "Meter")


async def test_section_5_1_secret_mode_keeps_what_it_was_given(server: Server, app: App) -> None:
    told = {"organization": "o", "region": "r", "timezone": "UTC", "mqttConnect": True, "productId": "p"}
    body = {"deviceInfo": {"nodeId": "n"}, "secret": SECRET, "psk": "01234567", **told}
    answer = (await app.http.post(SECRETS, json=body)).json()
    assert (answer["secret"], answer["psk"]) == (SECRET, "01234567")
    kept = (await server.device_queries.device(app.actor, answer["deviceId"])).device.info
    assert {k: kept[k] for k in told} == told
    assert "secret" not in kept


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, BAD_MESSAGE),
        ({"nodeId": "n"}, BAD_MESSAGE),
        ({"deviceInfo": {"nodeId": ""}}, BAD_MESSAGE),
        ({"deviceInfo": {"nodeId": "x" * 257}}, BAD),
        ({"deviceInfo": {"nodeId": "n"}, "secret": SECRET[1:]}, BAD),
        ({"deviceInfo": {"nodeId": "n"}, "secret": SECRET + "4"}, BAD),
        ({"deviceInfo": {"nodeId": "n"}, "secret": "x" * 20}, BAD),
        ({"deviceInfo": {"nodeId": "n"}, "mqttConnect": "yes"}, BAD),
    ],
)
async def test_section_5_1_a_bad_registration_in_secret_mode_leaves_nothing(
    app: App, database: Database, body: Any, expected: tuple[int, str]
) -> None:
    assert no(await app.http.post(SECRETS, json=body)) == expected
    assert await database.fetchval("SELECT count(*) FROM device") == 0


async def test_section_5_1_a_secret_is_refreshed_and_the_old_one_is_over(app: App, database: Database) -> None:
    device_id = (await app.http.post(SECRETS, json={"deviceInfo": {"nodeId": "n"}, "secret": SECRET})).json()[
        "deviceId"
    ]
    url = f"{SECRETS}/{device_id}"
    answer = await app.http.put(url, json={"nodeId": "m", "timeout": 9})
    body = answer.json()
    assert (answer.status_code, set(body)) == (200, {"deviceId", "secret", "timeout"})
    assert (body["deviceId"], body["timeout"], len(body["secret"])) == (device_id, 9, 20)
    assert body["secret"] != SECRET
    live = "SELECT token_hash FROM device WHERE deleted_at IS NULL"
    assert await database.fetchval(live) == hash_secret(body["secret"])
    assert await database.fetchval("SELECT count(*) FROM device WHERE token_hash IS NOT NULL") == 1
    assert (await app.http.put(url, json={"secret": SECRET})).json()["secret"] == SECRET
    assert await database.fetchval(live) == hash_secret(SECRET)
    assert no(await app.http.put(url, json={"secret": "short"})) == BAD
    assert no(await app.http.put(f"{SECRETS}/nobody", json={})) == (404, "100403")


async def test_section_5_3_credentials_are_refreshed_only_while_the_device_is_not_online(
    server: Server, app: App, clock: MovedClock
) -> None:
    device_id = await app.register("n", verifyCode="v")
    await heard(server, app, device_id)
    for url in (f"{CREDENTIALS}/{device_id}", f"{SECRETS}/{device_id}"):
        assert no(await app.http.put(url, json={"nodeId": "m"})) == ONLINE
    info = (await app.http.get(f"{DEVICES}/{device_id}")).json()["deviceInfo"]
    assert (info["nodeId"], info["status"]) == ("n", "ONLINE")
    clock.advance(25 * HOUR)
    await server.log_in(app)
    answer = await app.http.put(f"{CREDENTIALS}/{device_id}", json={"nodeId": "m"})
    assert answer.status_code == 200
    assert answer.json()["verifyCode"] != "v"
    assert (await app.http.get(f"{DEVICES}/{device_id}")).json()["deviceInfo"]["nodeId"] == "m"
    assert (await app.http.get(f"{CREDENTIALS}/{device_id}")).json()["activated"] is True


async def test_section_5_3_a_refresh_says_what_is_wrong_and_changes_nothing(app: App) -> None:
    device_id = await app.register("n", verifyCode="v")
    await app.register("other", verifyCode="w")
    url = f"{CREDENTIALS}/{device_id}"
    before = (await app.http.get(f"{DEVICES}/{device_id}")).json()
    for body, expected in (
        ([], BAD_MESSAGE),
        ({"verifyCode": "x" * 257}, BAD_CODE),
        ({"verifyCode": "w"}, BAD_CODE),
        ({"nodeId": "other"}, (400, "100426")),
        ({"nodeId": "x" * 257}, BAD),
        ({"timeout": -1}, BAD),
    ):
        assert no(await app.http.put(url, json=body)) == expected, body
    assert (await app.http.get(f"{DEVICES}/{device_id}")).json() == before


async def test_section_5_3_the_time_out_counts_from_the_refresh(server: Server, app: App, clock: MovedClock) -> None:
    device_id = await app.register("n")
    clock.advance(HOUR // 2)
    assert (await app.http.put(f"{CREDENTIALS}/{device_id}", json={"timeout": 60})).json()["timeout"] == 60
    clock.advance(59_999)
    assert await server.devices.delete_unactivated(server.store) == 0
    assert (await app.http.put(f"{CREDENTIALS}/{device_id}", json={})).json()["timeout"] == 60
    clock.advance(59_999)
    assert await server.devices.delete_unactivated(server.store) == 0
    clock.advance(1)
    assert await server.devices.delete_unactivated(server.store) == 1
    assert no(await app.http.get(f"{DEVICES}/{device_id}")) == (404, "100403")


async def test_section_5_3_a_refreshed_device_that_was_there_once_is_not_deleted(
    server: Server, app: App, clock: MovedClock
) -> None:
    device_id = await app.register("n")
    await heard(server, app, device_id)
    clock.advance(2 * DAY)
    await server.log_in(app)
    assert (await app.http.put(f"{CREDENTIALS}/{device_id}", json={"timeout": 1})).status_code == 200
    clock.advance(DAY)
    assert await server.devices.delete_unactivated(server.store) == 0


async def test_section_5_2_an_application_has_no_more_devices_than_it_may(
    database: Database, clock: MovedClock
) -> None:
    async with serving(database, clock, max_devices=3) as server:
        app, other = await server.application(), await server.application()
        first = await app.register("a")
        await app.register("b")
        results = [r.outcome async for r in server.devices.register_many(app.actor, lines("b", "c", "d", "e"))]
        reasons = [r.reason if isinstance(r, Refusal) else r.node_id for r in results]
        assert reasons == [Reason.NODE_ID_TAKEN, "c", Reason.DEVICE_LIMIT, Reason.DEVICE_LIMIT]
        assert no(await app.http.post(CREDENTIALS, json={"nodeId": "d"})) == NO_ROOM
        assert no(await app.http.post(SECRETS, json={"deviceInfo": {"nodeId": "d"}})) == NO_ROOM
        with pytest.raises(Refusal) as refused:
            await server.devices.self_register(app.actor.application, "d", Product("t", "m", "x"), "::1")
        assert refused.value.reason is Reason.DEVICE_LIMIT
        known = await server.devices.self_register(app.actor.application, "a", Product("t", "m", "x"), "::1")
        assert known.device_id == first
        await other.register("d")
        await app.http.delete(f"{DEVICES}/{first}")
        await app.register("d")
        assert await database.fetchval("SELECT count(*) FROM device WHERE deleted_at IS NULL") == 4


async def lines(*node_ids: str) -> AsyncIterator[BulkRecord]:
    for number, node_id in enumerate(node_ids, 1):
        yield BulkRecord(number, NewDevice(node_id))


async def test_section_5_2_the_limit_holds_for_registrations_at_the_same_time(
    database: Database, clock: MovedClock
) -> None:
    async with serving(database, clock, max_devices=20) as one, serving(database, clock, max_devices=20) as two:
        servers = (one, two) if database.engine == "postgresql" else (one, one)
        actor = (await one.application()).actor

        async def single(i: int) -> int:
            try:
                await servers[i % 2].devices.register(actor, NewDevice(f"s{i}"))
            except Refusal as refusal:
                assert refusal.reason is Reason.DEVICE_LIMIT
                return 0
            return 1

        async def bulk(i: int) -> int:
            results = servers[i % 2].devices.register_many(actor, lines(*(f"b{i}-{j}" for j in range(9))))
            return sum([isinstance(r.outcome, Registered) async for r in results])

        done = await asyncio.gather(*(single(i) for i in range(12)), *(bulk(i) for i in range(4)))
        assert sum(done) == 20
        assert await database.fetchval("SELECT count(*) FROM device") == 20


async def test_section_5_4_a_shadow_is_the_device_with_no_services(app: App) -> None:
    device_id = await app.register("n", deviceInfo={"name": "x"})
    answer = await app.http.get(f"{SHADOW}/{device_id}", params={"appId": app.app_id})
    assert answer.status_code == 200
    assert answer.json() == (await app.http.get(f"{DEVICES}/{device_id}")).json()
    assert answer.json()["services"] == []
    assert no(await app.http.get(f"{SHADOW}/nobody")) == (404, "100418")
    assert no(await app.http.get(f"{SHADOW}/{device_id}", params={"appId": "x" * 257})) == BAD
