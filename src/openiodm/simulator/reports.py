"""Reports that are never lost: sent again until the server has answered them, and the answer entered in the record."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from openiodm.clock import Clock
from openiodm.simulator import messages
from openiodm.simulator.behaviour import Behaviour, ConfirmAnswer, Plan
from openiodm.simulator.http import TransportError
from openiodm.simulator.messages import Execution, Finished
from openiodm.simulator.record import GONE, ActionRecord, DeviceRecord
from openiodm.simulator.stats import FleetStats
from openiodm.simulator.wire import NOT_FOUND, Wire, retry_after_seconds

CANCELED = "canceled"  # the result of an action that was stopped by an accepted cancel


class ReportKind(StrEnum):
    """What a report is about."""

    PROGRESS = "progress"
    RESULT = "result"
    CANCEL = "cancel"
    CONFIRMATION = "confirmation"


@dataclass(frozen=True, slots=True)
class Report:
    """A report, the same bytes at every sending.

    `closes` is the result that an answer to it makes final: success, failure, downloaded, canceled; empty for others.
    """

    kind: ReportKind
    action_id: str
    path: str
    body: bytes
    closes: str = ""


class Reporter:
    """Sends one device's reports in order; `pending` is the one without an answer, and survives a cancellation."""

    def __init__(
        self,
        wire: Wire,
        record: DeviceRecord,
        stats: FleetStats,
        behaviour: Behaviour,
        plan: Callable[[str], Plan],
        clock: Clock,
    ) -> None:
        self.pending: Report | None = None
        self.result_unseen = False  # a result was answered, and the device has not looked since
        self._held: Report | None = None
        self._wire = wire
        self._record = record
        self._stats = stats
        self._behaviour = behaviour
        self._plan = plan
        self._clock = clock

    async def progress(self, entry: ActionRecord, execution: Execution, details: str) -> None:
        """Tell progress; by chance only after the report that follows it."""
        report = self._feedback(ReportKind.PROGRESS, entry, execution, Finished.NONE, details)
        chance = self._plan(entry.action_id).chance
        if self._held is None and chance.random() < self._behaviour.reorder_rate:
            self._held = report
            return
        await self.deliver(report)

    def result(self, entry: ActionRecord, finished: Finished, details: str) -> Report:
        """The closing report of an update."""
        return self._feedback(ReportKind.RESULT, entry, Execution.CLOSED, finished, details, closes=finished.value)

    def download_only_result(self, entry: ActionRecord) -> Report:
        """`downloaded`, which ends an action that is not to be installed (ddi.md, 2.3)."""
        execution = Execution.DOWNLOADED
        return self._feedback(
            ReportKind.RESULT, entry, execution, Finished.NONE, "all files got", closes=execution.value
        )

    def cancel_wish(self, entry: ActionRecord) -> Report:
        """`canceled` to a cancelAction: only a word on the way, it ends nothing (ddi.md, 2.4)."""
        return self._feedback(ReportKind.CANCEL, entry, Execution.CANCELED, Finished.NONE, "stopping")

    def cancel_answer(self, entry: ActionRecord, *, accepted: bool) -> Report:
        """The closing answer to a cancelAction; a rejected one ends nothing."""
        finished, word = (Finished.SUCCESS, "accepted") if accepted else (Finished.FAILURE, "rejected")
        return self._feedback(
            ReportKind.CANCEL, entry, Execution.CLOSED, finished, word, closes=CANCELED if accepted else ""
        )

    def confirmation(self, entry: ActionRecord, *, confirmed: bool) -> Report:
        """The answer to a confirmationBase."""
        return Report(
            kind=ReportKind.CONFIRMATION,
            action_id=entry.action_id,
            path=f"/confirmationBase/{entry.action_id}/feedback",
            body=messages.confirmation(confirmed, ["simulated device"]),
        )

    def forget_held(self) -> None:
        """Lose what was only in memory."""
        self._held = None

    async def deliver(self, report: Report) -> int:
        """Send until the answer is 2xx, 404 or 410; that status. Then, by chance, once more, and a held report."""
        self.pending = report
        entry = self._record.action(report.action_id)
        if report.closes and (report.kind is ReportKind.RESULT or entry.result is None):
            entry.result = report.closes
        failures = 0
        while (status := await self._send(report, entry)) is None:
            failures += 1
            self._record.report_repeats += 1
            self._stats.report_repeats += 1
            await asyncio.sleep(max(self._pause, self._wire.backoff(failures)))
        self.pending = None
        self._answered(report, entry, status)
        await self._duplicate(report, entry)
        if self._held is not None:
            held, self._held = self._held, None
            await self.deliver(held)
        return status

    async def _send(self, report: Report, entry: ActionRecord) -> int | None:
        """One sending; its status if that is an answer, else None."""
        self._pause = 0.0
        if report.closes:
            entry.closing_sent += 1
        try:
            response = await self._wire.post(report.path, report.body)
        except TransportError:
            return None
        if 200 <= response.status < 300 or response.status in {NOT_FOUND, GONE}:
            return response.status
        if response.status < 500:
            text = response.body[:200].decode("utf-8", "replace")
            self._wire.misbehaved(f"{report.kind.value} report answered {response.status}: {text}")
        self._pause = retry_after_seconds(response.headers)
        return None

    def _answered(self, report: Report, entry: ActionRecord, status: int) -> None:
        good = 200 <= status < 300
        if report.kind is ReportKind.CONFIRMATION:
            entry.confirmation_answers.append(status)
            if good:
                confirmed = entry.confirmation == ConfirmAnswer.CONFIRM
                self._stats.confirmed += confirmed
                self._stats.denied += not confirmed
        if not report.closes:
            return
        self.result_unseen = True
        entry.closing_answers.append(status)
        self._record.settle_overlaps(entry.action_id, good)
        if not good:
            self._stats.refused += 1
        elif not entry.acknowledged:
            entry.result = report.closes
            entry.acknowledged = True
            entry.acknowledged_ms = self._clock.now()
            self._stats.canceled += report.closes == CANCELED
            self._stats.failed += report.closes == Finished.FAILURE
            self._stats.succeeded += report.closes in {Finished.SUCCESS, Execution.DOWNLOADED}

    async def _duplicate(self, report: Report, entry: ActionRecord) -> None:
        if self._plan(entry.action_id).chance.random() >= self._behaviour.duplicate_rate:
            return
        with contextlib.suppress(TransportError):
            response = await self._wire.post(report.path, report.body)
            if report.closes:
                entry.duplicate_answers.append(response.status)

    def _feedback(
        self,
        kind: ReportKind,
        entry: ActionRecord,
        execution: Execution,
        finished: Finished,
        details: str,
        closes: str = "",
    ) -> Report:
        resource = "cancelAction" if kind is ReportKind.CANCEL else "deploymentBase"
        return Report(
            kind=kind,
            action_id=entry.action_id,
            path=f"/{resource}/{entry.action_id}/feedback",
            body=messages.feedback(entry.action_id, execution, finished, [details], self._clock.now()),
            closes=closes,
        )
