"""Fleets: determinism by seed, few sockets, chaos, and what profiles and behaviours refuse."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from simulator_fake_ddi import FakeDdi

from openiodm.simulator import Behaviour, DeviceProfile, Fleet, Pace, TokenKind, make_profiles
from openiodm.simulator.behaviour import plan_of

FAST = Pace(poll_seconds=0.1, backoff_first=0.01, backoff_most=0.1)
MIXED = Behaviour(
    failure_rate=0.2, silence_rate=0.2, corrupt_rate=0.1, duplicate_rate=0.2, reorder_rate=0.2, download_pieces=2
)


@pytest.fixture
async def server() -> AsyncIterator[FakeDdi]:
    async with FakeDdi() as fake:
        fake.payload = b"x" * 10_000
        yield fake


async def outcomes(server: FakeDdi, seed: int, connections: int, poll_seconds: float) -> dict[str, str]:
    """The last state and reports of each device after a run on an empty server."""
    server.devices.clear()
    pace = Pace(poll_seconds=poll_seconds, backoff_first=0.01, backoff_most=0.1)
    profiles = make_profiles(60, prefix="det", behaviour=MIXED)
    fleet = Fleet(server.url, profiles, seed=seed, pace=pace, max_connections=connections, ramp_seconds=0.05)
    await fleet.run_until(within=10)
    assert fleet.violations() == []
    return {p.controller_id: str(server.action(p.controller_id).reports) for p in profiles}


async def test_the_same_seed_gives_the_same_fates_whatever_the_timing(server: FakeDdi) -> None:
    first = await outcomes(server, seed=7, connections=16, poll_seconds=0.05)
    second = await outcomes(server, seed=7, connections=3, poll_seconds=0.2)
    other = await outcomes(server, seed=8, connections=16, poll_seconds=0.05)
    assert first == second
    assert first != other
    assert len(set(first.values())) > 4


def test_one_rate_does_not_shift_the_draws_of_another() -> None:
    plain = [plan_of(Behaviour(failure_rate=0.3), 1, f"d{n}", 0).fails for n in range(200)]
    more = [plan_of(Behaviour(failure_rate=0.3, silence_rate=0.5), 1, f"d{n}", 0).fails for n in range(200)]
    assert plain == more
    assert 30 < sum(plain) < 90


async def test_a_fleet_holds_no_more_sockets_than_it_may(server: FakeDdi) -> None:
    fleet = Fleet(server.url, make_profiles(300), pace=FAST, max_connections=8, ramp_seconds=0)
    stats = await fleet.run_until(within=20)
    assert stats.succeeded == 300
    assert server.most_connections <= 8
    assert fleet.client.most_connections <= 8


async def test_slow_downloads_on_every_socket_leave_room_for_polls(server: FakeDdi) -> None:
    slow = Behaviour(download_bytes_per_second=40_000)
    fleet = Fleet(server.url, make_profiles(6, behaviour=slow), pace=FAST, max_connections=2, ramp_seconds=0)
    stats = await fleet.run_until(within=10)
    assert stats.succeeded == 6


async def test_counters_equal_what_the_server_has_after_repeated_kills(server: FakeDdi) -> None:
    behaviour = Behaviour(failure_rate=0.2, install_seconds=(0.0, 0.3), probe_after_final=True, duplicate_rate=0.1)
    fleet = Fleet(server.url, make_profiles(100, behaviour=behaviour), seed=3, pace=FAST, max_connections=16)
    async with fleet.running():
        for _ in range(5):
            await asyncio.sleep(0.1)
            await server.vanish()
            await asyncio.sleep(0.05)
            await server.come_back()
        await fleet.wait_for(within=10)
    states = [server.action(record.controller_id).state for record in fleet.records()]
    assert fleet.stats.succeeded == states.count("finished")
    assert fleet.stats.failed == states.count("error")
    assert fleet.stats.succeeded + fleet.stats.failed == 100
    assert fleet.stats.errors > 0
    assert fleet.violations() == []


async def test_a_stop_event_ends_the_run_and_no_socket_stays(server: FakeDdi) -> None:
    fleet = Fleet(server.url, make_profiles(20), pace=FAST)
    stop = asyncio.Event()

    async def stop_soon() -> None:
        await fleet.wait_for(lambda f: f.stats.polls > 20, within=30)
        stop.set()

    stats, _ = await asyncio.wait_for(asyncio.gather(fleet.run(stop), stop_soon()), 30)
    assert stats.polls > 20
    assert fleet.client.open_connections == 0


async def test_a_fleet_that_never_ends_runs_into_its_deadline(server: FakeDdi) -> None:
    server.offer_to_new_devices = False
    fleet = Fleet(server.url, make_profiles(2), pace=FAST)
    with pytest.raises(TimeoutError):
        await fleet.run_until(within=0.2)


async def test_a_server_that_was_never_there_costs_errors_only() -> None:
    fleet = Fleet("http://127.0.0.1:1", make_profiles(5), pace=FAST, ramp_seconds=0)
    await fleet.run_until(lambda f: f.stats.errors >= 10, within=60)
    assert fleet.stats.registered == 0
    assert fleet.client.open_connections == 0


def test_profiles_are_numbered_and_tokens_are_by_controller_id() -> None:
    profiles = make_profiles(
        2, prefix="p", first=5, token_kind=TokenKind.TARGET, token="common", tokens={"p-000006": "own"}
    )
    assert [(p.controller_id, p.token) for p in profiles] == [("p-000005", "common"), ("p-000006", "own")]


async def test_two_devices_of_one_id_are_refused() -> None:
    with pytest.raises(ValueError, match="same controller id"):
        Fleet("http://127.0.0.1:1", [DeviceProfile("a"), DeviceProfile("a")])


@pytest.mark.parametrize(
    "bad",
    [
        {"failure_rate": 1.5},
        {"install_seconds": (2.0, 1.0)},
        {"download_pieces": 0},
        {"download_bytes_per_second": 0.0},
        {"silence_rate": 0.5, "silent_phases": ()},
    ],
)
def test_an_impossible_behaviour_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Behaviour(**bad)  # type: ignore[arg-type]
