"""What applications look at: their subscriptions, and the notices that are not delivered."""

from collections.abc import Sequence

from openiodm.access.model import Actor
from openiodm.errors import Reason, Refusal
from openiodm.notifications.model import (
    CallbackSecurity,
    Notice,
    NoticeKey,
    Subscription,
    SubscriptionFilter,
    SubscriptionHealth,
)
from openiodm.notifications.ports import SubscriptionReads


class SubscriptionQueries:
    """The caller's own."""

    def __init__(self, reads: SubscriptionReads) -> None:
        self._reads = reads

    async def one(self, actor: Actor, subscription_id: str) -> Subscription:
        """One subscription.

        Raises:
            Refusal: SUBSCRIPTION_UNKNOWN.
        """
        found = await self._reads.one(actor.application, subscription_id)
        if found is None:
            raise Refusal(Reason.SUBSCRIPTION_UNKNOWN, "there is no such subscription", field="subscriptionId")
        return found

    async def page(
        self, actor: Actor, where: SubscriptionFilter, number: int, size: int
    ) -> tuple[int, Sequence[Subscription]]:
        """How many match, and one page (from 0), newest first."""
        return await self._reads.page(actor.application, where, number, size)

    async def health(self, actor: Actor) -> Sequence[SubscriptionHealth]:
        """All, newest first, with how their delivery goes."""
        return await self._reads.health(actor.application)

    async def notices(
        self, actor: Actor, after: NoticeKey, limit: int, *, undelivered: bool, subscription_id: str | None
    ) -> Sequence[Notice]:
        """Undelivered or pending notices beyond `after`, oldest first.

        Raises:
            Refusal: SUBSCRIPTION_UNKNOWN.
        """
        if subscription_id is not None:
            await self.one(actor, subscription_id)
        return await self._reads.notices(
            actor.application, after, limit, undelivered=undelivered, subscription_id=subscription_id
        )

    async def security(self, actor: Actor) -> CallbackSecurity:
        """What is set for the caller's callbacks; what leaves the server is the edge's care."""
        return await self._reads.security(actor.application)
