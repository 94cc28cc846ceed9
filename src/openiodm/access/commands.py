"""Changes of applications, logins and gateway tokens. Each command is one transaction."""

from dataclasses import replace
from functools import partial

import structlog

from openiodm.access.login_limit import LoginLimit
from openiodm.access.model import (
    NAME_CHARS,
    OPERATOR,
    Actor,
    Application,
    Credentials,
    GatewayToken,
    GatewayTokenKey,
    Login,
    Product,
    TokenKind,
    TokenLives,
    hash_authority,
    hash_secret,
    same_secret,
)
from openiodm.access.ports import AccessRows, AccessWork, AccessWriter
from openiodm.clock import SECOND, Clock, Instant, random_id, random_secret
from openiodm.errors import Reason, Refusal

APP_ID_CHARS = 64  # of one that does not exist, in the log
CLEAN_CHUNK = 1000
"""Most expired tokens that one transaction removes."""


log = structlog.get_logger(__name__)


class AccessCommands:
    """Applications and who may speak for them.

    What is for whoever runs the server takes `operator`, the name that the audit trail keeps.
    """

    def __init__(self, writer: AccessWriter, clock: Clock, lives: TokenLives, limit: LoginLimit) -> None:
        self._writer = writer
        self._clock = clock
        self._lives = lives
        self._limit = limit

    async def create_application(self, name: str, *, operator: str = OPERATOR) -> Credentials:
        """A new application, with both kinds of device tokens allowed. The secret is in the answer only.

        Raises:
            Refusal: BAD_INPUT for the name.
        """
        _check_name(name)
        return await self._writer.run(partial(self._create, name=name, operator=operator))

    async def create_first_application(self, name: str) -> Credentials | None:
        """As `create_application`, if there is none yet: of several servers that start at once, one makes it."""

        async def create(work: AccessWork) -> Credentials | None:
            if not await work.access.has_no_application():
                return None
            return await self._create(work, name=name, operator=OPERATOR)

        return await self._writer.run(create)

    async def _create(self, work: AccessWork, *, name: str, operator: str) -> Credentials:
        credentials, now = Credentials(random_id(), random_secret()), self._clock.now()
        app_id, hashed = credentials.app_id, hash_secret(credentials.secret)
        key = await work.access.insert_application(app_id, name, hashed, now)
        await work.audit.record(Actor(key, app_id, operator), "application.create", app_id, now)
        return credentials

    async def rotate_secret(self, app_id: str, *, operator: str = OPERATOR) -> Credentials:
        """Replaces the secret and ends every session: whoever had the old one is out at once.

        Raises:
            Refusal: APPLICATION_UNKNOWN.
        """
        credentials = Credentials(app_id, random_secret())

        async def rotate(work: AccessWork) -> Credentials:
            application = await _existing(work.access, app_id)
            await work.access.set_secret(application.key, hash_secret(credentials.secret))
            await work.access.end_all_sessions(application.key)
            actor = application.acted_on_by(operator)
            await work.audit.record(actor, "application.rotate-secret", app_id, self._clock.now())
            return credentials

        return await self._writer.run(rotate)

    async def set_frozen(self, app_id: str, *, frozen: bool, operator: str = OPERATOR) -> None:
        """A frozen application can neither log in nor refresh, and its devices are refused. Its sessions end.

        Thawed, it logs in anew; its devices go on.

        Raises:
            Refusal: APPLICATION_UNKNOWN.
        """

        async def freeze(work: AccessWork) -> None:
            application, now = await _existing(work.access, app_id), self._clock.now()
            await work.access.set_frozen(application.key, now if frozen else None)
            if frozen:
                await work.access.end_all_sessions(application.key)
            operation = "application.freeze" if frozen else "application.thaw"
            await work.audit.record(application.acted_on_by(operator), operation, app_id, now)

        await self._writer.run(freeze)

    async def set_device_tokens(self, actor: Actor, *, target: bool | None = None, gateway: bool | None = None) -> None:
        """Which kinds of tokens its devices may use; None leaves a kind as it is.

        Raises:
            Refusal: APPLICATION_UNKNOWN.
        """

        async def change(work: AccessWork) -> None:
            a = await _existing(work.access, actor.app_id)
            await work.access.set_device_tokens(
                a.key,
                target=a.target_tokens if target is None else target,
                gateway=a.gateway_tokens if gateway is None else gateway,
            )
            await work.audit.record(actor, "application.modify", a.app_id, self._clock.now())

        await self._writer.run(change)

    async def authorize(self, actor: Actor, app_id: str) -> None:
        """From now on that application may act on this one's things. A repeat changes nothing.

        Raises:
            Refusal: APPLICATION_UNKNOWN, or BAD_INPUT where it is this one itself.
        """
        if app_id == actor.app_id:
            raise Refusal(Reason.BAD_INPUT, "an application needs no authorization of its own", field="appId")

        async def authorize(work: AccessWork) -> None:
            other, now = await _existing(work.access, app_id), self._clock.now()
            if await work.access.authorize(actor.application, other.key, now):
                await work.audit.record(actor, "application.authorize", app_id, now)

        await self._writer.run(authorize)

    async def unauthorize(self, actor: Actor, app_id: str) -> None:
        """From now on that application is refused again.

        Raises:
            Refusal: AUTHORIZATION_UNKNOWN; it had none, or does not exist.
        """

        async def unauthorize(work: AccessWork) -> None:
            other = await work.access.application(app_id)
            if other is None or not await work.access.unauthorize(actor.application, other.key):
                raise Refusal(Reason.AUTHORIZATION_UNKNOWN, "that application is not authorized")
            await work.audit.record(actor, "application.unauthorize", app_id, self._clock.now())

        await self._writer.run(unauthorize)

    async def login(self, app_id: str, secret: str, address: str = "") -> Login:
        """New tokens; the newest access token wins (contract 2.1): earlier ones end now, or after the grace.

        Raises:
            Refusal: CREDENTIALS_MISSING, CREDENTIALS_WRONG, APPLICATION_FROZEN; THROTTLED after too many wrong secrets.
        """
        _check_given(app_id, secret)

        async def log_in(work: AccessWork) -> Login:
            application = await _authentic(work.access, app_id, secret, address)
            return await self._issue(work, application, "session.login", address)

        async with self._limit.attempt(app_id, address):
            return await self._writer.run(log_in)

    async def refresh(self, app_id: str, secret: str, refresh_token: str, address: str = "") -> Login:
        """New tokens for a refresh token, which is used up by it: shown again it is as good as an unknown one.

        Raises:
            Refusal: as `login`; CREDENTIALS_WRONG also for a refresh token that is used, over or another's.
        """
        _check_given(app_id, secret, refresh_token)

        async def refresh(work: AccessWork) -> Login:
            application = await _authentic(work.access, app_id, secret, address)
            hashed = hash_secret(refresh_token)
            if not await work.access.take_refresh_token(application.key, hashed, self._clock.now()):
                raise Refusal(Reason.CREDENTIALS_WRONG, "the refresh token is not valid")
            return await self._issue(work, application, "session.refresh", address)

        async with self._limit.attempt(app_id, address):
            return await self._writer.run(refresh)

    async def logout(self, access_token: str, address: str = "") -> None:
        """Ends the session of that access token, if there is one: a repeat changes nothing.

        Raises:
            Refusal: CREDENTIALS_MISSING.
        """
        _check_given(access_token)

        async def log_out(work: AccessWork) -> None:
            hashed = hash_secret(access_token)
            holder = await work.access.token_holder(hashed)
            if holder is not None:
                await work.access.end_session(hashed)
                actor = replace(holder.actor, address=address)
                await work.audit.record(actor, "session.logout", actor.app_id, self._clock.now())

        await self._writer.run(log_out)

    async def remove_expired_tokens(self) -> int:
        """Removes at most `CLEAN_CHUNK` tokens that are over; how many it were."""

        async def clean(work: AccessWork) -> int:
            return await work.access.remove_expired_tokens(self._clock.now(), CLEAN_CHUNK)

        return await self._writer.run(clean)

    async def create_gateway_token(self, actor: Actor, name: str, product: Product) -> tuple[GatewayToken, str]:
        """A token for many devices, and its text, which is shown in this answer only.

        Raises:
            Refusal: BAD_INPUT for the name or the product.
        """
        token = random_secret()
        return await self._create_gateway(actor, name, product, hash_secret(token)), token

    async def create_authority(self, actor: Actor, name: str, product: Product, authority: str) -> GatewayToken:
        """Trusts what a proxy says of devices' certificates: `authority` stands for their issuer, as a gateway token
        would. For the operator alone: an application could name another one's issuer.

        Raises:
            Refusal: BAD_INPUT for the name, the product, or an authority that is there already.
        """
        if not authority.strip() or any(c in authority for c in ",;\0"):
            raise Refusal(Reason.BAD_INPUT, "an authority is one text without comma and semicolon", field="authority")
        return await self._create_gateway(actor, name, product, hash_authority(authority))

    async def _create_gateway(self, actor: Actor, name: str, product: Product, token_hash: str) -> GatewayToken:
        _check_name(name)
        if not product.storable:
            raise Refusal(Reason.BAD_INPUT, "the product profile is too long", field="product")

        async def create(work: AccessWork) -> GatewayToken:
            now = self._clock.now()
            if await work.access.gateway(token_hash) is not None:
                raise Refusal(Reason.BAD_INPUT, "this authority is there already", field="authority")
            key = await work.access.insert_gateway_token(actor.application, name, product, token_hash, now)
            await work.audit.record(actor, "gateway-token.create", str(key), now)
            return GatewayToken(key, name, product, now)

        return await self._writer.run(create)

    async def revoke_gateway_token(self, actor: Actor, token: GatewayTokenKey) -> None:
        """Devices that come with it are refused from now on.

        Raises:
            Refusal: GATEWAY_TOKEN_UNKNOWN; the application has no such token, or it was revoked.
        """

        async def revoke(work: AccessWork) -> None:
            now = self._clock.now()
            if not await work.access.revoke_gateway_token(actor.application, token, now):
                raise Refusal(Reason.GATEWAY_TOKEN_UNKNOWN, "there is no such gateway token")
            await work.audit.record(actor, "gateway-token.revoke", str(token), now)

        await self._writer.run(revoke)

    async def forget_old_logins(self) -> None:
        """Wrong secrets that count no more, and where applications logged in long ago."""
        await self._limit.forget_old()

    async def _issue(self, work: AccessWork, application: Application, operation: str, address: str) -> Login:
        now, lives, rows = self._clock.now(), self._lives, work.access
        # Without a grace they end on every server now, also on one whose clock is a little behind.
        await rows.end_access_tokens(application.key, Instant(now + lives.grace) if lives.grace else Instant(0))
        login = Login(random_secret(), random_secret(), lives.life // SECOND)
        for kind, token, life in (
            (TokenKind.ACCESS, login.access_token, lives.life + lives.skew),
            (TokenKind.REFRESH, login.refresh_token, lives.refresh),
        ):
            await rows.insert_token(application.key, kind, hash_secret(token), now, Instant(now + life))
        actor = replace(application.actor, address=address)
        await work.audit.record(actor, operation, application.app_id, now)
        return login


async def _existing(rows: AccessRows, app_id: str) -> Application:
    found = await rows.lock_application(app_id)
    if found is None:
        raise Refusal(Reason.APPLICATION_UNKNOWN, "there is no such application")
    return found[0]


async def _authentic(rows: AccessRows, app_id: str, secret: str, address: str) -> Application:
    found = await rows.lock_application(app_id)
    if found is None or not same_secret(secret, found[1]):
        log.warning("login_refused", app_id=app_id[:APP_ID_CHARS], address=address)
        raise Refusal(Reason.CREDENTIALS_WRONG)
    if found[0].frozen:
        raise Refusal(Reason.APPLICATION_FROZEN)
    return found[0]


def _check_given(*values: str) -> None:
    if not all(values):
        raise Refusal(Reason.CREDENTIALS_MISSING)


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= NAME_CHARS or "\0" in name:
        raise Refusal(Reason.BAD_INPUT, f"a name has 1 to {NAME_CHARS} characters", field="name")
