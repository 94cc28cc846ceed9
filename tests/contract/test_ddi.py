"""hawkBit DDI v1, the sixteen operations, on both engines: each test is a step of a device's life."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

from openiodm.app import clean_up
from openiodm.clock import Instant
from openiodm.northbound.compat.times import format_time
from tests.conftest import ManualClock
from tests.support.server import BASE, FIRMWARE, World, build_world


@pytest.fixture
async def world(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[World]:
    async with build_world(database_url, tmp_path, clock) as built:
        yield built


async def granted(world: World, node_id: str = "dev1") -> tuple[str, int]:
    """A device that has been offered an upgrade: (operation id, action id)."""
    (device,) = await world.register(node_id)
    task = await world.create_task([device])
    href = (await world.poll(node_id))["_links"]["deploymentBase"]["href"]
    return task, int(href.rpartition("/")[2].partition("?")[0])


async def artifact_href(world: World, action: int, node_id: str = "dev1") -> str:
    answer = await world.http.get(world.ddi(node_id, f"/deploymentBase/{action}"), headers=world.gateway)
    (chunk,) = answer.json()["deployment"]["chunks"]
    return str(chunk["artifacts"][0]["_links"]["download-http"]["href"]).removeprefix(BASE)


# -- operation 1


async def test_a_first_poll_registers_the_device_and_asks_for_its_attributes(world: World) -> None:
    answer = await world.http.get(world.ddi("dev1"), headers=world.gateway)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/hal+json;charset=utf-8"
    assert answer.json() == {
        "config": {"polling": {"sleep": "00:01:00"}},
        "_links": {"configData": {"href": f"{BASE}/DEFAULT/controller/v1/dev1/configData"}},
    }
    found = await world.rooms.device_queries.device_by_node(world.actor, "dev1")
    assert found.device.product.model == "m1"


async def test_an_idle_poll_is_304_for_its_own_entity_tag(world: World) -> None:
    first = await world.http.get(world.ddi("dev1"), headers=world.gateway)
    second = await world.http.get(world.ddi("dev1"), headers={**world.gateway, "If-None-Match": first.headers["etag"]})
    assert (second.status_code, second.content) == (304, b"")


async def test_an_offer_changes_the_polls_entity_tag(world: World) -> None:
    (device,) = await world.register("dev1")
    before = (await world.http.get(world.ddi("dev1"), headers=world.gateway)).headers["etag"]
    await world.create_task([device])
    after = await world.http.get(world.ddi("dev1"), headers={**world.gateway, "If-None-Match": before})
    assert after.status_code == 200
    assert "deploymentBase" in after.json()["_links"]


async def test_the_tenant_is_default_in_any_case_or_the_application_of_the_token(world: World) -> None:
    for tenant, status in (("DEFAULT", 200), ("default", 200), (world.app_id, 200), ("another", 401)):
        answer = await world.http.get(world.ddi("dev1", tenant=tenant), headers=world.gateway)
        assert answer.status_code == status, tenant


async def test_links_have_the_default_tenant_as_hawkbit_writes_it_and_an_application_as_it_was_asked(
    world: World,
) -> None:
    """Zephyr before 4.1 asks for `default`, and takes a download's link with `/DEFAULT/controller/v1` in it alone."""
    (device,) = await world.register("dev1")
    await world.create_task([device])
    for asked, written in (("default", "DEFAULT"), ("Default", "DEFAULT"), ("%64efault", "DEFAULT")):
        assert await _tenants(world, asked) == {f"/{written}/controller/v1/dev1/"}
    for own in (world.app_id, world.app_id.upper()):
        assert await _tenants(world, own) == {f"/{own}/controller/v1/dev1/"}


async def _tenants(world: World, tenant: str) -> set[str]:
    """What the paths of all links begin with that a device is told who asks for that tenant."""
    poll = await world.http.get(world.ddi("dev1", tenant=tenant), headers=world.gateway)
    deployment = await world.http.get(world.ddi("dev1", "/deploymentBase/1", tenant=tenant), headers=world.gateway)
    (chunk,) = deployment.json()["deployment"]["chunks"]
    links = [*poll.json()["_links"].values(), *chunk["artifacts"][0]["_links"].values()]
    assert len(links) == 4
    for link in links:
        if "deploymentBase" in link["href"] or "artifacts" in link["href"]:
            assert (await world.http.get(link["href"], headers=world.gateway)).status_code == 200
    paths = [link["href"].removeprefix(BASE) for link in links]
    return {path[: path.index("/dev1/") + len("/dev1/")] for path in paths}


@pytest.mark.parametrize(
    "authorization", [None, "GatewayToken wrong", "TargetToken wrong", "Bearer x", "GatewayToken", ""]
)
async def test_without_a_fitting_credential_the_answer_is_401_with_an_empty_body(
    world: World, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    answer = await world.http.get(world.ddi("dev1"), headers=headers)
    assert (answer.status_code, answer.content) == (401, b"")


async def test_a_target_token_opens_its_own_device_alone(world: World) -> None:
    first, _ = await world.register("dev1", "dev2")
    token = await world.rooms.devices.set_target_token(world.actor, first)
    own = {"Authorization": f"TargetToken {token}"}
    assert (await world.http.get(world.ddi("dev1"), headers=own)).status_code == 200
    assert (await world.http.get(world.ddi("dev2"), headers=own)).status_code == 401
    assert (await world.http.get(world.ddi("unknown"), headers=own)).status_code == 401


async def test_each_kind_of_token_can_be_switched_off_per_application(world: World) -> None:
    (device,) = await world.register("dev1")
    token = await world.rooms.devices.set_target_token(world.actor, device)
    await world.rooms.access.set_device_tokens(world.actor, target=False, gateway=True)
    own = {"Authorization": f"TargetToken {token}"}
    assert (await world.http.get(world.ddi("dev1"), headers=own)).status_code == 401
    await world.rooms.access.set_device_tokens(world.actor, target=True, gateway=False)
    assert (await world.http.get(world.ddi("dev1"), headers=own)).status_code == 200
    assert (await world.http.get(world.ddi("dev1"), headers=world.gateway)).status_code == 401


async def test_a_thousand_first_contacts_four_times_each_at_once_are_a_thousand_devices(world: World) -> None:
    answers = await asyncio.gather(
        *(world.http.get(world.ddi(f"new-{n}"), headers=world.gateway) for _ in range(4) for n in range(1000))
    )
    assert {a.status_code for a in answers} == {200}
    assert await world.rooms.database.fetchval("SELECT count(*) FROM device") == 1000


async def test_cbor_is_answered_to_who_accepts_it(world: World) -> None:
    answer = await world.http.get(world.ddi("dev1"), headers={**world.gateway, "Accept": "application/cbor"})
    assert answer.headers["content-type"] == "application/cbor"
    assert cbor2.loads(answer.content)["config"] == {"polling": {"sleep": "00:01:00"}}
    answer = await world.http.get(world.ddi("dev1"), headers={**world.gateway, "Accept": "text/html"})
    assert answer.status_code == 406


async def test_unknown_resources_and_methods_are_told(world: World) -> None:
    await world.register("dev1")
    assert (await world.http.get(world.ddi("dev1", "/nothing"), headers=world.gateway)).status_code == 404
    answer = await world.http.delete(world.ddi("dev1"), headers=world.gateway)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert (await world.http.head(world.ddi("dev1"), headers=world.gateway)).status_code == 200


# -- operation 2


async def test_config_data_is_kept_and_not_asked_for_again(world: World) -> None:
    await world.register("dev1")
    body = {"mode": "merge", "data": {"hw_revision": "2", "fwVersion": "V1"}}
    answer = await world.http.put(world.ddi("dev1", "/configData"), headers=world.gateway, json=body)
    assert (answer.status_code, answer.content) == (200, b"")
    assert "_links" not in await world.poll("dev1")
    device = (await world.rooms.device_queries.device_by_node(world.actor, "dev1")).device
    assert (device.attributes["hw_revision"], device.fw_version) == ("2", "V1")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "hawkbit.server.error.rest.body.notReadable"),
        ({"data": {}}, 400, "hawkbit.server.error.rest.body.notReadable"),
        ({"data": {"k" * 129: "v"}}, 400, "hawkbit.server.error.repo.invalidTargetAttributes"),
        ({"data": {str(n): "v" for n in range(101)}}, 429, "hawkbit.server.error.quota.tooManyEntries"),
        ({"mode": "x", "data": {"a": "b"}}, 400, "hawkbit.server.error.rest.body.notReadable"),
    ],
)
async def test_bad_config_data_is_refused_and_changes_nothing(
    world: World, body: dict[str, object], status: int, code: str
) -> None:
    await world.register("dev1")
    answer = await world.http.put(world.ddi("dev1", "/configData"), headers=world.gateway, json=body)
    assert (answer.status_code, answer.json()["errorCode"]) == (status, code)
    assert "configData" in (await world.poll("dev1"))["_links"]


async def test_config_data_of_a_self_registered_device_says_what_it_is(world: World) -> None:
    await world.register("dev1")
    body = {"data": {"model": "m2"}}
    await world.http.put(world.ddi("dev1", "/configData"), headers=world.gateway, json=body)
    device = (await world.rooms.device_queries.device_by_node(world.actor, "dev1")).device
    assert (device.product.device_type, device.product.model) == ("sensor", "m2")


# -- operations 3, 4


async def test_a_deployment_is_one_chunk_with_one_artifact(world: World) -> None:
    _, action = await granted(world)
    answer = await world.http.get(world.ddi("dev1", f"/deploymentBase/{action}"), headers=world.gateway)
    body = answer.json()
    assert body["id"] == str(action)
    assert body["deployment"]["download"] == body["deployment"]["update"] == "forced"
    (chunk,) = body["deployment"]["chunks"]
    (artifact,) = chunk["artifacts"]
    assert (chunk["part"], chunk["version"]) == ("bApp", "V2")
    assert (artifact["filename"], artifact["size"]) == ("image.swu", len(FIRMWARE))
    assert set(artifact["hashes"]) == {"sha1", "md5", "sha256"}
    assert set(artifact["_links"]) == {"download-http", "md5sum-http"}


async def test_an_update_of_a_device_without_versions_succeeds_on_its_word(world: World) -> None:
    task, action = await granted(world)
    assert await world.feedback("dev1", action, "proceeding", "none", "begun") == 200
    assert await world.counters(task) == {"processing": 1}
    assert await world.feedback("dev1", action, "closed", "success") == 200
    assert await world.counters(task) == {"success": 1}
    poll = await world.poll("dev1")
    assert set(poll["_links"]) == {"configData", "installedBase"}


async def test_what_a_device_without_versions_has_installed_is_its_version_from_then_on(world: World) -> None:
    task, action = await granted(world)
    assert await world.feedback("dev1", action, "closed", "success") == 200
    _, (upgrade,) = await world.rooms.campaign_queries.upgrades(world.actor, task, 0, 10)
    assert upgrade.current_version == "V2"
    again = await world.create_task([upgrade.device_id])
    _, (upgrade,) = await world.rooms.campaign_queries.upgrades(world.actor, again, 0, 10)
    assert (upgrade.state, upgrade.detail) == ("success", "The current version is the same as the target version")
    # Its word is no proof: a device that begins to tell versions is held to what it tells.
    await world.http.put(world.ddi("dev1", "/configData"), headers=world.gateway, json={"data": {"fwVersion": "V1"}})
    third = await world.create_task([upgrade.device_id])
    await world.poll("dev1")
    assert await world.feedback("dev1", action + 1, "closed", "success") == 200
    assert await world.counters(third) == {"processing": 1}


async def test_an_update_of_a_device_with_versions_succeeds_when_it_shows_the_new_one(world: World) -> None:
    (device,) = await world.register("dev1")
    config = world.ddi("dev1", "/configData")
    await world.http.put(config, headers=world.gateway, json={"data": {"fwVersion": "V1"}})
    task = await world.create_task([device])
    await world.poll("dev1")
    assert await world.feedback("dev1", 1, "closed", "success") == 200
    assert await world.counters(task) == {"processing": 1}
    poll = await world.poll("dev1")
    assert set(poll["_links"]) == {"configData"}
    await world.http.put(config, headers=world.gateway, json={"data": {"fwVersion": "V2"}})
    assert (await world.status(task), await world.counters(task)) == ("success", {"success": 1})
    assert set((await world.poll("dev1"))["_links"]) == {"installedBase"}  # its attributes have just come


async def test_a_failure_keeps_the_devices_own_words(world: World) -> None:
    task, action = await granted(world)
    assert await world.feedback("dev1", action, "closed", "failure", "no space left") == 200
    assert await world.status(task) == "failed"
    _, (upgrade,) = await world.rooms.campaign_queries.upgrades(world.actor, task, 0, 10)
    assert upgrade.detail == "Firmware update failed: no space left"


async def test_a_repeated_result_is_200_for_ten_minutes_and_anything_else_410(world: World) -> None:
    _, action = await granted(world)
    assert await world.feedback("dev1", action, "closed", "success") == 200
    assert await world.feedback("dev1", action, "closed", "success") == 200
    assert await world.feedback("dev1", action, "closed", "failure") == 410
    assert await world.feedback("dev1", action, "proceeding") == 410
    assert await world.feedback("dev1", action + 1, "closed", "success") == 404
    world.advance(601)
    assert await world.feedback("dev1", action, "closed", "success") == 410


async def test_action_ids_rise_over_deletion_and_new_registration(world: World) -> None:
    _, action = await granted(world)
    device = (await world.rooms.device_queries.device_by_node(world.actor, "dev1")).device
    await world.rooms.devices.delete(world.actor, device.device_id)
    _, second = await granted(world)
    assert (action, second) == (1, 2)


@pytest.mark.parametrize(
    ("content", "media", "status"),
    [
        (b"{", "application/json", 400),
        (b"{}", "application/json", 400),
        (b'{"status":{"execution":"closed"}}', "application/json", 400),
        (b'{"status":{"execution":"x","result":{"finished":"none"}}}', "application/json", 400),
        (b"x", "text/plain", 415),
        (b"x" * (600 * 1024), "application/json", 413),
    ],
)
async def test_unreadable_feedback_is_refused_and_changes_nothing(
    world: World, content: bytes, media: str, status: int
) -> None:
    task, action = await granted(world)
    answer = await world.http.post(
        world.ddi("dev1", f"/deploymentBase/{action}/feedback"),
        headers={**world.gateway, "Content-Type": media},
        content=content,
    )
    assert answer.status_code == status
    assert await world.counters(task) == {"processing": 1}


async def test_a_feedback_in_cbor_is_understood(world: World) -> None:
    task, action = await granted(world)
    body = {"status": {"execution": "closed", "result": {"finished": "success"}, "details": []}}
    answer = await world.http.post(
        world.ddi("dev1", f"/deploymentBase/{action}/feedback"),
        headers={**world.gateway, "Content-Type": "application/cbor"},
        content=cbor2.dumps(body),
    )
    assert answer.status_code == 200
    assert await world.counters(task) == {"success": 1}


async def test_a_swupdate_log_of_hundreds_of_lines_is_cut_and_answered_200(world: World) -> None:
    _, action = await granted(world)
    assert await world.feedback("dev1", action, "proceeding", "none", *(f"line {n}" for n in range(300))) == 200
    answer = await world.http.get(
        world.ddi("dev1", f"/deploymentBase/{action}?actionHistory=100"), headers=world.gateway
    )
    messages = answer.json()["actionHistory"]["messages"]
    assert len(messages) == 50
    assert messages[0] == "line 299"


async def test_another_devices_action_is_not_there(world: World) -> None:
    _, action = await granted(world)
    await world.register("dev2")
    answer = await world.http.get(world.ddi("dev2", f"/deploymentBase/{action}"), headers=world.gateway)
    assert (answer.status_code, answer.json()["errorCode"]) == (404, "hawkbit.server.error.repo.entityNotFound")
    assert await world.feedback("dev2", action, "closed", "success") == 404


@pytest.mark.parametrize(
    ("segment", "status"), [("abc", 400), ("99999999999999999999", 400), ("9999999999", 404), ("0", 404), ("-1", 404)]
)
async def test_action_ids_that_are_no_action(world: World, segment: str, status: int) -> None:
    await granted(world)
    answer = await world.http.get(world.ddi("dev1", f"/deploymentBase/{segment}"), headers=world.gateway)
    assert answer.status_code == status


# -- operations 5, 6


async def test_a_stop_shows_as_a_cancel_action_and_ends_with_the_devices_yes(world: World) -> None:
    task, action = await granted(world)
    await world.rooms.campaigns.stop(world.actor, task)
    assert "deploymentBase" not in (await world.poll("dev1")).get("_links", {})
    await world.run_jobs()
    links = (await world.poll("dev1"))["_links"]
    assert links["cancelAction"]["href"] == f"{BASE}{world.ddi('dev1', f'/cancelAction/{action}')}"
    answer = await world.http.get(world.ddi("dev1", f"/cancelAction/{action}"), headers=world.gateway)
    assert answer.json() == {"id": str(action), "cancelAction": {"stopId": str(action)}}
    body = {"status": {"execution": "closed", "result": {"finished": "success"}}}
    answer = await world.http.post(
        world.ddi("dev1", f"/cancelAction/{action}/feedback"), headers=world.gateway, json=body
    )
    assert answer.status_code == 200
    assert (await world.status(task), await world.counters(task)) == ("stop", {"stop": 1})
    assert "cancelAction" not in (await world.poll("dev1")).get("_links", {})


async def test_a_refused_cancel_keeps_the_link_and_offers_nothing_anew(world: World) -> None:
    task, action = await granted(world)
    await world.rooms.campaigns.stop(world.actor, task)
    await world.run_jobs()
    body = {"status": {"execution": "rejected", "result": {"finished": "none"}}}
    await world.http.post(world.ddi("dev1", f"/cancelAction/{action}/feedback"), headers=world.gateway, json=body)
    links = (await world.poll("dev1"))["_links"]
    assert "cancelAction" in links
    assert "deploymentBase" not in links


async def test_cancel_action_is_404_unless_cancelling(world: World) -> None:
    _, action = await granted(world)
    answer = await world.http.get(world.ddi("dev1", f"/cancelAction/{action}"), headers=world.gateway)
    assert answer.status_code == 404


# -- operations 7, 8


async def test_installed_base_shows_the_last_finished_action(world: World) -> None:
    _, action = await granted(world)
    await world.feedback("dev1", action, "closed", "success")
    answer = await world.http.get(world.ddi("dev1", f"/installedBase/{action}"), headers=world.gateway)
    assert answer.json()["deployment"]["chunks"][0]["version"] == "V2"
    answer = await world.http.get(world.ddi("dev1", f"/installedBase/{action + 1}"), headers=world.gateway)
    assert answer.status_code == 404


async def test_the_history_of_an_action_is_told_when_asked_for_and_with_its_state(world: World) -> None:
    async def history(resource: str) -> Any:
        answer = await world.http.get(world.ddi("dev1", f"/{resource}?actionHistory=2"), headers=world.gateway)
        return answer.json().get("actionHistory")

    _, action = await granted(world)
    assert await history(f"deploymentBase/{action}") is None
    await world.feedback("dev1", action, "proceeding", "none", "one", "two")
    assert await history(f"deploymentBase/{action}") == {"status": "RUNNING", "messages": ["two", "one"]}
    await world.feedback("dev1", action, "closed", "success", "three")
    assert await history(f"installedBase/{action}") == {"status": "FINISHED", "messages": ["three", "two"]}
    await world.http.put(
        world.ddi("dev1", "/installedBase"), headers=world.gateway, json={"name": "x", "version": "V1"}
    )
    _, action = await confirming(world)
    denial = {"confirmation": "denied", "details": ["not now"]}
    url = world.ddi("dev1", f"/confirmationBase/{action}/feedback")
    assert (await world.http.post(url, headers=world.gateway, json=denial)).status_code == 200
    assert await history(f"confirmationBase/{action}") == {"status": "WAIT_FOR_CONFIRMATION", "messages": ["not now"]}


async def test_what_a_device_says_it_runs_counts_as_its_version(world: World) -> None:
    await world.register("dev1")
    url = world.ddi("dev1", "/installedBase")
    body = {"name": "image.swu", "version": "V1"}
    assert (await world.http.put(url, headers=world.gateway, json=body)).status_code == 201
    assert (await world.http.put(url, headers=world.gateway, json=body)).status_code == 200
    device = (await world.rooms.device_queries.device_by_node(world.actor, "dev1")).device
    assert device.fw_version == "V1"


# -- operations 9 to 13


async def confirming(world: World) -> tuple[str, int]:
    (device,) = await world.register("dev1")
    task = await world.create_task([device], confirmation=True)
    href = (await world.poll("dev1"))["_links"]["confirmationBase"]["href"]
    return task, int(href.rpartition("/")[2].partition("?")[0])


async def test_a_device_that_must_confirm_is_asked_first(world: World) -> None:
    task, action = await confirming(world)
    base = world.ddi("dev1", "/confirmationBase")
    status = (await world.http.get(base, headers=world.gateway)).json()
    assert status["autoConfirm"] == {"active": False}
    assert set(status["_links"]) == {"activateAutoConfirm", "confirmationBase"}
    answer = await world.http.get(f"{base}/{action}", headers=world.gateway)
    assert answer.json()["confirmation"]["chunks"][0]["version"] == "V2"
    assert (await world.http.get(await _guess_artifact(world), headers=world.gateway)).status_code == 404
    assert await world.feedback("dev1", action, "closed", "success") == 404
    answer = await world.http.post(
        f"{base}/{action}/feedback", headers=world.gateway, json={"confirmation": "denied", "code": 1, "details": []}
    )
    assert answer.status_code == 200
    assert "confirmationBase" in (await world.poll("dev1"))["_links"]
    await world.http.post(f"{base}/{action}/feedback", headers=world.gateway, json={"confirmation": "confirmed"})
    assert "deploymentBase" in (await world.poll("dev1"))["_links"]
    assert await world.counters(task) == {"processing": 1}


async def _guess_artifact(world: World) -> str:
    return world.ddi("dev1", f"/softwaremodules/{world.file_id}/artifacts/image.swu")


async def test_auto_confirmation_says_yes_for_the_device(world: World) -> None:
    _, _ = await confirming(world)
    base = world.ddi("dev1", "/confirmationBase")
    on, off = f"{base}/activateAutoConfirm", f"{base}/deactivateAutoConfirm"
    assert (await world.http.post(on, headers=world.gateway)).status_code == 200
    again = await world.http.post(on, headers=world.gateway, json={"initiator": "me"})
    assert again.status_code == 409
    assert again.json()["errorCode"] == "hawkbit.server.error.repo.autoConfAlreadyActive"
    status = (await world.http.get(base, headers=world.gateway)).json()
    assert status["autoConfirm"]["active"] is True
    assert "deploymentBase" in (await world.poll("dev1"))["_links"]
    assert (await world.http.post(off, headers=world.gateway)).status_code == 200


# -- operations 14, 15, 16


async def test_the_bytes_with_all_their_headers(world: World) -> None:
    _, action = await granted(world)
    href = await artifact_href(world, action)
    answer = await world.http.get(href, headers=world.gateway)
    assert answer.status_code == 200
    assert answer.content == FIRMWARE
    assert answer.headers["content-disposition"] == "attachment;filename=image.swu"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = await world.http.head(href, headers=world.gateway)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(FIRMWARE)))


async def test_ranges_resume_a_download_and_end_with_416(world: World) -> None:
    _, action = await granted(world)
    href = await artifact_href(world, action)
    size = len(FIRMWARE)

    async def get(value: str, **headers: str) -> tuple[int, bytes, str | None]:
        answer = await world.http.get(href, headers={**world.gateway, "Range": value, **headers})
        return answer.status_code, answer.content, answer.headers.get("content-range")

    assert await get("bytes=10-19") == (206, FIRMWARE[10:20], f"bytes 10-19/{size}")
    assert await get("bytes=100-") == (206, FIRMWARE[100:], f"bytes 100-{size - 1}/{size}")
    assert await get("bytes=-5") == (206, FIRMWARE[-5:], f"bytes {size - 5}-{size - 1}/{size}")
    assert await get(f"bytes={size}-") == (416, b"", f"bytes */{size}")
    status, body, _ = await get("bytes=0-1,10-11")
    assert status == 206
    assert body.count(b"THIS_STRING_SEPARATES_MULTIPART") == 3
    assert (await get("bytes=0-1", **{"If-Match": '"0000"'}))[0] == 412
    assert (await get("bytes=0-1", **{"If-Range": '"0000"'}))[:2] == (200, FIRMWARE)


async def test_the_first_byte_is_the_download_phase(world: World) -> None:
    task, action = await granted(world)
    await world.http.get(await artifact_href(world, action), headers={**world.gateway, "Range": "bytes=0-0"})
    _, (upgrade,) = await world.rooms.campaign_queries.upgrades(world.actor, task, 0, 10)
    assert upgrade.state == "downloading"


async def test_the_md5_sum_and_the_artifact_list(world: World) -> None:
    _, action = await granted(world)
    href = await artifact_href(world, action)
    answer = await world.http.get(f"{href}.MD5SUM", headers=world.gateway)
    assert answer.headers["content-type"].startswith("text/plain")
    digest, blanks, name = answer.text.partition("  ")
    assert (len(digest), blanks, name) == (32, "  ", "image.swu")
    answer = await world.http.get(href.rpartition("/")[0], headers=world.gateway)
    assert [a["filename"] for a in answer.json()] == ["image.swu"]


async def test_the_artifacts_of_what_is_installed_are_listed_and_their_bytes_are_gone(world: World) -> None:
    _, action = await granted(world)
    href = await artifact_href(world, action)
    await world.feedback("dev1", action, "closed", "success")
    answer = await world.http.get(href.rpartition("/")[0], headers=world.gateway)
    assert [a["filename"] for a in answer.json()] == ["image.swu"]
    assert (await world.http.get(href, headers=world.gateway)).status_code == 404
    other = href.rpartition("/artifacts/")[0].rpartition("/")[0] + "/0123/artifacts"
    assert (await world.http.get(other, headers=world.gateway)).status_code == 404


async def test_offer_and_bytes_are_gone_when_the_attempt_is_final(world: World) -> None:
    _, action = await granted(world)
    href = await artifact_href(world, action)
    await world.feedback("dev1", action, "closed", "failure")
    assert (await world.http.get(href, headers=world.gateway)).status_code == 404
    answer = await world.http.get(world.ddi("dev1", f"/deploymentBase/{action}"), headers=world.gateway)
    assert answer.status_code == 404


async def test_bytes_are_refused_after_a_stop_unless_the_device_installs_already(world: World) -> None:
    task, action = await granted(world)
    href = await artifact_href(world, action)
    (second,) = await world.register("dev2")
    other = await world.create_task([second])
    await world.poll("dev2")
    await world.feedback("dev2", 1, "downloaded")
    await world.feedback("dev2", 1, "proceeding")
    href2 = href.replace("dev1", "dev2")
    for operation in (task, other):
        await world.rooms.campaigns.stop(world.actor, operation)
    for _ in range(2):  # before the sweep and after it
        assert (await world.http.get(href, headers=world.gateway)).status_code == 404
        assert (await world.http.get(href2, headers=world.gateway)).status_code == 200
        await world.run_jobs()


async def test_a_device_of_another_application_is_another_device(world: World) -> None:
    _, action = await granted(world)
    other = await world.rooms.access.create_application("other")
    login = await world.rooms.access.login(other.app_id, other.secret)
    actor = await world.rooms.access_queries.authenticate(other.app_id, login.access_token)
    from tests.support.server import PRODUCT

    _, token = await world.rooms.access.create_gateway_token(actor, "fleet", PRODUCT)
    foreign = {"Authorization": f"GatewayToken {token}"}
    assert (await world.http.get(world.ddi("dev1"), headers=foreign)).status_code == 200
    assert (await world.http.get(await artifact_href(world, action), headers=foreign)).status_code == 404
    assert await world.rooms.database.fetchval("SELECT count(*) FROM device WHERE node_id = 'dev1'") == 2


async def test_a_silent_device_times_out_and_the_task_says_so(world: World) -> None:
    task, _ = await granted(world)
    world.advance(world.rooms.settings.download_clock_s)
    await world.run_jobs()
    assert (await world.status(task), await world.counters(task)) == ("failed", {"timeout": 1})


async def test_a_device_named_like_anothers_id_is_not_mistaken_for_it(world: World) -> None:
    (first,) = await world.register("dev1")
    (second,) = await world.register(first)  # its node id is the other's device id
    task = await world.create_task([first, second])
    await world.rooms.campaigns.stop_device(world.actor, task, first)
    states = {
        u.device_id: u.state.value for u in (await world.rooms.campaign_queries.upgrades(world.actor, task, 0, 10))[1]
    }
    assert states == {first: "stop", second: "wait"}


async def test_a_repeated_create_is_answered_as_the_first_even_when_its_window_has_begun(world: World) -> None:
    (device,) = await world.register("dev1")
    start, end = (Instant(world.rooms.clock.now() + s * 1000) for s in (10, 3610))
    body = {
        "fileId": world.file_id,
        "targets": {"devices": [device]},
        "policy": {"executeType": "custom", "startTime": format_time(start), "endTime": format_time(end)},
    }
    url = "/iodm/northbound/v1.5.0/operations/firmwareUpgrade"
    headers = {**await world.login(), "Idempotency-Key": "k1"}
    first = await world.http.post(url, headers=headers, json=body)
    world.advance(600)
    again = await world.http.post(url, headers=headers, json=body)
    assert (first.status_code, again.json()) == (200, first.json())
    other = await world.http.post(url, headers=headers, json={**body, "policy": None})
    assert (other.status_code, other.json()["error_code"]) == (400, "120015")


async def test_behind_a_trusted_tls_proxy_links_are_https_under_both_names(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    async with build_world(database_url, tmp_path, clock, trusted_proxies=("127.0.0.1",)) as world:
        forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "ota.test", "X-Forwarded-For": "10.0.0.9"}
        (device,) = await world.register("dev1")
        await world.create_task([device])
        headers = {**world.gateway, **forwarded}
        poll = (await world.http.get(world.ddi("dev1"), headers=headers)).json()
        assert poll["_links"]["deploymentBase"]["href"].startswith("https://ota.test/")
        body = (await world.http.get(world.ddi("dev1", "/deploymentBase/1"), headers=headers)).json()
        links = body["deployment"]["chunks"][0]["artifacts"][0]["_links"]
        assert set(links) == {"download", "md5sum", "download-http", "md5sum-http"}
        await world.rooms.last_seen.flush()
        found = await world.rooms.device_queries.device_by_node(world.actor, "dev1")
        assert found.device.address == "10.0.0.9"


async def test_of_several_forwarded_names_the_trusted_proxys_own_counts(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    async with build_world(database_url, tmp_path, clock, trusted_proxies=("127.0.0.1",)) as world:

        async def link(proto: str, host: str) -> str:
            headers = {**world.gateway, "X-Forwarded-Proto": proto, "X-Forwarded-Host": host}
            poll = (await world.http.get(world.ddi("dev1"), headers=headers)).json()
            return str(poll["_links"]["configData"]["href"]).partition("/DEFAULT/")[0]

        assert await link("http, https", "evil.test, ota.test") == "https://ota.test"
        assert await link("https,", " ,") == BASE
        assert await link("HTTPS", "ota.test:8443") == "https://ota.test:8443"
        assert await link("javascript", "ota.test") == "http://ota.test"


async def test_a_device_registered_in_secret_mode_polls_with_its_secret(world: World) -> None:
    """Section 5.1: registration in secret mode; the secret is the device's target token."""
    headers = await world.login()
    secrets = "/iocm/app/reg/v2.0.0/deviceCredentials"
    body = {"deviceInfo": {"nodeId": "with-secret"}}
    made = (await world.http.post(secrets, headers=headers, json=body)).json()

    async def poll(secret: str) -> int:
        token = {"Authorization": f"TargetToken {secret}"}
        return (await world.http.get(world.ddi("with-secret"), headers=token)).status_code

    assert await poll(made["secret"]) == 200
    assert await poll("0" * 20) == 401
    world.advance(26 * 3600)
    headers = await world.login()
    again = await world.http.put(f"{secrets}/{made['deviceId']}", headers=headers, json={})
    assert again.status_code == 200, again.text
    assert (await poll(made["secret"]), await poll(again.json()["secret"])) == (401, 200)


async def test_section_5_4_versions_of_device_info_follow_what_the_device_tells(world: World) -> None:
    (device_id,) = await world.register("d")
    headers = await world.login()

    async def versions() -> tuple[str | None, str | None]:
        answer = await world.http.get(f"/iocm/app/dm/v1.4.0/devices/{device_id}", headers=headers)
        return answer.json()["deviceInfo"]["fwVersion"], answer.json()["deviceInfo"]["swVersion"]

    assert await versions() == (None, None)
    for told, expected in (
        ({"fwVersion": "F1"}, ("F1", None)),
        ({"fwVersion": "F2", "swVersion": "S1"}, ("F2", "S1")),
        ({"something": "else"}, ("F2", "S1")),
    ):
        answer = await world.http.put(
            world.ddi("d", "/configData"), headers=world.gateway, json={"mode": "merge", "data": told}
        )
        assert answer.status_code == 200, answer.text
        assert await versions() == expected


async def test_a_first_contact_beyond_the_applications_limit_is_told_to_come_later(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    async with build_world(database_url, tmp_path, clock, devices_per_application=1) as world:
        await world.register("first")
        answer = await world.http.get(world.ddi("second"), headers=world.gateway)
        assert answer.status_code == 429
        assert (await world.http.get(world.ddi("first"), headers=world.gateway)).status_code == 200


async def test_section_5_2_a_device_that_came_at_the_last_moment_is_not_deleted(world: World) -> None:
    """Its contact is in memory for some seconds; the clean-up looked at the database alone."""
    headers = await world.login()
    credentials = "/iocm/app/reg/v1.1.0/deviceCredentials"
    for node_id in ("in-time", "late"):
        body = {"nodeId": node_id, "timeout": 60}
        assert (await world.http.post(credentials, headers=headers, json=body)).status_code == 200
    world.advance(59)
    await world.poll("in-time")
    world.advance(2)
    if world.rooms.database.engine == "postgresql":  # its clock is the database's own
        async with world.rooms.database.transaction() as tx:
            await tx.execute("UPDATE device SET activation_due_at = registered_at")
    await clean_up(world.rooms)
    left = await world.rooms.database.fetch("SELECT node_id FROM device WHERE deleted_at IS NULL")
    assert [row[0] for row in left] == ["in-time"]
