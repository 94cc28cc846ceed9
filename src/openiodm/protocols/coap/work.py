"""Handlers that take their time: as tasks, with an owner and a bound."""

import asyncio
import inspect
from collections.abc import Awaitable, Coroutine
from typing import Any

from openiodm.protocols.coap.limits import Limits
from openiodm.protocols.coap.peers import Association


class Work:
    """The tasks of one endpoint."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tasks: set[asyncio.Task[None]] = set()

    def full(self, peer: Association) -> bool:
        """May this peer, or any, cause no more for now?"""
        return len(self._tasks) >= self._limits.handlers or peer.handling >= self._limits.handlers_per_peer

    @staticmethod
    def refuse(work: Awaitable[object]) -> None:
        """Nobody will await it."""
        if inspect.iscoroutine(work):
            work.close()

    def start(self, peer: Association, work: Coroutine[Any, Any, None]) -> None:
        """Runs it for the peer, which counts as in use meanwhile."""
        peer.handling += 1
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def done(_: object) -> None:
            peer.handling -= 1
            self._tasks.discard(task)

        task.add_done_callback(done)

    async def close(self) -> None:
        """Cancels what is under way, and waits for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
