"""What the server answers, values to bytes: the bodies of answers of the hawkBit DDI v1 contract.

Nothing here opens, awaits or decides; which links a device gets is the session's business. An absent member is left
out, never written as null.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Final

import cbor2
import msgspec

from openiodm.clock import Instant
from openiodm.protocols.ddi.codec import ACTION_ID_MAX, DdiFormatError, InvalidAttributes, TooManyAttributes
from openiodm.protocols.ddi.negotiation import Media

SLEEP_SECONDS_MAX: Final = 24 * 3600 - 1
"""Longest polling sleep, in seconds: SWUpdate reads it as a time of day (`%H:%M:%S`)."""


class Handling(StrEnum):
    """How a device shall treat the download or the update of a deployment."""

    SKIP = "skip"
    ATTEMPT = "attempt"
    FORCED = "forced"


class Window(StrEnum):
    """Whether the maintenance window of a deployment is open."""

    AVAILABLE = "available"
    UNAVAILABLE = "unavailable"


class Part(StrEnum):
    """The kind of a chunk; `bApp` and `jvm` are the historic names of application and runtime."""

    OS = "os"
    APPLICATION = "bApp"
    RUNTIME = "jvm"


class ErrorCode(StrEnum):
    """The `errorCode` of an error body."""

    ENTITY_NOT_FOUND = "hawkbit.server.error.repo.entityNotFound"
    NOT_READABLE = "hawkbit.server.error.rest.body.notReadable"
    CONSTRAINT_VIOLATION = "hawkbit.server.error.repo.constraintViolation"
    INVALID_ATTRIBUTES = "hawkbit.server.error.repo.invalidTargetAttributes"
    TOO_MANY_ENTRIES = "hawkbit.server.error.quota.tooManyEntries"
    AUTO_CONFIRM_ACTIVE = "hawkbit.server.error.repo.autoConfAlreadyActive"
    NOT_CANCELABLE = "hawkbit.server.error.action.notCancelable"
    CONCURRENT_MODIFICATION = "hawkbit.server.error.repo.concurrentModification"


STATUS_OF: Final[Mapping[ErrorCode, int]] = {
    ErrorCode.ENTITY_NOT_FOUND: 404,
    ErrorCode.NOT_READABLE: 400,
    ErrorCode.CONSTRAINT_VIOLATION: 400,
    ErrorCode.INVALID_ATTRIBUTES: 400,
    ErrorCode.TOO_MANY_ENTRIES: 429,
    ErrorCode.AUTO_CONFIRM_ACTIVE: 409,
    ErrorCode.NOT_CANCELABLE: 405,
    ErrorCode.CONCURRENT_MODIFICATION: 409,
}
"""The HTTP status that goes with each error code."""


def error_code_of(error: DdiFormatError) -> ErrorCode:
    """The code that a decoder's refusal is answered with; `STATUS_OF` has its status."""
    if isinstance(error, InvalidAttributes):
        return ErrorCode.INVALID_ATTRIBUTES
    if isinstance(error, TooManyAttributes):
        return ErrorCode.TOO_MANY_ENTRIES
    return ErrorCode.NOT_READABLE


class Poll(msgspec.Struct, frozen=True):
    """The answer to a poll: seconds to sleep, and the href of each link that is offered."""

    sleep_seconds: int
    deployment_base: str | None = None
    cancel_action: str | None = None
    confirmation_base: str | None = None
    installed_base: str | None = None
    config_data: str | None = None


class Artifact(msgspec.Struct, frozen=True):
    """A file of a chunk: name, size in bytes, hex digests, and the URL of its bytes.

    `url` is named by the scheme that the encoder is told (`secure`); `other_url`, when given, is offered
    beside it under the link names of the other scheme. Without `md5` there is no link to the MD5SUM file.
    `bytes_url`, when given, is where the bytes are instead, whatever its scheme; the MD5SUM file stays with us.
    """

    filename: str
    size: int
    sha1: str
    url: str
    md5: str | None = None
    sha256: str | None = None
    other_url: str | None = None
    bytes_url: str | None = None


class Chunk(msgspec.Struct, frozen=True):
    """One module of a deployment; rauc-hawkbit-updater wants exactly one, with one artifact."""

    part: Part
    name: str
    version: str
    artifacts: tuple[Artifact, ...]
    encrypted: bool = False
    metadata: tuple[tuple[str, str], ...] = ()


class ActionHistory(msgspec.Struct, frozen=True):
    """The state of the action and what was reported about it, newest first."""

    status: str
    messages: tuple[str, ...]


class Deployment(msgspec.Struct, frozen=True):
    """What to install: deploymentBase, installedBase and confirmationBase/{actionId} show it alike."""

    action_id: int
    download: Handling
    update: Handling
    chunks: tuple[Chunk, ...]
    window: Window | None = None
    history: ActionHistory | None = None


class AutoConfirmState(msgspec.Struct, frozen=True):
    """Automatic confirmation that is active: since when, and what was said at that time."""

    activated_at: Instant
    initiator: str | None = None
    remark: str | None = None


def auto_confirm_state(text: str) -> AutoConfirmState:
    """The state as it is kept with a device (JSON of this very struct)."""
    return msgspec.json.decode(text, type=AutoConfirmState)


class ConfirmationStatus(msgspec.Struct, frozen=True):
    """The answer of GET confirmationBase; `auto_confirm` is None while not active, the rest are hrefs."""

    auto_confirm: AutoConfirmState | None = None
    activate: str | None = None
    deactivate: str | None = None
    confirmation_base: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of an error; empty parts are left out."""

    error_code: ErrorCode | None = None
    message: str = ""
    exception_class: str = ""
    info: Mapping[str, str | int] | None = None


def _write(tree: object, media: Media) -> bytes:
    return cbor2.dumps(tree) if media is Media.CBOR else msgspec.json.encode(tree)


def _present(members: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in members.items() if value is not None}


def _links(hrefs: Mapping[str, str | None]) -> dict[str, object]:
    return {relation: {"href": href} for relation, href in hrefs.items() if href is not None}


def sleep_text(seconds: int) -> str:
    """A polling sleep as `HH:MM:SS`, brought into 1 to `SLEEP_SECONDS_MAX`: zero would mean polling nonstop."""
    seconds = min(max(seconds, 1), SLEEP_SECONDS_MAX)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


@lru_cache(maxsize=64)
def _idle_poll(sleep_seconds: int, media: Media) -> bytes:
    return _write({"config": {"polling": {"sleep": sleep_text(sleep_seconds)}}}, media)


@lru_cache(maxsize=64)
def _poll_config(sleep_seconds: int) -> dict[str, object]:
    return {"polling": {"sleep": sleep_text(sleep_seconds)}}


def encode_poll(poll: Poll, media: Media) -> bytes:
    """The answer to GET on the base (hawkBit DDI v1). `_links` is left out when nothing is offered."""
    links = _links(
        {
            "deploymentBase": poll.deployment_base,
            "cancelAction": poll.cancel_action,
            "confirmationBase": poll.confirmation_base,
            "installedBase": poll.installed_base,
            "configData": poll.config_data,
        }
    )
    if not links:
        return _idle_poll(poll.sleep_seconds, media)
    return _write({"config": _poll_config(poll.sleep_seconds), "_links": links}, media)


def encode_deployment(deployment: Deployment, media: Media, *, secure: bool) -> bytes:
    """The answer of deploymentBase and installedBase. `secure`: the artifacts' URLs are https."""
    return _deployment(deployment, media, "deployment", secure)


def encode_confirmation(deployment: Deployment, media: Media, *, secure: bool) -> bytes:
    """The answer of confirmationBase/{actionId}: the same body under the key `confirmation`."""
    return _deployment(deployment, media, "confirmation", secure)


def encode_artifacts(artifacts: Sequence[Artifact], media: Media, *, secure: bool) -> bytes:
    """The answer of softwaremodules/{moduleId}/artifacts: a list, each as in a chunk."""
    return _write([_artifact(artifact, secure) for artifact in artifacts], media)


def _deployment(deployment: Deployment, media: Media, key: str, secure: bool) -> bytes:
    assert 0 < deployment.action_id <= ACTION_ID_MAX, "the action id does not fit a C int"
    history = deployment.history
    body = _present(
        {
            "download": deployment.download,
            "update": deployment.update,
            "maintenanceWindow": deployment.window,
            "chunks": [_chunk(chunk, secure) for chunk in deployment.chunks],
        }
    )
    told = None
    if history is not None and history.messages:
        told = {"status": history.status, "messages": history.messages}
    return _write(_present({"id": str(deployment.action_id), key: body, "actionHistory": told}), media)


def _chunk(chunk: Chunk, secure: bool) -> dict[str, object]:
    return _present(
        {
            "part": chunk.part,
            "version": chunk.version,
            "name": chunk.name,
            "encrypted": True if chunk.encrypted else None,
            "metadata": [{"key": key, "value": value} for key, value in chunk.metadata] or None,
            "artifacts": [_artifact(artifact, secure) for artifact in chunk.artifacts],
        }
    )


def _artifact(artifact: Artifact, secure: bool) -> dict[str, object]:
    https, http = (artifact.url, artifact.other_url) if secure else (artifact.other_url, artifact.url)
    return {
        "filename": artifact.filename,
        "hashes": _present({"sha1": artifact.sha1, "md5": artifact.md5, "sha256": artifact.sha256}),
        "size": artifact.size,
        "_links": _links(
            {
                "download": https and (artifact.bytes_url or https),
                "md5sum": _md5sum_url(artifact, https),
                "download-http": http and (artifact.bytes_url or http),
                "md5sum-http": _md5sum_url(artifact, http),
            }
        ),
    }


def _md5sum_url(artifact: Artifact, url: str | None) -> str | None:
    return None if url is None or artifact.md5 is None else f"{url}.MD5SUM"


def encode_md5sum(md5: str, filename: str) -> bytes:
    """The text/plain content of `{fileName}.MD5SUM`: digest, two blanks, file name."""
    return f"{md5}  {filename}".encode()


def encode_cancel(action_id: int, media: Media) -> bytes:
    """The answer of cancelAction: the action to stop is the action itself."""
    return _write({"id": str(action_id), "cancelAction": {"stopId": str(action_id)}}, media)


def encode_confirmation_status(status: ConfirmationStatus, media: Media) -> bytes:
    """The answer of GET confirmationBase; `activatedAt` is in milliseconds since the epoch."""
    state = status.auto_confirm
    auto: dict[str, object] = {"active": state is not None}
    if state is not None:
        auto |= _present(
            {
                "initiator": state.initiator,
                "remark": state.remark,
                "activatedAt": state.activated_at,
            }
        )
    links = _links(
        {
            "activateAutoConfirm": status.activate,
            "deactivateAutoConfirm": status.deactivate,
            "confirmationBase": status.confirmation_base,
        }
    )
    return _write(_present({"autoConfirm": auto, "_links": links or None}), media)


def encode_error(error: ErrorBody, media: Media) -> bytes:
    """The body of an error answer, empty parts left out."""
    return _write(
        _present(
            {
                "exceptionClass": error.exception_class or None,
                "errorCode": error.error_code,
                "message": error.message or None,
                "info": error.info or None,
            }
        ),
        media,
    )
