"""The HTTP client against hand-written bytes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from openiodm.simulator import HttpClient, TransportError


@asynccontextmanager
async def serving(
    *answers: bytes, close_after: bool = False
) -> AsyncIterator[tuple[str, list[bytes], Callable[[], int]]]:
    """A server that gives the answers in turn, over all connections; yields URL, requests, connections."""
    requests: list[bytes] = []
    left = list(answers)
    connections = 0
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writers.append(writer)
        try:
            while left:
                requests.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(left.pop(0))
                await writer.drain()
                if close_after:
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", requests, lambda: connections
    finally:
        server.close()
        for writer in writers:
            writer.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_a_connection_is_kept_and_reused() -> None:
    async with serving(OK, OK, OK) as (url, requests, connections):
        client = HttpClient(url)
        for _ in range(3):
            assert (await client.request("GET", "/a", {})).body == b"ok"
        assert (len(requests), connections()) == (3, 1)
        await client.aclose()


async def test_a_kept_connection_that_the_server_closed_is_replaced_unseen() -> None:
    async with serving(OK, OK, OK, close_after=True) as (url, _, connections):
        client = HttpClient(url)
        for _ in range(3):
            assert (await client.request("POST", "/a", {}, b"")).status == 200
        assert connections() == 3
        await client.aclose()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n",
            b"abcde",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"x"),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b""),
        (b"HTTP/1.1 204\r\n\r\n", b""),
    ],
)
async def test_every_framing_of_a_body_is_read_and_the_connection_kept(answer: bytes, body: bytes) -> None:
    async with serving(answer, OK) as (url, _, connections):
        client = HttpClient(url)
        assert (await client.request("GET", "/", {})).body == body
        assert (await client.request("GET", "/", {})).body == b"ok"
        assert connections() == 1
        await client.aclose()


async def test_a_body_until_the_end_of_the_connection_is_read() -> None:
    async with serving(b"HTTP/1.0 200 OK\r\n\r\nabc", close_after=True) as (url, _, _connections):
        client = HttpClient(url)
        assert (await client.request("GET", "/", {})).body == b"abc"
        assert client.open_connections == 0
        await client.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n" + b"x" * 0xFFF,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000 + b"\r\n\r\n",
    ],
)
async def test_an_answer_that_is_broken_or_too_large_is_a_transport_error(answer: bytes) -> None:
    async with serving(answer, close_after=True) as (url, _, _connections):
        client = HttpClient(url, max_body=1000)
        with pytest.raises(TransportError):
            await client.request("GET", "/", {})
        assert client.open_connections == 0
        await client.aclose()


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    async with serving(b"", OK) as (url, _, _connections):
        client = HttpClient(url, request_timeout=0.05)
        with pytest.raises(TransportError, match="no answer within"):
            await client.request("GET", "/", {})
        await client.aclose()


async def test_a_redirect_of_a_stream_to_another_server_leaves_the_token_behind() -> None:
    async with serving(OK) as (there, theirs, _):
        moved = f"HTTP/1.1 302 Found\r\nLocation: {there}/file\r\nContent-Length: 0\r\n\r\n".encode()
        async with serving(moved) as (here, ours, _connections):
            client = HttpClient(here)
            async with client.stream("/a", {"Authorization": "TargetToken t"}) as stream:
                assert [piece async for piece in stream.chunks()] == [b"ok"]
            assert b"TargetToken" in ours[0]
            assert b"TargetToken" not in theirs[0]
            await client.aclose()


async def test_links_to_the_base_become_paths_and_odd_ones_are_refused() -> None:
    client = HttpClient("http://127.0.0.1:8080/prefix")
    assert client.localise("http://127.0.0.1:8080/x/y?c=1") == "/x/y?c=1"
    assert client.localise("/x") == "/x"
    assert client.localise("https://127.0.0.1:8080/x") == "https://127.0.0.1:8080/x"
    for odd in ("ftp://127.0.0.1/x", "http://127.0.0.1:8080/a b", "http://127.0.0.1:8080/\r\nX: y"):
        with pytest.raises(ValueError):
            client.localise(odd)


async def test_a_line_break_in_a_header_is_refused() -> None:
    async with serving(OK) as (url, requests, _):
        client = HttpClient(url)
        with pytest.raises(ValueError, match="line break"):
            await client.request("GET", "/", {"A": "b\r\nC: d"})
        assert requests == []
