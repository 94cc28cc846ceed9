"""The life of one simulated device against a fake DDI server on real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest
from simulator_fake_ddi import FakeDdi

from openiodm.simulator import Behaviour, DeviceProfile, DeviceState, Fleet, Pace, Phase, TokenKind

FAST = Pace(poll_seconds=0.05, backoff_first=0.01, backoff_most=0.05)


@pytest.fixture
async def server() -> AsyncIterator[FakeDdi]:
    async with FakeDdi() as fake:
        yield fake


def one(server: FakeDdi, behaviour: Behaviour | None = None, **more: object) -> Fleet:
    profile = DeviceProfile("dev", attributes={"hw": "a"}, behaviour=behaviour or Behaviour(), **more)  # type: ignore[arg-type]
    return Fleet(server.url, [profile], pace=FAST, max_connections=4, ramp_seconds=0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (the fake server has no events to wait for)
            await asyncio.sleep(0.005)


async def test_a_whole_update_ends_in_success_and_the_new_version(server: FakeDdi) -> None:
    fleet = one(server)
    stats = await fleet.run_until(within=60)
    record = fleet.records()[0]
    entry = record.actions["1"]
    assert server.action("dev").reports == [
        "proceeding/none",
        "download/none",
        "downloaded/none",
        "closed/success",
    ]
    assert server.action("dev").state == "finished"
    assert server.devices["dev"].attributes == {"hw": "a", "fwVersion": "2.0.0"}
    assert record.attributes_sent == 2  # at registration and after the update
    assert (entry.offers, entry.started, entry.installs, entry.downloads) == (1, 1, 1, 1)
    assert (entry.result, entry.acknowledged, entry.closing_answers) == ("success", True, [200])
    assert entry.bytes_received == len(server.payload)
    assert (stats.registered, stats.offered, stats.installed, stats.succeeded) == (1, 1, 1, 1)
    assert (stats.errors, fleet.violations()) == (0, [])


async def test_idle_polls_carry_the_etag_and_are_answered_304(server: FakeDdi) -> None:
    server.offer_to_new_devices = False
    fleet = one(server)
    await fleet.run_until(lambda f: f.stats.not_modified >= 3, within=60)
    assert fleet.stats.by_status[304] == fleet.stats.not_modified
    assert fleet.records()[0].actions == {}


async def test_the_polling_time_of_the_server_is_kept_unless_overridden(server: FakeDdi) -> None:
    server.offer_to_new_devices = False
    fleet = Fleet(server.url, [DeviceProfile("dev")], pace=Pace(poll_jitter=0), ramp_seconds=0)
    pause = await fleet.devices[0].visit()
    assert 29 < pause <= 30
    await fleet.client.aclose()


async def test_the_token_is_sent_with_every_request_and_never_shown(server: FakeDdi) -> None:
    server.token = "GatewayToken s3cret"
    fleet = one(server, token_kind=TokenKind.GATEWAY, token="s3cret")
    stats = await fleet.run_until(within=60)
    assert (stats.succeeded, stats.by_status[401]) == (1, 0)
    assert "s3cret" not in repr(fleet.devices[0].profile)


async def test_a_failed_installation_is_reported_as_closed_failure(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(failure_rate=1))
    stats = await fleet.run_until(within=60)
    assert server.action("dev").reports[-1] == "closed/failure"
    assert (stats.failed, stats.succeeded, stats.installed) == (1, 0, 0)
    assert fleet.devices[0].versions == {"fwVersion": "1.0.0"}


async def test_a_rollback_says_success_and_keeps_the_old_version(server: FakeDdi) -> None:
    await one(server, Behaviour(rollback_rate=1)).run_until(within=60)
    assert server.action("dev").state == "finished"
    assert server.devices["dev"].attributes["fwVersion"] == "1.0.0"


@pytest.mark.parametrize("cause", ["wrong promise", "damaged on the way"])
async def test_a_digest_mismatch_is_reported_as_closed_failure(server: FakeDdi, cause: str) -> None:
    if cause == "wrong promise":
        server.promised_sha256 = "0" * 64
    fleet = one(server, Behaviour(corrupt_rate=1.0 if cause == "damaged on the way" else 0.0))
    stats = await fleet.run_until(within=60)
    entry = fleet.records()[0].actions["1"]
    assert server.action("dev").reports[-1] == "closed/failure"
    assert (entry.installs, entry.result, stats.failed) == (0, "failure", 1)
    assert fleet.records()[0].problems == ["sha256 mismatch of x.bin"]


async def test_a_file_that_is_shorter_than_promised_is_a_failure(server: FakeDdi) -> None:
    server.serve_only = 1000
    fleet = one(server)
    await fleet.run_until(within=60)
    assert server.action("dev").reports[-1] == "closed/failure"
    assert "size of x.bin is 1000" in fleet.records()[0].problems[0]


async def test_a_file_in_pieces_is_asked_for_by_ranges(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(download_pieces=4))
    await fleet.run_until(within=60)
    quarter = len(server.payload) // 4
    assert server.ranges[:2] == [f"bytes=0-{quarter - 1}", f"bytes={quarter}-{2 * quarter - 1}"]
    assert len(server.ranges) == 4
    assert fleet.stats.succeeded == 1


async def test_a_broken_download_is_resumed_where_it_stopped(server: FakeDdi) -> None:
    server.break_downloads_at = [100_000]
    fleet = one(server)
    await fleet.run_until(within=60)
    entry = fleet.records()[0].actions["1"]
    assert server.ranges == [None, "bytes=100000-"]
    assert (entry.bytes_received, entry.acknowledged) == (len(server.payload), True)
    assert fleet.stats.errors == 1


@pytest.mark.parametrize("phase", list(Phase))
async def test_a_silent_device_says_nothing_more(server: FakeDdi, phase: Phase) -> None:
    fleet = one(server, Behaviour(silence_rate=1, silent_phases=(phase,)))
    async with fleet.running():
        await fleet.wait_for(lambda f: f.stats.silent == 1, within=60)
        seen = len(server.requests)
        await asyncio.sleep(0.12)
        assert len(server.requests) == seen
    assert fleet.all_final()
    assert server.action("dev").state == "running"
    assert fleet.client.open_connections == 0
    assert fleet.stats.silent == 1  # still, after the stop


@pytest.mark.parametrize("phase", list(Phase))
async def test_a_device_that_was_silent_for_a_while_still_finishes_and_installs_once(
    server: FakeDdi, phase: Phase
) -> None:
    fleet = one(server, Behaviour(silence_rate=1, silent_phases=(phase,), silent_seconds=(0.05, 0.05)))
    stats = await fleet.run_until(within=60)
    assert (stats.succeeded, fleet.records()[0].actions["1"].installs) == (1, 1)
    assert fleet.violations() == []


async def test_a_report_whose_answer_was_lost_is_repeated_until_it_is_answered(server: FakeDdi) -> None:
    server.lose_answers_to["closed"] = 3
    fleet = one(server)
    await fleet.run_until(within=60)
    entry = fleet.records()[0].actions["1"]
    assert server.action("dev").reports.count("closed/success") == 4
    # Three on new or kept sockets; a kept one that was closed is tried again at once by the client itself.
    assert entry.closing_sent + fleet.client.resent == 4
    assert (entry.closing_answers, entry.installs) == ([200], 1)


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_a_report_is_repeated_after_any_answer_that_decides_nothing(server: FakeDdi, status: int) -> None:
    server.answer_once["feedback"] = (status, "Retry-After: 0\r\n")
    fleet = one(server)
    await fleet.run_until(within=60)
    assert fleet.stats.by_status[status] == 1
    assert fleet.stats.report_repeats == 1
    assert fleet.stats.succeeded == 1


async def test_a_server_that_vanishes_in_mid_flight_and_comes_back_loses_no_report(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(install_seconds=(0.2, 0.2)))
    async with fleet.running():
        await fleet.wait_for(lambda f: f.stats.installing == 1, within=60)
        await server.vanish()
        await fleet.wait_for(lambda f: f.stats.report_repeats >= 3, within=60)
        assert fleet.devices[0].state is DeviceState.REPORTING
        await server.come_back()
        await fleet.wait_for(within=60)
    entry = fleet.records()[0].actions["1"]
    assert (entry.installs, entry.closing_answers, entry.result) == (1, [200], "success")
    assert fleet.stats.succeeded == 1


async def test_a_server_that_moves_to_another_port_is_followed(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(install_seconds=(0.2, 0.2)))
    async with fleet.running():
        await fleet.wait_for(lambda f: f.stats.installing == 1, within=60)
        await server.vanish()
        await server.come_back(port=0)
        fleet.base_url = server.url
        await fleet.wait_for(within=60)
    assert server.action("dev").state == "finished"


async def test_an_unanswered_report_outlives_a_stop_of_the_fleet(server: FakeDdi) -> None:
    fleet = one(server)
    async with fleet.running():
        await until(lambda: ("GET", "file") in server.requests)
        await server.vanish()
        await fleet.wait_for(lambda f: f.stats.report_repeats or f.stats.errors > 3, within=60)
    await server.come_back()
    await fleet.run_until(within=60)
    assert server.action("dev").state == "finished"
    assert fleet.records()[0].actions["1"].installs == 1


async def test_a_stop_during_the_reboot_does_not_install_twice(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(reboot_seconds=(3, 3)))
    await fleet.run_until(lambda f: f.devices[0].state is DeviceState.REBOOTING, within=60)
    assert server.action("dev").state == "running"
    await fleet.run_until(within=60)
    assert server.action("dev").state == "finished"
    assert fleet.records()[0].actions["1"].installs == 1


async def test_a_result_that_is_refused_as_gone_is_final_and_not_acknowledged(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(install_seconds=(0.1, 0.1)))
    async with fleet.running():
        await fleet.wait_for(lambda f: f.stats.installing == 1, within=60)
        server.action("dev").state = "error"  # the server's clock ran out
        await fleet.wait_for(within=60)
    entry = fleet.records()[0].actions["1"]
    assert (entry.closing_answers, entry.final, entry.acknowledged) == ([410], True, False)
    assert (fleet.stats.refused, fleet.stats.succeeded) == (1, 0)


async def test_a_cancel_is_seen_during_the_installation_and_accepted(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(install_seconds=(5, 5), cancel_says_canceled=True))
    async with fleet.running():
        await fleet.wait_for(lambda f: f.stats.installing == 1, within=60)
        server.action("dev").state = "canceling"
        await fleet.wait_for(within=60)
    entry = fleet.records()[0].actions["1"]
    assert server.action("dev").state == "canceled"
    assert server.action("dev").cancel_reports == ["canceled/none", "closed/success"]
    assert "closed/success" not in server.action("dev").reports
    assert (entry.installs, entry.result, entry.cancel_answer) == (0, "canceled", "accept")
    assert (fleet.stats.canceled, fleet.violations()) == (1, [])


async def test_a_cancel_of_a_slow_download_is_accepted_in_mid_stream(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(download_bytes_per_second=100_000))
    async with fleet.running():
        await fleet.wait_for(lambda f: f.stats.bytes_received > 0, within=60)
        server.action("dev").state = "canceling"
        await fleet.wait_for(within=60)
    assert server.action("dev").state == "canceled"
    assert fleet.records()[0].actions["1"].bytes_received < len(server.payload)


async def test_a_rejected_cancel_lets_the_update_go_on(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(install_seconds=(0.3, 0.3), cancel_reject_rate=1))
    async with fleet.running():
        await fleet.wait_for(lambda f: f.stats.installing == 1, within=60)
        server.action("dev").state = "canceling"
        await fleet.wait_for(within=60)
    assert server.action("dev").cancel_reports == ["closed/failure"]
    assert server.action("dev").state == "finished"
    assert fleet.records()[0].actions["1"].installs == 1


async def test_an_ignored_cancel_gets_no_answer_and_the_update_wins(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(install_seconds=(0.2, 0.2), cancel_ignore_rate=1))
    async with fleet.running():
        await fleet.wait_for(lambda f: f.stats.installing == 1, within=60)
        server.action("dev").state = "canceling"
        await fleet.wait_for(within=60)
    assert server.action("dev").cancel_reports == []
    assert server.action("dev").state == "finished"


async def test_a_cancel_before_the_start_is_accepted(server: FakeDdi) -> None:
    server.first_state = "canceling"
    fleet = one(server)
    await fleet.run_until(within=60)
    assert server.action("dev").state == "canceled"
    assert fleet.records()[0].actions["1"].started == 0


async def test_a_confirmed_action_is_installed(server: FakeDdi) -> None:
    server.first_state = "waiting"
    fleet = one(server)
    await fleet.run_until(within=60)
    assert server.action("dev").state == "finished"
    assert fleet.records()[0].actions["1"].confirmation_answers == [200]
    assert fleet.stats.confirmed == 1


@pytest.mark.parametrize(("behaviour", "answers"), [("deny_rate", [200]), ("ignore_confirmation_rate", [])])
async def test_a_denied_or_ignored_action_is_not_installed(server: FakeDdi, behaviour: str, answers: list[int]) -> None:
    server.first_state = "waiting"
    fleet = one(server, Behaviour(**{behaviour: 1.0}))  # type: ignore[arg-type]
    await fleet.run_until(within=60)
    assert server.action("dev").state == "waiting"
    entry = fleet.records()[0].actions["1"]
    assert (entry.confirmation_answers, entry.started, fleet.stats.denied) == (answers, 0, len(answers))


async def test_a_download_only_action_ends_with_downloaded(server: FakeDdi) -> None:
    server.update_mode = "skip"
    fleet = one(server)
    await fleet.run_until(within=60)
    assert server.action("dev").reports[-1] == "downloaded/none"
    entry = fleet.records()[0].actions["1"]
    assert (entry.installs, entry.result, entry.acknowledged) == (0, "downloaded", True)


async def test_duplicates_are_answered_like_the_first(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(duplicate_rate=1))
    await fleet.run_until(within=60)
    assert server.action("dev").reports.count("closed/success") == 2
    assert fleet.records()[0].actions["1"].duplicate_answers == [200]
    assert fleet.stats.succeeded == 1


async def test_reordered_reports_come_after_the_following_one(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(reorder_rate=1))
    await fleet.run_until(within=60)
    assert server.action("dev").reports == [
        "download/none",
        "proceeding/none",
        "closed/success",
        "downloaded/none",
    ]
    assert fleet.stats.succeeded == 1


async def test_an_offer_after_the_acknowledged_end_is_held_against_the_server(server: FakeDdi) -> None:
    server.offer_for_ever = server.serve_after_final = True
    fleet = one(server)
    await fleet.run_until(
        lambda f: "1" in (seen := f.records()[0].actions) and seen["1"].offers_after_final >= 2, within=5
    )
    assert any("offered" in text for text in fleet.violations())
    assert any("installed" in text for text in fleet.violations())
    assert fleet.stats.succeeded == 1  # one device, one action, however often


async def test_bytes_after_the_end_are_held_against_the_server(server: FakeDdi) -> None:
    server.serve_after_final = True
    fleet = one(server, Behaviour(probe_after_final=True))
    await fleet.run_until(within=60)
    assert fleet.violations() == ["dev action 1: 1 bytes served after its end"]


async def test_bytes_refused_after_the_end_are_no_violation(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(probe_after_final=True))
    await fleet.run_until(within=60)
    assert fleet.violations() == []
    assert fleet.stats.by_status[404] == 1


async def test_two_actions_that_are_both_open_are_held_against_the_server(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(install_seconds=(0.3, 0.3)))
    async with fleet.running():
        await fleet.wait_for(lambda f: f.stats.installing == 1, within=60)
        server.offer("dev")  # the fake shows the newest and still takes the first one's result
        await fleet.wait_for(lambda f: f.all_final(2), within=60)
    assert fleet.violations() == ["dev: actions 1 and 2 open at once"]


async def test_an_offer_after_the_first_one_timed_out_on_the_server_is_no_violation(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(install_seconds=(0.3, 0.3)))
    async with fleet.running():
        await fleet.wait_for(lambda f: f.stats.installing == 1, within=60)
        server.action("dev").state = "error"
        server.offer("dev")
        await fleet.wait_for(lambda f: f.all_final(2), within=60)
    (overlap,) = fleet.records()[0].overlaps
    assert (overlap.open_action, overlap.offered_action, overlap.confirmed) == ("1", "2", False)
    assert fleet.violations() == []
    assert server.action("dev").state == "finished"


async def test_withdrawn_bytes_send_the_device_back_to_polling(server: FakeDdi) -> None:
    fleet = one(server, Behaviour(download_bytes_per_second=100_000, download_pieces=8))
    async with fleet.running():
        await fleet.wait_for(lambda f: f.stats.bytes_received > 0, within=60)
        server.action("dev").state = "canceled"  # a stop that did not ask the device
        await fleet.wait_for(within=60)
    assert "closed" not in str(server.action("dev").reports)


async def test_the_record_is_json(server: FakeDdi) -> None:
    fleet = one(server)
    await fleet.run_until(within=60)
    document = json.loads(json.dumps(fleet.records()[0].to_json()))
    assert document["actions"]["1"]["result"] == "success"
    assert json.loads(json.dumps(fleet.stats.to_json()))["by_status"]["200"] > 0
