"""Native routes of the calling application itself: its device tokens, its gateway tokens, whom it has authorized."""

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from openiodm.access.commands import AccessCommands
from openiodm.access.model import NAME_CHARS, Application, Authorization, GatewayToken, GatewayTokenKey, Product
from openiodm.access.queries import AccessQueries
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Call, Needs, Route, json_response
from openiodm.northbound.native.devices import Named
from openiodm.northbound.native.edge import PREFIX
from openiodm.northbound.native.times import moment

APPLICATION = PREFIX + "/application"
GATEWAY_TOKENS = PREFIX + "/gateway-tokens"
AUTHORIZATIONS = PREFIX + "/authorizations"

TokenName = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS, pattern=r"^[^\u0000-\u001f\u007f-\u009f]*$(?!\n)")]


class ApplicationView(msgspec.Struct, rename="camel"):
    """The caller."""

    app_id: str
    name: str
    target_tokens: bool
    gateway_tokens: bool


class ApplicationBody(msgspec.Struct, rename="camel"):
    """Which kinds of tokens devices may come with; what is left out, or null, stays."""

    target_tokens: bool | None = None
    gateway_tokens: bool | None = None


class NewGatewayTokenBody(msgspec.Struct, rename="camel"):
    """Devices that register themselves with the token become devices of this product."""

    name: TokenName
    device_type: Named
    model: Named
    manufacturer_name: Named


class GatewayTokenView(msgspec.Struct, rename="camel"):
    """A gateway token, without its text."""

    token_id: str
    name: str
    device_type: str
    model: str
    manufacturer_name: str
    created_at: datetime


class NewGatewayTokenView(GatewayTokenView, rename="camel"):
    """A new gateway token. `token` is its text: shown here and never again."""

    token: str


class GatewayTokenList(msgspec.Struct, rename="camel"):
    """All that were not revoked, oldest first."""

    items: list[GatewayTokenView]


class AuthorizationView(msgspec.Struct, rename="camel"):
    """The other application of the two, and since when."""

    app_id: str
    name: str
    since: datetime


class AuthorizationList(msgspec.Struct, rename="camel"):
    """Both directions, oldest first: who may act on the caller's things, and on whose things the caller may act."""

    granted: list[AuthorizationView]
    received: list[AuthorizationView]


def routes(commands: AccessCommands, queries: AccessQueries) -> list[Route]:
    """The eight operations."""
    api = _Application(commands, queries)
    return [
        Route("GET", APPLICATION, api.get_application, Needs.APPLICATION, "Show the caller", answer=ApplicationView),
        Route(
            "PUT",
            APPLICATION,
            api.change_application,
            Needs.APPLICATION,
            "Switch kinds of device tokens on and off",
            body=ApplicationBody,
            answer=ApplicationView,
        ),
        Route(
            "POST",
            GATEWAY_TOKENS,
            api.create_gateway_token,
            Needs.APPLICATION,
            "Make a token that many devices share",
            body=NewGatewayTokenBody,
            answer=NewGatewayTokenView,
            status=201,
            description="The answer is the only place that shows the token.",
        ),
        Route(
            "GET",
            GATEWAY_TOKENS,
            api.list_gateway_tokens,
            Needs.APPLICATION,
            "List gateway tokens, oldest first",
            answer=GatewayTokenList,
        ),
        Route(
            "DELETE",
            GATEWAY_TOKENS + "/{tokenId}",
            api.revoke_gateway_token,
            Needs.APPLICATION,
            "Revoke a gateway token",
            status=204,
            description="Devices that come with it are refused from now on. They stay devices.",
            refusals=(Reason.GATEWAY_TOKEN_UNKNOWN,),
        ),
        Route(
            "GET",
            AUTHORIZATIONS,
            api.list_authorizations,
            Needs.APPLICATION,
            "List who may act for whom",
            answer=AuthorizationList,
        ),
        Route(
            "PUT",
            AUTHORIZATIONS + "/{appId}",
            api.authorize,
            Needs.APPLICATION,
            "Let another application act on the caller's things",
            status=204,
            description="It then names the caller as `appId` or `accessAppId` in calls of the compatible API.",
            refusals=(Reason.APPLICATION_UNKNOWN,),
        ),
        Route(
            "DELETE",
            AUTHORIZATIONS + "/{appId}",
            api.unauthorize,
            Needs.APPLICATION,
            "Take an authorization back",
            status=204,
            refusals=(Reason.AUTHORIZATION_UNKNOWN,),
        ),
    ]


class _Application:
    def __init__(self, commands: AccessCommands, queries: AccessQueries) -> None:
        self._commands = commands
        self._queries = queries

    async def get_application(self, call: Call) -> ApplicationView:
        return _application(await self._queries.application(call.actor.app_id))

    async def change_application(self, call: Call) -> ApplicationView:
        body: ApplicationBody = call.body
        await self._commands.set_device_tokens(call.actor, target=body.target_tokens, gateway=body.gateway_tokens)
        return _application(await self._queries.application(call.actor.app_id))

    async def create_gateway_token(self, call: Call) -> Any:
        body: NewGatewayTokenBody = call.body
        product = Product(body.device_type, body.model, body.manufacturer_name)
        kept, token = await self._commands.create_gateway_token(call.actor, body.name, product)
        view = NewGatewayTokenView(**msgspec.structs.asdict(_token(kept)), token=token)
        response = json_response(view, 201)
        response.headers["Location"] = f"{GATEWAY_TOKENS}/{view.token_id}"
        return response

    async def list_gateway_tokens(self, call: Call) -> GatewayTokenList:
        return GatewayTokenList([_token(kept) for kept in await self._queries.gateway_tokens(call.actor)])

    async def revoke_gateway_token(self, call: Call) -> None:
        await self._commands.revoke_gateway_token(call.actor, _key(call.path["tokenId"]))

    async def list_authorizations(self, call: Call) -> AuthorizationList:
        return AuthorizationList(
            [_authorization(a) for a in await self._queries.authorized_by(call.actor)],
            [_authorization(a) for a in await self._queries.authorizing(call.actor)],
        )

    async def authorize(self, call: Call) -> None:
        await self._commands.authorize(call.actor, call.path["appId"])

    async def unauthorize(self, call: Call) -> None:
        await self._commands.unauthorize(call.actor, call.path["appId"])


def _key(token_id: str) -> GatewayTokenKey:
    if not (token_id.isascii() and token_id.isdigit() and len(token_id) <= 18):
        raise Refusal(Reason.GATEWAY_TOKEN_UNKNOWN, "there is no such gateway token")
    return GatewayTokenKey(int(token_id))


def _application(application: Application) -> ApplicationView:
    return ApplicationView(application.app_id, application.name, application.target_tokens, application.gateway_tokens)


def _authorization(one: Authorization) -> AuthorizationView:
    return AuthorizationView(one.app_id, one.name, moment(one.since))


def _token(kept: GatewayToken) -> GatewayTokenView:
    return GatewayTokenView(
        str(kept.key),
        kept.name,
        kept.product.device_type,
        kept.product.model,
        kept.product.manufacturer_name,
        moment(kept.created_at),
    )
