"""A CoAP endpoint of ours on a real socket of the loopback."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from openiodm.clock import SteadyClock, random_bytes
from openiodm.protocols.coap.carrier import Handler, Notified
from openiodm.protocols.coap.dtls import Context
from openiodm.protocols.coap.endpoint import Endpoint
from openiodm.protocols.coap.limits import Limits, Timing
from openiodm.protocols.coap.udp import UdpSocket
from tests.support.coap import no_handler, no_notification

SECRET = b"s" * 32


@asynccontextmanager
async def endpoint_on_loopback(
    handler: Handler = no_handler,
    notified: Notified = no_notification,
    *,
    host: str = "127.0.0.1",
    psk: Callable[[str], bytes | None] | None = None,
    limits: Limits | None = None,
    timing: Timing | None = None,
) -> AsyncIterator[tuple[Endpoint, int]]:
    """The endpoint and its port; with `psk` it speaks DTLS alone."""
    udp = UdpSocket(host, 0)
    endpoint = Endpoint(
        udp.transmit,
        handler,
        notified,
        clock=SteadyClock(),
        chance=random_bytes,
        dtls=None if psk is None else Context(psk, secret=SECRET),
        limits=limits,
        timing=timing,
    )
    udp.start(endpoint)
    try:
        yield endpoint, udp.address[1]
    finally:
        await endpoint.close()
        udp.close()
