"""Reads the description inside a software package of the published platform (a "SOTA" zip).

Such a zip holds `DM/linux/UpgradeDesc.json` and the payload beside it (contract, section 6.1). The reader trusts
nothing of the file: the zip's directory is walked by hand within limits, one member is inflated up to a limit, and
whatever is wrong ends in a `Refusal`. A file that is no zip, or a zip without the description, is simply not SOTA.

It reads, seeks and never writes; run it in a thread.
"""

import os
import struct
import zlib
from dataclasses import dataclass
from typing import Annotated, BinaryIO

import msgspec
from msgspec import Meta

from openiodm.errors import Reason, Refusal
from openiodm.packages.model import MAX_SOURCE_VERSIONS, checked_file_name, checked_text

FOLDER = "DM/linux/"
DESCRIPTION = FOLDER + "UpgradeDesc.json"
SPEC_VERSION = "1.0"
PACKAGE_TYPE = "softwarePackage"
PROTOCOLS = frozenset({"coap", "lwm2m", "mqtt"})

MAX_DESCRIPTION_BYTES = 64 * 1024  # inflated and deflated
MAX_DIRECTORY_BYTES = 1024 * 1024  # of the zip's central directory
MAX_ENTRIES = 10_000
MAX_VERSION_BYTES = 16  # PCP carries versions in 16 bytes
CHECK_CODE_CHARS = 4
MIN_SHARD_BYTES, MAX_SHARD_BYTES, DEFAULT_SHARD_BYTES = 32, 500, 500

# APPNOTE.TXT 4.3: local file header, central directory header, end of central directory.
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCAL_MAGIC, _CENTRAL_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_MAX_COMMENT = 0xFFFF
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True)
class SotaDescription:
    """What UpgradeDesc.json says, checked. Members that it leaves empty are None."""

    file_name: str
    version: str
    device_type: str
    manufacturer_name: str
    model: str | None
    protocol_type: str | None
    description: str | None
    source_versions: tuple[str, ...]
    version_check_code: str | None
    device_shard: int
    platform: str | None
    date: str | None


@dataclass(frozen=True, slots=True)
class _Entry:
    flags: int
    method: int
    crc: int
    packed_size: int
    size: int
    offset: int


class _UpgradeDesc(msgspec.Struct, rename="camel"):
    """The file as it is written; its authors leave optional members empty, and write numbers as text."""

    spec_version: str
    file_name: str
    package_type: str
    version: str
    device_type: str
    manufacturer_name: str
    model: str | None = None
    protocol_type: str | None = None
    description: str | None = None
    version_check_code: str | None = None
    device_shard: int | str | None = None
    platform: str | None = None
    support_source_version_list: Annotated[list[str], Meta(max_length=MAX_SOURCE_VERSIONS)] | None = None
    date: str | None = None


_decoder = msgspec.json.Decoder(_UpgradeDesc)


def read(file: BinaryIO) -> SotaDescription | None:
    """The description of a SOTA zip; None when the file is something else.

    Raises:
        Refusal: BAD_INPUT, naming the member at fault: the file is a zip and damaged, or its description is bad.
    """
    file.seek(0)
    if file.read(4) != _LOCAL_MAGIC:
        return None
    entries = _directory(file)
    if entries is None or DESCRIPTION not in entries:
        return None
    described = _parse(_member(file, entries[DESCRIPTION]))
    if FOLDER + described.file_name not in entries:
        raise _bad("fileName", f"the zip holds no {FOLDER}{described.file_name}")
    return described


def _damaged(what: str) -> Refusal:
    return Refusal(Reason.BAD_INPUT, f"the zip file is damaged: {what}", field="file")


def _bad(member: str, why: str) -> Refusal:
    return Refusal(Reason.BAD_INPUT, f"{DESCRIPTION}: {why}", field=member)


def _directory(file: BinaryIO) -> dict[str, _Entry] | None:
    """The members by name; None when the directory is larger than any SOTA zip's (zip64 included)."""
    length = file.seek(0, os.SEEK_END)
    tail_size = min(length, _END.size + _MAX_COMMENT)
    file.seek(length - tail_size)
    tail = file.read(tail_size)
    at = tail.rfind(_END_MAGIC)
    if at < 0 or at + _END.size > len(tail):
        raise _damaged("it has no end record")
    _, _, _, _, count, size, offset, _ = _END.unpack_from(tail, at)
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        return None
    if offset + size > length - tail_size + at:
        raise _damaged("its directory lies outside")
    file.seek(offset)
    return _entries(file.read(size), count)


def _entries(raw: bytes, count: int) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(raw):
            raise _damaged("its directory is cut off")
        (magic, _, _, flags, method, _, _, crc, packed, size, name_size, extra_size, comment_size, _, _, _, offset) = (
            _CENTRAL.unpack_from(raw, at)
        )
        if magic != _CENTRAL_MAGIC:
            raise _damaged("its directory has a bad entry")
        start = at + _CENTRAL.size
        name = raw[start : start + name_size].decode("utf-8", "replace")
        if name in entries:
            raise _damaged("it has two members of one name")
        entries[name] = _Entry(flags, method, crc, packed, size, offset)
        at = start + name_size + extra_size + comment_size
    return entries


def _member(file: BinaryIO, entry: _Entry) -> bytes:
    """One member's content. What the headers say of sizes is a reason to refuse, never a promise."""
    if entry.size > MAX_DESCRIPTION_BYTES or entry.packed_size > MAX_DESCRIPTION_BYTES:
        raise _bad("file", f"larger than {MAX_DESCRIPTION_BYTES} bytes")
    if entry.flags & _ENCRYPTED:
        raise _bad("file", "encrypted")
    file.seek(entry.offset)
    header = file.read(_LOCAL.size)
    if len(header) < _LOCAL.size or not header.startswith(_LOCAL_MAGIC):
        raise _damaged("a member has no header")
    name_size, extra_size = _LOCAL.unpack(header)[-2:]
    file.seek(name_size + extra_size, os.SEEK_CUR)
    packed = file.read(entry.packed_size)
    content = _inflated(packed) if entry.method == _DEFLATED else packed
    if entry.method not in (_STORED, _DEFLATED):
        raise _bad("file", "neither stored nor deflated")
    if len(content) != entry.size or zlib.crc32(content) != entry.crc:
        raise _damaged(f"{DESCRIPTION} does not match its checksum")
    return content


def _inflated(packed: bytes) -> bytes:
    try:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, MAX_DESCRIPTION_BYTES + 1)
    except zlib.error as error:
        raise _damaged(f"{DESCRIPTION} cannot be inflated") from error
    if len(content) > MAX_DESCRIPTION_BYTES:
        raise _bad("file", f"larger than {MAX_DESCRIPTION_BYTES} bytes")
    return content


def _parse(raw: bytes) -> SotaDescription:
    try:
        written = _decoder.decode(raw.removeprefix(b"\xef\xbb\xbf"))  # Notepad's "UTF-8" has a byte order mark
    except msgspec.ValidationError as error:
        raise _bad(_member_of(error), str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad("file", f"not JSON in UTF-8: {error}") from error
    if written.spec_version.strip() != SPEC_VERSION:
        raise _bad("specVersion", f"specVersion is not {SPEC_VERSION}")
    if written.package_type.strip() != PACKAGE_TYPE:
        raise _bad("packageType", f"packageType is not {PACKAGE_TYPE}")
    return SotaDescription(
        file_name=checked_file_name(written.file_name, "fileName"),
        version=_version(written.version),
        device_type=checked_text(written.device_type, "deviceType"),
        manufacturer_name=checked_text(written.manufacturer_name, "manufacturerName"),
        model=_optional(written.model, "model"),
        protocol_type=_protocol(written.protocol_type),
        description=_optional(written.description, "description"),
        source_versions=_source_versions(written.support_source_version_list),
        version_check_code=_check_code(written.version_check_code),
        device_shard=_shard(written.device_shard),
        platform=_optional(written.platform, "platform"),
        date=_optional(written.date, "date"),
    )


def _member_of(error: msgspec.ValidationError) -> str:
    # "Object missing required field `version`" or "Expected `str`, got `int` - at `$.version`"
    text = str(error)
    name = text.rpartition("`$.")[2] if "`$." in text else text.partition("field `")[2]
    return name.partition("`")[0].partition("[")[0] or "file"


def _optional(value: str | None, name: str) -> str | None:
    return checked_text(value, name) if value is not None and value.strip() else None


def _version(value: str) -> str:
    version = checked_text(value, "version")
    if len(version.encode()) > MAX_VERSION_BYTES:
        raise _bad("version", f"version is longer than {MAX_VERSION_BYTES} bytes")
    return version


def _protocol(value: str | None) -> str | None:
    protocol = _optional(value, "protocolType")
    if protocol is not None and protocol.casefold() not in PROTOCOLS:
        raise _bad("protocolType", "protocolType is none of CoAP, LWM2M, MQTT")
    return protocol


def _source_versions(values: list[str] | None) -> tuple[str, ...]:
    checked = (_optional(value, "supportSourceVersionList") for value in values or ())
    return tuple(dict.fromkeys(value for value in checked if value is not None))


def _check_code(value: str | None) -> str | None:
    code = _optional(value, "versionCheckCode")
    if code is not None and len(code) != CHECK_CODE_CHARS:
        raise _bad("versionCheckCode", f"versionCheckCode has not {CHECK_CODE_CHARS} characters")
    return code


def _shard(value: int | str | None) -> int:
    text = str(value if value is not None else "").strip() or str(DEFAULT_SHARD_BYTES)
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_SHARD_BYTES))):
        raise _bad("deviceShard", "deviceShard is not a number of bytes")
    if not MIN_SHARD_BYTES <= int(text) <= MAX_SHARD_BYTES:
        raise _bad("deviceShard", f"deviceShard is not within {MIN_SHARD_BYTES}..{MAX_SHARD_BYTES}")
    return int(text)
