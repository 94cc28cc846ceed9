"""How the native API says no: problem documents (RFC 9457)."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from openiodm.errors import Kind, Refusal

PREFIX = "/api/v1"
PROBLEM_MEDIA = "application/problem+json"
URN = "urn:openiodm:refusal:"
RETRY_AFTER_S = 1
"""Told with 429 and 503: buckets refill by the call, and nothing else is known of when it may work again."""

STATUS_OF: Mapping[Kind, int] = {
    Kind.INVALID: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.FORBIDDEN: 403,
    Kind.NOT_FOUND: 404,
    Kind.CONFLICT: 409,
    Kind.GONE: 410,
    Kind.TOO_LARGE: 413,
    Kind.THROTTLED: 429,
    Kind.UNAVAILABLE: 503,
}

# For OpenAPI.
SECURITY = {"bearer": {"type": "http", "scheme": "bearer", "description": "The accessToken of a login."}}


class Problem(msgspec.Struct, kw_only=True):
    """Why not (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    field: str | None = None


class NativeEdge:
    """See `http.routes.Edge`."""

    def refusal(self, refusal: Refusal, request: Request) -> Response:
        """`type` and `reason` name the refusal, `field` the member, parameter or header at fault."""
        status = STATUS_OF[refusal.kind]
        return _problem(status, refusal.reason.value, refusal.detail, refusal.field, _headers(refusal.kind, request))

    def unknown_path(self, request: Request) -> Response:
        """404."""
        return _problem(404, "path-unknown", f"there is nothing at {request.url.path}")

    def wrong_method(self, request: Request, allowed: Sequence[str]) -> Response:
        """405."""
        allow = ", ".join(allowed)
        return _problem(405, "method-not-allowed", f"allowed here: {allow}", headers={"Allow": allow})

    def unavailable(self, request: Request) -> Response:
        """503, and when to ask again."""
        again = {"Retry-After": str(RETRY_AFTER_S)}
        return _problem(503, "database-away", "the database cannot be had now", headers=again)

    def our_fault(self, request: Request) -> Response:
        """500."""
        return _problem(500, "internal", "a fault of the server; its log has the trace")


def _problem(
    status: int, reason: str, detail: str, field: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    problem = Problem(
        type=URN + reason,
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        reason=reason,
        field=field,
    )
    return Response(msgspec.json.encode(problem), status, dict(headers or {}), PROBLEM_MEDIA)


def _headers(kind: Kind, request: Request) -> dict[str, str]:
    if kind is Kind.UNAUTHENTICATED:
        presented = "authorization" in request.headers
        return {"WWW-Authenticate": 'Bearer realm="openiodm"' + (', error="invalid_token"' if presented else "")}
    if kind in {Kind.THROTTLED, Kind.UNAVAILABLE}:
        return {"Retry-After": str(RETRY_AFTER_S)}
    return {}
