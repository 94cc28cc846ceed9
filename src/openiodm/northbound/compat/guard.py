"""Who calls the compatible API: `app_key` and `Authorization: Bearer T`, and how often (sections 1.1, 1.4)."""

import re

from starlette.requests import Request

from openiodm.access.model import Actor
from openiodm.access.ports import FlowControl
from openiodm.access.queries import AccessQueries
from openiodm.errors import Reason, Refusal
from openiodm.http.clients import peer_of

# The platform said tokenType "Bearer " with a blank; clients that join it to the token themselves send none with ours.
_BEARER = re.compile(r"bearer[ \t]*(\S{1,512})", re.IGNORECASE)


class CompatGuard:
    """See `http.routes.Guard`."""

    def __init__(self, access: AccessQueries, flow: FlowControl) -> None:
        self._access = access
        self._flow = flow

    async def authenticate(self, request: Request) -> Actor:
        """The application that both headers name.

        Raises:
            Refusal: TOKEN_INVALID, also where a header is missing.
        """
        app_key = request.headers.get("app_key", "").strip()
        bearer = _BEARER.fullmatch(request.headers.get("authorization", "").strip())
        if not app_key or bearer is None:
            raise Refusal(Reason.TOKEN_INVALID, "app_key or Authorization is missing")
        return await self._access.authenticate(app_key, bearer.group(1), peer_of(request.scope))

    async def admit(self, actor: Actor) -> None:
        """Counts the call.

        Raises:
            Refusal: THROTTLED.
        """
        await self._flow.admit(actor.application)

    async def acting_for(self, actor: Actor, app_id: str) -> Actor:
        """The caller, acting for the application that it names.

        Raises:
            Refusal: APPLICATION_UNKNOWN, APPLICATION_UNAUTHORIZED.
        """
        return await self._access.acting_for(actor, app_id)
