"""The parts of the message layer by themselves: times of RFC 7252 section 4.8.2, memory of what came, timers."""

import pytest

from openiodm.clock import Instant, Millis
from openiodm.protocols.coap.exchange import Ids, Memory, Recent, Transmission, first_timeout
from openiodm.protocols.coap.limits import Timing
from openiodm.protocols.coap.timers import Timers

NOW = Instant(1_000_000)


def later(milliseconds: int) -> Instant:
    return Instant(NOW + milliseconds)


def test_rfc_7252_section_4_8_2_derived_times() -> None:
    timing = Timing()
    assert (timing.max_transmit_span, timing.exchange_lifetime) == (45_000, 247_000)


def test_section_4_2_the_first_timeout_lies_between_two_and_three_seconds() -> None:
    assert (first_timeout(Timing(), 0.0), first_timeout(Timing(), 1.0)) == (2_000, 3_000)


def test_section_4_2_a_transmission_is_repeated_four_times_at_doubled_distances() -> None:
    transmission = Transmission(1, b"", None, NOW, Millis(2_000))
    dues = [transmission.due]
    while transmission.again(Timing()):
        dues.append(transmission.due)
    assert [due - NOW for due in dues] == [2_000, 6_000, 14_000, 30_000, 62_000]


def test_message_ids_go_round() -> None:
    ids = Ids(0xFFFE)
    assert [ids.next() for _ in range(3)] == [0xFFFE, 0xFFFF, 0]


@pytest.fixture
def memory() -> Memory:
    return Memory(Millis(1_000), per_peer=3, messages=5, reply_bytes=100)


def test_what_came_is_found_with_its_reply_until_it_is_too_old(memory: Memory) -> None:
    table: dict[int, Recent] = {}
    memory.answered(memory.note(table, 7, 1, NOW), b"reply")
    found = memory.find(table, 7, 1, later(999))
    assert found is not None
    assert found.reply == b"reply"
    assert memory.find(table, 7, 1, later(1_000)) is None
    assert memory.find(table, 7, 2, NOW) is None, "other bytes"
    memory.expire(later(1_000))
    assert (len(memory), memory.reply_bytes, table) == (0, 0, {})


def test_a_peer_keeps_its_newest(memory: Memory) -> None:
    table: dict[int, Recent] = {}
    for mid in range(5):
        memory.note(table, mid, 0, NOW)
    assert (list(table), len(memory)) == ([2, 3, 4], 3)


def test_all_peers_together_keep_the_newest(memory: Memory) -> None:
    tables: list[dict[int, Recent]] = [{} for _ in range(7)]
    for n, table in enumerate(tables):
        memory.note(table, n, 0, NOW)
    assert [len(table) for table in tables] == [0, 0, 1, 1, 1, 1, 1]


def test_replies_are_bounded_in_bytes(memory: Memory) -> None:
    tables: list[dict[int, Recent]] = [{} for _ in range(4)]
    for table in tables:
        memory.answered(memory.note(table, 1, 0, NOW), b"x" * 40)
    assert memory.reply_bytes == 80
    assert [len(table) for table in tables] == [0, 0, 1, 1]


def test_an_answer_that_comes_after_its_request_was_forgotten_is_not_kept(memory: Memory) -> None:
    table: dict[int, Recent] = {}
    recent = memory.note(table, 1, 0, NOW)
    memory.forget_all(table)
    memory.answered(recent, b"late")
    assert (memory.reply_bytes, len(memory)) == (0, 0)


def test_the_same_id_with_other_bytes_takes_the_place_of_the_older_one(memory: Memory) -> None:
    table: dict[int, Recent] = {}
    memory.answered(memory.note(table, 1, 10, NOW), b"old")
    memory.note(table, 1, 11, NOW)
    assert (len(memory), memory.reply_bytes, memory.find(table, 1, 10, NOW)) == (1, 0, None)


def test_timers_run_in_order_and_cancelled_ones_do_not() -> None:
    timers, called = Timers(), []
    timers.at(later(20), called.append, "b")
    timers.at(later(10), called.append, "a")
    timers.at(later(15), called.append, "never").cancel()
    late = timers.at(later(30), called.append, "c")
    timers.run(later(20))
    assert called == ["a", "b"]
    timers.run(later(30))
    late.cancel()
    assert called == ["a", "b", "c"]


def test_a_timer_may_set_another() -> None:
    timers, called = Timers(), []

    def again() -> None:
        called.append(1)
        if len(called) < 3:
            timers.at(later(10), again)

    timers.at(later(10), again)
    timers.run(later(10))
    assert called == [1, 1, 1]


def test_cancelled_timers_do_not_pile_up() -> None:
    timers = Timers()
    kept = timers.at(later(1), lambda: None)
    for _ in range(20_000):
        timers.at(later(120_000), lambda: None).cancel()
    assert len(timers) < 3_000
    kept.cancel()
    timers.run(later(120_000))
    assert len(timers) == 0
