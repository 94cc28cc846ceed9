"""Requests at a rate that does not wait for answers to be quick, from chosen addresses; how long each took.

`python -m tests.drills.flood` reads a `Plan` as JSON from its standard input and prints what it was answered: a flood
in a process of its own, niced, since it stands for another machine and must not take the server's core.
"""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

CONNECTIONS_A_SOURCE = 32
NICE = 10


@dataclass(frozen=True)
class Plan:
    """`requests`, whole ones with their body, are sent by turns; `sources` are addresses of this machine."""

    port: int
    sources: Sequence[str]
    requests: Sequence[str]
    per_second: float
    seconds: float


@dataclass
class Seen:
    """Statuses, and the milliseconds from the moment at which a request was due, by request."""

    statuses: Counter[int]
    took_ms: list[list[float]]


async def send(plan: Plan) -> Seen:
    """Sends them, each by the next connection that is free; a request that nobody is free for is late, not left out."""
    seen = Seen(Counter(), [[] for _ in plan.requests])
    raw = [request.encode() for request in plan.requests]
    began = time.monotonic()
    numbers = iter(range(int(plan.per_second * plan.seconds)))

    async def peer(source: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", plan.port, local_addr=(source, 0))
        try:
            for number in numbers:
                due = began + number / plan.per_second
                if (ahead := due - time.monotonic()) > 0:
                    await asyncio.sleep(ahead)
                writer.write(raw[number % len(raw)])
                seen.statuses[await _status(reader)] += 1
                seen.took_ms[number % len(raw)].append((time.monotonic() - due) * 1000)
        finally:
            writer.close()

    async with asyncio.TaskGroup() as group:
        for source in plan.sources:
            for _ in range(CONNECTIONS_A_SOURCE):
                group.create_task(peer(source))
    return seen


async def _status(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length or 0))
    return int(head[9:12])


async def beside(plan: Plan) -> Counter[int]:
    """Sends them from another process; the statuses."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.drills.flood", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await process.communicate(json.dumps(asdict(plan)).encode())
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    return Counter({int(status): count for status, count in json.loads(out).items()})


if __name__ == "__main__":
    os.nice(NICE)
    print(json.dumps(asyncio.run(send(Plan(**json.load(sys.stdin)))).statuses))
