"""Bytes to CoAP messages and back (RFC 7252 section 3), and the values of options (3.2, RFC 7959 section 2.2).

Nothing here opens, awaits or decides. Every decoder raises `CoapFormatError` and nothing else, whatever the bytes.
"""

from enum import IntEnum
from typing import Final, NamedTuple, Self

import msgspec

DATAGRAM_BYTES: Final = 2048
"""Largest message that is looked at, in bytes: twice what RFC 7252 section 4.6 asks everyone to expect (1,152)."""
OPTIONS: Final = 64
"""Most options of one message; a LwM2M registration has about ten."""
TOKEN_BYTES: Final = 8
"""Longest token (RFC 7252 section 3)."""
OPTION_NUMBER_MAX: Final = 0xFFFF
OPTION_BYTES_MAX: Final = 0xFFFF + 269
"""Longest value that the length field can say, in bytes."""
LARGEST_SZX: Final = 6
"""Size exponent of the largest block, 1,024 bytes; 7 is reserved over UDP (RFC 7959 section 2.2)."""


class CoapFormatError(Exception):
    """The bytes are no message, or the value is none of its option.

    `confirmable` is the id of the message when its head could be read and asks for an acknowledgement: it gets a reset
    instead (RFC 7252 section 4.2).
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.confirmable: int | None = None


class Type(IntEnum):
    """How a message is delivered (RFC 7252 section 3)."""

    CON = 0
    NON = 1
    ACK = 2
    RST = 3


class Code(IntEnum):
    """Methods and response codes (RFC 7252 section 12.1, RFC 7959 section 6, RFC 8132, RFC 8516)."""

    EMPTY = 0x00
    GET = 0x01
    POST = 0x02
    PUT = 0x03
    DELETE = 0x04
    FETCH = 0x05
    PATCH = 0x06
    IPATCH = 0x07

    CREATED = 0x41
    DELETED = 0x42
    VALID = 0x43
    CHANGED = 0x44
    CONTENT = 0x45
    CONTINUE = 0x5F

    BAD_REQUEST = 0x80
    UNAUTHORIZED = 0x81
    BAD_OPTION = 0x82
    FORBIDDEN = 0x83
    NOT_FOUND = 0x84
    METHOD_NOT_ALLOWED = 0x85
    NOT_ACCEPTABLE = 0x86
    REQUEST_ENTITY_INCOMPLETE = 0x88
    CONFLICT = 0x89
    PRECONDITION_FAILED = 0x8C
    REQUEST_ENTITY_TOO_LARGE = 0x8D
    UNSUPPORTED_CONTENT_FORMAT = 0x8F
    TOO_MANY_REQUESTS = 0x9D

    INTERNAL_SERVER_ERROR = 0xA0
    NOT_IMPLEMENTED = 0xA1
    BAD_GATEWAY = 0xA2
    SERVICE_UNAVAILABLE = 0xA3
    GATEWAY_TIMEOUT = 0xA4
    PROXYING_NOT_SUPPORTED = 0xA5


class Option(IntEnum):
    """Option numbers (RFC 7252 section 12.2, RFC 7641, RFC 7959); an odd one is critical."""

    IF_MATCH = 1
    URI_HOST = 3
    ETAG = 4
    IF_NONE_MATCH = 5
    OBSERVE = 6
    URI_PORT = 7
    LOCATION_PATH = 8
    URI_PATH = 11
    CONTENT_FORMAT = 12
    MAX_AGE = 14
    URI_QUERY = 15
    ACCEPT = 17
    LOCATION_QUERY = 20
    BLOCK2 = 23
    BLOCK1 = 27
    SIZE2 = 28
    PROXY_URI = 35
    PROXY_SCHEME = 39
    SIZE1 = 60


Options = tuple[tuple[int, bytes], ...]
"""(number, value) in ascending order of numbers; those of one number in the order in which they were given."""

_TYPES: Final = tuple(Type)
_RESERVED_CLASSES: Final = (1, 6, 7)


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message. `type`, `mid` and `token` of an answer are filled in by the endpoint, whoever made it."""

    code: int
    options: Options = ()
    payload: bytes = b""
    type: Type = Type.CON
    mid: int = 0
    token: bytes = b""

    def option(self, number: int) -> bytes | None:
        """The value of the first option of that number."""
        for found, value in self.options:
            if found == number:
                return value
        return None

    def values(self, number: int) -> tuple[bytes, ...]:
        """The values of a repeatable option, in order."""
        return tuple(value for found, value in self.options if found == number)

    def uint(self, number: int) -> int | None:
        """The value of an option that is a number (Observe, Content-Format, Accept, Size1, ...)."""
        value = self.option(number)
        return None if value is None else int.from_bytes(value, "big")

    @property
    def path(self) -> tuple[str, ...]:
        """The segments of the path; bytes that are no UTF-8 become U+FFFD, and so match no resource."""
        return tuple(value.decode("utf-8", "replace") for value in self.values(Option.URI_PATH))

    @property
    def query(self) -> tuple[str, ...]:
        """The arguments of the query, `name=value` each; bytes that are no UTF-8 become U+FFFD."""
        return tuple(value.decode("utf-8", "replace") for value in self.values(Option.URI_QUERY))

    @property
    def is_request(self) -> bool:
        """Class 0, and not the empty message."""
        return 0 < self.code < 0x20

    @property
    def is_success(self) -> bool:
        """Class 2."""
        return self.code >> 5 == 2

    def with_options(self, *options: tuple[int, bytes]) -> Self:
        """The message with these options instead of those of the same numbers, in ascending order."""
        return msgspec.structs.replace(self, options=merged(self.options, options))


def merged(old: Options, new: Options) -> Options:
    """`new` replaces what `old` has of the same numbers; ascending."""
    numbers = {number for number, _ in new}
    kept = [option for option in old if option[0] not in numbers]
    return tuple(sorted((*kept, *new), key=_number))


def _number(option: tuple[int, bytes]) -> int:
    return option[0]


def code_text(code: int) -> str:
    """A code as the standards write it: `2.05`."""
    return f"{code >> 5}.{code & 31:02}"


def decode(datagram: bytes) -> Message:
    """The message of one datagram (RFC 7252 section 3).

    Raises:
        CoapFormatError: for any other bytes, also for a reserved class of codes (section 4.2) and for an empty
            message that is not (section 4.1).
    """
    size = len(datagram)
    if size < 4:
        raise CoapFormatError("shorter than a head")
    head = datagram[0]
    if head >> 6 != 1:
        raise CoapFormatError("not version 1")  # silently ignored (RFC 7252 section 3)
    kind = _TYPES[head >> 4 & 3]
    code = datagram[1]
    mid = datagram[2] << 8 | datagram[3]
    token_end = 4 + (head & 15)
    try:
        if token_end > 4 + TOKEN_BYTES or token_end > size:
            raise CoapFormatError("token")
        if code >> 5 in _RESERVED_CLASSES:
            raise CoapFormatError("reserved class of code")
        if code == 0 and size > 4:
            raise CoapFormatError("an empty message that is not empty")
        options, payload = _decode_options(datagram, token_end, size)
    except CoapFormatError as error:
        error.confirmable = mid if kind is Type.CON else None
        raise
    return Message(code, options, payload, kind, mid, datagram[4:token_end])


def _decode_options(datagram: bytes, at: int, size: int) -> tuple[Options, bytes]:
    """Options and payload (RFC 7252 section 3.1)."""
    options: list[tuple[int, bytes]] = []
    payload = b""
    number = 0
    while at < size:
        byte = datagram[at]
        at += 1
        if byte == 0xFF:
            if at == size:
                raise CoapFormatError("a payload marker without a payload")
            payload = datagram[at:]
            break
        delta = byte >> 4
        length = byte & 15
        if delta > 12:
            delta, at = _extended(datagram, at, delta)
        if length > 12:
            length, at = _extended(datagram, at, length)
        number += delta
        end = at + length
        if end > size:
            raise CoapFormatError("an option longer than the message")
        options.append((number, datagram[at:end]))
        at = end
    if number > OPTION_NUMBER_MAX:
        raise CoapFormatError("option number")
    if len(options) > OPTIONS:
        raise CoapFormatError("too many options")
    return tuple(options), payload


def _extended(datagram: bytes, at: int, nibble: int) -> tuple[int, int]:
    """An extended delta or length, and where the next one starts; 15 is reserved."""
    width = nibble - 12
    if width > 2:
        raise CoapFormatError("reserved option delta or length")
    if at + width > len(datagram):
        raise CoapFormatError("an option cut short")
    return int.from_bytes(datagram[at : at + width], "big") + (13 if width == 1 else 269), at + width


def encode(message: Message) -> bytes:
    """The bytes of a message, options in ascending order (stable: repeated ones keep theirs)."""
    return encode_as(message, message.type, message.mid, message.token)


def encode_as(message: Message, kind: int, mid: int, token: bytes) -> bytes:
    """The bytes of a message under another type, message id and token, without building that message."""
    assert len(token) <= TOKEN_BYTES, "the token is too long"
    parts = [bytes((0x40 | kind << 4 | len(token), message.code, mid >> 8, mid & 0xFF)), token]
    last = 0
    options = message.options
    for number, _ in options:
        if number < last:
            options = tuple(sorted(options, key=_number))
            break
        last = number
    last = 0
    for number, value in options:
        delta, length = number - last, len(value)
        if delta < 13 and length < 13:
            parts.append(_SHORT[delta << 4 | length])
        else:
            parts.append(_long_head(delta, length))
        parts.append(value)
        last = number
    if message.payload:
        parts.append(b"\xff")
        parts.append(message.payload)
    return b"".join(parts)


_SHORT: Final = [bytes((byte,)) for byte in range(256)]


def _long_head(delta: int, length: int) -> bytes:
    assert delta <= OPTION_NUMBER_MAX, "the option number is too large"
    assert length <= OPTION_BYTES_MAX, "the option is too long"
    delta_nibble, delta_more = _nibble(delta)
    length_nibble, length_more = _nibble(length)
    return bytes((delta_nibble << 4 | length_nibble,)) + delta_more + length_more


def _nibble(value: int) -> tuple[int, bytes]:
    if value < 13:
        return value, b""
    if value < 269:
        return 13, bytes((value - 13,))
    return 14, (value - 269).to_bytes(2, "big")


def encode_uint(value: int) -> bytes:
    """A number as an option's value: big-endian, as short as possible, zero is empty (RFC 7252 section 3.2)."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


class Block(NamedTuple):
    """The value of Block1 or Block2 (RFC 7959 section 2.2): which block, whether more follow, size exponent 0..6."""

    num: int
    more: bool
    szx: int

    @property
    def size(self) -> int:
        """Bytes in a block."""
        return 16 << self.szx

    @property
    def start(self) -> int:
        """Offset of the block's first byte."""
        return self.num << self.szx + 4


BLOCK_NUM_MAX: Final = 0xFFFFF
"""Largest block number: 20 bits (RFC 7959 section 2.2)."""


def decode_block(value: bytes) -> Block:
    """The value of a Block1 or Block2 option.

    Raises:
        CoapFormatError: more than 3 bytes, or the reserved size exponent.
    """
    if len(value) > 3:
        raise CoapFormatError("a block option longer than 3 bytes")
    number = int.from_bytes(value, "big")
    if number & 7 > LARGEST_SZX:
        raise CoapFormatError("reserved block size")
    return Block(number >> 4, bool(number & 8), number & 7)


def encode_block(block: Block) -> bytes:
    """The inverse of `decode_block`."""
    assert 0 <= block.num <= BLOCK_NUM_MAX, "the block number is too large"
    return encode_uint(block.num << 4 | block.more << 3 | block.szx)


def path_options(path: str) -> Options:
    """`/5/0/1` as Uri-Path options; empty segments are left out."""
    return tuple((Option.URI_PATH, part.encode()) for part in path.split("/") if part)
