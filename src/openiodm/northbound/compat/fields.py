"""Types and checks that the routes of the compatible API share: bounded texts and paging.

An empty query value is one that was not given (DECISIONS 26), so numbers come as texts and are read here.
"""

from typing import Annotated

from msgspec import Meta

from openiodm.errors import Reason, Refusal

Text = Annotated[str, Meta(max_length=256)]
Number = Annotated[str, Meta(pattern=r"^[0-9]*$", max_length=18)]


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
    value = int(text) if text.isascii() and text.isdigit() else -1
    if value < least or (most is not None and value > most):
        raise Refusal(bad, f"{field} is out of range", field=field)
    return value
