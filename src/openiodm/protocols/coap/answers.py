"""The server role: requests to the handler, answers at once or later, bodies that come in blocks."""

from collections import OrderedDict
from collections.abc import Awaitable
from typing import Final

import msgspec
import structlog

from openiodm.clock import Instant
from openiodm.protocols.coap import blocks
from openiodm.protocols.coap.blocks import TransferError, Upload
from openiodm.protocols.coap.carrier import Handler
from openiodm.protocols.coap.codec import (
    DATAGRAM_BYTES,
    LARGEST_SZX,
    Block,
    CoapFormatError,
    Code,
    Message,
    Option,
    Type,
    decode_block,
    encode_as,
    encode_block,
    encode_uint,
)
from openiodm.protocols.coap.exchange import Recent, Transmission
from openiodm.protocols.coap.limits import Limits
from openiodm.protocols.coap.messages import MessageLayer, empty
from openiodm.protocols.coap.peers import Association
from openiodm.protocols.coap.screening import refusal_of
from openiodm.protocols.coap.work import Work

log = structlog.get_logger(__name__)

_SAFE: Final = frozenset({Code.GET, Code.FETCH})
_RETRY_SECONDS: Final = 5
"""Max-Age of 5.03: when to try again, in seconds (RFC 7252 section 5.9.3.4)."""
_BUSY: Final = Message(Code.SERVICE_UNAVAILABLE, ((Option.MAX_AGE, encode_uint(_RETRY_SECONDS)),))
_TOO_LONG: Final = Message(
    Code.REQUEST_ENTITY_TOO_LARGE, ((Option.BLOCK1, encode_block(Block(0, False, LARGEST_SZX))),)
)
"""What is longer than `DATAGRAM_BYTES` should come in blocks (RFC 7959 section 2.9.3)."""


class Answers:
    """The requests of all peers of one endpoint."""

    def __init__(self, messages: MessageLayer, handler: Handler, work: Work, limits: Limits) -> None:
        self._messages = messages
        self._handler = handler
        self._work = work
        self._limits = limits
        self._uploads: OrderedDict[Association, Instant] = OrderedDict()  # until when, oldest first

    def request(self, peer: Association, message: Message, data: bytes) -> None:
        """Takes a request that came as `data`."""
        messages = self._messages
        if messages.repeated(peer, message, data):
            return
        # What is safe and answered at once is as well done again as remembered (section 4.5), and most are blocks.
        recent = None if message.code in _SAFE else messages.note(peer, message, data)
        if (refusal := _TOO_LONG if len(data) > DATAGRAM_BYTES else refusal_of(message)) is not None:
            if message.type is Type.CON:  # else it is rejected silently (section 5.4.1)
                self._reply(peer, message, refusal, recent)
            return
        messages.counts.requests += 1
        try:
            whole = message if message.option(Option.BLOCK1) is None else self._join(peer, message)
            answer = Message(Code.CONTINUE) if whole is None else self._handler(peer, whole)
        except TransferError as error:
            self._reply(peer, message, Message(error.code, payload=str(error).encode()), recent)
        except Exception as error:
            self._reply(peer, message, _blame(error, peer), recent)
        else:
            if isinstance(answer, Message) or answer is None:
                self._reply(peer, message, answer, recent)
            else:
                self._later(peer, message, answer, recent or messages.note(peer, message, data))

    def _reply(self, peer: Association, request: Message, answer: Message | None, recent: Recent | None) -> None:
        """Answers at once: piggybacked on the acknowledgement, or by a message that needs none."""
        if request.type is Type.CON:
            if answer is None:
                datagram = empty(Type.ACK, request.mid)
            else:
                datagram = encode_as(self._fit(request, answer), Type.ACK, request.mid, request.token)
        elif answer is None:
            return
        else:
            datagram = encode_as(self._fit(request, answer), Type.NON, peer.ids.next(), request.token)
        self._messages.reply(peer, datagram, recent)

    def _fit(self, request: Message, answer: Message) -> Message:
        """The answer as it fits a datagram, with the Block1 that says which block was taken."""
        if request.code in _SAFE:
            answer = blocks.cut(request, answer, self._limits.block_szx)
        elif len(answer.payload) > 16 << self._limits.block_szx:
            # Asking for the rest would do the thing again.
            log.error("coap.answer_too_long", bytes=len(answer.payload))
            answer = Message(Code.INTERNAL_SERVER_ERROR)
        if (value := request.option(Option.BLOCK1)) is not None and answer.option(Option.BLOCK1) is None:
            answer = answer.with_options((Option.BLOCK1, value))
        return answer

    def _later(self, peer: Association, request: Message, answer: Awaitable[Message | None], recent: Recent) -> None:
        if self._work.full(peer):
            self._work.refuse(answer)
            self._messages.counts.overloaded += 1
            self._messages.memory.forget(recent)
            self._reply(peer, request, _BUSY, None)
        else:
            self._work.start(peer, self._answer(peer, request, answer, recent))

    async def _answer(
        self, peer: Association, request: Message, answer: Awaitable[Message | None], recent: Recent
    ) -> None:
        messages = self._messages
        due = Instant(messages.clock.now() + messages.timing.ack_delay)
        timer = messages.timers.at(due, self._acknowledge, peer, request, recent)
        try:
            response = await answer
        except Exception as error:
            response = _blame(error, peer)
        finally:
            timer.cancel()
        if peer.closed:
            return
        if recent.reply is None or request.type is Type.NON:
            self._reply(peer, request, response, recent)
        elif response is not None:
            self._separate(peer, request, response)

    def _separate(self, peer: Association, request: Message, response: Message) -> None:
        mid = peer.ids.next()
        answer = self._fit(request, response)
        if len(peer.sent) < self._limits.unacknowledged_per_peer:
            datagram = encode_as(answer, Type.CON, mid, request.token)
            self._messages.send_confirmable(peer, mid, datagram, None, _never_taken)
        else:
            self._messages.send(peer, encode_as(answer, Type.NON, mid, request.token))

    def _acknowledge(self, peer: Association, request: Message, recent: Recent) -> None:
        """The answer takes its time: it will come by itself (section 5.2.2)."""
        if request.type is Type.CON and not peer.closed:
            self._messages.reply(peer, empty(Type.ACK, request.mid), recent)

    def _join(self, peer: Association, message: Message) -> Message | None:
        """The request with its whole body, None after a block that is not the last."""
        value = message.option(Option.BLOCK1)
        assert value is not None
        block = decode_block(value)
        upload = Upload(message, self._limits.upload_bytes) if block.num == 0 else peer.upload
        if upload is None or not upload.continues(message):
            raise TransferError(Code.REQUEST_ENTITY_INCOMPLETE, "the first block is missing")
        self.forget(peer)
        body = upload.add(block, message.payload)
        if body is not None:
            return msgspec.structs.replace(message, payload=body)
        if len(self._uploads) >= self._limits.uploads:
            self.forget(next(iter(self._uploads)))
        peer.upload = upload
        messages = self._messages
        self._uploads[peer] = Instant(messages.clock.now() + messages.timing.exchange_lifetime)
        return None

    def forget(self, peer: Association) -> None:
        """What the peer has sent of a body is of no more use."""
        if peer.upload is not None:
            peer.upload = None
            del self._uploads[peer]

    def tick(self) -> None:
        """Forgets bodies that do not go on."""
        now = self._messages.clock.now()
        while self._uploads and next(iter(self._uploads.values())) <= now:
            self.forget(next(iter(self._uploads)))


def _blame(error: Exception, peer: Association) -> Message:
    if isinstance(error, CoapFormatError):  # of an option's value
        return Message(Code.BAD_REQUEST, payload=str(error).encode())
    log.error("coap.handler_failed", host=peer.address[0], identity=peer.identity, exc_info=error)
    return Message(Code.INTERNAL_SERVER_ERROR)


def _never_taken(peer: Association, _transmission: Transmission) -> None:
    log.info("coap.answer_never_acknowledged", host=peer.address[0], identity=peer.identity)
