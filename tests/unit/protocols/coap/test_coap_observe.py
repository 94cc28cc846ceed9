"""RFC 7641 section 3.4: which notification is newer; and tokens that outlive addresses."""

import random

import pytest

from openiodm.clock import Instant
from openiodm.protocols.coap.observe import TOKEN_BYTES, Observations, is_newer

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


@pytest.fixture
def observations() -> Observations[str]:
    return Observations(random.Random(1).randbytes, 3)


def test_a_token_belongs_to_its_owner_until_it_ends(observations: Observations[str]) -> None:
    token = observations.new("a")
    assert len(token) == TOKEN_BYTES
    assert (observations.owner_of(token), observations.owner_of(b"other")) == ("a", None)
    observations.end(token)
    assert observations.owner_of(token) is None


def test_an_older_notification_is_no_news(observations: Observations[str]) -> None:
    token = observations.new("a")
    assert [observations.is_news(token, n, T) for n in (5, 7, 6, 7, 8)] == [True, True, False, False, True]


def test_a_notification_without_a_number_is_news(observations: Observations[str]) -> None:
    token = observations.new("a")
    assert all(observations.is_news(token, n, T) for n in (5, None, None, 6))


def test_nothing_is_news_on_a_token_of_nobody(observations: Observations[str]) -> None:
    assert not observations.is_news(b"x", 1, T)


def test_a_device_that_starts_anew_counts_from_the_beginning(observations: Observations[str]) -> None:
    token = observations.new("a")
    assert observations.is_news(token, 900, T)
    assert not observations.is_news(token, 1, T)
    observations.forget_order(token)
    assert observations.is_news(token, 1, T)


def test_the_one_silent_for_longest_makes_room(observations: Observations[str]) -> None:
    first, second, _third = (observations.new(name) for name in "abc")
    observations.is_news(first, 1, T)
    observations.resume(b"kept", "d")
    assert observations.owner_of(second) is None
    assert (observations.owner_of(first), observations.owner_of(b"kept"), len(observations)) == ("a", "d", 3)
