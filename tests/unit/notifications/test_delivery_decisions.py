"""How much at once, when again, how fast: the pure decisions of delivery; and which addresses a guard lets pass."""

from ipaddress import ip_address

import pytest

from openiodm.clock import MINUTE, SECOND, Instant, Millis
from openiodm.notifications.callbacks import Guard
from openiodm.notifications.pace import FLOOR, MOST, Rate
from openiodm.notifications.window import Window, next_attempt

NOW = Instant(1_000_000)
LIFE = Millis(10 * MINUTE)


def test_a_window_grows_with_every_success_up_to_its_most_and_falls_to_one_with_a_failure() -> None:
    window = Window(most=3)
    sizes = []
    for _ in range(4):
        sizes.append(window.size)
        window.succeeded()
    assert sizes == [1, 2, 3, 3]
    window.failed(NOW)
    assert (window.size, window.failing_since) == (1, NOW)


def test_a_receiver_that_fails_three_times_in_a_row_is_left_alone_for_five_seconds() -> None:
    window = Window(most=3)
    for n in range(3):
        assert not window.paused(Instant(NOW + n))
        window.failed(Instant(NOW + n))
    assert window.paused(Instant(NOW + 2))
    assert window.paused(Instant(NOW + 5001))
    assert not window.paused(Instant(NOW + 5002))
    assert window.failing_since == NOW
    window.succeeded()
    assert window.failing_since is None
    window.failed(NOW)
    assert not window.paused(NOW)


def test_pauses_grow_and_end_with_the_life() -> None:
    at, attempts, pauses = NOW, 1, []
    while (due := next_attempt(attempts, NOW, at, LIFE)) is not None:
        pauses.append((due - at) // SECOND)
        at, attempts = due, attempts + 1
    assert pauses == [5, 15, 30, 60, 120, 120, 120, 120]
    assert next_attempt(1, NOW, Instant(NOW + LIFE), LIFE) is None


@pytest.mark.parametrize(("late", "busy"), [(0.050, 0.1), (0.0, 0.95)])
def test_the_rate_falls_while_the_loop_is_late_or_busy_and_rises_while_it_is_neither(late: float, busy: float) -> None:
    rate = Rate()
    for _ in range(100):
        rate.saw(late, busy, used=True)
    assert rate.a_second == FLOOR
    for _ in range(200):
        rate.saw(0.0, 0.1, used=False)
    assert rate.a_second == FLOOR
    for _ in range(200):
        rate.saw(0.0, 0.1, used=True)
    assert rate.a_second == MOST


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("0.0.0.0", True),
        ("169.254.169.254", True),
        ("169.254.0.1", True),
        ("100.100.100.200", True),
        ("168.63.129.16", True),
        ("224.0.0.251", True),
        ("240.0.0.1", True),
        ("255.255.255.255", True),
        ("::", True),
        ("::1", True),
        ("fe80::1", True),
        ("ff02::1", True),
        ("fd00:ec2::254", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:169.254.169.254", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("2002:7f00:1::", True),
        ("::7f00:1", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("fd12::1", False),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
        ("::ffff:192.0.2.1", False),
        ("64:ff9b::c000:201", False),
    ],
)
def test_the_machine_itself_its_link_and_its_clouds_metadata_are_refused(address: str, refused: bool) -> None:
    assert Guard().refuses("a.example", ip_address(address)) is refused


def test_an_allow_list_opens_a_network_or_a_host() -> None:
    loopback = ip_address("127.0.0.1")
    assert not Guard(("127.0.0.0/8",)).refuses("a.example", loopback)
    assert not Guard(("A.example.",)).refuses("a.EXAMPLE", loopback)
    assert Guard(("b.example", "10.0.0.0/8")).refuses("a.example", loopback)
