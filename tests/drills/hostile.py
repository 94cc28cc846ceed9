"""Peers that mean no good (D17): slow heads, endless bodies, a thousand slow readers, ranges and zips that blow up."""

import asyncio
import io
import random
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil

from openiodm.simulator import Behaviour
from tests.drills.world import SEED, Report, World, world
from tests.support.process import fresh_database

MIB = 1024 * 1024
MEMORY_MIB = 50  # what the server may grow by under any of it
CALL_WITHIN_S = 2.0  # a friendly call beside it; the machine is busy
FEW_RANGES = "bytes=" + ",".join(f"{n}-{n + 1}" for n in range(0, 4000, 4))


async def hostile(report: Report, folder: Path, *, peers: int, package_mib: int) -> None:
    """Each attack by `peers` connections at once, while a friendly application and a device go on to be served."""
    async with fresh_database(report.engine, folder) as url, world(report.engine, url, folder) as here:
        await here.register(3)
        package = random.Random(SEED).randbytes(package_mib * MIB)
        targets = {"deviceGroups": ["drill"], "deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
        await here.api.create_task(await here.api.upload("large.bin", package), **targets)
        artifact = await _artifact(here, "drill-000000")
        process = psutil.Process(here.server.pid)
        for name, attack in (
            ("slow heads", _slow_heads),
            ("endless heads", _endless_heads),
            ("trickling uploads", _trickling_uploads),
            ("slow readers", _slow_readers(artifact)),
            ("range bombs", _range_bombs(artifact)),
            ("zip bombs", _zip_bombs),
        ):
            before = process.memory_info().rss
            worst = await _beside(here, attack, peers)
            grown = round((process.memory_info().rss - before) / MIB)
            report.figures[name] = {"memory, MiB": grown, "slowest friendly call, s": round(worst, 2)}
            if grown > MEMORY_MIB:
                report.wrong.append(f"{name}: the server grew by {grown} MiB")
            if worst > CALL_WITHIN_S:
                report.wrong.append(f"{name}: a friendly call took {worst:.1f} s")
        fleet = here.fleet(here.profiles(2, Behaviour(), first=1), within=0.1)
        async with fleet.running():
            await fleet.wait_for(within=60)
        report.wrong += await here.wrong_rows(fleet.records())


Attack = Callable[[World, int], Coroutine[Any, Any, None]]


async def _beside(here: World, attack: Attack, peers: int) -> float:
    """The slowest of the friendly calls that are made while the attack goes on."""
    running = asyncio.create_task(attack(here, peers))
    worst = 0.0
    while not running.done():
        began = time.monotonic()
        await here.api.call("GET", "/iodm/northbound/v1.5.0/operations")
        worst = max(worst, time.monotonic() - began)
        await asyncio.sleep(0.05)
    await running
    return worst


async def _artifact(here: World, node_id: str) -> str:
    headers = {"Authorization": f"GatewayToken {here.token}"}
    async with asyncio.timeout(60):
        while True:
            poll = (await here.http.get(f"/DEFAULT/controller/v1/{node_id}", headers=headers)).json()
            if link := poll.get("_links", {}).get("deploymentBase"):
                break
            await asyncio.sleep(0.1)
    offer = (await here.http.get(link["href"], headers=headers)).json()
    return str(offer["deployment"]["chunks"][0]["artifacts"][0]["_links"]["download-http"]["href"])


async def _open(here: World) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", here.server.port, limit=4096)


async def _each(here: World, peers: int, one: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(peers):
            group.create_task(one(number))


async def _slow_heads(here: World, peers: int) -> None:
    async def one(_number: int) -> None:
        _reader, writer = await _open(here)
        try:
            for byte in b"GET / HTTP/1.1\r\nX-Slow: ":
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.2)
        except ConnectionError:
            pass
        finally:
            writer.close()

    await _each(here, peers, one)


async def _endless_heads(here: World, peers: int) -> None:
    async def one(_number: int) -> None:
        _reader, writer = await _open(here)
        try:
            writer.write(b"GET / HTTP/1.1\r\nX-Endless: ")
            for _ in range(64):
                writer.write(b"a" * 16_384)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    await _each(here, peers, one)


async def _trickling_uploads(here: World, peers: int) -> None:
    head = await _upload_head(here)

    async def one(_number: int) -> None:
        _reader, writer = await _open(here)
        try:
            writer.write(head + b"Content-Length: 900000000\r\n\r\n")
            for _ in range(20):
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.2)
        except ConnectionError:
            pass
        finally:
            writer.close()

    await _each(here, peers, one)


def _slow_readers(artifact: str) -> Attack:
    async def attack(here: World, peers: int) -> None:
        request = _device_get(here, artifact)

        async def one(_number: int) -> None:
            reader, writer = await _open(here)
            try:
                writer.write(request)
                for _ in range(20):
                    await reader.read(1024)
                    await asyncio.sleep(0.2)
            finally:
                writer.transport.abort()

        await _each(here, peers, one)

    return attack


def _range_bombs(artifact: str) -> Attack:
    async def attack(here: World, peers: int) -> None:
        request = _device_get(here, artifact, f"Range: {FEW_RANGES}\r\n")

        async def one(_number: int) -> None:
            reader, writer = await _open(here)
            try:
                writer.write(request)
                while await reader.read(65_536):
                    pass
            finally:
                writer.transport.abort()

        await _each(here, peers, one)

    return attack


async def _zip_bombs(here: World, peers: int) -> None:
    query = {"name": "bomb.zip", "type": "softwarePackage"}
    bomb = await asyncio.to_thread(_bomb)
    for _ in range(max(1, peers // 50)):
        answer = await here.api.send("POST", "/api/v1/packages", params=query, content=_pieces(bomb))
        assert answer.status_code == 400, answer.text


def _bomb() -> bytes:
    """A package whose description file unpacks to 512 MiB."""
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w", zipfile.ZIP_DEFLATED) as bomb, bomb.open("DM/linux/UpgradeDesc.json", "w") as file:
        for _ in range(512):
            file.write(b" " * MIB)
    return into.getvalue()


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 65_536):
        yield content[start : start + 65_536]


async def _upload_head(here: World) -> bytes:
    query = "name=x&type=firmwarePackage&version=9&deviceType=sensor&model=m1&manufacturerName=acme"
    headers = "".join(f"{name}: {value}\r\n" for name, value in (await here.api.headers()).items())
    return f"POST /api/v1/packages?{query} HTTP/1.1\r\nHost: x\r\n{headers}".encode()


def _device_get(here: World, artifact: str, more: str = "") -> bytes:
    path = artifact.split("/", 3)[3]
    head = f"GET /{path} HTTP/1.1\r\nHost: x\r\nAuthorization: GatewayToken {here.token}\r\nConnection: close\r\n"
    return f"{head}{more}\r\n".encode()
