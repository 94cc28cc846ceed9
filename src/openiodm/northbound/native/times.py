"""Moments in the native API: RFC 3339, UTC."""

from datetime import UTC, datetime, timedelta

from openiodm.clock import Instant

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def moment(at: Instant) -> datetime:
    """As the answers' structs carry it; encoded `2024-01-01T00:00:00.123000Z`, without a fraction on whole seconds."""
    return _EPOCH + timedelta(milliseconds=at)
