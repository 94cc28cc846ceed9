"""What can be seen of DTLS records from outside (RFC 6347 section 4.1): enough to route them. Pure.

A record is type (1 byte), version (2), epoch (2; 0 is in the clear), number (6), length (2), and that many bytes; a
handshake message is type (1), length (3), number (2), offset (3), length (3), body.
"""

from typing import Final

_HEAD: Final = 13
_HANDSHAKE: Final = 22
_APPLICATION_DATA: Final = 23
_CLIENT_HELLO: Final = 1
_CLIENT_KEY_EXCHANGE: Final = 16
_BODY: Final = _HEAD + 12
_RANDOM: Final = slice(_BODY + 2, _BODY + 2 + 32)  # after the handshake's head and the client's version


def is_client_hello(datagram: bytes) -> bool:
    """Does it begin with a first ClientHello, one of epoch 0 (RFC 6347 sections 4.1, 4.2.2)?"""
    return (
        len(datagram) > 25
        and datagram[0] == _HANDSHAKE
        and datagram[3:5] == b"\0\0"
        and datagram[_HEAD] == _CLIENT_HELLO
    )


def hello_random(datagram: bytes) -> bytes:
    """The random of a ClientHello: the same in what a client repeats, another one in a new handshake."""
    return datagram[_RANDOM]


def psk_identity(datagram: bytes) -> str | None:
    """The identity in a ClientKeyExchange that begins a datagram (RFC 4279 section 2, RFC 5489 section 2); None where
    there is none, or only a fragment of it.
    """
    head = datagram[:_BODY]
    if len(head) < _BODY or head[0] != _HANDSHAKE or head[3:5] != b"\0\0" or head[_HEAD] != _CLIENT_KEY_EXCHANGE:
        return None
    if head[19:22] != b"\0\0\0" or head[22:25] != head[14:17]:
        return None
    size = int.from_bytes(datagram[_BODY : _BODY + 2])
    identity = datagram[_BODY + 2 : _BODY + 2 + size]
    try:
        return identity.decode() if len(identity) == size else None
    except UnicodeDecodeError:
        return None


def is_application_data(datagram: bytes) -> bool:
    """Does it begin with a record of application data?"""
    return bool(datagram) and datagram[0] == _APPLICATION_DATA


def plausible(datagram: bytes, shortest: int) -> bytes:
    """The records of a datagram up to the first that is cut short, or sealed and shorter than `shortest` bytes."""
    at, size = 0, len(datagram)
    while at + _HEAD <= size:
        length = datagram[at + 11] << 8 | datagram[at + 12]
        end = at + _HEAD + length
        sealed = datagram[at + 3] or datagram[at + 4]  # epoch
        if end > size or (sealed and length < shortest):
            break
        at = end
    return datagram if at == size else datagram[:at]
