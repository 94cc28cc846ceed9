"""Object 5, Firmware Update (LwM2M 1.0 appendix E.6, 1.1 appendix E.6): one device's attempt. Pure.

    5/0/0 Package (push)   5/0/1 Package URI (pull)   5/0/2 Update   5/0/3 State   5/0/5 Update Result
    5/0/7 PkgVersion       5/0/8 Protocols            5/0/9 Delivery Method

The device's state drives it: 0 idle, 1 downloading, 2 downloaded, 3 updating, and 0 after the attempt, or 2 where the
update failed. Observe comes before the write: some devices stay at state 1 for ever otherwise. A result counts when it
can be of this attempt: it may stand there from an earlier one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from openiodm.campaigns import texts
from openiodm.campaigns.model import LogEntry
from openiodm.campaigns.rollout import CancelAnswer, PhaseEvent, Progress, Standing, Versions, What
from openiodm.campaigns.states import UpgradeEvent, UpgradeState
from openiodm.protocols.lwm2m.codec.values import Path
from openiodm.protocols.lwm2m.session.dialogue import (
    NO_WAY,
    Answered,
    Effect,
    Event,
    Execute,
    Here,
    Notified,
    Observe,
    Offering,
    Pause,
    Read,
    Sources,
    Stopping,
    Unanswered,
    Upload,
    Write,
    failure,
    is_being_stopped,
    verdict,
)

PACKAGE: Final[Path] = (5, 0, 0)
PACKAGE_URI: Final[Path] = (5, 0, 1)
UPDATE: Final[Path] = (5, 0, 2)
STATE: Final[Path] = (5, 0, 3)
RESULT: Final[Path] = (5, 0, 5)
PACKAGE_VERSION: Final[Path] = (5, 0, 7)
PROTOCOLS: Final[Path] = (5, 0, 8)
DELIVERY: Final[Path] = (5, 0, 9)
RUNNING_VERSION: Final[Path] = (3, 0, 3)

IDLE, DOWNLOADING, DOWNLOADED, UPDATING = range(4)
SUCCESS, DEFERRED = 1, 11
PULL_ONLY, PUSH_ONLY = 0, 1
TOO_LARGE: Final = 0x8D
BUSY: Final = (0x80, 0x85)
"""4.00 and 4.05: so a device refuses to update while a notification of its has not been acknowledged."""
TRIES: Final = 4
"""How often it is asked to update before that counts as refused; with pauses of 1, 2 and 4 seconds."""

S, E = UpgradeState, UpgradeEvent

_TRANSFER: Final = (S.DOWNLOADING, S.DOWNLOADED)
_AT_WORK: Final = frozenset({S.OFFERED, *_TRANSFER, S.INSTALLING, S.CANCELLING})

TEXTS: Final[Mapping[int, str]] = MappingProxyType(
    {
        2: texts.NO_STORAGE,
        3: texts.OUT_OF_MEMORY,
        4: texts.CONNECTION_LOST,
        5: texts.INTEGRITY,
        6: texts.UNSUPPORTED_TYPE,
        7: texts.INVALID_URI,
        8: texts.UPDATE_FAILED,
        9: f"{texts.UPDATE_FAILED}: the device does not support the protocol of the URI",
        10: f"{texts.UPDATE_FAILED}: cancelled on the device",
    }
)


@dataclass(frozen=True, slots=True)
class Known:
    """What the device has told in this dialogue, and what was asked of it. None is "not told yet"."""

    state: int | None = None
    result: int | None = None  # as read since the state was told last
    delivery: int | None = None
    protocols: tuple[int, ...] | None = None
    asked_delivery: bool = False
    asked_protocols: bool = False
    running_version: str | None = None
    asked_versions: int = 0  # of the two places to read one
    begun: bool = False  # the package was offered in this dialogue
    uncertain: bool = False  # it was, and no answer came
    refused: bool = False  # the device does not take the package's URI
    clearing: bool = False  # it is being told to forget what it has, and was not updating when that began
    cleared: bool = False  # it was told so
    executed: bool = False  # it was told to update, and said yes
    tries: int = 0  # to tell it so
    pausing: bool = False
    is_back: bool = False  # it has registered anew in this dialogue
    told_before: bool = False  # that it was to update, before this contact: it may have failed since
    waits: bool = False  # nothing more until it says something


def hear(s: Standing, known: Known, event: Event) -> tuple[Known, list[What]]:
    """What an event means: what is known after it, and the signals, in order."""
    match event:
        case Here():
            return _here(s, known, event), []
        case Unanswered():
            return _unanswered(known, event), []
        case Notified():
            return _state(s, known, event.value) if event.path == STATE else (known, [])
        case Offering():
            if isinstance(event.effect, Write):
                if not event.effect.text:
                    return replace(known, clearing=known.state in (DOWNLOADING, DOWNLOADED)), []
                return replace(known, uncertain=True), []
            started = [_progress(s, E.DOWNLOAD_STARTED, "the package goes up")] if s.state is S.OFFERED else []
            return replace(known, begun=True), list(started)
        case Stopping():
            return _stopping(s, known)
        case Answered():
            return _answered(s, known, event)


def _unanswered(known: Known, event: Unanswered) -> Known:
    """What the device told meanwhile counts more than that its answer was lost."""
    if isinstance(event.effect, Write | Upload):
        return replace(known, waits=known.state in (None, IDLE), uncertain=not known.begun)
    return replace(known, waits=True)


def _here(s: Standing, known: Known, event: Here) -> Known:
    """A new registration may mean that the device has forgotten all; its state is asked for again. So it is where an
    answer was lost or a transfer came to nothing: that is begun again, at the pace of the device's contacts.
    """
    if event.new:
        asked = (known.delivery, known.protocols, known.asked_delivery, known.asked_protocols)
        return Known(None, None, *asked, refused=known.refused, is_back=True, told_before=s.state is S.INSTALLING)
    if not known.waits:
        return known
    came_to_nothing = known.state == IDLE and known.result in (0, SUCCESS) and s.state in _TRANSFER
    begun = known.begun and not came_to_nothing
    told_before = known.told_before or known.executed
    known = replace(known, state=None, result=None, begun=begun, told_before=told_before)
    return replace(known, executed=False, tries=0, waits=False)


def _state(s: Standing, known: Known, state: int) -> tuple[Known, list[What]]:
    if known.uncertain:
        known = replace(known, uncertain=False, begun=known.begun or state != IDLE)
    known = replace(known, state=state, result=None, waits=False)
    if s.action_id is None:
        return known, []
    if s.state is S.CANCELLING:
        return known, _stopped(s) if state == IDLE and s.halted_in is not S.INSTALLING else []
    if not known.begun and s.state not in (*_TRANSFER, S.INSTALLING):
        return known, []
    return known, list(_steps(s, state))


def _steps(s: Standing, state: int) -> Iterator[What]:
    """The way from where the upgrade stands to the device's state. A device that has downloaded is told to install in
    the same breath, so that is committed before it is told: a stop must find it installing.
    """
    line = f"state {state}"
    if state == DOWNLOADING and s.state is S.OFFERED:
        yield _progress(s, E.DOWNLOAD_STARTED, line)
    if state == DOWNLOADED and s.state in (S.OFFERED, S.DOWNLOADING):
        yield _progress(s, E.DOWNLOADED, line)
    if state in (DOWNLOADED, UPDATING) and s.state in (S.OFFERED, *_TRANSFER):
        yield _progress(s, E.INSTALL_STARTED, "told to update" if state == DOWNLOADED else line)


def _progress(s: Standing, event: PhaseEvent, line: str) -> Progress:
    assert s.action_id is not None
    return Progress(s.action_id, LogEntry("lwm2m", (line,)), event)


def _stopping(s: Standing, known: Known) -> tuple[Known, list[What]]:
    if known.state == IDLE and not known.begun and s.halted_in is not S.INSTALLING:
        return known, _stopped(s)
    return replace(known, waits=False, cleared=False), []


def _stopped(s: Standing) -> list[What]:
    if s.state is not S.CANCELLING or s.action_id is None:
        return []
    return [CancelAnswer(s.action_id, True, LogEntry("lwm2m", ("the device has dropped the package",)))]


def _answered(s: Standing, known: Known, event: Answered) -> tuple[Known, list[What]]:
    value = event.value if event.ok else None
    match event.effect:
        case Observe():
            if not isinstance(value, int):
                return replace(known, waits=True), _no_object(s, event)
            return _state(s, known, value)
        case Read(path=path) if path == RESULT:
            return _result(s, known, value) if isinstance(value, int) else (replace(known, waits=True), [])
        case Read(path=path) if path == DELIVERY:
            return replace(known, asked_delivery=True, delivery=value if isinstance(value, int) else None), []
        case Read(path=path) if path == PROTOCOLS:
            told = tuple(value) if isinstance(value, list) else None
            return replace(known, asked_protocols=True, protocols=told or None), []
        case Read(path=path):
            return _version(s, known, path, value if isinstance(value, str) and value else None)
        case Write():
            return _written(s, known, event, event.effect)
        case Upload():
            return _uploaded(s, known, event)
        case Execute():
            return _executed(s, known, event)
        case Pause():
            return replace(known, pausing=False), []


def _no_object(s: Standing, event: Answered) -> list[What]:
    if s.action_id is None:
        return []
    line = f"5/0/3 was answered {event.code_text}"
    return [failure(s.action_id, f"{texts.UPDATE_FAILED}: the device tells no state of object 5", line)]


def _written(s: Standing, known: Known, event: Answered, effect: Write) -> tuple[Known, list[What]]:
    if not effect.text:  # forget what you have
        dropped = event.ok and known.clearing  # it may have told state 0 before its answer came
        known = replace(known, clearing=False, cleared=True, state=IDLE if event.ok else known.state, result=None)
        has_nothing = known.state == IDLE and s.halted_in is not S.INSTALLING
        return known, _stopped(s) if dropped or has_nothing else []
    known = replace(known, uncertain=False)
    if event.ok:
        # The device may have told a state before its answer came.
        return replace(known, begun=True, waits=known.state == IDLE, result=None), []
    if known.delivery != PULL_ONLY:
        return replace(known, refused=True), []
    line = f"the package's URI was answered {event.code_text}"
    return known, [] if s.action_id is None else [failure(s.action_id, texts.INVALID_URI, line, event.code_text)]


def _uploaded(s: Standing, known: Known, event: Answered) -> tuple[Known, list[What]]:
    if event.ok:
        # The state may have been told while the last block was under way.
        return replace(known, waits=known.state in (None, IDLE, DOWNLOADING)), []
    line = f"the package was answered {event.code_text}"
    detail = texts.NO_STORAGE if event.code == TOO_LARGE else f"{texts.UPDATE_FAILED}: the device refused the package"
    return known, [] if s.action_id is None else [failure(s.action_id, detail, line, event.code_text)]


def _executed(s: Standing, known: Known, event: Answered) -> tuple[Known, list[What]]:
    if event.ok:
        return replace(known, executed=True, waits=known.state == DOWNLOADED), []
    known = replace(known, tries=known.tries + 1)
    if event.code in BUSY and known.tries < TRIES:
        return replace(known, pausing=True), []
    line = f"the update was answered {event.code_text}"
    detail = f"{texts.UPDATE_FAILED}: the device refused to begin"
    return known, [] if s.action_id is None else [failure(s.action_id, detail, line, event.code_text)]


def _result(s: Standing, known: Known, result: int) -> tuple[Known, list[What]]:
    known = replace(known, result=result)
    if s.action_id is None:
        return known, []
    if result in (0, SUCCESS, DEFERRED):
        return replace(known, waits=_waits(s, known), executed=known.executed and result != DEFERRED), []
    if not known.begun and s.state is S.OFFERED:
        return known, []  # of an earlier attempt
    if is_being_stopped(s):
        return replace(known, waits=True), []
    detail = TEXTS.get(result, f"{texts.UPDATE_FAILED}: result {result}")
    return known, [failure(s.action_id, detail, f"result {result}", str(result))]


def _waits(s: Standing, known: Known) -> bool:
    """After a result that is no failure: is there nothing more to ask? A transfer that the device has forgotten (it was
    rebooted) is begun again at once, one that came to nothing at its next contact.
    """
    if known.state == DOWNLOADED:
        return known.executed
    forgotten = s.state in _TRANSFER and not known.begun
    return not (forgotten or _is_the_end(s, known))


def _is_the_end(s: Standing, known: Known) -> bool:
    """Idle, after it was told to update: with result 1, or (some forget it) with result 0 after a new registration."""
    told = s.state is S.INSTALLING or (s.state is S.CANCELLING and s.halted_in is S.INSTALLING)
    return told and known.state == IDLE and (known.result == SUCCESS or (known.result == 0 and known.is_back))


def _version(s: Standing, known: Known, path: Path, version: str | None) -> tuple[Known, list[What]]:
    known = replace(known, asked_versions=known.asked_versions + 1)
    if path == RUNNING_VERSION:
        return replace(known, running_version=version), []
    if s.action_id is None:
        return known, []
    versions = {v for v in (known.running_version, version) if v}
    runs = s.target_version if s.target_version in versions else known.running_version or version
    told = None if runs is None else Versions(fw=runs)
    if known.result == 0 and s.target_version not in versions:
        line = "the device came back without a result"
        return known, [failure(s.action_id, f"{texts.UPDATE_FAILED}: {line}", line)]
    return known, verdict(s.action_id, s.target_version, versions, told)


def next_effect(s: Standing, known: Known, sources: Sources) -> Effect | None:
    """What to ask of the device now; None: nothing, until it says something."""
    if s.state not in _AT_WORK or known.waits:
        return None
    if known.state is None:
        return Observe(STATE)
    if known.pausing:
        return Pause(2.0 ** (known.tries - 1))
    if s.state is S.CANCELLING and (known.state != IDLE or s.halted_in is not S.INSTALLING):
        return _stop(known)
    if known.state == IDLE:
        return _when_idle(s, known, sources)
    if s.state is S.OFFERED and not known.begun:  # something from before this attempt
        return _begin(known, sources) if known.cleared else Write(PACKAGE_URI, "")
    if known.state == DOWNLOADED and s.state is S.INSTALLING and not known.executed:
        return Read(RESULT) if known.told_before and known.result is None else Execute(UPDATE)
    if known.state == DOWNLOADED and known.executed and known.result is None:
        return Read(RESULT)  # it was updating, and is back where it was
    return None


def _stop(known: Known) -> Effect | None:
    """LwM2M 1.0 appendix E.6: an empty URI makes a device that downloads, or has downloaded, forget it."""
    return None if known.cleared or known.state == UPDATING else Write(PACKAGE_URI, "")


def _when_idle(s: Standing, known: Known, sources: Sources) -> Effect | None:
    if s.state is S.OFFERED and not known.begun:
        return _begin(known, sources)
    if known.result is None:
        return Read(RESULT)
    if s.state in _TRANSFER:
        return None if known.begun else _begin(known, sources)
    if _is_the_end(s, known):
        return (Read(RUNNING_VERSION), Read(PACKAGE_VERSION), None)[min(known.asked_versions, 2)]
    return None


def _begin(known: Known, sources: Sources) -> Effect | None:
    """Pull, where the device does not say that it wants to be pushed to; push, where it does or refuses the URI."""
    if not known.asked_delivery:
        return Read(DELIVERY)
    if known.delivery == PUSH_ONLY or known.refused:
        return Upload(PACKAGE)
    if not known.asked_protocols:
        return Read(PROTOCOLS)
    uri = sources.uri(known.protocols)
    if uri is not None:
        return Write(PACKAGE_URI, uri)
    return None if known.delivery == PULL_ONLY else Upload(PACKAGE)


def hopeless(known: Known, sources: Sources) -> str | None:
    """Why the package cannot be delivered to this device at all, if it cannot."""
    pull_only = known.asked_protocols and known.delivery == PULL_ONLY
    return NO_WAY if pull_only and sources.uri(known.protocols) is None else None
