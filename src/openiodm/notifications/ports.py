"""What this room needs of storage: subscriptions within a transaction, reads beside it, the outbox for delivery."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from openiodm.access.model import ApplicationKey
from openiodm.access.ports import Audited
from openiodm.clock import Instant
from openiodm.notifications.model import (
    CallbackSecurity,
    Notice,
    NoticeKey,
    NotifyType,
    ReceiverKey,
    Subscription,
    SubscriptionFilter,
    SubscriptionHealth,
    SubscriptionKey,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NewSubscription:
    """A subscription to be inserted."""

    subscription_id: str
    application: ApplicationKey
    notify_type: NotifyType
    callback_url: str
    receiver: str


class SubscriptionRows(Protocol):
    """Subscriptions within one transaction."""

    async def insert(self, new: NewSubscription, now: Instant) -> bool:
        """False when the application has one of that type."""
        ...

    async def redirect(self, new: NewSubscription) -> None:
        """Gives the application's subscription of that type another address; what is pending goes there too."""
        ...

    async def delete(self, application: ApplicationKey, subscription_id: str, now: Instant) -> bool:
        """From this commit on nothing is written for it, and nothing delivered. False when there is none."""
        ...

    async def delete_many(self, application: ApplicationKey, where: SubscriptionFilter, now: Instant) -> int:
        """How many there were."""
        ...

    async def sweep(self, after: SubscriptionKey, limit: int) -> tuple[int, SubscriptionKey]:
        """Removes up to `limit` notices of some deleted subscriptions beyond `after`.

        How many there were, and beyond which to look next; 0, which is before all, when none is left.
        """
        ...

    async def prune(self, before: Instant, limit: int) -> int:
        """Removes up to `limit` notices given up before that moment, of each subscription the first; how many."""
        ...

    async def forget_receivers(self, after: ReceiverKey, now: Instant) -> ReceiverKey:
        """Removes some receivers beyond `after`: those that nobody holds and no subscription names, deleted or not.

        Answers beyond which to look next; 0 when none is left.
        """
        ...

    async def replay(self, application: ApplicationKey, notice: NoticeKey, now: Instant) -> bool:
        """Makes an undelivered notice pending again, as if it were new. False when it is not undelivered."""
        ...

    async def replay_many(
        self, application: ApplicationKey, subscription_id: str, after: NoticeKey, limit: int, now: Instant
    ) -> Sequence[NoticeKey]:
        """The same for up to `limit` notices of a subscription beyond `after`; which, in order."""
        ...

    async def set_security(self, application: ApplicationKey, security: CallbackSecurity) -> None:
        """In place of what was set before."""
        ...

    async def lock_security(self, application: ApplicationKey) -> CallbackSecurity:
        """What is set; nobody else changes it before this transaction ends."""
        ...


class SubscriptionReads(Protocol):
    """Queries; every list is bounded."""

    async def one(self, application: ApplicationKey, subscription_id: str) -> Subscription | None:
        """By public id."""
        ...

    async def page(
        self, application: ApplicationKey, where: SubscriptionFilter, number: int, size: int
    ) -> tuple[int, Sequence[Subscription]]:
        """How many match, and one page, newest first."""
        ...

    async def health(self, application: ApplicationKey) -> Sequence[SubscriptionHealth]:
        """All subscriptions with their counts, newest first; on a snapshot, since counting reads many rows."""
        ...

    async def notices(
        self,
        application: ApplicationKey,
        after: NoticeKey,
        limit: int,
        *,
        undelivered: bool,
        subscription_id: str | None,
    ) -> Sequence[Notice]:
        """By key, beyond `after`: undelivered ones, or pending ones."""
        ...

    async def security(self, application: ApplicationKey) -> CallbackSecurity:
        """What an application set for its callbacks."""
        ...


class NoticesWork(Audited, Protocol):
    """One transaction, as far as this room uses it."""

    @property
    def subscriptions(self) -> SubscriptionRows:
        """Subscriptions."""
        ...

    @property
    def outbox(self) -> "OutboxRows":
        """Notices on their way."""
        ...


class NoticesWriter(Protocol):
    """The one writer."""

    async def run(self, command: Callable[[Any], Awaitable[T]]) -> T:
        """The command's result, once it is durable."""
        ...


# -- delivery


@dataclass(frozen=True, slots=True)
class Receiver:
    """Whom this server delivers to for now."""

    key: ReceiverKey
    name: str
    failing_since: Instant | None


@dataclass(frozen=True, slots=True)
class Pending:
    """A notice whose turn it is, with where it goes."""

    key: NoticeKey
    subscription: SubscriptionKey
    subscription_id: str
    application: ApplicationKey
    device: int
    callback_url: str
    body: str
    attempts: int
    first_tried_at: Instant | None
    security_changed_at: Instant | None  # None: the application has set nothing for its callbacks


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt that failed: the next one is due then, or there is none (None)."""

    key: NoticeKey
    attempts: int
    first_tried_at: Instant
    due_at: Instant | None
    error: str


@dataclass(frozen=True, slots=True)
class Health:
    """What a batch of attempts said of one subscription."""

    subscription: SubscriptionKey
    delivered_at: Instant | None
    error: str | None
    error_at: Instant | None


class OutboxRows(Protocol):
    """The outbox within one transaction. Who delivers asks `holds` first: a server that pauses may lose its lease."""

    async def lease(
        self, owner: str, now: Instant, until: Instant, held: Sequence[ReceiverKey], wanted: Sequence[ReceiverKey]
    ) -> Sequence[Receiver]:
        """Lengthens the leases of those `held` that nobody else has had since, and takes those `wanted` that are free.

        Answers those of both that `owner` holds then.
        """
        ...

    async def holds(self, owner: str, receiver: ReceiverKey) -> bool:
        """Has nobody else taken it? Nobody does until the transaction ends."""
        ...

    async def release(self, owner: str | None, receivers: Sequence[ReceiverKey] | None = None) -> None:
        """Gives leases back: those of `owner` (None: everybody's), all of them or these."""
        ...

    async def delivered(self, notices: Sequence[NoticeKey]) -> None:
        """They are done and go."""
        ...

    async def failed(self, notices: Sequence[Failed], now: Instant) -> None:
        """Keeps what is known of them: when they are due again, or that they were given up."""
        ...

    async def note(self, receiver: ReceiverKey, failing_since: Instant | None, health: Sequence[Health]) -> None:
        """Keeps how the receiver and its subscriptions are doing."""
        ...

    async def give_up(self, receiver: ReceiverKey, before: Instant, error: str, now: Instant, limit: int) -> int:
        """Gives up to `limit` notices up that are pending since before that moment, of each subscription the first."""
        ...


class OutboxReads(Protocol):
    """Reads of delivery, each a bounded range."""

    async def wanting(self, now: Instant, limit: int) -> Sequence[ReceiverKey]:
        """Receivers that nobody delivers to although something is pending for them."""
        ...

    async def due(self, receiver: ReceiverKey, now: Instant, limit: int) -> Sequence[Pending]:
        """The oldest notices of a receiver that are not held back, `limit` or more where there are so many.

        Held back is a notice that waits for its next attempt, and every later one of its address and device.
        """
        ...

    async def next_due(self, receiver: ReceiverKey) -> Instant | None:
        """When the first of those that wait is due; None when none waits."""
        ...

    async def security(self, application: ApplicationKey) -> CallbackSecurity:
        """What an application set for its callbacks."""
        ...
