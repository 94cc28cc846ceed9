"""What a device saw and did, kept on the device's side: the witness against which drills check the server's laws.

Plain data, JSON-able with `to_json`. Times are milliseconds since the epoch. The device is serial: it never polls
while a report of its own is unanswered, so "after" below is never a race of its own making.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

MAX_PROBLEMS = 100  # kept per device; the rest is only counted
GONE = 410


@dataclass(slots=True)
class ActionRecord:
    """One action as the device lived it."""

    action_id: str
    offers: int = 0  # poll answers that linked its deploymentBase
    first_offered_ms: int | None = None
    started: int = 0  # times the device began to carry it out
    version: str | None = None
    bytes_received: int = 0
    downloads: int = 0  # files got whole and checked
    installs: int = 0  # installations brought to their end, good or bad
    result: str | None = None  # what the closing report said: success, failure, downloaded, canceled
    closing_sent: int = 0  # closing reports put on the wire, with repeats
    closing_answers: list[int] = field(default_factory=list)  # their status codes, in order
    acknowledged: bool = False  # a closing report was answered 2xx
    acknowledged_ms: int | None = None
    duplicate_answers: list[int] = field(default_factory=list)  # to closing reports sent again on purpose
    confirmation: str | None = None  # confirm, deny, ignore
    confirmation_answers: list[int] = field(default_factory=list)
    cancels_seen: int = 0
    cancel_answer: str | None = None  # accept, reject, ignore
    offers_after_final: int = 0
    bytes_after_final: int = 0
    superseded_by: str | None = None  # the action that the device began instead, this one being unfinished

    @property
    def final(self) -> bool:
        """The server said so itself: 2xx to a closing report, or 410."""
        return self.acknowledged or GONE in self.closing_answers

    @property
    def answered(self) -> bool:
        """Some closing report has its answer (2xx, 404 or 410): the device has nothing left to tell."""
        return bool(self.closing_answers)

    @property
    def open(self) -> bool:
        """Begun, and neither answered nor given up for another."""
        return self.started > 0 and not self.answered and self.superseded_by is None


@dataclass(slots=True)
class Overlap:
    """Another action was offered while one was open on the device.

    That alone may be right: the server may have closed the first by its clock. `confirmed` is True when the server
    then acknowledged a result of the first with 2xx, or named both in one answer; False when it answered 404 or 410;
    None while the device has not asked.
    """

    open_action: str
    offered_action: str
    at_ms: int
    confirmed: bool | None = None


@dataclass(slots=True)
class DeviceRecord:
    """The local memory of one device."""

    controller_id: str
    polls: int = 0
    not_modified: int = 0
    attributes_sent: int = 0
    last_attributes: dict[str, str] = field(default_factory=dict)
    actions: dict[str, ActionRecord] = field(default_factory=dict)  # in the order of their first sight
    overlaps: list[Overlap] = field(default_factory=list)
    report_repeats: int = 0  # sendings that got no answer or one that is not final, and were made again
    transport_errors: int = 0
    problems_total: int = 0
    problems: list[str] = field(default_factory=list)

    def action(self, action_id: str) -> ActionRecord:
        """The entry of an action, made at its first sight."""
        found = self.actions.get(action_id)
        if found is None:
            found = self.actions[action_id] = ActionRecord(action_id)
        return found

    def problem(self, text: str) -> None:
        """Keep a sentence about a misbehaving server."""
        self.problems_total += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(text)

    def note_overlap(self, offered: str, at_ms: int, *, together: tuple[str, ...] = ()) -> None:
        """Note that `offered` came while another was open, or `together` with others in one answer; once a pair."""
        open_ids = [entry.action_id for entry in self.actions.values() if entry.open]
        for other in dict.fromkeys([*open_ids, *together]):
            if other == offered:
                continue
            pair = {other, offered}
            if all({seen.open_action, seen.offered_action} != pair for seen in self.overlaps):
                confirmed = True if other in together else None
                self.overlaps.append(Overlap(other, offered, at_ms, confirmed))

    def settle_overlaps(self, action_id: str, acknowledged: bool) -> None:
        """The server has answered the result of `action_id`: it was, or was not, still open there."""
        for overlap in self.overlaps:
            if overlap.open_action == action_id and overlap.confirmed is None:
                overlap.confirmed = acknowledged

    def violations(self) -> list[str]:
        """Broken laws, one sentence each; empty for an honest server."""
        found: list[str] = []
        for entry in self.actions.values():
            who = f"{self.controller_id} action {entry.action_id}"
            if entry.offers_after_final:
                found.append(f"{who}: offered {entry.offers_after_final} times after its end")
            if entry.bytes_after_final:
                found.append(f"{who}: {entry.bytes_after_final} bytes served after its end")
            if entry.installs > 1:
                found.append(f"{who}: installed {entry.installs} times")
        found += [
            f"{self.controller_id}: actions {seen.open_action} and {seen.offered_action} open at once"
            for seen in self.overlaps
            if seen.confirmed
        ]
        return found

    def to_json(self) -> dict[str, Any]:
        """A document of plain lists, dicts, strings and numbers, with the violations."""
        return {**asdict(self), "violations": self.violations()}
