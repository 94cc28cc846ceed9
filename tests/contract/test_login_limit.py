"""Wrong secrets are counted for an application and for an address; who knows a secret is not in the way of that.

As a server has it: in memory on SQLite, in shared rows on PostgreSQL.
"""

import asyncio
from collections.abc import Callable

import pytest

from openiodm.access import login_limit
from openiodm.access.login_limit import LoginLimit, MemoryCounts
from openiodm.clock import DAY
from openiodm.errors import Reason, Refusal
from openiodm.storage import login_counts
from openiodm.storage.engine import Database
from openiodm.storage.login_counts import SharedCounts
from tests.conftest import ManualClock

HOME, AWAY = "192.0.2.1", "198.51.100.7"


Make = Callable[[int], LoginLimit]

postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


@pytest.fixture
def make(database: Database, clock: ManualClock) -> Make:
    """A server's limit; on PostgreSQL another call makes another server's, of the same rows."""

    def limit(per_minute: int) -> LoginLimit:
        shared = database.engine == "postgresql"
        counts = SharedCounts(database, per_minute) if shared else MemoryCounts(per_minute)
        return LoginLimit(clock, per_minute, counts)

    return limit


async def wrong(limit: LoginLimit, app_id: str, address: str, reason: Reason = Reason.CREDENTIALS_WRONG) -> Reason:
    """What a login with a wrong secret is answered."""
    with pytest.raises(Refusal) as refused:
        async with limit.attempt(app_id, address):
            raise Refusal(reason)
    return refused.value.reason


async def right(limit: LoginLimit, app_id: str, address: str) -> bool:
    """Is a login with the right secret let in?"""
    try:
        async with limit.attempt(app_id, address):
            return True
    except Refusal as refused:
        assert refused.reason is Reason.THROTTLED
        return False


async def test_after_so_many_wrong_secrets_none_is_looked_at_until_a_minutes_part_is_over(
    make: Make, clock: ManualClock
) -> None:
    limit = make(3)
    assert [await wrong(limit, "a", HOME) for _ in range(4)] == [Reason.CREDENTIALS_WRONG] * 3 + [Reason.THROTTLED]
    assert not await right(limit, "a", HOME)
    clock.advance(19_999)
    assert not await right(limit, "a", HOME)
    clock.advance(1)
    assert await wrong(limit, "a", HOME) is Reason.CREDENTIALS_WRONG
    assert await wrong(limit, "a", HOME) is Reason.THROTTLED
    clock.advance(3_600_000)  # an hour gives no more than a minute
    assert [await wrong(limit, "a", HOME) for _ in range(4)].count(Reason.THROTTLED) == 1


async def test_an_address_is_counted_over_all_applications_and_an_application_over_all_addresses(
    make: Make, clock: ManualClock
) -> None:
    limit = make(3)
    assert [await wrong(limit, f"app{n}", HOME) for n in range(4)][-1] is Reason.THROTTLED
    assert not await right(limit, "other", HOME)
    assert await right(limit, "other", AWAY)
    clock.advance(3_600_000)
    assert [await wrong(limit, "a", f"192.0.2.{n}") for n in range(4)][-1] is Reason.THROTTLED
    assert await right(limit, "b", "192.0.2.1")


async def test_right_secrets_are_never_counted(make: Make, clock: ManualClock) -> None:
    limit = make(1)
    assert all([await right(limit, "a", HOME) for _ in range(100)])


async def test_neither_a_frozen_application_nor_our_own_fault_is_counted(make: Make, clock: ManualClock) -> None:
    limit = make(1)
    for _ in range(5):
        assert await wrong(limit, "a", HOME, Reason.APPLICATION_FROZEN) is Reason.APPLICATION_FROZEN
        with pytest.raises(OSError, match="disk"):
            async with limit.attempt("a", HOME):
                raise OSError("disk")
    assert await right(limit, "a", HOME)


async def test_who_has_logged_in_from_an_address_is_not_locked_out_there_by_others(
    make: Make, clock: ManualClock
) -> None:
    limit = make(3)
    assert await right(limit, "a", HOME)
    for n in range(20):
        await wrong(limit, "a", f"198.51.100.{n}")  # guesses from everywhere
        await wrong(limit, f"stranger{n}", HOME)  # and a neighbour behind the same proxy
    assert await right(limit, "a", HOME)
    assert not await right(limit, "a", AWAY)
    assert [await wrong(limit, "a", HOME) for _ in range(4)][-1] is Reason.THROTTLED  # its own count there
    assert not await right(limit, "a", HOME)


async def test_an_ipv6_subscriber_is_one_address(make: Make, clock: ManualClock) -> None:
    limit = make(2)
    answers = [await wrong(limit, f"app{n}", f"2001:db8:0:1::{n}") for n in range(3)]
    assert answers[-1] is Reason.THROTTLED
    assert await right(limit, "b", "2001:db8:0:2::1")


async def test_ipv4_addresses_within_ipv6_are_not_one_subscriber(make: Make, clock: ManualClock) -> None:
    limit = make(2)
    answers = [await wrong(limit, f"app{n}", address) for n, address in enumerate([f"::ffff:{AWAY}", AWAY, AWAY])]
    assert answers[-1] is Reason.THROTTLED
    assert await right(limit, "b", f"::ffff:{HOME}")


async def test_guesses_sent_at_once_are_a_debt_to_be_waited_for(
    make: Make, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_limit, "MOST_AT_ONCE", 5)
    limit = make(1)
    attempts = [limit.attempt(f"app{n}", HOME) for n in range(6)]
    for attempt in attempts[:5]:
        await attempt.__aenter__()
    with pytest.raises(Refusal):
        await attempts[5].__aenter__()
    refusal = Refusal(Reason.CREDENTIALS_WRONG)
    for attempt in attempts[:5]:
        assert await attempt.__aexit__(Refusal, refusal, None) is False
    clock.advance(4 * 60_000)
    assert not await right(limit, "a", HOME)
    clock.advance(60_000)
    assert await right(limit, "a", HOME)


async def test_a_clock_that_was_far_ahead_locks_nobody_out_when_it_is_set_right(make: Make, clock: ManualClock) -> None:
    limit = make(3)
    assert [await wrong(limit, "a", HOME) for _ in range(4)][-1] is Reason.THROTTLED
    clock.advance(-3_600_000)
    assert [await wrong(limit, "a", HOME) for _ in range(4)] == [Reason.CREDENTIALS_WRONG] * 3 + [Reason.THROTTLED]
    clock.advance(20_000)
    assert [await wrong(limit, "a", HOME) for _ in range(2)] == [Reason.CREDENTIALS_WRONG, Reason.THROTTLED]
    clock.advance(-50_000)  # a little back: what was counted still counts
    assert not await right(limit, "a", HOME)


async def test_what_is_remembered_in_memory_is_bounded(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_limit, "MOST_REMEMBERED", 10)
    counts = MemoryCounts(5)
    limit = LoginLimit(clock, 5, counts)
    for n in range(100):
        await wrong(limit, f"{n}" * 10_000, f"192.0.2.{n}")
        await right(limit, f"app{n}", f"198.51.100.{n}")
    assert [len(counts.known), len(counts.clear_at), len(limit._under_way)] == [10, 10, 0]
    assert max(len(text) for key in counts.clear_at for text in key) <= login_limit.KEY_CHARS


@postgresql
async def test_servers_on_one_postgresql_count_together_and_know_the_same_pairs(make: Make, clock: ManualClock) -> None:
    servers = [make(3) for _ in range(3)]
    answers = [await wrong(servers[n % 3], "a", HOME) for n in range(4)]
    assert answers == [Reason.CREDENTIALS_WRONG] * 3 + [Reason.THROTTLED]
    assert [await right(server, "a", HOME) for server in servers] == [False] * 3
    clock.advance(3_600_000)
    assert await right(servers[0], "a", HOME)
    for n in range(9):  # strangers, at all of them
        await wrong(servers[n % 3], "a", f"198.51.100.{n}")
    assert [await right(server, "a", HOME) for server in servers] == [True] * 3
    assert not await right(servers[0], "a", AWAY)


@postgresql
async def test_guesses_at_all_servers_at_once_are_each_counted(make: Make, clock: ManualClock) -> None:
    servers = [make(1) for _ in range(4)]
    answers = await asyncio.gather(*(wrong(servers[n % 4], f"app{n}", HOME) for n in range(40)))
    debt = answers.count(Reason.CREDENTIALS_WRONG)
    assert debt >= 1
    clock.advance((debt - 1) * 60_000)
    assert not await right(servers[0], "a", HOME)
    clock.advance(60_000)
    assert await right(servers[0], "a", HOME)


@postgresql
async def test_a_server_whose_clock_is_far_ahead_locks_nobody_out_of_the_others(
    make: Make, clock: ManualClock, database: Database
) -> None:
    ahead = LoginLimit(ManualClock(clock.now() + 3_600_000), 3, SharedCounts(database, 3))
    assert [await wrong(ahead, "a", HOME) for _ in range(4)][-1] is Reason.THROTTLED
    limit = make(3)
    assert [await wrong(limit, "a", HOME) for _ in range(4)] == [Reason.CREDENTIALS_WRONG] * 3 + [Reason.THROTTLED]
    await wrong(ahead, "b", AWAY)
    await limit.forget_old()
    assert await kept(database) == {("a", ""), ("", HOME)}


@postgresql
async def test_rows_that_count_no_more_go_and_pairs_that_still_log_in_stay(
    make: Make, clock: ManualClock, database: Database
) -> None:
    limit = make(3)
    assert await right(limit, "a", HOME)
    assert await right(limit, "left", HOME)
    await wrong(limit, "b", AWAY)
    await limit.forget_old()
    assert await kept(database) == {("a", HOME), ("left", HOME), ("", AWAY), ("b", "")}
    clock.advance(60_000)
    await limit.forget_old()
    assert await kept(database) == {("a", HOME), ("left", HOME)}
    clock.advance(login_counts.KEPT - DAY)
    assert await right(limit, "a", HOME)  # known anew, once a day
    clock.advance(2 * DAY)
    await limit.forget_old()
    assert await kept(database) == {("a", HOME)}


async def kept(database: Database) -> set[tuple[str, str]]:
    return {(r[0], r[1]) for r in await database.fetch("SELECT application, network FROM login_count")}


@postgresql
async def test_a_login_that_is_right_and_known_writes_nothing(
    make: Make, clock: ManualClock, database: Database
) -> None:
    limit = make(3)
    assert await right(limit, "a", HOME)
    sql = "SELECT xmin::text FROM login_count"
    before = await database.fetchval(sql)
    assert all([await right(limit, "a", HOME) for _ in range(3)])
    assert await database.fetchval(sql) == before


async def test_zero_turns_it_off(make: Make, clock: ManualClock) -> None:
    limit = make(0)
    assert {await wrong(limit, "a", HOME) for _ in range(50)} == {Reason.CREDENTIALS_WRONG}
