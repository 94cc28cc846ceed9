"""What can be seen of DTLS records from outside (RFC 6347 section 4.1): enough to route them. Pure.

A record is type (1 byte), version (2), epoch (2; 0 is in the clear), number (6), length (2), and that many bytes; a
handshake message is type (1), length (3), number (2), offset (3), length (3), body.
"""

from typing import Final

_HEAD: Final = 13
_HANDSHAKE: Final = 22
_APPLICATION_DATA: Final = 23
_CLIENT_HELLO: Final = 1
_RANDOM: Final = slice(_HEAD + 12 + 2, _HEAD + 12 + 2 + 32)  # after the handshake's head and the client's version


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
