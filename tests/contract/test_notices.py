"""Notices from the change to the receiver, over real sockets: bodies, order, retries, what is given up and replayed."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web

from openiodm.campaigns.model import CampaignKind, ExecuteType, NewCampaign, Policy, Target
from openiodm.clock import MINUTE, SECOND, Instant
from openiodm.notifications.model import NoticeKey, NotifyType
from openiodm.notifications.ports import Pending
from openiodm.rooms import open_rooms
from openiodm.settings import load
from tests.conftest import ManualClock
from tests.support.receiver import receiving
from tests.support.server import World, build_world

STATE, RESULT = NotifyType.FW_STATE, NotifyType.FW_RESULT
T = TypeVar("T")
LOOPBACK = ("127.0.0.1/32",)


@asynccontextmanager
async def telling(world: World) -> AsyncIterator[None]:
    """Deliveries run."""
    await world.rooms.deliverer.start()
    try:
        yield
    finally:
        await world.rooms.deliverer.close()


@pytest.fixture
async def world(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    async with (
        build_world(database_url, tmp_path, clock, callback_allow=LOOPBACK) as built,
        telling(built),
    ):
        yield built


async def subscribe(world: World, url: str, *types: NotifyType) -> None:
    for notify_type in types or (STATE, RESULT):
        await world.rooms.subscriptions.subscribe(world.actor, notify_type, url)


async def upgraded(world: World, node: str, *, good: bool = True) -> str:
    """A device that goes the whole way of one task; its device id."""
    (device,) = await world.register(node)
    await world.create_task([device])
    await go(world, node, good=good)
    return device


async def go(world: World, node: str, *, good: bool = True) -> None:
    link = (await world.poll(node))["_links"]["deploymentBase"]["href"]
    action = link.rpartition("/")[2].partition("?")[0]
    await world.feedback(node, action, "download")
    await world.feedback(node, action, "downloaded")
    await world.feedback(node, action, "proceeding")
    await world.feedback(node, action, "closed", "success" if good else "failure", "" if good else "no space left")


WHOLE_WAY = ["otacreated", "RequestDownload", "downloading", "downloaded", "updating", "idle"]


def words(bodies: list[dict[str, Any]], device: str) -> list[str]:
    """What one device's notices say, in order."""
    own = [b for b in bodies if b["deviceId"] == device]
    return [b.get("stepDesc") or b["status"] for b in own]


async def undelivered(world: World) -> list[Any]:
    return list(
        await world.rooms.subscription_queries.notices(
            world.actor, NoticeKey(0), 100, undelivered=True, subscription_id=None
        )
    )


async def left(world: World) -> int:
    return int(await world.rooms.database.fetchval("SELECT count(*) FROM notice"))


async def eventually(condition: Callable[[], Awaitable[T]], within: float = 60.0) -> T:
    """What `condition` gives, once that is true."""
    async with asyncio.timeout(within):
        while not (found := await condition()):  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.01)
    return found


async def none_left(world: World) -> None:
    async def nothing() -> bool:
        return await left(world) == 0

    await eventually(nothing)


async def pass_time(world: World, seconds: float) -> None:
    world.advance(seconds)
    world.rooms.deliverer.wake()


async def test_a_firmware_upgrade_is_told_step_by_step_with_exact_members_in_compact_json(world: World) -> None:
    """Section 4.4."""
    async with receiving() as receiver:
        await subscribe(world, receiver.url("/a/b?c=d"))
        device = await upgraded(world, "n1")
        told = await receiver.until(7)
        await none_left(world)
    assert words(told, device) == [*WHOLE_WAY, "SUCCESS"]
    assert [b["step"] for b in told[:6]] == ["0", "1", "1", "2", "3", "0"]
    first, last = receiver.heard[0], receiver.heard[-1]
    assert first.path == "/a/b?c=d"
    assert first.headers["content-type"] == "application/json"
    assert not [h for h in first.headers if h.startswith("x-openiodm")]
    operation, sub = first.body["operationId"], first.body["subOperationId"]
    assert first.raw.decode() == (
        f'{{"notifyType":"fwUpgradeStateChangeNotify","deviceId":"{device}","appId":"{world.app_id}",'
        f'"operationId":"{operation}","subOperationId":"{sub}","step":"0","stepDesc":"otacreated"}}'
    )
    assert last.raw.decode() == (
        f'{{"notifyType":"fwUpgradeResultNotify","deviceId":"{device}","appId":"{world.app_id}",'
        f'"operationId":"{operation}","subOperationId":"{sub}","curVersion":"V2","targetVersion":"V2",'
        '"sourceVersion":"","status":"SUCCESS",'
        '"statusDesc":"The device reports success; it tells no version","upgradeTime":0}'
    )


async def test_a_receiver_that_is_down_gets_everything_in_order_once_it_is_back(world: World) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    attempts: list[bool] = []
    world.rooms.deliverer.attempted = lambda delivered, _seconds: attempts.append(delivered)
    await subscribe(world, f"http://127.0.0.1:{port}/")
    device = await upgraded(world, "n1")

    async def failed() -> list[Any]:
        health = list(await world.rooms.subscription_queries.health(world.actor))
        return health if any(h.last_error for h in health) else []

    health = await eventually(failed)
    assert sum(h.pending for h in health) == 7
    async with receiving(port=port) as receiver:
        await pass_time(world, 5)
        assert words(await receiver.until(7), device) == [*WHOLE_WAY, "SUCCESS"]
        await none_left(world)
    assert attempts.count(True) == 7
    assert attempts[0] is False


async def test_what_fails_is_tried_again_with_growing_pauses_until_its_life_is_over(world: World) -> None:
    async with receiving(lambda body: 500) as receiver:
        await subscribe(world, receiver.url(), RESULT)
        await upgraded(world, "n1")
        for attempts, pause in enumerate((5, 15, 30, 60, 120, 120, 120, 120), 1):
            await receiver.until_heard(attempts)
            (notice,) = await waiting(world, attempts)
            assert notice.due_at == world.rooms.clock.now() + pause * SECOND
            assert notice.last_error == "it answered 500"
            await pass_time(world, pause)
        await receiver.until_heard(9)  # at 590 s; the next would be after 600 s
        given_up = await eventually(lambda: undelivered(world))
        assert (given_up[0].attempts, given_up[0].due_at) == (9, None)
        receiver.answer = lambda body: 200
        await upgraded(world, "n2")  # others go on
        await pass_time(world, 5)
        await receiver.until(1)
        await world.rooms.subscriptions.replay(world.actor, given_up[0].key)
        world.rooms.deliverer.wake()
        await receiver.until(2)
        await none_left(world)


async def waiting(world: World, attempts: int) -> list[Any]:
    """Pending notices, once the last attempt is written down."""

    async def tried() -> list[Any]:
        found = list(
            await world.rooms.subscription_queries.notices(
                world.actor, NoticeKey(0), 100, undelivered=False, subscription_id=None
            )
        )
        return found if found and found[0].attempts == attempts else []

    return await eventually(tried)


async def test_later_notices_of_a_device_go_on_after_one_was_given_up(world: World) -> None:
    def answer(body: dict[str, Any]) -> int:
        return 500 if body.get("stepDesc") == "downloading" else 200

    async with receiving(answer) as receiver:
        await subscribe(world, receiver.url(), STATE)
        device = await upgraded(world, "n1")
        await receiver.until(2)
        for pause in (5, 15, 30, 60, 120, 120, 120, 120):
            count = len(receiver.heard)
            assert words(receiver.taken, device) == ["otacreated", "RequestDownload"]
            await waiting_for_retry(world)
            await pass_time(world, pause)
            await receiver.until_heard(count + 1)
        await eventually(lambda: undelivered(world))
        await pass_time(world, 5)  # after so many failures in a row it was left alone
        await receiver.until(5)
        assert words(receiver.taken, device) == [w for w in WHOLE_WAY if w != "downloading"]
        assert [json.loads(n.body)["stepDesc"] for n in await undelivered(world)] == ["downloading"]


async def waiting_for_retry(world: World) -> None:
    sql = "SELECT count(*) FROM notice WHERE due_at > $1"
    await eventually(lambda: world.rooms.database.fetchval(sql, world.rooms.clock.now()))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda body: 503, "it answered 503"),
        (lambda body: None, "it closed the connection without an answer"),
        (lambda body: 3.0, "no answer within 1 s"),
        (lambda body: web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"}), "redirects are not"),
    ],
)
async def test_every_way_of_not_taking_a_notice_is_told_to_its_owner(
    database_url: str, tmp_path: Path, clock: ManualClock, answer: Any, error: str
) -> None:
    async with (
        build_world(database_url, tmp_path, clock, callback_allow=LOOPBACK, callback_timeout_s=1) as world,
        receiving(answer) as receiver,
        telling(world),
    ):
        await subscribe(world, receiver.url(), RESULT)
        await upgraded(world, "n1")
        (notice,) = await waiting(world, 1)
        assert error in notice.last_error
        (health,) = await world.rooms.subscription_queries.health(world.actor)
        assert error in (health.last_error or "")
        assert health.last_error_at == world.rooms.clock.now()


async def test_a_redirect_leads_nowhere(world: World) -> None:
    async with (
        receiving() as secret,
        receiving(lambda body: web.Response(status=307, headers={"Location": secret.url()})) as receiver,
    ):
        await subscribe(world, receiver.url(), RESULT)
        await upgraded(world, "n1")
        await waiting(world, 1)
        assert secret.heard == []


async def test_a_name_that_resolves_to_a_forbidden_address_is_not_connected_to(
    database_url: str, tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it resolved to when it was subscribed: DNS rebinding."""
    real = socket.getaddrinfo

    def lying(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        return real("127.0.0.1" if host == "rebound.example" else host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lying)
    async with build_world(database_url, tmp_path, clock) as world, receiving() as secret, telling(world):
        await subscribe(world, f"http://rebound.example:{secret.port}/", RESULT)
        await upgraded(world, "n1")
        (notice,) = await waiting(world, 1)
        assert notice.last_error == "rebound.example is 127.0.0.1, which is not allowed"
        assert secret.heard == []


async def test_an_allowed_name_is_connected_to(database_url: str, tmp_path: Path, clock: ManualClock) -> None:
    async with (
        build_world(database_url, tmp_path, clock, callback_allow=("localhost",)) as world,
        receiving() as receiver,
        telling(world),
    ):
        await subscribe(world, f"http://localhost:{receiver.port}/", RESULT)
        await upgraded(world, "n1")
        await receiver.until(1)
        assert receiver.heard[0].headers["host"] == f"localhost:{receiver.port}"


async def test_a_dead_receiver_delays_no_live_one(database_url: str, tmp_path: Path, clock: ManualClock) -> None:
    async with (
        build_world(database_url, tmp_path, clock, callback_allow=LOOPBACK, callback_timeout_s=1) as world,
        receiving(lambda body: 60.0) as dead,
        receiving() as live,
        telling(world),
    ):
        await subscribe(world, dead.url(), STATE)
        await subscribe(world, live.url(), RESULT)
        for n in range(8):
            await upgraded(world, f"n{n}")
        await live.until(8)
        assert dead.taken == []
        assert len(dead.heard) <= 4  # after three failures it is left alone until the clock goes on


async def test_a_fault_of_the_server_is_a_failed_attempt_like_any_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = world.rooms.sender.send
    broken = True

    async def send(notice: Pending) -> str | None:
        if broken:
            raise ConnectionError("the database is away")
        return await real(notice)

    monkeypatch.setattr(world.rooms.sender, "send", send)
    async with receiving() as receiver:
        await subscribe(world, receiver.url(), RESULT)
        await upgraded(world, "n1")
        (notice,) = await waiting(world, 1)
        assert notice.last_error == "the server could not make the attempt"
        broken = False
        await pass_time(world, 5)
        await receiver.until(1)


async def test_a_deleted_subscription_ends_what_was_not_delivered_for_it(world: World) -> None:
    async with receiving(lambda body: 500) as receiver:
        await subscribe(world, receiver.url(), RESULT)
        await upgraded(world, "n1")
        await waiting(world, 1)
        (health,) = await world.rooms.subscription_queries.health(world.actor)
        await world.rooms.subscriptions.unsubscribe(world.actor, health.subscription.subscription_id)
        await pass_time(world, 60)
        await world.rooms.subscriptions.sweep(keep_days=1)
        assert await left(world) == 0
        assert len(receiver.heard) == 1


async def test_devices_are_told_of_when_they_come_change_and_go(world: World) -> None:
    """Section 4.5, with deviceInfo as the device list shows it."""
    types = (NotifyType.DEVICE_ADDED, NotifyType.DEVICE_INFO_CHANGED, NotifyType.DEVICE_DELETED)
    headers = await world.login()
    async with receiving() as receiver:
        await subscribe(world, receiver.url(), *types)
        (device,) = await world.register("n1")
        config = {"mode": "merge", "data": {"fwVersion": "V1"}}
        for _ in range(2):  # the second time it tells nothing new
            await world.http.put(world.ddi("n1", "/configData"), headers=world.gateway, json=config)
        one = f"/iocm/app/dm/v1.4.0/devices/{device}"
        for _ in range(2):
            assert (await world.http.put(one, headers=headers, json={"name": "a pump"})).status_code == 204
        listed = (await world.http.get(one, headers=headers)).json()["deviceInfo"]
        assert (await world.http.delete(one, headers=headers)).status_code == 204
        told = await receiver.until(4)
        await none_left(world)
    assert [b["notifyType"] for b in told] == [types[0], types[1], types[1], types[2]]
    assert [list(b) for b in told] == [
        ["notifyType", "deviceId", "gatewayId", "nodeType", "deviceInfo"],
        ["notifyType", "deviceId", "gatewayId", "deviceInfo"],
        ["notifyType", "deviceId", "gatewayId", "deviceInfo"],
        ["notifyType", "deviceId", "gatewayId"],
    ]
    assert {(b["deviceId"], b["gatewayId"]) for b in told} == {(device, device)}
    assert [b["deviceInfo"]["fwVersion"] for b in told[:3]] == [None, "V1", "V1"]
    assert told[2]["deviceInfo"] == listed
    assert receiver.heard[3].raw.decode() == (
        f'{{"notifyType":"deviceDeleted","deviceId":"{device}","gatewayId":"{device}"}}'
    )


async def test_the_end_of_a_window_tells_the_failures_that_no_round_retries_any_more(world: World) -> None:
    """Those that had no turn are stopped, and not told of; one under way may finish."""
    now = world.rooms.clock.now()
    policy = Policy(ExecuteType.CUSTOM, now, Instant(now + 10 * MINUTE), retry_times=5)
    async with receiving() as receiver:
        await subscribe(world, receiver.url(), RESULT)
        failed, slow, away = await world.register("n1", "n2", "n3")
        target = Target(devices=(failed, slow, away))
        operation = await world.rooms.campaigns.create(
            world.actor, NewCampaign(CampaignKind.FIRMWARE, world.file_id, target, policy)
        )
        await world.poll("n2")
        await go(world, "n1", good=False)
        assert await left(world) == 0
        world.advance(10 * MINUTE // SECOND)
        await world.run_jobs()
        (told,) = await receiver.until(1)
        assert (told["deviceId"], told["status"]) == (failed, "FAIL")
        await go(world, "n2")
        await receiver.until(2)
        await none_left(world)
    assert (receiver.taken[1]["deviceId"], receiver.taken[1]["status"]) == (slow, "SUCCESS")
    assert await world.counters(operation) == {"success": 1, "fail": 1, "stop": 1}


async def test_a_version_that_a_success_alone_tells_changes_the_device(world: World) -> None:
    """A device that never tells a version is believed to have the package's."""
    async with receiving() as receiver:
        await subscribe(world, receiver.url(), NotifyType.DEVICE_INFO_CHANGED, RESULT)
        device = await upgraded(world, "n1")
        told = await receiver.until(2)
        await none_left(world)
    assert [b["notifyType"] for b in told] == [RESULT, NotifyType.DEVICE_INFO_CHANGED]
    assert (told[1]["deviceId"], told[1]["deviceInfo"]["fwVersion"]) == (device, "V2")


@pytest.mark.parametrize("mode", ["v1.1.0", "v2.0.0"])
async def test_a_device_that_gets_another_node_id_is_told_of(world: World, mode: str) -> None:
    headers = await world.login()
    async with receiving() as receiver:
        made = await world.http.post("/iocm/app/reg/v1.1.0/deviceCredentials", headers=headers, json={"nodeId": "n1"})
        await subscribe(world, receiver.url(), NotifyType.DEVICE_INFO_CHANGED)
        one = f"/iocm/app/reg/{mode}/deviceCredentials/{made.json()['deviceId']}"
        for node in ({}, {"nodeId": "n1"}, {"nodeId": "n2"}):
            assert (await world.http.put(one, headers=headers, json=node)).status_code == 200
        told = await receiver.until(1)
        await none_left(world)
    assert [b["deviceInfo"]["nodeId"] for b in told] == ["n2"]


async def test_devices_registered_by_the_hundred_are_each_told_of(world: World) -> None:
    headers = await world.login()
    async with receiving() as receiver:
        await subscribe(world, receiver.url(), NotifyType.DEVICE_ADDED)
        product = '"deviceType":"t","model":"m","manufacturerName":"x"'
        lines = "\n".join(f'{{"nodeId":"b{n}",{product}}}' for n in [*range(600), 0])
        made = await world.http.post("/api/v1/devices/bulk", headers=headers, content=lines.encode())
        registered = {json.loads(line)["deviceId"] for line in made.text.splitlines() if "error" not in line}
        assert len(registered) == 600
        told = await receiver.until(600)
    assert {b["deviceId"] for b in told} == registered
    assert len(told) == 600
    assert receiver.most_at_once <= 16


async def test_nothing_is_written_for_whom_nobody_subscribed(world: World) -> None:
    await upgraded(world, "n1")
    assert await left(world) == 0


async def test_a_receiver_dead_for_a_whole_life_costs_one_attempt_at_a_time_and_then_nothing(world: World) -> None:
    async with receiving(lambda body: 500) as receiver:
        await subscribe(world, receiver.url(), STATE)
        for n in range(20):
            await upgraded(world, f"n{n}")
        await receiver.until_heard(3)
        await asyncio.sleep(0.2)
        assert len(receiver.heard) <= 4  # then it is left alone for a while
        assert receiver.most_at_once == 1
        await pass_time(world, 10 * MINUTE // SECOND + 1)

        async def all_given_up() -> bool:
            return len(await undelivered(world)) == 100  # of 120; a page of them

        await eventually(all_given_up)
        subscription = (await world.rooms.subscription_queries.health(world.actor))[0]
        receiver.answer = lambda body: 200
        assert await world.rooms.subscriptions.replay_all(world.actor, subscription.subscription.subscription_id) == 120
        await pass_time(world, 5)
        told = await receiver.until(120)
        for device in {b["deviceId"] for b in told}:
            assert words(told, device) == WHOLE_WAY


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_two_servers_share_receivers_and_one_takes_over_what_the_other_leaves(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    """Each receiver is served by one of them at a time: nothing is told twice while both live, and all in order."""
    options: dict[str, Any] = {"callback_allow": LOOPBACK, "list_index": False}
    async with (
        build_world(database_url, tmp_path / "one", clock, **options) as one,
        open_rooms(load(environ={}, database=database_url, data_dir=str(tmp_path / "two"), **options)) as two,
        receiving() as states,
        receiving() as results,
    ):
        await subscribe(one, states.url(), STATE)
        await subscribe(one, results.url(), RESULT)
        await two.deliverer.start()
        async with telling(one):
            for n in range(10):
                await upgraded(one, f"n{n}")
            told = await states.until(60)
            await results.until(10)
            await none_left(one)
            assert (len(states.heard), len(results.heard)) == (60, 10)
            for device in {b["deviceId"] for b in told}:
                assert words(told, device) == WHOLE_WAY
        device = await upgraded(one, "n10")  # the first server is gone, and has given its leases back
        assert words(await states.until(66), device) == WHOLE_WAY
        await two.deliverer.close()
