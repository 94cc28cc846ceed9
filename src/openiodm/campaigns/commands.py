"""What applications ask of the core: create, stop, retry. Each is one transaction of the writer."""

from collections.abc import Callable
from dataclasses import replace

import msgspec

from openiodm.access.model import Actor
from openiodm.campaigns import endings
from openiodm.campaigns.endings import end_if_complete
from openiodm.campaigns.model import CampaignKey, Clocks, ExecuteType, Hold, NewCampaign, Policy
from openiodm.campaigns.ports import (
    CampaignDesk,
    CampaignRow,
    DeliveryLimits,
    DeviceFacts,
    GroupFacts,
    PackageFacts,
    Work,
    WriterPort,
)
from openiodm.campaigns.reports import Outcome, ReportDesk, Signal
from openiodm.campaigns.rollout import Gone, Halt, Replaced, Versions, What, may_retry
from openiodm.campaigns.states import BORN_FINAL, CAMPAIGN_FINAL, CampaignEvent, CampaignStatus, next_campaign_status
from openiodm.clock import DAY, Clock, Instant, random_id
from openiodm.devices.model import DeviceKey
from openiodm.errors import Reason, Refusal


class CampaignCommands:
    """The core's commands. `wake` tells the scheduler that a job was made due; `stop_lane` goes before all others."""

    def __init__(
        self,
        writer: WriterPort,
        clock: Clock,
        clocks: Clocks,
        desk: ReportDesk,
        wake: Callable[[], None],
        stop_lane: object,
        limits: DeliveryLimits | None = None,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._clocks = clocks
        self._desk = desk
        self._wake = wake
        self._stop_lane = stop_lane
        self._limits = limits
        self.signalled: Callable[[str], None] = lambda _what: None
        """Hears of every signal that has become durable."""

    async def create(self, actor: Actor, asked: NewCampaign) -> str:
        """Writes campaign, upgrades, counters and its first jobs; the operationId.

        A group is not read here but expanded by a job: the answer does not depend on its size.

        Raises:
            Refusal: PACKAGE_UNKNOWN, DEVICE_UNKNOWN, GROUP_UNKNOWN, PACKAGE_TYPE_MISMATCH, TARGET_MISMATCH, or
                IDEMPOTENCY_KEY_REUSED.
        """

        async def command(work: Work) -> str:
            return await self._create(work, actor, asked)

        operation_id: str = await self._writer.run(command)
        self._wake()
        return operation_id

    async def _create(self, work: Work, actor: Actor, asked: NewCampaign) -> str:
        now = self._clock.now()
        operation_id = random_id()
        if asked.idempotency is not None:
            earlier = await self._earlier(work, actor, asked, operation_id, now)
            if earlier is not None:
                return earlier
        package = await work.campaigns.package(actor.application, asked.file_id)
        if package is None:
            raise Refusal(Reason.PACKAGE_UNKNOWN, "no such package", field="fileId")
        if package.file_type != asked.kind.file_type:
            raise Refusal(Reason.PACKAGE_TYPE_MISMATCH, f"the package is a {package.file_type}", field="fileId")
        target = asked.target
        if target.groups is not None:
            groups = await _groups(work, actor, asked, package)
            devices = None
        else:
            groups = None
            found = await _devices(work, actor, asked, package)
            asked = replace(asked, target=replace(target, devices=tuple(d.device_id for d in found)))
            devices = [d.key for d in found]
        _match(asked, package)
        if self._limits is not None:
            in_groups = None if groups is None else [group.key for group in groups]
            if (why := await self._limits.objection(work, package, devices, in_groups)) is not None:
                raise Refusal(Reason.TARGET_MISMATCH, why, field="fileId")
        policy = asked.policy or Policy()
        key = await work.campaigns.insert(
            CampaignRow(
                operation_id=operation_id,
                application=actor.application,
                asked=asked,
                package=package,
                policy=policy,
                clocks=asked.clocks or self._clocks,
                work="idle" if groups is None else "expanding",
                open=groups is None,
                created_at=now,
            )
        )
        await self._first_jobs(work, key, policy, asked.clocks or self._clocks, now)
        if devices is not None:
            owed = may_retry(round_=0, retry_times=policy.retry_times, window_end=policy.window_end, now=now)
            before = await work.campaigns.insert_for_devices(key, devices, now, owed=owed)
            await work.notices.born(key, before, BORN_FINAL, now, owed=owed)
            await end_if_complete(work, key, now)
        elif groups is not None:
            await work.campaigns.target_groups(key, groups)
            await work.jobs.put(endings.EXPAND, key, now)
        await work.audit.record(actor, "task.create", operation_id, now)
        return operation_id

    async def _earlier(
        self, work: Work, actor: Actor, asked: NewCampaign, operation_id: str, now: Instant
    ) -> str | None:
        assert asked.idempotency is not None
        key, request_hash = asked.idempotency.key, asked.idempotency.request_hash
        if await work.campaigns.remember(actor.application, key, request_hash, operation_id, now):
            return None
        earlier = await work.campaigns.idempotent(actor.application, key)
        assert earlier is not None
        return asked.idempotency.answered(*earlier)

    async def _first_jobs(self, work: Work, key: CampaignKey, policy: Policy, clocks: Clocks, now: Instant) -> None:
        begin = now if policy.window_start is None else Instant(max(now, policy.window_start))
        await work.jobs.put(endings.ONLINE, key, Instant(begin + clocks.online))
        if policy.execute_type is ExecuteType.CUSTOM and policy.window_end is not None:
            await work.jobs.put(endings.WINDOW_END, key, policy.window_end)

    async def stop(self, actor: Actor, operation_id: str) -> None:
        """One commit: status `stop`, the fence, a sweep job. From then on nobody is granted.

        Raises:
            Refusal: CAMPAIGN_UNKNOWN, CAMPAIGN_FINISHED.
        """

        async def command(work: Work) -> None:
            desk = await _campaign(work, actor, operation_id)
            if next_campaign_status(desk.status, CampaignEvent.STOPPED) is None:
                raise Refusal(Reason.CAMPAIGN_FINISHED, f"the task has ended: {desk.status}")
            now = self._clock.now()
            await work.campaigns.mark_stopped(desk.key, now)
            for kind in endings.JOBS:
                await work.jobs.remove(kind, desk.key)
            await work.jobs.put(endings.SWEEP, desk.key, now)
            await work.audit.record(actor, "task.stop", operation_id, now)

        await self._writer.run(command, self._stop_lane)
        self._wake()

    async def retry(self, actor: Actor, operation_id: str) -> None:
        """Another round over the failed and timed-out devices of a failed task.

        Raises:
            Refusal: CAMPAIGN_UNKNOWN, CAMPAIGN_FINISHED (it is not failed), NOTHING_TO_RETRY (its window is over, or
                its package is deleted).
        """

        async def command(work: Work) -> None:
            desk = await _campaign(work, actor, operation_id)
            if next_campaign_status(desk.status, CampaignEvent.RETRIED) is None:
                state = f"it is {desk.status}"
                raise Refusal(Reason.CAMPAIGN_FINISHED, f"only a failed task can be retried: {state}")
            now = self._clock.now()
            if desk.window_end is not None and now >= desk.window_end:
                raise Refusal(Reason.NOTHING_TO_RETRY, "the task's time window is over")
            if not await work.campaigns.package_lives(desk.key):
                raise Refusal(Reason.NOTHING_TO_RETRY, "the task's package was deleted")
            await work.campaigns.begin_round(desk.key, reopened=True)
            if desk.hold is Hold.ALL:  # it ended while it was held; whoever retries it wants it to go on
                desk = msgspec.structs.replace(desk, hold=Hold.UNPROVEN)
                await work.campaigns.set_hold(desk.key, desk.hold)
            await endings.begin_round_jobs(work, desk, now)
            if desk.window_end is not None:
                await work.jobs.put(endings.WINDOW_END, desk.key, desk.window_end)
            await work.audit.record(actor, "task.retry", operation_id, now)

        await self._writer.run(command)
        self._wake()

    async def resume(self, actor: Actor, operation_id: str, *, unproven: bool) -> None:
        """Lets a task go on that a restore has held. A task that is not held stays as it is.

        Devices that never tell their version go on only if `unproven`: they may have been upgraded after the backup.
        All that wait have the whole online clock again.

        Raises:
            Refusal: CAMPAIGN_UNKNOWN, CAMPAIGN_FINISHED.
        """

        async def command(work: Work) -> None:
            desk = await _campaign(work, actor, operation_id)
            if desk.status in (CampaignStatus.SUCCESS, CampaignStatus.STOP):
                raise Refusal(Reason.CAMPAIGN_FINISHED, f"the task has ended: {desk.status}")
            now = self._clock.now()
            if desk.hold is not None:
                await work.campaigns.set_hold(desk.key, None if unproven else Hold.UNPROVEN)
            if desk.hold is Hold.ALL and desk.status not in CAMPAIGN_FINAL:
                await work.campaigns.set_open(desk.key, desk.work != "expanding")
                await endings.begin_online_clock(work, desk, now)
            await work.audit.record(actor, "task.resume", operation_id, now)

        await self._writer.run(command)
        self._wake()

    async def stop_device(self, actor: Actor, operation_id: str, device: str) -> None:
        """Stops one device's upgrade; `device` is a device id or a node id.

        Raises:
            Refusal: CAMPAIGN_UNKNOWN, UPGRADE_UNKNOWN, UPGRADE_CLOSED (it has ended).
        """

        async def command(work: Work) -> None:
            campaign = await work.campaigns.find(actor.application, operation_id)
            if campaign is None:
                raise _unknown()
            found = await work.campaigns.upgrade_of(campaign, device)
            if found is None:
                raise Refusal(Reason.UPGRADE_UNKNOWN, "the device is not in this task", field="deviceId")
            key, unfinished = found
            if not unfinished:
                raise Refusal(Reason.UPGRADE_CLOSED, "the device's upgrade has ended")
            await self._desk.process(work, [Signal(key, Halt())])
            await work.audit.record(actor, "task.stop-device", operation_id, self._clock.now(), f"device {device}")

        await self._writer.run(command)

    async def forget_keys(self) -> int:
        """Idempotency keys older than 24 hours go; how many."""
        before = Instant(self._clock.now() - DAY)

        async def command(work: Work) -> int:
            return await work.campaigns.forget(before)

        return int(await self._writer.run(command))

    async def device_deleted(self, work: Work, device: int, now: Instant) -> None:
        """The devices room's port: an open upgrade of a deleted device ends, in the deletion's own transaction."""
        del now  # the desk reads the clock
        await self._desk.process(work, [Signal(DeviceKey(device), Gone())])

    async def node_id_changed(self, work: Work, device: int) -> None:
        """The devices room's port: an attempt of the device under its old node id is over, in that transaction."""
        await self._desk.process(work, [Signal(DeviceKey(device), Replaced())])

    async def versions_told(self, work: Work, device: int, fw: str | None, sw: str | None) -> None:
        """The devices room's port: a version that a device told, in that transaction."""
        await self._desk.process(work, [Signal(DeviceKey(device), Versions(fw, sw))])

    async def signal(self, device: DeviceKey, what: What) -> Outcome:
        """What a protocol heard from a device; durable when it returns."""
        outcome: Outcome = await self._writer.report(self._desk, Signal(device, what))
        self.signalled(type(what).__name__.lower())
        return outcome


async def _campaign(work: Work, actor: Actor, operation_id: str) -> CampaignDesk:
    desk = await work.campaigns.locked_by_operation(actor.application, operation_id)
    if desk is None:
        raise _unknown()
    return desk


def _unknown() -> Refusal:
    return Refusal(Reason.CAMPAIGN_UNKNOWN, "no such task", field="operationId")


async def _devices(work: Work, actor: Actor, asked: NewCampaign, package: PackageFacts) -> list[DeviceFacts]:
    """Each once, in the order in which they were named first."""
    wanted = list(dict.fromkeys(asked.target.devices or ()))
    known = await work.campaigns.devices(actor.application, wanted, node_ids=asked.node_ids)
    for name in wanted:
        if name not in known:
            raise Refusal(Reason.DEVICE_UNKNOWN, f"no such device: {name}", field="devices")
    for name in wanted:
        if known[name].product != package.product:
            raise Refusal(Reason.TARGET_MISMATCH, f"the package is not for device {name}", field="devices")
    return list({known[name].key: known[name] for name in wanted}.values())


async def _groups(work: Work, actor: Actor, asked: NewCampaign, package: PackageFacts) -> list[GroupFacts]:
    wanted = list(dict.fromkeys(asked.target.groups or ()))
    known = await work.campaigns.groups(actor.application, wanted, package.product)
    for name in wanted:
        if name not in known:
            raise Refusal(Reason.GROUP_UNKNOWN, f"no such group: {name}", field="deviceGroups")
    _match(asked, package)
    if not any(group.matches for group in known.values()):
        raise Refusal(Reason.TARGET_MISMATCH, "no member of the groups is of the package's type", field="deviceGroups")
    return [known[name] for name in wanted]


def _match(asked: NewCampaign, package: PackageFacts) -> None:
    """What the target says about the devices must be what the package is for."""
    target = asked.target
    for field, given, meant in (
        ("deviceType", target.device_type, package.device_type),
        ("model", target.model, package.model),
        ("manufacturerName", target.manufacturer_name, package.manufacturer_name),
    ):
        if given is not None and given != meant:
            raise Refusal(Reason.TARGET_MISMATCH, f"the package is for {field} {meant!r}", field=field)
