"""Wrong secrets are counted for an application and for an address; who knows a secret is not in the way of that."""

import pytest

from openiodm.access import login_limit
from openiodm.access.login_limit import LoginLimit
from openiodm.errors import Reason, Refusal
from tests.conftest import ManualClock

HOME, AWAY = "192.0.2.1", "198.51.100.7"


def wrong(limit: LoginLimit, app_id: str, address: str, reason: Reason = Reason.CREDENTIALS_WRONG) -> Reason:
    """What a login with a wrong secret is answered."""
    with pytest.raises(Refusal) as refused, limit.attempt(app_id, address):
        raise Refusal(reason)
    return refused.value.reason


def right(limit: LoginLimit, app_id: str, address: str) -> bool:
    """Is a login with the right secret let in?"""
    try:
        with limit.attempt(app_id, address):
            return True
    except Refusal as refused:
        assert refused.reason is Reason.THROTTLED
        return False


def test_after_so_many_wrong_secrets_none_is_looked_at_until_a_minutes_part_is_over(clock: ManualClock) -> None:
    limit = LoginLimit(clock, 3)
    assert [wrong(limit, "a", HOME) for _ in range(4)] == [Reason.CREDENTIALS_WRONG] * 3 + [Reason.THROTTLED]
    assert not right(limit, "a", HOME)
    clock.advance(19_999)
    assert not right(limit, "a", HOME)
    clock.advance(1)
    assert wrong(limit, "a", HOME) is Reason.CREDENTIALS_WRONG
    assert wrong(limit, "a", HOME) is Reason.THROTTLED
    clock.advance(3_600_000)  # an hour gives no more than a minute
    assert [wrong(limit, "a", HOME) for _ in range(4)].count(Reason.THROTTLED) == 1


def test_an_address_is_counted_over_all_applications_and_an_application_over_all_addresses(clock: ManualClock) -> None:
    limit = LoginLimit(clock, 3)
    assert [wrong(limit, f"app{n}", HOME) for n in range(4)][-1] is Reason.THROTTLED
    assert not right(limit, "other", HOME)
    assert right(limit, "other", AWAY)
    limit = LoginLimit(clock, 3)
    assert [wrong(limit, "a", f"192.0.2.{n}") for n in range(4)][-1] is Reason.THROTTLED
    assert right(limit, "b", "192.0.2.1")


def test_right_secrets_are_never_counted(clock: ManualClock) -> None:
    limit = LoginLimit(clock, 1)
    assert all(right(limit, "a", HOME) for _ in range(100))


def test_neither_a_frozen_application_nor_our_own_fault_is_counted(clock: ManualClock) -> None:
    limit = LoginLimit(clock, 1)
    for _ in range(5):
        assert wrong(limit, "a", HOME, Reason.APPLICATION_FROZEN) is Reason.APPLICATION_FROZEN
        with pytest.raises(OSError, match="disk"), limit.attempt("a", HOME):
            raise OSError("disk")
    assert right(limit, "a", HOME)


def test_who_has_logged_in_from_an_address_is_not_locked_out_there_by_others(clock: ManualClock) -> None:
    limit = LoginLimit(clock, 3)
    assert right(limit, "a", HOME)
    for n in range(20):
        wrong(limit, "a", f"198.51.100.{n}")  # guesses from everywhere
        wrong(limit, f"stranger{n}", HOME)  # and a neighbour behind the same proxy
    assert right(limit, "a", HOME)
    assert not right(limit, "a", AWAY)
    assert [wrong(limit, "a", HOME) for _ in range(4)][-1] is Reason.THROTTLED  # its own count there
    assert not right(limit, "a", HOME)


def test_an_ipv6_subscriber_is_one_address(clock: ManualClock) -> None:
    limit = LoginLimit(clock, 2)
    answers = [wrong(limit, f"app{n}", f"2001:db8:0:1::{n}") for n in range(3)]
    assert answers[-1] is Reason.THROTTLED
    assert right(limit, "b", "2001:db8:0:2::1")


def test_guesses_sent_at_once_are_a_debt_to_be_waited_for(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_limit, "MOST_AT_ONCE", 5)
    limit = LoginLimit(clock, 1)
    attempts = [limit.attempt(f"app{n}", HOME) for n in range(6)]
    for attempt in attempts[:5]:
        attempt.__enter__()
    with pytest.raises(Refusal):
        attempts[5].__enter__()
    refusal = Refusal(Reason.CREDENTIALS_WRONG)
    for attempt in attempts[:5]:
        assert attempt.__exit__(Refusal, refusal, None) is False
    clock.advance(4 * 60_000)
    assert not right(limit, "a", HOME)
    clock.advance(60_000)
    assert right(limit, "a", HOME)


def test_what_is_remembered_is_bounded(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_limit, "MOST_REMEMBERED", 10)
    limit = LoginLimit(clock, 5)
    for n in range(100):
        wrong(limit, f"{n}" * 10_000, f"192.0.2.{n}")
        right(limit, f"app{n}", f"198.51.100.{n}")
    sizes = [len(limit._known), len(limit._clear_at), len(limit._under_way)]
    assert sizes == [10, 10, 0]
    assert max(len(text) for key in limit._clear_at for text in key) <= login_limit.KEY_CHARS


def test_zero_turns_it_off(clock: ManualClock) -> None:
    limit = LoginLimit(clock, 0)
    assert {wrong(limit, "a", HOME) for _ in range(50)} == {Reason.CREDENTIALS_WRONG}
