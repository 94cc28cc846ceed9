"""Entity tags and media types of DDI: which one a body is in, which one a device takes (RFC 9110, 8.8.3 and 12.5.1)."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Final

_ACCEPT_RANGES: Final = 32  # media ranges of one Accept header that are looked at
_QUALITY: Final = re.compile(r"0?\.[0-9]+|[01](\.[0-9]*)?", re.ASCII)


class Media(StrEnum):
    """The media types of the contract, the preferred one first; HAL is read as JSON."""

    HAL = "application/hal+json"
    JSON = "application/json"
    CBOR = "application/cbor"

    @property
    def content_type(self) -> str:
        """The value of the Content-Type header of an answer."""
        return f"{self.value};charset=utf-8" if self is Media.HAL else self.value


def etag_of(body: bytes) -> str:
    """A strong entity tag of an answer: a quoted hash of its bytes (RFC 9110, 8.8.3)."""
    return f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'


@lru_cache(maxsize=64)
def choose_media(accept: str | None) -> Media | None:
    """The media type of the answer, or None for 406 (RFC 9110, 12.5.1).

    The highest quality wins, then the more exact media range, then the earlier one, then HAL before JSON
    before CBOR. Without the header HAL is sent. A bare `*` (older Java clients) is `*/*`; a range that cannot
    be read is skipped.
    """
    if accept is None or not accept.strip():
        return Media.HAL
    wanted = [
        (*found, position)
        for position, text in enumerate(accept.split(",", _ACCEPT_RANGES)[:_ACCEPT_RANGES])
        if (found := _media_range(text)) is not None
    ]
    best = max(Media, key=lambda media: _rank(media, wanted))
    return best if _rank(best, wanted)[0] > 0 else None


def _media_range(text: str) -> tuple[str, float] | None:
    """A media range in lower case and its quality, or None when it cannot be read."""
    name, *parameters = (piece.strip().lower() for piece in text.split(";"))
    quality = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            if _QUALITY.fullmatch(value.strip()) is None:
                return None
            quality = min(float(value), 1.0)
    return name, quality


def _rank(media: Media, wanted: Sequence[tuple[str, float, int]]) -> tuple[float, int, int]:
    """Quality, exactness and (negative) position of the most exact range that covers a media type."""
    covering: Mapping[str, int] = {"*": 0, "*/*": 0, "application/*": 1, media.value: 3}
    if media is Media.HAL:
        covering = {**covering, "application/*+json": 2}
    found = [(covering[name], -position, quality) for name, quality, position in wanted if name in covering]
    if not found:
        return 0.0, 0, 0
    exactness, place, quality = max(found)
    return quality, exactness, place


def media_of(content_type: str | None) -> Media | None:
    """How a request body is to be read: JSON, CBOR, or None for 415; parameters such as charset do not count."""
    name = (content_type or "").partition(";")[0].strip().lower()
    return Media(name) if name in (Media.JSON, Media.CBOR) else None
