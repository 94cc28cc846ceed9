"""Typed routes over Starlette: structs in, structs out, one place for every error.

A `Route` declares its permission, query, body and answer types; `Api` turns requests into a `Call` (or a `Refusal`)
and answers into bytes. What a refusal looks like on the wire is the `Edge`'s business, so that two APIs with
different error bodies share this file. Order of checks: credentials, flow control (which counts on the caller), query,
body, the application that the caller acts for, handler.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Router
from starlette.routing import Route as PathRoute
from starlette.types import Receive, Scope, Send

from openiodm.access.model import Actor
from openiodm.errors import Reason, Refusal, Unavailable
from openiodm.http.clients import peer_of

MAX_BODY_BYTES = 4 * 1024 * 1024  # of a parsed body; streamed ones have limits of their own

NUL = "\0"  # PostgreSQL's text cannot hold it, and nobody's name does
NUL_IN_JSON = b"\\u0000"

log = structlog.get_logger(__name__)

_encoder = msgspec.json.Encoder()


class Needs(Enum):
    """What a route demands of its caller. Every route declares one; a test walks them all."""

    NOTHING = "nothing"  # login and the like: whoever has the secret
    APPLICATION = "application"  # a valid access token of the application


@dataclass(frozen=True, slots=True)
class Call:
    """One request, parsed. `query` and `body` are of the types that the route declares (None where it has none).

    `raw` is what `body` was parsed from, for those who digest it.
    """

    request: Request
    authenticated: Actor | None
    path: Mapping[str, str]
    query: Any
    body: Any
    raw: bytes = b""

    @property
    def actor(self) -> Actor:
        """On whose behalf: the calling application, or the one named by a member that the route `acts_for`.

        A route that `Needs.APPLICATION` always has one.
        """
        assert self.authenticated is not None
        return self.authenticated

    @property
    def address(self) -> str:
        """The client's; whoever serves the API has looked behind its proxies (`http.clients`)."""
        return peer_of(self.request.scope)


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of an API.

    `handler` returns a value of type `answer` (encoded as JSON), a ready `Response`, or None (empty answer).
    `described_body` is what OpenAPI shows, where the handler reads the body itself, or where `body` lets pass what has
    a code of its own.
    `bad_input` gives the reason for a query or body member that does not parse, where it is not `BAD_INPUT`; it is
    asked about None for a body that is no JSON, or not of its shape at all.
    `optional_body` takes no body at all for an empty object: every member of `body` has a default.
    `acts_for` names the members of query and body, as they are sent, that name the application to act for.
    """

    method: str
    path: str  # Starlette's syntax: /packages/{file_id}
    handler: Handler
    needs: Needs
    summary: str
    query: type[msgspec.Struct] | None = None
    body: Any = None
    answer: Any = None
    described_body: Any = None
    status: int = 200
    description: str = ""
    bad_input: Callable[[str | None], Reason] = lambda _field: Reason.BAD_INPUT
    refusals: Sequence[Reason] = ()
    acts_for: Sequence[str] = ()
    request_media: str = "application/json"  # of a streamed body, when `body` is None and there is one
    answer_media: Sequence[str] = ("application/json",)
    streams_body: bool = False
    optional_body: bool = False
    extra_parameters: Sequence[Mapping[str, Any]] = field(default=())  # OpenAPI: headers


class Edge(Protocol):
    """How one API says no."""

    def refusal(self, refusal: Refusal, request: Request) -> Response:
        """The answer to a named refusal."""
        ...

    def unknown_path(self, request: Request) -> Response:
        """404."""
        ...

    def wrong_method(self, request: Request, allowed: Sequence[str]) -> Response:
        """405, with an Allow header."""
        ...

    def unavailable(self, request: Request) -> Response:
        """The database cannot be had now."""
        ...

    def our_fault(self, request: Request) -> Response:
        """500. The trace is in the log already."""
        ...


class Guard(Protocol):
    """Who is asking, and may they ask now?"""

    async def authenticate(self, request: Request) -> Actor:
        """The caller.

        Raises:
            Refusal: TOKEN_INVALID and its kin.
        """
        ...

    async def admit(self, actor: Actor) -> None:
        """Flow control.

        Raises:
            Refusal: THROTTLED.
        """
        ...

    async def acting_for(self, actor: Actor, app_id: str) -> Actor:
        """The caller, acting for the application that it names.

        Raises:
            Refusal: APPLICATION_UNKNOWN, APPLICATION_UNAUTHORIZED.
        """
        ...


def json_response(value: Any, status: int = 200, media_type: str = "application/json") -> Response:
    """Encodes with msgspec; every answer carries a Content-Type."""
    return Response(_encoder.encode(value), status, media_type=media_type)


_FIELD = re.compile(r"`\$\.?([^`]*)`")


def field_of(error: msgspec.ValidationError) -> str | None:
    """The member that a msgspec error speaks of: "Expected `int`, got `str` - at `$.policy.retryTimes`"."""
    at = _FIELD.findall(str(error).rpartition(" - at ")[2])
    if at:
        return str(at[0]) or None
    missing = re.search(r"missing required field `([^`]+)`", str(error))
    return missing.group(1) if missing else None


def parse_query(request: Request, into: type[msgspec.Struct], bad_input: Callable[[str | None], Reason]) -> Any:
    """Each parameter at most once; text is turned into the struct's types; unknown names are ignored."""
    values: dict[str, str] = {}
    known = {field.encode_name for field in msgspec.structs.fields(into)}
    for key, value in request.query_params.multi_items():
        if key not in known:
            continue
        if key in values:
            raise Refusal(bad_input(key), f"{key} is given twice", field=key)
        if NUL in value:
            raise Refusal(bad_input(key), f"{key} holds a NUL", field=key)
        values[key] = value
    try:
        return msgspec.convert(values, into, strict=False)
    except msgspec.ValidationError as error:
        name = field_of(error)
        raise Refusal(bad_input(name), str(error), field=name) from error


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The whole body, refused as soon as it is larger than `limit` bytes."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise Refusal(Reason.BAD_INPUT, f"the body is larger than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def parse_json(raw: bytes, into: Any, bad_input: Callable[[str | None], Reason]) -> Any:
    """JSON to a typed value, or a refusal that names the member."""
    if NUL_IN_JSON in raw:
        raise Refusal(Reason.BAD_INPUT, "a text of the body holds a NUL")
    try:
        return msgspec.json.decode(raw, type=into)
    except msgspec.ValidationError as error:
        name = field_of(error)
        raise Refusal(bad_input(name), str(error), field=name) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # the last: nested too deep
        raise Refusal(bad_input(None), f"the body is not JSON: {error}") from error


def application_named(route: Route, query: Any, body: Any) -> str | None:
    """The application that a call is to act for. Empty is not given; members that contradict each other are refused."""
    found: dict[str, str] = {}
    for struct in (query, body):
        if isinstance(struct, msgspec.Struct) and route.acts_for:
            for member in msgspec.structs.fields(struct):
                if member.encode_name in route.acts_for and (value := getattr(struct, member.name)):
                    found[value] = member.encode_name
    if len(found) > 1:
        field = list(found.values())[-1]
        raise Refusal(route.bad_input(field), "two different applications are named", field=field)
    return next(iter(found), None)


class _Path:
    """All methods of one path, as an ASGI application."""

    def __init__(self, routes: Mapping[str, Route], edge: Edge, guard: Guard) -> None:
        self._routes = dict(routes)
        if "GET" in self._routes:
            self._routes.setdefault("HEAD", self._routes["GET"])
        self._edge = edge
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        route = self._routes.get(request.method)
        if route is None:
            response = self._edge.wrong_method(request, sorted(self._routes))
        else:
            response = await self._answer(route, request)
        await response(scope, receive, send)

    async def _answer(self, route: Route, request: Request) -> Response:
        actor = None
        try:
            if route.needs is Needs.APPLICATION:
                actor = await self._guard.authenticate(request)
                await self._guard.admit(actor)
            if NUL in request.scope["path"]:
                raise Refusal(Reason.BAD_INPUT, "the path holds a NUL")
            query = None if route.query is None else parse_query(request, route.query, route.bad_input)
            body, raw = None, b""
            if route.body is not None:
                raw = await read_body(request) or (b"{}" if route.optional_body else b"")
                body = parse_json(raw, route.body, route.bad_input)
            if actor is not None and (app_id := application_named(route, query, body)):
                actor = await self._guard.acting_for(actor, app_id)
            result = await route.handler(Call(request, actor, request.path_params, query, body, raw))
        except Refusal as refusal:
            log.info(
                "request_refused",
                path=request.url.path,
                reason=refusal.reason,
                field=refusal.field,
                caller=None if actor is None else actor.asked_by,
                address=peer_of(request.scope),
            )
            return self._edge.refusal(refusal, request)
        except ClientDisconnect:
            return Response(status_code=400)
        except Unavailable as error:
            log.warning("request_not_served", path=request.url.path, error=str(error))
            return self._edge.unavailable(request)
        except Exception:
            log.exception("request_failed", path=request.url.path)
            return self._edge.our_fault(request)
        if isinstance(result, Response):
            return result
        if result is None:
            return Response(status_code=route.status, media_type="application/json")
        return json_response(result, route.status)


def api_router(routes: Sequence[Route], edge: Edge, guard: Guard) -> Router:
    """An ASGI application for `routes`; unknown paths and methods are answered in the edge's words too."""
    by_path: dict[str, dict[str, Route]] = {}
    for route in routes:
        by_path.setdefault(route.path, {})[route.method] = route
    starlette_routes: list[BaseRoute] = [
        PathRoute(path, _Path(methods, edge, guard)) for path, methods in by_path.items()
    ]

    async def unknown(scope: Scope, receive: Receive, send: Send) -> None:
        await edge.unknown_path(Request(scope, receive, send))(scope, receive, send)

    return Router(starlette_routes, redirect_slashes=False, default=unknown)
