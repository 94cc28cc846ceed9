"""PCP frames to values and back (the vendor's "PCP introduction" page, version 1 of the protocol).

    0..1   FF FE                     4..5   check code, of the whole frame with these two bytes 0
    2      version, low nibble 1     6..7   number of data bytes
    3      message code, 19..24      8..    data

Integers are unsigned and big-endian. A frame does not say whether it is a request or a response: who sent it does. So
there is one decoder for what devices send and one for what the platform sends (`decode_device`, `decode_platform`).
Each raises `PcpFormatError` and nothing else, whatever the bytes.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

START: Final = b"\xff\xfe"
VERSION: Final = 1
HEAD_BYTES: Final = 8
VERSION_BYTES: Final = 16
"""A version is ASCII, padded on the right with 00."""
FRAGMENTS_MAX: Final = 65_535
"""Most fragments of a package: what the 16 bits of their count can say. (Their numbers, from 0, could name one more; a
device would be told that there are 0.)"""
FRAGMENT_BYTES: Final = (32, 500)
"""Smallest and largest fragment."""
FRAGMENT_DEFAULT: Final = 500

_HEAD: Final = struct.Struct(">2sBBHH")


class PcpFormatError(Exception):
    """Not a PCP frame, or one that was damaged: it is dropped without an answer."""


class Code(IntEnum):
    """What a frame is about."""

    VERSION_QUERY = 19
    NEW_VERSION = 20
    FRAGMENT = 21
    DOWNLOAD_STATE = 22
    EXECUTE = 23
    RESULT = 24


class Status(IntEnum):
    """Result and state bytes. A device's unknown value means what `INTERNAL_ERROR` does."""

    OK = 0x00
    IN_USE = 0x01
    WEAK_SIGNAL = 0x02
    ALREADY_NEWEST = 0x03
    LOW_BATTERY = 0x04
    NO_SPACE = 0x05
    DOWNLOAD_TIMEOUT = 0x06
    CHECK_FAILED = 0x07
    TYPE_UNSUPPORTED = 0x08
    NO_MEMORY = 0x09
    INSTALL_FAILED = 0x0A
    INTERNAL_ERROR = 0x7F
    NO_SUCH_TASK = 0x80
    NO_SUCH_FRAGMENT = 0x81


# -- what the platform asks and a device answers


@dataclass(frozen=True, slots=True)
class QueryVersion:
    """19, platform to device."""


@dataclass(frozen=True, slots=True)
class VersionAnswer:
    """19, device to platform. A device that was never upgraded may tell 16 zero bytes: an empty version."""

    status: int
    version: str


@dataclass(frozen=True, slots=True)
class NewVersion:
    """20, platform to device. `check_code` must stay the same for a package: devices resume by (version, code)."""

    version: str
    fragment_bytes: int
    fragments: int
    check_code: int = 0


@dataclass(frozen=True, slots=True)
class NewVersionAnswer:
    """20, device to platform."""

    status: int


@dataclass(frozen=True, slots=True)
class Execute:
    """23, platform to device."""


@dataclass(frozen=True, slots=True)
class ExecuteAnswer:
    """23, device to platform."""

    status: int


# -- what a device asks and the platform answers


@dataclass(frozen=True, slots=True)
class AskFragment:
    """21, device to platform; numbers from 0."""

    version: str
    number: int


@dataclass(frozen=True, slots=True)
class Fragment:
    """21, platform to device; no data unless the status is OK."""

    status: int
    number: int
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class DownloadState:
    """22, device to platform."""

    status: int


@dataclass(frozen=True, slots=True)
class DownloadStateAnswer:
    """22, platform to device."""

    status: int


@dataclass(frozen=True, slots=True)
class UpgradeResult:
    """24, device to platform; `version` is the one that it runs now."""

    status: int
    version: str


@dataclass(frozen=True, slots=True)
class UpgradeResultAnswer:
    """24, platform to device."""

    status: int


FromDevice = VersionAnswer | NewVersionAnswer | AskFragment | DownloadState | ExecuteAnswer | UpgradeResult
FromPlatform = QueryVersion | NewVersion | Fragment | DownloadStateAnswer | Execute | UpgradeResultAnswer


def is_pcp(raw: bytes) -> bool:
    """Does a device's message belong to this protocol? Its ordinary data may not begin with FF FE."""
    return raw[:2] == START


def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        r = byte << 8
        for _ in range(8):
            r = (r << 1 ^ 0x1021 if r & 0x8000 else r << 1) & 0xFFFF
        table.append(r)
    return tuple(table)


_TABLE: Final = _table()


def check_code(frame: bytes) -> int:
    """The protocol's own check code: the table of CRC-16/CCITT, shifted the other way.

    The documents call it CRC-16/CCITT, and no variant of that gives the numbers that they print; this does. It is weak
    and tells nothing of a package's integrity. ASCII "123456789" gives B955.
    """
    r = 0
    for byte in frame:
        r = r >> 8 ^ _TABLE[(r ^ byte) & 0xFF]
    return r


def decode_device(raw: bytes) -> FromDevice:
    """A frame from a device.

    Raises:
        PcpFormatError: damaged, or no such message.
    """
    code, data = _frame(raw)
    match code:
        case Code.VERSION_QUERY:
            return VersionAnswer(_sized(data, 17)[0], _version(data[1:]))
        case Code.NEW_VERSION:
            return NewVersionAnswer(_sized(data, 1)[0])
        case Code.FRAGMENT:
            _sized(data, 18)
            return AskFragment(_version(data[:16]), int.from_bytes(data[16:], "big"))
        case Code.DOWNLOAD_STATE:
            return DownloadState(_sized(data, 1)[0])
        case Code.EXECUTE:
            return ExecuteAnswer(_sized(data, 1)[0])
        case Code.RESULT:
            return UpgradeResult(_sized(data, 17)[0], _version(data[1:]))


def decode_platform(raw: bytes) -> FromPlatform:
    """A frame from the platform.

    Raises:
        PcpFormatError: damaged, or no such message.
    """
    code, data = _frame(raw)
    match code:
        case Code.VERSION_QUERY:
            _sized(data, 0)
            return QueryVersion()
        case Code.NEW_VERSION:
            version, size, count, check = struct.unpack(">16sHHH", _sized(data, 22))
            return NewVersion(_version(version), size, count, check)
        case Code.FRAGMENT:
            if len(data) < 3:
                raise PcpFormatError("a fragment without its number")
            return Fragment(data[0], int.from_bytes(data[1:3], "big"), data[3:])
        case Code.DOWNLOAD_STATE:
            return DownloadStateAnswer(_sized(data, 1)[0])
        case Code.EXECUTE:
            _sized(data, 0)
            return Execute()
        case Code.RESULT:
            return UpgradeResultAnswer(_sized(data, 1)[0])


def _frame(raw: bytes) -> tuple[Code, bytes]:
    if len(raw) < HEAD_BYTES:
        raise PcpFormatError("shorter than a frame's head")
    start, version, code, check, length = _HEAD.unpack_from(raw)
    if start != START or version & 0x0F != VERSION:
        raise PcpFormatError("not a frame of version 1")
    if len(raw) != HEAD_BYTES + length:
        raise PcpFormatError(f"a frame of {len(raw)} bytes says that it has {HEAD_BYTES + length}")
    if check_code(raw[:4] + b"\0\0" + raw[6:]) != check:
        raise PcpFormatError("the check code does not fit")
    try:
        return Code(code), raw[HEAD_BYTES:]
    except ValueError as error:
        raise PcpFormatError(f"message code {code} is not known") from error


def _sized(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise PcpFormatError(f"{len(data)} bytes of data instead of {size}")
    return data


def _version(field: bytes) -> str:
    """Up to the first 00. Bytes that are no ASCII are shown as their escapes: such a version equals no package's."""
    return field.partition(b"\0")[0].decode("ascii", "backslashreplace")


def encode(message: FromDevice | FromPlatform) -> bytes:
    """The frame.

    Raises:
        PcpFormatError: a version that is no ASCII or longer than 16 bytes, or a number that has no room.
    """
    try:
        code, data = _data(message)
    except struct.error as error:
        raise PcpFormatError(f"{message}: {error}") from error
    frame = _HEAD.pack(START, VERSION, code, 0, len(data)) + data
    return frame[:4] + check_code(frame).to_bytes(2, "big") + frame[6:]


def _data(message: FromDevice | FromPlatform) -> tuple[Code, bytes]:
    match message:
        case QueryVersion():
            return Code.VERSION_QUERY, b""
        case VersionAnswer():
            return Code.VERSION_QUERY, struct.pack("B16s", message.status, _padded(message.version))
        case NewVersion():
            counts = (message.fragment_bytes, message.fragments, message.check_code)
            return Code.NEW_VERSION, struct.pack(">16sHHH", _padded(message.version), *counts)
        case NewVersionAnswer():
            return Code.NEW_VERSION, struct.pack("B", message.status)
        case AskFragment():
            return Code.FRAGMENT, struct.pack(">16sH", _padded(message.version), message.number)
        case Fragment():
            return Code.FRAGMENT, struct.pack(">BH", message.status, message.number) + message.data
        case DownloadState() | DownloadStateAnswer():
            return Code.DOWNLOAD_STATE, struct.pack("B", message.status)
        case Execute():
            return Code.EXECUTE, b""
        case ExecuteAnswer():
            return Code.EXECUTE, struct.pack("B", message.status)
        case UpgradeResult():
            return Code.RESULT, struct.pack("B16s", message.status, _padded(message.version))
        case UpgradeResultAnswer():
            return Code.RESULT, struct.pack("B", message.status)


def _padded(version: str) -> bytes:
    try:
        raw = version.encode("ascii")
    except UnicodeEncodeError as error:
        raise PcpFormatError(f"version {version!r} is no ASCII") from error
    if len(raw) > VERSION_BYTES:
        raise PcpFormatError(f"version {version!r} is longer than {VERSION_BYTES} bytes")
    return raw


def fragments(size: int, fragment_bytes: int) -> int:
    """How many fragments a package of `size` bytes has."""
    return -(-size // fragment_bytes)
