"""One device's CoAP association: its socket, retransmission, duplicates, and what a bad network does. Plain or DTLS.

A device's side alone: it asks, it answers, it notifies. It shares the codec with the server and nothing else of CoAP,
so that one's mistake does not become the other's rule; DTLS is OpenSSL's on both sides.
"""

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from openiodm.protocols.coap.codec import (
    Block,
    CoapFormatError,
    Code,
    Message,
    Option,
    Options,
    Type,
    decode,
    decode_block,
    encode,
    encode_block,
)
from openiodm.protocols.coap.dtls import Connector, Session

REMEMBERED = 64  # message ids of requests and their answers, for repetitions
TRIES = 5  # of a confirmable message (RFC 7252 section 4.8: 4 retransmissions)
HANDSHAKE_TRIES = 8

Handler = Callable[[Message], Message]
"""Answers a request of the server; of the answer code, options and payload count."""


class NoAnswerError(Exception):
    """The server did not answer, or not as it should."""


@dataclass(frozen=True, slots=True)
class Network:
    """How bad it is: shares of 1 of the datagrams, each way. `ack_timeout` as in RFC 7252 section 4.8, in seconds."""

    loss_rate: float = 0.0
    duplicate_rate: float = 0.0
    reorder_rate: float = 0.0
    ack_timeout: float = 2.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """A PSK identity and its key; `connector` is shared by all devices of a process."""

    connector: Connector
    identity: str
    key: bytes


class Association:
    """From `open` to `close`; every one has a port of its own."""

    def __init__(
        self,
        server: tuple[str, int],
        handler: Handler,
        network: Network,
        chance: Random,
        credentials: Credentials | None = None,
    ) -> None:
        self._server = server
        self._handler = handler
        self._network = network
        self._chance = chance
        self._credentials = credentials
        self._socket: socket.socket | None = None
        self._session: Session | None = None
        self._settled = asyncio.Event()  # the handshake has come to its end, a good or a bad one
        self._mid = chance.randrange(0x10000)
        self._acknowledgements: dict[int, asyncio.Future[Message]] = {}
        self._answers: dict[bytes, asyncio.Future[Message]] = {}
        self._handled: OrderedDict[int, bytes] = OrderedDict()
        self.sent = 0  # datagrams
        self.received = 0

    async def open(self) -> None:
        """A new port, and over DTLS a handshake.

        Raises:
            NoAnswerError: the handshake came to nothing.
        """
        family = socket.AF_INET6 if ":" in self._server[0] else socket.AF_INET
        self._socket = sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(self._server)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)
        if self._credentials is None:
            return
        self._session, hello = self._credentials.connector.connect(self._credentials.identity, self._credentials.key)
        self._put(hello)
        for _ in range(HANDSHAKE_TRIES * 4):
            try:
                await asyncio.wait_for(self._settled.wait(), 0.3)
                break
            except TimeoutError:
                if out := self._session.tick():
                    self._put(out)
        if not self._session.established:
            self.close()
            raise NoAnswerError("the handshake came to nothing")

    def close(self) -> None:
        """Gives the port back; whoever waits is told."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            if self._session is not None and (goodbye := self._session.close()):
                self._put(goodbye)
            self._socket.close()
            self._socket = None
        for waiting in (*self._acknowledgements.values(), *self._answers.values()):
            if not waiting.done():
                waiting.set_exception(NoAnswerError("the association was closed"))
                waiting.exception()  # it may be that nobody asks

    # -- out

    async def request(self, code: Code, options: Options, payload: bytes = b"") -> Message:
        """A confirmable request and its answer.

        Raises:
            NoAnswerError: there is none, or a reset.
        """
        token = self._chance.randbytes(4)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[token] = answer
        try:
            first = await self._confirmed(Message(code, options, payload, token=token))
            if first.code != Code.EMPTY:
                return first
            return await asyncio.wait_for(answer, 60)
        except TimeoutError as error:
            raise NoAnswerError("no answer") from error
        finally:
            del self._answers[token]

    async def notify(self, token: bytes, options: Options, payload: bytes) -> None:
        """A confirmable notification.

        Raises:
            NoAnswerError: it was not acknowledged.
        """
        await self._confirmed(Message(Code.CONTENT, options, payload, token=token))

    async def _confirmed(self, message: Message) -> Message:
        self._mid = self._mid + 1 & 0xFFFF
        mid = self._mid
        data = encode(Message(message.code, message.options, message.payload, Type.CON, mid, message.token))
        acknowledged: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._acknowledgements[mid] = acknowledged
        wait = self._network.ack_timeout * self._chance.uniform(1, 1.5)
        try:
            for _ in range(TRIES):
                self._send(data)
                done, _ = await asyncio.wait([acknowledged], timeout=wait)
                if done:
                    answer = acknowledged.result()
                    if answer.type is Type.RST:
                        raise NoAnswerError("reset")
                    return answer
                waiting = self._answers.get(message.token)
                if waiting is not None and waiting.done():  # its acknowledgement was lost
                    return waiting.result()
                wait *= 2
            raise NoAnswerError("not acknowledged")
        finally:
            del self._acknowledgements[mid]

    def _send(self, data: bytes) -> None:
        if self._session is None:
            self._put(data)
        elif sealed := self._session.seal(data):
            self._put(sealed)

    def _put(self, datagram: bytes) -> None:
        draw = self._chance.random()
        if draw < self._network.loss_rate:
            return
        copies = 2 if self._chance.random() < self._network.duplicate_rate else 1
        for _ in range(copies):
            if self._chance.random() < self._network.reorder_rate:
                asyncio.get_running_loop().call_later(self._chance.uniform(0.005, 0.05), self._put_now, datagram)
            else:
                self._put_now(datagram)

    def _put_now(self, datagram: bytes) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(datagram)
            self.sent += 1
        except OSError:
            pass  # nobody listens there, or no room: lost, as datagrams may be

    # -- in

    def _readable(self) -> None:
        while self._socket is not None:
            try:
                datagram = self._socket.recv(4096)
            except OSError:
                return
            self.received += 1
            if self._chance.random() < self._network.loss_rate:
                continue
            if self._session is None:
                self._take(datagram)
                continue
            plaintexts, out, alive = self._session.feed(datagram)
            if out:
                self._put(out)
            if self._session.established or not alive:
                self._settled.set()
            for plaintext in plaintexts:
                self._take(plaintext)
            if not alive:
                return

    def _take(self, data: bytes) -> None:
        try:
            message = decode(data)
        except CoapFormatError:
            return
        if message.type in (Type.ACK, Type.RST):
            waiting = self._acknowledgements.get(message.mid)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        elif message.is_request:
            self._answer(message)
        elif message.code != Code.EMPTY:
            answer = self._answers.get(message.token)
            if message.type is Type.CON:
                kind = Type.RST if answer is None else Type.ACK
                self._send(encode(Message(Code.EMPTY, type=kind, mid=message.mid)))
            if answer is not None and not answer.done():
                answer.set_result(message)

    def _answer(self, request: Message) -> None:
        data = self._handled.get(request.mid)
        if data is None:
            answer = self._handler(request)
            data = encode(Message(answer.code, answer.options, answer.payload, Type.ACK, request.mid, request.token))
            self._handled[request.mid] = data
            while len(self._handled) > REMEMBERED:
                self._handled.popitem(last=False)
        self._send(data)


async def fetch(link: Association, options: Options, szx: int, first: int = 0) -> tuple[bytes, int]:
    """A body by Block2 (RFC 7959), from block `first`; and how many blocks were asked for.

    Raises:
        NoAnswerError: another answer than 2.05, no Block2 in it, or another body in the middle.
    """
    body, etag, asked, number = bytearray(), None, 0, first
    while True:
        block = (Option.BLOCK2, encode_block(Block(number, False, szx)))
        answer = await link.request(Code.GET, (*options, block))
        asked += 1
        told = answer.option(Option.BLOCK2)
        if answer.code != Code.CONTENT or told is None:
            raise NoAnswerError(f"a block was answered {answer.code >> 5}.{answer.code & 31:02}")
        given = decode_block(told)
        if given.num != number or (etag is not None and answer.option(Option.ETAG) != etag):
            raise NoAnswerError("another block, or another body")
        etag = answer.option(Option.ETAG)
        body += answer.payload
        number += 1
        if not given.more:
            return bytes(body), asked
