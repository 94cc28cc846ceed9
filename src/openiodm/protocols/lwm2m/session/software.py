"""Object 9, Software Management (OMA-TS-LWM2M_SwMgmt 1.0): one device's attempt, in one instance of the object. Pure.

    9/x/1 PkgVersion     9/x/2 Package (push)   9/x/3 Package URI (pull)   9/x/4 Install   9/x/6 Uninstall
    9/x/7 Update State   9/x/9 Update Result    9/x/10 Activate            9/x/12 Activation State

State: 0 initial, 1 download started, 2 downloaded (not checked yet), 3 delivered, 4 installed. A delivered package is
installed, then activated; an instance that is in use is emptied first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from openiodm.campaigns import texts
from openiodm.campaigns.model import LogEntry
from openiodm.campaigns.rollout import CancelAnswer, PhaseEvent, Progress, Result, Standing, Versions, What
from openiodm.campaigns.states import UpgradeEvent, UpgradeState
from openiodm.protocols.lwm2m.codec.values import Path
from openiodm.protocols.lwm2m.session.dialogue import (
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

OBJECT: Final = 9
VERSION, PACKAGE, URI, INSTALL, UNINSTALL, STATE, RESULT, ACTIVATE, ACTIVATED = 1, 2, 3, 4, 6, 7, 9, 10, 12
INITIAL, DOWNLOAD_STARTED, DOWNLOADED, DELIVERED, INSTALLED = range(5)
FOR_UPDATE: Final = "1"
"""Argument of Uninstall: the software is about to be replaced, its settings stay."""
FAILURES: Final = 50
"""Results from here on are failures."""
BUSY: Final = (0x80, 0x85)
TRIES: Final = 4
TOO_LARGE: Final = 0x8D
LOOK_AFTER_S: Final = 1.0
"""After this the result of an installation that has just begun is looked at."""

S, E = UpgradeState, UpgradeEvent

_BEFORE_INSTALL: Final = (S.OFFERED, S.DOWNLOADING, S.DOWNLOADED)
_RUNNING: Final = (S.DOWNLOADING, S.DOWNLOADED, S.INSTALLING)

TEXTS: Final[Mapping[int, str]] = MappingProxyType(
    {
        50: texts.NO_STORAGE,
        51: texts.OUT_OF_MEMORY,
        52: texts.CONNECTION_LOST,
        53: texts.INTEGRITY,
        54: texts.UNSUPPORTED_TYPE,
        56: texts.INVALID_URI,
        57: f"{texts.UPDATE_FAILED}: an error that the device has defined",
        58: f"{texts.UPDATE_FAILED}: the installation failed",
        59: f"{texts.UPDATE_FAILED}: the software in place could not be removed",
    }
)


@dataclass(frozen=True, slots=True)
class Known:
    """What the device has told in this dialogue, and what was asked of it. None is "not told yet"."""

    instance: int
    state: int | None = None
    result: int | None = None
    begun: bool = False
    uncertain: bool = False
    refused: bool = False  # the URI
    looked: bool = False  # at what is in the instance now
    cleared: bool = False
    executed: bool = False  # it was told to install, and said yes
    looks_soon: bool = False  # at the result, in a moment
    told_before: bool = False  # that it was to install, before this contact: it may have failed since
    activated: bool | None = None
    tries: int = 0
    pausing: bool = False
    waits: bool = False

    def path(self, resource: int) -> Path:
        """Of the instance."""
        return (OBJECT, self.instance, resource)


def hear(s: Standing, known: Known, event: Event) -> tuple[Known, list[What]]:
    """What an event means: what is known after it, and the signals, in order."""
    match event:
        case Here():
            return _here(s, known, event), []
        case Unanswered():
            return _unanswered(known, event), []
        case Notified():
            return _state(s, known, event.value) if event.path == known.path(STATE) else (known, [])
        case Offering():
            if isinstance(event.effect, Write):
                return replace(known, uncertain=True), []
            started = [_progress(s, E.DOWNLOAD_STARTED, "the package goes up")] if s.state is S.OFFERED else []
            return replace(known, begun=True), list(started)
        case Stopping():
            return known, _stopped(s)
        case Answered():
            return _answered(s, known, event)


def _unanswered(known: Known, event: Unanswered) -> Known:
    """What the device told meanwhile counts more than that its answer was lost."""
    if isinstance(event.effect, Write | Upload):
        moved = known.begun and known.state in (DOWNLOAD_STARTED, DOWNLOADED, DELIVERED)
        return replace(known, waits=not moved, uncertain=not known.begun)
    return replace(known, waits=True)


def _here(s: Standing, known: Known, event: Here) -> Known:
    if event.new:
        kept = (known.refused, known.looked, known.cleared)
        told_before = s.state is S.INSTALLING
        return Known(known.instance, refused=kept[0], looked=kept[1], cleared=kept[2], told_before=told_before)
    if not known.waits:
        return known
    came_to_nothing = known.state == INITIAL and known.result is not None and s.state in _RUNNING
    begun = known.begun and not came_to_nothing
    told_before = known.told_before or known.executed
    known = replace(known, state=None, result=None, begun=begun, told_before=told_before)
    return replace(known, executed=False, looks_soon=False, tries=0, waits=False)


def _stopped(s: Standing) -> list[What]:
    """A device that was not told to install never will be, and gets no more bytes: that is the whole stop."""
    if s.state is not S.CANCELLING or s.halted_in not in _BEFORE_INSTALL or s.action_id is None:
        return []
    return [CancelAnswer(s.action_id, True, LogEntry("lwm2m", ("not told to install",)))]


def _state(s: Standing, known: Known, state: int) -> tuple[Known, list[What]]:
    if known.uncertain:
        known = replace(known, uncertain=False, begun=known.begun or state in (DOWNLOAD_STARTED, DOWNLOADED, DELIVERED))
    known = replace(known, state=state, result=None, waits=False)
    if s.action_id is None or not (known.begun or s.state in _RUNNING):
        return known, []
    return known, list(_steps(s, state))


def _steps(s: Standing, state: int) -> Iterator[What]:
    line = f"state {state}"
    if state in (DOWNLOAD_STARTED, DOWNLOADED) and s.state is S.OFFERED:
        yield _progress(s, E.DOWNLOAD_STARTED, line)
    if state == DELIVERED and s.state in (S.OFFERED, S.DOWNLOADING):
        yield _progress(s, E.DOWNLOADED, line)
    if state == DELIVERED and s.state in _BEFORE_INSTALL:
        # Committed before the device is told: a stop must find it installing.
        yield _progress(s, E.INSTALL_STARTED, "told to install")


def _progress(s: Standing, event: PhaseEvent, line: str) -> Progress:
    assert s.action_id is not None
    return Progress(s.action_id, LogEntry("lwm2m", (line,)), event)


def _answered(s: Standing, known: Known, event: Answered) -> tuple[Known, list[What]]:
    value = event.value if event.ok else None
    match event.effect:
        case Observe():
            if not isinstance(value, int):
                line = f"9/{known.instance}/7 was answered {event.code_text}"
                detail = f"{texts.UPDATE_FAILED}: the device tells no state of object 9"
                return replace(known, waits=True), _failed(s, detail, line)
            return _state(s, known, value)
        case Read(path=(_, _, 9)):
            return _result(s, known, value) if isinstance(value, int) else (replace(known, waits=True), [])
        case Read(path=(_, _, 12)):
            return replace(known, activated=bool(value) if isinstance(value, int) else True), []
        case Read():
            return _version(s, known, value if isinstance(value, str) and value else None)
        case Write() | Upload():
            return _delivered(s, known, event)
        case Execute():
            return _executed(s, known, event, event.effect)
        case Pause():
            return replace(known, pausing=False, looks_soon=False), []


def _failed(s: Standing, detail: str, line: str, code: str | None = None) -> list[What]:
    return [] if s.action_id is None else [failure(s.action_id, detail, line, code)]


def _delivered(s: Standing, known: Known, event: Answered) -> tuple[Known, list[What]]:
    known = replace(known, uncertain=False)
    if event.ok:
        # The device may have told a state before its answer came.
        waits = known.state in (None, INITIAL, DOWNLOAD_STARTED)
        return replace(known, begun=True, waits=waits, result=None), []
    if isinstance(event.effect, Write):
        return replace(known, refused=True), []
    detail = texts.NO_STORAGE if event.code == TOO_LARGE else f"{texts.UPDATE_FAILED}: the device refused the package"
    return known, _failed(s, detail, f"the package was answered {event.code_text}", event.code_text)


def _executed(s: Standing, known: Known, event: Answered, effect: Execute) -> tuple[Known, list[What]]:
    resource = effect.path[2]
    if resource == UNINSTALL:  # refused or not: what the instance takes shows when the package comes
        return replace(known, cleared=True, state=INITIAL if event.ok else known.state), []
    if event.ok:
        if resource == ACTIVATE:
            return replace(known, activated=True), []
        # One that fails at once stays at "delivered", and has no change to tell of.
        return replace(known, executed=True, tries=0, looks_soon=known.state == DELIVERED, result=None), []
    known = replace(known, tries=known.tries + 1)
    if event.code in BUSY and known.tries < TRIES:
        return replace(known, pausing=True), []
    what = "activation" if resource == ACTIVATE else "installation"
    line = f"the {what} was answered {event.code_text}"
    return known, _failed(s, f"{texts.UPDATE_FAILED}: the device refused the {what}", line, event.code_text)


def _result(s: Standing, known: Known, result: int) -> tuple[Known, list[What]]:
    known = replace(known, result=result)
    if result < FAILURES:
        forgotten = known.state == INITIAL and not known.begun and s.state in _RUNNING  # it was rebooted
        to_be_told = known.state == DELIVERED and not known.executed
        return replace(known, waits=known.state != INSTALLED and not forgotten and not to_be_told), []
    if not known.begun and s.state is S.OFFERED:
        return known, []  # of an earlier attempt
    if is_being_stopped(s):
        return replace(known, waits=True), []
    detail = TEXTS.get(result, f"{texts.UPDATE_FAILED}: result {result}")
    return known, _failed(s, detail, f"result {result}", str(result))


def _version(s: Standing, known: Known, version: str | None) -> tuple[Known, list[What]]:
    """Before the attempt: is it there already? After it: is it the wanted one?"""
    told = None if version is None else Versions(sw=version)
    if s.action_id is None:
        return known, []
    if s.state is not S.OFFERED:
        versions = () if version is None else (version,)
        return replace(known, waits=True), verdict(s.action_id, s.target_version, versions, told)
    known = replace(known, looked=True)
    if version == s.target_version:
        log = LogEntry("lwm2m", (f"version {version} is installed",))
        return known, [Versions(sw=version), Result(s.action_id, True, log)]
    return known, [] if told is None else [told]


def next_effect(s: Standing, known: Known, sources: Sources) -> Effect | None:
    """What to ask of the device now; None: nothing, until it says something."""
    at_work = s.state in (*_BEFORE_INSTALL, S.INSTALLING) or (s.state is S.CANCELLING and s.halted_in is S.INSTALLING)
    if not at_work or known.waits:
        return None
    if known.state is None:
        return Observe(known.path(STATE))
    if known.pausing:
        return Pause(2.0 ** (known.tries - 1))
    if s.state is S.OFFERED and not known.begun:
        return _begin(known, sources)
    if known.state == INITIAL:
        if known.result is None:
            return Read(known.path(RESULT))
        return None if known.begun else _deliver(known, sources)
    if known.state == DELIVERED and s.state is S.INSTALLING:
        return _install(known)
    if known.state == INSTALLED and s.state in (S.INSTALLING, S.CANCELLING):
        return _conclude(known)
    return None


def _begin(known: Known, sources: Sources) -> Effect | None:
    if known.state == INSTALLED and not known.looked:
        return Read(known.path(VERSION))
    if known.state == INSTALLED and not known.cleared:
        return Execute(known.path(UNINSTALL), FOR_UPDATE)
    if known.state == DELIVERED and not known.cleared:
        return Execute(known.path(UNINSTALL))
    return _deliver(known, sources)


def _deliver(known: Known, sources: Sources) -> Effect:
    uri = None if known.refused else sources.uri(None)
    return Upload(known.path(PACKAGE)) if uri is None else Write(known.path(URI), uri)


def _install(known: Known) -> Effect | None:
    if not known.executed:
        looks_first = known.told_before and known.result is None
        return Read(known.path(RESULT)) if looks_first else Execute(known.path(INSTALL))
    if known.looks_soon:
        return Pause(LOOK_AFTER_S)
    return Read(known.path(RESULT)) if known.result is None else None


def _conclude(known: Known) -> Effect | None:
    """Installed: look at the result, see that it is active, and read the version."""
    if known.result is None:
        return Read(known.path(RESULT))
    if known.activated is None:
        return Read(known.path(ACTIVATED))
    if not known.activated:
        return Execute(known.path(ACTIVATE))
    return Read(known.path(VERSION))
