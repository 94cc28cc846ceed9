"""Devices that all come at once, each over a connection of its own, whether the server keeps up or not.

`python -m tests.drills.stampede` reads a `Herd` as JSON from its standard input and prints what became of it: a part of
a fleet in a process of its own, since a process may open only so many sockets, and niced, since it stands for other
machines and must not take the server's core.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

NICE = 5
CONNECT_WITHIN_S = 30.0
ANSWER_WITHIN_S = 60.0
BACK_OFF_S = (1.0, 5.0)  # before a device tries again
TRIES = 50
STEP_S = 0.01


@dataclass(frozen=True)
class Herd:
    """`requests`, whole ones, are sent from `source`, the first at once and the last after `within` seconds."""

    port: int
    source: str
    requests: Sequence[str]
    within: float


@dataclass
class Seen:
    """Statuses of all answers, tries that ended without one; seconds from the begin of the herd."""

    statuses: Counter[int]
    without: Counter[str]
    last_came: float = 0.0
    last_answered: float = 0.0


class _Request(asyncio.Protocol):
    """One request over one connection; `answer` is its status."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._heard = b""
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())  # it may be too late

    def connection_made(self, transport: Any) -> None:
        transport.write(self._data)

    def data_received(self, data: bytes) -> None:
        self._heard += data

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closes after its answer."""
        if self.answer.done():
            return
        head, _, body = self._heard.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if length and len(body) == int(length):
            self.answer.set_result(int(head[9:12]))
        else:
            self.answer.set_exception(exc or ConnectionResetError("closed without an answer"))


async def send(herd: Herd) -> Seen:
    """Everybody comes when it is due, and again after a pause until it is answered 2xx."""
    seen = Seen(Counter(), Counter())
    chance = random.Random(herd.source)
    loop = asyncio.get_running_loop()
    began = time.monotonic()

    async def ask(data: bytes) -> int:
        connecting = loop.create_connection(lambda: _Request(data), "127.0.0.1", herd.port, local_addr=(herd.source, 0))
        transport, request = await asyncio.wait_for(connecting, CONNECT_WITHIN_S)
        try:
            return await asyncio.wait_for(request.answer, ANSWER_WITHIN_S)
        finally:
            transport.abort()

    async def device(data: bytes) -> None:
        seen.last_came = time.monotonic() - began
        for _ in range(TRIES):
            try:
                status = await ask(data)
            except (OSError, TimeoutError) as error:
                seen.without[type(error).__name__] += 1
            else:
                seen.statuses[status] += 1
                if status < 300:
                    seen.last_answered = time.monotonic() - began
                    return
            await asyncio.sleep(chance.uniform(*BACK_OFF_S))

    started = 0
    async with asyncio.TaskGroup() as group:
        while started < len(herd.requests):
            due = min(len(herd.requests), int((time.monotonic() - began) / herd.within * len(herd.requests)) + 1)
            for request in herd.requests[started:due]:
                group.create_task(device(request.encode()))
            started = due
            await asyncio.sleep(STEP_S)
    return seen


async def beside(herds: Sequence[Herd]) -> list[Seen]:
    """Sends all of them at once, each from another process."""
    command = (sys.executable, "-m", "tests.drills.stampede")
    pipe = asyncio.subprocess.PIPE
    processes = [await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe) for _ in herds]
    try:
        tellings = [
            process.communicate(json.dumps(asdict(herd)).encode())
            for process, herd in zip(processes, herds, strict=True)
        ]
        said = [json.loads(out) for out, _ in await asyncio.gather(*tellings)]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
    return [
        Seen(Counter({int(k): v for k, v in each.pop("statuses").items()}), Counter(each.pop("without")), **each)
        for each in said
    ]


if __name__ == "__main__":
    os.nice(NICE)
    print(json.dumps(vars(uvloop.run(send(Herd(**json.load(sys.stdin)))))))
