"""Observations, client side (RFC 7641): which of two notifications is the newer. Pure.

Tokens are the business of who observes: they belong to a device and what is observed of it, not to an address. After a
reboot a device reports on the token of before, from another port and in another DTLS session; see `carrier.Notified`.
"""

from typing import Final

from openiodm.clock import Instant, Millis

FRESH_FOR: Final = Millis(128_000)
"""After this any notification counts as newer (section 3.4)."""

_HALF: Final = 1 << 23


def is_newer(old: int, old_at: Instant, new: int, new_at: Instant) -> bool:
    """Was the notification with the sequence number `new` sent after the one with `old` (section 3.4)?"""
    return (old < new and new - old < _HALF) or (old > new and old - new > _HALF) or new_at > old_at + FRESH_FOR
