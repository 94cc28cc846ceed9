"""OpenAPI 3.1 from routes: schemas come from the structs (msgspec), nothing is written twice."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from openiodm.errors import KIND_OF, Kind, Reason
from openiodm.http.routes import Needs, Route

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")

# A path parameter is a public id unless the caller of `document` says otherwise.
ID_SCHEMA: Mapping[str, Any] = {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[0-9a-zA-Z_-]+$"}


@dataclass(frozen=True, slots=True)
class _Errors:
    schema: Any
    media: str
    status_of: Mapping[Kind, int]


@dataclass(frozen=True, slots=True)
class _Names:
    """Schemas of the types in use, by the identity of the type; security schemes; schemas of path parameters."""

    schema_of: Mapping[int, Any]
    security: Sequence[str]
    path_schemas: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def document(
    routes: Sequence[Route],
    *,
    title: str,
    version: str,
    description: str,
    error_type: type[msgspec.Struct],
    error_media: str,
    status_of: Mapping[Kind, int],
    security: Mapping[str, Any],
    prefix: str = "",
    path_schemas: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The document as plain values, ready for JSON.

    `security` maps scheme names to OpenAPI security schemes; a route that needs an application needs all of them.
    `path_schemas` maps names of path parameters to their schemas where these are no public ids.
    """
    types: list[Any] = [error_type]
    types += [r.body for r in routes if r.body is not None]
    types += [r.answer for r in routes if r.answer is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    names = _Names({id(t): s for t, s in zip(types, schemas, strict=True)}, tuple(security), path_schemas or {})
    errors = _Errors(names.schema_of[id(error_type)], error_media, status_of)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = prefix + _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, names, errors)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": dict(security)},
    }


def _operation(route: Route, names: _Names, errors: _Errors) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "parameters": [*_path_parameters(route, names), *_query_parameters(route), *route.extra_parameters],
        "responses": {str(route.status): _answer(route, names), **_refusals(route, errors)},
        "security": [] if route.needs is Needs.NOTHING else [{name: [] for name in names.security}],
    }
    if route.description:
        operation["description"] = route.description
    body = _request_body(route, names)
    if body is not None:
        operation["requestBody"] = body
    return operation


def _answer(route: Route, names: _Names) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "Done"}
    if route.answer is not None:
        schema = names.schema_of[id(route.answer)]
        answer["content"] = {media: {"schema": schema} for media in route.answer_media}
    elif tuple(route.answer_media) != ("application/json",):
        answer["content"] = {media: {} for media in route.answer_media}
    return answer


def _refusals(route: Route, errors: _Errors) -> dict[str, Any]:
    """One answer per status; its description lists the reasons that have it."""
    reasons: dict[int, list[str]] = {}
    for reason in _reasons(route):
        reasons.setdefault(errors.status_of[KIND_OF.get(reason, Kind.INVALID)], []).append(reason.value)
    content = {errors.media: {"schema": errors.schema}}
    return {
        str(status): {"description": ", ".join(dict.fromkeys(reasons[status])), "content": content}
        for status in sorted(reasons)
    }


def _reasons(route: Route) -> list[Reason]:
    reasons = list(route.refusals)
    if route.query is not None or route.body is not None or route.streams_body or "{" in route.path:
        reasons.append(Reason.BAD_INPUT)
    if route.acts_for:
        reasons += [Reason.APPLICATION_UNKNOWN, Reason.APPLICATION_UNAUTHORIZED]
    if route.needs is Needs.APPLICATION:
        reasons += [Reason.TOKEN_INVALID, Reason.APPLICATION_FROZEN, Reason.THROTTLED]
    return reasons


def _request_body(route: Route, names: _Names) -> dict[str, Any] | None:
    if route.body is not None:
        content: dict[str, Any] = {"application/json": {"schema": names.schema_of[id(route.body)]}}
    elif route.streams_body:
        # 3.1 says by an empty schema that bytes are sent as they are; tools of 3.0's time read `format: binary`.
        content = {route.request_media: {"schema": {"type": "string", "format": "binary", "minLength": 1}}}
    else:
        return None
    return {"required": True, "content": content}


def _path_parameters(route: Route, names: _Names) -> list[dict[str, Any]]:
    return [
        {"name": n, "in": "path", "required": True, "schema": dict(names.path_schemas.get(n, ID_SCHEMA))}
        for n in _PARAMETER.findall(route.path)
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    (reference,), components = msgspec.json.schema_components([route.query], ref_template=_REF)
    struct = components[_name_of(reference)]
    required = set(struct.get("required", ()))
    return [
        _query_parameter(name, _present(_inline(schema, components)), required=name in required)
        for name, schema in struct["properties"].items()
    ]


def _query_parameter(name: str, schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    parameter = {"name": name, "in": "query", "required": required, "schema": schema}
    if "description" in schema:
        parameter["description"] = schema["description"]
        parameter["schema"] = {k: v for k, v in schema.items() if k != "description"}
    return parameter


def _present(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no null: what is null in the struct is a parameter left out."""
    rest = {k: v for k, v in schema.items() if not (k == "default" and v is None)}
    if "anyOf" not in rest:
        return rest
    options = [option for option in rest.pop("anyOf") if option != {"type": "null"}]
    return {**options[0], **rest} if len(options) == 1 else {"anyOf": options, **rest}


def _inline(schema: Any, components: Mapping[str, Any]) -> Any:
    """References resolved and titles of inlined types dropped, for parameters that stand alone."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            target = {k: v for k, v in components[_name_of(schema)].items() if k not in {"title", "description"}}
            return _inline({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, components)
        return {k: _inline(v, components) for k, v in schema.items()}
    if isinstance(schema, list):
        return [_inline(v, components) for v in schema]
    return schema


def _name_of(reference: Mapping[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]
