"""Block2 of a large body, server side: the exchanges of RFC 7959 section 3.1, and what devices need besides."""

import mmap
from pathlib import Path

import pytest

from openiodm.protocols.coap.blocks import serve
from openiodm.protocols.coap.codec import (
    Block,
    CoapFormatError,
    Code,
    Message,
    Option,
    decode_block,
    encode_block,
    path_options,
)

BODY = bytes(range(256)) * 3
ETAG = b"\x01\x02"


def get(block: Block | None = None, *options: tuple[int, bytes]) -> Message:
    asked = () if block is None else ((Option.BLOCK2, encode_block(block)),)
    return Message(Code.GET, (*path_options("/status"), *asked, *options))


def told(answer: Message) -> Block:
    value = answer.option(Option.BLOCK2)
    assert value is not None
    return decode_block(value)


def test_figure_2_simple_blockwise_get() -> None:
    first = serve(get(), BODY[:300], ETAG, largest=3)
    assert (told(first), first.payload) == (Block(0, True, 3), BODY[:128])
    second = serve(get(Block(1, False, 3)), BODY[:300], ETAG, largest=3)
    assert (told(second), second.payload) == (Block(1, True, 3), BODY[128:256])
    third = serve(get(Block(2, False, 3)), BODY[:300], ETAG, largest=3)
    assert (told(third), third.payload) == (Block(2, False, 3), BODY[256:300])


def test_figure_3_early_negotiation() -> None:
    answer = serve(get(Block(0, False, 2)), BODY[:300], ETAG, largest=3)
    assert (told(answer), len(answer.payload)) == (Block(0, True, 2), 64)


def test_figure_4_late_negotiation() -> None:
    assert told(serve(get(), BODY[:350], ETAG, largest=3)) == Block(0, True, 3)
    answer = serve(get(Block(2, False, 2)), BODY[:350], ETAG, largest=3)
    assert (told(answer), answer.payload) == (Block(2, True, 2), BODY[128:192])


def test_a_block_larger_than_ours_is_answered_from_its_offset_with_a_smaller_one() -> None:
    answer = serve(get(Block(1, False, 4)), BODY, ETAG, largest=2)
    assert (told(answer), answer.payload) == (Block(4, True, 2), BODY[256:320])


def test_a_body_of_one_block_has_a_block_option_too() -> None:
    answer = serve(get(Block(0, False, 5)), b"tiny", ETAG)
    assert (told(answer), answer.payload) == (Block(0, False, 5), b"tiny")


def test_an_empty_body_is_one_empty_block() -> None:
    answer = serve(get(), b"", ETAG)
    assert (answer.code, told(answer), answer.payload) == (Code.CONTENT, Block(0, False, 6), b"")


def test_the_last_block_says_so_when_the_body_ends_with_it() -> None:
    assert told(serve(get(Block(2, False, 4)), BODY, ETAG)) == Block(2, False, 4)


@pytest.mark.parametrize("num", [3, 4, 0xFFFFF])
def test_a_block_behind_the_end_is_a_bad_request(num: int) -> None:
    assert serve(get(Block(num, False, 4)), BODY, ETAG).code == Code.BAD_REQUEST


def test_a_reserved_size_is_refused() -> None:
    with pytest.raises(CoapFormatError):
        serve(get(None, (Option.BLOCK2, b"\x07")), BODY, ETAG)


def test_every_block_has_the_entity_tag_and_the_first_one_the_size() -> None:
    first, later = serve(get(), BODY, ETAG, largest=4), serve(get(Block(1, False, 4)), BODY, ETAG)
    assert first.option(Option.ETAG) == later.option(Option.ETAG) == ETAG
    assert (first.uint(Option.SIZE2), later.uint(Option.SIZE2)) == (768, None)


def test_section_4_the_size_comes_wherever_it_is_asked_for() -> None:
    assert serve(get(Block(1, False, 4), (Option.SIZE2, b"")), BODY, ETAG).uint(Option.SIZE2) == 768


def test_a_memory_map_is_served_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "firmware.bin"
    path.write_bytes(BODY)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as body:
        whole = b"".join(serve(get(Block(num, False, 2)), body, ETAG).payload for num in range(12))
    assert whole == BODY
