"""RFC 7641 section 3.4: which of two notifications is the newer."""

import pytest

from openiodm.clock import Instant
from openiodm.protocols.coap.observe import is_newer

T = Instant(1_000_000)


@pytest.mark.parametrize(
    ("old", "new", "seconds", "newer"),
    [
        (1, 2, 0, True),
        (2, 1, 0, False),
        (2, 2, 0, False),
        (0, 2**23 - 1, 0, True),
        (0, 2**23, 0, False),
        (2**24 - 1, 0, 0, True),
        (2**23 + 1, 0, 0, True),
        (2**23, 0, 0, False),
        (2, 1, 128, False),
        (2, 1, 129, True),
        (2, 2, 129, True),
    ],
)
def test_section_3_4_reordering(old: int, new: int, seconds: int, newer: bool) -> None:
    assert is_newer(old, T, new, Instant(T + seconds * 1000)) is newer
