"""A task's devices as a file: one JSON object a line, or a table."""

import csv
import io
from collections.abc import AsyncIterator, Iterable
from enum import StrEnum

import msgspec

from openiodm.northbound.native.task_views import TaskDevice

NDJSON_MEDIA, CSV_MEDIA = "application/x-ndjson", "text/csv; charset=utf-8"
_FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # OWASP: CSV injection

_encoder = msgspec.json.Encoder()


class ExportFormat(StrEnum):
    """One JSON object a line, or a table with a header."""

    NDJSON = "ndjson"
    CSV = "csv"


async def ndjson_lines(pages: AsyncIterator[list[TaskDevice]]) -> AsyncIterator[bytes]:
    """A line for each device."""
    async for page in pages:
        yield _encoder.encode_lines(page)


async def csv_lines(pages: AsyncIterator[list[TaskDevice]]) -> AsyncIterator[bytes]:
    """A header, and a line for each device."""
    yield csv_rows([[f.encode_name for f in msgspec.structs.fields(TaskDevice)]])
    async for page in pages:
        yield csv_rows([msgspec.to_builtins(msgspec.structs.astuple(device)) for device in page])


def csv_rows(rows: Iterable[Iterable[object]]) -> bytes:
    """Lines of RFC 4180, UTF-8; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue().encode()


def _cell(value: object) -> object:
    """Devices choose some of these texts: none may be run as a formula by the spreadsheet that opens the file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_FORMULA_BEGINS):
        return "'" + value
    return value
