"""A small asyncio HTTP/1.1 client for fleets: few sockets, bounded answers, a server that may vanish and come back.

It knows nothing of DDI. Redirects are followed for streams only. Its one error is `TransportError`: no complete
answer came. A status code, whatever it is, is an answer and never raised.
"""

import asyncio
import ssl as tls
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

MAX_BODY_BYTES = 4 * 1024 * 1024  # a body that is read whole; streams have no bound but the caller's
READ_BYTES = 64 * 1024  # one piece of a streamed body, at most
BUFFER_BYTES = 256 * 1024  # what asyncio keeps per connection; the bound of an answer's head, too
MAX_REDIRECTS = 4

_NO_BODY = frozenset({204, 304})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class TransportError(Exception):
    """No complete answer: refused, reset, timed out, or not HTTP. Whether the server acted is unknown."""


class _StaleConnectionError(TransportError):
    """A kept connection was closed by the server before the first byte of an answer."""


class Origin(NamedTuple):
    """Where a connection goes."""

    secure: bool
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer; header names are in lower case, the last one of a name wins."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Stream:
    """An answer whose body is read piece by piece; `status` and `headers` are there at once."""

    def __init__(self, connection: "_Connection", status: int, headers: Mapping[str, str], timeout_s: float) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection
        self._timeout_s = timeout_s
        self.complete = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces of at most `READ_BYTES`; raises `TransportError` when it ends too early."""
        async for piece in self._connection.body(self.status, self.headers, self._timeout_s):
            yield piece
        self.complete = True


class _Connection:
    """One socket, one request at a time."""

    __slots__ = ("_reader", "_writer", "origin", "reusable", "served")

    def __init__(self, origin: Origin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.origin = origin
        self._reader = reader
        self._writer = writer
        self.served = 0
        self.reusable = True

    @property
    def usable(self) -> bool:
        return self.reusable and not self._reader.at_eof() and not self._writer.is_closing()

    def close(self) -> None:
        self.reusable = False
        self._writer.close()

    async def wait_closed(self) -> None:
        try:
            async with asyncio.timeout(1):
                await self._writer.wait_closed()
        except OSError:
            self._writer.transport.abort()

    async def exchange_head(self, request: bytes) -> tuple[int, dict[str, str]]:
        """Send the request, return status and headers of the final (not 1xx) answer."""
        if self._writer.is_closing():
            raise _StaleConnectionError("closed")
        self._writer.write(request)
        try:
            while True:
                status, headers, persistent = _parse_head(await self._reader.readuntil(b"\r\n\r\n"))
                if status >= 200:
                    break
        except asyncio.IncompleteReadError as error:
            kind = _StaleConnectionError if self.served and not error.partial else TransportError
            raise kind("closed before an answer") from error
        except asyncio.LimitOverrunError as error:
            raise TransportError("head too large") from error
        except OSError as error:
            kind = _StaleConnectionError if self.served else TransportError
            raise kind(f"{type(error).__name__}: {error}") from error
        self.reusable = persistent
        self.served += 1
        return status, headers

    async def whole_body(self, status: int, headers: Mapping[str, str], limit: int, timeout_s: float) -> bytes:
        """The body in one piece, of at most `limit` bytes."""
        length = headers.get("content-length")
        if status in _NO_BODY or length == "0":
            return b""
        if length is not None and "transfer-encoding" not in headers and (size := _decimal(length)) <= limit:
            try:
                return await self._reader.readexactly(size)
            except (OSError, asyncio.IncompleteReadError) as error:
                raise TransportError(f"{type(error).__name__}: {error}") from error
        parts: list[bytes] = []
        got = 0
        async for piece in self.body(status, headers, timeout_s):
            got += len(piece)
            if got > limit:
                raise TransportError(f"answer larger than {limit} bytes")
            parts.append(piece)
        return b"".join(parts)

    async def body(self, status: int, headers: Mapping[str, str], timeout_s: float) -> AsyncIterator[bytes]:
        """The body after `exchange_head` by its framing; `timeout_s` bounds the wait for each piece."""
        try:
            if status in _NO_BODY:
                return
            if "chunked" in headers.get("transfer-encoding", "").lower():
                async for piece in self._chunked(timeout_s):
                    yield piece
                return
            length = headers.get("content-length")
            left = _decimal(length) if length is not None else None
            if left is None:
                self.reusable = False
            while left is None or left > 0:
                piece = await self._read(READ_BYTES if left is None else min(left, READ_BYTES), timeout_s)
                if not piece:
                    if left is None:
                        return
                    raise TransportError(f"body ended {left} bytes early")
                if left is not None:
                    left -= len(piece)
                yield piece
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise TransportError(f"{type(error).__name__}: {error}") from error

    async def _read(self, count: int, timeout_s: float) -> bytes:
        async with asyncio.timeout(timeout_s):
            return await self._reader.read(count)

    async def _chunked(self, timeout_s: float) -> AsyncIterator[bytes]:
        """RFC 9112, 7.1: sizes in hex, extensions and trailers are skipped."""
        while True:
            async with asyncio.timeout(timeout_s):
                left = _hexadecimal((await self._reader.readuntil(b"\r\n")).split(b";", 1)[0].strip())
            if left == 0:
                break
            while left > 0:
                piece = await self._read(min(left, READ_BYTES), timeout_s)
                if not piece:
                    raise TransportError("chunk ended early")
                left -= len(piece)
                yield piece
            async with asyncio.timeout(timeout_s):
                await self._reader.readexactly(2)
        async with asyncio.timeout(timeout_s):
            while (await self._reader.readuntil(b"\r\n")) != b"\r\n":
                pass


class HttpClient:
    """A pool of at most `max_connections` sockets, shared by all devices of a fleet.

    A quarter of the sockets (one at least) is kept from streams, so a device that polls while it downloads always
    gets on. `base_url` may be set to another server at any time; requests under way finish where they were.
    A request that finds its kept socket closed by the server is sent once more on a new one, whatever its method:
    every DDI request may be repeated.
    """

    def __init__(
        self,
        base_url: str,
        *,
        max_connections: int = 64,
        connect_timeout: float = 5.0,
        request_timeout: float = 30.0,
        max_body: int = MAX_BODY_BYTES,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        if max_connections < 2:
            raise ValueError("max_connections must be at least 2: one for a download and one beside it")
        self._connect_timeout = connect_timeout
        self._request_timeout = request_timeout
        self._max_body = max_body
        self._ssl = ssl
        self._max_connections = max_connections
        self._slots = asyncio.Semaphore(max_connections)
        self._stream_slots = asyncio.Semaphore(max_connections - max(1, max_connections // 4))
        self._idle: list[_Connection] = []
        self._closing: deque[_Connection] = deque(maxlen=max_connections)
        self.open_connections = 0
        self.most_connections = 0
        self.connections_made = 0
        self.resent = 0  # requests sent again because a kept connection turned out to be closed
        self._set_base(base_url)

    @property
    def base_url(self) -> str:
        """Scheme, host, port and an optional path before every relative target."""
        return self._base_url

    @base_url.setter
    def base_url(self, value: str) -> None:
        self._set_base(value)
        self._drop_idle()

    def _set_base(self, value: str) -> None:
        self._origin = origin_of(value)
        self._base_url = value.rstrip("/")
        self.base_path = urlsplit(self._base_url).path

    def localise(self, href: str) -> str:
        """A link as a target: without its origin when that is the base's, so that it survives a moved server.

        Raises `ValueError` for what cannot be a link.
        """
        if not href.isascii() or not href.isprintable() or " " in href:
            raise ValueError("blank or odd characters")
        absolute = urljoin(self._base_url + "/", href)
        if origin_of(absolute) != self._origin:
            return absolute
        parts = urlsplit(absolute)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    async def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Response:
        """One exchange; `target` is an absolute URL, or an absolute path on the base's server.

        Raises `TransportError` when no complete answer came, or one larger than `max_body`.
        """
        async with self._slots:
            while True:
                origin, data = self._encode(method, target, headers, body)
                connection = await self._connection(origin)
                answer = b""
                try:
                    async with asyncio.timeout(self._request_timeout):
                        status, fields = await connection.exchange_head(data)
                        if method != "HEAD":
                            answer = await connection.whole_body(status, fields, self._max_body, self._request_timeout)
                except _StaleConnectionError:
                    self._discard(connection)
                    self.resent += 1
                    continue
                except TimeoutError as error:
                    self._discard(connection)
                    raise TransportError(f"no answer within {self._request_timeout:g} s") from error
                except BaseException:
                    self._discard(connection)
                    raise
                self._release(connection)
                return Response(status, fields, answer)

    @asynccontextmanager
    async def stream(self, target: str, headers: Mapping[str, str]) -> AsyncIterator[Stream]:
        """GET with the body in pieces; a body that is not read to its end costs the connection.

        Redirects are followed, the Authorization header stays with the first server. Raises `TransportError`.
        """
        async with self._stream_slots, self._slots:
            fields = dict(headers)
            for _ in range(MAX_REDIRECTS + 1):
                connection, stream = await self._open_stream(target, fields)
                location = stream.headers.get("location")
                if stream.status not in _REDIRECTS or location is None:
                    break
                self._discard(connection)
                before = urljoin(self._base_url + "/", target)
                try:
                    target = self.localise(urljoin(before, location))
                    if origin_of(urljoin(before, target)) != origin_of(before):
                        fields.pop("Authorization", None)
                except ValueError as error:
                    raise TransportError(f"redirected to {location[:100]!r}") from error
            else:
                raise TransportError("too many redirects")
            try:
                yield stream
            finally:
                if stream.complete:
                    self._release(connection)
                else:
                    self._discard(connection)

    async def _open_stream(self, target: str, headers: Mapping[str, str]) -> tuple[_Connection, Stream]:
        while True:
            origin, data = self._encode("GET", target, headers, None)
            connection = await self._connection(origin)
            try:
                async with asyncio.timeout(self._request_timeout):
                    status, fields = await connection.exchange_head(data)
            except _StaleConnectionError:
                self._discard(connection)
                self.resent += 1
                continue
            except TimeoutError as error:
                self._discard(connection)
                raise TransportError(f"no answer within {self._request_timeout:g} s") from error
            except BaseException:
                self._discard(connection)
                raise
            return connection, Stream(connection, status, fields, self._request_timeout)

    async def aclose(self) -> None:
        """Close the idle connections and wait for those already closing."""
        self._drop_idle()
        while self._closing:
            await self._closing.popleft().wait_closed()

    def _encode(self, method: str, target: str, headers: Mapping[str, str], body: bytes | None) -> tuple[Origin, bytes]:
        if target.startswith("/"):
            origin = self._origin
        else:
            origin = origin_of(target)
            parts = urlsplit(target)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}:{origin.port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        if any("\r" in line or "\n" in line for line in lines):
            raise ValueError("line break in a header")
        return origin, "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")

    async def _connection(self, origin: Origin) -> _Connection:
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].origin == origin:
                connection = self._idle.pop(index)
                if connection.usable:
                    return connection
                self._discard(connection)
        # An idle socket to another server must give way, or the pool would hold more sockets than it may.
        if self._idle and self.open_connections >= self._max_connections:
            self._discard(self._idle.pop(0))
        if origin.secure and self._ssl is None:
            self._ssl = tls.create_default_context()
        context = self._ssl if origin.secure else None
        self.open_connections += 1
        connected = False
        try:
            async with asyncio.timeout(self._connect_timeout):
                reader, writer = await asyncio.open_connection(
                    origin.host, origin.port, ssl=context, limit=BUFFER_BYTES
                )
            connected = True
        except TimeoutError as error:
            raise TransportError(f"no connection within {self._connect_timeout:g} s") from error
        except OSError as error:
            raise TransportError(f"{type(error).__name__}: {error}") from error
        finally:
            if not connected:
                self.open_connections -= 1
        self.connections_made += 1
        self.most_connections = max(self.most_connections, self.open_connections)
        return _Connection(origin, reader, writer)

    def _release(self, connection: _Connection) -> None:
        if connection.usable:
            self._idle.append(connection)
        else:
            self._discard(connection)

    def _discard(self, connection: _Connection) -> None:
        self.open_connections -= 1
        connection.close()
        self._closing.append(connection)

    def _drop_idle(self) -> None:
        while self._idle:
            self._discard(self._idle.pop())


def origin_of(url: str) -> Origin:
    """Scheme, host and port of an absolute URL; `ValueError` for anything that is not http or https."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"not an http(s) URL: {url!r}")
    secure = parts.scheme == "https"
    return Origin(secure, parts.hostname, parts.port or (443 if secure else 80))


def _parse_head(data: bytes) -> tuple[int, dict[str, str], bool]:
    """Status, headers, and whether the connection stays open after this answer (RFC 9112, 9.3)."""
    lines = data.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit() and len(code) == 3):
        raise TransportError(f"not an HTTP/1.x answer: {lines[0][:60]!r}")
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    connection = headers.get("connection", "").lower()
    persistent = "close" not in connection and (version != "HTTP/1.0" or "keep-alive" in connection)
    return int(code), headers, persistent


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise TransportError(f"bad Content-Length {text[:40]!r}")
    return int(text)


def _hexadecimal(text: bytes) -> int:
    try:
        return int(text, 16)
    except ValueError as error:
        raise TransportError(f"bad chunk size {text[:20]!r}") from error
