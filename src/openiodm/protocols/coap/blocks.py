"""Block-wise transfers (RFC 7959), as values: what goes into a block. Pure.

A server cuts a body with `serve`.
"""

from typing import Final

from openiodm.protocols.coap.carrier import Body
from openiodm.protocols.coap.codec import (
    BLOCK_NUM_MAX,
    LARGEST_SZX,
    Block,
    Code,
    Message,
    Option,
    Options,
    decode_block,
    encode_block,
    encode_uint,
)

BODY_BYTES_MAX: Final = (BLOCK_NUM_MAX + 1) * 1024
"""Largest body that block numbers can count in blocks of 1,024 bytes: 1 GiB."""


def block_of(message: Message, number: Option) -> Block | None:
    """The message's Block1 or Block2, None without one.

    Raises:
        CoapFormatError: it is none.
    """
    value = message.option(number)
    return None if value is None else decode_block(value)


def serve(request: Message, body: Body, etag: bytes, *, options: Options = (), largest: int = LARGEST_SZX) -> Message:
    """2.05 with the block of `body` that the request asks for, the first one where it does not (section 2.3).

    There is always a Block2 option, also when the body fits one block: Huawei's device gives up without. ETag ties the
    blocks together (section 2.4); Size2 comes with the first block and wherever it is asked for (section 4). A block
    larger than `16 << largest` bytes is answered with that size, from the same offset.
    """
    asked = block_of(request, Option.BLOCK2) or Block(0, False, largest)
    szx = min(asked.szx, largest)
    size, start = 16 << szx, asked.start
    if start >= len(body) and start:
        return Message(Code.BAD_REQUEST, payload=b"no such block")
    end = start + size
    num = start >> szx + 4
    told = (*options, (Option.ETAG, etag), (Option.BLOCK2, encode_block(Block(num, end < len(body), szx))))
    if not num or request.option(Option.SIZE2) is not None:
        told = (*told, (Option.SIZE2, encode_uint(len(body))))
    return Message(Code.CONTENT, told, bytes(body[start:end]))
