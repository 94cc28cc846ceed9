"""The description of the compatible API: valid OpenAPI 3.1, with every row of the contract's tables of errors."""

from typing import Any

import jsonschema_rs
import msgspec
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31

from openiodm.http.routes import Needs
from openiodm.northbound.compat import edge
from openiodm.northbound.compat.openapi import compat_document
from tests.support.routes import COMPAT

DELETE_GROUP = "/iocm/app/devgroup/v1.3.0/devGroups/{devGroupId}"
TASKS = "/iodm/northbound/v1.5.0/operations"


def described(*, errors_as_4xx: bool = False) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode(
        msgspec.json.encode(compat_document(COMPAT, "1.0", errors_as_4xx=errors_as_4xx))
    )
    return document


DOCUMENT = described()
BY_ROUTE = {
    (method.upper(), path): operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}
OPERATIONS = list(BY_ROUTE.values())


def codes(operation: dict[str, Any]) -> set[tuple[int, str]]:
    """(HTTP status, code) of every refusal that is shown."""
    return {
        (int(status), code)
        for status, response in operation["responses"].items()
        for code in response.get("content", {}).get("application/json", {}).get("examples", {})
    }


def test_it_is_valid_openapi_with_every_route_once() -> None:
    jsonschema_rs.Draft202012Validator(OPENAPI_31).validate(DOCUMENT)
    assert len(OPERATIONS) == len(COMPAT) == len({operation["operationId"] for operation in OPERATIONS})


@pytest.mark.parametrize("family", [family for _, family in edge.FAMILIES], ids=lambda family: family.name)
def test_every_row_of_a_familys_table_is_shown_by_one_of_its_calls(family: edge.Family) -> None:
    shown = {row for operation in OPERATIONS if operation["tags"] == [family.name] for row in codes(operation)}
    assert {(no.status, no.code) for no in (family.bad_request, *family.rows.values())} <= shown


def test_every_call_with_a_token_shows_both_headers_and_what_is_wrong_with_them() -> None:
    needs = {(route.method, route.path): route.needs for route in COMPAT}
    for (method, path), operation in BY_ROUTE.items():
        if needs[method, path] is Needs.APPLICATION:
            assert operation["security"] == [{"appKey": [], "accessToken": []}]
            assert {(403, "1010005"), (403, "1010009"), (500, "50252")} <= codes(operation)
        else:
            assert operation["security"] == []
            assert (403, "1010005") not in codes(operation)
    assert DOCUMENT["components"]["securitySchemes"]["appKey"]["name"] == "app_key"


def test_an_error_that_comes_with_200_stands_beside_the_answer() -> None:
    one = DOCUMENT["paths"][DELETE_GROUP]["get"]["responses"]
    assert [option["$ref"] for option in one["200"]["content"]["application/json"]["schema"]["anyOf"]] == [
        "#/components/schemas/GroupObject",
        "#/components/schemas/ErrorBody",
    ]
    assert (200, "100603") in codes(DOCUMENT["paths"][DELETE_GROUP]["get"])
    strict = described(errors_as_4xx=True)["paths"][DELETE_GROUP]["get"]
    assert (404, "100603") in codes(strict)
    assert strict["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/GroupObject"
    }


def test_numbers_and_words_of_a_query_are_shown_as_such() -> None:
    query = {p["name"]: p["schema"] for p in DOCUMENT["paths"][TASKS]["get"]["parameters"]}
    assert query["pageSize"] == {"type": "integer", "minimum": 1, "maximum": 100, "default": 10}
    assert query["operationStatus"]["enum"] == ["wait", "processing", "success", "failed", "stop"]
    assert query["deviceId"] == {"type": "string", "maxLength": 256}


def test_what_login_refresh_and_logout_need_is_shown_as_needed() -> None:
    def required(name: str) -> tuple[str, list[str]]:
        ((media, content),) = DOCUMENT["paths"][f"/iocm/app/sec/v1.1.0/{name}"]["post"]["requestBody"][
            "content"
        ].items()
        schema = DOCUMENT["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
        return media, schema["required"]

    assert required("login") == ("application/x-www-form-urlencoded", ["appId", "secret"])
    assert required("refreshToken") == ("application/json", ["appId", "secret", "refreshToken"])
    assert required("logout") == ("application/json", ["accessToken"])
