"""Callback addresses: how they must look (contract section 4.6), and which addresses they may lead to. Pure.

A name says nothing of where it leads: `Guard.refuses` is asked with every address that it was resolved to, at every
attempt, and the connection goes to an address that passed.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from yarl import URL

from openiodm.errors import Reason, Refusal

MAX_CHARS = 1024

IPAddress = IPv4Address | IPv6Address

_UNSAFE = re.compile(r"[\x00-\x20\x7f-\xa0\\^`{}|<>\"]")

_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)

# Where clouds answer questions about the machine itself, beyond the link-local ones.
_METADATA = frozenset(
    map(ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052


@dataclass(frozen=True, slots=True)
class Callback:
    """A checked callback URL."""

    url: str
    host: str  # as it is connected to: lower case, ASCII, without brackets
    port: int

    @property
    def receiver(self) -> str:
        """HOST:PORT: what shares a fate."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_callback(url: str | None) -> Callback:
    """`http(s)://host:port/path`; port and path are obligatory, a user or a fragment is not allowed.

    Raises:
        Refusal: CALLBACK_BAD.
    """
    if not url:
        raise _bad("it is missing")
    if len(url) > MAX_CHARS:
        raise _bad(f"it is longer than {MAX_CHARS} characters")
    if _UNSAFE.search(url):
        raise _bad("it holds a character that no URL has")
    try:
        parts = urlsplit(url)
        port = parts.port
        # The sender's own reader of URLs: by IDNA it makes 127.0.0.1 of digits and dots in other scripts.
        host = URL(url).raw_host
    except ValueError as error:
        raise _bad(str(error)) from error
    if parts.scheme.lower() not in ("http", "https"):
        raise _bad("it begins with neither http:// nor https://")
    if not host or not _host_is_well_formed(host):
        raise _bad("it names no host")
    if "@" in parts.netloc:
        raise _bad("it holds a user")
    if not port:
        raise _bad("it names no port")
    if not parts.path.startswith("/"):
        raise _bad("it has no path; the shortest is /")
    if "#" in url:
        raise _bad("it holds a fragment")
    return Callback(url, host.rstrip("."), port)


def _host_is_well_formed(host: str) -> bool:
    """Can it be looked up at all? RFC 1035 lengths, after IDNA; of IPv4's many forms (127.1, 0x7f.1) the one alone."""
    if ":" in host:
        return True  # urlsplit has checked what stands in brackets
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        return _literal(host) is not None
    try:
        return 0 < len(host.rstrip(".").encode("idna")) <= 253
    except UnicodeError:
        return False


def _bad(why: str) -> Refusal:
    return Refusal(Reason.CALLBACK_BAD, f"the callback address: {why}", field="callbackUrl")


class Guard:
    """Which addresses no callback may lead to, unless `allow` opens them: host names, addresses, networks.

    Refused are loopback, link-local, unspecified, multicast, reserved and clouds' metadata addresses, also inside an
    IPv6 form of them. Private networks are not: the servers of those who run their own live there.
    """

    def __init__(self, allow: tuple[str, ...] = ()) -> None:
        self._networks = []
        self._hosts = set()
        for entry in allow:
            try:
                self._networks.append(ip_network(entry))
            except ValueError:
                self._hosts.add(entry.lower().rstrip("."))

    def check(self, callback: Callback) -> None:
        """What can be said of a callback before it is resolved.

        Raises:
            Refusal: CALLBACK_BAD; it leads to an address that is refused.
        """
        address = _literal(callback.host)
        if address is not None and self.refuses(callback.host, address):
            raise _bad(f"{address} is not allowed")

    def refuses(self, host: str, address: IPAddress) -> bool:
        """May `host`, resolved to `address`, not be connected to?"""
        if self._allows_host(host) or any(address in network for network in self._networks):
            return False
        return any(map(_is_special, _forms(address)))

    def _allows_host(self, host: str) -> bool:
        return host.lower().rstrip(".") in self._hosts


def _literal(host: str) -> IPAddress | None:
    """The address that a host is, if it is one without asking anybody (RFC 6761: localhost too)."""
    if host == "localhost" or host.endswith(".localhost"):
        return IPv4Address("127.0.0.1")
    try:
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _forms(address: IPAddress) -> list[IPAddress]:
    """The address, and the IPv4 address that it carries inside."""
    if isinstance(address, IPv4Address):
        return [address]
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or int(address) >> 32 == 0:  # the latter: the old IPv4-compatible form
        inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [address, *(i for i in inner if i is not None)]


def _is_special(address: IPAddress) -> bool:
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or (address.version == 4 and address.is_reserved)
        or address in _METADATA
        or int(address) >> 24 == 0  # 0.0.0.0/8: "this network", which reaches the machine itself
    )
