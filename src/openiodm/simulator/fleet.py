"""Many devices in one process over one pool of sockets: start, watch, stop, and ask what they saw.

Every device is one task that mostly sleeps; the pool bounds what goes on at once. The server may vanish, come back,
or move (`fleet.base_url = ...`) at any moment.
"""

import asyncio
import ssl as tls
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from openiodm.clock import Clock
from openiodm.simulator.behaviour import Behaviour, timing_of
from openiodm.simulator.device import Device
from openiodm.simulator.http import HttpClient
from openiodm.simulator.profile import DeviceProfile, Pace, TokenKind
from openiodm.simulator.record import DeviceRecord
from openiodm.simulator.stats import FleetStats

STARTS_PER_SECOND = 500  # first polls, unless `ramp_seconds` says otherwise
CHECK_SECONDS = 0.02  # how often a predicate is looked at; stretched for large fleets


def make_profiles(
    count: int,
    *,
    prefix: str = "sim",
    first: int = 0,
    template: DeviceProfile | None = None,
    token_kind: TokenKind | None = None,
    token: str | None = None,
    tokens: Mapping[str, str] | None = None,
    attributes: Mapping[str, str] | None = None,
    behaviour: Behaviour | None = None,
) -> list[DeviceProfile]:
    """Profiles `prefix-000000` and on, all like `template` but for what is given.

    `tokens` are by controller id and win over `token`.
    """
    base = template or DeviceProfile("template")
    base = replace(
        base,
        token_kind=base.token_kind if token_kind is None else token_kind,
        token=base.token if token is None else token,
        attributes=base.attributes if attributes is None else attributes,
        behaviour=base.behaviour if behaviour is None else behaviour,
    )
    names = [f"{prefix}-{number:06d}" for number in range(first, first + count)]
    return [replace(base, controller_id=name, token=(tokens or {}).get(name, base.token)) for name in names]


class Fleet:
    """Devices with shared sockets and shared `stats`; make it inside the event loop that runs it."""

    def __init__(
        self,
        base_url: str,
        profiles: Sequence[DeviceProfile],
        *,
        seed: int = 0,
        pace: Pace | None = None,
        max_connections: int = 64,
        request_timeout: float = 30.0,
        ramp_seconds: float | None = None,
        ssl: tls.SSLContext | None = None,
        clock: Clock | None = None,
    ) -> None:
        if len({profile.controller_id for profile in profiles}) != len(profiles):
            raise ValueError("two profiles have the same controller id")
        self.stats = FleetStats()
        self._fault: BaseException | None = None
        self.client = HttpClient(base_url, max_connections=max_connections, request_timeout=request_timeout, ssl=ssl)
        self._seed = seed
        self._ramp_seconds = len(profiles) / STARTS_PER_SECOND if ramp_seconds is None else ramp_seconds
        self.devices = [
            Device(profile, self.client, seed=seed, pace=pace, stats=self.stats, clock=clock) for profile in profiles
        ]

    @property
    def base_url(self) -> str:
        """Where the server is; set it when the server has moved, at any time."""
        return self.client.base_url

    @base_url.setter
    def base_url(self, value: str) -> None:
        self.client.base_url = value

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Fleet"]:
        """The devices live inside this block and are cut off at its end; it may be entered again.

        An error of the simulator itself in a device is raised by `wait_for`, or at the end of the block.
        """
        tasks = [asyncio.create_task(device.run(self._first_delay(device))) for device in self.devices]
        for task in tasks:
            task.add_done_callback(self._note_end)
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.client.aclose()
        self._raise_fault()

    async def run(self, stop: asyncio.Event) -> FleetStats:
        """Run until `stop` is set."""
        return await self.run_until(lambda _: stop.is_set())

    async def run_until(
        self, done: Callable[["Fleet"], bool] | None = None, *, within: float | None = None
    ) -> FleetStats:
        """Run until `done` says so (default: `all_final`); raises `TimeoutError` after `within` seconds."""
        async with self.running():
            await self.wait_for(done, within=within)
        return self.stats

    async def wait_for(self, done: Callable[["Fleet"], bool] | None = None, *, within: float | None = None) -> None:
        """Inside `running`: wait for `done` (default: `all_final`); `TimeoutError` after `within` seconds."""
        pause = max(CHECK_SECONDS, len(self.devices) / 50_000)
        async with asyncio.timeout(within):
            while not (self.all_final() if done is None else done(self)):
                self._raise_fault()
                await asyncio.sleep(pause)

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and self._fault is None:
            self._fault = task.exception()

    def _raise_fault(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def all_final(self, actions: int = 1) -> bool:
        """Every device has met so many actions (or is silent for ever) and nothing more comes by itself."""
        return all(
            device.silent_for_ever or (len(device.record.actions) >= actions and device.resting)
            for device in self.devices
        )

    def records(self) -> list[DeviceRecord]:
        """What each device saw, in the order of the profiles."""
        return [device.record for device in self.devices]

    def violations(self) -> list[str]:
        """The broken laws that any device saw; empty for an honest server."""
        return [text for record in self.records() for text in record.violations()]

    def _first_delay(self, device: Device) -> float:
        return timing_of(self._seed, f"{device.profile.controller_id}/start").uniform(0, self._ramp_seconds)
