"""SenML as LwM2M 1.1 has it, in JSON (110) and CBOR (112): RFC 8428, LwM2M 1.1 sections 7.4.4 and 7.4.5.

A payload is a list of records; a record's name is the base name (which holds on for those after it) and its own. Times
and units are read over: nothing here asks for them.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any, Final

import cbor2
import msgspec

from openiodm.protocols.lwm2m.codec.values import Lwm2mFormatError, Path, Raw, format_path, parse_path

RECORDS: Final = 1000
"""Most records of one payload."""
NESTING: Final = 8
"""Deepest nesting of CBOR; a payload needs 2."""

_LABELS: Final = {-2: "bn", 0: "n", 2: "v", 3: "vs", 4: "vb", 8: "vd", "vlo": "vlo"}
_NUMBERS: Final = {name: label for label, name in _LABELS.items()}


class _Record(msgspec.Struct):
    bn: str | None = None
    n: str | None = None
    v: int | float | None = None
    vs: str | None = None
    vb: bool | None = None
    vd: Any = None  # bytes in CBOR, base64url in JSON
    vlo: str | None = None


_Records = Annotated[list[_Record], msgspec.Meta(max_length=RECORDS)]
_json = msgspec.json.Decoder(_Records)


class _DropTags(dict[int, Any]):
    """Gives the tagged value itself for every tag: no payload needs one, and cbor2 would make objects of them."""

    def __missing__(self, _tag: int) -> Any:
        return lambda value, _immutable: value


_DROP_TAGS: Final = _DropTags()


def decode_json(raw: bytes) -> dict[Path, Raw]:
    """Path -> raw value.

    Raises:
        Lwm2mFormatError: it is no such pack.
    """
    try:
        records = _json.decode(raw)
    except Exception as error:
        # Beside its own errors msgspec lets UnicodeDecodeError and RecursionError through; nothing else runs here.
        raise Lwm2mFormatError(f"not SenML-JSON: {error}") from error
    return _resolve(records)


def decode_cbor(raw: bytes) -> dict[Path, Raw]:
    """Path -> raw value.

    Raises:
        Lwm2mFormatError: it is no such pack.
    """
    try:
        tree = cbor2.loads(raw, semantic_decoders=_DROP_TAGS, max_depth=NESTING)
        named = [{_LABELS[k]: v for k, v in record.items() if k in _LABELS} for record in tree]
        records = msgspec.convert(named, type=_Records)
    except Exception as error:
        # cbor2 lets OverflowError, UnicodeDecodeError and more through; nothing but decoding runs here.
        raise Lwm2mFormatError(f"not SenML-CBOR: {error}") from error
    return _resolve(records)


def _resolve(records: list[_Record]) -> dict[Path, Raw]:
    found: dict[Path, Raw] = {}
    base = ""
    for record in records:
        base = base if record.bn is None else record.bn
        value = _value(record)
        if value is not None:
            found[parse_path(base + (record.n or ""))] = value
    return found


def _value(record: _Record) -> Raw | None:
    if record.vd is not None:
        return _bytes(record.vd)
    for value in (record.vs, record.vb, record.v, record.vlo):
        if value is not None:
            return value
    return None


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise Lwm2mFormatError("vd is no data")
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise Lwm2mFormatError("vd is not base64url") from error


def encode_json(values: Mapping[Path, Raw]) -> bytes:
    """The pack of values, each under its whole name."""
    records = []
    for path, value in values.items():
        name, kept = _kept(value)
        if isinstance(kept, bytes):
            kept = base64.urlsafe_b64encode(kept).rstrip(b"=").decode()
        records.append({"n": format_path(path), name: kept})
    return msgspec.json.encode(records)


def encode_cbor(values: Mapping[Path, Raw]) -> bytes:
    """The pack of values, each under its whole name."""
    records = []
    for path, value in values.items():
        name, kept = _kept(value)
        records.append({_NUMBERS["n"]: format_path(path), _NUMBERS[name]: kept})
    return bytes(cbor2.dumps(records))


def _kept(value: Raw) -> tuple[str, Raw]:
    if isinstance(value, bool):
        return "vb", value
    if isinstance(value, int | float):
        return "v", value
    return ("vs", value) if isinstance(value, str) else ("vd", value)
