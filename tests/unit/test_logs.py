"""Logs: events with fields, one JSON object a line where that is asked for, and no secret in any.

`tests/scenarios/test_no_secret_is_logged.py` has a whole server's log; here is what each line goes through.
"""

import errno
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from openiodm.logs import REDACTED, SECRET_FIELDS, LossyStream, redact

# Logging is set up once a process: each of these lines runs in one of its own.
SET_UP = """
import logging, structlog, warnings
from openiodm import logs
logs.configure({level!r}, {log_format!r})
log = structlog.get_logger("test")
"""
FAULT = """
def fails(secret):
    password = "hunter2-in-a-local"
    raise ValueError("broken")
try:
    fails("hunter2-in-an-argument")
except ValueError:
    {call}
"""


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    code = SET_UP.format(level="info", log_format="json") + (
        'log.info("lost")\nlogging.getLogger("uvicorn").error("lost too")\nprint("went on")'
    )
    with open("/dev/full", "w") as full:
        # Python's own exit status may speak of the same full device: what counts is that the program came to its end.
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.stdout == "went on\n"


HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b31m\u2028end"


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize(
    "call",
    [
        'log.warning("refused", app_id=hostile, many=[hostile])',
        "log.warning(hostile)",
        'logging.getLogger("uvicorn").error("from %s", hostile)',
        'try:\n    raise ValueError(hostile)\nexcept ValueError:\n    log.exception("failed")',
    ],
)
def test_what_a_caller_sent_does_not_steer_the_terminal(log_format: str, call: str) -> None:
    code = SET_UP.format(level="info", log_format=log_format) + f"hostile = {HOSTILE!a}\n{call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    said = done.stderr.decode()
    assert "end" in said
    assert not set("\x1b\x07\x9b\u2028") & set(said)


def test_what_was_lost_is_counted_when_there_is_room_again() -> None:
    class Disk(io.StringIO):
        full = True

        def flush(self) -> None:
            if self.full:
                self.seek(0)
                self.truncate()
                raise OSError(errno.ENOSPC, "No space left on device")

    disk = Disk()
    stream = LossyStream(disk)
    stream.write("one\n")
    stream.write("two\n")
    disk.full = False
    stream.write("three\n")
    stream.write("four\n")
    assert disk.getvalue() == "2 pieces of the log could not be written\nthree\nfour\n"


def said(code: str, level: str = "info", log_format: str = "json") -> str:
    """What goes to stderr; nothing goes to stdout."""
    program = SET_UP.format(level=level, log_format=log_format) + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr


def lines(code: str, level: str = "info") -> Iterator[dict[str, Any]]:
    for line in said(code, level).splitlines():
        yield json.loads(line)


@pytest.mark.parametrize("field", sorted(SECRET_FIELDS))
def test_a_field_that_carries_a_secret_is_blanked(field: str) -> None:
    event = {"event": "x", field: "hunter2", "device": "d1"}
    assert redact(None, "info", event) == {"event": "x", field: REDACTED, "device": "d1"}


def test_the_fields_of_every_secret_that_we_know_are_blanked() -> None:
    assert {"secret", "token", "psk", "verify_code", "authorization", "database"} <= SECRET_FIELDS


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_are_blanked_whether_bound_or_given_and_in_either_form(log_format: str) -> None:
    text = said(
        "structlog.contextvars.bind_contextvars(psk='hunter2-bound')\n"
        "log.bind(secret='hunter2-kept').info('told', token='hunter2-given', device='d1')",
        log_format=log_format,
    )
    assert "told" in text
    assert "d1" in text
    assert text.count(REDACTED) == 3
    assert "hunter2" not in text


def test_an_event_is_one_json_object_with_its_time_and_level() -> None:
    (line,) = lines("log.info('upgraded', device='d\\n1')")
    assert (line["event"], line["level"], line["device"]) == ("upgraded", "info", "d\n1")
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("call", ["log.exception('bad')", "logging.getLogger('uvicorn.error').exception('bad')"])
def test_a_trace_shows_where_and_why_and_no_variables(call: str, log_format: str) -> None:
    text = said(FAULT.format(call=call), log_format=log_format)
    assert "bad" in text
    assert "ValueError" in text
    assert "broken" in text
    assert "fails" in text
    assert "in-an-argument" not in text.replace('fails("hunter2-in-an-argument")', "")  # the source line itself
    assert "in-a-local" not in text


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_a_level_hides_what_is_below_it(level: str, shown: list[str]) -> None:
    code = "\n".join(f"log.{name}('e')" for name in ("debug", "info", "warning", "error"))
    assert [line["level"] for line in lines(code, level)] == shown


def test_libraries_are_heard_from_warnings_on_in_the_same_form() -> None:
    code = "\n".join(f"logging.getLogger('asyncio').{name}('from a library')" for name in ("debug", "info", "warning"))
    (line,) = lines(code, "debug")
    assert (line["event"], line["level"]) == ("from a library", "warning")
