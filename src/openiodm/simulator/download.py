"""Gets the files of a deployment: whole, or in pieces by Range, resumed where a connection broke, and checked."""

from typing import Protocol

from openiodm.simulator.behaviour import Behaviour, Phase, Plan
from openiodm.simulator.digests import Digests
from openiodm.simulator.http import TransportError
from openiodm.simulator.messages import Artifact, Deployment
from openiodm.simulator.record import ActionRecord
from openiodm.simulator.stats import FleetStats
from openiodm.simulator.wire import UnusableError, Wire

MAX_BARREN_ANSWERS = 20  # answers without a new byte before the file is given up


class WithdrawnError(Exception):
    """The bytes are refused, and the poll no longer offers the action."""


class Host(Protocol):
    """What the device does beside a download; each may raise to end it (a cancel, a silence)."""

    async def look(self, entry: ActionRecord) -> bool:
        """Poll now; is the action still offered, as far as is known?"""
        ...

    async def look_if_due(self, entry: ActionRecord) -> None:
        """Poll if it is time."""
        ...

    async def wait(self, seconds: float, entry: ActionRecord) -> None:
        """Let time pass, polling when due."""
        ...

    async def maybe_silent(self, phase: Phase, entry: ActionRecord, plan: Plan) -> None:
        """Fall silent if the plan says so."""
        ...


class Downloader:
    """The downloads of one device."""

    def __init__(self, wire: Wire, behaviour: Behaviour, stats: FleetStats, host: Host) -> None:
        self._wire = wire
        self._behaviour = behaviour
        self._stats = stats
        self._host = host

    async def get_all(self, deployment: Deployment, entry: ActionRecord, plan: Plan) -> str | None:
        """Get and check every file; None, or what is wrong with one. Raises `WithdrawnError`."""
        for number, artifact in enumerate(deployment.artifacts):
            digests = Digests(artifact)
            problem = await self._get(artifact, digests, entry, plan, first=number == 0)
            problem = problem or digests.problem()
            if problem is not None:
                return problem
            entry.downloads += 1
            self._stats.downloaded += 1
        return None

    async def _get(
        self, artifact: Artifact, digests: Digests, entry: ActionRecord, plan: Plan, *, first: bool
    ) -> str | None:
        """Ask until all bytes are in, or the server has answered whole; None or what is wrong."""
        quiet_at = artifact.size // 2 if first and plan.silent_in is Phase.DOWNLOADING else None
        damaged = first and plan.corrupts
        failures = barren = 0
        while digests.size < artifact.size:
            before = digests.size
            try:
                done, problem = await self._ask(artifact, digests, entry, quiet_at, damaged=damaged)
                if problem is not None or done:
                    return problem
                if quiet_at is not None and digests.size >= quiet_at:
                    quiet_at = None
                    await self._host.maybe_silent(Phase.DOWNLOADING, entry, plan)
                failures = 0
                barren = barren + 1 if digests.size == before else 0
            except TransportError:
                failures += 1
                await self._host.wait(self._wire.backoff(failures), entry)
            except UnusableError as error:
                failures += 1
                barren += 1
                if not await self._host.look(entry):  # only a poll tells whether it was withdrawn
                    raise WithdrawnError from error
                await self._host.wait(max(error.at_least, self._wire.backoff(failures)), entry)
            if barren >= MAX_BARREN_ANSWERS:
                return f"no bytes of {artifact.filename} after {barren} attempts"
        return None

    async def _ask(
        self, artifact: Artifact, digests: Digests, entry: ActionRecord, quiet_at: int | None, *, damaged: bool
    ) -> tuple[bool, str | None]:
        """One GET: whether that was the whole file, and what is wrong.

        Breaks off at `quiet_at` bytes: a silent device must not keep one of the fleet's sockets.
        """
        start = digests.size
        async with self._wire.download(artifact.href, self._range(artifact, start)) as stream:
            if stream.status == 200:
                digests.restart()
            elif stream.status != 206:
                raise UnusableError(f"download answered {stream.status}", stream.headers)
            elif not stream.headers.get("content-range", "").startswith(f"bytes {start}-"):
                return False, f"asked for bytes from {start}, got {stream.headers.get('content-range')}"
            async for piece in stream.chunks():
                entry.bytes_received += len(piece)
                self._stats.bytes_received += len(piece)
                damage = damaged and digests.size == 0
                digests.feed(bytes([piece[0] ^ 1]) + piece[1:] if damage else piece)
                if digests.size > artifact.size:
                    return False, f"{artifact.filename} is longer than the promised {artifact.size} bytes"
                if quiet_at is not None and digests.size >= quiet_at:
                    return False, None
                await self._pass_time(len(piece), entry)
            return stream.status == 200, None

    def _range(self, artifact: Artifact, start: int) -> str | None:
        """The Range for the next piece, or for the rest; None for the whole file."""
        pieces = self._behaviour.download_pieces
        if pieces > 1:
            step = -(-artifact.size // pieces)
            return f"{start}-{min(start - start % step + step, artifact.size) - 1}"
        return f"{start}-" if start else None

    async def _pass_time(self, size: int, entry: ActionRecord) -> None:
        rate = self._behaviour.download_bytes_per_second
        if rate is not None:
            await self._host.wait(size / rate, entry)
        else:
            await self._host.look_if_due(entry)
