"""Bounds of a connection: what a peer may take of time and bytes before it has asked for anything."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

import pytest
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from openiodm.http import connections
from openiodm.http.connections import BoundedProtocol, Crowd, drop_slow


class Listener:
    """An application that reads every body whole, behind `BoundedProtocol`, on a real socket."""

    def __init__(self, most: int) -> None:
        self.state = ServerState()
        self.crowd = Crowd(most)
        self.read: list[bytes | None] = []
        self.port = 0
        self._opened: list[asyncio.StreamWriter] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.read.append(await Request(scope, receive).body())
        except ClientDisconnect:
            self.read.append(None)
        await Response("fine")(scope, receive, send)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._opened.append(writer)
        return reader, writer

    async def leave(self) -> None:
        """Closes what was opened."""
        for writer in self._opened:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def drop(self, after: float) -> int:
        """What would be cut so many seconds from now."""
        return drop_slow(list(self.state.connections), asyncio.get_running_loop().time() + after)

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def until_seen(self) -> None:
        await self.until(lambda: self.state.connections)

    @property
    def connection(self) -> BoundedProtocol:
        """The only one."""
        (one,) = self.state.connections
        return cast("BoundedProtocol", one)


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with listening() as made:
        yield made


@asynccontextmanager
async def listening(most: int = 100) -> AsyncIterator[Listener]:
    made = Listener(most)
    config = uvicorn.Config(made, interface="asgi3", http=BoundedProtocol, ws="none", lifespan="off", log_config=None)
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: BoundedProtocol(config, made.state, {}, crowd=made.crowd), "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.leave()
        for connection in list(made.state.connections):
            connection.transport.abort()
        await server.wait_closed()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


async def cut(reader: asyncio.StreamReader) -> bool:
    """Did the server end the connection without a word?"""
    try:
        return await asyncio.wait_for(reader.read(), 60) == b""
    except ConnectionResetError:
        return True


async def test_a_request_is_answered_and_its_idle_connection_is_left_to_the_keep_alive(listener: Listener) -> None:
    reader, writer = await listener.open()
    for _ in range(2):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
        assert await answer(reader) == (200, b"fine")
    assert listener.read == [b"hi", b"hi"]
    assert listener.drop(after=3600) == 0
    writer.close()


async def test_who_connects_and_says_nothing_is_cut(listener: Listener) -> None:
    reader, writer = await listener.open()
    await listener.until_seen()
    assert listener.drop(after=connections.HEAD_SECONDS - 1) == 0
    assert listener.drop(after=connections.HEAD_SECONDS + 1) == 1
    assert await cut(reader)
    writer.close()


async def test_headers_that_come_byte_by_byte_do_not_renew_their_time(listener: Listener) -> None:
    reader, writer = await listener.open()
    began = asyncio.get_running_loop().time()
    for byte in b"GET / HTTP/1.1\r\nX-Slow: ":
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    await listener.until_seen()
    now = asyncio.get_running_loop().time()
    assert listener.drop(after=connections.HEAD_SECONDS - (now - began) + 0.5) == 1
    assert await cut(reader)
    writer.close()


async def test_the_headers_of_a_second_request_have_their_own_time(listener: Listener) -> None:
    reader, writer = await listener.open()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert await answer(reader) == (200, b"fine")
    writer.write(b"GET / HT")
    await listener.until(lambda: listener.connection._head_since)
    assert listener.drop(after=connections.HEAD_SECONDS + 1) == 1
    writer.close()


async def test_headers_without_an_end_are_answered_431(listener: Listener) -> None:
    reader, writer = await listener.open()
    line = b": " + b"a" * 1000 + b"\r\n"
    lines = [b"X-%d" % n + line for n in range(connections.HEAD_BYTES // len(line) + 1)]
    writer.write(b"GET / HTTP/1.1\r\n" + b"".join(lines))
    status, body = await asyncio.wait_for(answer(reader), 60)
    assert status == 431
    assert json.loads(body)["error_code"] == "120015"
    assert listener.read == []
    writer.close()


async def test_one_header_without_an_end_is_answered_431(listener: Listener) -> None:
    reader, writer = await listener.open()
    writer.write(b"GET / HTTP/1.1\r\nX-Long: " + b"a" * connections.HEAD_BYTES)
    assert (await asyncio.wait_for(answer(reader), 60))[0] == 431
    writer.close()


async def test_what_is_not_http_is_answered_with_the_error_body(listener: Listener) -> None:
    reader, writer = await listener.open()
    writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    status, body = await asyncio.wait_for(answer(reader), 60)
    assert status == 400
    assert json.loads(body) == {"error_code": "120015", "error_desc": "Bad request error."}
    writer.close()


async def test_a_body_that_stands_still_is_cut_and_the_handler_hears_of_it(listener: Listener) -> None:
    _reader, writer = await listener.open()
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    await listener.until(lambda: any(c._body_bytes for c in listener.state.connections))
    assert listener.drop(after=connections.BODY_STILL_SECONDS - 1) == 0
    assert listener.drop(after=connections.BODY_STILL_SECONDS + 1) == 1
    await listener.until(lambda: listener.read)
    assert listener.read == [None]
    writer.close()


async def test_a_body_that_trickles_is_cut_and_a_large_one_has_time_for_its_size() -> None:
    async with listening() as listener:
        _reader, writer = await listener.open()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        await listener.until_seen()
        connection = listener.connection
        await listener.until(lambda: connection._body_since)
        began = connection._body_since
        assert began is not None
        late = began + connections.BODY_GRACE_SECONDS + 30
        connection._body_moved = late  # it has just brought its tenth byte
        connection._body_bytes = 10
        assert connection.is_slow(late)
        connection._body_bytes = 30 * connections.BODY_LEAST_RATE + 1
        assert not connection.is_slow(late)
        writer.close()


async def test_a_body_that_we_do_not_read_is_our_fault_not_the_peers(listener: Listener) -> None:
    _reader, writer = await listener.open()
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    await listener.until(lambda: any(c._body_bytes for c in listener.state.connections))
    for connection in listener.state.connections:
        connection.flow.pause_reading()
    assert listener.drop(after=connections.BODY_STILL_SECONDS + 1) == 0
    writer.close()


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def asked(listener: Listener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has had an answer, and rests."""
    reader, writer = await listener.open()
    writer.write(GET)
    assert (await answer(reader))[0] == 200
    return reader, writer


async def test_one_connection_too_many_closes_the_one_that_has_rested_longest() -> None:
    async with listening(most=3) as listener:
        first, second, third = [await asked(listener) for _ in range(3)]
        first[1].write(GET)  # the second has rested longest now
        assert (await answer(first[0]))[0] == 200
        fourth = await asked(listener)
        assert await cut(second[0])
        assert listener.crowd.closed == 1
        for reader, writer in (third, first, fourth):
            writer.write(GET)
            assert (await answer(reader))[0] == 200
        assert listener.crowd.open == 3


async def test_who_is_in_the_middle_of_a_request_is_left_alone_and_who_never_asked_is_not() -> None:
    async with listening(most=3) as listener:
        busy = await listener.open()
        busy[1].write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n1")
        head = await listener.open()
        head[1].write(b"GET / HT")
        await listener.until(lambda: listener.crowd.open == 2 and not listener.crowd._resting)
        silent = await listener.open()
        await listener.until(lambda: listener.crowd.open == 3)
        for _ in range(5):
            await asked(listener)
        assert await cut(silent[0])
        assert listener.crowd.closed == 5
        busy[1].write(b"23")
        head[1].write(b"TP/1.1\r\nHost: x\r\n\r\n")
        assert (await answer(busy[0]))[0] == (await answer(head[0]))[0] == 200
        assert listener.read[-2:] == [b"123", b""] or listener.read[-2:] == [b"", b"123"]


async def test_when_all_are_at_work_the_newcomer_goes() -> None:
    async with listening(most=2) as listener:
        busy = [await listener.open() for _ in range(2)]
        for _, writer in busy:
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n1")
        await listener.until(lambda: listener.crowd.open == 2 and not listener.crowd._resting)
        for _ in range(3):
            assert await cut((await listener.open())[0])
        await listener.until(lambda: listener.crowd.open == 2)
        for reader, writer in busy:
            writer.write(b"23")
            assert (await answer(reader))[0] == 200
        assert listener.read == [b"123"] * 2


async def test_what_went_away_by_itself_is_not_counted() -> None:
    async with listening(most=2) as listener:
        for _ in range(20):
            _, writer = await asked(listener)
            writer.close()
        await listener.until(lambda: listener.crowd.open == 0)
        assert not listener.crowd._resting
