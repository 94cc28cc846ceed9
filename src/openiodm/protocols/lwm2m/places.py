"""Where devices fetch packages: the URIs of an attempt, by scheme."""

import socket
from typing import Final

from openiodm.protocols.coap.carrier import Address
from openiodm.protocols.lwm2m.clients import Client
from openiodm.protocols.lwm2m.files import package_name
from openiodm.protocols.lwm2m.session.dialogue import Scheme, Sources

HTTP_PATH: Final = "/lwm2m/"
"""Where packages are on the HTTP listeners."""


class Places:
    """The addresses of one server. A port that is None is not open; a URL that is empty is made from how a device
    reaches us.
    """

    def __init__(
        self,
        plain_port: int | None,
        secure_port: int | None,
        *,
        coap_url: str = "",
        coaps_url: str = "",
        http_url: str = "",
    ) -> None:
        self._plain_port = plain_port
        self._secure_port = secure_port
        self._coap_url = coap_url.rstrip("/")
        self._coaps_url = coaps_url.rstrip("/")
        self._http_url = http_url.rstrip("/")

    def sources(self, client: Client, action_id: int) -> Sources:
        """Of one attempt of a device."""
        name = package_name(client.seed, action_id)
        host = "" if client.peer is None else host_towards(client.peer.address)
        uris = {}
        if self._plain_port is not None:
            uris[Scheme.COAP] = f"{self._coap_url or f'coap://{host}:{self._plain_port}'}/{name}"
        if self._secure_port is not None:
            uris[Scheme.COAPS] = f"{self._coaps_url or f'coaps://{host}:{self._secure_port}'}/{name}"
            if client.kept.secure:
                # For one that knows `coap` alone and fetches on its association whatever the URI says (Huawei's).
                uris.setdefault(Scheme.COAP, f"coap://{host}:{self._secure_port}/{name}")
        if self._http_url:
            scheme = Scheme.HTTPS if self._http_url.startswith("https:") else Scheme.HTTP
            uris[scheme] = f"{self._http_url}{HTTP_PATH}{name}"
        return Sources(uris, Scheme.COAPS if client.kept.secure else Scheme.COAP)


def host_towards(address: Address) -> str:
    """Our address as a device sees it, unless something translates it in between: the one that its route begins at."""
    family = socket.AF_INET6 if len(address) == 4 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(address)  # sends nothing
        except OSError:
            return "[::1]" if family == socket.AF_INET6 else "127.0.0.1"
        host = str(sock.getsockname()[0])
    return f"[{host}]" if family == socket.AF_INET6 else host
