"""Which address a request comes from, also behind proxies that are believed."""

from collections.abc import Collection, Iterable
from ipaddress import IPv6Address, ip_address

from starlette.types import Scope

MAPPED = "::ffff:"  # as the system writes the address of an IPv4 peer at a socket of both families, such as [::]


def plain_address(text: str) -> str:
    """An address as it is written everywhere here: an IPv4 peer has one name, at whatever socket it is met.

    Raises:
        ValueError: it is none.
    """
    address = ip_address(text)
    return str((address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address)


def trusted(proxies: Iterable[str]) -> frozenset[str]:
    """The addresses of proxies that are believed, to be held against peers."""
    return frozenset(map(plain_address, proxies))


def peer_of(scope: Scope) -> str:
    """The address at the other end of the connection; empty where the server does not know it."""
    client = scope.get("client")
    peer = str(client[0]) if client else ""
    return plain_address(peer) if peer.startswith(MAPPED) else peer


def client_address(scope: Scope, trusted_proxies: Collection[str]) -> str:
    """The client's address. A trusted proxy tells it as the last one of X-Forwarded-For, which it has added itself.

    What is no IP address there is not believed: then the proxy's own counts.
    """
    peer = peer_of(scope)
    if peer not in trusted_proxies:
        return peer
    try:
        return plain_address(last_of(scope, b"x-forwarded-for"))
    except ValueError:
        return peer


def last_of(scope: Scope, header: bytes) -> str:
    """The last entry of a header that is a list, over all its lines; empty without one.

    Proxies add to such a list at its end: the last is from the one that speaks to us, the others are hearsay.
    """
    told = b",".join(value for name, value in scope["headers"] if name == header)
    return told.rpartition(b",")[2].strip().decode("latin-1")
