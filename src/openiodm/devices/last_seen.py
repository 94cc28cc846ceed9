"""Times of last contact: collected in memory, written in bulk every few seconds. A poll itself writes nothing.

What is lost with a killed process is a few seconds of "last seen", never a state: the next contact repairs it.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog

from openiodm.clock import Clock, Instant
from openiodm.devices.model import DeviceKey
from openiodm.devices.ports import DeviceWork, DeviceWriter

CHUNK = 500
"""Devices that one transaction takes, so that the writer stays free for reports."""

log = structlog.get_logger(__name__)


class LastSeen:
    """The collector of one server. Between `start` and `close` it writes every `flush_s` seconds."""

    def __init__(self, writer: DeviceWriter, clock: Clock, flush_s: float) -> None:
        self._writer = writer
        self._clock = clock
        self._flush_s = flush_s
        self._seen: dict[DeviceKey, tuple[Instant, str]] = {}
        self._first: set[DeviceKey] = set()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def seen(self, device: DeviceKey, address: str, *, activated: bool) -> None:
        """The device is in contact now. `activated`: it is known to have been before (`activated_at` is set)."""
        self._seen[device] = (self._clock.now(), address)
        if not activated:
            self._first.add(device)

    async def flush(self) -> None:
        """Writes what was collected. A chunk that fails is logged and given up."""
        seen = [(key, at, address) for key, (at, address) in self._seen.items()]
        first, self._seen, self._first = self._first, {}, set()
        for start in range(0, len(seen), CHUNK):
            chunk = seen[start : start + CHUNK]
            try:
                await self._write(chunk, [key for key, _, _ in chunk if key in first])
            except Exception:
                log.exception("last_seen_not_written", devices=len(chunk))

    async def _write(self, seen: Sequence[tuple[DeviceKey, Instant, str]], first: list[DeviceKey]) -> None:
        async def write(work: DeviceWork) -> None:
            await work.devices.touch(seen)
            if first:
                await work.devices.activate(first)

        await self._writer.run(write)

    def start(self) -> None:
        """Begins to write; the task belongs to this object and ends in `close`."""
        self._task = asyncio.create_task(self._run(), name="last-seen")

    async def close(self) -> None:
        """Writes what is left, then ends. Before the writer closes."""
        self._closing.set()
        if self._task is not None:
            await self._task
        await self.flush()

    async def _run(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self._flush_s)
            await self.flush()
