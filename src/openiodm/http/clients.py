"""Which address a request comes from, also behind proxies that are believed."""

from collections.abc import Collection
from ipaddress import ip_address

from starlette.types import Scope


def peer_of(scope: Scope) -> str:
    """The address at the other end of the connection; empty where the server does not know it."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def client_address(scope: Scope, trusted_proxies: Collection[str]) -> str:
    """The client's address. A trusted proxy tells it as the last one of X-Forwarded-For, which it has added itself.

    What is no IP address there is not believed: then the proxy's own counts.
    """
    peer = peer_of(scope)
    if peer not in trusted_proxies:
        return peer
    told = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    last = told.rpartition(b",")[2].strip().decode("latin-1")
    try:
        return str(ip_address(last))
    except ValueError:
        return peer
