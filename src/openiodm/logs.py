"""Structured logs: constant event names, ids as fields, no secret in any of them.

INFO: what an operator wants to see; WARNING: a peer misbehaves; ERROR: we do.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

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
        plain = structlog.dev.plain_traceback
        renderer = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))  # libraries speak up only when something is wrong
