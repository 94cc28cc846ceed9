"""Who calls the native API: `Authorization: Bearer T`, alone or with the contract's `app_key`, and how often."""

from typing import Protocol

from starlette.requests import Request

from openiodm.access.model import Actor
from openiodm.access.ports import FlowControl
from openiodm.errors import Reason, Refusal
from openiodm.http.clients import peer_of


class Tokens(Protocol):
    """Whose access token is it? (`access.queries.AccessQueries`)"""

    async def authenticate(self, app_key: str | None, token: str, address: str) -> Actor:
        """The holder; `app_key`, where given, must name it.

        Raises:
            Refusal: TOKEN_INVALID.
        """
        ...

    async def acting_for(self, actor: Actor, app_id: str) -> Actor:
        """The caller, acting for the application that it names."""
        ...


class NativeGuard:
    """See `http.routes.Guard`."""

    def __init__(self, tokens: Tokens, flow: FlowControl) -> None:
        self._tokens = tokens
        self._flow = flow

    async def authenticate(self, request: Request) -> Actor:
        """The caller. RFC 9110 spells the scheme in any case."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip()
        if scheme.casefold() != "bearer" or not token:
            raise Refusal(Reason.TOKEN_INVALID, "send Authorization: Bearer <accessToken>", field="Authorization")
        return await self._tokens.authenticate(request.headers.get("app_key"), token, peer_of(request.scope))

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
        return await self._tokens.acting_for(actor, app_id)
