"""OpenAPI 3.1 from routes: schemas come from the structs (msgspec), nothing is written twice."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from openiodm.errors import Reason
from openiodm.http.routes import Needs, Route

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")

# In a type's extra JSON schema: what is shown of it instead, since msgspec adds to a schema and takes nothing away.
SHOWN_AS = "x-shown-as"
# A path parameter is a public id unless the caller of `document` says otherwise.
ID_SCHEMA: Mapping[str, Any] = {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[0-9a-zA-Z_-]+$"}


@dataclass(frozen=True, slots=True)
class Shown:
    """How an API shows one refusal: the status, what it is called, a sentence for people, the body of the answer."""

    status: int
    name: str
    summary: str = ""
    example: Any = None


@dataclass(frozen=True, slots=True)
class ErrorStyle:
    """How an API says no. `always` is what any of its answers may be."""

    body: type[msgspec.Struct]
    media: str
    shown: Callable[[Route, Reason], Shown]
    always: Sequence[Shown] = ()


@dataclass(frozen=True, slots=True)
class _Errors:
    schema: Any
    style: ErrorStyle


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
    errors: ErrorStyle,
    security: Mapping[str, Any],
    path_schemas: Mapping[str, Mapping[str, Any]] | None = None,
    tag_of: Callable[[Route], str] | None = None,
) -> dict[str, Any]:
    """The document as plain values, ready for JSON.

    `security` maps scheme names to OpenAPI security schemes; a route that needs an application needs all of them.
    `path_schemas` maps names of path parameters to their schemas where these are no public ids; `tag_of` groups.
    """
    types: list[Any] = [errors.body]
    types += [_body_type(r) for r in routes if _body_type(r) is not None]
    types += [r.answer for r in routes if r.answer is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    names = _Names({id(t): s for t, s in zip(types, schemas, strict=True)}, tuple(security), path_schemas or {})
    error = _Errors(names.schema_of[id(errors.body)], errors)
    paths: dict[str, dict[str, Any]] = {}
    for route, operation_id in zip(routes, _operation_ids(routes), strict=True):
        operation = {"operationId": operation_id, **_operation(route, names, error)}
        if tag_of is not None:
            operation["tags"] = [tag_of(route)]
        paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "description": description},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": dict(security)},
    }


def _operation_ids(routes: Sequence[Route]) -> Iterator[str]:
    """Names of handlers; a handler that answers at more than one path is numbered there."""
    seen: Counter[str] = Counter()
    for route in routes:
        name = route.handler.__name__
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}_{seen[name]}"


def _operation(route: Route, names: _Names, errors: _Errors) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "parameters": [*_path_parameters(route, names), *_query_parameters(route), *route.extra_parameters],
        "responses": _responses(route, names, errors),
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


def _responses(route: Route, names: _Names, errors: _Errors) -> dict[str, Any]:
    """One for each status; of refusals the description lists the names of those that have it."""
    refusals: dict[int, dict[str, Shown]] = {}
    for shown in [*(errors.style.shown(route, reason) for reason in _reasons(route)), *errors.style.always]:
        refusals.setdefault(shown.status, {}).setdefault(shown.name, shown)
    answer = _answer(route, names)
    responses = {str(route.status): answer}
    for status in sorted(refusals):
        refusal = _refusal(refusals[status].values(), errors)
        responses[str(status)] = _either(answer, refusal) if status == route.status else refusal
    return responses


def _refusal(shown: Collection[Shown], errors: _Errors) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": errors.schema}
    examples = {s.name: {"summary": s.summary, "value": s.example} for s in shown if s.example is not None}
    if examples:
        media["examples"] = examples
    said = [f"{s.name} {s.summary}".rstrip() for s in shown]
    return {"description": "; ".join(said), "content": {errors.style.media: media}}


def _either(answer: Mapping[str, Any], refusal: Mapping[str, Any]) -> dict[str, Any]:
    """What an answer is where a refusal comes with its status. An empty one cannot be described: no schema then."""
    content = {}
    for name, media in refusal["content"].items():
        good = answer.get("content", {}).get(name)
        rest = {key: value for key, value in media.items() if key != "schema"}
        schema = {} if good is None else {"schema": {"anyOf": [good["schema"], media["schema"]]}}
        content[name] = {**schema, **rest}
    return {"description": f"Done; or {refusal['description']}", "content": content}


def _reasons(route: Route) -> list[Reason]:
    reasons = list(route.refusals)
    if route.query is not None or route.body is not None or route.streams_body or "{" in route.path:
        reasons.append(Reason.BAD_INPUT)
    if route.acts_for:
        reasons += [Reason.APPLICATION_UNKNOWN, Reason.APPLICATION_UNAUTHORIZED]
    if route.needs is Needs.APPLICATION:
        reasons += [Reason.TOKEN_INVALID, Reason.THROTTLED]
    return reasons


def _request_body(route: Route, names: _Names) -> dict[str, Any] | None:
    if (type_ := _body_type(route)) is not None:
        media = route.request_media if route.streams_body else "application/json"
        content: dict[str, Any] = {media: {"schema": names.schema_of[id(type_)]}}
    elif route.streams_body:
        # 3.1 says by an empty schema that bytes are sent as they are; tools of 3.0's time read `format: binary`.
        content = {route.request_media: {"schema": {"type": "string", "format": "binary", "minLength": 1}}}
    else:
        return None
    return {"required": not route.optional_body, "content": content}


def _body_type(route: Route) -> Any:
    return route.body if route.described_body is None else route.described_body


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
    """A query has no null, and its empty text is none: what is either in the struct is a parameter left out."""
    if SHOWN_AS in schema:
        return dict(schema[SHOWN_AS])
    rest = {k: v for k, v in schema.items() if not (k == "default" and v in (None, ""))}
    if "enum" in rest:
        rest["enum"] = [value for value in rest["enum"] if value != ""]
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
