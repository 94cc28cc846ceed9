"""What DDI makes of a device's standing and of its words. Pure: no socket, no row.

Down: a standing becomes at most one of the links `confirmationBase`, `cancelAction`, `deploymentBase`, and a body for
each. Up: a feedback becomes a signal of the core.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from openiodm.campaigns import texts
from openiodm.campaigns.model import LogEntry
from openiodm.campaigns.rollout import (
    CancelAnswer,
    Confirmation,
    PhaseEvent,
    Progress,
    Result,
    Standing,
    What,
    asks_confirmation,
    is_from_backup,
    offers_bytes,
)
from openiodm.campaigns.states import UpgradeEvent, UpgradeState
from openiodm.clock import Instant
from openiodm.protocols.ddi import answers, codec
from openiodm.protocols.ddi.answers import Handling, Part
from openiodm.protocols.ddi.codec import Execution, Finished
from openiodm.protocols.port import Contacted, File

OFFERED = frozenset({UpgradeState.OFFERED, UpgradeState.DOWNLOADING, UpgradeState.DOWNLOADED, UpgradeState.INSTALLING})


@dataclass(frozen=True, slots=True)
class Base:
    """URL of one device's resources, without a slash at its end; `secure` says that it is https."""

    url: str
    secure: bool


def is_offered(s: Standing | None) -> bool:
    """Is there a deploymentBase to show?"""
    return s is not None and s.open and s.state in OFFERED and not is_from_backup(s)


def is_cancelled(s: Standing | None) -> bool:
    """Is there a cancelAction to show?"""
    return s is not None and s.state is UpgradeState.CANCELLING


def poll(contacted: Contacted, base: Base, sleep_seconds: int, now: Instant) -> answers.Poll:
    """The answer to a poll (hawkBit DDI v1, GET of the base): what to do next."""
    device, s = contacted.device, contacted.standing
    assert device is not None
    deployment = cancel = confirmation = None
    if s is not None:
        if is_cancelled(s):
            cancel = f"{base.url}/cancelAction/{s.action_id}"
        elif is_offered(s):
            deployment = f"{base.url}/deploymentBase/{s.action_id}?c={_checksum(s)}"
        elif asks_confirmation(s, now):
            confirmation = f"{base.url}/confirmationBase/{s.action_id}?c={_checksum(s)}"
    installed = device.installed_action_id
    return answers.Poll(
        sleep_seconds=sleep_seconds,
        deployment_base=deployment,
        cancel_action=cancel,
        confirmation_base=confirmation,
        installed_base=None if installed is None else f"{base.url}/installedBase/{installed}",
        config_data=f"{base.url}/configData" if device.attributes_wanted else None,
    )


def _checksum(s: Standing) -> int:
    """Changes when the offer does, so that a poll's entity tag changes with it."""
    return zlib.crc32(f"{s.upgrade}:{s.action_id}:{s.confirmed}".encode())


def deployment(
    action_id: int,
    file: File,
    base: Base,
    history: answers.ActionHistory | None = None,
    bytes_url: str | None = None,
) -> answers.Deployment:
    """What to install: one chunk with one artifact, as rauc-hawkbit-updater demands, of part `bApp`, as Zephyr does.

    `bytes_url` is where its bytes are, when that is not below `base`.
    """
    return answers.Deployment(
        action_id=action_id,
        download=Handling.FORCED,
        update=Handling.FORCED,
        chunks=(answers.Chunk(Part.APPLICATION, file.name, file.version, (artifact(file, base, bytes_url),)),),
        history=history,
    )


def artifact(file: File, base: Base, bytes_url: str | None = None) -> answers.Artifact:
    """The one artifact of a package, with its links.

    Over https they go under both pairs of names: Zephyr's agent knows `download-http` alone, whatever the scheme.
    """
    url = f"{base.url}/softwaremodules/{file.file_id}/artifacts/{quote(file.name, safe='')}"
    return answers.Artifact(
        filename=file.name,
        size=file.size,
        sha1=file.sha1,
        md5=file.md5,
        sha256=file.sha256,
        url=url,
        other_url=url if base.secure else None,
        bytes_url=bytes_url,
    )


def may_download(contacted: Contacted, file_id: str, filename: str) -> bool:
    """Law 7: the bytes are there for the open attempt alone."""
    s, file = contacted.standing, contacted.file
    return (
        s is not None
        and file is not None
        and s.action_id is not None
        and offers_bytes(s)
        and (file.file_id, file.name) == (file_id, filename)
    )


_PHASE: dict[Execution, PhaseEvent] = {
    Execution.DOWNLOAD: UpgradeEvent.DOWNLOAD_STARTED,
    Execution.DOWNLOADED: UpgradeEvent.DOWNLOADED,
}


def report(action_id: int, feedback: codec.Feedback, s: Standing | None) -> What:
    """A deployment feedback as a signal. Only `download`, `downloaded` and `closed` move an action in DDI; a
    `proceeding` after the download is the installation.
    """
    log = _entry(feedback)
    if feedback.execution is Execution.CLOSED:
        success = feedback.finished is not Finished.FAILURE
        code = None if feedback.code is None else str(feedback.code)
        return Result(action_id, success, log, detail=_failure(log.lines), error_code=None if success else code)
    event = _PHASE.get(feedback.execution)
    if feedback.execution is Execution.PROCEEDING and s is not None and s.state is UpgradeState.DOWNLOADED:
        event = UpgradeEvent.INSTALL_STARTED
    return Progress(action_id, log, event)


def cancel_answer(action_id: int, feedback: codec.Feedback) -> CancelAnswer:
    """A cancel feedback: `closed` with success is a yes; with failure, or `rejected`, a no; all else is progress."""
    accepted = None
    if feedback.execution is Execution.CLOSED:
        accepted = feedback.finished is not Finished.FAILURE
    elif feedback.execution is Execution.REJECTED:
        accepted = False
    return CancelAnswer(action_id, accepted, _entry(feedback))


def confirmation(action_id: int, answer: codec.Confirmation) -> Confirmation:
    """The answer to confirmationBase."""
    kind = "confirmed" if answer.confirmed else "denied"
    return Confirmation(action_id, answer.confirmed, LogEntry(kind, codec.bound_details(answer.details)))


def _entry(feedback: codec.Feedback) -> LogEntry:
    return LogEntry(feedback.execution.value, codec.bound_details(feedback.details))


def _failure(lines: Sequence[str]) -> str:
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"{texts.UPDATE_FAILED}: {last}" if last else texts.UPDATE_FAILED
