"""Which bytes of an artifact a request gets, and in which frame: ranges and preconditions of a download.

By RFC 9110, 13 and 14, and where the RFC leaves a choice, as hawkBit answers: a Range header that is bad or
asks for one range past the end is refused as a whole (416), never answered in part. That is what ends
rauc-hawkbit-updater's streaming, which reads on until a 416. Reading and sending the bytes is left to the
shell.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from enum import Enum
from typing import Final, NamedTuple
from urllib.parse import quote

import msgspec

from openiodm.clock import SECOND, Instant
from openiodm.protocols.etags import match_etag

RANGES: Final = 100
"""Most ranges of one Range header; more are refused with 416 (RFC 9110, 17.15: range bombs)."""
BOUNDARY: Final = "THIS_STRING_SEPARATES_MULTIPART"
"""The boundary between the parts of a multipart/byteranges body; fixed by the contract."""
FILENAME_CHARS: Final = 78
"""Longest file name in a Content-Disposition header, in characters, quotes included (RFC 2183, 2)."""
OCTETS: Final = "application/octet-stream"
"""The media type of every artifact."""

_RANGE: Final = re.compile(r"([0-9]*)-([0-9]*)", re.ASCII)
_COMMON: Final = re.compile(r"bytes=(?:[0-9]{1,15}-[0-9]{0,15}|-[0-9]{1,15})", re.ASCII)
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_DIGITS: Final = 18  # a number with more digits is beyond any file; int() of thousands of digits raises
_BEYOND: Final = 10**_DIGITS


class Span(NamedTuple):
    """Bytes `start` to `end` of a file, both included, as Content-Range counts them."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """How many bytes it is; at least one."""
        return self.end - self.start + 1


class Answer(Enum):
    """What a Range header comes to when it yields no spans."""

    WHOLE = "whole"  # no range is asked for: the whole file, 200
    UNSATISFIABLE = "unsatisfiable"  # 416


class Plan(msgspec.Struct, frozen=True):
    """The answer to a download request: `status`, the `pieces` of the body in their order, and `headers`.

    A piece is a span of the file to send or bytes to send as they are (multipart framing). The status is 200,
    206, 304, 412 or 416; only 200 and 206 have pieces. The headers hold Content-Length (not with 304) and
    lack Content-Disposition, which `content_disposition` makes from the file's name. For HEAD send the
    headers alone.
    """

    status: int
    headers: dict[str, str]
    pieces: tuple[Span | bytes, ...] = ()

    @property
    def spans(self) -> tuple[Span, ...]:
        """The parts of the file that are sent: sorted, apart from each other."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Span))


def parse_range(header: str | None, size: int) -> tuple[Span, ...] | Answer:
    """The spans that a Range header asks for of a file of `size` bytes, sorted and coalesced, never empty.

    `bytes=a-b`, `a-` and `-n`, several by comma (RFC 9110, 14.1.2). WHOLE without the header and for another
    unit than bytes. UNSATISFIABLE when one range is malformed, reversed or past the end, when there is none
    or more than `RANGES`.
    """
    if header is None:
        return Answer.WHOLE
    unit, _, text = header.partition("=")
    if unit.strip().lower() != "bytes":
        return Answer.WHOLE
    texts = [piece.strip() for piece in text.split(",", RANGES)]
    if len(texts) > RANGES:
        return Answer.UNSATISFIABLE
    spans = [_span(piece, size) for piece in texts if piece]
    found = [span for span in spans if span is not None]
    return _coalesce(found) if found and len(found) == len(spans) else Answer.UNSATISFIABLE


def _span(text: str, size: int) -> Span | None:
    match = _RANGE.fullmatch(text)
    if match is None or text == "-":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(size - _number(last), 0), size - 1
    else:
        start, end = _number(first), min(_number(last) if last else size - 1, size - 1)
    return Span(start, end) if start <= end else None


def _number(digits: str) -> int:
    digits = digits.lstrip("0")
    return _BEYOND if len(digits) > _DIGITS else int(digits or "0")


def _coalesce(spans: Iterable[Span]) -> tuple[Span, ...]:
    apart: list[Span] = []
    for span in sorted(spans):
        if apart and span.start <= apart[-1].end + 1:
            apart[-1] = Span(apart[-1].start, max(apart[-1].end, span.end))
        else:
            apart.append(span)
    return tuple(apart)


def plan(headers: Mapping[str, str], size: int, etag: str, last_modified: Instant, *, method: str = "GET") -> Plan:
    """Decides a download request for a file of `size` bytes (RFC 9110, 13.2.2).

    1. If-Match that names another tag than `etag` (quoted, strong): 412.
    2. If-None-Match that names it: 304.
    3. Range, unless If-Range is against it or `method` is not GET: 206 or 416.
    4. Otherwise 200 with the whole file.

    `headers` are the request's, looked up by lower-case name. If-Modified-Since and If-Unmodified-Since are
    not looked at, as in hawkBit.
    """
    if "if-match" in headers and not match_etag(headers["if-match"], etag, strong=True):
        return Plan(412, {"ETag": etag, "Content-Length": "0"})
    if match_etag(headers.get("if-none-match"), etag):
        return Plan(304, {"ETag": etag, "Last-Modified": http_date(last_modified)})
    asked: tuple[Span, ...] | Answer = Answer.WHOLE
    if method == "GET" and _unchanged(headers.get("if-range"), etag, last_modified):
        asked = parse_range(headers.get("range"), size)
    if asked is Answer.UNSATISFIABLE:
        return Plan(416, {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes", "Content-Length": "0"})
    about = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Last-Modified": http_date(last_modified),
        "X-Content-Type-Options": "nosniff",
    }
    if isinstance(asked, Answer):
        return Plan(200, _framed(about, OCTETS, size), (Span(0, size - 1),) if size else ())
    if len(asked) == 1:
        about["Content-Range"] = _content_range(asked[0], size)
        return Plan(206, _framed(about, OCTETS, asked[0].size), asked)
    pieces = tuple(_multipart(asked, size))
    length = sum(piece.size if isinstance(piece, Span) else len(piece) for piece in pieces)
    return Plan(206, _framed(about, f"multipart/byteranges; boundary={BOUNDARY}", length), pieces)


def is_common(headers: Mapping[str, str], plan: Plan) -> bool:
    """Would any server that has the file and its entity tag answer as `plan` does?

    So not with what servers read in several ways (lists of ranges, dates, odd spellings), nor with If-Match, which
    nginx holds against its own tag.
    """
    if plan.status not in (200, 206) or "if-match" in headers or "if-unmodified-since" in headers:
        return False
    if headers.get("if-range", plan.headers["ETag"]) != plan.headers["ETag"]:
        return False
    return "range" not in headers or _COMMON.fullmatch(headers["range"]) is not None


def _framed(about: Mapping[str, str], content_type: str, length: int) -> dict[str, str]:
    return {**about, "Content-Type": content_type, "Content-Length": str(length)}


def _content_range(span: Span, size: int) -> str:
    return f"bytes {span.start}-{span.end}/{size}"


def _multipart(spans: Sequence[Span], size: int) -> Iterator[Span | bytes]:
    """The body of multipart/byteranges (RFC 9110, 14.6): a head before each span, a delimiter at the end."""
    line_end = ""
    for span in spans:
        about = f"Content-Type: {OCTETS}\r\nContent-Range: {_content_range(span, size)}"
        yield f"{line_end}--{BOUNDARY}\r\n{about}\r\n\r\n".encode()
        yield span
        line_end = "\r\n"
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def _unchanged(if_range: str | None, etag: str, last_modified: Instant) -> bool:
    """Whether If-Range lets Range count: the same strong tag, or a date that is not older than the file's.

    Something else than a tag or a date counts as changed: then the whole file is sent, which is always right.
    """
    if if_range is None or if_range.strip() in (etag, etag.strip('"')):
        return True
    since = _parse_date(if_range)
    return since is not None and since >= last_modified // SECOND


def http_date(moment: Instant) -> str:
    """A moment as an HTTP date, whole seconds (RFC 9110, 5.6.7)."""
    return formatdate(moment // SECOND, usegmt=True)


def _parse_date(text: str) -> int | None:
    """Seconds since the epoch of an HTTP date, in any of the three forms; None when it is none."""
    try:
        parsed = parsedate_to_datetime(text)
        return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())
    except (ValueError, TypeError, IndexError, OverflowError):  # the parser's, on odd texts
        return None


def content_disposition(filename: str) -> str:
    """`attachment;filename=x`: bare as a token, else quoted; `FILENAME_CHARS` at most, whatever the name.

    Quotes, backslashes, control characters and all beyond ASCII become `_` in it. A name that does not
    survive that or is cut follows in full as `filename*` (RFC 6266, 4.3; RFC 8187).
    """
    plain = "".join(char if " " <= char <= "~" and char not in '"\\' else "_" for char in filename)
    if _TOKEN.fullmatch(plain):
        plain = shown = plain[:FILENAME_CHARS]
    else:
        plain = plain[: FILENAME_CHARS - 2]
        shown = f'"{plain}"'
    if plain == filename:
        return f"attachment;filename={shown}"
    return f"attachment;filename={shown};filename*=UTF-8''{quote(filename, safe='', errors='replace')}"
