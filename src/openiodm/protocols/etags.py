"""Entity tags in preconditions (RFC 9110, 8.8.3 and 13.1)."""

import re
from typing import Final

_ENTITY_TAG: Final = re.compile(r'(W/)?"([^"]*)"|([^\s,"]+)')


def match_etag(header: str | None, etag: str, *, strong: bool = False) -> bool:
    """Whether a list of entity tags, as in If-None-Match and If-Match, names `etag` or is `*`.

    Weak comparison, or `strong` (a weak tag never matches; RFC 9110, 8.8.3.2). A tag sent without its quotes
    is taken as meant: hawkBit compares the bare SHA-1.
    """
    if header is None:
        return False
    if header in (etag, "*"):
        return True
    opaque = etag.removeprefix("W/").strip('"')
    return header.strip() == "*" or any(
        (quoted or bare) == opaque and not (strong and weak) for weak, quoted, bare in _ENTITY_TAG.findall(header)
    )
