"""Drills in which many do the same at once: one key (D11), first contacts (D12), a whole fleet comes back (D13)."""

import asyncio
import time
from collections import Counter
from pathlib import Path

from openiodm.simulator.http import HttpClient
from tests.drills.world import Report, World, world
from tests.support.process import fresh_database

SOCKETS = 64
ANSWER_WITHIN_S = 60.0


async def one_key(report: Report, folder: Path, *, creates: int) -> None:
    """D11: parallel creations with one Idempotency-Key are one task, and everybody is told its id."""
    async with fresh_database(report.engine, folder) as url, world(report.engine, url, folder) as here:
        await here.register(10)
        file_id = await here.api.upload("drill.bin", b"x" * 100)
        targets = {"deviceGroups": ["drill"], "deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
        body = {"fileId": file_id, "targets": targets}
        path = "/iodm/northbound/v1.5.0/operations/firmwareUpgrade"
        answers = await asyncio.gather(
            *(here.api.send("POST", path, json=body, headers={"Idempotency-Key": "once"}) for _ in range(creates))
        )
        statuses = Counter(answer.status_code for answer in answers)
        ids = {answer.json().get("operationId") for answer in answers}
        listed = (await here.api.call("GET", "/iodm/northbound/v1.5.0/operations"))["totalCount"]
        if statuses != {200: creates} or len(ids) != 1 or listed != 1:
            report.wrong.append(f"answers {dict(statuses)}, ids {len(ids)}, tasks listed {listed}")
        report.wrong += await here.wrong_rows()
        report.figures |= {"creates": creates, "tasks": listed}


async def first_contacts(report: Report, folder: Path, *, devices: int, contacts: int) -> None:
    """D12: every device's first contact, ten times in parallel: as many rows as devices, and no 5xx."""
    async with fresh_database(report.engine, folder) as url, world(report.engine, url, folder) as here:
        names = [f"new-{n % devices:06d}" for n in range(contacts)]
        statuses, _, took = await _polls(here, names)
        total = (await here.api.call("GET", "/iocm/app/dm/v1.4.0/devices", params={"pageNo": 0}))["totalCount"]
        if total != devices or set(statuses) != {200}:
            report.wrong.append(f"{total} devices for {devices} names, answers {dict(statuses)}")
        report.figures |= {"contacts": contacts, "devices": total, "contacts/s": round(contacts / took)}


async def all_come_back(report: Report, folder: Path, *, devices: int, within: float) -> None:
    """D13: a whole fleet reconnects within seconds, each device over a connection of its own: nobody gets a 5xx, and
    who has an update waiting is granted it exactly once.
    """
    async with fresh_database(report.engine, folder) as url, world(report.engine, url, folder) as here:
        await here.register(devices)
        operation = await here.campaign()
        while (await here.api.task(operation))["staResult"]["total"] < devices:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)  # the last chunk is in; the commit that opens the task follows it
        names = [f"drill-{n:06d}" for n in range(devices)]
        statuses, asked, took = await _polls(here, names, within=within, keep_alive=False)
        task = await here.api.task(operation)
        if set(statuses) != {200}:
            report.wrong.append(f"answers {dict(statuses)}")
        if task["staResult"]["processing"] != devices:
            report.wrong.append(f"{task['staResult']} after every device has come")
        report.wrong += await here.wrong_rows()
        report.figures |= {"devices": devices, "asked within, s": round(asked, 1), "answered within, s": round(took, 1)}


async def _polls(
    here: World, names: list[str], *, within: float = 0.0, keep_alive: bool = True
) -> tuple[Counter[int], float, float]:
    """One poll for each name, spread over `within` seconds; statuses, and the seconds until the last was asked and was
    answered: more, where the server is slower than that and `SOCKETS` wait for it.
    """
    headers = {"Authorization": f"GatewayToken {here.token}"}
    if not keep_alive:
        headers["Connection"] = "close"
    statuses: Counter[int] = Counter()
    client = HttpClient(here.server.url, max_connections=SOCKETS, request_timeout=ANSWER_WITHIN_S)
    began = last = time.monotonic()
    queue = iter(enumerate(names))

    async def caller() -> None:
        nonlocal last
        for number, name in queue:
            ahead = began + within * number / len(names) - time.monotonic()
            if ahead > 0:
                await asyncio.sleep(ahead)
            last = time.monotonic()
            response = await client.request("GET", f"/DEFAULT/controller/v1/{name}", headers=headers)
            statuses[response.status] += 1

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(SOCKETS):
                group.create_task(caller())
    finally:
        await client.aclose()
    return statuses, last - began, time.monotonic() - began
