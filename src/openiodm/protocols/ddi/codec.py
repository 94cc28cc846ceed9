"""Bytes to values and back for the hawkBit DDI v1 contract: the bodies of requests and answers.

Nothing here opens, awaits or decides; which links a device gets is the session's business. Every decoder
raises `DdiFormatError` and nothing else, whatever the bytes. Unknown members are ignored everywhere (the
contract asks for that); of a member that comes twice the last one counts. Answers leave an absent member out,
never write null.

The words of the contract stay here: `execution`, `finished`, `bApp`, `cancelAction` and their kind.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final, TypeVar

import cbor2
import msgspec

from openiodm.clock import Instant
from openiodm.protocols.ddi.negotiation import Media

BODY_BYTES: Final = 512 * 1024
"""Largest request body that is looked at, in bytes; 100 attributes of full length, all escaped, fit in it."""
NESTING: Final = 16
"""Deepest nesting of CBOR containers and tags; the contract needs 4. JSON has the interpreter's bound."""
ATTRIBUTE_CHARS: Final = 128
"""Longest key and longest value of configData, in characters."""
ATTRIBUTES: Final = 100
"""Most attributes of a device, in keys; one configData body may not carry more either."""
ENTRY_LINES: Final = 50
"""Most texts kept of one feedback, in lines."""
LINE_CHARS: Final = 512
"""Longest text kept of one feedback, in characters a line."""
ATTEMPT_ENTRIES: Final = 1000
"""Most feedbacks logged for one attempt, in entries."""
HISTORY_MESSAGES: Final = 100
"""Most messages that `actionHistory` returns."""
NAME_CHARS: Final = 128
"""Longest name or version of installedBase and longest initiator of activateAutoConfirm, in characters."""
REMARK_CHARS: Final = 512
"""Longest remark of activateAutoConfirm, in characters."""
SLEEP_SECONDS_MAX: Final = 24 * 3600 - 1
"""Longest polling sleep, in seconds: SWUpdate reads it as a time of day (`%H:%M:%S`)."""
ACTION_ID_MAX: Final = 2**31 - 1
"""Largest action id that may be offered: SWUpdate reads it into a C int."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ACTION_ID: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_COUNT: Final = re.compile(r"[+-]?[0-9]{1,9}", re.ASCII)

_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_T = TypeVar("_T")


class DdiFormatError(Exception):
    """The bytes are no such body: 400 `hawkbit.server.error.rest.body.notReadable`."""


class InvalidAttributes(DdiFormatError):
    """A configData key or value is too long or has control characters: 400 `..invalidTargetAttributes`."""


class TooManyAttributes(DdiFormatError):
    """More than `ATTRIBUTES` keys in one configData body: 429 `..quota.tooManyEntries`."""


class Execution(StrEnum):
    """How far the device says it is (DDI feedback, `status.execution`)."""

    PROCEEDING = "proceeding"
    SCHEDULED = "scheduled"
    RESUMED = "resumed"
    DOWNLOAD = "download"
    DOWNLOADED = "downloaded"
    REJECTED = "rejected"
    CANCELED = "canceled"
    CLOSED = "closed"


class Finished(StrEnum):
    """The outcome (DDI feedback, `status.result.finished`)."""

    SUCCESS = "success"
    FAILURE = "failure"
    NONE = "none"


class Mode(StrEnum):
    """What configData does to the attributes that are known already."""

    MERGE = "merge"
    REPLACE = "replace"
    REMOVE = "remove"


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


# What devices send.


class Feedback(msgspec.Struct, frozen=True):
    """A report on a deployment or a cancel; `details` as sent: `bound_details` makes them fit to keep."""

    execution: Execution
    finished: Finished
    code: int | None = None
    details: tuple[str, ...] = ()


class ConfigData(msgspec.Struct, frozen=True):
    """Attributes of the device, never empty; None removes the key, in mode `remove` any value does."""

    mode: Mode
    data: dict[str, str | None]


class InstalledBase(msgspec.Struct, frozen=True):
    """The distribution set that the device says it runs."""

    name: str
    version: str


class Confirmation(msgspec.Struct, frozen=True):
    """The answer to a waiting action: confirmed, or denied."""

    confirmed: bool
    code: int | None = None
    details: tuple[str, ...] = ()


class AutoConfirm(msgspec.Struct, frozen=True):
    """Who asked for automatic confirmation, and why."""

    initiator: str | None = None
    remark: str | None = None


class _ResultBody(msgspec.Struct):
    finished: Finished


class _StatusBody(msgspec.Struct):
    execution: Execution
    result: _ResultBody
    code: _Int32 | None = None
    details: list[str] | None = None


class _FeedbackBody(msgspec.Struct):
    status: _StatusBody


class _ConfigBody(msgspec.Struct):
    data: dict[str, str | None]
    mode: Mode | None = None


class _Answer(StrEnum):
    CONFIRMED = "confirmed"
    DENIED = "denied"


class _ConfirmationBody(msgspec.Struct):
    confirmation: _Answer
    code: _Int32 | None = None
    details: list[str] | None = None


_AutoConfirmBody: Any = AutoConfirm | None


class _DropTags(dict[int, Any]):
    """Semantic decoders that give the tagged value itself for every tag number.

    No DDI body needs a tag, and cbor2's own decoders make dates, fractions, patterns and shared references of
    them.
    """

    def __missing__(self, _tag: int) -> Any:
        return lambda value, _immutable: value


_DROP_TAGS: Final = _DropTags()


def _read(body: bytes, media: Media, shape: type[_T]) -> _T:
    if len(body) > BODY_BYTES:
        raise DdiFormatError(f"the body has {len(body)} bytes, {BODY_BYTES} are allowed")
    try:
        if media is not Media.CBOR:
            return msgspec.json.decode(body, type=shape)
        tree = cbor2.loads(body, semantic_decoders=_DROP_TAGS, max_depth=NESTING, strict_hashable_types=True)
        return msgspec.convert(tree, type=shape)
    except Exception as error:
        # Beside their own errors the two libraries let through UnicodeDecodeError, RecursionError,
        # OverflowError and more; nothing but them runs in this block, so whatever comes is about the bytes.
        raise DdiFormatError(str(error) or type(error).__name__) from error


def _bounded(member: str, text: str, chars: int) -> None:
    if len(text) > chars or "\x00" in text:
        raise DdiFormatError(f"`{member}` has more than {chars} characters or a NUL")


def decode_feedback(body: bytes, media: Media) -> Feedback:
    """The body of a deployment or cancel feedback (hawkBit DDI v1, POST ../feedback).

    `status`, `status.execution`, `status.result` and `status.result.finished` are required. `id`, `time`,
    `timestamp` and `progress` may be there and are not looked at. Raises DdiFormatError.
    """
    status = _read(body, media, _FeedbackBody).status
    return Feedback(status.execution, status.result.finished, status.code, tuple(status.details or ()))


def decode_config_data(body: bytes, media: Media) -> ConfigData:
    """The body of PUT ../configData (hawkBit DDI v1).

    Raises TooManyAttributes above `ATTRIBUTES` keys, InvalidAttributes for a key or value that is too long or
    has control characters and for an empty key, DdiFormatError for all else.
    """
    wire = _read(body, media, _ConfigBody)
    if not wire.data:
        raise DdiFormatError("`data` is empty")
    if len(wire.data) > ATTRIBUTES:
        raise TooManyAttributes(f"{len(wire.data)} attributes, {ATTRIBUTES} are allowed")
    for key, value in wire.data.items():
        if not key or not _attribute_text(key) or not _attribute_text(value or ""):
            raise InvalidAttributes(
                f"attribute {key[:ATTRIBUTE_CHARS]!r}: keys and values have at most {ATTRIBUTE_CHARS}"
                " characters, no control characters, and keys are not empty"
            )
    return ConfigData(wire.mode or Mode.MERGE, wire.data)


def _attribute_text(text: str) -> bool:
    return len(text) <= ATTRIBUTE_CHARS and _CONTROL.search(text) is None


def decode_installed_base(body: bytes, media: Media) -> InstalledBase:
    """The body of PUT ../installedBase: name and version, required and not empty. Raises DdiFormatError."""
    value = _read(body, media, InstalledBase)
    if not value.name or not value.version:
        raise DdiFormatError("`name` or `version` is empty")
    _bounded("name", value.name, NAME_CHARS)
    _bounded("version", value.version, NAME_CHARS)
    return value


def decode_confirmation(body: bytes, media: Media) -> Confirmation:
    """The body of POST ../confirmationBase/{actionId}/feedback. Raises DdiFormatError."""
    wire = _read(body, media, _ConfirmationBody)
    return Confirmation(wire.confirmation is _Answer.CONFIRMED, wire.code, tuple(wire.details or ()))


def decode_auto_confirm(body: bytes, media: Media | None) -> AutoConfirm:
    """The body of POST ../activateAutoConfirm; none at all, then without a media type, `null`, `{}` will do.

    Raises DdiFormatError, also for a body without a media type.
    """
    if not body:
        return AutoConfirm()
    if media is None:
        raise DdiFormatError("a body without a media type")
    value: AutoConfirm | None = _read(body, media, _AutoConfirmBody)
    if value is None:
        return AutoConfirm()
    _bounded("initiator", value.initiator or "", NAME_CHARS)
    _bounded("remark", value.remark or "", REMARK_CHARS)
    return value


def parse_action_id(segment: str) -> int:
    """The action id of a path, or 0 for a number that no action can have (404).

    Raises DdiFormatError (400) when it is no number.
    """
    if _ACTION_ID.fullmatch(segment) is None:
        raise DdiFormatError("the action id is not a number")
    number = int(segment)
    return number if 0 < number <= ACTION_ID_MAX else 0


def parse_history(value: str | None) -> int:
    """How many messages the parameter `actionHistory` asks for, 0 to `HISTORY_MESSAGES`; negative is the cap.

    Raises DdiFormatError when it is no number.
    """
    if value is None or value == "":
        return 0
    if _COUNT.fullmatch(value) is None:
        raise DdiFormatError("`actionHistory` is not a number")
    count = int(value)
    return HISTORY_MESSAGES if count < 0 else min(count, HISTORY_MESSAGES)


def bound_details(details: Sequence[str]) -> tuple[str, ...]:
    """What is kept of a feedback's texts: the last `ENTRY_LINES` in their order, each cut to `LINE_CHARS`.

    SWUpdate sends its own log, tens of lines at once, and the reason of a failure stands at the end of it.
    NUL, which PostgreSQL cannot store, becomes U+FFFD.
    """
    return tuple(line[:LINE_CHARS].replace("\x00", "\ufffd") for line in details[-ENTRY_LINES:])


# What the server answers.


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
    """

    filename: str
    size: int
    sha1: str
    url: str
    md5: str | None = None
    sha256: str | None = None
    other_url: str | None = None


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
                "download": https,
                "md5sum": _md5sum_url(artifact, https),
                "download-http": http,
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


def encode_feedback(feedback: Feedback, media: Media) -> bytes:
    """The body a device sends as feedback: the inverse of `decode_feedback`, for simulated devices."""
    status = _present(
        {
            "execution": feedback.execution,
            "result": {"finished": feedback.finished},
            "code": feedback.code,
            "details": feedback.details or None,
        }
    )
    return _write({"status": status}, media)


def encode_config_data(config: ConfigData, media: Media) -> bytes:
    """The body a device sends as configData: the inverse of `decode_config_data`, for simulated devices."""
    return _write({"mode": config.mode, "data": config.data}, media)
