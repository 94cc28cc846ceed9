"""What applications ask of this room: subscribe, unsubscribe, replay, and what their callbacks need."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from openiodm.access.model import Actor
from openiodm.clock import DAY, Clock, Instant, random_id, random_secret
from openiodm.errors import Reason, Refusal
from openiodm.notifications.callbacks import Guard, parse_callback
from openiodm.notifications.model import (
    CallbackSecurity,
    NoticeKey,
    NotifyType,
    ReceiverKey,
    SubscriptionFilter,
    SubscriptionKey,
)
from openiodm.notifications.ports import NewSubscription, NoticesWork, NoticesWriter
from openiodm.notifications.queries import SubscriptionQueries
from openiodm.notifications.tls import check_security

CHUNK = 1000  # notices that one transaction removes or replays


class SubscriptionCommands:
    """Changes of subscriptions and of notices that were given up. Each command is one transaction."""

    def __init__(self, writer: NoticesWriter, queries: SubscriptionQueries, clock: Clock, guard: Guard) -> None:
        self._writer = writer
        self._queries = queries
        self._clock = clock
        self._guard = guard
        # Up to which deleted subscriptions and receivers were looked at: a few, the next ones every time.
        self._swept, self._kept = SubscriptionKey(0), ReceiverKey(0)

    async def subscribe(
        self, actor: Actor, notify_type: NotifyType, callback_url: str | None, *, replace_old: bool = False
    ) -> str:
        """A subscription, and its id; with `replace_old` the one of that type gets the new address instead.

        Raises:
            Refusal: CALLBACK_BAD, SUBSCRIPTION_EXISTS.
        """
        callback = parse_callback(callback_url)
        self._guard.check(callback)
        new = NewSubscription(random_id(), actor.application, notify_type, callback.url, callback.receiver)

        async def subscribe(work: NoticesWork) -> None:
            now = self._clock.now()
            operation = "subscription.create"
            if not await work.subscriptions.insert(new, now):
                if not replace_old:
                    raise Refusal(Reason.SUBSCRIPTION_EXISTS, f"there is one of {notify_type}", field="notifyType")
                await work.subscriptions.redirect(new)
                operation = "subscription.redirect"
            await work.audit.record(actor, operation, notify_type.value, now)

        await self._writer.run(subscribe)
        return new.subscription_id

    async def unsubscribe(self, actor: Actor, subscription_id: str) -> None:
        """What was not delivered for it ends with it.

        Raises:
            Refusal: SUBSCRIPTION_UNKNOWN.
        """

        async def unsubscribe(work: NoticesWork) -> None:
            now = self._clock.now()
            if not await work.subscriptions.delete(actor.application, subscription_id, now):
                raise _unknown()
            await work.audit.record(actor, "subscription.delete", subscription_id, now)

        await self._writer.run(unsubscribe)

    async def unsubscribe_many(self, actor: Actor, where: SubscriptionFilter) -> int:
        """How many it were.

        Raises:
            Refusal: SUBSCRIPTIONS_NONE; nothing matches.
        """

        async def unsubscribe(work: NoticesWork) -> int:
            now = self._clock.now()
            count = await work.subscriptions.delete_many(actor.application, where, now)
            if not count:
                raise Refusal(Reason.SUBSCRIPTIONS_NONE, "no subscription is left to delete")
            await work.audit.record(actor, "subscription.delete-many", where.notify_type or actor.app_id, now)
            return count

        return await self._writer.run(unsubscribe)

    async def replay(self, actor: Actor, notice: NoticeKey) -> None:
        """Delivers an undelivered notice anew, with a whole life of attempts.

        Raises:
            Refusal: NOTICE_UNKNOWN; it is not there, not the caller's, or not given up.
        """

        async def replay(work: NoticesWork) -> None:
            now = self._clock.now()
            if not await work.subscriptions.replay(actor.application, notice, now):
                raise Refusal(Reason.NOTICE_UNKNOWN, "there is no such undelivered notice", field="noticeId")
            await work.audit.record(actor, "notice.replay", str(notice), now)

        await self._writer.run(replay)

    async def replay_all(self, actor: Actor, subscription_id: str) -> int:
        """The same for all undelivered notices of a subscription, in chunks; how many it were.

        Raises:
            Refusal: SUBSCRIPTION_UNKNOWN.
        """
        await self._queries.one(actor, subscription_id)
        after, count = NoticeKey(0), 0
        while True:

            async def replay(work: NoticesWork, after: NoticeKey = after) -> Sequence[NoticeKey]:
                now = self._clock.now()
                found = await work.subscriptions.replay_many(actor.application, subscription_id, after, CHUNK, now)
                if found:
                    await work.audit.record(actor, "subscription.replay", subscription_id, now)
                return found

            chunk = await self._writer.run(replay)
            count += len(chunk)
            if len(chunk) < CHUNK:
                return count
            after = chunk[-1]

    async def set_tls(
        self, actor: Actor, *, ca_pem: str | None, certificate_pem: str | None, key_pem: str | None
    ) -> CallbackSecurity:
        """Whom HTTPS callbacks must be signed by (None: the system's authorities), and who we are to them.

        Raises:
            Refusal: BAD_INPUT with the field; it is no PEM, or the key is not the certificate's.
        """
        await asyncio.to_thread(check_security, ca_pem, certificate_pem, key_pem)

        async def change(work: NoticesWork) -> CallbackSecurity:
            old = await work.subscriptions.lock_security(actor.application)
            new = replace(
                old, ca_pem=ca_pem, certificate_pem=certificate_pem, key_pem=key_pem, changed_at=self._changed(old)
            )
            await work.subscriptions.set_security(actor.application, new)
            await work.audit.record(actor, "application.set-callback-tls", actor.app_id, self._clock.now())
            return new

        return await self._writer.run(change)

    async def sign(self, actor: Actor, *, signed: bool) -> str | None:
        """Switches signatures on, with a new secret that this answer alone shows; or off."""
        secret = random_secret() if signed else None

        async def change(work: NoticesWork) -> None:
            old = await work.subscriptions.lock_security(actor.application)
            new = replace(old, signing_secret=secret, changed_at=self._changed(old))
            await work.subscriptions.set_security(actor.application, new)
            await work.audit.record(actor, "application.set-callback-signature", actor.app_id, self._clock.now())

        await self._writer.run(change)
        return secret

    def _changed(self, old: CallbackSecurity) -> Instant:
        """Rises with every change: what delivery remembers goes by it."""
        now = self._clock.now()
        return now if old.changed_at is None else Instant(max(now, old.changed_at + 1))

    async def sweep(self, keep_days: int) -> int:
        """Removes notices of deleted subscriptions, and undelivered ones older than that: a chunk of each; how many.

        And receivers that no subscription leads to any more.
        """
        now = self._clock.now()
        before = Instant(now - keep_days * DAY)

        async def sweep(work: NoticesWork) -> tuple[int, SubscriptionKey, ReceiverKey]:
            swept, after = await work.subscriptions.sweep(self._swept, CHUNK)
            pruned = await work.subscriptions.prune(before, CHUNK)
            return swept + pruned, after, await work.subscriptions.forget_receivers(self._kept, now)

        removed, self._swept, self._kept = await self._writer.run(sweep)
        return removed


def _unknown() -> Refusal:
    return Refusal(Reason.SUBSCRIPTION_UNKNOWN, "there is no such subscription", field="subscriptionId")
