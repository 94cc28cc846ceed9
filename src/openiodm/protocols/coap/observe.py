"""Observations, client side (RFC 7641): whose a token is, and which of two notifications is the newer. Pure.

A token belongs to a device and what is observed, not to an address: after a reboot a device reports on the token of
before, from another port and in another DTLS session.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from openiodm.clock import Instant, Millis

TOKEN_BYTES: Final = 8
"""Length of an observation's token: too long to be guessed, or to be met by a request's token of 4."""
FRESH_FOR: Final = Millis(128_000)
"""After this any notification counts as newer (section 3.4)."""

_HALF: Final = 1 << 23

Owner = TypeVar("Owner")


def is_newer(old: int, old_at: Instant, new: int, new_at: Instant) -> bool:
    """Was the notification with the sequence number `new` sent after the one with `old` (section 3.4)?"""
    return (old < new and new - old < _HALF) or (old > new and old - new > _HALF) or new_at > old_at + FRESH_FOR


class _Observation(Generic[Owner]):
    __slots__ = ("at", "owner", "sequence")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.sequence: int | None = None
        self.at = Instant(0)


class Observations(Generic[Owner]):
    """Tokens of what is observed; `limit` many, the one that was silent for longest makes room."""

    def __init__(self, chance: Callable[[int], bytes], limit: int) -> None:
        self._chance = chance
        self._limit = limit
        self._by_token: OrderedDict[bytes, _Observation[Owner]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_token)

    def new(self, owner: Owner) -> bytes:
        """A token for an observation that begins."""
        while (token := self._chance(TOKEN_BYTES)) in self._by_token:
            pass
        self.resume(token, owner)
        return token

    def resume(self, token: bytes, owner: Owner) -> None:
        """Takes in a token of before, as one that outlived this process."""
        self._by_token.pop(token, None)
        if len(self._by_token) >= self._limit:
            self._by_token.popitem(last=False)
        self._by_token[token] = _Observation(owner)

    def owner_of(self, token: bytes) -> Owner | None:
        """Whose it is; None: nobody's, the peer should be told to end it."""
        found = self._by_token.get(token)
        return None if found is None else found.owner

    def is_news(self, token: bytes, sequence: int | None, now: Instant) -> bool:
        """Notes a notification; False when it was sent before one that is noted already.

        Without a sequence number, and for the first one, it is always news. Call `forget_order` when the device starts
        anew: its numbers do too.
        """
        found = self._by_token.get(token)
        if found is None:
            return False
        self._by_token.move_to_end(token)
        if sequence is not None:
            if found.sequence is not None and not is_newer(found.sequence, found.at, sequence, now):
                return False
            found.sequence, found.at = sequence, now
        return True

    def forget_order(self, token: bytes) -> None:
        """The next notification is news, whatever its number."""
        found = self._by_token.get(token)
        if found is not None:
            found.sequence = None

    def end(self, token: bytes) -> None:
        """It is observed no more."""
        self._by_token.pop(token, None)
