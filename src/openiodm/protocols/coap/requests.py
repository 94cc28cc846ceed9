"""The client role: requests to peers, one under way at a time, in blocks where they or their answers are long."""

import asyncio
from collections import deque

import msgspec

from openiodm.clock import Instant, Millis
from openiodm.protocols.coap import carrier
from openiodm.protocols.coap.blocks import Download, Sender, TransferError
from openiodm.protocols.coap.carrier import ANSWER_BYTES, RESPONSE_WAIT, Body, Progress
from openiodm.protocols.coap.codec import (
    LARGEST_SZX,
    CoapFormatError,
    Code,
    Message,
    Option,
    Type,
    code_text,
    encode_as,
    encode_block,
)
from openiodm.protocols.coap.exchange import Transmission
from openiodm.protocols.coap.messages import MessageLayer
from openiodm.protocols.coap.peers import Association, Request

_TOKEN_BYTES = 4


class Requests:
    """The requests of one endpoint that wait for their answers."""

    def __init__(self, messages: MessageLayer, per_peer: int) -> None:
        self._messages = messages
        self._per_peer = per_peer

    async def request(
        self,
        peer: Association,
        message: Message,
        *,
        body: Body | None = None,
        progress: Progress | None = None,
        szx: int = LARGEST_SZX,
        limit: int = ANSWER_BYTES,
        wait: Millis = RESPONSE_WAIT,
    ) -> Message:
        """See `carrier.Carrier.request`."""
        whole = message.payload if body is None else body
        try:
            if len(whole) > 16 << szx:
                answer = await self._upload(peer, message, Sender(whole, szx), progress, wait)
            else:
                answer = await self._exchange(peer, msgspec.structs.replace(message, payload=bytes(whole)), wait)
                if progress is not None and answer.is_success:
                    progress(len(whole))
            if answer.option(Option.BLOCK2) is None or not answer.is_success:
                return answer
            return await self._download(peer, message, answer, Download(limit), wait)
        except (TransferError, CoapFormatError) as error:
            raise carrier.TransferBroken(str(error)) from error

    async def _upload(
        self, peer: Association, message: Message, sender: Sender, progress: Progress | None, wait: Millis
    ) -> Message:
        going_on = True
        while going_on:
            answer = await self._exchange(peer, sender.next(message), wait)
            going_on = sender.answered(answer)
            if progress is not None and answer.is_success:
                progress(sender.sent)
        return answer

    async def _download(
        self, peer: Association, message: Message, answer: Message, download: Download, wait: Millis
    ) -> Message:
        """The rest of an answer; it is asked for without Observe, with a token of its own (RFC 7959 section 2.6)."""
        first = answer
        plain = tuple(option for option in message.options if option[0] != Option.OBSERVE)
        while (block := download.add(answer)) is not None:
            asking = msgspec.structs.replace(message, options=plain, payload=b"", token=b"")
            answer = await self._exchange(peer, asking.with_options((Option.BLOCK2, encode_block(block))), wait)
            if not answer.is_success or answer.option(Option.BLOCK2) is None:
                raise TransferError(Code.REQUEST_ENTITY_INCOMPLETE, f"{code_text(answer.code)} instead of a block")
        return msgspec.structs.replace(first, payload=download.body)

    async def _exchange(self, peer: Association, message: Message, wait: Millis) -> Message:
        """One message and its answer, which may come by itself later."""
        if peer.closed:
            raise carrier.PeerGone(f"{peer.address[0]} has no session any more")
        if len(peer.requests) >= self._per_peer:
            raise carrier.TooMany(f"{len(peer.requests)} requests wait for {peer.address[0]}")
        token = message.token or self._token(peer)
        if token in peer.requests:
            raise carrier.TooMany("a request with this token is under way")
        request = Request(message, token, wait, asyncio.get_running_loop().create_future())
        peer.requests[token] = request
        if peer.waiting is None:
            peer.waiting = deque()
        peer.waiting.append(request)
        self._next(peer)
        try:
            return await request.answer
        finally:
            self._end(peer, request)

    def _token(self, peer: Association) -> bytes:
        while (token := self._messages.chance(_TOKEN_BYTES)) in peer.requests:
            pass
        return token

    def _next(self, peer: Association) -> None:
        """Sends what waits, as far as NSTART allows (section 4.7)."""
        messages = self._messages
        while peer.waiting and peer.under_way < messages.timing.nstart and not peer.closed:
            request = peer.waiting.popleft()
            request.under_way = True
            request.mid = peer.ids.next()
            peer.under_way += 1
            due = Instant(messages.clock.now() + request.wait)
            request.deadline = messages.timers.at(due, self._fail, peer, request, carrier.TimedOut("no answer in time"))
            message = request.message
            datagram = encode_as(message, message.type, request.mid, request.token)
            if message.type is Type.CON:
                messages.send_confirmable(peer, request.mid, datagram, request, self._given_up)
            else:
                messages.send(peer, datagram)

    def _given_up(self, peer: Association, transmission: Transmission) -> None:
        request = transmission.owner
        assert isinstance(request, Request)
        self._fail(peer, request, carrier.TimedOut("never acknowledged"))

    def _fail(self, _peer: Association, request: Request, error: carrier.ExchangeError) -> None:
        if not request.answer.done():
            request.answer.set_exception(error)

    def _end(self, peer: Association, request: Request) -> None:
        """However it ended: answered, failed, or its caller was cancelled."""
        del peer.requests[request.token]
        if request.deadline is None:
            assert peer.waiting is not None
            peer.waiting.remove(request)
            return
        request.deadline.cancel()
        self._messages.settle(peer, request.mid)
        self._release(peer, request)

    def _release(self, peer: Association, request: Request) -> None:
        if request.under_way:
            request.under_way = False
            peer.under_way -= 1
            self._next(peer)

    def acknowledged(self, peer: Association, request: Request) -> None:
        """The answer will come by itself (section 5.2.2); the next request may go."""
        self._release(peer, request)

    def answered(self, peer: Association, message: Message) -> bool:
        """Is it the answer of a request that was sent?"""
        request = peer.requests.get(message.token)
        if request is None or request.deadline is None:
            return False
        self._messages.settle(peer, request.mid)
        if not request.answer.done():
            request.answer.set_result(message)
        return True

    def reset(self, peer: Association, mid: int) -> None:
        """The peer does not want the message with that id."""
        for request in peer.requests.values():
            if request.mid == mid:
                self._fail(peer, request, carrier.Rejected("the peer answered with a reset"))

    def unreachable(self, peer: Association, mid: int | None) -> None:
        """The network returned the message with that id, or one that nobody can read."""
        for request in peer.requests.values():
            if request.under_way and mid in (None, request.mid):
                self._fail(peer, request, carrier.Unreachable(f"nobody listens at {peer.address[0]}"))

    def close(self, peer: Association) -> None:
        """The association is closed: nothing will be answered."""
        for request in peer.requests.values():
            self._fail(peer, request, carrier.PeerGone(f"the association with {peer.address[0]} is closed"))
