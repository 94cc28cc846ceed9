"""Types and checks that the routes of the compatible API share: bounded texts, paging, what is told of a device.

An empty query value is one that was not given, so numbers come as texts and are read here.
"""

from collections.abc import Container
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from openiodm.errors import Reason, Refusal
from openiodm.http.openapi import SHOWN_AS

Text = Annotated[str, Meta(max_length=256)]
Imsi = Annotated[str, Meta(max_length=64)]
Location = Annotated[str, Meta(max_length=1024)]
NUMBER_CHARS = 18


def integer(least: int, most: int, default: int) -> dict[str, Any]:
    """What OpenAPI shows of a number that comes as a text."""
    return {SHOWN_AS: {"type": "integer", "minimum": least, "maximum": most, "default": default}}


def one_of(*values: str) -> dict[str, Any]:
    """What OpenAPI shows of a text that is one of some words."""
    return {SHOWN_AS: {"type": "string", "enum": list(values)}}


PageNo = Annotated[str, Meta(extra_json_schema=integer(0, 2**31 - 1, 0))]


class CustomField(msgspec.Struct, rename="camel", omit_defaults=True):
    """A member that an application makes up for a device. Kept; the contract has no call that shows it."""

    field_name: Text | None = None
    field_type: Text | None = None
    field_value: str | int | float | bool | None = None


def rest_of(told: msgspec.Struct, but: Container[str]) -> dict[str, Any]:
    """What is given and has no column, under the contract's names."""
    values = {f.encode_name: getattr(told, f.name) for f in msgspec.structs.fields(told) if f.name not in but}
    return {name: msgspec.to_builtins(value) for name, value in values.items() if value is not None}


def given(text: str | None) -> str | None:
    """None for what is empty."""
    return text or None


def paging(
    page_no: str | None, page_size: str | None, *, default: int, most: int, bad: Reason = Reason.BAD_PAGING
) -> tuple[int, int]:
    """(pageNo, pageSize) as numbers, with what was left out filled in. A pageNo past the end is no error.

    Raises:
        Refusal: `bad`; not a number, or a size outside 1..`most`.
    """
    return _number(page_no, "pageNo", 0, 0, None, bad), _number(page_size, "pageSize", default, 1, most, bad)


def _number(text: str | None, field: str, default: int, least: int, most: int | None, bad: Reason) -> int:
    if not text:
        return default
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= NUMBER_CHARS else -1
    if value < least or (most is not None and value > most):
        raise Refusal(bad, f"{field} is out of range", field=field)
    return value
