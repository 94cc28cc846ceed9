"""Packages and the bytes behind them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import NewType

from openiodm.access.model import Product
from openiodm.clock import Instant
from openiodm.errors import Reason, Refusal

PackageKey = NewType("PackageKey", int)  # the row's id, never shown

MAX_TEXT = 256  # characters of every text about a package, its name included
MAX_SOURCE_VERSIONS = 1_000

_PUBLIC_ID = re.compile(r"[0-9a-zA-Z_-]{1,256}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
# C0, DEL and C1: no header, terminal or PostgreSQL text (NUL) can carry them. Lone surrogates have no UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class FileType(StrEnum):
    """What a package replaces; the contract's spelling, which is also the table's."""

    FIRMWARE = "firmwarePackage"
    SOFTWARE = "softwarePackage"


class Need(Enum):
    """What a package is still needed for."""

    UNFINISHED = "unfinished"  # a task that has not ended
    RETRY = "retry"  # a failed task that an operator may retry


@dataclass(frozen=True, slots=True)
class NewPackage:
    """What the uploader says of a file. None means "not said": a SOTA zip may say it in the uploader's place."""

    type: FileType
    name: str | None = None
    version: str | None = None
    device_type: str | None = None
    model: str | None = None
    manufacturer_name: str | None = None
    source_versions: tuple[str, ...] | None = None
    description: str | None = None
    protocol_type: str | None = None
    build_date: str | None = None


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes by their digests (lower-case hex). Packages with the same bytes share one blob."""

    sha256: str
    sha1: str
    md5: str
    size: int


@dataclass(frozen=True, slots=True)
class PackageDraft:
    """A complete description: what a row is written from."""

    file_type: FileType
    name: str
    version: str
    product: Product
    source_versions: tuple[str, ...] = ()  # empty = any
    description: str | None = None
    protocol_type: str | None = None
    build_date: str | None = None
    extra: Mapping[str, str | int] = field(default_factory=dict)  # versionCheckCode, deviceShard, platform


@dataclass(frozen=True, slots=True)
class Package:
    """A package as its owner sees it."""

    key: PackageKey
    file_id: str
    uploaded_at: Instant
    about: PackageDraft
    blob: Blob


@dataclass(frozen=True, slots=True)
class PackageFilter:
    """Conditions of the package list; all given ones must hold, exactly."""

    file_type: FileType | None = None
    device_type: str | None = None
    model: str | None = None
    manufacturer_name: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class PackagePage:
    """Some packages, newest first, and how many match in all."""

    items: tuple[Package, ...]
    total: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection of unreferenced bytes removed."""

    files: int
    bytes: int


def checked_text(value: str, name: str) -> str:
    """`value` without surrounding blanks, or a refusal that names the field."""
    value = value.strip()
    if not value:
        raise Refusal(Reason.BAD_INPUT, f"{name} is empty", field=name)
    if len(value) > MAX_TEXT:
        raise Refusal(Reason.BAD_INPUT, f"{name} is longer than {MAX_TEXT} characters", field=name)
    if _UNPRINTABLE.search(value):
        raise Refusal(Reason.BAD_INPUT, f"{name} contains control characters", field=name)
    return value


def checked_file_name(value: str, name: str = "name") -> str:
    """A name that any device can store a file under: no path, no control character, not `.` or `..`.

    Raises:
        Refusal: BAD_INPUT; a bad name is never repaired silently, since devices may compare it.
    """
    value = checked_text(value, name)
    if "/" in value or "\\" in value or value in {".", ".."}:
        raise Refusal(Reason.BAD_INPUT, f"{name} is not a plain file name", field=name)
    return value


def checked_file_id(value: str) -> str:
    """A public id as it may look; anything else cannot be a package's.

    Raises:
        Refusal: BAD_INPUT.
    """
    if not _PUBLIC_ID.fullmatch(value):
        raise Refusal(Reason.BAD_INPUT, "malformed fileId", field="fileId")
    return value


def checked_sha256(value: str) -> str:
    """A SHA-256 in hex, in lower case.

    Raises:
        Refusal: BAD_INPUT.
    """
    value = value.strip().lower()
    if not _SHA256.fullmatch(value):
        raise Refusal(Reason.BAD_INPUT, "sha256 is not 64 hex digits", field="sha256")
    return value


def is_searchable(value: str) -> bool:
    """Could a stored text equal this? Both engines can be asked for what passes."""
    return len(value) <= MAX_TEXT and not _UNPRINTABLE.search(value)
