"""Limits of addresses and devices, by a clock that is moved by hand. Their answers: contract/test_request_limits.py."""

import pytest

from openiodm.access.request_limit import MOST_REMEMBERED, Asks, Limited, Rate, RequestLimit
from tests.conftest import ManualClock

HERE, THERE = "192.0.2.1", "192.0.2.2"


def limit(clock: ManualClock, address: int = 0, device: int = 0, failures: int = 0) -> RequestLimit:
    return RequestLimit(clock, per_address=address, per_device=device, failures_per_address=failures)


def known(clock: ManualClock, address: int = 0, device: int = 0, failures: int = 0) -> RequestLimit:
    """One that has accepted the device `d`, a minute ago."""
    made = limit(clock, address, device, failures)
    made.accepted("d")
    clock.advance(60_000)
    return made


@pytest.mark.parametrize("per_minute", [1, 7, 600])
def test_a_rate_has_as_many_turns_in_advance_as_it_says_and_gets_them_back_evenly(
    clock: ManualClock, per_minute: int
) -> None:
    rate = Rate(clock, per_minute)
    assert [rate.take("k") for _ in range(per_minute)] == [0] * per_minute
    assert rate.take("k") is None
    clock.advance(60_000 // per_minute - 1)
    assert rate.take("k") is None
    clock.advance(2)
    assert [rate.take("k"), rate.take("k")] == [0, None]
    clock.advance(3_600_000)
    assert [rate.take("k") for _ in range(per_minute + 1)] == [0] * per_minute + [None]


def test_who_may_wait_is_told_how_long_and_stands_in_line(clock: ManualClock) -> None:
    rate = Rate(clock, 600)  # one in 100 ms
    for _ in range(600):
        rate.take("k")
    assert [rate.take("k", longest=250) for _ in range(3)] == [100, 200, None]
    clock.advance(100)
    assert rate.take("k", longest=250) == 200


def test_parts_of_a_turn_add_up_to_one(clock: ManualClock) -> None:
    rate = Rate(clock, 2)
    assert [rate.take("k", parts=10) for _ in range(21)] == [0] * 20 + [None]


def test_a_clock_that_is_set_back_leaves_nobody_shut_out(clock: ManualClock) -> None:
    gate = known(clock, address=60, device=60, failures=1)
    for _ in range(100):
        gate.device(HERE, "d")
    gate.failed(HERE, "x")
    clock.advance(-3_600_000)
    assert not gate.device(HERE, "d").refused
    assert not gate.device(HERE, "y").refused


def test_what_is_remembered_is_bounded_and_the_busiest_stay(clock: ManualClock) -> None:
    rate = Rate(clock, 1)
    assert rate.take("busy") == 0
    for n in range(2 * MOST_REMEMBERED):
        rate.take(n)
        if n % 1000 == 0:
            rate.charge("busy")
    assert len(rate) == MOST_REMEMBERED
    assert rate.take("busy") is None


def test_an_address_beyond_its_limit_is_refused_and_another_is_not(clock: ManualClock) -> None:
    gate = limit(clock, address=60)  # one a second, ten in advance
    assert [gate.address(HERE).refused for _ in range(11)] == [None] * 10 + [Limited.ADDRESS]
    assert not gate.address(THERE).refused
    clock.advance(1000)
    assert not gate.address(HERE).refused
    assert gate.refused == {Limited.ADDRESS: 1}


def test_a_subscriber_has_one_limit_for_all_the_addresses_of_his_ipv6_network(clock: ManualClock) -> None:
    gate = limit(clock, address=60)
    for n in range(10):
        assert not gate.address(f"2001:db8::{n}").refused
    assert gate.address("2001:db8::ffff").refused
    assert not gate.address("2001:db8:0:1::1").refused


def test_a_device_beyond_its_limit_is_refused_from_wherever_and_its_neighbour_is_not(clock: ManualClock) -> None:
    gate = known(clock, device=60)
    gate.accepted("neighbour")
    assert [gate.device(HERE, "d").refused for _ in range(61)] == [None] * 60 + [Limited.DEVICE]
    assert gate.device(THERE, "d").refused is Limited.DEVICE
    assert gate.device(THERE, "d").retry_after_s == 1
    assert not gate.device(HERE, "neighbour").refused


@pytest.mark.parametrize(("asks", "count"), [(Asks.TO_REPORT, 60), (Asks.BYTES, 600)])
def test_a_known_device_waits_its_turn_to_report_and_to_download(clock: ManualClock, asks: Asks, count: int) -> None:
    gate = known(clock, device=60)
    assert {gate.device(HERE, "d", asks).wait for _ in range(count)} == {0}
    waits = [gate.device(HERE, "d", asks).wait for _ in range(count // 60 * 5)]
    assert (waits[0], waits[-1]) == (1000 * 60 // count, 5000)
    assert gate.device(HERE, "d", asks).refused is Limited.DEVICE  # a crowd of its own requests is before it
    clock.advance(waits[0])
    assert gate.device(HERE, "d", asks).wait == 5000


@pytest.mark.parametrize("asks", [Asks.TO_REPORT, Asks.BYTES])
def test_a_noisy_neighbour_behind_the_same_address_breaks_no_update(clock: ManualClock, asks: Asks) -> None:
    gate = known(clock, address=60)
    while not gate.address(HERE).refused:
        pass
    assert gate.device(HERE, "d").refused is Limited.ADDRESS
    assert not gate.device(HERE, "d", asks).refused
    assert gate.device(HERE, "unknown", asks).refused is Limited.ADDRESS


def test_a_peer_without_a_credential_is_counted_from_its_first_request_on(clock: ManualClock) -> None:
    gate = limit(clock, address=600, device=60)
    assert [gate.peer(HERE, (HERE, 1)).refused for _ in range(61)] == [None] * 60 + [Limited.DEVICE]
    assert [gate.peer(HERE, (HERE, 2)).refused for _ in range(40)] == [None] * 39 + [Limited.ADDRESS]
    assert not gate.peer(THERE, (THERE, 1)).refused


def test_wrong_credentials_shut_the_unknown_out_and_let_the_known_pass(clock: ManualClock) -> None:
    gate = known(clock, failures=3)
    for n in range(3):
        assert not gate.device(HERE, n).refused
        gate.failed(HERE, n)
    assert gate.device(HERE, "new").refused is Limited.CREDENTIALS
    assert not gate.device(HERE, "d").refused
    assert not gate.device(THERE, "new").refused
    clock.advance(20_000)
    assert not gate.device(HERE, "new").refused


def test_a_device_whose_credential_does_no_longer_do_is_not_known_any_more(clock: ManualClock) -> None:
    gate = known(clock, failures=1)
    gate.failed(HERE, "d")
    assert gate.device(HERE, "d").refused is Limited.CREDENTIALS


def test_without_limits_nothing_is_refused(clock: ManualClock) -> None:
    gate = known(clock)
    for _ in range(10_000):
        gate.failed(HERE, "x")
        assert not gate.device(HERE, "x").refused
        assert not gate.device(HERE, "d", Asks.BYTES).wait
    assert gate.refused == {}
