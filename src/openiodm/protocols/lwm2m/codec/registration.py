"""What a device says when it registers (LwM2M 1.0 section 5.3, 1.1 section 6.2): a query, and links (RFC 6690).

Real devices are not exact: Huawei's sends `b=U` and a bare `Q`, others a comma at the end or paths without brackets.
What can be understood is.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from openiodm.protocols.lwm2m.codec.values import Lwm2mFormatError, Path, parse_path

ENDPOINT_CHARS: Final = 256
"""Longest endpoint name, in characters: as the contract's nodeId."""
LIFETIME_DEFAULT_S: Final = 86_400
"""The lifetime of a device that names none (LwM2M 1.0 section 5.3.1)."""
LIFETIME_MAX_S: Final = 10 * 365 * 86_400
"""Longest lifetime that is kept; 0 in LwM2M 1.1 means "for ever" and is kept as this."""
LINKS: Final = 512
"""Most links of one registration."""
LINK_BYTES: Final = 16 * 1024
"""Longest list of links, in bytes."""

_BETWEEN: Final = ", \0\r\n\t"
_LINK: Final = re.compile(r'(?:<(?P<target>[^>]*)>|(?P<bare>/[^,;\s\0]*))(?P<parameters>(?:;(?:"[^"]*"|[^,"\0])*)?)')


@dataclass(frozen=True, slots=True)
class Registration:
    """A device's registration. `binding` is upper case, with Q where the device queues (it sleeps)."""

    endpoint: str
    lifetime_s: int
    version: str
    binding: str
    sms: str | None
    links: "Links"


@dataclass(frozen=True, slots=True)
class Update:
    """A registration update: None is "as before"."""

    lifetime_s: int | None
    binding: str | None
    sms: str | None
    links: "Links | None"


@dataclass(frozen=True, slots=True)
class Links:
    """The objects and object instances of a device; an object without instances stands alone, as (3303,)."""

    paths: frozenset[Path]

    def has(self, *path: int) -> bool:
        """Is it, or something inside it, there?"""
        return any(known[: len(path)] == path for known in self.paths)

    def instances(self, object_id: int) -> list[int]:
        """The instance ids of an object, rising."""
        return sorted(path[1] for path in self.paths if len(path) > 1 and path[0] == object_id)


def decode_registration(query: Iterable[str], payload: bytes) -> Registration:
    """A POST to /rd: the Uri-Query options, and links in the payload.

    Raises:
        Lwm2mFormatError: no endpoint name, a bad lifetime or version, or links that are none.
    """
    said = _query(query)
    endpoint = said.get("ep", "")
    if not 0 < len(endpoint) <= ENDPOINT_CHARS or any(ord(c) < 32 or ord(c) == 127 for c in endpoint):
        raise Lwm2mFormatError("the endpoint name is missing, too long, or no text")
    version = said.get("lwm2m", "1.0")
    if not re.fullmatch(r"1\.[0-9]{1,2}", version, re.ASCII):
        raise Lwm2mFormatError(f"LwM2M version {version[:20]!r} is not known here")
    return Registration(
        endpoint,
        _lifetime(said["lt"]) if "lt" in said else LIFETIME_DEFAULT_S,
        version,
        _binding(said) or "U",
        said.get("sms"),
        decode_links(payload),
    )


def decode_update(query: Iterable[str], payload: bytes) -> Update:
    """A POST to the registration's location.

    Raises:
        Lwm2mFormatError: as for a registration.
    """
    said = _query(query)
    return Update(
        _lifetime(said["lt"]) if "lt" in said else None,
        _binding(said),
        said.get("sms"),
        decode_links(payload) if payload else None,
    )


def _query(query: Iterable[str]) -> dict[str, str]:
    said = {}
    for option in query:
        name, _, value = option.partition("=")
        said[name] = value
    return said


def _lifetime(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise Lwm2mFormatError(f"lifetime {text[:20]!r} is no number of seconds")
    return min(int(text), LIFETIME_MAX_S) or LIFETIME_MAX_S


def _binding(said: dict[str, str]) -> str | None:
    """1.0 writes `b=UQ`; 1.1 `b=U` and the option `Q` by itself."""
    queued = "Q" in said or "q" in said
    if "b" not in said and not queued:
        return None
    binding = said.get("b", "U").upper()
    if not re.fullmatch(r"[A-Z]{1,8}", binding, re.ASCII):
        raise Lwm2mFormatError(f"binding {binding[:20]!r} is not known")
    return binding if not queued or "Q" in binding else binding + "Q"


def decode_links(payload: bytes) -> Links:
    """CoRE link format (40), as devices write it. Links that are no LwM2M paths are left out.

    `rt="oma.lwm2m"` may say that all paths begin elsewhere: `</lwm2m>;rt="oma.lwm2m",</lwm2m/3/0>`; that is followed.

    Raises:
        Lwm2mFormatError: too long, no UTF-8, or no links at all.
    """
    if len(payload) > LINK_BYTES:
        raise Lwm2mFormatError(f"links of {len(payload)} bytes")
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Lwm2mFormatError("links that are no UTF-8") from error
    links = list(_links(text))
    if len(links) > LINKS:
        raise Lwm2mFormatError(f"more than {LINKS} links")
    roots = [target for target, parameters in links if "oma.lwm2m" in parameters]
    root = roots[0].rstrip("/") if roots else ""
    return Links(frozenset(path for target, _ in links if (path := _inside(target, root))))


def _links(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while True:
        while at < len(text) and text[at] in _BETWEEN:
            at += 1
        if at == len(text):
            return
        found = _LINK.match(text, at)
        if found is None or (found.end() < len(text) and text[found.end()] not in _BETWEEN):
            raise Lwm2mFormatError(f"not a link: {text[at : at + 40]!r}")
        yield found["target"] if found["target"] is not None else found["bare"], found["parameters"]
        at = found.end()


def _inside(target: str, root: str) -> Path | None:
    if not target.startswith(root + "/"):
        return None
    try:
        return parse_path(target[len(root) :])[:2]
    except Lwm2mFormatError:
        return None  # /.well-known/core and the like


def encode_links(paths: Iterable[Path], *, root: bool = True) -> bytes:
    """The list of links as most devices write it."""
    head = ['</>;rt="oma.lwm2m"'] if root else []
    return ",".join(head + [f"</{'/'.join(map(str, path))}>" for path in paths]).encode()
