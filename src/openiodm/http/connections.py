"""What peers may keep of the server: time and bytes of a connection before anything was asked, and connections.

uvicorn bounds none of it: a peer that sends its request a byte a minute, or headers without an end, holds a connection
and memory for ever, and when every file that the system allows is a connection, nobody new is let in and no package can
be opened. `BoundedProtocol` is uvicorn's own with such bounds; `drop_slow` is called every few seconds and looks at all
connections, which costs a request no timer of its own.
"""

from collections.abc import Iterable
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_SECONDS = 20.0  # from the connection, or the first byte of a further request, to the end of its headers
HEAD_BYTES = 64 * 1024  # of a request's line and headers; what one read of the socket brought may come on top
BODY_STILL_SECONDS = 60.0  # without a byte of a body that is still to come
BODY_GRACE_SECONDS = 60.0  # for a body, whatever its size, and on top of that
BODY_LEAST_RATE = 256  # bytes a second

# Who cannot be understood cannot be told from which API he expects an answer: this is the compatible one's.
_BAD_REQUEST = msgspec.json.encode({"error_code": "120015", "error_desc": "Bad request error."})


class Crowd:
    """The connections of one process, over all its listeners, of which there may be `most` at once.

    One more is let in, and the one that has rested longest is closed for it, as nginx does with its keep-alive
    connections: its peer opens another when it has something to ask. Those in whose request something is under way are
    left alone. `closed` counts since it was last looked at; whoever reports it clears it.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.open = 0
        self.closed = 0
        self._resting: dict[BoundedProtocol, None] = {}  # in the order in which they began to rest

    def enter(self, connection: "BoundedProtocol") -> None:
        """A new one, which has not asked yet."""
        self.open += 1
        self.rest(connection)
        if self.open > self.most:
            longest = next(iter(self._resting))
            self.work(longest)
            self.closed += 1
            longest.transport.close()

    def rest(self, connection: "BoundedProtocol") -> None:
        """It waits for a request."""
        self._resting[connection] = None

    def work(self, connection: "BoundedProtocol") -> None:
        """Its request has begun."""
        self._resting.pop(connection, None)

    def leave(self, connection: "BoundedProtocol") -> None:
        """It is closed."""
        self.open -= 1
        self.work(connection)


class BoundedProtocol(HttpToolsProtocol):
    """One connection. What it waits for of the peer, and since when, is what `drop_slow` judges."""

    def __init__(self, *args: Any, crowd: Crowd, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._crowd = crowd
        self._head_since: float | None = None
        self._head_bytes = 0
        self._body_since: float | None = None
        self._body_moved = 0.0
        self._body_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """The first request is due from now on."""
        super().connection_made(transport)
        self._head_since = self.loop.time()
        self._crowd.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Its place is free."""
        self._crowd.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hands on what came; headers without an end are answered 431."""
        super().data_received(data)
        if self._head_since is None:
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(431)

    def on_message_begin(self) -> None:
        """A request begins: its headers are due."""
        super().on_message_begin()
        self._crowd.work(self)
        if self._head_since is None:
            self._head_since = self.loop.time()
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """The headers are there: the body is due."""
        self._head_since = None
        self._body_since = self._body_moved = self.loop.time()
        self._body_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body_moved = self.loop.time()
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Nothing more is due."""
        self._body_since = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The next request may come, if it is not there already."""
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:
            self._crowd.rest(self)

    def send_400_response(self, msg: str) -> None:
        """What the parser refuses: with the contract's error body, since clients read nothing else."""
        self._refuse(400)

    def _refuse(self, status: int) -> None:
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(_BAD_REQUEST)
        self.transport.write(STATUS_LINE[status] + head + _BAD_REQUEST)
        self.transport.close()

    def is_slow(self, now: float) -> bool:
        """Has the peer used up its time? Not while we ourselves have stopped reading."""
        if self._head_since is not None:
            return now - self._head_since > HEAD_SECONDS
        if self._body_since is None:
            return False
        if self.flow.read_paused:
            self._body_moved = now
            return False
        allowed = BODY_GRACE_SECONDS + self._body_bytes / BODY_LEAST_RATE
        return now - self._body_moved > BODY_STILL_SECONDS or now - self._body_since > allowed


def drop_slow(connections: Iterable[Any], now: float) -> int:
    """Cuts the connections whose peers have used up their time; how many. `now` is the event loop's time."""
    slow = [c for c in connections if isinstance(c, BoundedProtocol) and c.is_slow(now)]
    for connection in slow:
        connection.transport.abort()
    return len(slow)
