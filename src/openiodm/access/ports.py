"""What the access room needs of storage, and what others need of its flow control."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from openiodm.access.model import (
    Actor,
    Application,
    ApplicationKey,
    AuditEntry,
    AuditFilter,
    AuditPlace,
    Authorization,
    Gateway,
    GatewayToken,
    GatewayTokenKey,
    Product,
    TokenHolder,
    TokenKind,
)
from openiodm.clock import Instant

T = TypeVar("T")


class AccessReads(Protocol):
    """Reads by key; each is one statement."""

    async def application(self, app_id: str) -> Application | None:
        """The application of that public id."""
        ...

    async def applications(self) -> Sequence[Application]:
        """All of them, oldest first."""
        ...

    async def token_holder(self, token_hash: str) -> TokenHolder | None:
        """Whose access token that is, over or not, unless the application is frozen: one indexed read."""
        ...

    async def named(self, caller: ApplicationKey, app_id: str) -> tuple[Application, bool] | None:
        """The application that a call names, and whether it has authorized the caller."""
        ...

    async def authorized_by(self, application: ApplicationKey) -> Sequence[Authorization]:
        """Whom the application has authorized."""
        ...

    async def authorizing(self, application: ApplicationKey) -> Sequence[Authorization]:
        """Who has authorized the application."""
        ...

    async def gateway(self, token_hash: str) -> Gateway | None:
        """What that gateway token stands for, unless it was revoked or its application is gone."""
        ...

    async def gateway_tokens(self, application: ApplicationKey) -> Sequence[GatewayToken]:
        """An application's tokens that were not revoked, oldest first."""
        ...


class AccessRows(AccessReads, Protocol):
    """Reads and writes within one transaction."""

    async def has_no_application(self) -> bool:
        """Is there none yet? On no server is one made until the transaction ends."""
        ...

    async def insert_application(self, app_id: str, name: str, secret_hash: str, now: Instant) -> ApplicationKey:
        """A new application, with target tokens and gateway tokens allowed."""
        ...

    async def lock_application(self, app_id: str) -> tuple[Application, str] | None:
        """The application and its secret's hash, locked: of two logins one is the newer, on every server."""
        ...

    async def set_secret(self, application: ApplicationKey, secret_hash: str) -> None:
        """Replaces the secret."""
        ...

    async def set_frozen(self, application: ApplicationKey, frozen_at: Instant | None) -> None:
        """Freezes, or thaws with None."""
        ...

    async def set_device_tokens(self, application: ApplicationKey, *, target: bool, gateway: bool) -> None:
        """Which tokens its devices may use."""
        ...

    async def authorize(self, application: ApplicationKey, other: ApplicationKey, now: Instant) -> bool:
        """Lets `other` act on the application's things; False when it may already."""
        ...

    async def unauthorize(self, application: ApplicationKey, other: ApplicationKey) -> bool:
        """Takes it back; False when there is no such authorization."""
        ...

    async def insert_token(
        self, application: ApplicationKey, kind: TokenKind, token_hash: str, now: Instant, expires_at: Instant
    ) -> None:
        """A token, accepted until `expires_at`."""
        ...

    async def end_access_tokens(self, application: ApplicationKey, at: Instant) -> None:
        """No access token that exists now is accepted from `at` on."""
        ...

    async def take_refresh_token(self, application: ApplicationKey, token_hash: str, now: Instant) -> bool:
        """Uses it up; False when it is not this application's, was used or is over."""
        ...

    async def end_session(self, token_hash: str) -> None:
        """Removes an access token and the refresh token issued with it, if it is there."""
        ...

    async def end_all_sessions(self, application: ApplicationKey) -> None:
        """Removes all tokens of an application."""
        ...

    async def remove_expired_tokens(self, now: Instant, limit: int) -> int:
        """Removes at most `limit` tokens that are over; how many it were."""
        ...

    async def insert_gateway_token(
        self, application: ApplicationKey, name: str, product: Product, token_hash: str, now: Instant
    ) -> GatewayTokenKey:
        """A gateway token with its product profile."""
        ...

    async def revoke_gateway_token(self, application: ApplicationKey, token: GatewayTokenKey, now: Instant) -> bool:
        """Ends it; False when the application has no such token."""
        ...


class AuditReads(Protocol):
    """The audit trail, for those who look at it."""

    async def page(self, wanted: AuditFilter, after: AuditPlace | None, limit: int) -> Sequence[AuditEntry]:
        """Newest first, from after that place on."""
        ...


class AuditRows(Protocol):
    """The audit trail within one transaction."""

    async def record(
        self, actor: Actor, operation: str, object_id: str | None, now: Instant, outcome: str = "done"
    ) -> None:
        """One change. `operation` is `thing.verb`; `object_id` a public id; no secret goes into any of them."""
        ...

    async def forget(self, before: Instant, limit: int) -> int:
        """Removes at most `limit` rows that are older; how many it were."""
        ...


class Audited(Protocol):
    """Part of every room's transaction: a command that somebody asked for leaves a row of what it changed."""

    @property
    def audit(self) -> AuditRows:
        """The audit trail."""
        ...


class AccessWork(Audited, Protocol):
    """A transaction, as far as this room sees it."""

    @property
    def access(self) -> AccessRows:
        """This room's rows."""
        ...


class AccessWriter(Protocol):
    """Runs commands, each in a transaction of its own as far as it can tell."""

    async def run(self, command: Callable[[AccessWork], Awaitable[T]]) -> T:
        """The command's result, once it is durable."""
        ...


class FlowControl(Protocol):
    """How often an application may call."""

    async def admit(self, application: ApplicationKey) -> None:
        """Counts one call.

        Raises:
            Refusal: THROTTLED; the call is not counted.
        """
        ...


LoginKey = tuple[str, str]
"""An application and a network; one of them may be empty: any."""


@dataclass(frozen=True, slots=True)
class LoginStanding:
    """How a key stands: has that application logged in from there, and how many wrong secrets count against it still.

    `owed` is in 1/60000 of a wrong secret. `fades`: it is forgotten one day unless it is known anew.
    """

    known: bool
    owed: int
    fades: bool = False


class LoginCounts(Protocol):
    """Wrong secrets, counted by key, and pairs that have logged in. Counts go back to zero by N a minute."""

    async def look(self, keys: Sequence[LoginKey], now: Instant) -> Mapping[LoginKey, LoginStanding]:
        """How they stand; a key that is missing has nothing against it."""
        ...

    async def add(self, keys: Sequence[LoginKey], now: Instant) -> None:
        """One more wrong secret for each."""
        ...

    async def know(self, pair: LoginKey, now: Instant) -> None:
        """That application has logged in from there."""
        ...

    async def forget_old(self, now: Instant) -> None:
        """What no longer counts, and pairs that were not seen for long, go."""
        ...
