"""Many LwM2M devices in one process: start, watch, stop, and ask what they saw."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from openiodm.protocols.coap.dtls import Connector
from openiodm.protocols.pcp.codec import Status
from openiodm.simulator.coap import Credentials, Network
from openiodm.simulator.lwm2m import UPDATE_FAILED, Lwm2mDevice, Lwm2mProfile

STARTS_PER_SECOND = 500
CHECK_SECONDS = 0.02


class Lwm2mFleet:
    """Devices with a socket each; make it inside the event loop that runs it."""

    def __init__(
        self,
        server: tuple[str, int],
        profiles: Sequence[Lwm2mProfile],
        *,
        dtls: bool = False,
        network: Network | None = None,
        seed: int = 0,
        ramp_seconds: float | None = None,
        suites: Sequence[str] = (),
    ) -> None:
        if len({profile.endpoint for profile in profiles}) != len(profiles):
            raise ValueError("two profiles have the same endpoint name")
        connector = (Connector(suites) if suites else Connector()) if dtls else None
        self.succeeded = self.failed = 0
        self._fault: BaseException | None = None
        self._chance = Random(seed)
        self._ramp = len(profiles) / STARTS_PER_SECOND if ramp_seconds is None else ramp_seconds
        self.devices = [
            Lwm2mDevice(
                profile,
                server,
                network=network,
                credentials=None if connector is None else Credentials(connector, profile.endpoint, profile.psk),
                seed=seed,
                ended=self._note_end,
            )
            for profile in profiles
        ]

    def draw_faults(self, failure_rate: float, power_loss_rate: float) -> None:
        """Which devices fail to install, and which of PCP's lose power after a fragment; once each, by the seed."""
        for device in self.devices:
            fails, loses_power = self._chance.random() < failure_rate, self._chance.random() < power_loss_rate
            if fails:
                device.flash.fails_with = UPDATE_FAILED
                device.pcp.faults.install_result = Status.INSTALL_FAILED
            if loses_power:
                device.pcp.faults.reboots_at = 1

    def _note_end(self, success: bool) -> None:
        if success:
            self.succeeded += 1
        else:
            self.failed += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Lwm2mFleet"]:
        """The devices live inside this block. An error of the simulator is raised by `wait_for`, or at the end."""
        tasks = [asyncio.create_task(device.run(self._chance.uniform(0, self._ramp))) for device in self.devices]
        for task in tasks:
            task.add_done_callback(self._note_fault)
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._raise_fault()

    async def wait_for(self, done: Callable[["Lwm2mFleet"], bool], *, within: float | None = None) -> None:
        """Inside `running`: `TimeoutError` after `within` seconds."""
        async with asyncio.timeout(within):
            while not done(self):
                self._raise_fault()
                await asyncio.sleep(CHECK_SECONDS)

    def _note_fault(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and self._fault is None:
            self._fault = task.exception()

    def _raise_fault(self) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def all_ended(self) -> bool:
        """Every device has ended an upgrade, and told how."""
        return all(device.resting for device in self.devices)

    def to_json(self) -> dict[str, Any]:
        """Sums over all devices."""
        records = [device.record for device in self.devices]
        return {
            "devices": len(records),
            "online": sum(device.online.is_set() for device in self.devices),
            "registrations": sum(record.registrations for record in records),
            "downloaded": sum(len(record.digests) for record in records),
            "blocks": sum(record.blocks for record in records),
            "power_losses": sum(record.power_losses for record in records),
            "succeeded": self.succeeded,
            "failed": self.failed,
        }
