"""The native API against its own description: requests made from it, answers held against it (schemathesis).

Half of the identifiers in paths are those of things that exist, so that more than "404" is looked at.
"""

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.core import NOT_SET
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from openiodm import __version__
from openiodm.front import Front, native_routes
from openiodm.northbound.native.devices import PATH_SCHEMAS
from openiodm.northbound.native.openapi import native_document
from openiodm.rooms import Rooms
from openiodm.settings import load
from tests.conftest import ManualClock
from tests.support.described import EXAMPLES, THINGS, Address, existing, schema_of, whole
from tests.support.server import World, build_world
from tests.support.threaded import LoopThread

DOCUMENT = "/api/v1/openapi.json"
# Rules that no schema of a single member can say: a request that follows every schema may still be refused with these.
RULES_BEYOND_SCHEMAS = {
    # What a SOTA zip says of itself need not be in the query; of any other file it must. A digest fits its bytes.
    "POST /api/v1/packages": {"bad-input": {"name", "version", "deviceType", "model", "manufacturerName"}},
    # A moment lies after 1970, and there is no 30th of February.
    "GET /api/v1/audit": {"bad-input": {"since", "until"}},
    # Texts are certificates and a key that belong together.
    "PUT /api/v1/application/callbacks/tls": {"bad-input": {"caPem", "certificatePem", "keyPem"}},
    # A group's devices are named by one list or by the other.
    "POST /api/v1/groups": {"bad-input": {"nodeIds"}},
    "POST /api/v1/groups/{group}/devices": {"bad-input": {"nodeIds"}},
    "DELETE /api/v1/groups/{group}/devices": {"bad-input": {"nodeIds"}},
    # Either devices or groups with their product; a window needs its two moments.
    "POST /api/v1/tasks": {
        "targets-missing": {"targets"},
        "targets-both": {"targets"},
        "target-manufacturer-missing": {"manufacturerName"},
        "target-device-type-missing": {"deviceType"},
        "target-model-missing": {"model"},
        "window-bad": {"startTime", "endTime"},
        "retry-times-bad": {"retryTimes"},
        # The published contract has a code of its own for a null there, so that msgspec must let it pass.
        "execute-type-bad": {"executeType"},
    },
}


@schemathesis.serializer("application/x-ndjson")
def as_it_is(_context: Any, value: Any) -> dict[str, Any]:
    return {"data": value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")}


@dataclasses.dataclass
class Target:
    document: dict[str, Any]  # as served
    headers: dict[str, str]
    known: dict[str, list[str]]  # path parameter -> ids that exist


def described() -> dict[str, Any]:
    """The document of the routes as `app` wires them; no room is asked to do anything for that."""
    fields = dict.fromkeys(f.name for f in dataclasses.fields(Rooms))
    rooms: Any = SimpleNamespace(**{**fields, "settings": load(environ={})})
    return native_document(native_routes(rooms), __version__, PATH_SCHEMAS)


ADDRESS = Address()
KNOWN: dict[str, list[str]] = {}
native = schema_of(described(), ADDRESS)
native.config.checks.positive_data_acceptance.expected_statuses.append("410")  # as good a reason as 404 and 409


@pytest.fixture(scope="module")
def target(sqlite_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("schemathesis")
    path = folder / "openiodm.db"
    path.write_bytes(sqlite_template.read_bytes())
    thread = LoopThread()
    try:
        world = build_world(f"sqlite:///{path}", folder, ManualClock())
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
    others = [(await world.rooms.access.create_application(f"a{i}")).app_id for i in range(THINGS)]
    await world.run_jobs()
    for i in range(THINGS // 2):
        await world.poll(f"n{i}")
    known = {"device": devices, "group": groups, "tokenId": tokens, "fileId": files, "operationId": tasks}
    return headers, {**known, "appId": others}


def excluded_checks(case: Any, response: schemathesis.Response) -> list[Any]:
    label = case.operation.label
    if label == "POST /api/v1/devices/bulk":
        return [negative_data_rejection]  # its lines are refused one by one, in an answer that is 200 as a whole
    if response.status_code == 400:
        problem = response.json()
        fields = RULES_BEYOND_SCHEMAS.get(label, {}).get(problem["reason"], ())
        if problem["field"] in fields:
            return [positive_data_acceptance]
    return []


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
    if case.meta.generation.mode.is_positive:
        case.path_parameters = existing(case.path_parameters, KNOWN)
        if case.body is not NOT_SET:  # schemathesis would hold the lack of a body against the body's schema
            case.body = whole(case.body)
    response = case.call(headers=target.headers)
    case.validate_response(response, excluded_checks=excluded_checks(case, response), headers=target.headers)


def test_the_document_that_is_served_is_the_one_that_was_tested(target: Target) -> None:
    assert target.document == described()


def test_the_document_is_valid_openapi_3_1(target: Target) -> None:
    assert target.document["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(target.document).validate()
