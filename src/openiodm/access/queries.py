"""Who is asking? One indexed read a call."""

import hmac
from collections.abc import Sequence
from dataclasses import replace

from openiodm.access.model import Actor, Application, Authorization, Gateway, GatewayToken, hash_secret
from openiodm.access.ports import AccessReads
from openiodm.clock import Clock
from openiodm.errors import Reason, Refusal


class AccessQueries:
    """Applications, the holders of tokens."""

    def __init__(self, reads: AccessReads, clock: Clock) -> None:
        self._reads = reads
        self._clock = clock

    async def authenticate(self, app_key: str | None, token: str, address: str = "") -> Actor:
        """The application that holds the access token; `app_key` must name it, unless it is None (native API).

        Raises:
            Refusal: TOKEN_INVALID (unknown, over, replaced, another application's, or of a frozen one).
        """
        holder = await self._reads.token_holder(hash_secret(token))
        if holder is None or holder.accepted_until <= self._clock.now():
            raise Refusal(Reason.TOKEN_INVALID)
        if app_key is not None and not hmac.compare_digest(app_key.encode(), holder.actor.app_id.encode()):
            raise Refusal(Reason.TOKEN_INVALID, "the token is another application's")
        return replace(holder.actor, address=address)

    async def acting_for(self, actor: Actor, app_id: str) -> Actor:
        """The caller, acting on the things of the application that it names: itself, or one that has authorized it.

        Raises:
            Refusal: APPLICATION_UNKNOWN; APPLICATION_UNAUTHORIZED, also while that application is frozen.
        """
        if app_id == actor.app_id:
            return actor
        found = await self._reads.named(actor.application, app_id)
        if found is None:
            raise Refusal(Reason.APPLICATION_UNKNOWN, "there is no such application")
        application, authorized = found
        if not authorized or application.frozen:
            raise Refusal(Reason.APPLICATION_UNAUTHORIZED, "that application has not authorized the caller")
        return replace(actor, application=application.key, app_id=application.app_id, caller=actor.app_id)

    async def authorized_by(self, actor: Actor) -> Sequence[Authorization]:
        """Whom the application has authorized, oldest first."""
        return await self._reads.authorized_by(actor.application)

    async def authorizing(self, actor: Actor) -> Sequence[Authorization]:
        """Who has authorized the application, oldest first."""
        return await self._reads.authorizing(actor.application)

    async def gateway(self, token: str) -> Gateway | None:
        """What a presented gateway token stands for; None when it is not valid or the application allows none."""
        gateway = await self._reads.gateway(hash_secret(token))
        if gateway is None or gateway.application.frozen or not gateway.application.gateway_tokens:
            return None
        return gateway

    async def application(self, app_id: str) -> Application:
        """One application.

        Raises:
            Refusal: APPLICATION_UNKNOWN.
        """
        application = await self._reads.application(app_id)
        if application is None:
            raise Refusal(Reason.APPLICATION_UNKNOWN, "there is no such application")
        return application

    async def applications(self) -> Sequence[Application]:
        """All applications, oldest first: for the operator of the server, not for an application."""
        return await self._reads.applications()

    async def gateway_tokens(self, actor: Actor) -> Sequence[GatewayToken]:
        """The caller's gateway tokens that were not revoked, oldest first."""
        return await self._reads.gateway_tokens(actor.application)
