"""Applications, actors, what they carry (secrets, tokens, gateway tokens), and what the audit trail keeps of them.

Every secret is opaque and random, shown once and kept as its SHA-256: 256 random bits need no slow hash.
"""

import hashlib
import hmac
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, NewType

from openiodm.clock import Instant, Millis

ApplicationKey = NewType("ApplicationKey", int)  # the row's id, never shown
GatewayTokenKey = NewType("GatewayTokenKey", int)

NAME_CHARS = 256
"""Longest name of an application or a gateway token, in characters."""
OPERATOR = "operator"
"""Who asks where nobody says more: whoever runs the server."""
PRODUCT_BYTES = 2000
"""Longest product, its three members together, in UTF-8 bytes: what a PostgreSQL index entry can hold."""


@dataclass(frozen=True, slots=True)
class Actor:
    """On whose behalf a command runs. Commands and queries take one; rows of other applications do not exist for it.

    `caller` is who asked, where it is not the application itself: another one that it has authorized, or whoever runs
    the server. `address` is where the call came from. Both are for the audit trail alone.
    """

    application: ApplicationKey
    app_id: str
    caller: str | None = None
    address: str = ""

    @property
    def asked_by(self) -> str:
        """An appId, or who ran the command line."""
        return self.caller or self.app_id


class TokenKind(StrEnum):
    """The two tokens of a login."""

    ACCESS = "access"
    REFRESH = "refresh"


@dataclass(frozen=True, slots=True)
class Application:
    """A tenant. `app_id` is the contract's appId and app_key."""

    key: ApplicationKey
    app_id: str
    name: str
    target_tokens: bool
    gateway_tokens: bool
    frozen: bool

    @property
    def actor(self) -> Actor:
        """The application acting for itself."""
        return Actor(self.key, self.app_id)

    def acted_on_by(self, operator: str) -> Actor:
        """Whoever runs the server, acting on the application's things."""
        return Actor(self.key, self.app_id, operator)


@dataclass(frozen=True, slots=True)
class Authorization:
    """One application may act on another's things; `app_id` and `name` are those of the other one of the two."""

    app_id: str
    name: str
    since: Instant


@dataclass(frozen=True, slots=True)
class Product:
    """What a device is and a package is for: the contract's deviceType, model, manufacturerName. Empty = not told."""

    device_type: str
    model: str
    manufacturer_name: str

    @property
    def storable(self) -> bool:
        """Is it within `PRODUCT_BYTES`?"""
        members = (self.device_type, self.model, self.manufacturer_name)
        return sum(len(m.encode()) for m in members) <= PRODUCT_BYTES


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an application logs in with. The secret is shown here and never again."""

    app_id: str
    secret: str


@dataclass(frozen=True, slots=True)
class Login:
    """A fresh pair of tokens; `expires_in` is what the access token is said to live, in seconds."""

    access_token: str
    refresh_token: str
    expires_in: int


@dataclass(frozen=True, slots=True)
class TokenLives:
    """How long tokens are good for.

    `skew` is given on top of `life` and not told: clients log in again exactly at the end of `life`. `grace` is what an
    access token still has once a newer one was issued.
    """

    life: Millis
    skew: Millis
    grace: Millis
    refresh: Millis


@dataclass(frozen=True, slots=True)
class TokenHolder:
    """Whose access token it is. `accepted_until` includes the skew, and the end that a newer login set."""

    actor: Actor
    accepted_until: Instant


@dataclass(frozen=True, slots=True)
class GatewayToken:
    """A token that many devices share; those that register themselves with it get its `product`."""

    key: GatewayTokenKey
    name: str
    product: Product
    created_at: Instant


@dataclass(frozen=True, slots=True)
class Gateway:
    """What a presented gateway token stands for."""

    application: Application
    token: GatewayTokenKey
    product: Product


class AuditPlace(NamedTuple):
    """Where a page ends: the trail is read by time, and by number within a millisecond."""

    at: Instant
    number: int


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change. `object_id` is the public id of what was changed; a bulk registration has none."""

    place: AuditPlace
    app_id: str  # whose things
    caller: str  # an appId, or who ran the command line
    address: str  # empty for the command line
    operation: str
    object_id: str | None
    outcome: str

    @property
    def at(self) -> Instant:
        """When."""
        return self.place.at


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Conditions that must all hold; None is no condition. Only the operator looks at every application's at once."""

    application: ApplicationKey | None
    operation: str | None = None
    object_id: str | None = None
    since: Instant | None = None  # this moment too
    until: Instant | None = None  # without this moment


def hash_secret(secret: str) -> str:
    """How every secret and token is kept: SHA-256, 64 hex digits. Lone surrogates hash too: they match nothing."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def hash_authority(authority: str) -> str:
    """How an authority is looked up: by the hash of a text that no header can carry, so that it is nobody's token."""
    return hash_secret("\0authority " + authority.strip().lower())


def same_secret(secret: str, kept_hash: str) -> bool:
    """Does `secret` hash to `kept_hash`? Takes the same time whatever the answer."""
    return hmac.compare_digest(hash_secret(secret), kept_hash)
