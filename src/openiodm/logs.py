"""Structured logs: constant event names, ids as fields, no secret in any of them.

INFO: what an operator wants to see; WARNING: a peer misbehaves; ERROR: we do.
"""

import io
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

REDACTED = "***"
SECRET_FIELDS = frozenset(
    {"secret", "token", "password", "psk", "verify_code", "authorization", "access_token", "refresh_token", "database"}
)


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blanks fields that carry secrets, wherever they were logged."""
    for name in event.keys() & SECRET_FIELDS:
        event[name] = REDACTED
    return event


# Both of structlog's own ways to show a trace print every frame's variables, and with them tokens and secrets.
_traces = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


class LossyStream:
    """Standard error that never raises: a log on a full disk, or down a closed pipe, must not stop what it tells of.

    Lines that could not be written are lost; how many is said in front of the next one that could.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lost = 0

    def write(self, text: str) -> int:
        """Writes and flushes `text`, if it can."""
        try:
            if self._lost:
                self._stream.write(f"{self._lost} pieces of the log could not be written\n")
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the latter: it is closed
            self._lost += 1
        else:
            self._lost = 0
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back."""


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def visible(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Control characters as escapes: what a caller sent must not steer the terminal that shows the log."""
    for key, value in event.items():
        if isinstance(value, str) and _CONTROLS.search(value):
            event[key] = _escaped(value)
    return event


def _escaped(text: str) -> str:
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def _plain_traceback(stream: TextIO, exc_info: Any) -> None:
    """As structlog's own. An exception's text may hold what a caller sent."""
    held = io.StringIO()
    structlog.dev.plain_traceback(held, exc_info)
    stream.write(_escaped(held.getvalue()))


def configure(level: str, log_format: str) -> None:
    """Sets up structlog, and the standard library's logging (uvicorn, asyncio) to go the same way, to stderr."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    if log_format == "json":
        renderer: list[Any] = [_traces, structlog.processors.JSONRenderer()]
    else:
        console = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_plain_traceback)
        renderer = [visible, console]
    stderr: Any = LossyStream(sys.stderr)
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(stderr),  # a line in one piece: workers share the stream
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))  # libraries speak up only when something is wrong
