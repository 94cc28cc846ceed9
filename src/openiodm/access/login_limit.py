"""How many wrong secrets are tried a minute: for one application from anywhere, and from one address for anyone.

Only wrong secrets count: whoever knows one may log in as often as he likes. Once an application has logged in from an
address, the two have a count of their own there, so strangers who guess cannot lock it out, nor can a neighbour behind
the same proxy. Guesses that are sent all at once are counted when they have been looked at: a debt to be waited for.

`MemoryCounts` is for one server. Several servers on one database share rows: `storage.login_counts.SharedCounts`.
"""

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from openiodm.access.flow import PERIOD_MS
from openiodm.access.ports import LoginCounts, LoginKey, LoginStanding
from openiodm.clock import Clock, Instant
from openiodm.errors import Reason, Refusal

MOST_REMEMBERED = 10_000
"""Pairs that have logged in, and as many counts, in memory."""
MOST_AT_ONCE = 100
"""Attempts under way in one server that share a count: the largest debt."""
KEY_CHARS = 64
"""Of an appId that is counted; ours have 32."""
IPV6_PREFIX = 64
"""One subscriber has all the addresses within it."""

_NOTHING = LoginStanding(known=False, owed=0)


class LoginLimit:
    """`per_minute` wrong secrets; 0 turns it off. `counts` has the same number."""

    def __init__(self, clock: Clock, per_minute: int, counts: LoginCounts | None = None) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._counts = counts or MemoryCounts(per_minute)
        self._under_way: Counter[LoginKey] = Counter()

    @asynccontextmanager
    async def attempt(self, app_id: str, address: str) -> AsyncIterator[None]:
        """Around the look at a secret. A wrong one is counted before it is answered.

        Raises:
            Refusal: THROTTLED, before the look.
        """
        if self._per_minute == 0:
            yield
            return
        pair = (app_id[:KEY_CHARS], network_of(address))
        anyone = [("", pair[1]), (pair[0], "")]
        standings = await self._counts.look([pair, *anyone], self._clock.now())
        own = standings.get(pair, _NOTHING)
        keys = [pair] if own.known else anyone
        if any(self._is_over(key, standings.get(key, _NOTHING).owed) for key in keys):
            raise Refusal(Reason.THROTTLED, f"more than {self._per_minute} wrong secrets a minute")
        self._under_way.update(keys)
        try:
            yield
        except Refusal as refusal:
            if refusal.reason is Reason.CREDENTIALS_WRONG:
                await self._counts.add(keys, self._clock.now())
            raise
        finally:
            self._under_way.subtract(keys)
            for key in keys:
                if not self._under_way[key]:
                    del self._under_way[key]
        if not own.known or own.fades:
            await self._counts.know(pair, self._clock.now())

    def _is_over(self, key: LoginKey, owed: int) -> bool:
        return owed > (self._per_minute - 1) * PERIOD_MS or self._under_way[key] >= MOST_AT_ONCE

    async def forget_old(self) -> None:
        """What no longer counts goes."""
        await self._counts.forget_old(self._clock.now())


class MemoryCounts:
    """See `access.ports.LoginCounts`. What is remembered is bounded; what was used longest ago goes first."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self.known: OrderedDict[LoginKey, None] = OrderedDict()
        # As in `MemoryFlow`: the moment at which a count will be back at zero, in 1/N ms; and when it was counted last,
        # since a debt may lie any time ahead.
        self.clear_at: OrderedDict[LoginKey, tuple[int, Instant]] = OrderedDict()

    async def look(self, keys: Sequence[LoginKey], now: Instant) -> Mapping[LoginKey, LoginStanding]:
        """What was used now goes last."""
        found = {}
        for key in keys:
            if known := key in self.known:
                self.known.move_to_end(key)
            found[key] = LoginStanding(known, self._owed(key, now))
        return found

    async def add(self, keys: Sequence[LoginKey], now: Instant) -> None:
        """One more for each."""
        for key in keys:
            self.clear_at[key] = now * self._per_minute + self._owed(key, now) + PERIOD_MS, now
            self.clear_at.move_to_end(key)
            if len(self.clear_at) > MOST_REMEMBERED:
                self.clear_at.popitem(last=False)

    def _owed(self, key: LoginKey, now: Instant) -> int:
        clear_at, counted_at = self.clear_at.get(key, (0, now))
        return max(0, clear_at - now * self._per_minute) if counted_at <= now + PERIOD_MS else 0

    async def know(self, pair: LoginKey, now: Instant) -> None:
        """As long as there is room."""
        self.known[pair] = None
        if len(self.known) > MOST_REMEMBERED:
            self.known.popitem(last=False)

    async def forget_old(self, now: Instant) -> None:
        """It is bounded."""


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What an address is counted as: itself, or the network of an IPv6 subscriber. Another text is cut.

    An IPv4 address within IPv6 (RFC 4291 section 2.5.5.2) is itself: all of them are one network of that size.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:KEY_CHARS]
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ip_network((parsed.packed, IPV6_PREFIX), strict=False))
    return str(parsed)
