"""The native API's description of itself: valid OpenAPI 3.1, and true of the routes."""

from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import jsonschema_rs
import msgspec
import pytest
from msgspec import Meta
from schemathesis.specs.openapi.definitions import OPENAPI_31
from starlette.requests import Request

from openiodm.access.model import Actor, ApplicationKey
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Call, Needs, Route, api_router
from openiodm.northbound.native import openapi, packages
from openiodm.northbound.native.edge import NativeEdge


class Part(msgspec.Struct):
    """Part of a body."""

    at: int


class Body(msgspec.Struct):
    parts: list[Part]


class Query(msgspec.Struct, rename="camel"):
    must_be: Annotated[int, Meta(ge=1, le=9)]
    may_be: Annotated[str, Meta(max_length=5, description="said of it")] | None = None
    either: int | bool | None = None


async def change_thing(call: Call) -> Part:
    return Part(1)


async def list_things(call: Call) -> list[Part]:
    return []


OWN = [
    Route(
        "PUT", "/api/v1/things/{thingId}/parts/{n:int}", change_thing, Needs.APPLICATION, "Change", Query, Body, Part
    ),
    Route(
        "GET", "/api/v1/things", list_things, Needs.NOTHING, "List", answer=list[Part], refusals=(Reason.STORE_FULL,)
    ),
]
N = {"n": {"type": "integer", "minimum": 0}}


def described(routes: list[Route]) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(openapi.native_document(routes, "1.0", N)))
    return document


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    unused: Any = None
    return described([*OWN, *packages.routes(unused, unused), *openapi.routes([], "1.0", compat={})])


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()


def test_it_is_valid_openapi(document: dict[str, Any]) -> None:
    jsonschema_rs.Draft202012Validator(OPENAPI_31).validate(document)
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from [value["$ref"]] if "$ref" in value else []
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= names


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for operation in operations(document)]
    assert len(set(ids)) == len(ids)


def test_path_parameters_are_ids_unless_told_otherwise(document: dict[str, Any]) -> None:
    change = document["paths"]["/api/v1/things/{thingId}/parts/{n}"]["put"]
    path = {p["name"]: p["schema"] for p in change["parameters"] if p["in"] == "path"}
    assert path["n"] == {"type": "integer", "minimum": 0}
    assert path["thingId"]["pattern"] == "^[0-9a-zA-Z_-]+$"


def test_query_parameters_carry_bounds_and_no_null(document: dict[str, Any]) -> None:
    change = document["paths"]["/api/v1/things/{thingId}/parts/{n}"]["put"]
    query = {p["name"]: p for p in change["parameters"] if p["in"] == "query"}
    assert query["mustBe"]["required"]
    assert query["mustBe"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 9}
    assert query["mayBe"]["schema"] == {"type": "string", "maxLength": 5}
    assert query["mayBe"]["description"] == "said of it"
    assert query["either"]["schema"] == {"anyOf": [{"type": "integer"}, {"type": "boolean"}]}


def test_every_refusal_has_an_answer(document: dict[str, Any]) -> None:
    things = document["paths"]["/api/v1/things"]["get"]["responses"]
    assert set(things) == {"200", "503"}
    upload = document["paths"]["/api/v1/packages"]["post"]["responses"]
    assert set(upload) == {"201", "400", "401", "413", "429", "503"}
    delete = document["paths"]["/api/v1/packages/{fileId}"]["delete"]["responses"]
    assert set(delete) == {"204", "400", "401", "404", "409", "429"}
    assert "content" not in delete["204"]
    assert set(delete["404"]["content"]) == {"application/problem+json"}


def test_a_streamed_body_is_binary(document: dict[str, Any]) -> None:
    body = document["paths"]["/api/v1/packages"]["post"]["requestBody"]
    assert set(body["content"]) == {"application/octet-stream"}


def test_a_body_is_required_unless_it_may_be_left_out() -> None:
    path = "/api/v1/things/{thingId}"
    routes = [
        Route("PUT", path, change_thing, Needs.APPLICATION, "Change", body=Body),
        Route("POST", path, list_things, Needs.APPLICATION, "Change all", body=Body, optional_body=True),
    ]
    methods = described(routes)["paths"][path]
    assert (methods["put"]["requestBody"]["required"], methods["post"]["requestBody"]["required"]) == (True, False)


def test_only_routes_that_need_nothing_are_open(document: dict[str, Any]) -> None:
    free = {o["operationId"] for o in operations(document) if o["security"] == []}
    assert free == {
        "list_things",
        "get_openapi",
        "get_compat_openapi",
        "get_docs",
        "get_compat_docs",
        "get_native_docs",
    }


class Nobody:
    async def authenticate(self, request: Request) -> Actor:
        raise Refusal(Reason.TOKEN_INVALID)

    async def admit(self, actor: Actor) -> None:
        raise AssertionError(ApplicationKey)


async def test_it_is_served_to_anybody_and_describes_itself() -> None:
    app = api_router([*OWN, *openapi.routes(OWN, "1.0", N, compat={"openapi": "3.1.0"})], NativeEdge(), Nobody())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        answer = await client.get(openapi.PATH)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert set(answer.json()["paths"]) == {
            "/api/v1/things/{thingId}/parts/{n}",
            "/api/v1/things",
            "/api/v1/openapi.json",
            "/api/v1/compat-openapi.json",
            "/api/docs",
            "/api/docs/compatible",
            "/api/docs/native",
        }
