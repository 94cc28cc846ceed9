"""The compatible API's description: OpenAPI 3.1 from its routes, and from the contract's own tables of errors."""

from collections.abc import Sequence
from typing import Any

from openiodm.http.openapi import ErrorStyle, Shown, document
from openiodm.http.routes import Route
from openiodm.northbound.compat.edge import OUR_FAULT, ErrorBody, No, family_of, row_of

SECURITY = {
    "appKey": {"type": "apiKey", "in": "header", "name": "app_key", "description": "The appId."},
    "accessToken": {"type": "http", "scheme": "bearer", "description": "The accessToken of a login."},
}
_DESCRIPTION = (
    "The device-upgrade API, v1.5.0, of Huawei's IoT platform, with the device, group and login calls that go with it. "
    "Log in over `POST /iocm/app/sec/v1.1.0/login`; every other call has the headers `app_key: {appId}` and "
    "`Authorization: Bearer {accessToken}`. Every error has the body `{error_code, error_desc}`, and some come with "
    "HTTP 200, as published. An empty value in a query is one that was not given; enumerations are read in any case of "
    "letters where the documents contradict each other about it."
)


def compat_document(of: Sequence[Route], version: str, *, errors_as_4xx: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of the routes, as plain values."""

    def shown_no(no: No) -> Shown:
        return Shown(no.status_of(errors_as_4xx), no.code, no.desc, ErrorBody(no.code, no.desc))

    return document(
        of,
        title="OpenIODM compatible API",
        version=version,
        description=_DESCRIPTION,
        errors=ErrorStyle(
            ErrorBody,
            "application/json",
            lambda route, reason: shown_no(row_of(route.path, reason)),
            always=[shown_no(OUR_FAULT)],
        ),
        security=SECURITY,
        tag_of=lambda route: family_of(route.path).name,
    )
