"""Native routes of notices: how delivery goes, what was not delivered, replaying it, and what callbacks need."""

import hashlib
import ssl
from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from openiodm.clock import Instant
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Call, Needs, Route
from openiodm.northbound.native.devices import Text
from openiodm.northbound.native.edge import PREFIX
from openiodm.northbound.native.times import moment
from openiodm.notifications.commands import SubscriptionCommands
from openiodm.notifications.model import CallbackSecurity, Notice, NoticeKey, NotifyType, SubscriptionHealth
from openiodm.notifications.queries import SubscriptionQueries

SUBSCRIPTIONS = PREFIX + "/subscriptions"
NOTICES = PREFIX + "/notices"
CALLBACKS = PREFIX + "/application/callbacks"
MAX_LIMIT = 500
PEM_CHARS = 256 * 1024

Pem = Annotated[str, Meta(max_length=PEM_CHARS)]


class NoticeState(StrEnum):
    """Where a notice stands; one that was delivered is gone."""

    PENDING = "pending"
    UNDELIVERED = "undelivered"


class SubscriptionView(msgspec.Struct, rename="camel"):
    """A subscription, and how its delivery goes."""

    subscription_id: str
    notify_type: NotifyType
    callback_url: str
    created_at: datetime
    pending: Annotated[int, Meta(description="notices on their way")]
    undelivered: Annotated[int, Meta(description="notices that were given up; they can be replayed")]
    last_delivered_at: datetime | None
    last_error: str | None
    last_error_at: datetime | None


class SubscriptionList(msgspec.Struct, rename="camel"):
    """All of them, newest first."""

    items: list[SubscriptionView]


class NoticeView(msgspec.Struct, rename="camel"):
    """A notice that is not delivered."""

    notice_id: str
    subscription_id: str
    notify_type: NotifyType
    body: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]
    created_at: datetime
    attempts: int
    next_attempt_at: datetime | None
    last_error: str | None
    given_up_at: datetime | None


class NoticeList(msgspec.Struct, rename="camel"):
    """One page, oldest first."""

    items: list[NoticeView]
    next_cursor: Annotated[int | None, Meta(description="of the next page; null: this was the last")]


class NoticesQuery(msgspec.Struct, rename="camel"):
    """Which notices, and from where on."""

    state: NoticeState = NoticeState.UNDELIVERED
    subscription_id: Text = ""
    cursor: Annotated[int, Meta(ge=0, le=2**53, description="`nextCursor` of the page before; 0 = from the first")] = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_LIMIT)] = 100


class Replayed(msgspec.Struct):
    """How many notices are on their way again."""

    replayed: int


class CallbacksView(msgspec.Struct, rename="camel"):
    """What callbacks of the application are made with. Neither the key nor the secret is ever shown again."""

    signed: bool
    own_authorities: Annotated[bool, Meta(description="callbacks must be certified by these, not by the system's")]
    client_certificate: Annotated[str | None, Meta(description="SHA-256 of the certificate, hexadecimal")]
    changed_at: datetime | None


class TlsBody(msgspec.Struct, rename="camel"):
    """PEM texts. What is left out, or null, is not set any more."""

    ca_pem: Annotated[Pem, Meta(description="authorities that certify receivers")] | None = None
    certificate_pem: Annotated[Pem, Meta(description="the client certificate, and its chain")] | None = None
    key_pem: Annotated[Pem, Meta(description="its key, without a password")] | None = None


class SignatureBody(msgspec.Struct):
    """On or off."""

    signed: bool


class SignatureView(msgspec.Struct):
    """`secret` is shown here and never again; null when signatures are off."""

    signed: bool
    secret: str | None


def routes(commands: SubscriptionCommands, queries: SubscriptionQueries) -> list[Route]:
    """The seven operations."""
    api = _Notices(commands, queries)
    return [
        Route(
            "GET",
            SUBSCRIPTIONS,
            api.list_subscriptions,
            Needs.APPLICATION,
            "List subscriptions with how their delivery goes",
            answer=SubscriptionList,
        ),
        Route(
            "POST",
            SUBSCRIPTIONS + "/{subscriptionId}/replay",
            api.replay_subscription,
            Needs.APPLICATION,
            "Deliver a subscription's undelivered notices again",
            answer=Replayed,
            refusals=(Reason.SUBSCRIPTION_UNKNOWN,),
        ),
        Route(
            "GET",
            NOTICES,
            api.list_notices,
            Needs.APPLICATION,
            "List notices that are not delivered, oldest first",
            query=NoticesQuery,
            answer=NoticeList,
            bad_input=lambda field: Reason.BAD_PAGING if field in {"cursor", "limit"} else Reason.BAD_FILTER,
            refusals=(Reason.BAD_FILTER, Reason.BAD_PAGING, Reason.SUBSCRIPTION_UNKNOWN),
        ),
        Route(
            "POST",
            NOTICES + "/{noticeId}/replay",
            api.replay_notice,
            Needs.APPLICATION,
            "Deliver an undelivered notice again",
            status=204,
            description="It has a whole life of attempts again.",
            refusals=(Reason.NOTICE_UNKNOWN,),
        ),
        Route(
            "GET",
            CALLBACKS,
            api.get_callbacks,
            Needs.APPLICATION,
            "Show what callbacks are made with",
            answer=CallbacksView,
        ),
        Route(
            "PUT",
            CALLBACKS + "/tls",
            api.set_tls,
            Needs.APPLICATION,
            "Set authorities and client certificate of HTTPS callbacks",
            body=TlsBody,
            answer=CallbacksView,
            refusals=(Reason.BAD_INPUT,),
        ),
        Route(
            "PUT",
            CALLBACKS + "/signature",
            api.sign,
            Needs.APPLICATION,
            "Switch signatures of notices on and off",
            body=SignatureBody,
            answer=SignatureView,
            description="On again: with a new secret.",
        ),
    ]


class _Notices:
    def __init__(self, commands: SubscriptionCommands, queries: SubscriptionQueries) -> None:
        self._commands = commands
        self._queries = queries

    async def list_subscriptions(self, call: Call) -> SubscriptionList:
        return SubscriptionList([_subscription(health) for health in await self._queries.health(call.actor)])

    async def replay_subscription(self, call: Call) -> Replayed:
        return Replayed(await self._commands.replay_all(call.actor, call.path["subscriptionId"]))

    async def list_notices(self, call: Call) -> NoticeList:
        query: NoticesQuery = call.query
        found = await self._queries.notices(
            call.actor,
            NoticeKey(query.cursor),
            query.limit,
            undelivered=query.state is NoticeState.UNDELIVERED,
            subscription_id=query.subscription_id or None,
        )
        more = found[-1].key if len(found) == query.limit else None
        return NoticeList([_notice(notice) for notice in found], more)

    async def replay_notice(self, call: Call) -> None:
        await self._commands.replay(call.actor, _key(call.path["noticeId"]))

    async def get_callbacks(self, call: Call) -> CallbacksView:
        return _callbacks(await self._queries.security(call.actor))

    async def set_tls(self, call: Call) -> CallbacksView:
        body: TlsBody = call.body
        security = await self._commands.set_tls(
            call.actor, ca_pem=body.ca_pem, certificate_pem=body.certificate_pem, key_pem=body.key_pem
        )
        return _callbacks(security)

    async def sign(self, call: Call) -> SignatureView:
        body: SignatureBody = call.body
        return SignatureView(body.signed, await self._commands.sign(call.actor, signed=body.signed))


def _key(notice_id: str) -> NoticeKey:
    if not (notice_id.isascii() and notice_id.isdigit() and len(notice_id) <= 18):
        raise Refusal(Reason.NOTICE_UNKNOWN, "there is no such undelivered notice", field="noticeId")
    return NoticeKey(int(notice_id))


def _subscription(health: SubscriptionHealth) -> SubscriptionView:
    subscription = health.subscription
    return SubscriptionView(
        subscription.subscription_id,
        subscription.notify_type,
        subscription.callback_url,
        moment(subscription.created_at),
        health.pending,
        health.undelivered,
        _moment(health.last_delivered_at),
        health.last_error,
        _moment(health.last_error_at),
    )


def _notice(notice: Notice) -> NoticeView:
    return NoticeView(
        str(notice.key),
        notice.subscription_id,
        notice.notify_type,
        msgspec.Raw(notice.body.encode()),
        moment(notice.created_at),
        notice.attempts,
        _moment(notice.due_at),
        notice.last_error,
        _moment(notice.given_up_at),
    )


def _callbacks(security: CallbackSecurity) -> CallbacksView:
    return CallbacksView(
        security.signing_secret is not None,
        security.ca_pem is not None,
        _fingerprint(security.certificate_pem),
        _moment(security.changed_at),
    )


def _fingerprint(certificate_pem: str | None) -> str | None:
    """Of the first certificate, which is the client's own."""
    if certificate_pem is None:
        return None
    end = "-----END CERTIFICATE-----"
    begin = certificate_pem.index("-----BEGIN CERTIFICATE-----")
    first = certificate_pem[begin : certificate_pem.index(end, begin) + len(end)]
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()


def _moment(at: Instant | None) -> datetime | None:
    return None if at is None else moment(at)
