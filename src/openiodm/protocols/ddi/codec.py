"""What devices send, bytes to values: the bodies of requests of the hawkBit DDI v1 contract (answers: `answers.py`).

Nothing here opens, awaits or decides. Every decoder raises `DdiFormatError` and nothing else, whatever the bytes.
Unknown members are ignored everywhere (the contract asks for that); of a member that comes twice the last one counts.
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

import cbor2
import msgspec

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
HISTORY_MESSAGES: Final = 100
"""Most messages that `actionHistory` returns."""
NAME_CHARS: Final = 128
"""Longest name or version of installedBase and longest initiator of activateAutoConfirm, in characters."""
REMARK_CHARS: Final = 512
"""Longest remark of activateAutoConfirm, in characters."""
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
