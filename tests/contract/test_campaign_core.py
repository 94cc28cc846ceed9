"""The campaign core on both engines: grants, reports, rounds, windows, stops, expansion, and the laws after each."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from openiodm.campaigns import texts
from openiodm.campaigns.model import Counters, ExecuteType, IdempotencyKey, Policy
from openiodm.campaigns.rollout import Answer, CancelAnswer, Confirmation, Expiry, Progress, Result, Versions
from openiodm.campaigns.states import CampaignStatus, UpgradeEvent, UpgradeState
from openiodm.clock import Instant
from openiodm.errors import Reason, Refusal
from openiodm.storage.engine import Database
from tests.conftest import ManualClock
from tests.support.core import CLOCKS, LOG, Core, build_core

S = UpgradeState


@pytest.fixture
async def core(database: Database, clock: ManualClock) -> AsyncIterator[Core]:
    built = await build_core(database, clock)
    yield built
    await built.check_laws()
    await built.writer.close()


async def status(core: Core, operation: str) -> tuple[str, Counters]:
    campaign = await core.queries.one(core.actor, operation)
    return campaign.status.value, campaign.counters


async def test_a_task_waits_until_its_first_grant_and_succeeds_when_its_devices_report_the_version(core: Core) -> None:
    task = await core.create(await core.add_devices(2))
    assert await status(core, task) == ("wait", Counters(total=2, wait=2))
    await core.succeed(1)
    assert await status(core, task) == ("processing", Counters(total=2, wait=1, success=1))
    await core.succeed(2)
    assert await status(core, task) == ("success", Counters(total=2, success=2))


async def test_a_device_that_says_done_is_verified_by_the_version_it_then_reports(core: Core) -> None:
    task = await core.create(await core.add_devices(1))
    action = await core.grant(1)
    outcome = await core.signal(1, Result(action, True, LOG))
    assert outcome.standing is not None
    assert outcome.standing.state is S.VERIFYING
    assert (await status(core, task))[0] == "processing"
    await core.signal(1, Versions(fw="V1"))
    assert await status(core, task) == ("failed", Counters(total=1, fail=1))


async def test_a_device_that_never_told_a_version_is_taken_at_its_word(core: Core) -> None:
    task = await core.create(await core.add_devices(1, version=None))
    action = await core.grant(1)
    await core.signal(1, Result(action, True, LOG))
    assert (await status(core, task))[0] == "success"
    (upgrade,) = (await core.queries.upgrades(core.actor, task, 0, 10))[1]
    assert upgrade.detail == texts.UPGRADED_UNVERIFIED


async def test_a_device_on_the_version_already_ends_at_once_as_success(core: Core) -> None:
    task = await core.create(await core.add_devices(1, version="V2"))
    assert await status(core, task) == ("success", Counters(total=1, success=1))
    (upgrade,) = (await core.queries.upgrades(core.actor, task, 0, 10))[1]
    assert upgrade.detail == texts.SAME_VERSION


async def test_a_version_learnt_while_waiting_is_looked_at_again_at_the_grant(core: Core) -> None:
    task = await core.create(await core.add_devices(1))
    await core.set_version(1, "V2")
    outcome = await core.contact(1)
    assert outcome.standing is not None
    assert outcome.standing.state is S.SUCCESS
    assert (await status(core, task))[0] == "success"


async def test_a_version_outside_the_source_list_fails_and_an_unknown_one_passes(core: Core) -> None:
    known = await core.add_devices(1, version="V1")
    unknown = await core.add_devices(1, version=None, first=2)
    task = await core.create([*known, *unknown], file_id="f-from-V0")
    assert (await status(core, task))[1] == Counters(total=2, wait=1, fail=1)
    await core.grant(2)


async def test_a_second_task_for_a_busy_device_conflicts(core: Core) -> None:
    devices = await core.add_devices(2)
    first = await core.create(devices[:1])
    second = await core.create(devices)
    assert (await status(core, second))[1] == Counters(total=2, wait=1, fail=1)
    rows = await core.queries.upgrades_after(core.actor, second, 0, 10)
    conflict = next(u for u in rows if u.state is S.FAIL)
    assert (conflict.detail, conflict.blocker) == (texts.TASK_CONFLICT, first)


async def test_repeated_and_late_reports_change_nothing_and_are_answered(core: Core) -> None:
    task = await core.create(await core.add_devices(1, version=None))
    action = await core.grant(1)
    done = Result(action, True, LOG)
    assert (await core.signal(1, done)).answer is Answer.DONE
    before = await status(core, task)
    assert (await core.signal(1, done)).answer is Answer.DONE
    assert (await core.signal(1, Result(action, False, LOG))).answer is Answer.GONE
    assert (await core.signal(1, Progress(action, LOG))).answer is Answer.GONE
    assert (await core.signal(1, Progress(action + 5, LOG))).answer is Answer.UNKNOWN
    core.clock.advance(11 * 60_000)
    assert (await core.signal(1, done)).answer is Answer.GONE
    assert await status(core, task) == before


async def test_many_reports_of_one_device_in_one_batch_fold_in_order(core: Core) -> None:
    await core.create(await core.add_devices(1, version=None))
    action = await core.grant(1)
    outcomes = await asyncio.gather(
        core.signal(1, Progress(action, LOG, UpgradeEvent.DOWNLOAD_STARTED)),
        core.signal(1, Progress(action, LOG, UpgradeEvent.DOWNLOADED)),
        core.signal(1, Progress(action, LOG, UpgradeEvent.INSTALL_STARTED)),
        core.signal(1, Result(action, True, LOG)),
        core.signal(1, Result(action, True, LOG)),
    )
    assert [o.answer for o in outcomes] == [Answer.DONE] * 5
    changes = await core.database.fetch("SELECT to_state FROM history ORDER BY id")
    assert [c[0] for c in changes] == ["offered", "downloading", "downloaded", "installing", "success"]


async def test_four_polls_at_once_are_one_grant(core: Core) -> None:
    await core.create(await core.add_devices(1))
    outcomes = await asyncio.gather(*(core.contact(1) for _ in range(4)))
    assert {o.standing.action_id for o in outcomes if o.standing} == {1}
    assert await core.database.fetchval("SELECT count(*) FROM history") == 1


async def test_retry_rounds_take_only_the_failed_and_then_the_task_fails(core: Core) -> None:
    task = await core.create(await core.add_devices(2), policy=Policy(retry_times=1))
    await core.succeed(1)
    await core.fail(2)
    await core.run_jobs()
    assert await status(core, task) == ("processing", Counters(total=2, wait=1, success=1))
    await core.fail(2, "again")
    await core.run_jobs()
    assert await status(core, task) == ("failed", Counters(total=2, success=1, fail=1))
    rows = (await core.queries.upgrades(core.actor, task, 0, 10))[1]
    assert {u.device_id: (u.round, u.action_id) for u in rows} == {"d1": (0, 1), "d2": (1, 2)}


async def test_a_report_of_the_attempt_before_a_retry_changes_nothing(core: Core) -> None:
    task = await core.create(await core.add_devices(1), policy=Policy(retry_times=1))
    action = await core.grant(1)
    failure = Result(action, False, LOG)
    await core.signal(1, failure)
    await core.run_jobs()
    assert (await status(core, task))[1] == Counters(total=1, wait=1)
    assert (await core.signal(1, failure)).answer is Answer.DONE
    assert (await core.signal(1, Result(action, True, LOG))).answer is Answer.GONE
    second = await core.grant(1)
    assert second == action + 1
    assert (await core.signal(1, failure)).answer is Answer.DONE
    assert (await status(core, task))[1] == Counters(total=1, processing=1)


async def test_an_operator_retries_a_failed_task(core: Core) -> None:
    task = await core.create(await core.add_devices(1))
    await core.fail(1)
    assert (await status(core, task))[0] == "failed"
    await core.commands.retry(core.actor, task)
    assert (await status(core, task))[0] == "processing"
    await core.run_jobs()
    await core.succeed(1)
    assert await status(core, task) == ("success", Counters(total=1, success=1))
    with pytest.raises(Refusal) as refused:
        await core.commands.retry(core.actor, task)
    assert refused.value.reason is Reason.CAMPAIGN_FINISHED


async def test_a_retry_skips_devices_that_another_task_holds(core: Core) -> None:
    devices = await core.add_devices(2)
    first = await core.create(devices)
    await core.fail(1)
    await core.fail(2)
    other = await core.create(devices[:1])
    await core.commands.retry(core.actor, first)
    await core.run_jobs()
    assert (await status(core, first))[1] == Counters(total=2, wait=1, fail=1)
    await core.succeed(2)
    assert (await status(core, first))[0] == "failed"
    assert (await status(core, other))[1] == Counters(total=1, wait=1)


async def test_a_stop_ends_waiting_devices_and_cancels_granted_ones(core: Core) -> None:
    task = await core.create(await core.add_devices(3))
    action = await core.grant(1)
    await core.commands.stop(core.actor, task)
    assert (await status(core, task))[0] == "stop"
    assert (await core.contact(2)).standing is not None
    assert (await status(core, task))[1] == Counters(total=3, wait=2, processing=1)
    await core.run_jobs()
    assert (await status(core, task))[1] == Counters(total=3, processing=1, stop=2)
    answer = await core.signal(1, CancelAnswer(action, True, LOG))
    assert answer.answer is Answer.DONE
    assert await status(core, task) == ("stop", Counters(total=3, stop=3))
    with pytest.raises(Refusal):
        await core.commands.stop(core.actor, task)


async def test_a_stop_asks_devices_in_every_phase_to_cancel(core: Core) -> None:
    phases = [
        None,
        UpgradeEvent.DOWNLOAD_STARTED,
        UpgradeEvent.DOWNLOADED,
        UpgradeEvent.INSTALL_STARTED,
        UpgradeEvent.INSTALLED,
    ]
    task = await core.create(await core.add_devices(len(phases) + 1))
    for device, event in enumerate(phases, 1):
        action = await core.grant(device)
        if event is not None:
            await core.signal(device, Progress(action, LOG, event))
    await core.commands.stop(core.actor, task)
    await core.run_jobs()
    upgrades = (await core.queries.upgrades(core.actor, task, 0, 10))[1]
    assert sorted(u.state for u in upgrades) == [*[S.CANCELLING] * len(phases), S.STOP]
    assert (await status(core, task))[1] == Counters(total=len(phases) + 1, processing=len(phases), stop=1)


@pytest.mark.parametrize("kind", ["campaign.sweep", "campaign.online"])
async def test_whoever_waits_behind_the_place_that_a_job_has_come_to_is_not_left_behind(core: Core, kind: str) -> None:
    task = await core.create(await core.add_devices(3))
    if kind == "campaign.sweep":
        await core.commands.stop(core.actor, task)
    async with core.database.transaction() as tx:
        assert await tx.execute("UPDATE job SET cursor = 2 WHERE kind = $1", kind) == 1
    core.clock.advance(CLOCKS.online)
    await core.run_jobs()
    assert (await status(core, task))[1].unfinished == 0


async def test_a_device_that_never_answers_a_stop_ends_by_the_cancel_clock(core: Core) -> None:
    task = await core.create(await core.add_devices(1))
    await core.grant(1)
    await core.commands.stop(core.actor, task)
    await core.run_jobs()
    core.clock.advance(CLOCKS.cancel - 1)
    await core.signal(1, Expiry())
    assert (await status(core, task))[1] == Counters(total=1, processing=1)
    core.clock.advance(1)
    await core.signal(1, Expiry())
    assert await status(core, task) == ("stop", Counters(total=1, stop=1))


async def test_a_device_may_still_finish_while_it_is_asked_to_cancel(core: Core) -> None:
    task = await core.create(await core.add_devices(1, version=None))
    action = await core.grant(1)
    await core.commands.stop(core.actor, task)
    await core.run_jobs()
    await core.signal(1, CancelAnswer(action, False, LOG))
    await core.signal(1, Result(action, True, LOG))
    assert await status(core, task) == ("stop", Counters(total=1, success=1))


async def test_one_device_of_a_task_can_be_stopped(core: Core) -> None:
    task = await core.create(await core.add_devices(2))
    await core.commands.stop_device(core.actor, task, "n1")
    assert (await status(core, task))[1] == Counters(total=2, wait=1, stop=1)
    with pytest.raises(Refusal) as refused:
        await core.commands.stop_device(core.actor, task, "d1")
    assert refused.value.reason is Reason.UPGRADE_CLOSED
    await core.succeed(2)
    assert (await status(core, task))[0] == "stop"


@pytest.mark.parametrize(
    ("events", "clock_ms", "text"),
    [
        ([], CLOCKS.download, texts.DOWNLOAD_TIMEOUT),
        ([UpgradeEvent.DOWNLOAD_STARTED], CLOCKS.download, texts.DOWNLOAD_TIMEOUT),
        ([UpgradeEvent.DOWNLOADED], CLOCKS.install, texts.RESULT_TIMEOUT),
    ],
)
async def test_a_silent_device_ends_by_the_clock_of_its_phase(
    core: Core, events: list[UpgradeEvent], clock_ms: int, text: str
) -> None:
    task = await core.create(await core.add_devices(1))
    action = await core.grant(1)
    for event in events:
        await core.signal(1, Progress(action, LOG, event))
    assert await core.reads.due(Instant(core.clock.now() + clock_ms - 1), 10) == []
    core.clock.advance(clock_ms)
    assert await core.reads.due(core.clock.now(), 10) == [1]
    await core.signal(1, Expiry())
    assert await status(core, task) == ("failed", Counters(total=1, timeout=1))
    (upgrade,) = (await core.queries.upgrades(core.actor, task, 0, 10))[1]
    assert upgrade.detail == text


async def test_devices_that_never_come_time_out_together(core: Core) -> None:
    task = await core.create(await core.add_devices(3))
    core.clock.advance(CLOCKS.online)
    await core.run_jobs()
    assert await status(core, task) == ("failed", Counters(total=3, timeout=3))


async def test_a_window_lets_nobody_start_before_it_or_after_it(core: Core) -> None:
    now = core.clock.now()
    policy = Policy(ExecuteType.CUSTOM, Instant(now + 60_000), Instant(now + 600_000))
    task = await core.create(await core.add_devices(2), policy=policy)
    early = await core.contact(1)
    assert early.standing is not None
    assert early.standing.state is S.WAIT
    core.clock.advance(60_000)
    await core.grant(1)
    core.clock.advance(540_000)
    late = await core.contact(2)
    assert late.standing is not None
    assert late.standing.state is S.WAIT
    await core.run_jobs()
    assert (await status(core, task))[1] == Counters(total=2, processing=1, stop=1)
    await core.signal(1, Result(1, True, LOG))
    await core.signal(1, Versions(fw="V2"))
    assert await status(core, task) == ("stop", Counters(total=2, success=1, stop=1))


async def test_no_retry_round_begins_after_the_window(core: Core) -> None:
    now = core.clock.now()
    policy = Policy(ExecuteType.CUSTOM, now, Instant(now + 600_000), retry_times=5)
    task = await core.create(await core.add_devices(1), policy=policy)
    action = await core.grant(1)
    core.clock.advance(600_000)
    await core.signal(1, Result(action, False, LOG))
    await core.run_jobs()
    assert await status(core, task) == ("failed", Counters(total=1, fail=1))


async def test_a_device_that_must_confirm_gets_no_offer_before_its_yes(core: Core) -> None:
    task = await core.create(await core.add_devices(1), confirmation=True)
    asked = await core.contact(1)
    assert asked.standing is not None
    assert (asked.standing.state, asked.standing.action_id) == (S.WAIT, 1)
    await core.signal(1, Confirmation(1, False, LOG))
    assert (await core.contact(1)).standing.state is S.WAIT  # type: ignore[union-attr]
    await core.signal(1, Confirmation(1, True, LOG))
    assert await core.grant(1) == 1
    assert (await status(core, task))[0] == "processing"


async def test_no_more_devices_are_under_way_than_the_task_allows(core: Core) -> None:
    task = await core.create(await core.add_devices(5), max_concurrent=2)
    came = await asyncio.gather(*(core.contact(n) for n in range(1, 6)))  # in one batch
    states = [c.standing.state for c in came if c.standing is not None]
    assert states == [S.OFFERED, S.OFFERED, S.WAIT, S.WAIT, S.WAIT]
    assert await status(core, task) == ("processing", Counters(total=5, wait=3, processing=2))
    upgrades = await core.queries.upgrades_after(core.actor, task, 0, 10)
    assert {u.reason for u in upgrades[2:]} == {"as many devices of the task are under way as may be at once"}
    assert {c.standing.full for c in came[2:] if c.standing is not None} == {True}
    await core.succeed(1)  # it has its turn; its place is free again
    later = await asyncio.gather(*(core.contact(n) for n in (3, 4, 5)))
    assert [c.standing.state for c in later if c.standing is not None] == [S.OFFERED, S.WAIT, S.WAIT]
    assert await status(core, task) == ("processing", Counters(total=5, wait=2, processing=2, success=1))


async def test_a_place_is_taken_within_the_batch_in_which_another_device_leaves_it(core: Core) -> None:
    task = await core.create(await core.add_devices(2, version=None), max_concurrent=1)
    action = await core.grant(1)
    ended, came = await asyncio.gather(core.signal(1, Result(action, False, LOG)), core.contact(2))
    assert ended.standing is not None
    assert came.standing is not None
    assert (ended.standing.state, came.standing.state) == (S.FAIL, S.OFFERED)
    assert await status(core, task) == ("processing", Counters(total=2, processing=1, fail=1))


async def test_who_needs_no_turn_does_not_wait_for_a_place(core: Core) -> None:
    task = await core.create(await core.add_devices(3), max_concurrent=1)
    await core.grant(1)
    await core.set_version(2, "V2")
    came = await core.contact(2)
    assert came.standing is not None
    assert came.standing.state is S.SUCCESS
    assert await status(core, task) == ("processing", Counters(total=3, wait=1, processing=1, success=1))


async def test_a_silent_device_gives_its_place_back(core: Core, clock: ManualClock) -> None:
    await core.create(await core.add_devices(2), max_concurrent=1)
    await core.grant(1)
    clock.advance(CLOCKS.download)
    await core.signal(1, Expiry())
    came = await core.contact(2)
    assert came.standing is not None
    assert came.standing.state is S.OFFERED


async def test_a_group_task_is_accepted_at_once_and_expanded_by_a_job(core: Core) -> None:
    await core.add_devices(2500)
    await core.add_devices(10, first=2501, product=2)
    await core.add_group("g", 1, 2510)
    await core.add_group("h", 2400, 50)
    await core.set_version(7, "V2")
    await core.create(["d8"])
    task = await core.create(groups=["g", "h"])
    assert await status(core, task) == ("wait", Counters())
    assert (await core.contact(1)).standing is None
    await core.run_jobs()
    assert await status(core, task) == ("wait", Counters(total=2500, wait=2498, success=1, fail=1))
    total, newest = await core.queries.upgrades(core.actor, task, 0, 3)
    assert total == 2500
    assert [u.ordinal for u in newest] == [2500, 2499, 2498]
    _, last = await core.queries.upgrades(core.actor, task, 833, 3)
    assert [u.ordinal for u in last] == [1]
    await core.succeed(1)


async def test_members_that_join_after_creation_are_not_meant(core: Core) -> None:
    await core.add_devices(3)
    await core.add_group("g", 1, 2)
    task = await core.create(groups=["g"])
    async with core.database.transaction() as tx:
        await tx.execute("INSERT INTO group_member (group_id, device_id, product_id) VALUES (1, 3, 1)")
    await core.run_jobs()
    assert (await status(core, task))[1] == Counters(total=2, wait=2)


async def test_a_stop_during_the_expansion_ends_it(core: Core) -> None:
    await core.add_devices(5)
    await core.add_group("g", 1, 5)
    task = await core.create(groups=["g"])
    await core.commands.stop(core.actor, task)
    await core.run_jobs()
    assert await status(core, task) == ("stop", Counters())


async def test_refusals_of_creation_name_what_is_wrong_and_write_nothing(core: Core) -> None:
    await core.add_devices(1)
    await core.add_devices(1, first=2, product=2)
    await core.add_group("empty", 1, 0)
    for kwargs, reason in (
        ({"devices": ["d1"], "file_id": "nope"}, Reason.PACKAGE_UNKNOWN),
        ({"devices": ["d1"], "file_id": "s1"}, Reason.PACKAGE_TYPE_MISMATCH),
        ({"devices": ["d1", "nope"]}, Reason.DEVICE_UNKNOWN),
        ({"devices": ["d2"]}, Reason.TARGET_MISMATCH),
        ({"groups": ["nope"]}, Reason.GROUP_UNKNOWN),
        ({"groups": ["empty"]}, Reason.TARGET_MISMATCH),
    ):
        with pytest.raises(Refusal) as refused:
            await core.create(**kwargs)  # type: ignore[arg-type]
        assert refused.value.reason is reason
    assert await core.database.fetchval("SELECT count(*) FROM campaign") == 0


async def test_a_hundred_parallel_creates_with_one_key_are_one_task(core: Core) -> None:
    devices = await core.add_devices(1)
    key = IdempotencyKey("k", "hash")
    tasks = await asyncio.gather(*(core.create(devices, idempotency=key) for _ in range(100)))
    assert len(set(tasks)) == 1
    assert await core.database.fetchval("SELECT count(*) FROM campaign") == 1
    with pytest.raises(Refusal) as refused:
        await core.create(devices, idempotency=IdempotencyKey("k", "another"))
    assert refused.value.reason is Reason.IDEMPOTENCY_KEY_REUSED


async def test_a_deleted_devices_open_upgrade_ends_failed(core: Core) -> None:
    task = await core.create(await core.add_devices(1))
    await core.grant(1)
    await core.writer.run(lambda work: core.commands.device_deleted(work, 1, core.clock.now()))
    assert await status(core, task) == ("failed", Counters(total=1, fail=1))
    (upgrade,) = (await core.queries.upgrades(core.actor, task, 0, 10))[1]
    assert upgrade.detail == texts.DEVICE_GONE


async def test_another_applications_campaign_does_not_exist(core: Core) -> None:
    from dataclasses import replace

    from openiodm.access.model import ApplicationKey

    task = await core.create(await core.add_devices(1))
    foreign = replace(core.actor, application=ApplicationKey(2))
    for attempt in (
        core.queries.one(foreign, task),
        core.queries.upgrades(foreign, task, 0, 10),
        core.queries.recount(foreign, task),
        core.commands.stop(foreign, task),
        core.commands.retry(foreign, task),
        core.commands.stop_device(foreign, task, "d1"),
    ):
        with pytest.raises(Refusal) as refused:
            await attempt
        assert refused.value.reason is Reason.CAMPAIGN_UNKNOWN
    assert (await core.queries.page(foreign, 0, 10))[0] == 0


async def test_a_recount_equals_the_counters(core: Core) -> None:
    task = await core.create(await core.add_devices(5))
    await core.succeed(1)
    await core.fail(2)
    await core.grant(3)
    recount = await core.queries.recount(core.actor, task)
    assert recount.exact
    assert recount.rows == Counters(total=5, wait=2, processing=1, success=1, fail=1)


async def test_the_list_filters_by_every_attribute_and_by_device(core: Core) -> None:
    devices = await core.add_devices(3)
    first = await core.create(devices[:1])
    second = await core.create(devices[1:])
    await core.succeed(1)
    total, page = await core.queries.page(core.actor, 0, 10)
    assert (total, [c.operation_id for c in page]) == (2, [second, first])
    total, page = await core.queries.page(core.actor, 0, 10, status=CampaignStatus.SUCCESS)
    assert [c.operation_id for c in page] == [first]
    total, page = await core.queries.page(core.actor, 0, 10, device_id="d3", model="m")
    assert [c.operation_id for c in page] == [second]
    assert await core.queries.page(core.actor, 5, 10) == (2, ())
    assert (await core.queries.page(core.actor, 0, 10, model="none"))[0] == 0


async def test_a_repeated_yes_to_a_cancel_is_answered_as_the_first(core: Core) -> None:
    task = await core.create(await core.add_devices(1))
    action = await core.grant(1)
    await core.commands.stop(core.actor, task)
    await core.run_jobs()
    yes = CancelAnswer(action, True, LOG)
    assert (await core.signal(1, yes)).answer is Answer.DONE
    assert (await core.signal(1, yes)).answer is Answer.DONE
    assert (await core.signal(1, CancelAnswer(action, False, LOG))).answer is Answer.GONE


async def test_a_device_that_is_asked_to_confirm_what_it_already_runs_is_done(core: Core) -> None:
    task = await core.create(await core.add_devices(1), confirmation=True)
    await core.contact(1)
    await core.set_version(1, "V2")
    await core.contact(1)
    assert await status(core, task) == ("success", Counters(total=1, success=1))


async def test_a_stop_of_a_verifying_device_still_takes_its_version(core: Core) -> None:
    task = await core.create(await core.add_devices(1))
    action = await core.grant(1)
    done = Result(action, True, LOG)
    await core.signal(1, done)
    await core.commands.stop(core.actor, task)
    await core.run_jobs()
    assert (await core.signal(1, done)).answer is Answer.DONE
    assert (await status(core, task))[1] == Counters(total=1, processing=1)
    await core.signal(1, Versions(fw="V2"))
    assert await status(core, task) == ("stop", Counters(total=1, success=1))
