"""The native API against its own description: requests made from it, answers held against it (schemathesis).

Half of the identifiers in paths are those of things that exist, so that more than "404" is looked at.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from openiodm import __version__
from openiodm.app import Front, native_routes
from openiodm.northbound.native.devices import PATH_SCHEMAS
from openiodm.northbound.native.openapi import native_document
from openiodm.settings import load
from tests.conftest import ManualClock
from tests.support.server import World, build_world
from tests.support.threaded import LoopThread

DOCUMENT = "/api/v1/openapi.json"
EXAMPLES = 20  # an operation, beside those that the coverage phase derives from the schemas
ROOMS = (
    "packages package_queries devices device_queries groups group_queries access access_queries campaigns campaign_queries clock"
).split()
# Whose bodies or queries have rules that a schema does not say, so that valid requests are refused with 400.
RULES_BEYOND_SCHEMAS = {
}
THINGS = 40  # of each kind: some are deleted on the way


class Address:
    """The ASGI application that the schema speaks to: set once the server is there, after the tests were collected."""

    def __init__(self) -> None:
        self.app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@dataclass
class Target:
    document: dict[str, Any]  # as served
    headers: dict[str, str]
    known: dict[str, list[str]]  # path parameter -> ids that exist


def described() -> dict[str, Any]:
    """The document of the routes as `app` wires them; no room is asked to do anything for that."""
    rooms: Any = SimpleNamespace(settings=load(environ={}), **dict.fromkeys(ROOMS))
    return native_document(native_routes(rooms), __version__, PATH_SCHEMAS)


ADDRESS = Address()
KNOWN: dict[str, list[str]] = {}
native = schemathesis.openapi.from_dict(described())
native.app = ADDRESS
native.config.seed = 1
native.config.generation.update(with_security_parameters=False)  # the test sends the token


def existing(parameters: dict[str, Any]) -> dict[str, Any]:
    """For one half of the texts that schemathesis makes, an id that exists: which one, the text itself decides."""
    filled = dict(parameters)
    for name, value in parameters.items():
        number = zlib.crc32(repr(value).encode())
        if number % 2:
            filled[name] = KNOWN[name][(number // 2) % THINGS]
    return filled


@pytest.fixture(scope="module")
def target(sqlite_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("schemathesis")
    path = folder / "openiodm.db"
    path.write_bytes(sqlite_template.read_bytes())
    thread = LoopThread()
    try:
        world = build_world(f"sqlite:///{path}", folder, ManualClock(), native_calls_per_minute=0)
        with thread.entered(world) as built:
            headers, known = thread.run(_fill(built))
            KNOWN.update(known)
            document = thread.run(built.http.get(DOCUMENT)).json()
            ADDRESS.app = thread.bridged(Front(built.rooms, applications=True, devices=True))
            yield Target(document, headers, known)
    finally:
        thread.close()


async def _fill(world: World) -> tuple[dict[str, str], dict[str, list[str]]]:
    login = await world.login()
    headers = {"Authorization": login["Authorization"]}

    async def post(path: str, **kwargs: Any) -> dict[str, Any]:
        answer = await world.http.post(f"/api/v1{path}", headers=headers, **kwargs)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    product = {"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
    devices = [(await post("/devices", json={"nodeId": f"n{i}", **product}))["deviceId"] for i in range(THINGS)]
    groups = [(await post("/groups", json={"name": f"g{i}", "deviceIds": devices}))["groupId"] for i in range(THINGS)]
    tokens = [(await post("/gateway-tokens", json={"name": f"t{i}", **product}))["tokenId"] for i in range(THINGS)]
    query = {"type": "firmwarePackage", "version": "V2", **product}
    files = [
        (await post("/packages", params={"name": f"p{i}", **query}, content=b"bytes"))["fileId"] for i in range(THINGS)
    ]
    task = {"kind": "firmware_upgrade", "fileId": world.file_id, "targets": {"deviceGroups": ["g0"], **product}}
    tasks = [(await post("/tasks", json=task))["operationId"] for i in range(THINGS)]
    await world.run_jobs()
    for i in range(THINGS // 2):
        await world.poll(f"n{i}")
    return headers, {"device": devices, "group": groups, "tokenId": tokens, "fileId": files, "operationId": tasks}


@native.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_the_document_says(case: Any, target: Target) -> None:
    if case.meta.generation.mode.is_positive and case.path_parameters:
        case.path_parameters = existing(case.path_parameters)
    excluded = [positive_data_acceptance] if case.operation.label in RULES_BEYOND_SCHEMAS else []
    case.call_and_validate(headers=target.headers, excluded_checks=excluded)


def test_the_document_that_is_served_is_the_one_that_was_tested(target: Target) -> None:
    assert target.document == described()


def test_the_document_is_valid_openapi_3_1(target: Target) -> None:
    assert target.document["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(target.document).validate()
