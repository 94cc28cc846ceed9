"""What a protocol on top of CoAP gets, and what it gives: peers, requests both ways, notifications.

The server role is a `Handler`, the client role `Carrier.request`, and observations are a `Notified`. `endpoint.py`
implements `Carrier`, once for plain CoAP and once for DTLS; both may share one handler.
"""

from collections.abc import Awaitable, Callable
from mmap import mmap
from typing import Final, Protocol

from openiodm.clock import Millis
from openiodm.protocols.coap.codec import LARGEST_SZX, Message

Address = tuple[str, int] | tuple[str, int, int, int]
"""As the socket gives it: host and port, and for IPv6 flow and scope."""

Body = bytes | memoryview | mmap
"""What is sent in blocks; only the block that goes out is copied."""

RESPONSE_WAIT: Final = Millis(120_000)
"""How long a request waits for its answer, a block: the retransmissions (93 s) and some time for a slow device."""
ANSWER_BYTES: Final = 64 * 1024
"""Largest answer that is put together from blocks unless the caller says otherwise, in bytes."""


class ExchangeError(Exception):
    """A request got no answer. Whether the device has acted on it is not known, except after `Rejected`.

    ```
    ExchangeError
    ├── TimedOut        nothing came, after all retransmissions
    ├── Rejected        the peer answered with a reset: it did not understand, or does not know us
    ├── Unreachable     the network said so (ICMP)
    ├── PeerGone        a new DTLS session replaced the association, or it was closed
    ├── TooMany         as many requests to this peer wait already as may (`Limits.exchanges_per_peer`)
    └── TransferBroken  a block-wise transfer that does not fit together, or is longer than the limit
    ```
    """


class TimedOut(ExchangeError):
    """Nothing came, after all retransmissions."""


class Rejected(ExchangeError):
    """The peer answered with a reset."""


class Unreachable(ExchangeError):
    """The network said that nobody listens at the address (ICMP)."""


class PeerGone(ExchangeError):
    """The association is closed; the device may have a new one."""


class TooMany(ExchangeError):
    """Too many requests to this peer wait already."""


class TransferBroken(ExchangeError):
    """The blocks do not fit together, or are more than the limit."""


class Peer(Protocol):
    """One association: an address on plain CoAP, a DTLS session on DTLS.

    Compared by identity. A new handshake from the same address makes another peer, and closes this one.
    """

    busy: bool
    """Set by the protocol on top while the peer must not be evicted, for instance in an upgrade."""

    @property
    def address(self) -> Address:
        """Where it sends from."""
        ...

    @property
    def identity(self) -> str | None:
        """The PSK identity that the handshake proved; None on plain CoAP."""
        ...

    @property
    def cipher(self) -> str | None:
        """OpenSSL's name of the suite; None on plain CoAP."""
        ...

    @property
    def closed(self) -> bool:
        """No more can be sent; a request raises `PeerGone`."""
        ...


Handler = Callable[[Peer, Message], Message | Awaitable[Message | None] | None]
"""Answers a request: the response, or None for none at all (a confirmable request is acknowledged nevertheless).

It is called with whole bodies: Block1 has been put together, the options Block1 and Size1 are still those of the last
block. An answer longer than a block is cut by the endpoint; `blocks.serve` cuts a large body without copying it.
Of the answer only code, options and payload count. An awaitable may take its time: after `ACK_DELAY` the request is
acknowledged and the answer follows by itself. A repeated request does not reach it, except one that is safe (GET,
FETCH) and was answered before (RFC 7252 section 4.5). What it raises is logged and answered with 5.00.
"""

Notified = Callable[[Peer, Message], bool | Awaitable[bool]]
"""Takes a response that answers no open request, by its token: a notification. False: nobody wants it.

A confirmable one is acknowledged when True is returned, so an awaitable may commit before; on False the peer gets a
reset, and with it ends the observation (RFC 7641 section 3.6). When it raises, the peer is told nothing and repeats
itself. A repeated notification does not reach it.
"""

Progress = Callable[[int], None]
"""Told how many bytes of an upload the peer has acknowledged; what it raises ends the upload."""


class Carrier(Protocol):
    """The client role."""

    async def request(
        self,
        peer: Peer,
        message: Message,
        *,
        body: Body | None = None,
        progress: Progress | None = None,
        szx: int = LARGEST_SZX,
        limit: int = ANSWER_BYTES,
        wait: Millis = RESPONSE_WAIT,
    ) -> Message:
        """Sends a request and returns the answer, whatever its code; the payload is whole.

        `body` goes up in blocks (Block1) of `16 << szx` bytes or smaller ones, as the peer asks; without it the
        message's own payload is sent, in blocks too when it is longer than one. An answer in blocks (Block2) is put
        together, up to `limit` bytes. A token in the message is used, which is how an Observe gets one that lasts;
        else the endpoint makes one. At most one request is under way to a peer (RFC 7252 section 4.7), the rest wait
        in line. `wait` is for each block. Cancelling the caller ends the exchange.

        Raises:
            ExchangeError: no answer; see its kinds.
        """
        ...
