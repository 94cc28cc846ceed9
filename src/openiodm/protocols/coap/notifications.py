"""Responses that answer no open request: notifications, wanted or not (RFC 7641 sections 3.5, 3.6, 4.2)."""

from collections.abc import Awaitable

import structlog

from openiodm.protocols.coap.carrier import Notified
from openiodm.protocols.coap.codec import Message, Type
from openiodm.protocols.coap.exchange import Recent
from openiodm.protocols.coap.messages import MessageLayer, empty
from openiodm.protocols.coap.peers import Association
from openiodm.protocols.coap.work import Work

log = structlog.get_logger(__name__)


class Notifications:
    """Hands them on, and acknowledges or resets what is said to be wanted or not."""

    def __init__(self, messages: MessageLayer, notified: Notified, work: Work) -> None:
        self._messages = messages
        self._notified = notified
        self._work = work

    def take(self, peer: Association, message: Message, recent: Recent) -> None:
        """Asks whether it is wanted, which may take its time."""
        try:
            wanted = self._notified(peer, message)
        except Exception as error:
            self._failed(error, peer, recent)
            return
        if isinstance(wanted, bool):
            self.settle(peer, message, recent, wanted=wanted)
        elif self._work.full(peer):
            self._work.refuse(wanted)
            self._messages.counts.overloaded += 1
            self._messages.memory.forget(recent)  # unacknowledged, it comes again
        else:
            self._work.start(peer, self._wait(peer, message, wanted, recent))

    async def _wait(self, peer: Association, message: Message, wanted: Awaitable[bool], recent: Recent) -> None:
        try:
            answer = await wanted
        except Exception as error:
            self._failed(error, peer, recent)
        else:
            self.settle(peer, message, recent, wanted=answer)

    def _failed(self, error: Exception, peer: Association, recent: Recent) -> None:
        log.error("coap.notification_failed", host=peer.address[0], identity=peer.identity, exc_info=error)
        self._messages.memory.forget(recent)

    def settle(self, peer: Association, message: Message, recent: Recent, *, wanted: bool) -> None:
        """Acknowledges a confirmable one; resets what nobody wants, which ends the observation."""
        if not wanted:
            self._messages.reply(peer, empty(Type.RST, message.mid), recent)
        elif message.type is Type.CON:
            self._messages.reply(peer, empty(Type.ACK, message.mid), recent)
