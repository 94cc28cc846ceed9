"""The PCP dialogue of one device, for any carrier: its standing and a message, to signals and frames. Pure.

For every message the carrier calls `hear`, has the signals committed, and then asks `answer` with the standing as it is
after that commit. So no frame is sent on the strength of something that was not written, or that a stop overtook.

The platform asks for the version (19), says what there is (20), answers requests for fragments (21) as often as they
come, and tells the device to go (23) when it says that it has everything (22). The device comes back with its result
(24). Nothing depends on what this process remembers, except how long a question has been open: after a restart of
either side the standing is enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap
from types import MappingProxyType
from typing import Final

from openiodm.campaigns import texts
from openiodm.campaigns.model import LogEntry
from openiodm.campaigns.rollout import CancelAnswer, Progress, Result, Standing, Versions, What, offers_bytes
from openiodm.campaigns.states import FINAL, UpgradeEvent, UpgradeState
from openiodm.clock import MINUTE, Instant, Millis
from openiodm.protocols.pcp.codec import (
    AskFragment,
    Code,
    DownloadState,
    DownloadStateAnswer,
    Execute,
    ExecuteAnswer,
    Fragment,
    FromDevice,
    FromPlatform,
    NewVersion,
    NewVersionAnswer,
    QueryVersion,
    Status,
    UpgradeResult,
    UpgradeResultAnswer,
    VersionAnswer,
    fragments,
)

VERSION_WAIT: Final = Millis(3 * MINUTE)
"""How long a device may leave the version query unanswered; then its upgrade fails (contract section 6.5)."""
ASK_AGAIN: Final = Millis(MINUTE)
"""A question that has been open for this long is asked again at the next occasion."""

S, E = UpgradeState, UpgradeEvent

_BEFORE_EXECUTION: Final = frozenset({S.OFFERED, S.DOWNLOADING, S.DOWNLOADED})


@dataclass(frozen=True, slots=True)
class Package:
    """What is to be handed out. `check_code` must not change while a package is the same: devices resume by it."""

    body: bytes | memoryview | mmap
    fragment_bytes: int
    check_code: int = 0

    @property
    def fragments(self) -> int:
        """How many there are."""
        return fragments(len(self.body), self.fragment_bytes)

    def fragment(self, number: int) -> bytes:
        """Fragment `number`, from 0; the last one is short."""
        return bytes(self.body[number * self.fragment_bytes : (number + 1) * self.fragment_bytes])


@dataclass(frozen=True, slots=True)
class Open:
    """The question that the device has not answered yet; `since` when it was first asked, `at` when last."""

    code: Code
    since: Instant
    at: Instant


def contact(
    s: Standing | None, asked: Open | None, now: Instant, *, new: bool
) -> tuple[Open | None, list[FromPlatform]]:
    """The device is here: what to say of our own accord. `new`: it has just come (back); what was open is void."""
    if s is None or s.state not in (*_BEFORE_EXECUTION, S.INSTALLING):
        return None, []
    if not new and (s.state is not S.OFFERED or (asked is not None and now - asked.at < ASK_AGAIN)):
        return asked, []
    goes_on = asked is not None and asked.code is Code.VERSION_QUERY and not new
    return Open(Code.VERSION_QUERY, asked.since if asked is not None and goes_on else now, now), [QueryVersion()]


def overdue(s: Standing, asked: Open | None, now: Instant) -> Result | None:
    """The end of a device that never answers the version query."""
    if asked is None or asked.code is not Code.VERSION_QUERY or s.state is not S.OFFERED or s.action_id is None:
        return None
    if now - asked.since < VERSION_WAIT:
        return None
    log = LogEntry("pcp", ("no answer to the version query",))
    return Result(s.action_id, False, log, detail=texts.VERSION_TIMEOUT, timed_out=True)


def stopped(s: Standing) -> CancelAnswer | None:
    """A device that was not told to install yet never will be, and gets no more fragments: that is the whole stop."""
    if s.state is not S.CANCELLING or s.action_id is None or s.halted_in not in _BEFORE_EXECUTION:
        return None
    return CancelAnswer(s.action_id, True, LogEntry("pcp", ("not told to install",)))


def hear(s: Standing | None, asked: Open | None, message: FromDevice) -> list[What]:
    """What a message means for the core, to be signalled in this order. A repeated one means nothing new."""
    signals: list[What] = []
    if isinstance(message, VersionAnswer | UpgradeResult) and message.version:
        ok = isinstance(message, UpgradeResult) or message.status == Status.OK
        signals += [Versions(sw=message.version)] if ok else []
    if s is None or s.action_id is None or s.state in FINAL or s.state is S.WAIT:
        return signals
    if isinstance(message, DownloadState) and not _is_about_the_offer(s, asked):
        return signals
    return [*signals, *_of_the_attempt(s, s.action_id, message)]


def _is_about_the_offer(s: Standing, asked: Open | None) -> bool:
    """A download state names no version: a device that repeats the one of an earlier task must not be told to install
    that. It counts once the device has asked for our fragments, or has been told of our version just now.
    """
    return s.state is not S.OFFERED or (asked is not None and asked.code is Code.NEW_VERSION)


def _of_the_attempt(s: Standing, action_id: int, message: FromDevice) -> list[What]:
    log = LogEntry("pcp", (_line(message),))
    match message:
        case VersionAnswer():
            return _version(s, action_id, message, log)
        case NewVersionAnswer() if message.status != Status.OK and s.state in (S.OFFERED, S.DOWNLOADING):
            return [_failure(action_id, message.status, log)]
        case AskFragment() if s.state is S.OFFERED and _serves(s, message.version):
            return [Progress(action_id, log, E.DOWNLOAD_STARTED)]
        case DownloadState() if message.status != Status.OK:
            return [_failure(action_id, message.status, log)]
        case DownloadState() if s.state in _BEFORE_EXECUTION and offers_bytes(s):
            # It is told to install in the same breath, so this is where a stop must find it installing.
            downloaded = [Progress(action_id, log, E.DOWNLOADED)] if s.state is not S.DOWNLOADED else []
            return [*downloaded, Progress(action_id, LogEntry("pcp", ("told to install",)), E.INSTALL_STARTED)]
        case ExecuteAnswer() if message.status != Status.OK and _was_told_to_install(s):
            return [_failure(action_id, message.status, log)]
        case UpgradeResult():
            return _result(s, action_id, message, log)
        case _:
            return []


def _version(s: Standing, action_id: int, message: VersionAnswer, log: LogEntry) -> list[What]:
    if message.status == Status.OK and message.version == s.target_version:
        return [Result(action_id, True, log)]
    if s.state is not S.OFFERED:
        return []
    if message.status != Status.OK:
        return [_failure(action_id, message.status, log)]
    if s.source_versions and message.version and message.version not in s.source_versions:
        return [Result(action_id, False, log, detail=texts.SOURCE_VERSION)]
    return []


def _result(s: Standing, action_id: int, message: UpgradeResult, log: LogEntry) -> list[What]:
    """Success is result 0 and the wanted version. One that comes before the execution is about an earlier attempt."""
    if message.status == Status.OK and message.version == s.target_version:
        return [Result(action_id, True, log)]
    if not _was_told_to_install(s):
        return []
    if message.status != Status.OK:
        return [_failure(action_id, message.status, log)]
    told = f"the device reports version {message.version}" if message.version else "the device tells no version"
    return [Result(action_id, False, log, detail=f"{texts.UPDATE_FAILED}: {told}", error_code=str(message.status))]


def _was_told_to_install(s: Standing) -> bool:
    return s.state is S.INSTALLING or (s.state is S.CANCELLING and s.halted_in is S.INSTALLING)


def answer(
    s: Standing | None, asked: Open | None, message: FromDevice, package: Package | None, now: Instant, *, ended: bool
) -> tuple[Open | None, list[FromPlatform]]:
    """What to send, now that the message's signals are committed. `s` is the standing after that.

    `ended`: there was a task for this device before, so a result that comes again is welcome: devices repeat it until
    they are answered.
    """
    match message:
        case VersionAnswer():
            was_asked = asked is not None and asked.code is Code.VERSION_QUERY
            if s is None or package is None or not (s.state in _BEFORE_EXECUTION and offers_bytes(s)):
                return (None if was_asked else asked), []
            if was_asked or s.state is S.OFFERED:
                news = NewVersion(s.target_version, package.fragment_bytes, package.fragments, package.check_code)
                return Open(Code.NEW_VERSION, now, now), [news]
            return asked, []
        case NewVersionAnswer() | ExecuteAnswer():
            return asked, []
        case AskFragment():
            return asked, [_fragment(s, message, package)]
        case DownloadState():
            known = ended if s is None else s.state not in (S.WAIT, S.OFFERED, S.CANCELLING)
            frames: list[FromPlatform] = [DownloadStateAnswer(Status.OK if known else Status.NO_SUCH_TASK)]
            if message.status == Status.OK and s is not None and s.state is S.INSTALLING:
                frames.append(Execute())
            return asked, frames
        case UpgradeResult():
            return asked, [UpgradeResultAnswer(Status.OK if s is not None or ended else Status.NO_SUCH_TASK)]


def _fragment(s: Standing | None, asked_for: AskFragment, package: Package | None) -> Fragment:
    if s is None or package is None or not _serves(s, asked_for.version):
        return Fragment(Status.NO_SUCH_TASK, asked_for.number)
    if asked_for.number >= package.fragments:
        return Fragment(Status.NO_SUCH_FRAGMENT, asked_for.number)
    return Fragment(Status.OK, asked_for.number, package.fragment(asked_for.number))


def _serves(s: Standing, version: str) -> bool:
    """Law 7: fragments of the attempt's own package, while it is open."""
    return s.action_id is not None and offers_bytes(s) and version == s.target_version


_TEXTS: Final[Mapping[int, str]] = MappingProxyType(
    {
        Status.IN_USE: f"{texts.UPDATE_FAILED}: the device is in use",
        Status.WEAK_SIGNAL: f"{texts.UPDATE_FAILED}: the signal is weak",
        Status.ALREADY_NEWEST: f"{texts.UPDATE_FAILED}: the device says that it is up to date",
        Status.LOW_BATTERY: f"{texts.UPDATE_FAILED}: the battery is low",
        Status.NO_SPACE: texts.NO_STORAGE,
        Status.DOWNLOAD_TIMEOUT: texts.DOWNLOAD_TIMEOUT,
        Status.CHECK_FAILED: texts.INTEGRITY,
        Status.TYPE_UNSUPPORTED: texts.UNSUPPORTED_TYPE,
        Status.NO_MEMORY: texts.OUT_OF_MEMORY,
        Status.INSTALL_FAILED: texts.UPDATE_FAILED,
    }
)


def _failure(action_id: int, status: int, log: LogEntry) -> Result:
    detail = _TEXTS.get(status, f"{texts.UPDATE_FAILED}: internal error of the device")
    timed_out = status == Status.DOWNLOAD_TIMEOUT
    return Result(action_id, False, log, detail=detail, error_code=str(status), timed_out=timed_out)


def _line(message: FromDevice) -> str:
    match message:
        case VersionAnswer():
            return f"version {message.version or '(none)'}, status {message.status}"
        case NewVersionAnswer():
            return f"answer to the new version: {message.status}"
        case AskFragment():
            return f"asks for fragment {message.number} of {message.version}"
        case DownloadState():
            return f"download state {message.status}"
        case ExecuteAnswer():
            return f"answer to the execution: {message.status}"
        case UpgradeResult():
            return f"result {message.status}, version {message.version or '(none)'}"
