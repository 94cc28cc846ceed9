"""The native API's own description."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from openiodm.http.openapi import document
from openiodm.http.routes import Call, Needs, Route
from openiodm.northbound.native.edge import PREFIX, PROBLEM_MEDIA, SECURITY, STATUS_OF, Problem

PATH = PREFIX + "/openapi.json"
_DESCRIPTION = (
    "What the published northbound contract cannot say: upload of packages, and more detail. Log in over "
    "`POST /iocm/app/sec/v1.1.0/login`; its accessToken is the bearer token. Every refusal is an RFC 9457 problem "
    "document whose `reason` names it."
)


def native_document(
    of: Sequence[Route], version: str, path_schemas: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """OpenAPI 3.1 of the routes, as plain values."""
    return document(
        of,
        title="OpenIODM native API",
        version=version,
        description=_DESCRIPTION,
        error_type=Problem,
        error_media=PROBLEM_MEDIA,
        status_of=STATUS_OF,
        security=SECURITY,
        path_schemas=path_schemas,
    )


def routes(
    of: Sequence[Route], version: str, path_schemas: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Route]:
    """The route that serves the description of `of` and of itself. Encoded once, at start."""

    async def get_openapi(_call: Call) -> Response:
        return Response(body, media_type="application/json")

    route = Route(
        "GET", PATH, get_openapi, Needs.NOTHING, "Describe this API", description="OpenAPI 3.1.", answer=dict[str, Any]
    )
    body = msgspec.json.encode(native_document([*of, route], version, path_schemas))
    return [route]
