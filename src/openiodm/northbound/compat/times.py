"""The contract's moments: `yyyyMMdd'T'HHmmss'Z'`, UTC, whole seconds (section 1.5)."""

import re
from datetime import UTC, datetime

from openiodm.clock import Instant

_FORM = re.compile(r"[0-9]{8}T[0-9]{6}Z", re.ASCII)


def format_time(at: Instant) -> str:
    """`20151212T121212Z`; a fraction of a second is cut."""
    iso = datetime.fromtimestamp(at // 1000, UTC).isoformat()  # 2015-12-12T12:12:12+00:00
    return f"{iso[:4]}{iso[5:7]}{iso[8:13]}{iso[14:16]}{iso[17:19]}Z"


def format_time_or_none(at: Instant | None) -> str | None:
    """As `format_time`, for members that may be null."""
    return None if at is None else format_time(at)


def parse_time(text: str) -> Instant:
    """The moment; years from 1970 on.

    Raises:
        ValueError: it is not of that form, or there is no such moment.
    """
    if not _FORM.fullmatch(text):
        raise ValueError(f"not of the form yyyyMMdd'T'HHmmss'Z': {text!r}")
    seconds = datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    if seconds < 0:
        raise ValueError(f"before 1970: {text!r}")
    return Instant(int(seconds) * 1000)
