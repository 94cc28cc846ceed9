"""A device that is given another node id (contract section 5.3) while it has an upgrade: the whole server, over DDI."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from openiodm.campaigns import texts
from openiodm.campaigns.model import CampaignKind, NewCampaign, Policy, Target
from openiodm.campaigns.states import UpgradeState
from openiodm.notifications.model import UPGRADE_TYPES
from tests.conftest import ManualClock
from tests.support.laws import broken_laws, untold
from tests.support.server import World, build_world

CREDENTIALS = "/iocm/app/reg/v1.1.0/deviceCredentials"
SECRETS = "/iocm/app/reg/v2.0.0/deviceCredentials"
DAYS = 10 * 24 * 3600

S = UpgradeState

# What the old hardware says until the swap, and where that leaves it.
WAYS = {
    S.OFFERED: (),
    S.DOWNLOADING: (("download", "none"),),
    S.DOWNLOADED: (("downloaded", "none"),),
    S.INSTALLING: (("downloaded", "none"), ("proceeding", "none")),
    S.VERIFYING: (("closed", "success"),),
}


@pytest.fixture
async def world(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    """Devices may be silent for long without an end by a clock; somebody wants to know of everything."""
    clocks = dict.fromkeys(("online_clock_s", "download_clock_s", "install_clock_s", "verify_clock_s"), DAYS)
    async with build_world(
        database_url, tmp_path, clock, **clocks, cancel_clock_s=DAYS, callback_allow=("127.0.0.1/32",)
    ) as built:
        for notify_type in sorted(UPGRADE_TYPES):
            await built.rooms.subscriptions.subscribe(built.actor, notify_type, "http://127.0.0.1:1/")
        yield built
        database = built.rooms.database
        assert [*await broken_laws(database), *await untold(database)] == []


async def had_attempts(world: World, node_id: str, count: int) -> None:
    """A device of that node id that had so many attempts, and is no more."""
    (device,) = await world.register(node_id)
    for number in range(1, count + 1):
        await world.create_task([device])
        assert await offered(world, node_id) == number
        assert await world.feedback(node_id, number, "closed", "failure") == 200
    await world.rooms.devices.delete(world.actor, device)


async def swap(world: World, device: str, node_id: str, path: str = CREDENTIALS) -> None:
    """New credentials with another node id, a day after the last contact."""
    await world.rooms.last_seen.flush()
    world.advance(26 * 3600)
    answer = await world.http.put(f"{path}/{device}", headers=await world.login(), json={"nodeId": node_id})
    assert answer.status_code == 200, answer.text


async def linked(world: World, node_id: str, name: str) -> int | None:
    """The number in that link of a poll's answer, if it is there."""
    link = (await world.poll(node_id)).get("_links", {}).get(name)
    return None if link is None else int(link["href"].rpartition("/")[2].partition("?")[0])


async def offered(world: World, node_id: str) -> int | None:
    return await linked(world, node_id, "deploymentBase")


async def downloads(world: World, node_id: str) -> int:
    path = f"/softwaremodules/{world.file_id}/artifacts/image.swu"
    return (await world.http.get(world.ddi(node_id, path), headers=world.gateway)).status_code


async def confirm(world: World, node_id: str, action: int) -> int:
    url = world.ddi(node_id, f"/confirmationBase/{action}/feedback")
    body = {"confirmation": "confirmed", "details": []}
    return (await world.http.post(url, headers=world.gateway, json=body)).status_code


async def tell_version(world: World, node_id: str, version: str) -> None:
    told = {"mode": "merge", "data": {"fwVersion": version}}
    answer = await world.http.put(world.ddi(node_id, "/configData"), headers=world.gateway, json=told)
    assert answer.status_code == 200


async def upgrade_of(world: World, task: str) -> Any:
    return (await world.rooms.campaign_queries.upgrades(world.actor, task, 0, 1))[1][0]


@pytest.mark.parametrize("path", [CREDENTIALS, SECRETS])
@pytest.mark.parametrize("answered", [False, True])
async def test_who_was_asked_for_confirmation_is_asked_anew_and_gets_the_offer(
    world: World, path: str, *, answered: bool
) -> None:
    await had_attempts(world, "B", 3)
    (device,) = await world.register("A")
    task = await world.create_task([device], confirmation=True)
    assert await linked(world, "A", "confirmationBase") == 1
    if answered:
        assert await confirm(world, "A", 1) == 200
    await swap(world, device, "B", path)
    assert await linked(world, "B", "confirmationBase") == 4
    assert await confirm(world, "B", 1) == 410
    assert await offered(world, "B") is None
    assert await world.counters(task) == {"wait": 1}
    assert await confirm(world, "B", 4) == 200
    assert (await offered(world, "B"), await downloads(world, "B")) == (4, 200)
    assert await world.feedback("B", 4, "closed", "success") == 200
    assert await world.counters(task) == {"success": 1}


async def test_who_was_never_in_contact_keeps_waiting(world: World) -> None:
    await had_attempts(world, "B", 2)
    headers = await world.login()
    body = {"nodeId": "typo", "deviceInfo": {"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}}
    made = (await world.http.post(CREDENTIALS, headers=headers, json=body)).json()
    task = await world.create_task([made["deviceId"]])
    await swap(world, made["deviceId"], "B")
    assert await world.counters(task) == {"wait": 1}
    assert await offered(world, "B") == 3


@pytest.mark.parametrize("state", WAYS)
async def test_an_attempt_under_way_fails_and_a_retry_is_the_new_hardwares(world: World, state: UpgradeState) -> None:
    await had_attempts(world, "B", 3)
    (device,) = await world.register("A")
    await tell_version(world, "A", "V1")
    task = await world.create_task([device])
    assert await offered(world, "A") == 1
    for execution, finished in WAYS[state]:
        assert await world.feedback("A", 1, execution, finished) == 200
    assert (await upgrade_of(world, task)).state is state
    await swap(world, device, "B")
    upgrade = await upgrade_of(world, task)
    assert (upgrade.state, upgrade.detail) == (S.FAIL, texts.NODE_ID_CHANGED)
    assert (await world.status(task), await world.counters(task)) == ("failed", {"fail": 1})
    assert (await offered(world, "B"), await downloads(world, "B")) == (None, 404)
    assert await world.feedback("B", 1, "closed", "success") == 410
    await world.rooms.campaigns.retry(world.actor, task)
    await world.run_jobs()
    assert (await offered(world, "B"), await downloads(world, "B")) == (4, 200)
    assert await world.feedback("B", 4, "closed", "success") == 200
    await tell_version(world, "B", "V2")
    assert (await world.status(task), await world.counters(task)) == ("success", {"success": 1})


async def test_a_round_of_retries_gives_it_to_the_new_hardware_by_itself(world: World) -> None:
    (device,) = await world.register("A")
    asked = NewCampaign(CampaignKind.FIRMWARE, world.file_id, Target(devices=(device,)), policy=Policy(retry_times=1))
    task = await world.rooms.campaigns.create(world.actor, asked)
    assert await offered(world, "A") == 1
    await swap(world, device, "C")
    await world.run_jobs()
    assert await world.counters(task) == {"wait": 1}
    assert await offered(world, "C") == 2


async def test_who_was_to_give_up_is_stopped(world: World) -> None:
    (device,) = await world.register("A")
    task = await world.create_task([device])
    assert await offered(world, "A") == 1
    await world.rooms.campaigns.stop_device(world.actor, task, device)
    assert await world.counters(task) == {"processing": 1}
    await swap(world, device, "C")
    upgrade = await upgrade_of(world, task)
    assert (upgrade.state, upgrade.detail) == (S.STOP, texts.STOPPED)
    assert (await world.status(task), await world.counters(task)) == ("stop", {"stop": 1})
    assert await linked(world, "C", "cancelAction") is None


async def test_other_credentials_for_the_same_node_id_end_nothing(world: World) -> None:
    (device,) = await world.register("A")
    task = await world.create_task([device])
    assert await offered(world, "A") == 1
    await swap(world, device, "A")
    assert await world.counters(task) == {"processing": 1}
    assert await offered(world, "A") == 1


async def test_a_node_id_that_is_taken_ends_nothing(world: World) -> None:
    device, _ = await world.register("A", "B")
    task = await world.create_task([device])
    assert await offered(world, "A") == 1
    await world.rooms.last_seen.flush()
    world.advance(26 * 3600)
    answer = await world.http.put(f"{CREDENTIALS}/{device}", headers=await world.login(), json={"nodeId": "B"})
    assert answer.json()["error_code"] == "100426"
    assert await world.counters(task) == {"processing": 1}
    assert await offered(world, "A") == 1


async def test_what_the_old_hardware_told_is_not_believed_of_the_new_one(world: World) -> None:
    """Else a task would end with "same version" on hardware that runs another."""
    (device,) = await world.register("A")
    await tell_version(world, "A", "V2")  # the package's
    await swap(world, device, "B")
    found = (await world.rooms.device_queries.device(world.actor, device)).device
    assert (found.fw_version, found.sw_version) == (None, None)
    task = await world.create_task([device])
    poll = await world.poll("B")
    assert {"configData", "deploymentBase"} <= set(poll["_links"])
    await tell_version(world, "B", "V1")
    assert await world.counters(task) == {"processing": 1}


async def test_new_credentials_for_the_same_hardware_keep_what_it_told(world: World) -> None:
    (device,) = await world.register("A")
    await tell_version(world, "A", "V2")
    await swap(world, device, "A")
    task = await world.create_task([device])
    await world.poll("A")
    assert await world.counters(task) == {"success": 1}
