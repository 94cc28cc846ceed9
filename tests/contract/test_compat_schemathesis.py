"""The compatible API against its own description: requests made from it, answers held against it (schemathesis).

Half of the identifiers are those of things that exist. Of a refusal not only the status must be described: its code
must be one of those that the description shows for that status.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from openiodm import __version__
from openiodm.front import Front
from openiodm.northbound.compat.edge import ErrorBody
from openiodm.northbound.compat.openapi import compat_document
from tests.conftest import ManualClock
from tests.support.described import THINGS, Address, existing, schema_of, whole
from tests.support.routes import COMPAT
from tests.support.server import World, build_world
from tests.support.threaded import LoopThread

DOCUMENT = "/api/v1/compat-openapi.json"
EXAMPLES = 10  # an operation, beside those that the coverage phase derives from the schemas
PRODUCT = {"deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}

# Rules that no schema of a single member can say: what follows every schema may still be refused with these.
CREATE_RULES = {"123019", "123020", "123021", "123022", "123023", "123025", "123026", "123028"}
REGISTER_RULES = {"100426", "100416"}
RULES_BEYOND_SCHEMAS = {
    # Either devices or groups with their product; a window needs its two moments; null has a code of its own.
    "POST /iodm/northbound/v1.5.0/operations/firmwareUpgrade": CREATE_RULES,
    "POST /iodm/northbound/v1.5.0/operations/softwareUpgrade": CREATE_RULES,
    # The texts of a filter have no control characters.
    "GET /iodm/northbound/v1.5.0/category": {"120015"},
    # What is unique: schemathesis makes the same texts again.
    "POST /iocm/app/reg/v1.1.0/deviceCredentials": REGISTER_RULES,
    "PUT /iocm/app/reg/v1.1.0/deviceCredentials/{deviceId}": REGISTER_RULES,
    "POST /iocm/app/reg/v1.1.0/devices": REGISTER_RULES,
    "PUT /iocm/app/reg/v1.1.0/devices/{deviceId}": REGISTER_RULES,
    "POST /iocm/app/reg/v2.0.0/deviceCredentials": REGISTER_RULES,
    "PUT /iocm/app/reg/v2.0.0/deviceCredentials/{deviceId}": REGISTER_RULES,
    # One of gatewayId and pageNo must be given; startTime and endTime are moments, which no pattern tells.
    "GET /iocm/app/dm/v1.4.0/devices": {"100218", "100405"},
    # A callback is an address with host, port and path, and not one of this machine.
    "POST /iodm/app/sub/v1.1.0/subscribe": {"100222"},
    "POST /iocm/app/sub/v1.2.0/subscriptions": {"100222"},
    # Only devices that there are may be put into a group; appId is said in one way.
    "POST /iocm/app/devgroup/v1.3.0/devGroups": {"100604", "50400"},
    "POST /iocm/app/dm/v1.1.0/devices/addDevGroupTagToDevices": {"100604"},
}
ACTS_FOR = {"appId", "accessAppId"}  # another's are in test_acting_for.py
IDS_IN_QUERY = {"devGroupId", "deviceId", "gatewayId"}


@dataclasses.dataclass
class Target:
    document: dict[str, Any]  # as served
    headers: dict[str, str]

    @property
    def app_id(self) -> str:
        return self.headers["app_key"]


def described() -> dict[str, Any]:
    document: dict[str, Any] = plain(compat_document(COMPAT, __version__, errors_as_4xx=False))
    return document


def plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


ADDRESS = Address()
KNOWN: dict[str, list[str]] = {}
compat = schema_of(described(), ADDRESS)


@pytest.fixture(scope="module")
def target(sqlite_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("schemathesis")
    path = folder / "openiodm.db"
    path.write_bytes(sqlite_template.read_bytes())
    thread = LoopThread()
    try:
        world = build_world(f"sqlite:///{path}", folder, ManualClock())
        with thread.entered(world) as built:
            headers = thread.run(_fill(built))
            document = thread.run(built.http.get(DOCUMENT)).json()
            ADDRESS.app = thread.bridged(Front(built.rooms, applications=True, devices=True))
            yield Target(document, headers)
    finally:
        thread.close()


async def _fill(world: World) -> dict[str, str]:
    headers = await world.login()

    async def post(path: str, member: str, **body: Any) -> str:
        answer = await world.http.post(path, headers=headers, json=body)
        assert answer.status_code < 300, answer.text
        return str(answer.json()[member])

    register, groups = "/iocm/app/reg/v1.1.0/deviceCredentials", "/iocm/app/devgroup/v1.3.0/devGroups"
    tasks = "/iodm/northbound/v1.5.0/operations/firmwareUpgrade"
    things = range(THINGS)
    devices = [await post(register, "deviceId", nodeId=f"n{i}", deviceInfo=PRODUCT) for i in things]
    KNOWN["devGroupId"] = [await post(groups, "id", name=f"g{i}", deviceIds=devices) for i in things]
    targets = {"deviceGroups": ["g0"], **PRODUCT}
    KNOWN["operationId"] = [await post(tasks, "operationId", fileId=world.file_id, targets=targets) for _ in things]
    KNOWN["fileId"] = [await _upload(world, headers, i) for i in things]
    KNOWN["deviceId"] = KNOWN["gatewayId"] = devices
    await world.run_jobs()
    return headers


async def _upload(world: World, headers: dict[str, str], number: int) -> str:
    query = {"name": f"p{number}", "type": "firmwarePackage", "version": "V2", **PRODUCT}
    answer = await world.http.post("/api/v1/packages", headers=headers, params=query, content=b"bytes")
    return str(answer.json()["fileId"])


def excluded_checks(case: Any, response: schemathesis.Response) -> list[Any]:
    # The contract is read leniently, as its clients need it: an empty value is not given, for one.
    excluded = [negative_data_rejection]
    body = response.json() if response.content else {}
    if body.get("error_code") in RULES_BEYOND_SCHEMAS.get(case.operation.label, ()):
        excluded.append(positive_data_acceptance)
    return excluded


def shown_codes(document: dict[str, Any], case: Any, status: int) -> set[str]:
    if status == 405:  # a method that nothing describes
        return {"120015"}
    operation = document["paths"][case.operation.path][case.operation.method.lower()]
    content = operation["responses"][str(status)]["content"]["application/json"]
    return set(content.get("examples", {}))


@compat.parametrize()
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
        ids = {name: value for name, value in case.query.items() if name in IDS_IN_QUERY}
        case.query = {**case.query, **existing(ids, KNOWN), **dict.fromkeys(ACTS_FOR & set(case.query), target.app_id)}
        case.body = whole(case.body)
    headers = target.headers if case.operation.definition.raw["security"] else {}
    response = case.call(headers=headers)
    case.validate_response(response, excluded_checks=excluded_checks(case, response), headers=headers)
    assert response.status_code < 500
    if response.status_code != 204:
        assert response.headers["content-type"] == ["application/json"]  # also without a body (section 1.3)
    body = response.json() if response.content else {}
    if "error_code" in body:
        assert set(body) == set(ErrorBody.__struct_fields__)
        assert body["error_code"] in shown_codes(target.document, case, response.status_code)


def test_the_document_that_is_served_is_the_one_that_was_tested(target: Target) -> None:
    assert target.document == described()


def test_the_document_is_valid_openapi_3_1(target: Target) -> None:
    assert target.document["openapi"].startswith("3.1.")
    schemathesis.openapi.from_dict(target.document).validate()
