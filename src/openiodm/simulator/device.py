"""One simulated device: polls, downloads, installs and reports as a real agent does, and remembers all of it.

A device is serial: one request at a time. A report that has no answer of 2xx, 404 or 410 yet is repeated, and
nothing else is done before; it outlives a stop of the fleet. What it decides by chance is drawn in `behaviour`.
"""

import asyncio
import contextlib

from openiodm.clock import Clock, SystemClock
from openiodm.simulator import messages
from openiodm.simulator.behaviour import CancelAnswer, ConfirmAnswer, Phase, Plan, plan_of, timing_of
from openiodm.simulator.download import Downloader, WithdrawnError
from openiodm.simulator.http import HttpClient, TransportError
from openiodm.simulator.messages import BadAnswerError, Deployment, Execution, Finished, Link, PollAnswer
from openiodm.simulator.profile import DeviceProfile, Pace
from openiodm.simulator.record import ActionRecord, DeviceRecord
from openiodm.simulator.reports import Report, Reporter
from openiodm.simulator.stats import DeviceState, FleetStats
from openiodm.simulator.wire import UnusableError, Wire

DEFAULT_SLEEP_SECONDS = 60.0  # when the server gives no polling time
MIN_SLEEP_SECONDS = 0.02  # whatever the server says, an idle device never polls without a pause


class _LeftError(Exception):
    """The update in hand is over for the device: canceled, or lost to a silence."""


class Device:
    """A device's life over one shared `HttpClient`; `run` until cancelled, `visit` for a single poll.

    `run` may be started again after a cancellation: memory, versions and an unanswered report are kept.
    """

    def __init__(
        self,
        profile: DeviceProfile,
        client: HttpClient,
        *,
        seed: int = 0,
        pace: Pace | None = None,
        stats: FleetStats | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.profile = profile
        self.record = DeviceRecord(profile.controller_id)
        self.stats = stats if stats is not None else FleetStats()
        self.versions = dict(profile.versions)
        self.state = DeviceState.OFF
        self.silent_for_ever = False
        self._seed = seed
        self._pace = pace or Pace()
        self._clock: Clock = clock or SystemClock()
        self._timing = timing_of(seed, profile.controller_id)
        self._wire = Wire(profile, client, self.record, self.stats, self._pace, self._timing)
        self._reporter = Reporter(self._wire, self.record, self.stats, profile.behaviour, self._plan, self._clock)
        self._downloader = Downloader(self._wire, profile.behaviour, self.stats, self)
        self._plans: dict[str, Plan] = {}
        self._interval = DEFAULT_SLEEP_SECONDS
        self._next_poll = 0.0  # by the loop's clock
        self._failures = 0
        self._have: str | None = None  # the action whose files are here
        self._last_file: tuple[str, str] | None = None  # action, link of its first file
        self._broken_silence: set[str] = set()
        self.stats.devices += 1
        self.stats.states[self.state] += 1

    # ------------------------------------------------------------------ life

    async def run(self, first_delay: float = 0.0) -> None:
        """Live until cancelled; survives whatever the server does or does not."""
        try:
            if self.silent_for_ever:
                await self._sleep_for_ever()
            self._enter(DeviceState.IDLE)
            await asyncio.sleep(first_delay)
            if self._reporter.pending is not None:
                await self._tell(self._reporter.pending)
                self._enter(DeviceState.IDLE)
            while True:
                pause = await self.visit()
                await asyncio.sleep(pause)
        finally:
            if not self.silent_for_ever:
                self._enter(DeviceState.OFF)

    async def visit(self) -> float:
        """One poll and everything that follows from it; the seconds to wait before the next one."""
        try:
            at_once = await self._follow(await self._poll())
            self._failures = 0
        except TransportError:
            return self._backoff()
        except UnusableError as error:
            return max(error.at_least, self._backoff())
        except BadAnswerError as error:
            self._wire.misbehaved(f"bad answer: {error}")
            return self._backoff()
        except (_LeftError, WithdrawnError):
            at_once = True
        finally:
            if self.state not in {DeviceState.OFF, DeviceState.SILENT}:
                self._enter(DeviceState.IDLE)
        return 0.0 if at_once else max(0.0, self._next_poll - _loop_time())

    @property
    def resting(self) -> bool:
        """Nothing more comes from this device unless the server offers something new.

        Silent for ever; or idle after at least one action, its result followed by a poll, and that poll named no
        action, or one that is answered, denied or ignored.
        """
        if self.silent_for_ever:
            return True
        if self.state is not DeviceState.IDLE or self._reporter.pending or self._reporter.result_unseen:
            return False
        named = [self.record.actions[action_id] for action_id in self._wire.last_poll.actions]
        return bool(self.record.actions) and all(
            entry.answered
            or entry.confirmation in {ConfirmAnswer.DENY, ConfirmAnswer.IGNORE}
            or (entry.cancel_answer == CancelAnswer.IGNORE and not entry.open)
            for entry in named
        )

    async def _follow(self, answer: PollAnswer) -> bool:
        """Do what the poll asked for; True when the next poll should come at once."""
        if answer.config_data is not None:
            await self._send_attributes(answer.config_data)
        self._reporter.result_unseen = False
        if answer.cancel is not None:
            return await self._meet_cancel(answer.cancel, running=None)
        if answer.confirmation is not None:
            return await self._meet_confirmation(answer.confirmation)
        if answer.deployment is not None:
            return await self._update(answer.deployment)
        return False

    # ----------------------------------------------------------------- polls

    async def _poll(self) -> PollAnswer:
        answer = await self._wire.poll()
        self._note(answer)
        self._plan_next_poll(answer)
        return answer

    def _note(self, answer: PollAnswer) -> None:
        """Enter what the answer offers into the record, before anything is done about it."""
        now = self._clock.now()
        named = answer.actions
        if len(named) > 1:
            self._wire.misbehaved(f"several actions in one answer: {', '.join(named)}")
        for action_id in named:
            entry = self.record.action(action_id)
            self.record.note_overlap(action_id, now, together=named)
            if answer.deployment is not None and answer.deployment.action_id == action_id:
                entry.offers += 1
                entry.offers_after_final += entry.final
                if entry.first_offered_ms is None:
                    entry.first_offered_ms = now
                    self.stats.offered += 1
            if answer.cancel is not None and answer.cancel.action_id == action_id:
                entry.cancels_seen += 1

    def _plan_next_poll(self, answer: PollAnswer) -> None:
        override = self._pace.poll_seconds
        if override is not None:
            self._interval = override
        elif answer.sleep_seconds is not None:
            self._interval = answer.sleep_seconds
        else:
            self._wire.misbehaved("no readable config.polling.sleep")
        self._interval = max(self._interval, MIN_SLEEP_SECONDS)
        jitter = self._pace.poll_jitter
        self._next_poll = _loop_time() + self._interval * self._timing.uniform(1 - jitter, 1 + jitter)

    async def _send_attributes(self, href: str) -> None:
        attributes = dict(self.profile.attributes)
        if self.profile.behaviour.reports_version:
            attributes.update(self.versions)
        if not attributes:
            attributes = {"controllerId": self.profile.controller_id}  # an empty `data` is refused
        response = await self._wire.put(href, messages.config_data(attributes))
        if not 200 <= response.status < 300:
            self._wire.misbehaved(f"configData answered {response.status}")
            return
        self.stats.attributes_sent += 1
        self.record.attributes_sent += 1
        self.record.last_attributes = attributes

    # ---------------------------------------------------- confirm and cancel

    async def _meet_confirmation(self, link: Link) -> bool:
        entry, plan = self.record.action(link.action_id), self._plan(link.action_id)
        if entry.confirmation is not None:
            return False  # answered before; a denied one is shown at every poll
        body = await self._wire.get(link.href)
        if body is None:
            return False
        entry.version = _version(messages.parse_deployment(body, "confirmation"))
        entry.confirmation = plan.confirm.value
        if plan.confirm is ConfirmAnswer.IGNORE:
            return False
        confirmed = plan.confirm is ConfirmAnswer.CONFIRM
        await self._tell(self._reporter.confirmation(entry, confirmed=confirmed))
        return confirmed

    async def _meet_cancel(self, link: Link, running: ActionRecord | None) -> bool:
        """Answer a cancelAction; raises `_LeftError` when that stops the update which is running."""
        entry, plan = self.record.action(link.action_id), self._plan(link.action_id)
        entry.cancel_answer = plan.cancel.value
        if plan.cancel is CancelAnswer.IGNORE:
            return False
        answered_before = entry.answered
        body = await self._wire.get(link.href)
        if body is None:
            return False
        if (stop_id := messages.parse_stop(body)) != entry.action_id:
            self._wire.misbehaved(f"cancelAction {entry.action_id} stops {stop_id}")
        accepted = plan.cancel is CancelAnswer.ACCEPT
        state = self.state
        if accepted and self.profile.behaviour.cancel_says_canceled:
            await self._tell(self._reporter.cancel_wish(entry))
        await self._tell(self._reporter.cancel_answer(entry, accepted=accepted))
        self._enter(state)
        if not accepted:
            return False
        if self._have == entry.action_id:
            self._have = None
        await self._probe(entry)
        if running is entry:
            raise _LeftError
        return not answered_before  # a server that keeps asking must not be polled without a pause

    # ---------------------------------------------------------------- update

    async def _update(self, link: Link) -> bool:
        """Carry out an offer; True when the next poll should come at once."""
        entry, plan = self.record.action(link.action_id), self._plan(link.action_id)
        again_after_end = entry.final
        await self.maybe_silent(Phase.OFFERED, entry, plan)
        body = await self._wire.get(link.href)
        if body is None:
            return False
        deployment = messages.parse_deployment(body)
        if deployment.action_id != entry.action_id:
            self._wire.misbehaved(f"deploymentBase {entry.action_id} has id {deployment.action_id}")
        have = self._have == entry.action_id
        if (deployment.download == "skip" and not have) or (deployment.update == "skip" and have):
            return False  # not yet, or the files are here and the maintenance window is still closed
        for other in self.record.actions.values():
            if other is not entry and other.open:
                other.superseded_by = entry.action_id
        entry.started += 1
        entry.version = _version(deployment)
        await self._carry_out(deployment, entry, plan)
        # A server that offers an ended action again would otherwise be asked without a pause, for ever.
        return not again_after_end and deployment.update != "skip"

    async def _carry_out(self, deployment: Deployment, entry: ActionRecord, plan: Plan) -> None:
        if self._have != entry.action_id:
            await self._reporter.progress(entry, Execution.PROCEEDING, f"starting {entry.version}")
            problem = await self._download(deployment, entry, plan)
            if problem is not None:
                self.record.problem(problem)
                await self._finish(entry, self._reporter.result(entry, Finished.FAILURE, problem))
                return
            if deployment.update == "skip" and deployment.window is None:
                await self._finish(entry, self._reporter.download_only_result(entry))
                return
            if self.profile.behaviour.report_download:
                await self._reporter.progress(entry, Execution.DOWNLOADED, "all files got")
            self._have = entry.action_id
        await self.maybe_silent(Phase.DOWNLOADED, entry, plan)
        if deployment.update != "skip":
            await self._install(entry, plan)
            await self._end(deployment, entry, plan)

    async def _download(self, deployment: Deployment, entry: ActionRecord, plan: Plan) -> str | None:
        """Get all files; None, or what is wrong with one."""
        if not self.profile.behaviour.download:
            return None
        if deployment.artifacts:
            self._last_file = (entry.action_id, deployment.artifacts[0].href)
        self._enter(DeviceState.DOWNLOADING)
        if self.profile.behaviour.report_download:
            await self._reporter.progress(entry, Execution.DOWNLOAD, "downloading")
        return await self._downloader.get_all(deployment, entry, plan)

    async def _install(self, entry: ActionRecord, plan: Plan) -> None:
        self._enter(DeviceState.INSTALLING)
        reports = self.profile.behaviour.progress_reports
        steps = max(reports, 2)
        for step in range(steps):
            if step == steps // 2:
                await self.maybe_silent(Phase.INSTALLING, entry, plan)
            await self.wait(plan.install_seconds / steps, entry)
            if step < reports:
                details = f"installing, step {step + 1} of {steps}"
                await self._reporter.progress(entry, Execution.PROCEEDING, details)
        entry.installs += 1
        self.stats.installed += not plan.fails
        self._have = None

    async def _end(self, deployment: Deployment, entry: ActionRecord, plan: Plan) -> None:
        """Reboot into the new version, or not, and tell the result."""
        if plan.fails:
            failure = self._reporter.result(entry, Finished.FAILURE, "simulated: installation failed")
            await self._finish(entry, failure)
            return
        if not plan.rolls_back:
            self._take_versions(deployment)
        report = self._reporter.result(entry, Finished.SUCCESS, f"installed {entry.version}")
        # The result is known from here on: a stop of the fleet during the reboot must not install twice.
        self._reporter.pending = report
        self._enter(DeviceState.REBOOTING)
        await asyncio.sleep(plan.reboot_seconds)
        await self.maybe_silent(Phase.REPORTING, entry, plan)
        await self._finish(entry, report)

    async def _finish(self, entry: ActionRecord, report: Report) -> None:
        await self._tell(report)
        await self._probe(entry)

    async def _tell(self, report: Report) -> None:
        self._enter(DeviceState.REPORTING)
        await self._reporter.deliver(report)

    async def _probe(self, entry: ActionRecord) -> None:
        """Ask for one byte of the first file although the action is over; an honest server refuses."""
        if not (self.profile.behaviour.probe_after_final and entry.final and self._last_file):
            return
        action_id, href = self._last_file
        if action_id != entry.action_id:
            return
        with contextlib.suppress(TransportError):
            async with self._wire.download(href, "0-0") as stream:
                if stream.status in {200, 206}:
                    async for piece in stream.chunks():
                        entry.bytes_after_final += len(piece)

    def _take_versions(self, deployment: Deployment) -> None:
        for chunk in deployment.chunks:
            key = self.profile.version_keys.get(chunk.part)
            for name in [key] if key is not None else list(self.versions):
                self.versions[name] = chunk.version

    # ------------------------------------- beside an update (`download.Host`)

    async def wait(self, seconds: float, entry: ActionRecord) -> None:
        """Let time pass in an update, polling when due; ends the update when a cancel is accepted."""
        until = _loop_time() + seconds
        while (left := until - _loop_time()) > 0:
            await asyncio.sleep(min(left, max(0.0, self._next_poll - _loop_time())))
            if _loop_time() < until:
                await self.look_if_due(entry)

    async def look_if_due(self, entry: ActionRecord) -> None:
        """Poll in the middle of an update if it is time."""
        if _loop_time() >= self._next_poll:
            await self.look(entry)

    async def look(self, entry: ActionRecord) -> bool:
        """Poll in the middle of an update: only attributes and a cancel of this action are acted upon.

        Returns whether the action is still offered, by the last answer that came.
        """
        try:
            answer = await self._poll()
            if answer.config_data is not None:
                await self._send_attributes(answer.config_data)
            if answer.cancel is not None and answer.cancel.action_id == entry.action_id:
                await self._meet_cancel(answer.cancel, entry)
            self._failures = 0
        except (TransportError, UnusableError):
            self._next_poll = _loop_time() + self._backoff()
        except BadAnswerError as error:
            self._wire.misbehaved(f"bad answer: {error}")
            self._next_poll = _loop_time() + self._interval
        offer = self._wire.last_poll.deployment
        return offer is not None and offer.action_id == entry.action_id

    async def maybe_silent(self, phase: Phase, entry: ActionRecord, plan: Plan) -> None:
        """Fall silent if the plan says so here; afterwards only an installed device knows what it did."""
        if plan.silent_in is not phase or entry.action_id in self._broken_silence:
            return
        self._broken_silence.add(entry.action_id)
        if plan.silent_seconds is None:
            self.silent_for_ever = True
            await self._sleep_for_ever()
        before = self.state
        self._enter(DeviceState.SILENT)
        await asyncio.sleep(plan.silent_seconds or 0.0)
        self._enter(before)
        if phase is not Phase.REPORTING:
            self._reporter.forget_held()
            raise _LeftError

    async def _sleep_for_ever(self) -> None:
        self._enter(DeviceState.SILENT)
        await asyncio.get_running_loop().create_future()

    def _backoff(self) -> float:
        self._failures += 1
        return self._wire.backoff(self._failures)

    def _plan(self, action_id: str) -> Plan:
        plan = self._plans.get(action_id)
        if plan is None:
            profile = self.profile
            plan = plan_of(profile.behaviour, self._seed, profile.controller_id, len(self._plans))
            self._plans[action_id] = plan
        return plan

    def _enter(self, state: DeviceState) -> None:
        if state is not self.state:
            self.stats.states[self.state] -= 1
            self.stats.states[state] += 1
            self.state = state


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _version(deployment: Deployment) -> str | None:
    return deployment.chunks[0].version if deployment.chunks else None
