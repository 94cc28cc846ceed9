"""A UDP socket for an endpoint: reads in a loop until it is empty, and tells of what the network sends back.

The event loop's own datagram protocol handles one datagram a wake-up, which costs more than all of CoAP and DTLS.
"""

import asyncio
import select
import socket
import struct
from collections.abc import Callable
from typing import Final, Protocol, Self

import structlog

from openiodm.protocols.coap.carrier import Address
from openiodm.protocols.coap.codec import DATAGRAM_BYTES
from openiodm.protocols.coap.counts import Counts
from openiodm.protocols.coap.limits import DRAIN, RECEIVE_BUFFER_BYTES, TICK

log = structlog.get_logger(__name__)

_RECORD_EXTRA: Final = 512
"""What DTLS adds to a message at most, in bytes, and room to see that one is too long."""
_READ_BYTES: Final = DATAGRAM_BYTES + _RECORD_EXTRA
_IP_RECVERR: Final = 11  # linux/in.h
_IPV6_RECVERR: Final = 25  # linux/in6.h
_ERROR_HEAD: Final = struct.Struct("=IBBBB")  # struct sock_extended_err: errno, origin, type, code, pad
_ORIGINS_ICMP: Final = (2, 3)


class Receiver(Protocol):
    """What a socket needs of an endpoint."""

    counts: Counts

    def receive(self, datagram: bytes, address: Address) -> None:
        """Takes a datagram."""
        ...

    def unreachable(self, address: Address, datagram: bytes) -> None:
        """The network returned a datagram."""
        ...

    def tick(self) -> None:
        """Does what is due."""
        ...


class UdpSocket:
    """One bound socket. `transmit` works at once; datagrams are read from `start` to `close`."""

    def __init__(self, host: str, port: int) -> None:
        """Binds; port 0 lets the kernel choose.

        Raises:
            OSError: the address is not ours, or the port is taken.
        """
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)[0]
        self._socket = sock = socket.socket(family, socket.SOCK_DGRAM)
        self._poll: select.epoll | None = None
        self._receiver: Receiver | None = None
        self._timer: asyncio.TimerHandle | None = None
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            sock.bind(address)
        except BaseException:
            sock.close()
            raise

    @property
    def address(self) -> Address:
        """Where it is bound."""
        bound: Address = self._socket.getsockname()
        return bound

    def start(self, receiver: Receiver) -> Self:
        """Reads for the receiver, in the running loop, and lets its time pass.

        The loop watches an epoll of our own, not the socket: what ICMP returns makes a socket's error flag rise, and
        at that uvloop (libuv) stops watching it for good. One device that went away would make the port deaf.
        """
        self._receiver = receiver
        loop = asyncio.get_running_loop()
        self._poll = select.epoll()
        self._poll.register(self._socket, select.EPOLLIN)
        loop.add_reader(self._poll.fileno(), self._readable)
        self._timer = loop.call_later(TICK / 1000, self._tick, loop)
        return self

    def close(self) -> None:
        """Reads no more, and gives the port back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._poll is not None:
            asyncio.get_running_loop().remove_reader(self._poll.fileno())
            self._poll.close()
            self._poll = None
        self._socket.close()

    def transmit(self, datagram: bytes, address: Address) -> None:
        """Sends, or drops what the kernel does not take: a datagram may be lost in any case."""
        try:
            self._socket.sendto(datagram, address)
        except OSError:
            # A full buffer, no route, or an older datagram's ICMP error that is told here: send anew after that.
            if not self._send_after_error(datagram, address) and self._receiver is not None:
                self._receiver.counts.unsent += 1

    def _send_after_error(self, datagram: bytes, address: Address) -> bool:
        try:
            self._socket.sendto(datagram, address)
        except OSError:
            return False
        return True

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(TICK / 1000, self._tick, loop)
        assert self._receiver is not None
        self._guarded(self._receiver.tick)

    def _readable(self) -> None:
        receiver = self._receiver
        assert receiver is not None
        receive, read = receiver.receive, self._socket.recvfrom
        for count in range(DRAIN):
            try:
                datagram, address = read(_READ_BYTES)
            except BlockingIOError:
                if not count:  # what woke us are errors alone, and would again
                    self._read_errors(receiver)
                return
            except OSError:
                self._read_errors(receiver)
                continue
            try:
                receive(datagram, address)
            except Exception:  # one datagram must not take the port from all the others
                log.exception("coap.receive_failed", host=address[0], bytes=len(datagram))

    def _read_errors(self, receiver: Receiver) -> None:
        """The kernel keeps what ICMP returned in a queue of its own: the address and the datagram that was sent."""
        for _ in range(DRAIN):
            try:
                datagram, ancillary, _, address = self._socket.recvmsg(_READ_BYTES, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            if any(_is_icmp(level, kind, data) for level, kind, data in ancillary):
                self._guarded(receiver.unreachable, address, datagram)

    def _guarded(self, call: Callable[..., None], *args: object) -> None:
        try:
            call(*args)
        except Exception:
            log.exception("coap.endpoint_failed")


def _is_icmp(level: int, kind: int, data: bytes) -> bool:
    if (level, kind) not in ((socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)):
        return False
    return len(data) >= _ERROR_HEAD.size and _ERROR_HEAD.unpack_from(data)[1] in _ORIGINS_ICMP
