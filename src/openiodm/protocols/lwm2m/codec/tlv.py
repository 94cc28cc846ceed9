"""The OMA TLV format, `application/vnd.oma.lwm2m+tlv`, 11542 (LwM2M 1.0 section 6.4.3).

byte 0       bits 7-6 kind, 5 id of two bytes, 4-3 bytes of the length field (0: bits 2-0 are the length)
id           1 or 2 bytes, big-endian
length       0 to 3 bytes, big-endian
value        bytes, or for an object instance and a multiple resource: TLVs
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from openiodm.protocols.lwm2m.codec.values import Lwm2mFormatError, Path, Raw

DEPTH: Final = 3
"""Deepest nesting: object instance, multiple resource, resource instance."""


class Kind(IntEnum):
    """What a TLV is, in bits 7 and 6."""

    OBJECT_INSTANCE = 0
    RESOURCE_INSTANCE = 1
    MULTIPLE_RESOURCE = 2
    RESOURCE = 3


@dataclass(frozen=True, slots=True)
class Tlv:
    """One element: a value, or the elements inside it."""

    kind: Kind
    id: int
    value: "bytes | tuple[Tlv, ...]"


def decode(raw: bytes) -> tuple[Tlv, ...]:
    """All elements of a payload.

    Raises:
        Lwm2mFormatError: it is cut off, or nested as the standard does not have it.
    """
    return tuple(_decode(raw, DEPTH))


def _decode(raw: bytes, depth: int) -> Iterator[Tlv]:
    at = 0
    while at < len(raw):
        head = raw[at]
        id_size, length_size = 1 + (head >> 5 & 1), head >> 3 & 3
        start = at + 1 + id_size + length_size
        if start > len(raw):
            raise Lwm2mFormatError("a TLV's head is cut off")
        identifier = int.from_bytes(raw[at + 1 : at + 1 + id_size], "big")
        length = int.from_bytes(raw[at + 1 + id_size : start], "big") if length_size else head & 7
        at = start + length
        if at > len(raw):
            raise Lwm2mFormatError("a TLV's value is cut off")
        kind, inside = Kind(head >> 6), raw[start:at]
        if kind in (Kind.RESOURCE, Kind.RESOURCE_INSTANCE):
            yield Tlv(kind, identifier, inside)
        elif depth == 1:
            raise Lwm2mFormatError("TLVs nested too deeply")
        else:
            yield Tlv(kind, identifier, tuple(_decode(inside, depth - 1)))


def encode(elements: Sequence[Tlv]) -> bytes:
    """The payload.

    Raises:
        Lwm2mFormatError: a value longer than three bytes can count.
    """
    return b"".join(map(_encode, elements))


def _encode(element: Tlv) -> bytes:
    value = element.value if isinstance(element.value, bytes) else encode(element.value)
    size = len(value)
    if size >= 1 << 24:
        raise Lwm2mFormatError(f"a value of {size} bytes")
    length = b"" if size < 8 else size.to_bytes((size.bit_length() + 7) // 8, "big")
    identifier = element.id.to_bytes(2 if element.id > 0xFF else 1, "big")
    head = element.kind << 6 | (len(identifier) - 1) << 5 | len(length) << 3 | (0 if length else size)
    return bytes((head,)) + identifier + length + value


def values(raw: bytes, base: Path) -> dict[Path, Raw]:
    """Path -> raw value of a payload that answers a request for `base` (1 to 4 parts).

    A request for a resource is answered by the resource's own TLV, one for an instance by its resources or by the
    instance with them inside: both are read (section 6.4.3: "the TLV of an object instance may be left out").

    Raises:
        Lwm2mFormatError: as `decode`, or elements that do not fit the path.
    """
    found: dict[Path, Raw] = {}
    for element in decode(raw):
        _gather(element, base, found)
    return found


def _gather(element: Tlv, base: Path, found: dict[Path, Raw]) -> None:
    if element.kind is Kind.OBJECT_INSTANCE:
        depth = 1
    elif element.kind is Kind.RESOURCE_INSTANCE:
        depth = 3
    else:
        depth = 2
    if len(base) < depth:
        raise Lwm2mFormatError("a TLV of something inside what was asked for, without what is around it")
    path = (*base[:depth], element.id)
    if isinstance(element.value, bytes):
        found[path] = element.value
        return
    for inner in element.value:
        _gather(inner, path, found)


def integer(value: int) -> bytes:
    """The shortest of 1, 2, 4, 8 bytes that holds `value`."""
    size = next((n for n in (1, 2, 4) if -(1 << 8 * n - 1) <= value < 1 << 8 * n - 1), 8)
    return value.to_bytes(size, "big", signed=True)
