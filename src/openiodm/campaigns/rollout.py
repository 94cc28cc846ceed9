"""Every decision about one device and about a campaign's end, as pure functions.

`step` takes where a device stands and what happened, and gives back where it stands now with the transitions on the
way, the log line to keep and the answer for the device. It reads no clock and touches no row: `reports.py` does.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

import msgspec

from openiodm.campaigns import texts
from openiodm.campaigns.model import CampaignKey, CampaignKind, Clocks, Counters, Hold, LogEntry, UpgradeKey
from openiodm.campaigns.states import FINAL, UpgradeEvent, UpgradeState, next_upgrade_state
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey
from openiodm.packages.model import PackageKey

DEVICE_DELETED, NODE_ID_CHANGED = "device_deleted", "node_id_changed"  # causes
MAX_DETAIL = 1024  # characters of a device's own words in `detail`

S, E = UpgradeState, UpgradeEvent


class Standing(msgspec.Struct, frozen=True):
    """One upgrade with all that a decision about it needs: its own row, its campaign's facts, its device's facts."""

    upgrade: UpgradeKey
    device: DeviceKey
    campaign: CampaignKey
    package: PackageKey
    state: UpgradeState
    round: int
    action_id: int | None
    confirmed: bool | None
    halted_in: UpgradeState | None
    source_version: str | None
    detail: str | None
    error_code: str | None
    started_at: Instant | None
    finished_at: Instant | None
    due_at: Instant | None
    # the campaign's
    kind: CampaignKind
    target_version: str
    source_versions: tuple[str, ...]
    confirmation: bool
    clocks: Clocks
    window_start: Instant | None
    window_end: Instant | None
    open: bool  # the fence: expanded, not stopped
    # the device's
    version: str | None  # of the kind that is upgraded
    reports_version: bool  # has it ever told one of that kind?
    auto_confirm: bool
    attempt_seq: int
    # what others call them
    sub_operation_id: str
    device_id: str
    # the campaign's again
    hold: Hold | None = None
    full: bool = False  # as many devices are under way as may be at once


PhaseEvent = Literal[UpgradeEvent.DOWNLOAD_STARTED, UpgradeEvent.DOWNLOADED, UpgradeEvent.INSTALL_STARTED]


@dataclass(frozen=True, slots=True)
class Contact:
    """The device is here and could be given something to do."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The device works on attempt `action_id`; `event` is the phase it entered, if it said so."""

    action_id: int
    log: LogEntry
    event: PhaseEvent | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The device is done with attempt `action_id`."""

    action_id: int
    success: bool
    log: LogEntry
    detail: str = ""
    error_code: str | None = None
    timed_out: bool = False  # the device itself gave up waiting


@dataclass(frozen=True, slots=True)
class CancelAnswer:
    """The answer to a request to stop. `accepted` None: it only says that it is at it."""

    action_id: int
    accepted: bool | None
    log: LogEntry


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The device's (its user's) yes or no to attempt `action_id`."""

    action_id: int
    confirmed: bool
    log: LogEntry


@dataclass(frozen=True, slots=True)
class Versions:
    """The device told what it runs; None is "not told"."""

    fw: str | None = None
    sw: str | None = None

    def of(self, kind: CampaignKind) -> str | None:
        """The version of the kind that `kind` upgrades."""
        return self.fw if kind is CampaignKind.FIRMWARE else self.sw


@dataclass(frozen=True, slots=True)
class Expiry:
    """The clock of the present phase may have run out."""


@dataclass(frozen=True, slots=True)
class Halt:
    """An operator stops this one device's upgrade."""


@dataclass(frozen=True, slots=True)
class Gone:
    """The device was deleted."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """The device has another node id: it is other hardware from now on (contract section 5.3)."""


What = Contact | Progress | Result | CancelAnswer | Confirmation | Versions | Expiry | Halt | Gone | Replaced


class Answer(Enum):
    """What the device is told."""

    DONE = "done"  # also when it said so before: repeats are normal
    GONE = "gone"  # that attempt is closed
    UNKNOWN = "unknown"  # there is no such attempt, or it does not take this report now


class Transition(msgspec.Struct, frozen=True):
    """One legal change of state, as the history keeps it."""

    from_state: UpgradeState
    to_state: UpgradeState
    action_id: int | None
    cause: str


class Step(msgspec.Struct, frozen=True):
    """The outcome of one thing that happened."""

    standing: Standing
    answer: Answer = Answer.DONE
    transition: Transition | None = None
    log: LogEntry | None = None


def may_go(s: Standing, now: Instant) -> bool:
    """Is the campaign open to this device's grant, and the moment inside its window?"""
    if not s.open or must_show_version(s):
        return False
    return (s.window_start is None or now >= s.window_start) and (s.window_end is None or now < s.window_end)


def must_show_version(s: Standing) -> bool:
    """Has the device to show first what it runs? A restore forgets the versions that devices tell by themselves: they
    may have changed since the backup. One that never tells any cannot show that it is not upgraded yet.
    """
    return s.version is None if s.reports_version else s.hold is not None


def is_from_backup(s: Standing) -> bool:
    """Was its attempt under way when a backup was made that has been restored since?

    Then nobody knows how it ended. It is never offered again, and ends by what the device says of it, by the version
    that the device shows, or by its clock. (An open attempt is otherwise the device's newest.)
    """
    return s.action_id is not None and s.action_id != s.attempt_seq


def wants_contact(s: Standing, now: Instant) -> bool:
    """Would a contact change anything? If not, a poll needs no write."""
    if s.state is not S.WAIT or not may_go(s, now):
        return False
    if _settled(s):
        return True
    return s.action_id is None if _asks(s) else not s.full


def _settled(s: Standing) -> bool:
    """Does the device's version decide it, whatever else?"""
    return s.version is not None and (
        s.version == s.target_version or (bool(s.source_versions) and s.version not in s.source_versions)
    )


def asks_confirmation(s: Standing, now: Instant) -> bool:
    """Is the device to be asked before it gets the offer?"""
    return s.state is S.WAIT and s.action_id is not None and _asks(s) and may_go(s, now)


def _asks(s: Standing) -> bool:
    return s.confirmation and not s.confirmed and not s.auto_confirm


def offers_bytes(s: Standing) -> bool:
    """May the device have the package now? From its grant to its result; after a stop only if it installs already."""
    if s.state is S.CANCELLING:
        return s.halted_in is S.INSTALLING
    if s.state is S.INSTALLING:
        return True
    return s.open and not is_from_backup(s) and s.state in (S.OFFERED, S.DOWNLOADING, S.DOWNLOADED)


def step(s: Standing, what: What, now: Instant) -> Step:
    """What happened, decided. Late, repeated and illegal reports leave the standing as it is."""
    match what:
        case Contact():
            return _contact(s, now)
        case Progress():
            return _progress(s, what, now)
        case Result():
            return _result(s, what, now)
        case CancelAnswer():
            return _cancel_answer(s, what, now)
        case Confirmation():
            return _confirmation(s, what)
        case Versions():
            return _versions(s, what, now)
        case Expiry():
            return _expiry(s, now)
        case Halt():
            return _move(s, E.STOPPED, now, "operator", detail=texts.STOPPED)
        case Gone():
            return _move(s, E.FAILED, now, DEVICE_DELETED, detail=texts.DEVICE_GONE)
        case Replaced():
            return _replaced(s, now)


def _contact(s: Standing, now: Instant) -> Step:
    if not wants_contact(s, now):
        return Step(s)
    if s.version is not None and s.version == s.target_version:
        return _move(s, E.SUCCEEDED, now, "same_version", detail=texts.SAME_VERSION)
    if s.version is not None and s.source_versions and s.version not in s.source_versions:
        return _move(s, E.FAILED, now, "source_version", detail=texts.SOURCE_VERSION)
    if s.action_id is None:
        number = s.attempt_seq + 1
        s = msgspec.structs.replace(s, action_id=number, attempt_seq=number)
    if _asks(s):
        return Step(s)  # it has an action id to be asked about; its turn comes with the yes
    granted = msgspec.structs.replace(s, started_at=now, source_version=s.version)
    return _move(granted, E.GRANTED, now, "contact")


def _of_this_attempt(s: Standing, action_id: int) -> Answer | None:
    """None when the report belongs to the open attempt; otherwise what to answer."""
    if s.action_id == action_id:
        return None
    return Answer.GONE if 0 < action_id <= s.attempt_seq else Answer.UNKNOWN


def _progress(s: Standing, what: Progress, now: Instant) -> Step:
    other = _of_this_attempt(s, what.action_id)
    if other is not None:
        return Step(s, other)
    if s.state in FINAL:
        return Step(s, Answer.GONE)
    if s.state is S.WAIT:
        return Step(s, Answer.UNKNOWN)  # asked about, not offered yet
    if what.event is None:
        return Step(s, log=what.log)
    return _move(s, what.event, now, "device", log=what.log)


def _result(s: Standing, what: Result, now: Instant) -> Step:
    other = _of_this_attempt(s, what.action_id)
    if other is not None:
        return Step(s, other)
    if s.state in FINAL:
        return Step(s, repeated(s.state, what))
    if s.state is S.WAIT:
        return Step(s, Answer.UNKNOWN)
    if what.success and (s.state is S.VERIFYING or s.halted_in is S.VERIFYING):
        return Step(s, log=what.log)  # said before; what counts now is the version
    if not what.success:
        event = E.EXPIRED if what.timed_out and s.state is not S.CANCELLING else E.FAILED
        detail = (what.detail or texts.UPDATE_FAILED)[:MAX_DETAIL]
        return _move(s, event, now, "device", detail=detail, error_code=what.error_code, log=what.log)
    if not s.reports_version:
        believed = msgspec.structs.replace(s, version=s.target_version)
        return _move(believed, E.SUCCEEDED, now, "device", detail=texts.UPGRADED_UNVERIFIED, log=what.log)
    if s.version == s.target_version:  # told since the grant, which does not go to devices that have it
        return _move(s, E.SUCCEEDED, now, "version", detail=texts.UPGRADED, log=what.log)
    return _move(s, E.INSTALLED, now, "device", log=what.log)


def repeated(recorded: UpgradeState, what: Result | CancelAnswer) -> Answer:
    """The last word on an attempt that has ended: the same again is fine, another one is too late."""
    if isinstance(what, CancelAnswer):
        return Answer.DONE if recorded is S.STOP and what.accepted else Answer.GONE
    same = recorded is S.SUCCESS if what.success else recorded in (S.FAIL, S.TIMEOUT)
    return Answer.DONE if same else Answer.GONE


def _cancel_answer(s: Standing, what: CancelAnswer, now: Instant) -> Step:
    other = _of_this_attempt(s, what.action_id)
    if other is not None:
        return Step(s, other)
    if s.state is not S.CANCELLING:
        return Step(s, Answer.GONE if s.state in FINAL else Answer.UNKNOWN)
    if what.accepted:
        return _move(s, E.CANCELLED, now, "device", log=what.log)
    # A refused cancel: the device goes on, and ends by its own report or by the cancel clock. Nothing is offered anew.
    return Step(s, log=what.log)


def _confirmation(s: Standing, what: Confirmation) -> Step:
    other = _of_this_attempt(s, what.action_id)
    if other is not None:
        return Step(s, other)
    if s.state in FINAL:
        return Step(s, Answer.GONE)
    if s.state is not S.WAIT or not s.confirmation:
        return Step(s, Answer.UNKNOWN)
    return Step(msgspec.structs.replace(s, confirmed=what.confirmed), log=what.log)


def _replaced(s: Standing, now: Instant) -> Step:
    """An attempt belongs to the hardware that was given it: the new one knows nothing of it, and may have had an
    attempt of that number before. Who waits is asked anew; who was to give up has done so; any other attempt has
    failed, and a retry gives the upgrade to the new hardware, after all that is looked at before a grant.
    """
    if s.state is S.WAIT:
        return Step(msgspec.structs.replace(s, action_id=None, confirmed=None))
    if s.state is S.CANCELLING:
        return _move(s, E.CANCELLED, now, NODE_ID_CHANGED)
    return _move(s, E.FAILED, now, NODE_ID_CHANGED, detail=texts.NODE_ID_CHANGED)


def _versions(s: Standing, what: Versions, now: Instant) -> Step:
    version = what.of(s.kind)
    if version is None:
        return Step(s)
    s = msgspec.structs.replace(s, version=version, reports_version=True)
    if version == s.target_version and _is_uncertain(s):
        return _move(s, E.SUCCEEDED, now, "version", detail=texts.SAME_VERSION if s.state is S.WAIT else texts.UPGRADED)
    verifying = s.state is S.VERIFYING or (s.state is S.CANCELLING and s.halted_in is S.VERIFYING)
    if not verifying:
        return Step(s)
    if version == s.target_version:
        return _move(s, E.SUCCEEDED, now, "version", detail=texts.UPGRADED)
    detail = f"{texts.UPDATE_FAILED}: the device reports version {version}"[:MAX_DETAIL]
    return _move(s, E.FAILED, now, "version", detail=detail)


def _is_uncertain(s: Standing) -> bool:
    """Since a restore: may the device have had its upgrade already?"""
    return s.hold is not None if s.state is S.WAIT else is_from_backup(s)


_EXPIRY_TEXT = {
    S.OFFERED: texts.DOWNLOAD_TIMEOUT,
    S.DOWNLOADING: texts.DOWNLOAD_TIMEOUT,
    S.DOWNLOADED: texts.RESULT_TIMEOUT,
    S.INSTALLING: texts.RESULT_TIMEOUT,
    S.VERIFYING: texts.VERIFY_TIMEOUT,
}


def _expiry(s: Standing, now: Instant) -> Step:
    if s.due_at is None or now < s.due_at:
        return Step(s)
    if s.state is S.CANCELLING:
        return _move(s, E.CANCELLED, now, "clock")
    return _move(s, E.EXPIRED, now, "clock", detail=_EXPIRY_TEXT[s.state])


def _move(
    s: Standing,
    event: UpgradeEvent,
    now: Instant,
    cause: str,
    *,
    detail: str | None = None,
    error_code: str | None = None,
    log: LogEntry | None = None,
) -> Step:
    """Takes the transition if the table has it; otherwise the report is kept as a log line and changes nothing."""
    to = next_upgrade_state(s.state, event)
    if to is None:
        return Step(s, log=log)
    moved = msgspec.structs.replace(
        s,
        state=to,
        detail=detail if detail is not None else s.detail,
        error_code=error_code if error_code is not None else s.error_code,
        finished_at=now if to in FINAL else None,
        due_at=_due(s, to, now),
        halted_in=s.state if to is S.CANCELLING else s.halted_in,
    )
    return Step(moved, transition=Transition(s.state, to, moved.action_id, cause), log=log)


_PHASE = {
    S.OFFERED: "download",
    S.DOWNLOADING: "download",
    S.DOWNLOADED: "install",
    S.INSTALLING: "install",
    S.VERIFYING: "verify",
    S.CANCELLING: "cancel",
}


def _due(s: Standing, to: UpgradeState, now: Instant) -> Instant | None:
    """A clock counts from the entry into its phase; moving on within the phase does not set it anew."""
    phase = _PHASE.get(to)
    if phase is None:
        return None
    if phase == _PHASE.get(s.state):
        return s.due_at
    return Instant(now + int(getattr(s.clocks, phase)))


class Conclusion(Enum):
    """What comes when no device of a campaign is left to end."""

    RETRY = "retry"  # another round over the failed ones
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"


def conclude(
    counters: Counters, *, round_: int, retry_times: int, window_end: Instant | None, now: Instant
) -> Conclusion | None:
    """None while a device is still to end.

    A round of retries is due while policy has one left and the window, if any, is not over (contract section 6.2).
    """
    if counters.unfinished:
        return None
    if counters.fail + counters.timeout:
        again = may_retry(round_=round_, retry_times=retry_times, window_end=window_end, now=now)
        return Conclusion.RETRY if again else Conclusion.FAILED
    if counters.success == counters.total and counters.total:
        return Conclusion.SUCCEEDED
    return Conclusion.STOPPED


def may_retry(*, round_: int, retry_times: int, window_end: Instant | None, now: Instant) -> bool:
    """Has policy a round left, and is the window, if any, not over?"""
    return round_ < retry_times and (window_end is None or now < window_end)


def with_fence(s: Standing, *, is_open: bool, full: bool) -> Standing:
    """The same standing with the campaign's fence, and whether it has room, as they are under its lock."""
    return msgspec.structs.replace(s, open=is_open, full=full)
