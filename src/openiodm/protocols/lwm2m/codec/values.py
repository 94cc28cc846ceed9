"""Paths, content formats, and what a raw value means.

LwM2M's TLV says nothing of a value's type: only who reads it knows. So decoders give raw values (`Raw`), and
`as_text`, `as_int` read them as the object's definition has them.
"""

from enum import IntEnum
from typing import Final

PATH_PARTS: Final = 4
"""Most parts of a path: object, instance, resource, resource instance."""
ID_MAX: Final = 65_535
"""Largest id of each (65535 itself means "none" and names nothing: LwM2M 1.1 section 7.3)."""
TEXT_BYTES: Final = 255
"""Longest text that is taken from a device, in bytes; the longest resource of interest (5/0/1) has 255."""

Path = tuple[int, ...]
Raw = bytes | str | int | float | bool


class Lwm2mFormatError(Exception):
    """The bytes are not what the standard says they are."""


class ContentFormat(IntEnum):
    """CoAP content formats that LwM2M uses (LwM2M 1.0 section 6.4, 1.1 section 7.4)."""

    TEXT = 0
    LINK = 40
    OPAQUE = 42
    SENML_JSON = 110
    SENML_CBOR = 112
    TLV = 11542


def parse_path(text: str) -> Path:
    """`/5/0/3` as (5, 0, 3); a slash at the end is forgiven, since base names have one.

    Raises:
        Lwm2mFormatError: it is no path.
    """
    parts = text.strip("/").split("/")
    if not text.startswith("/") or len(parts) > PATH_PARTS:
        raise Lwm2mFormatError(f"not a path: {text[:40]!r}")
    return tuple(map(_id, parts)) if parts != [""] else ()


def _id(part: str) -> int:
    if not (part.isascii() and part.isdigit() and len(part) <= 5 and int(part) < ID_MAX):
        raise Lwm2mFormatError(f"not an id: {part[:40]!r}")
    return int(part)


def format_path(path: Path) -> str:
    """(5, 0, 3) as `/5/0/3`."""
    return "/" + "/".join(map(str, path))


def as_text(raw: Raw) -> str:
    """A string resource, up to the first NUL: Huawei's devices count the closing one of a C string in.

    Raises:
        Lwm2mFormatError: too long, or no UTF-8.
    """
    if isinstance(raw, bool):
        raw = "1" if raw else "0"
    if isinstance(raw, str):
        raw = raw.encode("utf-8", "surrogatepass")
    if isinstance(raw, int | float):
        raw = str(raw).encode()
    if len(raw) > TEXT_BYTES:
        raise Lwm2mFormatError(f"a text of {len(raw)} bytes")
    try:
        return raw.partition(b"\0")[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise Lwm2mFormatError("a text that is no UTF-8") from error


def as_int(raw: Raw) -> int:
    """An integer resource: big-endian two's complement of 1, 2, 4 or 8 bytes in TLV, digits in text.

    Raises:
        Lwm2mFormatError: it is none.
    """
    if isinstance(raw, int):
        return int(raw)
    if isinstance(raw, float):
        if not raw.is_integer():
            raise Lwm2mFormatError("a number that is no integer")
        return int(raw)
    if isinstance(raw, str):
        return _digits(raw)
    if len(raw) not in (1, 2, 4, 8):
        raise Lwm2mFormatError(f"an integer of {len(raw)} bytes")
    return int.from_bytes(raw, "big", signed=True)


def _digits(text: str) -> int:
    digits = text.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise Lwm2mFormatError(f"not an integer: {text[:40]!r}")
    return int(text)
