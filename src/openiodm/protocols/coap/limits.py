"""Numbers of the CoAP carrier, each with its unit: the standard's times, and our bounds on what peers can make us keep.

What peers can make an endpoint remember is at most `Limits.peers` times what one peer may (`sessions` on DTLS).
"""

from dataclasses import dataclass
from typing import Final

from openiodm.clock import SECOND, Millis

TICK: Final = Millis(100)
"""How often an endpoint looks at its timers; what is due may be this much late."""
DRAIN: Final = 64
"""Most datagrams that are read at one wake-up before the rest of the process gets its turn."""
RECEIVE_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""Asked of the kernel for the socket, in bytes; it gives at most `net.core.rmem_max`."""

_ACK_TIMEOUT: Final = Millis(2_000)
_MAX_LATENCY: Final = Millis(100_000)
_HALF_OPEN_TIME: Final = Millis(30_000)


@dataclass(frozen=True, slots=True)
class Timing:
    """Transmission parameters (RFC 7252 section 4.8) and the times that follow from them (4.8.2)."""

    ack_timeout: Millis = _ACK_TIMEOUT
    ack_random_factor: float = 1.5
    max_retransmit: int = 4
    nstart: int = 1
    max_latency: Millis = _MAX_LATENCY
    ack_delay: Millis = SECOND
    """After this a request is acknowledged and its answer will come by itself (PROCESSING_DELAY is 2 s)."""

    @property
    def max_transmit_span(self) -> Millis:
        """From the first transmission to the last one."""
        return Millis(int(self.ack_timeout * (2**self.max_retransmit - 1) * self.ack_random_factor))

    @property
    def exchange_lifetime(self) -> Millis:
        """How long a message may still be repeated, and its message id must not be used anew."""
        return Millis(self.max_transmit_span + 2 * self.max_latency + self.ack_timeout)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an endpoint keeps at most, in numbers unless a name says otherwise."""

    peers: int = 20_000
    """Addresses that are remembered on plain CoAP, some 700 bytes each while idle."""
    sessions: int = 10_000
    """DTLS sessions, 43 to 50 KiB each, by suite."""
    half_open: int = 1_000
    """DTLS handshakes under way; the oldest one makes room."""
    half_open_time: Millis = _HALF_OPEN_TIME
    """A handshake that takes longer is dropped."""
    exchanges_per_peer: int = 8
    """Requests of ours to one peer: one under way, the rest waits."""
    unacknowledged_per_peer: int = 16
    """Messages of ours to one peer that are sent again until acknowledged; an answer beyond goes out once."""
    handlers: int = 2_000
    """Requests of all peers that are being handled; above, the answer is 5.03."""
    handlers_per_peer: int = 4
    """The same of one peer."""
    remembered_per_peer: int = 32
    """Messages of one peer whose repetition is recognised."""
    remembered: int = 100_000
    """The same of all peers together, some 300 bytes each; the oldest one makes room."""
    remembered_bytes: int = 64 * 1024 * 1024
    """Answers that are kept for repetitions, of all peers together, in bytes; the oldest ones make room."""
    upload_bytes: int = 64 * 1024
    """Largest body that a peer may send in blocks, in bytes."""
    uploads: int = 500
    """Such bodies under way, of all peers, one a peer; the oldest makes room: at most 32 MB."""
    block_szx: int = 6
    """Size exponent of the largest block in answers: 1,024 bytes."""
