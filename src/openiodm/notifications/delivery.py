"""Delivers the outbox: at least once, in order per address and device, each receiver at its own pace.

A server leases receivers (a callback's host and port), and who holds the lease alone delivers to it, so that order and
the bound per receiver hold over all servers. A `_Lane` serves one receiver: it reads what is due, sends the first
notice of several devices at once, and writes what became of them in batches through the writer. A server that is killed
loses its leases after a while, and whoever takes them finds every notice that was not seen to be delivered.

An attempt ends before its lease does (`_Lane.may_send`), so a server that was paused never begins one beside its
successor; and what it has to write down of those before is fenced (`OutboxRows.holds`).
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from openiodm.clock import SECOND, Clock, Instant, Millis
from openiodm.notifications.model import DeliveryRules, NoticeKey, ReceiverKey, SubscriptionKey
from openiodm.notifications.pace import Pace
from openiodm.notifications.ports import Failed, Health, NoticesWork, NoticesWriter, OutboxReads, Pending, Receiver
from openiodm.notifications.window import Window, next_attempt

POLL_S = 0.5  # how late a notice may be that another server wrote
SETTLE_S = 0.02  # a transaction that says it has written a notice is about to commit
LOOK_EVERY_S = 0.1  # at most this often, while notices are written all the time
FLUSH_S = 0.1  # what was delivered is written down this often at most
LEASE = Millis(6 * SECOND)  # beyond what an attempt may take
RENEW = Millis(2 * SECOND)
RECEIVERS_AT_ONCE = 256  # that one look takes leases for
READ = 512  # notices that one look reads
LOW = 128  # with fewer in memory, it looks again
GIVE_UP_CHUNK = 1000
GIVE_UP_EVERY = Millis(5 * SECOND)
CLOSE_WITHIN_S = 2.0  # an attempt that takes longer is made again by whoever comes next

log = structlog.get_logger(__name__)

Row = tuple[str, int]  # an address and a device: its notices stand in a row, whichever subscription made them


class Sender(Protocol):
    """Makes one attempt."""

    async def send(self, notice: Pending) -> str | None:
        """None, or what went wrong. Takes no longer than `DeliveryRules.timeout`."""
        ...


class Slots:
    """The bound over all receivers. A receiver that fails has to share a quarter of it with its like."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._used = 0
        self._healthy = asyncio.Semaphore(count)
        self._failing = asyncio.Semaphore(max(1, count // 4))

    @asynccontextmanager
    async def one(self, *, failing: bool) -> AsyncIterator[None]:
        """Waits for a slot and holds it."""
        async with self._failing if failing else self._healthy:
            self._used += 1
            try:
                yield
            finally:
                self._used -= 1

    @property
    def crowded(self) -> bool:
        """Are so many taken that each receiver must do with one? Slow ones would take them all."""
        return self._used > self._count // 2


class Deliverer:
    """One server's part of the delivery."""

    def __init__(
        self,
        owner: str,
        writer: NoticesWriter,
        reads: OutboxReads,
        sender: Sender,
        clock: Clock,
        rules: DeliveryRules,
        *,
        wake: asyncio.Event,
        alone: bool,
    ) -> None:
        self._owner = owner
        self._writer = writer
        self._reads = reads
        self._sender = sender
        self._clock = clock
        self._rules = rules
        self._alone = alone
        self._pace = Pace()
        self._slots = Slots(rules.at_once)
        self._lanes: dict[ReceiverKey, _Lane] = {}
        self._ended: list[ReceiverKey] = []
        self._wake = wake  # set by whoever writes a notice
        self.attempted: Callable[[bool, float], None] = lambda _delivered, _seconds: None
        """Hears of every attempt: was it delivered, and how long did it take?"""
        self._closing = False
        self._renew_at = Instant(0)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins; everything belongs to this object and ends in `close`."""
        if self._alone:  # leases that are there belong to nobody alive
            await self._release(None, None)
        self._task = asyncio.create_task(self._run(), name="deliverer")

    @property
    def receivers(self) -> int:
        """How many this server delivers to."""
        return len(self._lanes)

    def wake(self) -> None:
        """Looks at once, and not when the next poll is due."""
        self._wake.set()

    async def close(self) -> None:
        """Lets attempts under way end, writes down what became of them, gives the leases back."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
        for lane in self._lanes.values():
            lane.stop()
        await asyncio.gather(*(lane.ended() for lane in self._lanes.values()))
        self._pace.close()
        try:
            await self._release(self._owner, None)
        except Exception:
            log.exception("receivers_not_released")  # the leases will run out

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closing:
            looked = loop.time()
            try:
                await self._look()
            except Exception:
                log.exception("delivery_failed")
            try:
                await asyncio.wait_for(self._wake.wait(), POLL_S)
                await asyncio.sleep(max(SETTLE_S, looked + LOOK_EVERY_S - loop.time()))
            except TimeoutError:
                continue
            finally:
                self._wake.clear()

    async def _look(self) -> None:
        """Takes receivers that want something, lengthens the leases that are held, gives back those that are done."""
        ended, self._ended = self._ended, []
        for key in ended:
            del self._lanes[key]
        if ended:
            await self._release(self._owner, ended)
        now = self._clock.now()  # what is leased now lasts from now on, however long that takes
        wanting = await self._reads.wanting(now, RECEIVERS_AT_ONCE)
        held = list(self._lanes) if now >= self._renew_at else []
        await self._lease(held, [k for k in wanting if k not in self._lanes])
        if held or not self._lanes:
            self._renew_at = Instant(now + RENEW)
        for lane in self._lanes.values():
            lane.wake()
        self._pace.needed(bool(self._lanes))

    async def _lease(self, held: Sequence[ReceiverKey], wanted: Sequence[ReceiverKey]) -> None:
        if not held and not wanted:
            return
        now = self._clock.now()
        until = Instant(now + LEASE + self._rules.timeout)

        async def lease(work: NoticesWork) -> Sequence[Receiver]:
            return await work.outbox.lease(self._owner, now, until, held, wanted)

        leased = {r.key: r for r in await self._writer.run(lease)}
        for key in held:
            if key in leased:
                self._lanes[key].lease_until = until
            else:
                self._lanes[key].lost()
        for key, receiver in leased.items():
            if key not in self._lanes:
                self._lanes[key] = _Lane(self, receiver, until)

    async def _release(self, owner: str | None, receivers: Sequence[ReceiverKey] | None) -> None:
        async def release(work: NoticesWork) -> None:
            await work.outbox.release(owner, receivers)

        await self._writer.run(release)


@dataclass(slots=True)
class _Outcomes:
    """What a lane has not written down yet."""

    delivered: list[NoticeKey]
    failed: list[Failed]
    health: dict[SubscriptionKey, Health]

    def __bool__(self) -> bool:
        return bool(self.delivered or self.failed)


class _Lane:
    """Delivery to one receiver, while this server holds its lease."""

    def __init__(self, deliverer: Deliverer, receiver: Receiver, lease_until: Instant) -> None:
        self._d = deliverer
        self._key = receiver.key
        self.name = receiver.name
        self.lease_until = lease_until
        self._window = Window(deliverer._rules.per_receiver, receiver.failing_since)
        self._error = ""
        self._rows: dict[Row, deque[Pending]] = {}
        self._ready: deque[Row] = deque()  # whose first notice may be sent
        self._known: set[NoticeKey] = set()  # in memory, or in `_outcomes`
        self._blocked: set[Row] = set()  # whose failure is not written down yet
        self._outcomes = _Outcomes([], [], {})
        self._workers: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self._give_up_at = Instant(0)
        self._task = asyncio.create_task(self._run(), name=f"deliver:{receiver.name}")

    def wake(self) -> None:
        """There may be something new."""
        self._wake.set()

    def stop(self) -> None:
        """Begins nothing more."""
        self._stopping = True
        self._wake.set()

    def lost(self) -> None:
        """Another server has the receiver, or had it: what this one knows of it is old."""
        log.warning("receiver_lost", receiver=self.name)
        self.stop()

    async def ended(self) -> None:
        """Waits for the end."""
        await self._task

    def may_send(self) -> bool:
        """Would an attempt end before the lease does?"""
        return not self._stopping and self._d._clock.now() + self._d._rules.timeout < self.lease_until

    async def _run(self) -> None:
        try:
            while not self._stopping:
                self._wake.clear()
                if not await self._step():
                    break
        except Exception:
            log.exception("receiver_failed", receiver=self.name)
        finally:
            await self._end()

    async def _end(self) -> None:
        self._stopping = True
        if self._workers:
            _, late = await asyncio.wait(self._workers, timeout=CLOSE_WITHIN_S)
            for worker in late:
                worker.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        try:
            await self._flush()
        except Exception:
            log.exception("deliveries_not_written", receiver=self.name)  # they will be delivered again
        self._d._ended.append(self._key)

    async def _step(self) -> bool:
        """Writes down, reads, sends, waits. False: nothing is left to deliver."""
        await self._flush()
        now = self._d._clock.now()
        paused = self._window.paused(now)
        if paused and not self._workers and not self._outcomes:
            self._forget()  # by the end of the pause a subscription may be gone, or have another address
        await self._give_up(now)
        if len(self._known) <= LOW and not paused:
            await self._read(now)
        self._send(now)
        waits = POLL_S
        if not self._known and not paused:
            due = await self._d._reads.next_due(self._key)
            if due is None:
                return False
        elif self._workers:
            waits = FLUSH_S
        try:
            await asyncio.wait_for(self._wake.wait(), waits)
            if self._workers:
                await asyncio.sleep(FLUSH_S)  # many at once
        except TimeoutError:
            pass
        return True

    async def _read(self, now: Instant) -> None:
        for notice in await self._d._reads.due(self._key, now, READ):
            row = (notice.callback_url, notice.device)
            if notice.key in self._known or row in self._blocked:
                continue
            self._known.add(notice.key)
            queue = self._rows.get(row)
            if queue is None:
                self._rows[row] = deque([notice])
                self._ready.append(row)
            else:
                queue.append(notice)

    def _send(self, now: Instant) -> None:
        """Starts as many workers as the window has room for."""
        if self._window.paused(now) or not self.may_send():
            return
        size = 1 if self._d._slots.crowded else self._window.size
        for _ in range(min(size - len(self._workers), len(self._ready))):
            worker = asyncio.create_task(self._work(), name=f"deliver:{self.name}:worker")
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        """Sends one after another, as long as the window is open for it."""
        d = self._d
        while self._ready and self.may_send():
            row = self._ready.popleft()
            notice = self._rows[row][0]
            await d._pace.turn()
            async with d._slots.one(failing=self._window.failing_since is not None):
                if not self.may_send():
                    self._ready.appendleft(row)
                    break
                began = time.perf_counter()
                error = await self._attempt(notice)
                d.attempted(error is None, time.perf_counter() - began)
            now = d._clock.now()
            if error is None:
                self._delivered(row, notice, now)
            else:
                self._failed(row, notice, error, now)
            if self._window.paused(now) or len(self._workers) > (1 if d._slots.crowded else self._window.size):
                break
            self._send(now)
        self._wake.set()

    async def _attempt(self, notice: Pending) -> str | None:
        """See `Sender.send`. A fault of ours, such as a database that is away, is a failure of this attempt alone."""
        try:
            return await self._d._sender.send(notice)
        except Exception:
            log.exception("attempt_failed", receiver=self.name, notice=notice.key)
            return "the server could not make the attempt"

    def _delivered(self, row: Row, notice: Pending, now: Instant) -> None:
        self._window.succeeded()
        self._outcomes.delivered.append(notice.key)
        old = self._outcomes.health.get(notice.subscription)
        error, at = (old.error, old.error_at) if old else (None, None)
        self._outcomes.health[notice.subscription] = Health(notice.subscription, now, error, at)
        self._next(row)

    def _failed(self, row: Row, notice: Pending, error: str, now: Instant) -> None:
        self._window.failed(now)
        self._error = error
        first = notice.first_tried_at if notice.first_tried_at is not None else now
        attempts = notice.attempts + 1
        due = next_attempt(attempts, first, now, self._d._rules.life)
        self._outcomes.failed.append(Failed(notice.key, attempts, first, due, error))
        old = self._outcomes.health.get(notice.subscription)
        self._outcomes.health[notice.subscription] = Health(
            notice.subscription, old.delivered_at if old else None, error, now
        )
        log.info("notice_failed", receiver=self.name, notice=notice.key, attempts=attempts, error=error)
        if due is None:
            log.warning("notice_given_up", receiver=self.name, notice=notice.key, error=error)
            self._next(row)
            return
        self._blocked.add(row)
        for held_back in self._rows.pop(row):
            if held_back is not notice:
                self._known.discard(held_back.key)

    def _next(self, row: Row) -> None:
        """The first notice of a row is done with."""
        queue = self._rows[row]
        queue.popleft()
        if queue:
            self._ready.append(row)
        else:
            del self._rows[row]

    async def _flush(self) -> None:
        done, self._outcomes = self._outcomes, _Outcomes([], [], {})
        if not done:
            return
        blocked = set(self._blocked)
        failing_since, now = self._window.failing_since, self._d._clock.now()

        async def write(work: NoticesWork) -> bool:
            if not await work.outbox.holds(self._d._owner, self._key):
                return False
            await work.outbox.delivered(done.delivered)
            await work.outbox.failed(done.failed, now)
            await work.outbox.note(self._key, failing_since, list(done.health.values()))
            return True

        if not await self._d._writer.run(write):  # whoever has the lease delivers them again
            self.lost()
            return
        self._known.difference_update(done.delivered)
        self._known.difference_update(f.key for f in done.failed)
        self._blocked -= blocked

    async def _give_up(self, now: Instant) -> None:
        """What has waited for a whole life, while nothing could be delivered for as long, waits no more."""
        since, before = self._window.failing_since, Instant(now - self._d._rules.life)
        if since is None or since > before or now < self._give_up_at or self._workers or self._outcomes:
            return
        error = self._error or "the receiver has not answered for as long as notices live"

        async def write(work: NoticesWork) -> int | None:
            if not await work.outbox.holds(self._d._owner, self._key):
                return None
            return await work.outbox.give_up(self._key, before, error, now, GIVE_UP_CHUNK)

        given_up = await self._d._writer.run(write)
        if given_up is None:
            self.lost()
            return
        if given_up < GIVE_UP_CHUNK:
            self._give_up_at = Instant(now + GIVE_UP_EVERY)
        if given_up:
            log.warning("notices_given_up", receiver=self.name, count=given_up, error=error)
            self._forget()
            self._wake.set()  # there may be more

    def _forget(self) -> None:
        """What is in memory may be given up now: it is read again."""
        self._rows.clear()
        self._ready.clear()
        self._known.clear()
