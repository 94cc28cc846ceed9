"""Moments in the native API: RFC 3339, UTC."""

import re
from datetime import UTC, datetime, timedelta

from openiodm.clock import Instant

# RFC 3339, and the published contract's form of it without separators: a body may move here from there as it is.
_MOMENT = re.compile(
    r"[0-9]{4}(-?)[0-9]{2}\1[0-9]{2}[Tt][0-9]{2}(:?)[0-9]{2}\2[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(at: Instant) -> datetime:
    """As the answers' structs carry it; encoded `2024-01-01T00:00:00.123000Z`, without a fraction on whole seconds."""
    return _EPOCH + timedelta(milliseconds=at)


def read_moment(text: str) -> Instant:
    """RFC 3339, or the published contract's `yyyyMMdd'T'HHmmss'Z'`; years from 1970 on, whole milliseconds.

    Raises:
        ValueError: it is neither, or there is no such moment.
    """
    if not _MOMENT.fullmatch(text):
        raise ValueError(f"not an RFC 3339 moment: {text[:64]!r}")
    try:
        at = datetime.fromisoformat(text.upper()).astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"out of range: {text[:64]!r}") from error
    if at < _EPOCH:
        raise ValueError(f"before 1970: {text[:64]!r}")
    since = at - _EPOCH
    return Instant((since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000)
