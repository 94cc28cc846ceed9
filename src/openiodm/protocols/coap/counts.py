"""What an endpoint has seen so far, for an operator."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Numbers since the start; nothing is decided by them."""

    datagrams: int = 0
    """Datagrams received."""
    malformed: int = 0
    """Messages that were none, or longer than the limit."""
    requests: int = 0
    """Requests handed to the handler."""
    repeated: int = 0
    """Messages that came before."""
    retransmitted: int = 0
    """Messages of ours that were sent again."""
    given_up: int = 0
    """Messages of ours that were never acknowledged."""
    overloaded: int = 0
    """Requests answered with 5.03."""
    unsent: int = 0
    """Datagrams that the kernel did not take."""
    evicted: int = 0
    """Associations that made room for newer ones."""
    peers_refused: int = 0
    """New peers that found no room, as all others were in use."""
    strangers: int = 0
    """Datagrams that belong to no DTLS session."""
    handshakes: int = 0
    """DTLS handshakes finished."""
    handshakes_failed: int = 0
    """DTLS handshakes refused or not finished in time."""
    half_open_dropped: int = 0
    """DTLS handshakes under way that made room for newer ones."""
