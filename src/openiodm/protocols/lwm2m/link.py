"""Effects of a session as CoAP requests, and answers as its events (LwM2M 1.0 section 8.2.4, 1.1 section 6.3). Pure."""

from typing import Final

import structlog

from openiodm.protocols.coap.codec import Code, Message, Option, Options, encode_uint
from openiodm.protocols.lwm2m.codec import content
from openiodm.protocols.lwm2m.codec.values import ContentFormat, Lwm2mFormatError, Path, Raw, as_int, as_text
from openiodm.protocols.lwm2m.session.dialogue import (
    Answered,
    Effect,
    Execute,
    Observe,
    Read,
    Upload,
    Write,
)

log = structlog.get_logger(__name__)

_TEXTS: Final = frozenset({(3, 0, 3), (5, 0, 7)})
_LISTS: Final = frozenset({(5, 0, 8)})


def path_options(path: Path) -> Options:
    """Uri-Path options."""
    return tuple((Option.URI_PATH, str(part).encode()) for part in path)


def content_format(known: ContentFormat) -> tuple[int, bytes]:
    """The Content-Format option."""
    return Option.CONTENT_FORMAT, encode_uint(known)


def request_of(effect: Observe | Read | Write | Execute | Upload, token: bytes) -> Message:
    """The request; `token` is an Observe's, which lasts. An Upload's body is the carrier's to send."""
    path = path_options(effect.path)
    match effect:
        case Observe():
            return Message(Code.GET, ((Option.OBSERVE, b""), *path), token=token)
        case Read():
            return Message(Code.GET, path)
        case Write():
            return Message(Code.PUT, (*path, content_format(ContentFormat.TEXT)), effect.text.encode())
        case Execute():
            return Message(Code.POST, path, effect.arguments.encode())
        case Upload():
            return Message(Code.PUT, (*path, content_format(ContentFormat.OPAQUE)))


def answered(effect: Effect, answer: Message) -> Answered:
    """An answer as an event. One that cannot be read has no value."""
    if not answer.is_success or not isinstance(effect, Observe | Read):
        return Answered(effect, answer.code)
    try:
        return Answered(effect, answer.code, value_of(answer, effect.path))
    except Lwm2mFormatError as error:
        log.warning("lwm2m.unreadable_answer", path=effect.path, why=str(error))
        return Answered(effect, answer.code)


def value_of(message: Message, path: Path) -> Raw | list[int]:
    """The value of a resource in an answer or a notification: a text, a list of integers, or an integer.

    Raises:
        Lwm2mFormatError: it is not there, or something else.
    """
    told = message.uint(Option.CONTENT_FORMAT)
    if path in _LISTS:
        found = content.decode(told, message.payload, path)
        return [as_int(raw) for key, raw in found.items() if key[:3] == path]
    raw = content.value(told, message.payload, path)
    is_text = path in _TEXTS or (path[0] == 9 and path[2] == 1)
    return as_text(raw) if is_text else as_int(raw)
