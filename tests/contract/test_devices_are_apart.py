"""Law 8 for devices: a DDI credential opens the things of its own application alone, on every operation.

The operations are walked: one that the server answers and this page does not list fails.
"""

import inspect
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from openiodm.protocols.ddi import server
from openiodm.protocols.ddi.server import DdiServer
from tests.conftest import ManualClock
from tests.support.server import PRODUCT, World, build_world
from tests.support.things import rows

NODE = "n1"
FEEDBACK = {"status": {"execution": "closed", "result": {"finished": "success"}, "details": ["of a stranger"]}}
CONFIRMATION = {"confirmation": "confirmed", "code": 1, "details": ["of a stranger"]}

# Method, path below the controller id ("{action}" and "{module}" are those of its open offer), body.
OPERATIONS: list[tuple[str, str, Any]] = [
    ("GET", "", None),
    ("GET", "confirmationBase", None),
    ("PUT", "configData", {"mode": "merge", "data": {"stranger": "was here"}}),
    ("PUT", "installedBase", {"name": "stranger", "version": "9"}),
    ("GET", "deploymentBase/{action}", None),
    ("GET", "confirmationBase/{action}", None),
    ("GET", "installedBase/{action}", None),
    ("GET", "cancelAction/{action}", None),
    ("POST", "deploymentBase/{action}/feedback", FEEDBACK),
    ("POST", "cancelAction/{action}/feedback", FEEDBACK),
    ("POST", "confirmationBase/{action}/feedback", CONFIRMATION),
    ("POST", "confirmationBase/activateAutoConfirm", {"initiator": "stranger", "remark": "r"}),
    ("POST", "confirmationBase/deactivateAutoConfirm", None),
    ("GET", "softwaremodules/{module}/artifacts", None),
    ("GET", "softwaremodules/{module}/artifacts/image.swu", None),
    ("GET", "softwaremodules/{module}/artifacts/image.swu.MD5SUM", None),
]


@dataclass
class Fleet:
    """A's device with an open offer, in a world where B has a device of the same name."""

    world: World
    action: str
    module: str
    a: dict[str, dict[str, str]]  # A's credentials by kind
    b: dict[str, dict[str, str]]
    b_id: str
    bearer: dict[str, str]

    async def send(
        self, operation: tuple[str, str, Any], headers: dict[str, str], tenant: str = "DEFAULT"
    ) -> httpx.Response:
        method, path, body = operation
        path = path.format(action=self.action, module=self.module)
        url = self.world.ddi(NODE, f"/{path}" if path else "", tenant)
        return await self.world.http.request(method, url, headers=headers, **({} if body is None else {"json": body}))


@pytest.fixture
async def fleet(database_url: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Fleet]:
    async with build_world(database_url, tmp_path, clock) as world:
        rooms = world.rooms
        (device,) = await world.register(NODE)
        await world.create_task([device])
        offer = (await world.poll(NODE))["_links"]["deploymentBase"]["href"]
        deployment = (await world.http.get(offer, headers=world.gateway)).json()
        artifact = deployment["deployment"]["chunks"][0]["artifacts"][0]["_links"]["download-http"]["href"]
        b = await rooms.access.create_application("b")
        actor = (await rooms.access_queries.application(b.app_id)).actor
        _, gateway = await rooms.access.create_gateway_token(actor, "of b", PRODUCT)
        as_b = {"Authorization": f"GatewayToken {gateway}"}
        assert (await world.http.get(world.ddi(NODE), headers=as_b)).status_code == 200
        of_b = (await rooms.device_queries.device_by_node(actor, NODE)).device.device_id
        target = {
            "a": await rooms.devices.set_target_token(world.actor, device),
            "b": await rooms.devices.set_target_token(actor, of_b),
        }
        yield Fleet(
            world,
            offer.rpartition("/")[2].partition("?")[0],
            artifact.partition("/softwaremodules/")[2].partition("/")[0],
            {"gateway": world.gateway, "target": {"Authorization": f"TargetToken {target['a']}"}},
            {"gateway": as_b, "target": {"Authorization": f"TargetToken {target['b']}"}},
            b.app_id,
            await world.login(),
        )


def test_every_operation_of_the_server_is_walked() -> None:
    handlers = {
        method
        for _, method in inspect.getmembers(DdiServer, inspect.iscoroutinefunction)
        if list(inspect.signature(method).parameters) == ["self", "request", "caller"]
    } - {DdiServer._download}  # a part of the artifact's
    walked = set()
    for method, path, _ in OPERATIONS:
        operations = server._operations(tuple(path.format(action="1", module="m").split("/")))
        assert operations is not None, path
        walked.add(operations[method])
    assert walked == handlers


async def test_no_operation_answers_without_a_credential_that_fits(fleet: Fleet) -> None:
    wrong = {
        "nothing": {},
        "a gateway token that is none": {"Authorization": "GatewayToken nonsense"},
        "a target token that is none": {"Authorization": "TargetToken nonsense"},
        "the target token as a gateway token": _renamed(fleet.a["target"], "GatewayToken"),
        "the gateway token as a target token": _renamed(fleet.a["gateway"], "TargetToken"),
        "an application's token": fleet.bearer,
    }
    before = await rows(fleet.world.rooms.database)
    answered = [
        f"{operation[:2]} with {name}: {answer.status_code}"
        for operation in OPERATIONS
        for name, headers in wrong.items()
        if (answer := await fleet.send(operation, headers)).status_code != 401 or answer.content
    ]
    assert answered == []
    assert await rows(fleet.world.rooms.database) == before


def _renamed(headers: dict[str, str], kind: str) -> dict[str, str]:
    return {"Authorization": f"{kind} {headers['Authorization'].split()[1]}"}


async def test_no_operation_shows_or_changes_the_device_of_the_same_name_of_another_application(fleet: Fleet) -> None:
    database = fleet.world.rooms.database
    own = {name: kept for name, kept in (await rows(database)).items() if name not in ("device", "product")}
    device = await database.fetch("SELECT * FROM device WHERE application_id = $1", fleet.world.actor.application)
    wrong = []
    for operation in OPERATIONS:
        for kind, headers in fleet.b.items():
            tenant = await fleet.send(operation, headers, fleet.world.app_id)
            if tenant.status_code != 401:
                wrong.append(f"{operation[:2]} with B's {kind} token under A's tenant: {tenant.status_code}")
            answer = await fleet.send(operation, headers)
            if operation[1].startswith("softwaremodules") or "{action}" in operation[1]:
                if answer.status_code not in (404, 410):
                    wrong.append(f"{operation[:2]} with B's {kind} token: {answer.status_code} {answer.text}")
            elif fleet.module in answer.text or "deploymentBase" in answer.text:
                wrong.append(f"{operation[:2]} with B's {kind} token tells {answer.text}")
            elif answer.status_code not in (200, 201, 409):  # 409: auto-confirmation was switched on before
                wrong.append(f"{operation[:2]} with B's {kind} token: {answer.status_code} {answer.text}")
    assert wrong == []
    after = await rows(database)
    assert {name for name, kept in own.items() if kept - after[name]} == set()
    again = await database.fetch("SELECT * FROM device WHERE application_id = $1", fleet.world.actor.application)
    assert [tuple(row) for row in again] == [tuple(row) for row in device]
    assert await database.fetchval("SELECT count(*) FROM device_log WHERE lines LIKE '%stranger%'") == 0


@pytest.mark.parametrize("kind", ["gateway", "target"])
async def test_no_operation_answers_a_device_of_a_frozen_application_or_of_a_kind_of_token_that_is_off(
    fleet: Fleet, kind: str
) -> None:
    access, world = fleet.world.rooms.access, fleet.world
    for shut, opened in (
        (access.set_frozen(world.app_id, frozen=True), access.set_frozen(world.app_id, frozen=False)),
        (
            access.set_device_tokens(world.actor, **{kind: False}),
            access.set_device_tokens(world.actor, **{kind: True}),
        ),
    ):
        await shut
        before = await rows(world.rooms.database)
        answers = {operation[:2]: (await fleet.send(operation, fleet.a[kind])).status_code for operation in OPERATIONS}
        assert set(answers.values()) == {401}, answers
        assert await rows(world.rooms.database) == before
        await opened
    answers = {operation[:2]: (await fleet.send(operation, fleet.a[kind])).status_code for operation in OPERATIONS}
    assert 401 not in answers.values(), answers
