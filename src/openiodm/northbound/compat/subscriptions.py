"""Subscriptions: the call for management data, and the five for business data (sections 4.1 to 4.3).

Both speak of the same subscriptions: one of each type and application, which the business calls list and delete too.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Call, Needs, Route
from openiodm.northbound.compat.fields import PageNo, Text, given, integer, paging
from openiodm.notifications.commands import SubscriptionCommands
from openiodm.notifications.model import UPGRADE_TYPES, NotifyType, Subscription, SubscriptionFilter
from openiodm.notifications.queries import SubscriptionQueries

MANAGEMENT = "/iodm/app/sub/v1.1.0/subscribe"
SUBSCRIPTIONS = "/iocm/app/sub/v1.2.0/subscriptions"
PAGE_SIZE, PAGE_SIZE_MOST = 10, 100
ACTS_FOR = ("appId",)
HTTP = "HTTP"  # the only channel there is

PageSize = Annotated[str, Meta(extra_json_schema=integer(1, PAGE_SIZE_MOST, PAGE_SIZE))]
CallbackUrl = Annotated[str, Meta(max_length=1024, description="http(s)://HOST:PORT/PATH, all of them given")]
Channel = Annotated[str, Meta(max_length=32)]


class ManagementBody(msgspec.Struct, rename="camel"):
    """The published page spells `callbackUrl`, the client libraries send `callbackurl`; both are taken."""

    notify_type: Text
    callback_url: str | None = None
    callbackurl: str | None = None


class BusinessBody(msgspec.Struct, rename="camel"):
    """A subscription (0025), of the caller or of an application that has authorized it."""

    notify_type: Text
    callback_url: str | None = None
    app_id: Text | None = None
    channel: Channel | None = None


class ManagementForm(msgspec.Struct, rename="camel"):
    """What a subscription needs; what is wrong with it has codes of its own. `callbackurl` is taken for callbackUrl."""

    notify_type: Annotated[str, Meta(extra_json_schema={"enum": sorted(UPGRADE_TYPES)})]
    callback_url: CallbackUrl


class BusinessForm(BusinessBody, rename="camel", kw_only=True):
    """As `ManagementForm`."""

    notify_type: Annotated[str, Meta(extra_json_schema={"enum": sorted(NotifyType)})]
    callback_url: CallbackUrl
    channel: Annotated[str, Meta(extra_json_schema={"enum": [HTTP]})] | None = None


class OwnerQuery(msgspec.Struct, rename="camel"):
    """`ownerFlag` says whose certificates the callback wants; here it is always those of the application told of."""

    owner_flag: Literal["true", "false", ""] = ""


class AppQuery(msgspec.Struct, rename="camel"):
    """Whose subscriptions: the caller's, or those of an application that has authorized it."""

    app_id: Text = ""


class ListQuery(msgspec.Struct, rename="camel"):
    """Filters of the list."""

    app_id: Text = ""
    notify_type: Text = ""
    page_no: PageNo = ""
    page_size: PageSize = ""


class DeleteQuery(msgspec.Struct, rename="camel"):
    """Filters of a deletion; without any, all subscriptions go."""

    app_id: Text = ""
    notify_type: Text = ""
    callback_url: Annotated[str, Meta(max_length=1024)] = ""
    channel: Channel = ""


class SubscriptionObject(msgspec.Struct, rename="camel"):
    """A subscription."""

    subscription_id: str
    notify_type: str
    callback_url: str


class SubscriptionList(msgspec.Struct, rename="camel"):
    """A page, newest first."""

    total_count: int
    page_no: int
    page_size: int
    subscriptions: list[SubscriptionObject]


def routes(commands: SubscriptionCommands, queries: SubscriptionQueries) -> list[Route]:
    """The six calls."""
    api = _Subscriptions(commands, queries)
    one = SUBSCRIPTIONS + "/{subscriptionId}"
    return [
        Route(
            "POST",
            MANAGEMENT,
            api.subscribe_management,
            Needs.APPLICATION,
            "Subscribe to management data",
            body=ManagementBody,
            described_body=ManagementForm,
            description="Again for the same type: the address is replaced.",
            refusals=(Reason.CALLBACK_BAD,),
        ),
        Route(
            "POST",
            SUBSCRIPTIONS,
            api.subscribe,
            Needs.APPLICATION,
            "Subscribe to business data",
            query=OwnerQuery,
            body=BusinessBody,
            described_body=BusinessForm,
            answer=SubscriptionObject,
            status=201,
            acts_for=ACTS_FOR,
            refusals=(Reason.CALLBACK_BAD, Reason.SUBSCRIPTION_EXISTS),
        ),
        Route(
            "GET",
            SUBSCRIPTIONS,
            api.list_subscriptions,
            Needs.APPLICATION,
            "Subscription list",
            query=ListQuery,
            answer=SubscriptionList,
            acts_for=ACTS_FOR,
        ),
        Route(
            "GET",
            one,
            api.get_subscription,
            Needs.APPLICATION,
            "One subscription",
            query=AppQuery,
            answer=SubscriptionObject,
            acts_for=ACTS_FOR,
            refusals=(Reason.SUBSCRIPTION_UNKNOWN,),
        ),
        Route(
            "DELETE",
            one,
            api.delete_subscription,
            Needs.APPLICATION,
            "Delete a subscription",
            query=AppQuery,
            status=204,
            acts_for=ACTS_FOR,
            refusals=(Reason.SUBSCRIPTION_UNKNOWN,),
        ),
        Route(
            "DELETE",
            SUBSCRIPTIONS,
            api.delete_subscriptions,
            Needs.APPLICATION,
            "Delete subscriptions",
            query=DeleteQuery,
            status=204,
            acts_for=ACTS_FOR,
            refusals=(Reason.SUBSCRIPTIONS_NONE,),
        ),
    ]


class _Subscriptions:
    def __init__(self, commands: SubscriptionCommands, queries: SubscriptionQueries) -> None:
        self._commands = commands
        self._queries = queries

    async def subscribe_management(self, call: Call) -> None:
        """None is answered as 200 with an empty body and a Content-Type, which the contract's SDK insists on."""
        body: ManagementBody = call.body
        notify_type = _notify_type(body.notify_type)
        if notify_type not in UPGRADE_TYPES:
            raise Refusal(Reason.BAD_INPUT, "not a type of management data", field="notifyType")
        callback = given(body.callback_url) or given(body.callbackurl)
        await self._commands.subscribe(call.actor, notify_type, callback, replace_old=True)

    async def subscribe(self, call: Call) -> SubscriptionObject:
        body: BusinessBody = call.body
        if given(body.channel) not in (None, HTTP):
            raise Refusal(Reason.BAD_INPUT, "notices go by HTTP alone", field="channel")
        notify_type = _notify_type(body.notify_type)
        subscription_id = await self._commands.subscribe(call.actor, notify_type, body.callback_url)
        return SubscriptionObject(subscription_id, notify_type.value, body.callback_url or "")

    async def list_subscriptions(self, call: Call) -> SubscriptionList:
        query: ListQuery = call.query
        number, size = paging(query.page_no, query.page_size, default=PAGE_SIZE, most=PAGE_SIZE_MOST)
        where = SubscriptionFilter(given(query.notify_type))
        total, found = await self._queries.page(call.actor, where, number, size)
        return SubscriptionList(total, number, size, [_object(s) for s in found])

    async def get_subscription(self, call: Call) -> SubscriptionObject:
        return _object(await self._queries.one(call.actor, call.path["subscriptionId"]))

    async def delete_subscription(self, call: Call) -> Response:
        await self._commands.unsubscribe(call.actor, call.path["subscriptionId"])
        return Response(status_code=204)

    async def delete_subscriptions(self, call: Call) -> Response:
        query: DeleteQuery = call.query
        if given(query.channel) not in (None, HTTP):
            raise Refusal(Reason.SUBSCRIPTIONS_NONE, "notices go by HTTP alone", field="channel")
        where = SubscriptionFilter(given(query.notify_type), given(query.callback_url))
        await self._commands.unsubscribe_many(call.actor, where)
        return Response(status_code=204)


def _notify_type(text: str) -> NotifyType:
    try:
        return NotifyType(text)
    except ValueError as error:
        raise Refusal(Reason.BAD_INPUT, "there is no such type", field="notifyType") from error


def _object(subscription: Subscription) -> SubscriptionObject:
    return SubscriptionObject(subscription.subscription_id, subscription.notify_type.value, subscription.callback_url)
