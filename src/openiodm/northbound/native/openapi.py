"""The native API's own description."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from openiodm.errors import KIND_OF, Kind, Reason
from openiodm.http import reference
from openiodm.http.openapi import ErrorStyle, Shown, document
from openiodm.http.routes import Call, Handler, Needs, Route, json_response
from openiodm.northbound.native.edge import PREFIX, PROBLEM_MEDIA, SECURITY, STATUS_OF, Problem

PATH = PREFIX + "/openapi.json"
COMPAT_PATH = PREFIX + "/compat-openapi.json"
DOCS = "/api/docs"
COMPAT_DOCS = DOCS + "/compatible"
NATIVE_DOCS = DOCS + "/native"
_PAGES = {
    COMPAT_DOCS: "the device-upgrade API as published, with devices, groups and login",
    NATIVE_DOCS: "what that API cannot say: upload, stop, retry, export, bulk registration",
    COMPAT_PATH: "the first as OpenAPI 3.1",
    PATH: "the second as OpenAPI 3.1",
}
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
        tag_of=_tag,
    )


def routes(
    of: Sequence[Route],
    version: str,
    path_schemas: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    compat: Mapping[str, Any],
) -> list[Route]:
    """The routes that serve the description of `of` and themselves, that of the compatible API, and both as pages."""
    describing = _Describing()
    own = [
        _json(PATH, describing.get_openapi, "Describe this API"),
        _json(COMPAT_PATH, describing.get_compat_openapi, "Describe the compatible API"),
        _html(DOCS, describing.get_docs, "Both descriptions as pages"),
        _html(COMPAT_DOCS, describing.get_compat_docs, "The compatible API as a page"),
        _html(NATIVE_DOCS, describing.get_native_docs, "This API as a page"),
    ]
    describing.compat = msgspec.to_builtins(compat)
    describing.native = msgspec.to_builtins(native_document([*of, *own], version, path_schemas))
    return own


class _Describing:
    """Answers are made at the first request for them, and kept."""

    compat: Mapping[str, Any]
    native: Mapping[str, Any]

    def __init__(self) -> None:
        self._made: dict[str, Response] = {}

    async def get_openapi(self, _call: Call) -> Response:
        return self._once(PATH, lambda: json_response(self.native))

    async def get_compat_openapi(self, _call: Call) -> Response:
        return self._once(COMPAT_PATH, lambda: json_response(self.compat))

    async def get_docs(self, _call: Call) -> Response:
        return self._once(DOCS, lambda: _page(reference.index("OpenIODM: both APIs", _PAGES)))

    async def get_compat_docs(self, _call: Call) -> Response:
        others = {"the native API": NATIVE_DOCS, "OpenAPI 3.1": COMPAT_PATH}
        return self._once(COMPAT_DOCS, lambda: _page(reference.page(self.compat, others)))

    async def get_native_docs(self, _call: Call) -> Response:
        others = {"the compatible API": COMPAT_DOCS, "OpenAPI 3.1": PATH}
        return self._once(NATIVE_DOCS, lambda: _page(reference.page(self.native, others)))

    def _once(self, path: str, make: Callable[[], Response]) -> Response:
        if path not in self._made:
            self._made[path] = make()
        return self._made[path]


def _page(html: str) -> Response:
    return Response(html, media_type=reference.MEDIA, headers=reference.HEADERS)


def _json(path: str, handler: Handler, summary: str) -> Route:
    return Route("GET", path, handler, Needs.NOTHING, summary, description="OpenAPI 3.1.", answer=dict[str, Any])


def _html(path: str, handler: Handler, summary: str) -> Route:
    return Route("GET", path, handler, Needs.NOTHING, summary, description="For people.", answer_media=("text/html",))


def _tag(route: Route) -> str:
    """`packages` of `/api/v1/packages/{fileId}`."""
    name = route.path.removeprefix(f"{PREFIX}/").partition("/")[0]
    return name if route.path.startswith(PREFIX) and not name.endswith(".json") else "descriptions"
