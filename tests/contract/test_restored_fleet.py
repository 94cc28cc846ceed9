"""After a restore the database is older than the fleet (D26): nobody is upgraded twice, and no number comes twice.

`settle` is run on a database that stands for the backup's; what the fleet did after the backup is what the rows lack.
"""

from collections.abc import AsyncIterator

import pytest

from openiodm.campaigns import texts
from openiodm.campaigns.model import Counters, Hold, Policy
from openiodm.campaigns.rollout import Answer, Confirmation, Expiry, Result, Versions
from openiodm.campaigns.states import UpgradeState
from openiodm.clock import Instant
from openiodm.errors import Reason, Refusal
from openiodm.protocols.ddi.session import is_offered
from openiodm.storage.backup.aftermath import Restored, settle
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


async def restored(core: Core, *, away_ms: int = 3_600_000) -> Restored:
    """The rows are a backup's, made `away_ms` ago."""
    taken_at = core.clock.now()
    core.clock.advance(away_ms)
    async with core.database.transaction() as tx:
        return await settle(tx, taken_at, core.clock.now(), "operator:test")


async def tell(core: Core, device: int, version: str) -> None:
    await core.signal(device, Versions(fw=version))
    await core.set_version(device, version)


async def counters(core: Core, task: str) -> Counters:
    return (await core.queries.one(core.actor, task)).counters


async def state(core: Core, task: str, ordinal: int) -> UpgradeState:
    upgrades = (await core.queries.upgrades(core.actor, task, 0, 100))[1]
    return next(u.state for u in upgrades if u.ordinal == ordinal)


async def reason(core: Core, task: str, ordinal: int = 1) -> str | None:
    found = await core.queries.upgrades_after(core.actor, task, ordinal - 1, 1)
    return found[0].reason


async def test_an_unfinished_task_is_held_and_a_device_that_shows_the_version_ends_without_an_offer(core: Core) -> None:
    task = await core.create(await core.add_devices(2))
    told = await restored(core)
    assert [held.operation_id for held in told.held] == [task]
    assert (await core.queries.one(core.actor, task)).hold is Hold.ALL
    await core.contact(1)
    assert await counters(core, task) == Counters(total=2, wait=2)
    assert "held" in str(await reason(core, task))
    await tell(core, 1, "V2")  # it was upgraded after the backup
    await tell(core, 2, "V1")
    await core.contact(2)
    assert await counters(core, task) == Counters(total=2, wait=1, success=1)
    (upgrade,) = await core.queries.upgrades_after(core.actor, task, 0, 1)
    assert (upgrade.state, upgrade.detail, upgrade.action_id) == (S.SUCCESS, texts.SAME_VERSION, None)


async def test_resumed_it_goes_on_with_numbers_that_nobody_had(core: Core) -> None:
    task = await core.create(await core.add_devices(2))
    await core.fail(1)
    told = await restored(core)
    await core.commands.resume(core.actor, task, unproven=False)
    assert (await core.queries.one(core.actor, task)).hold is Hold.UNPROVEN
    await core.contact(2)  # nobody knows what it runs
    assert await state(core, task, 2) is S.WAIT
    assert "not told its version" in str(await reason(core, task, 2))
    await tell(core, 2, "V1")
    assert await core.grant(2) == told.attempt_base + 1


async def test_a_second_restore_of_the_same_backup_begins_above_the_first(core: Core) -> None:
    await core.add_devices(1)
    first = await restored(core)
    async with core.database.transaction() as tx:
        again = await settle(tx, first.taken_at, Instant(core.clock.now() + 1000), "operator:test")
        assert again.attempt_base > first.attempt_base
        late = await settle(tx, first.taken_at, Instant(0), "operator:test")  # by a clock that is wrong
    assert late.attempt_base > again.attempt_base


async def test_a_late_report_of_an_attempt_that_the_backup_does_not_know_is_gone(core: Core) -> None:
    task = await core.create(await core.add_devices(1))
    await restored(core)
    outcome = await core.signal(1, Result(1, True, LOG))
    assert outcome.answer is Answer.GONE
    assert await state(core, task, 1) is S.WAIT


async def test_an_attempt_of_the_backup_is_not_offered_again_and_its_report_counts(core: Core) -> None:
    task = await core.create(await core.add_devices(2, version=None))
    action = await core.grant(1)
    await restored(core)
    await core.commands.resume(core.actor, task, unproven=True)
    outcome = await core.contact(1)
    assert outcome.standing is not None
    assert not is_offered(outcome.standing)
    assert (await core.signal(1, Result(action, True, LOG))).answer is Answer.DONE
    assert await counters(core, task) == Counters(total=2, wait=1, success=1)


async def test_an_attempt_of_the_backup_ends_by_the_version_that_the_device_shows(core: Core) -> None:
    task = await core.create(await core.add_devices(1))
    await core.grant(1)
    await restored(core)
    await tell(core, 1, "V1")
    assert await state(core, task, 1) is S.OFFERED  # it may still be at it
    await tell(core, 1, "V2")
    assert (await core.queries.one(core.actor, task)).status.value == "success"


async def test_an_attempt_of_the_backup_ends_by_its_clock_which_stood_still_and_is_tried_anew(core: Core) -> None:
    task = await core.create(await core.add_devices(1), policy=Policy(retry_times=1))
    old = await core.grant(1)
    told = await restored(core, away_ms=10 * CLOCKS.download)
    await core.commands.resume(core.actor, task, unproven=False)
    await core.signal(1, Expiry())
    assert await state(core, task, 1) is S.OFFERED
    core.clock.advance(CLOCKS.download)
    await core.signal(1, Expiry())
    await core.run_jobs()
    await tell(core, 1, "V1")
    assert await core.grant(1) == told.attempt_base + 1 > old


async def test_a_device_that_never_tells_its_version_waits_until_its_operator_takes_the_risk(core: Core) -> None:
    task = await core.create(await core.add_devices(1, version=None))
    await restored(core)
    await core.commands.resume(core.actor, task, unproven=False)
    await core.contact(1)
    assert await state(core, task, 1) is S.WAIT
    assert "never tells its version" in str(await reason(core, task))
    await core.commands.resume(core.actor, task, unproven=True)
    await core.grant(1)


async def test_a_new_task_too_waits_for_the_version_of_a_device_that_tells_it(core: Core) -> None:
    devices = await core.add_devices(1)
    await restored(core)
    task = await core.create(devices)
    await core.contact(1)
    assert await state(core, task, 1) is S.WAIT
    await tell(core, 1, "V2")
    await core.contact(1)
    assert await state(core, task, 1) is S.SUCCESS


async def test_a_held_task_runs_out_of_no_patience_and_has_all_of_it_again_when_resumed(core: Core) -> None:
    task = await core.create(await core.add_devices(1))
    await restored(core, away_ms=10 * CLOCKS.online)
    core.clock.advance(10 * CLOCKS.online)
    await core.run_jobs()
    assert await counters(core, task) == Counters(total=1, wait=1)
    await core.commands.resume(core.actor, task, unproven=False)
    core.clock.advance(CLOCKS.online - 1)
    await core.run_jobs()
    assert await counters(core, task) == Counters(total=1, wait=1)
    core.clock.advance(1)
    await core.run_jobs()
    assert await counters(core, task) == Counters(total=1, timeout=1)


async def test_a_held_task_can_be_stopped(core: Core) -> None:
    task = await core.create(await core.add_devices(2))
    await core.grant(1)
    await restored(core)
    await core.commands.stop(core.actor, task)
    await core.run_jobs()
    core.clock.advance(CLOCKS.cancel)
    await core.signal(1, Expiry())
    assert await counters(core, task) == Counters(total=2, stop=2)
    with pytest.raises(Refusal) as refused:
        await core.commands.resume(core.actor, task, unproven=False)
    assert refused.value.reason is Reason.CAMPAIGN_FINISHED


async def test_a_task_that_was_being_expanded_is_whole_and_still_held(core: Core) -> None:
    await core.add_devices(3)
    await core.add_group("g", 1, 3)
    task = await core.create(groups=["g"])
    await restored(core)
    await core.run_jobs()
    await tell(core, 1, "V1")
    await core.contact(1)
    assert await counters(core, task) == Counters(total=3, wait=3)
    await core.commands.resume(core.actor, task, unproven=False)
    await core.grant(1)


async def test_one_that_is_resumed_before_it_is_whole_opens_when_it_is(core: Core) -> None:
    await core.add_devices(1)
    await core.add_group("g", 1, 1)
    task = await core.create(groups=["g"])
    await restored(core)
    await core.commands.resume(core.actor, task, unproven=False)
    await core.run_jobs()
    await tell(core, 1, "V1")
    await core.grant(1)
    assert await counters(core, task) == Counters(total=1, processing=1)


async def test_the_retry_of_a_failed_task_spares_devices_that_cannot_show_what_they_run(core: Core) -> None:
    await core.add_devices(1)
    silent = await core.add_devices(1, version=None, first=2)
    task = await core.create(["d1", *silent])
    await core.fail(1)
    await core.fail(2)
    await restored(core)
    await core.commands.retry(core.actor, task)
    await core.run_jobs()
    await tell(core, 1, "V2")  # somebody had retried it after the backup
    await core.contact(2)
    assert await counters(core, task) == Counters(total=2, wait=1, success=1)


async def test_a_task_that_failed_while_it_was_held_can_be_retried(core: Core) -> None:
    task = await core.create(await core.add_devices(1))
    action = await core.grant(1)
    await restored(core)
    await core.signal(1, Result(action, False, LOG))
    assert (await core.queries.one(core.actor, task)).status.value == "failed"
    await core.commands.retry(core.actor, task)
    await core.run_jobs()
    await tell(core, 1, "V1")
    await core.grant(1)
    assert (await core.queries.one(core.actor, task)).hold is Hold.UNPROVEN


async def test_a_device_is_asked_again_for_its_yes_as_another_attempt(core: Core) -> None:
    task = await core.create(await core.add_devices(1), confirmation=True)
    asked = (await core.contact(1)).standing
    assert asked is not None
    assert asked.action_id == 1
    told = await restored(core)
    await core.commands.resume(core.actor, task, unproven=False)
    await tell(core, 1, "V1")
    assert (await core.signal(1, Confirmation(1, True, LOG))).answer is Answer.GONE
    again = (await core.contact(1)).standing
    assert again is not None
    assert (again.state, again.action_id) == (S.WAIT, told.attempt_base + 1)


async def test_to_resume_what_is_not_held_changes_nothing(core: Core) -> None:
    task = await core.create(await core.add_devices(1))
    await core.commands.resume(core.actor, task, unproven=False)
    assert (await core.queries.one(core.actor, task)).hold is None
    await core.grant(1)
