"""Drills in which devices misbehave (D4, D6), and the stop of a campaign under load (D7)."""

import asyncio
import time
from pathlib import Path

from openiodm.simulator import Behaviour, Phase
from openiodm.simulator.http import HttpClient
from tests.drills.faults import same_as_devices
from tests.drills.world import Report, World, end_within, world
from tests.support.process import fresh_database

SWEPT_WITHIN_S = 60.0
CANCEL_CLOCK_S = 8
REFUSED_WITHIN_S = 1.0
ACTION_OF = "deploymentBase/"


async def repeats(report: Report, folder: Path, *, devices: int) -> None:
    """D4: the same campaign twice, once with every report sent twice and every third one out of order: the same end."""
    ends = []
    for name, behaviour in (
        ("plain", Behaviour(failure_rate=0.1, progress_reports=3)),
        ("repeated", Behaviour(failure_rate=0.1, progress_reports=3, duplicate_rate=1.0, reorder_rate=0.34)),
    ):
        home = folder / name
        home.mkdir()
        async with fresh_database(report.engine, home) as url, world(report.engine, url, home) as here:
            await here.register(devices)
            operation = await here.campaign()
            fleet = here.fleet(here.profiles(devices, behaviour), within=devices / 100)
            async with fleet.running():
                await fleet.wait_for(within=end_within(devices))
                task = await here.api.wait_until_final(operation)
            await same_as_devices(report, here, task, fleet)
            rows = await here.rows(
                "SELECT d.node_id, u.state, u.detail FROM upgrade u JOIN device d ON d.id = u.device_id ORDER BY 1"
            )
            ends.append([tuple(row) for row in rows])
            changes = await here.rows("SELECT count(*) FROM history WHERE to_state IN ('success', 'fail', 'verifying')")
            report.figures[f"results in the history, {name}"] = changes[0][0]
    if ends[0] != ends[1]:
        different = [(a, b) for a, b in zip(*ends, strict=True) if a != b]
        report.wrong.append(f"{len(different)} devices ended otherwise, the first: {different[0]}")
    report.figures["devices"] = devices


async def silence(report: Report, folder: Path, *, devices: int, clock_s: int) -> None:
    """D6: a tenth of the devices falls silent for ever in each phase: every slot comes back by its clock, the task
    ends, and exactly the silent ones are timed out.
    """
    clocks = {f"{phase}_clock_s": str(clock_s) for phase in ("download", "install", "verify")}
    async with fresh_database(report.engine, folder) as url, world(report.engine, url, folder, **clocks) as here:
        await here.register(devices)
        operation = await here.campaign()
        tenth = devices // 10
        phases = [Phase.OFFERED, Phase.DOWNLOADING, Phase.DOWNLOADED, Phase.INSTALLING, Phase.REPORTING]
        profiles = here.profiles(devices - tenth * len(phases))
        for phase in phases:
            silent = Behaviour(silence_rate=1.0, silent_phases=(phase,))
            profiles += here.profiles(tenth, silent, first=len(profiles))
        fleet = here.fleet(profiles, within=devices / 100)
        async with fleet.running():
            task = await here.api.wait_until_final(operation, end_within(devices))
        sums = task["staResult"]
        if (sums["timeout"], sums["success"]) != (tenth * len(phases), devices - tenth * len(phases)):
            report.wrong.append(f"{sums} with {tenth} silent devices in each of {len(phases)} phases")
        report.wrong += await here.wrong_rows(fleet.records())
        open_rows = await here.rows("SELECT count(*) FROM upgrade WHERE finished_at IS NULL OR due_at IS NOT NULL")
        if open_rows[0][0]:
            report.wrong.append(f"{open_rows[0][0]} upgrades still hold a slot or a clock")
        report.figures |= {"devices": devices, "silent": tenth * len(phases), "timeout": sums["timeout"]}


async def stop_at_half(report: Report, folder: Path, *, devices: int) -> None:
    """D7: a stop when half of a campaign is done: answered at once, nobody granted after it, bytes refused within a
    second, everything waiting swept, and the counters are the rows throughout.
    """
    slow = Behaviour(install_seconds=(0.5, 3.0), probe_after_final=True)
    async with (
        fresh_database(report.engine, folder) as url,
        world(report.engine, url, folder, cancel_clock_s=str(CANCEL_CLOCK_S)) as here,
    ):
        await here.register(devices)
        operation = await here.campaign()
        witness = _Witness(here, f"drill-{devices - 1:06d}")
        await witness.take_offer()
        # As many again would come after the stop, if they were let.
        fleet = here.fleet(here.profiles(devices - 1, slow), within=devices / 50)
        async with fleet.running():
            await fleet.wait_for(lambda f: f.stats.succeeded >= devices // 2, within=end_within(devices))
            began = time.monotonic()
            await here.api.call("POST", f"/api/v1/tasks/{operation}/stop")
            answered = time.monotonic() - began
            granted = await _granted(here)
            report.figures["stop answered after, ms"] = round(answered * 1000)
            report.figures["bytes refused after, ms"] = round(await witness.refused_after(began) * 1000)
            while (task := await here.api.task(operation))["staResult"]["wait"]:
                if time.monotonic() - began > SWEPT_WITHIN_S:
                    report.wrong.append(f"not swept: {task['staResult']}")
                    break
                report.wrong += await here.wrong_rows()
            report.figures["swept after, s"] = round(time.monotonic() - began, 1)
            # Then those that were granted end: by their own word, or by the cancel clock.
            while task["staResult"]["processing"] and time.monotonic() - began < end_within(devices):
                await asyncio.sleep(0.5)
                task = await here.api.task(operation)
        if task["staResult"]["processing"]:
            report.wrong.append(f"still at work: {task['staResult']}")
        later = await _granted(here)
        if granted == devices:
            report.wrong.append("nobody waited any more at the stop: this drill shows too little")
        if later != granted:
            report.wrong.append(f"{later - granted} devices were granted after the stop")
        report.wrong += await here.wrong_rows(fleet.records())
        report.figures |= {"devices": devices, "granted": granted, "end": task["staResult"]}


async def _granted(here: World) -> int:
    return int((await here.rows("SELECT count(*) FROM history WHERE to_state = 'offered'"))[0][0])


class _Witness:
    """A device that has taken its offer and only asks for its bytes."""

    def __init__(self, here: World, node_id: str) -> None:
        self._client = HttpClient(here.server.url, max_connections=2, request_timeout=30)
        self._headers = {"Authorization": f"GatewayToken {here.token}", "Accept": "application/json"}
        self._base = f"/DEFAULT/controller/v1/{node_id}"
        self._artifact = ""

    async def take_offer(self) -> None:
        while ACTION_OF not in (poll := (await self._get(self._base)).decode()):
            await asyncio.sleep(0.1)
        action = poll.split(ACTION_OF)[1].split("?")[0]
        offer = (await self._get(f"{self._base}/{ACTION_OF}{action}")).decode()
        self._artifact = offer.split('"download-http":{"href":"')[1].split('"')[0]
        assert await self._get(self._artifact)

    async def _get(self, target: str) -> bytes:
        return (await self._client.request("GET", self._client.localise(target), headers=self._headers)).body

    async def refused_after(self, began: float) -> float:
        """Seconds from `began` until its bytes are refused."""
        target = self._client.localise(self._artifact)
        while (await self._client.request("GET", target, headers=self._headers)).status == 200:
            await asyncio.sleep(0.02)
        await self._client.aclose()
        took = time.monotonic() - began
        assert took < REFUSED_WITHIN_S, f"bytes were still served {took:.1f} s after the stop"
        return took
