"""The native API's own description."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from openiodm.errors import KIND_OF, Kind, Reason
from openiodm.http.openapi import ErrorStyle, Shown, document
from openiodm.http.routes import Call, Handler, Needs, Route
from openiodm.northbound.native.edge import PREFIX, PROBLEM_MEDIA, SECURITY, STATUS_OF, Problem

PATH = PREFIX + "/openapi.json"
COMPAT_PATH = PREFIX + "/compat-openapi.json"
_DESCRIPTION = (
    "What the published northbound contract cannot say: upload of packages, and more detail. Log in over "
    "`POST /iocm/app/sec/v1.1.0/login`; its accessToken is the bearer token. Every refusal is an RFC 9457 problem "
    "document whose `reason` names it."
)


def _shown(_route: Route, reason: Reason) -> Shown:
    return Shown(STATUS_OF[KIND_OF.get(reason, Kind.INVALID)], reason.value)


def native_document(
    of: Sequence[Route], version: str, path_schemas: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """OpenAPI 3.1 of the routes, as plain values."""
    return document(
        of,
        title="OpenIODM native API",
        version=version,
        description=_DESCRIPTION,
        errors=ErrorStyle(Problem, PROBLEM_MEDIA, _shown),
        security=SECURITY,
        path_schemas=path_schemas,
    )


def routes(
    of: Sequence[Route],
    version: str,
    path_schemas: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    compat: Mapping[str, Any],
) -> list[Route]:
    """The routes that serve the description of `of` and of themselves, and that of the compatible API.

    Both are encoded once, at start.
    """

    async def get_openapi(_call: Call) -> Response:
        return Response(own, media_type="application/json")

    async def get_compat_openapi(_call: Call) -> Response:
        return Response(others, media_type="application/json")

    describing = [
        _describing(PATH, get_openapi, "Describe this API"),
        _describing(COMPAT_PATH, get_compat_openapi, "Describe the compatible API"),
    ]
    own = msgspec.json.encode(native_document([*of, *describing], version, path_schemas))
    others = msgspec.json.encode(compat)
    return describing


def _describing(path: str, handler: Handler, summary: str) -> Route:
    return Route("GET", path, handler, Needs.NOTHING, summary, description="OpenAPI 3.1.", answer=dict[str, Any])
