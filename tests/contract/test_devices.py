"""Registration to deletion of devices, on both engines, through the contract's own routes where it has one."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from openiodm.access.model import Product, hash_secret
from openiodm.clock import HOUR
from openiodm.devices.model import BulkRecord, BulkResult, DeviceKey, NewDevice, Page, Registered
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Needs
from openiodm.northbound.compat.credentials import CREDENTIALS
from openiodm.northbound.compat.devices import DEVICES, SHADOW
from openiodm.storage.engine import Database
from tests.support.compat_server import App, MovedClock, Server, no, serving

METER = {"deviceType": "Meter", "model": "M1", "manufacturerName": "Acme"}
UNKNOWN = (404, "100403")
BAD = (400, "50400")
BAD_FILTER, UNBOUND = (400, "100405"), (400, "100218")


@pytest.fixture
async def server(database: Database, clock: MovedClock) -> AsyncIterator[Server]:
    async with serving(database, clock) as running:
        yield running


@pytest.fixture
async def app(server: Server) -> App:
    return await server.application()


async def listed(app: App, **query: Any) -> list[str]:
    """nodeIds of one page, in order."""
    answer = await app.http.get(DEVICES, params={"pageNo": 0, "pageSize": 250, **query})
    assert answer.status_code == 200, answer.text
    return [d["deviceInfo"]["nodeId"] for d in answer.json()["devices"]]


async def test_a_registration_generates_what_it_was_not_given(app: App) -> None:
    answer = await app.http.post(CREDENTIALS, json={"nodeId": "imei-1"})
    body = answer.json()
    assert answer.status_code == 200
    assert set(body) == {"deviceId", "verifyCode", "timeout", "psk"}
    assert body["timeout"] == 0
    assert len(body["psk"]) == 32
    assert int(body["psk"], 16) >= 0
    assert body["verifyCode"]
    assert body["deviceId"] != "imei-1"


async def test_a_registration_keeps_what_it_was_given(app: App) -> None:
    given = {"nodeId": "n", "verifyCode": "v", "psk": "0123456789abcdef", "timeout": 180}
    answer = (await app.http.post(CREDENTIALS, json={**given, "deviceInfo": {"name": "x", **METER}})).json()
    assert (answer["verifyCode"], answer["psk"], answer["timeout"]) == ("v", "0123456789abcdef", 180)
    device = (await app.http.get(f"{DEVICES}/{answer['deviceId']}")).json()
    assert {k: device["deviceInfo"][k] for k in METER} == METER


async def test_nulls_empty_texts_and_unknown_members_of_a_registration_are_no_error(app: App) -> None:
    body = {"nodeId": "n", "verifyCode": "", "psk": "", "timeout": None, "deviceInfo": None, "imsi": None, "new": 1}
    assert (await app.http.post(CREDENTIALS, json=body)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"nodeId": 5},
        {"nodeId": "x" * 257},
        {"nodeId": "a\0b"},
        {"nodeId": "n", "psk": "0123456"},
        {"nodeId": "n", "psk": "0" * 33},
        {"nodeId": "n", "psk": "nothexad"},
        {"nodeId": "n", "psk": "01234567\n"},
        {"nodeId": "n", "timeout": -1},
        {"nodeId": "n", "timeout": 2**31},
        {"nodeId": "n", "imsi": "1" * 65},
        {"nodeId": "n", "deviceInfo": {"model": "x" * 257}},
        {"nodeId": "n", "deviceInfo": dict.fromkeys(METER, "\U0001f600" * 256)},
        {"nodeId": "n", "customFields": [{"fieldValue": "x" * 70_000}]},
    ],
)
async def test_a_bad_registration_is_refused_and_leaves_nothing(app: App, database: Database, body: Any) -> None:
    assert no(await app.http.post(CREDENTIALS, json=body)) == BAD
    assert await database.fetchval("SELECT count(*) FROM device") == 0


async def test_a_node_id_is_unique_per_application_and_a_verify_code_everywhere(server: Server, app: App) -> None:
    other = await server.application()
    await app.register("n1", verifyCode="v1")
    assert no(await app.http.post(CREDENTIALS, json={"nodeId": "n1"})) == (400, "100426")
    await other.register("n1")
    assert no(await other.http.post(CREDENTIALS, json={"nodeId": "n2", "verifyCode": "v1"})) == (400, "100416")
    assert await listed(other) == ["n1"]


async def test_appid_names_the_caller_or_who_has_authorized_it(server: Server, app: App) -> None:
    other = await server.application()
    body = {"nodeId": "n"}
    assert (await app.http.post(CREDENTIALS, params={"appId": app.app_id}, json=body)).status_code == 200
    for app_id, code in ((other.app_id, "100217"), ("nobody", "100203")):
        assert no(await app.http.post(CREDENTIALS, params={"appId": app_id}, json=body)) == (403, code)
        assert no(await app.http.get(DEVICES, params={"appId": app_id, "pageNo": 0})) == (403, code)
    await server.access.authorize(other.actor, app.app_id)
    assert (await app.http.post(CREDENTIALS, params={"appId": other.app_id}, json=body)).status_code == 200
    assert (await other.http.get(DEVICES, params={"pageNo": 0})).json()["totalCount"] == 1


async def test_one_device_has_every_documented_member(app: App, clock: MovedClock) -> None:
    device_id = await app.register("n1", deviceInfo={"name": "kitchen", "description": "d", **METER})
    device = (await app.http.get(f"{DEVICES}/{device_id}")).json()
    info = device.pop("deviceInfo")
    assert device == {
        "deviceId": device_id,
        "gatewayId": device_id,
        "nodeType": "GATEWAY",
        "createTime": "20231114T221320Z",
        "lastModifiedTime": "20231114T221320Z",
        "services": [],
    }
    told = {"nodeId": "n1", "name": "kitchen", "description": "d", "status": "INACTIVE", **METER}
    documented = (
        "nodeId name description manufacturerId manufacturerName mac location deviceType model swVersion fwVersion "
        "hwVersion protocolType bridgeId status statusDetail mute supportedSecurity isSecurity signalStrength "
        "sigVersion serialNumber batteryLevel"
    )
    assert info == dict.fromkeys(documented.split()) | told


async def test_activation_comes_with_the_first_contact_and_stays(server: Server, app: App, clock: MovedClock) -> None:
    device_id = await app.register("n1", deviceInfo={"name": "x"})
    url = f"{CREDENTIALS}/{device_id}"
    assert (await app.http.get(url)).json() == {"deviceId": device_id, "activated": False, "name": "x"}
    key = (await server.device_queries.device(app.actor, device_id)).device.key
    server.last_seen.seen(key, "10.0.0.1", activated=False)
    first = clock.now()
    await server.last_seen.flush()
    clock.advance(100 * HOUR)
    server.last_seen.seen(key, "10.0.0.2", activated=False)
    await server.last_seen.flush()
    await server.log_in(app)
    assert (await app.http.get(url)).json()["activated"] is True
    device = (await server.device_queries.device(app.actor, device_id)).device
    assert (device.activated_at, device.last_seen_at, device.address) == (first, clock.now(), "10.0.0.2")


async def test_last_contacts_of_many_devices_are_written_in_bulk(
    server: Server, app: App, database: Database, clock: MovedClock
) -> None:
    await register_many(server, app, [NewDevice(f"n{i}") for i in range(1200)])
    keys = [DeviceKey(row[0]) for row in await database.fetch("SELECT id FROM device")]
    for key in keys:
        server.last_seen.seen(key, "::1", activated=False)
    commits = server.writer.commits
    await server.last_seen.flush()
    assert server.writer.commits - commits == 3
    sql = "SELECT count(*) FROM device WHERE last_seen_at = $1 AND activated_at = $1"
    assert await database.fetchval(sql, clock.now()) == 1200
    await server.last_seen.flush()
    assert server.writer.commits - commits == 3


async def test_the_collector_writes_what_is_left_when_it_closes(server: Server, app: App) -> None:
    device_id = await app.register("n1")
    key = (await server.device_queries.device(app.actor, device_id)).device.key
    server.last_seen.start()
    server.last_seen.seen(key, "::1", activated=False)
    await server.last_seen.close()
    assert (await server.device_queries.device(app.actor, device_id)).status.value == "ONLINE"


async def test_modify_changes_what_is_given_and_leaves_the_rest(app: App, clock: MovedClock) -> None:
    device_id = await app.register("n1", deviceInfo={"name": "old", "mac": "m", **METER})
    clock.advance(5_000)
    change = {"model": "M2", "location": "roof", "name": None}
    answer = await app.http.put(f"{DEVICES}/{device_id}", json=change)
    assert (answer.status_code, answer.content) == (204, b"")
    device = (await app.http.get(f"{DEVICES}/{device_id}")).json()
    info = device["deviceInfo"]
    assert (info["name"], info["model"], info["deviceType"], info["mac"]) == ("old", "M2", "Meter", "m")
    assert info["location"] == "roof"
    assert (device["createTime"], device["lastModifiedTime"]) == ("20231114T221320Z", "20231114T221325Z")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "x" * 257},
        {"name": ""},
        {"deviceType": 5},
        {"location": "x" * 1025},
        {"imsi": "1" * 65},
        {"customFields": {}},
        {"customFields": [{"fieldValue": [[]]}]},
        {"customFields": [{"fieldValue": "x" * 70_000}]},
        {"deviceConfig": {"dataConfig": {"dataAgingTime": "x"}}},
        [],
    ],
)
async def test_a_bad_change_is_refused(app: App, change: Any) -> None:
    device_id = await app.register("n1")
    assert no(await app.http.put(f"{DEVICES}/{device_id}", json=change)) == BAD


async def test_another_product_moves_the_device_within_its_groups(app: App, database: Database) -> None:
    device_id = await app.register("n1", deviceInfo=METER)
    await app.group("g1", [device_id])
    await app.http.put(f"{DEVICES}/{device_id}", json={"deviceType": "Lamp"})
    rows = await database.fetch(
        "SELECT p.device_type FROM group_member m JOIN product p ON p.id = m.product_id "
        "JOIN device d ON d.id = m.device_id AND d.product_id = p.id"
    )
    assert [row[0] for row in rows] == ["Lamp"]


async def test_deletion_frees_the_node_id_and_tells_the_core_once(server: Server, app: App, clock: MovedClock) -> None:
    device_id = await app.register("n1", verifyCode="v1")
    key = (await server.device_queries.device(app.actor, device_id)).device.key
    answer = await app.http.delete(f"{DEVICES}/{device_id}", params={"cascade": "true"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert no(await app.http.delete(f"{DEVICES}/{device_id}")) == UNKNOWN
    assert server.deletions.told == [(key, clock.now())]
    for url in (f"{DEVICES}/{device_id}", f"{CREDENTIALS}/{device_id}"):
        assert no(await app.http.get(url)) == UNKNOWN
    assert await app.register("n1", verifyCode="v1") != device_id


async def test_attempts_are_numbered_on_over_deletion_and_new_registration(
    server: Server, app: App, database: Database
) -> None:
    other = await server.application()
    for seq in (7, 3):
        device_id = await app.register("n1")
        await database_write(server, "UPDATE device SET attempt_seq = $2 WHERE device_id = $1", device_id, seq)
        await app.http.delete(f"{DEVICES}/{device_id}")
    seq_of = "SELECT attempt_seq FROM device WHERE device_id = $1"
    assert await database.fetchval(seq_of, await app.register("n1")) == 7
    assert await database.fetchval(seq_of, await other.register("n1")) == 0


async def test_new_credentials_keep_the_device_and_number_attempts_on(
    server: Server, app: App, database: Database
) -> None:
    device_id = await app.register("n1", verifyCode="v1")
    await app.register("taken", verifyCode="v2")
    await database_write(server, "UPDATE device SET attempt_seq = 4 WHERE device_id = $1", device_id)
    url = f"{CREDENTIALS}/{device_id}"
    answer = await app.http.put(url, json={"verifyCode": "v3", "timeout": 60})
    assert (answer.status_code, answer.json()) == (200, {"verifyCode": "v3", "timeout": 60})
    assert no(await app.http.put(url, json={"verifyCode": "v2"})) == (400, "100003")
    assert no(await app.http.put(url, json={"nodeId": "taken"})) == (400, "100426")
    assert (await app.http.put(url, json={"nodeId": "n9"})).status_code == 200
    assert sorted(await listed(app)) == ["n9", "taken"]
    replacement = await app.register("n1")
    seq_of = "SELECT attempt_seq FROM device WHERE device_id = $1"
    assert [await database.fetchval(seq_of, d) for d in (device_id, replacement)] == [4, 4]


async def test_a_target_token_is_kept_as_its_hash_and_replaced(server: Server, app: App, database: Database) -> None:
    device_id = await app.register("n1")
    first = await server.devices.set_target_token(app.actor, device_id)
    own = await server.devices.set_target_token(app.actor, device_id, "0123456789abcdef0123456789abcdef")
    assert first != own
    assert await database.fetchval("SELECT token_hash FROM device") == hash_secret(own)
    assert (await server.device_queries.device(app.actor, device_id)).device.has_target_token
    await server.devices.remove_target_token(app.actor, device_id)
    assert await database.fetchval("SELECT token_hash FROM device") is None
    for bad in ("", "short", "x" * 257, "a line\nbreak and more"):
        with pytest.raises(Refusal):
            await server.devices.set_target_token(app.actor, device_id, bad)


async def test_devices_that_never_came_are_deleted_after_their_time_out(
    server: Server, app: App, clock: MovedClock
) -> None:
    await app.register("late", timeout=60)
    await app.register("patient")
    seen = await app.register("seen", timeout=60)
    key = (await server.device_queries.device(app.actor, seen)).device.key
    server.last_seen.seen(key, "::1", activated=False)
    await server.last_seen.flush()
    clock.advance(59_999)
    assert await server.devices.delete_unactivated(server.store) == 0
    clock.advance(1)
    assert await server.devices.delete_unactivated(server.store) == 1
    assert await listed(app) == ["seen", "patient"]
    assert len(server.deletions.told) == 1


async def test_parallel_first_contacts_make_exactly_one_device_each(
    server: Server, app: App, database: Database
) -> None:
    product = Product("Meter", "M1", "Acme")

    async def contact(node_id: str) -> DeviceKey:
        return (await server.devices.self_register(app.actor.application, node_id, product, "10.0.0.1")).key

    ids = [f"n{i}" for i in range(1000)] * 4
    keys = await asyncio.gather(*map(contact, ids))
    assert await database.fetchval("SELECT count(*) FROM device") == 1000
    assert len(set(zip(ids, keys, strict=True))) == 1000


async def test_first_contacts_at_two_servers_agree(database: Database, clock: MovedClock) -> None:
    if database.engine != "postgresql":
        pytest.skip("a SQLite file has one server")
    async with serving(database, clock) as one, serving(database, clock) as two:
        application = (await one.application()).actor.application
        contacts = [
            server.devices.self_register(application, f"n{i}", Product("t", f"m{i % 7}", "f"), "::1")
            for i in range(200)
            for server in (one, two)
        ]
        keys = [device.key for device in await asyncio.gather(*contacts)]
        assert keys[0::2] == keys[1::2]
        assert await database.fetchval("SELECT count(*) FROM device") == 200
        assert await database.fetchval("SELECT count(*) FROM product") == 7


async def test_a_device_that_registers_itself_is_active_and_has_its_gateways_product(
    server: Server, app: App, clock: MovedClock
) -> None:
    product = Product("Meter", "M1", "Acme")
    device = await server.devices.self_register(app.actor.application, "n1", product, "10.0.0.1")
    assert (device.product, device.activated_at, device.address) == (product, clock.now(), "10.0.0.1")
    again = await server.devices.self_register(app.actor.application, "n1", Product("", "", ""), "10.0.0.2")
    assert again == device
    with pytest.raises(Refusal):
        await server.devices.self_register(app.actor.application, "x" * 257, product, "10.0.0.1")


async def register_many(server: Server, app: App, devices: Sequence[NewDevice | Refusal]) -> list[BulkResult]:
    async def records() -> AsyncIterator[BulkRecord]:
        for line, device in enumerate(devices, 1):
            yield BulkRecord(line, device)

    return [result async for result in server.devices.register_many(app.actor, records())]


async def test_a_bulk_registration_keeps_the_good_lines(server: Server, app: App, clock: MovedClock) -> None:
    await app.register("taken", verifyCode="used")
    lines: list[NewDevice | Refusal] = [
        NewDevice("a"),
        NewDevice("a"),
        Refusal(Reason.BAD_INPUT, "not JSON"),
        NewDevice("taken"),
        NewDevice("b", verify_code="used"),
        NewDevice("c", verify_code="once"),
        NewDevice("d", verify_code="once"),
        NewDevice(""),
        NewDevice("e", product=Product("Meter", "M1", "Acme"), info={"mac": "m"}),
    ]
    results = await register_many(server, app, lines)
    assert [r.line for r in results] == list(range(1, 10))
    outcomes = [r.outcome.reason if isinstance(r.outcome, Refusal) else r.outcome.node_id for r in results]
    assert outcomes == [
        "a",
        Reason.NODE_ID_TAKEN,
        Reason.BAD_INPUT,
        Reason.NODE_ID_TAKEN,
        Reason.VERIFY_CODE_TAKEN,
        "c",
        Reason.VERIFY_CODE_TAKEN,
        Reason.BAD_INPUT,
        "e",
    ]
    assert sorted(await listed(app)) == ["a", "c", "e", "taken"]


async def test_a_bulk_registration_goes_in_chunks_and_may_be_repeated(server: Server, app: App) -> None:
    devices = [NewDevice(f"n{i}") for i in range(1100)]
    commits = server.writer.commits
    first = await register_many(server, app, devices)
    assert server.writer.commits - commits == 3
    assert all(isinstance(r.outcome, Registered) for r in first)
    again = await register_many(server, app, devices)
    assert {r.outcome.reason for r in again if isinstance(r.outcome, Refusal)} == {Reason.NODE_ID_TAKEN}
    assert len([r for r in again if isinstance(r.outcome, Refusal)]) == 1100


async def test_bulk_registrations_of_the_same_devices_at_two_servers_register_each_once(
    database: Database, clock: MovedClock
) -> None:
    if database.engine != "postgresql":
        pytest.skip("a SQLite file has one server")
    async with serving(database, clock) as one, serving(database, clock) as two:
        app = await one.application()
        devices = [NewDevice(f"n{i}") for i in range(1000)]
        answers = await asyncio.gather(register_many(one, app, devices), register_many(two, app, devices))
        registered = [r for r in itertools.chain(*answers) if isinstance(r.outcome, Registered)]
        assert len(registered) == 1000
        assert await database.fetchval("SELECT count(*) FROM device") == 1000


async def test_the_list_is_paged_newest_first_with_the_exact_total(app: App) -> None:
    for i in range(5):
        await app.register(f"n{i}")
    page = (await app.http.get(DEVICES, params={"pageNo": 1, "pageSize": 2})).json()
    assert {k: page[k] for k in ("totalCount", "pageNo", "pageSize")} == {
        "totalCount": 5,
        "pageNo": 1,
        "pageSize": 2,
    }
    assert [d["deviceInfo"]["nodeId"] for d in page["devices"]] == ["n2", "n1"]
    assert await listed(app, sort="ASC") == ["n0", "n1", "n2", "n3", "n4"]
    past = (await app.http.get(DEVICES, params={"pageNo": 10**17})).json()
    assert (past["totalCount"], past["pageSize"], past["devices"]) == (5, 25, [])


@pytest.mark.parametrize(
    "query",
    [
        {"pageNo": -1},
        {"pageNo": "x"},
        {"pageNo": "1e3"},
        {"pageNo": "٣"},
        {"pageNo": 0, "pageSize": 0},
        {"pageNo": 0, "pageSize": 251},
        {"pageNo": 0, "nodeType": "UNKNOWN"},
        {"pageNo": 0, "status": "online"},
        {"pageNo": 0, "sort": "UP"},
        {"pageNo": 0, "select": "psk"},
        {"pageNo": 0, "startTime": "2023-11-14T22:13:20Z"},
        {"pageNo": 0, "endTime": "20231314T221320Z"},
        {"pageNo": 0, "name": "x" * 257},
        {"pageNo": 0, "name": "\0"},
        [("pageNo", "0"), ("pageNo", "1")],
    ],
)
async def test_a_bad_query_of_the_list_is_refused(app: App, query: Any) -> None:
    assert no(await app.http.get(DEVICES, params=query)) == BAD_FILTER


@pytest.mark.parametrize("query", [{}, {"pageNo": ""}, {"pageSize": 5}, {"gatewayId": "", "pageNo": ""}])
async def test_section_5_4_one_of_gateway_id_and_page_no_must_be_given(app: App, query: Any) -> None:
    assert no(await app.http.get(DEVICES, params=query)) == UNBOUND


async def test_the_list_filters_by_all_that_is_given(app: App, clock: MovedClock) -> None:
    info = {"name": "kitchen", "location": 'a "quoted" roof', **METER}
    a = await app.register("a", deviceInfo=info)
    clock.advance(10_000)
    await app.register("b", deviceInfo={**info, "name": "hall"})
    clock.advance(10_000)
    await app.register("c", imsi="460", deviceInfo={"deviceType": "Lamp", "location": "Roof"})
    expected: list[tuple[dict[str, Any], list[str]]] = [
        ({"deviceType": "Meter"}, ["b", "a"]),
        ({"deviceType": "Meter", "name": "hall"}, ["b"]),
        ({"deviceType": "Lamp", "name": "hall"}, []),
        ({"deviceType": "", "name": "", "location": "", "status": ""}, ["c", "b", "a"]),
        ({"location": 'a "quoted" roof'}, ["b", "a"]),
        ({"location": "Roof"}, ["c"]),
        ({"location": "roof"}, []),
        ({"location": "%"}, []),
        ({"gatewayId": a, "pageNo": ""}, ["a"]),
        ({"nodeType": "GATEWAY"}, ["c", "b", "a"]),
        ({"nodeType": "ENDPOINT"}, []),
        ({"startTime": "20231114T221330Z"}, ["c", "b"]),
        ({"endTime": "20231114T221330Z"}, ["b", "a"]),
        ({"startTime": "20231114T221321Z", "endTime": "20231114T221339Z"}, ["b"]),
    ]
    for query, nodes in expected:
        assert await listed(app, **query) == nodes, query
    asked = (await app.http.get(DEVICES, params={"pageNo": 0, "select": "imsi"})).json()["devices"]
    assert [d["imsi"] for d in asked] == ["460", None, None]


async def test_a_status_follows_the_silence_of_the_device(server: Server, app: App, clock: MovedClock) -> None:
    await app.register("never")
    for node_id, silence in (("offline", 24), ("abnormal", 24), ("online", 1)):
        await server.devices.self_register(app.actor.application, node_id, Product("", "", ""), "::1")
        clock.advance(silence * HOUR)
    await server.log_in(app)
    for status in ("ONLINE", "ABNORMAL", "OFFLINE", "INACTIVE"):
        expected = ["never"] if status == "INACTIVE" else [status.lower()]
        answer = (await app.http.get(DEVICES, params={"pageNo": 0, "status": status})).json()
        assert [d["deviceInfo"]["nodeId"] for d in answer["devices"]] == expected
        assert [d["deviceInfo"]["status"] for d in answer["devices"]] == [status]
        assert answer["totalCount"] == 1


async def test_an_application_sees_and_changes_only_its_own_devices(server: Server, app: App) -> None:
    """Law 8, on every route that names a device."""
    stranger = await server.application()
    device_id = await app.register("n1", deviceInfo=METER)
    before = (await app.http.get(f"{DEVICES}/{device_id}")).json()
    named = [r for r in server.routes() if "{deviceId}" in r.path and r.needs is Needs.APPLICATION]
    assert len(named) == 9
    for route in named:
        url = route.path.replace("{deviceId}", device_id)
        body = {"name": "mine now"} if route.method == "PUT" else None
        expected = (404, "100418") if route.path.startswith(SHADOW) else UNKNOWN
        assert no(await stranger.http.request(route.method, url, json=body)) == expected, route
    assert await listed(stranger) == []
    assert await listed(stranger, gatewayId=device_id) == []
    actor = stranger.actor
    for command in (
        server.devices.set_target_token(actor, device_id),
        server.devices.remove_target_token(actor, device_id),
        server.device_queries.device_by_node(actor, "n1"),
        server.group_queries.group(actor, device_id),
    ):
        with pytest.raises(Refusal) as refused:
            await command
        assert refused.value.reason in {Reason.DEVICE_UNKNOWN, Reason.GROUP_UNKNOWN}
    assert (await app.http.get(f"{DEVICES}/{device_id}")).json() == before
    assert server.deletions.told == []


async def test_a_path_that_names_no_device_is_refused_whatever_it_holds(app: App) -> None:
    for name in ("x", "x" * 5000, "%00", "%ff", "a%20b"):
        assert no(await app.http.get(f"{DEVICES}/{name}")) in {UNKNOWN, BAD}


async def test_total_and_page_are_of_one_moment(server: Server, app: App) -> None:
    for i in range(30):
        await app.register(f"n{i}")

    async def churn() -> None:
        for i in range(30, 60):
            await app.register(f"n{i}")

    async def look() -> None:
        for _ in range(30):
            wanted = {"pageNo": 0, "pageSize": 250}
            page = (await app.http.get(DEVICES, params=wanted)).json()
            assert page["totalCount"] == len(page["devices"])

    await asyncio.gather(churn(), look())


async def database_write(server: Server, sql: str, *args: Any) -> None:
    async with server.database.transaction() as tx:
        await tx.execute(sql, *args)


async def test_a_page_beyond_the_engines_numbers_is_empty(server: Server, app: App) -> None:
    assert Page(10**17, 250).offset == 2**62


async def test_section_5_3_modify_keeps_every_member(server: Server, app: App) -> None:
    device_id = await app.register("n1")
    shown = {
        "name": "n",
        "mute": "TRUE",
        "manufacturerId": "mid",
        "manufacturerName": "Acme",
        "deviceType": "Meter",
        "model": "M1",
        "protocolType": "LWM2M",
        "location": "x" * 1024,
    }
    kept = {
        "endUser": "e",
        "region": "r",
        "organization": "o",
        "timezone": "UTC",
        "productId": "p",
        "imsi": "460",
        "customFields": [{"fieldName": "a", "fieldType": "int", "fieldValue": 1}],
        "deviceConfig": {"dataConfig": {"dataAgingTime": 30}},
    }
    assert (await app.http.put(f"{DEVICES}/{device_id}", json={**shown, **kept})).status_code == 204
    device = (await app.http.get(f"{DEVICES}/{device_id}", params={"select": "imsi"})).json()
    assert {k: device["deviceInfo"][k] for k in shown} == shown
    assert device["imsi"] == "460"
    info = (await server.device_queries.device(app.actor, device_id)).device.info
    assert {k: info[k] for k in kept} == kept
    assert await listed(app, location="x" * 1024) == ["n1"]
    assert await listed(app, name="n") == ["n1"]


async def test_section_5_4_a_bad_parameter_of_one_device_is_refused(app: App) -> None:
    device_id = await app.register("n1")
    for query in ({"select": "psk"}, {"appId": "x" * 257}, [("select", "imsi"), ("select", "imsi")]):
        assert no(await app.http.get(f"{DEVICES}/{device_id}", params=query)) == BAD_FILTER


@pytest.mark.parametrize("cascade", ["true", "false", ""])
async def test_section_5_3_cascade_is_taken_and_changes_nothing(app: App, cascade: str) -> None:
    device_id, other = await app.register("n1"), await app.register("n2")
    assert no(await app.http.delete(f"{DEVICES}/{device_id}", params={"cascade": "yes"})) == BAD
    assert (await app.http.delete(f"{DEVICES}/{device_id}", params={"cascade": cascade})).status_code == 204
    assert (await app.http.get(f"{DEVICES}/{other}")).status_code == 200


async def test_section_5_4_the_order_is_the_moment_of_registration(app: App, clock: MovedClock) -> None:
    await app.register("late")
    clock.advance(-10_000)
    await app.register("early")
    clock.advance(10_000)
    assert await listed(app) == ["late", "early"]
    assert await listed(app, sort="ASC") == ["early", "late"]


async def test_section_5_4_filters_read_an_index_and_not_the_devices(app: App, database: Database) -> None:
    """What the list asks most is a range of an index, on SQLite without statistics too."""
    if database.engine != "sqlite":
        pytest.skip("PostgreSQL plans by statistics, which a small table does not have")
    where = "d.application_id = 1 AND d.deleted_at IS NULL"
    for condition, index in (
        ("d.name = 'x'", "name"),
        ("d.location = 'x'", "location"),
        ("d.activated_at IS NULL", "inactive"),
        ("d.registered_at >= 5 AND d.registered_at <= 9", "registered"),
        ("d.product_id IN (SELECT id FROM product WHERE device_type = 'x')", "product"),
    ):
        sql = f"EXPLAIN QUERY PLAN SELECT count(*) FROM device d WHERE {where} AND {condition}"
        plan = " ".join(row[3] for row in await database.fetch(sql))
        assert f"ix_device_application_{index}_live" in plan, plan


async def test_section_5_4_a_location_may_be_as_long_as_the_contract_has_it(app: App) -> None:
    """PostgreSQL's indexes do not take 4,096 bytes that cannot be compressed: it was 500/50252."""
    chance = random.Random(1)
    long = "".join(chr(chance.randrange(0x20000, 0x2A6DF)) for _ in range(1024))
    near = long[:-1] + "x"
    cut = long[:256]
    for node_id, location in (("long", long), ("near", near), ("cut", cut)):
        await app.register(node_id, deviceInfo={"location": location})
    device_id = await app.register("moved")
    assert (await app.http.put(f"{DEVICES}/{device_id}", json={"location": long})).status_code == 204
    for location, nodes in ((long, ["moved", "long"]), (near, ["near"]), (cut, ["cut"]), (cut[:-1], [])):
        assert await listed(app, location=location) == nodes
