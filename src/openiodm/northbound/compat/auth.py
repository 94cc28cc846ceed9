"""Login, refresh and logout (section 2). They take no token and no app_key, and flow control does not count them."""

from typing import Annotated
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta
from starlette.responses import Response

from openiodm.access.commands import AccessCommands
from openiodm.access.model import Login
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import NUL, Call, Needs, Route, parse_json, read_body

PREFIX = "/iocm/app/sec/v1.1.0"
LOGIN_BODY_BYTES = 8 * 1024
LOGIN_FIELDS = 16
LOGIN_NAMES = frozenset({"appId", "secret"})  # others are ignored, as everywhere


Needed = Annotated[str, Meta(min_length=1)]


class LoginBody(msgspec.Struct, rename="camel"):
    """Who logs in; also the form's fields."""

    app_id: str | None = None
    secret: str | None = None


class LoginForm(msgspec.Struct, rename="camel"):
    """What a login needs."""

    app_id: Needed
    secret: Needed


class RefreshForm(LoginForm, rename="camel"):
    """What a refresh needs."""

    refresh_token: Needed


class LogoutForm(msgspec.Struct, rename="camel"):
    """What a logout needs."""

    access_token: Needed


class RefreshBody(msgspec.Struct, rename="camel"):
    """Who refreshes, with what."""

    app_id: str | None = None
    secret: str | None = None
    refresh_token: str | None = None


class LogoutBody(msgspec.Struct, rename="camel"):
    """What ends."""

    access_token: str | None = None


class Tokens(msgspec.Struct, rename="camel"):
    """The answer of login and refresh. `tokenType` has no trailing blank (section 2.4)."""

    access_token: str
    token_type: str
    expires_in: int
    refresh_token: str
    scope: str


def routes(commands: AccessCommands) -> list[Route]:
    """The three calls."""

    async def login(call: Call) -> Tokens:
        raw = await read_body(call.request, LOGIN_BODY_BYTES)
        body = _login_body(raw, call.request.headers.get("content-type", ""))
        return _tokens(await commands.login(body.app_id or "", body.secret or "", call.address))

    async def refresh_token(call: Call) -> Tokens:
        body: RefreshBody = call.body
        login = await commands.refresh(body.app_id or "", body.secret or "", body.refresh_token or "", call.address)
        return _tokens(login)

    async def logout(call: Call) -> Response:
        body: LogoutBody = call.body
        await commands.logout(body.access_token or "", call.address)
        return Response(status_code=204)

    wrong = (Reason.CREDENTIALS_MISSING, Reason.CREDENTIALS_WRONG, Reason.APPLICATION_FROZEN, Reason.THROTTLED)
    return [
        Route(
            "POST",
            f"{PREFIX}/login",
            login,
            Needs.NOTHING,
            "Log in with appId and secret",
            answer=Tokens,
            description="A form of appId and secret; JSON is taken too. Earlier access tokens end.",
            described_body=LoginForm,
            refusals=wrong,
            request_media="application/x-www-form-urlencoded",
            streams_body=True,
        ),
        Route(
            "POST",
            f"{PREFIX}/refreshToken",
            refresh_token,
            Needs.NOTHING,
            "Change a refresh token for new tokens",
            body=RefreshBody,
            described_body=RefreshForm,
            answer=Tokens,
            refusals=wrong,
        ),
        Route(
            "POST",
            f"{PREFIX}/logout",
            logout,
            Needs.NOTHING,
            "End a session",
            body=LogoutBody,
            described_body=LogoutForm,
            status=204,
            refusals=(Reason.CREDENTIALS_MISSING,),
        ),
    ]


def _login_body(raw: bytes, content_type: str) -> LoginBody:
    if "json" in content_type.lower() or raw.lstrip()[:1] == b"{":
        body: LoginBody = parse_json(raw, LoginBody, lambda _field: Reason.BAD_INPUT)
        return body
    fields = _form(raw)
    return LoginBody(fields.get("appId"), fields.get("secret"))


def _form(raw: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=LOGIN_FIELDS, errors="strict")
    except ValueError as error:
        raise Refusal(Reason.BAD_INPUT, f"the body is not a form: {error}") from error
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name not in LOGIN_NAMES:
            continue
        if name in fields or NUL in value:
            raise Refusal(Reason.BAD_INPUT, f"{name} is given twice, or is not text", field=name)
        fields[name] = value
    return fields


def _tokens(login: Login) -> Tokens:
    return Tokens(login.access_token, "Bearer", login.expires_in, login.refresh_token, "default")
