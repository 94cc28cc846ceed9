"""The addresses of a server: sockets, TLS, bounds of connections. Which application answers is not their business."""

import asyncio
import resource
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import uvicorn
from starlette.types import ASGIApp

from openiodm.http.connections import BoundedProtocol, Crowd, drop_slow
from openiodm.settings import Settings, host_port
from openiodm.tls import ClientCertificates, ServerTls, TlsError, TlsFiles

SLOW_TICKS = 20  # of 0.1 s
KEEP_ALIVE_S = 75  # longer than the polls' default interval, so that a device keeps its connection

log = structlog.get_logger(__name__)


class StartError(Exception):
    """The server cannot start; the message says why, for a person."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; `tls` is None for plain HTTP."""

    host: str
    port: int
    tls: ServerTls | None


def address_of(settings: Settings, prefix: str = "") -> Address:
    """That of `listen`, or with the prefix `device_` that of `device_listen`.

    Raises:
        StartError: a file of the TLS settings does not do; it names the setting.
    """
    setting = f"{prefix}listen"
    host, port = host_port(getattr(settings, setting), setting)
    return Address(host, port, _tls(settings, prefix))


def _tls(settings: Settings, prefix: str) -> ServerTls | None:
    certificate, key, client_ca, clients = (
        getattr(settings, f"{prefix}tls_{name}") for name in ("certificate", "key", "client_ca", "client_certificates")
    )
    if not certificate:
        return None
    files = TlsFiles(
        certificate=Path(certificate),
        key=Path(key or certificate),
        client_ca=Path(client_ca) if client_ca else None,
        clients=ClientCertificates(clients),
        prefix=prefix,
    )
    try:
        return ServerTls(files)
    except TlsError as error:
        raise StartError(str(error)) from error


async def renew(tls: ServerTls) -> None:
    """Takes up a renewed certificate; what cannot be used is said, and what was there before goes on."""
    try:
        if await asyncio.to_thread(tls.renew):
            log.info("tls_renewed", certificate=str(tls.certificate))
    except TlsError as error:
        log.error("tls_not_renewed", error=str(error))


class Listener(uvicorn.Server):
    """One address. Signals are the caller's business: two listeners must not both catch them."""

    def __init__(self, config: uvicorn.Config, crowd: Crowd) -> None:
        super().__init__(config)
        self._crowd = crowd

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves them alone."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's own tick, ten a second; every `SLOW_TICKS` of them slow peers are cut off."""
        if counter % SLOW_TICKS == 0:
            dropped = drop_slow(list(self.server_state.connections), asyncio.get_running_loop().time())
            if dropped:
                log.warning("slow_peers_dropped", connections=dropped)
            if self._crowd.closed:
                log.warning("too_many_connections", most=self._crowd.most, idle_ones_closed=self._crowd.closed)
                self._crowd.closed = 0
        return await super().on_tick(counter)


def crowd() -> Crowd:
    """Of as many connections as leave a quarter of the files that this process may open for all else."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return Crowd(sys.maxsize if most == resource.RLIM_INFINITY else most * 3 // 4)


def listener(app: ASGIApp, address: Address, grace_s: int, crowd: Crowd) -> Listener:
    """A server of `app` at one address; a stopping one waits `grace_s` seconds for requests under way."""
    tls = address.tls
    config = uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        loop="none",  # the command line has chosen one
        http=partial(BoundedProtocol, crowd=crowd),  # type: ignore[arg-type]  # called with names, as a class is
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=grace_s,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls.context,
    )
    return Listener(config, crowd)


@asynccontextmanager
async def listening(listeners: Sequence[Listener], sockets: Sequence[socket.socket]) -> AsyncIterator[None]:
    """All of them answer, each at its socket, between enter and exit."""
    _many_files()
    tasks = [
        asyncio.create_task(each.serve(sockets=[sock]), name=f"listen:{each.config.port}")
        for each, sock in zip(listeners, sockets, strict=True)
    ]
    try:
        while not all(each.started for each in listeners):
            for task in tasks:
                if task.done():
                    task.result()
                    raise StartError("a listener ended while it started")
            await asyncio.sleep(0.005)
        yield
    finally:
        for each in listeners:
            each.should_exit = True
        await asyncio.gather(*tasks)


@contextmanager
def bound(addresses: Sequence[Address], *, shared: bool = False) -> Iterator[list[socket.socket]]:
    """A socket at each address, in order; nobody can connect before one listens.

    `shared`: with other processes of ours, each with a queue of its own, to which the kernel deals connections out.
    Devices keep theirs for long, and one queue for all would give most of them to whoever happens to be idle.

    Raises:
        StartError: an address is taken.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(_bind(address.host, address.port, shared)) for address in addresses]


def _bind(host: str, port: int, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return sock


def _many_files() -> None:
    """As many connections as the system lets us have: shells and services start with 1,024, one for each device."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
