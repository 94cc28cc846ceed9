"""One attempt: POST a notice to its callback, over a connection to an address that the guard has let pass.

Redirects are not followed: the contract asks for 200 from the callback itself, a POST that follows one mostly becomes a
GET, and what it leads to was never subscribed. A connection that a receiver closed while it was idle is no failure of
the receiver, so an attempt that ends like that at once is made again, once, on a new one.
"""

import asyncio
import hashlib
import hmac
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from openiodm import __version__
from openiodm.access.model import ApplicationKey
from openiodm.clock import SECOND, Clock, Instant
from openiodm.errors import Refusal
from openiodm.notifications.callbacks import Guard, parse_callback
from openiodm.notifications.model import CallbackSecurity
from openiodm.notifications.ports import Pending
from openiodm.notifications.tls import client_context

EVENT_HEADER = "X-OpenIODM-Event-Id"
SIGNATURE_HEADER = "X-OpenIODM-Signature"
KEEP_ALIVE_S = 4.0  # less than servers mostly keep idle connections
ANSWER_BYTES = 64 * 1024  # of an answer that are read, so that its connection can be used again
LOOKUPS_AT_ONCE = 16
ERROR_CHARS = 256
CONTEXTS = 256  # applications' own TLS contexts that are remembered; each takes about 1 MiB

Security = Callable[[ApplicationKey], Awaitable[CallbackSecurity]]


class _Refused(OSError):
    """A name leads to addresses that callbacks may not lead to, and to no other."""


class _GuardedResolver(AbstractResolver):
    """Resolves in threads of its own: names that nobody answers for must not hold up the server's other threads."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._threads = ThreadPoolExecutor(LOOKUPS_AT_ONCE, thread_name_prefix="callback-dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        def look_up() -> list[tuple[int, str]]:
            found = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            return list(dict.fromkeys((int(info[0]), str(info[4][0])) for info in found))

        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        allowed = [f for f in found if not self._guard.refuses(host, ip_address(f[1].partition("%")[0]))]
        if not allowed:
            raise _Refused(f"{host} is {', '.join(f[1] for f in found)}, which is not allowed")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for kind, address in allowed
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Tracer(Protocol):
    """Sees attempts, for traces."""

    def callback(self, url: str, headers: dict[str, str]) -> AbstractContextManager[Callable[[str | None], None]]:
        """An attempt, with headers of its own; what it gives is told what went wrong."""
        ...


@dataclass(frozen=True, slots=True)
class _Secured:
    """What an application set at that moment."""

    changed_at: Instant
    context: ssl.SSLContext
    secret: str | None


class HttpSender:
    """Sends until it is closed; connections are kept and shared by all receivers."""

    def __init__(self, guard: Guard, clock: Clock, timeout_s: float, security: Security) -> None:
        self._guard = guard
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._security = security
        self._secured: dict[ApplicationKey, _Secured] = {}  # the one that was used last comes last
        self._plain: ssl.SSLContext | None = None
        self._building = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self.tracer: Tracer | None = None

    async def send(self, notice: Pending) -> str | None:
        """None when it was delivered (any 2xx); otherwise what went wrong, for people."""
        if self.tracer is None:
            return await self._send(notice, {})
        headers: dict[str, str] = {}
        with self.tracer.callback(notice.callback_url, headers) as ended:
            error = await self._send(notice, headers)
            ended(error)
        return error

    async def _send(self, notice: Pending, traced: Mapping[str, str]) -> str | None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            error = await self._attempt(notice, traced)
        except aiohttp.ServerDisconnectedError:
            if loop.time() - began > 1.0:
                return "it closed the connection without an answer"
            try:
                error = await self._attempt(notice, traced)
            except aiohttp.ServerDisconnectedError:
                return "it closed the connection without an answer"
        return error

    async def _attempt(self, notice: Pending, traced: Mapping[str, str]) -> str | None:
        try:
            self._guard.check(parse_callback(notice.callback_url))
            async with asyncio.timeout(self._timeout.total):
                context, secret = await self._of_application(notice)
                return await self._post(notice, context, secret, traced)
        except aiohttp.ServerDisconnectedError:
            raise
        except Refusal as refusal:
            return refusal.detail
        except TimeoutError:
            return f"no answer within {self._timeout.total:g} s"
        except (aiohttp.ClientError, OSError, ssl.SSLError, ValueError) as error:
            return _named(error)

    async def _post(
        self, notice: Pending, context: ssl.SSLContext, secret: str | None, traced: Mapping[str, str]
    ) -> str | None:
        body = notice.body.encode()
        async with self._open().post(
            notice.callback_url,
            data=body,
            headers={**self._headers(notice, body, secret), **traced},
            ssl=context,
            allow_redirects=False,
        ) as answer:
            await answer.content.read(ANSWER_BYTES)
            return _verdict(answer.status)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=_GuardedResolver(self._guard),
                use_dns_cache=False,
                family=socket.AF_UNSPEC,
                limit=0,
                keepalive_timeout=KEEP_ALIVE_S,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                skip_auto_headers=("Accept-Encoding",),
            )
        return self._session

    async def _of_application(self, notice: Pending) -> tuple[ssl.SSLContext, str | None]:
        """What the application set, as it was last changed."""
        found = self._known(notice)
        if found is None:
            async with self._building:  # each once, however many notices wait for it
                found = self._known(notice) or await self._build(notice)
        return found

    def _known(self, notice: Pending) -> tuple[ssl.SSLContext, str | None] | None:
        if notice.security_changed_at is None:
            return None if self._plain is None else (self._plain, None)
        found = self._secured.get(notice.application)
        if found is None or found.changed_at < notice.security_changed_at:
            return None
        self._secured[notice.application] = self._secured.pop(notice.application)
        return found.context, found.secret

    async def _build(self, notice: Pending) -> tuple[ssl.SSLContext, str | None]:
        """Reading all of the system's authorities takes some 20 ms, which the event loop has not."""
        if self._plain is None:
            self._plain = await asyncio.to_thread(client_context, None, None, None)
        if notice.security_changed_at is None:
            return self._plain, None
        context, s = self._plain, await self._security(notice.application)
        if s.ca_pem is not None or s.certificate_pem is not None:
            context = await asyncio.to_thread(client_context, s.ca_pem, s.certificate_pem, s.key_pem)
        self._secured.pop(notice.application, None)
        changed_at = notice.security_changed_at if s.changed_at is None else s.changed_at
        self._secured[notice.application] = _Secured(changed_at, context, s.signing_secret)
        own = [a for a, secured in self._secured.items() if secured.context is not self._plain]
        if len(own) > CONTEXTS:
            del self._secured[own[0]]
        return context, s.signing_secret

    def _headers(self, notice: Pending, body: bytes, secret: str | None) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": f"OpenIODM/{__version__}"}
        if secret is not None:
            headers[EVENT_HEADER] = f"{notice.subscription_id}-{notice.key}"
            headers[SIGNATURE_HEADER] = signature(secret, self._clock.now() // SECOND, body)
        return headers

    async def close(self) -> None:
        """Ends all connections."""
        if self._session is not None:
            await self._session.close()


def signature(secret: str, second: int, body: bytes) -> str:
    """`t=SECONDS,v1=HEX`: HMAC-SHA256 over the seconds since 1970, a dot, and the body."""
    digest = hmac.new(secret.encode(), str(second).encode() + b"." + body, hashlib.sha256)
    return f"t={second},v1={digest.hexdigest()}"


def _verdict(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"it answered {status}; redirects are not followed: subscribe with the address itself"
    return f"it answered {status}"


def _named(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved: {error.strerror}"
    return (str(error) or type(error).__name__)[:ERROR_CHARS]
