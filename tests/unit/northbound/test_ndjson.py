"""Lines out of a stream of pieces, whatever their sizes, and answers that are made while a request is read."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from openiodm.northbound.native.ndjson import LineStream, lines


async def read(pieces: list[bytes], limit: int = 8) -> list[tuple[int, bytes | None]]:
    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    return [line async for line in lines(stream(), limit)]


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        ([], []),
        ([b""], []),
        ([b"\n\n"], []),
        ([b"a"], [(1, b"a")]),
        ([b"a\n"], [(1, b"a")]),
        ([b"a\n\nb"], [(1, b"a"), (3, b"b")]),
        ([b"a\r\n"], [(1, b"a\r")]),
        ([b"a", b"b\nc", b"", b"d"], [(1, b"ab"), (2, b"cd")]),
        ([b"12345678\n123456789\nx"], [(1, b"12345678"), (2, None), (3, b"x")]),
        ([b"12345", b"6789", b"0123", b"\nx"], [(1, None), (2, b"x")]),
        ([b"1234567890"], [(1, None)]),
        ([b"12345", b"678\n", b"x"], [(1, b"12345678"), (2, b"x")]),
    ],
)
async def test_examples(pieces: list[bytes], found: list[tuple[int, bytes | None]]) -> None:
    assert await read(pieces) == found


@given(
    st.lists(st.text(alphabet="ab \n", max_size=12).map(str.encode), max_size=12),
)
async def test_where_a_stream_is_cut_makes_no_difference(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    numbered = [(n, line) for n, line in enumerate(whole.split(b"\n"), 1) if len(line) > 8 or line.strip()]
    expected = [(n, line if len(line) <= 8 else None) for n, line in numbered]
    assert await read(pieces) == expected
    assert await read([whole]) == expected


async def test_the_request_is_read_to_its_end_though_the_client_takes_no_answer_before() -> None:
    """Clients that send all before they read anything (httpx, requests) hung in a large bulk registration."""
    sent_all = asyncio.Event()
    answer: list[bytes] = []

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d\n" % number
            await asyncio.sleep(0)
        sent_all.set()

    async def receive() -> Message:
        raise AssertionError("the body is another's to read")

    async def send(message: Message) -> None:
        await sent_all.wait()
        answer.append(message.get("body", b""))

    await asyncio.wait_for(LineStream(pieces())({"type": "http"}, receive, send), 60)
    assert b"".join(answer).split() == [b"%d" % n for n in range(100)]


async def test_an_answer_that_breaks_off_is_not_ended_as_if_it_were_whole() -> None:
    messages: list[Message] = []

    async def pieces() -> AsyncIterator[bytes]:
        yield b"1\n"
        raise RuntimeError("a bug")

    async def receive() -> Message:
        raise AssertionError("the body is another's to read")

    async def send(message: Message) -> None:
        messages.append(message)

    with pytest.raises(RuntimeError, match="a bug"):
        await LineStream(pieces())({"type": "http"}, receive, send)
    assert all(m.get("more_body", True) for m in messages)
