"""Block-wise transfers (RFC 7959), both roles, as values: what goes into a block, and what has come so far. Pure.

A server cuts a body with `serve` and joins an upload with `Upload`; a client sends a body with `Sender` and joins an
answer with `Download`.
"""

import zlib

import msgspec

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


class TransferError(Exception):
    """A block that does not follow from those before it; `code` is what a server answers."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code


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


def cut(request: Message, answer: Message, largest: int) -> Message:
    """The answer, or the block of it that the request asks for when it is longer than a block (section 2.4).

    Raises:
        CoapFormatError: the request's Block2 is none.
    """
    if not answer.is_success or answer.option(Option.BLOCK2) is not None:
        return answer
    if request.option(Option.BLOCK2) is None and len(answer.payload) <= 16 << largest:
        return answer
    etag = answer.option(Option.ETAG) or zlib.crc32(answer.payload).to_bytes(4, "big")
    options = tuple(option for option in answer.options if option[0] != Option.ETAG)
    block = serve(request, answer.payload, etag, options=options, largest=largest)
    return msgspec.structs.replace(block, code=answer.code) if block.is_success else block


class Upload:
    """A body that a peer sends in blocks (section 2.5): those of one resource, one after the other."""

    __slots__ = ("_data", "_limit", "_target")

    def __init__(self, request: Message, limit: int) -> None:
        self._target = _target(request)
        self._limit = limit
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def continues(self, request: Message) -> bool:
        """Is the request for the same resource, with the same options but for those of the block?"""
        return _target(request) == self._target

    def add(self, block: Block, payload: bytes) -> bytes | None:
        """Takes a block; the whole body with the last one. One that came before is taken once more.

        Raises:
            TransferError: 4.08 for a gap, 4.13 for more than the limit, 4.00 for a short block that is not the last.
        """
        if block.start > len(self._data):
            raise TransferError(Code.REQUEST_ENTITY_INCOMPLETE, "a block is missing")
        if block.more and len(payload) != block.size:
            raise TransferError(Code.BAD_REQUEST, "a short block that is not the last")
        if block.start + len(payload) > self._limit:
            raise TransferError(Code.REQUEST_ENTITY_TOO_LARGE, f"at most {self._limit} bytes")
        if block.start < len(self._data) and self._data[block.start : block.start + len(payload)] != payload:
            raise TransferError(Code.REQUEST_ENTITY_INCOMPLETE, "a block came again with other bytes")
        if block.start == len(self._data):
            self._data += payload
        return None if block.more else bytes(self._data)


def _target(request: Message) -> tuple[int, Options]:
    apart = (Option.BLOCK1, Option.SIZE1)
    return request.code, tuple(option for option in request.options if option[0] not in apart)


class Sender:
    """A body on its way up in blocks (section 2.5), client side."""

    def __init__(self, body: Body, szx: int) -> None:
        self._body = body
        self._szx = szx
        self.sent = 0
        """Bytes that the peer has acknowledged."""

    def next(self, message: Message) -> Message:
        """The request with the next block; Size1 comes with the first one."""
        size = 16 << self._szx
        end = self.sent + size
        num = self.sent >> self._szx + 4
        if num > BLOCK_NUM_MAX:
            raise TransferError(Code.REQUEST_ENTITY_TOO_LARGE, "more blocks than can be counted")
        options = [(int(Option.BLOCK1), encode_block(Block(num, end < len(self._body), self._szx)))]
        if not num:
            options.append((Option.SIZE1, encode_uint(len(self._body))))
        payload = bytes(self._body[self.sent : end])
        return msgspec.structs.replace(message.with_options(*options), payload=payload)

    def answered(self, answer: Message) -> bool:
        """Takes the answer to a block; True when another one is to be sent, False when the answer is the last word.

        A success that names the block counts as 2.31, also as 2.04 without the M bit: so answers who acts on each block
        by itself (section 3.2, figure 8). One without Block1 is about the whole. A smaller size in the answer is taken
        over (section 2.3); to 4.13 before any block was taken, when the answer names a smaller size, the first block is
        sent again in that size (section 2.9.3).

        Raises:
            CoapFormatError: the answer's Block1 is none.
            TransferError: a success with a block that was not sent, or 2.31 to the last one.
        """
        told = block_of(answer, Option.BLOCK1)
        if answer.code == Code.REQUEST_ENTITY_TOO_LARGE and not self.sent and told is not None and told.szx < self._szx:
            self._szx = told.szx
            return True
        if not answer.is_success:
            return False
        end = min(self.sent + (16 << self._szx), len(self._body))
        if answer.code != Code.CONTINUE and (told is None or end >= len(self._body)):
            self.sent = len(self._body)
            return False
        if told is None or told.num != self.sent >> self._szx + 4 or end >= len(self._body):
            raise TransferError(Code.REQUEST_ENTITY_INCOMPLETE, "an answer to another block")
        # A smaller size counts from now on; what was sent was taken whole (section 3.2, figure 9).
        self.sent = end
        self._szx = min(self._szx, told.szx)
        return True


class Download:
    """An answer that comes in blocks (section 2.4), client side."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self._etag: bytes | None = None

    def add(self, answer: Message) -> Block | None:
        """Takes an answer with a Block2; the block to ask for next, None when the body is whole.

        Raises:
            CoapFormatError: its Block2 is none.
            TransferError: it does not follow, is of another version (ETag), or makes the body longer than the limit.
        """
        block = block_of(answer, Option.BLOCK2)
        assert block is not None, "not an answer in blocks"
        etag = answer.option(Option.ETAG)
        if not self._data:
            self._etag = etag
        if block.start != len(self._data) or etag != self._etag:
            raise TransferError(Code.REQUEST_ENTITY_INCOMPLETE, "a block that does not follow")
        if block.more and len(answer.payload) != block.size:
            raise TransferError(Code.BAD_REQUEST, "a short block that is not the last")
        if len(self._data) + len(answer.payload) > self._limit:
            raise TransferError(Code.REQUEST_ENTITY_TOO_LARGE, f"more than {self._limit} bytes")
        self._data += answer.payload
        if not block.more:
            return None
        return Block(len(self._data) >> block.szx + 4, False, block.szx)

    @property
    def body(self) -> bytes:
        """What has come."""
        return bytes(self._data)
