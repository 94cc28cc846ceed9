"""Drills in which many do the same at once: one key (D11), first contacts (D12), a whole fleet comes back (D13)."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import psutil

from openiodm.simulator.http import HttpClient
from tests.drills import stampede
from tests.drills.stampede import Herd
from tests.drills.world import Report, World, world
from tests.support.process import fresh_database

SOCKETS = 64
HERD = 15_000  # devices of one process: each needs a file there
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
        statuses, took = await _polls(here, names)
        total = (await here.api.call("GET", "/iocm/app/dm/v1.4.0/devices", params={"pageNo": 0}))["totalCount"]
        if total != devices or set(statuses) != {200}:
            report.wrong.append(f"{total} devices for {devices} names, answers {dict(statuses)}")
        report.figures |= {"contacts": contacts, "devices": total, "contacts/s": round(contacts / took)}


async def all_come_back(report: Report, folder: Path, *, devices: int, within: float) -> None:
    """D13: a whole fleet reconnects within seconds, each device over a connection of its own, whether the server keeps
    up or not, and again if it was not let in: nobody gets a 5xx, who has an update waiting is granted it exactly once,
    and the server is as ready afterwards as before.
    """
    async with fresh_database(report.engine, folder) as url, world(report.engine, url, folder) as here:
        await here.register(devices)
        operation = await here.campaign()
        while (await here.api.task(operation))["staResult"]["total"] < devices:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)  # the last chunk is in; the commit that opens the task follows it
        process = psutil.Process(here.server.pid)
        before = process.memory_info().rss
        herd = [_once(here, f"drill-{n:06d}") for n in range(devices)]
        parts = -(-devices // HERD)
        herds = [Herd(here.server.port, f"127.0.0.{10 + n}", herd[n::parts], within) for n in range(parts)]
        seen = await stampede.beside(herds)
        statuses = sum((each.statuses for each in seen), Counter[int]())
        without = sum((each.without for each in seen), Counter[str]())
        began = time.monotonic()
        if (await here.http.get("/readyz")).status_code != 200:
            report.wrong.append("the server is not ready afterwards")
        ready = time.monotonic() - began
        task = await here.api.task(operation)
        if statuses != {200: devices}:
            report.wrong.append(f"answers {dict(statuses)}")
        if task["staResult"]["processing"] != devices:
            report.wrong.append(f"{task['staResult']} after every device has come")
        report.wrong += await here.wrong_rows()
        report.figures |= {
            "devices": devices,
            "all came within, s": round(max(each.last_came for each in seen), 1),
            "all answered within, s": round(max(each.last_answered for each in seen), 1),
            "tries without an answer": dict(without),
            "memory grown, MiB": round((process.memory_info().rss - before) / 2**20),
            "then ready within, ms": round(ready * 1000),
        }


def _once(here: World, node_id: str) -> str:
    return (
        f"GET /DEFAULT/controller/v1/{node_id} HTTP/1.1\r\nHost: 127.0.0.1:{here.server.port}\r\n"
        f"Authorization: GatewayToken {here.token}\r\nConnection: close\r\n\r\n"
    )


async def _polls(here: World, names: list[str]) -> tuple[Counter[int], float]:
    """One poll for each name, by `SOCKETS` at once; statuses, and the seconds that it took."""
    headers = {"Authorization": f"GatewayToken {here.token}"}
    statuses: Counter[int] = Counter()
    client = HttpClient(here.server.url, max_connections=SOCKETS, request_timeout=ANSWER_WITHIN_S)
    began = time.monotonic()
    queue = iter(names)

    async def caller() -> None:
        for name in queue:
            response = await client.request("GET", f"/DEFAULT/controller/v1/{name}", headers=headers)
            statuses[response.status] += 1

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(SOCKETS):
                group.create_task(caller())
    finally:
        await client.aclose()
    return statuses, time.monotonic() - began
