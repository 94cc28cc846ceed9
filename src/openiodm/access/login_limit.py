"""How many wrong secrets are tried a minute: for one application from anywhere, and from one address for anyone.

Only wrong secrets count: whoever knows one may log in as often as he likes. Once an application has logged in from an
address, the two have a count of their own there, so strangers who guess cannot lock it out, nor can a neighbour behind
the same proxy. Guesses that are sent all at once are counted when they have been looked at: a debt to be waited for.

In memory, of this server alone: secrets have 256 random bits, so what matters is that a flood of guesses soon costs no
statement. What is remembered is bounded; what was used longest ago goes first.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from openiodm.access.flow import PERIOD_MS
from openiodm.clock import Clock
from openiodm.errors import Reason, Refusal

MOST_REMEMBERED = 10_000
"""Pairs that have logged in, and as many counts."""
MOST_AT_ONCE = 100
"""Attempts under way that share a count: the largest debt."""
KEY_CHARS = 64
"""Of an appId that is counted; ours have 32."""
IPV6_PREFIX = 64
"""One subscriber has all the addresses within it."""

Key = tuple[str, str]  # application and network; one of them may be empty: any


class LoginLimit:
    """`per_minute` wrong secrets; 0 turns it off."""

    def __init__(self, clock: Clock, per_minute: int) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._known: OrderedDict[Key, None] = OrderedDict()
        self._under_way: Counter[Key] = Counter()
        # As in `MemoryFlow`: the moment at which a count will be back at zero, in 1/N ms.
        self._clear_at: OrderedDict[Key, int] = OrderedDict()

    @contextmanager
    def attempt(self, app_id: str, address: str) -> Iterator[None]:
        """Around the look at a secret.

        Raises:
            Refusal: THROTTLED, before the look.
        """
        if self._per_minute == 0:
            yield
            return
        pair = (app_id[:KEY_CHARS], network_of(address))
        keys = [pair] if pair in self._known else [("", pair[1]), (pair[0], "")]
        if any(self._is_over(key) for key in keys):
            raise Refusal(Reason.THROTTLED, f"more than {self._per_minute} wrong secrets a minute")
        self._under_way.update(keys)
        try:
            yield
        except Refusal as refusal:
            if refusal.reason is Reason.CREDENTIALS_WRONG:
                self._count(keys)
            raise
        finally:
            self._under_way.subtract(keys)
            for key in keys:
                if not self._under_way[key]:
                    del self._under_way[key]
        self._known[pair] = None
        self._known.move_to_end(pair)
        if len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)

    def _is_over(self, key: Key) -> bool:
        owed = self._clear_at.get(key, 0) - self._clock.now() * self._per_minute
        return owed > (self._per_minute - 1) * PERIOD_MS or self._under_way[key] >= MOST_AT_ONCE

    def _count(self, keys: list[Key]) -> None:
        now = self._clock.now() * self._per_minute
        for key in keys:
            self._clear_at[key] = max(now, self._clear_at.get(key, 0)) + PERIOD_MS
            self._clear_at.move_to_end(key)
            if len(self._clear_at) > MOST_REMEMBERED:
                self._clear_at.popitem(last=False)


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """What an address is counted as: itself, or the network of an IPv6 subscriber. Another text is cut."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address[:KEY_CHARS]
    if isinstance(parsed, IPv6Address):
        return str(ip_network((parsed.packed, IPV6_PREFIX), strict=False))
    return str(parsed)
