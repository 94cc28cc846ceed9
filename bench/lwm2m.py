"""LwM2M registrations: how many a second, what one costs the server, and what a registered device keeps in memory.

    python bench/lwm2m.py [--devices 2000]

The server is `openiodm serve` on a fresh SQLite database, on the first core; one process on the last core asks for all
devices, 64 at a time. A registration is durable when it is answered. After it the server reads each device's object 3.
Writes results/lwm2m.json.
"""

import argparse
import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import httpx

from openiodm.protocols.coap.codec import Code, Message, Option
from openiodm.protocols.coap.dtls import Connector
from openiodm.protocols.lwm2m.codec.tlv import Kind, Tlv, encode
from openiodm.simulator.coap import Association, Credentials, Network

RESULTS = Path(__file__).resolve().parent / "results" / "lwm2m.json"
CORES = sorted(os.sched_getaffinity(0))
AT_ONCE = 64
TICKS = os.sysconf("SC_CLK_TCK")
DEVICE = encode([Tlv(Kind.RESOURCE, 0, b"bench"), Tlv(Kind.RESOURCE, 3, b"V1")])


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_kib(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def start(folder: Path, port: int, http: int, *, dtls: bool) -> subprocess.Popen[str]:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("OPENIODM_")},
        "OPENIODM_DATA_DIR": str(folder),
        "OPENIODM_LISTEN": f"127.0.0.1:{http}",
        "OPENIODM_COAPS_LISTEN" if dtls else "OPENIODM_COAP_LISTEN": f"127.0.0.1:{port}",
        "OPENIODM_LOG_LEVEL": "warning",
        "OPENIODM_ADDRESS_REQUESTS_PER_MINUTE": "100000000",  # all load comes from one address
    }
    command = [sys.executable, "-m", "openiodm.cli.main", "serve"]
    return subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {CORES[0]}),
    )


def credentials_of(server: subprocess.Popen[str]) -> tuple[str, str]:
    assert server.stderr is not None
    found: dict[str, str] = {}
    for line in server.stderr:
        if match := re.match(r"  (app id|secret) +(\S+)", line):
            found[match[1]] = match[2]
        if len(found) == 2:
            return found["app id"], found["secret"]
    raise SystemExit("the server did not start")


async def make_devices(http: int, app_id: str, secret: str, count: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{http}", timeout=120) as client:
        login = await client.post("/iocm/app/sec/v1.1.0/login", data={"appId": app_id, "secret": secret})
        headers = {"app_key": app_id, "Authorization": f"Bearer {login.json()['accessToken']}"}
        about = {"deviceType": "t", "model": "m", "manufacturerName": "f"}
        lines = [json.dumps({"nodeId": f"d{n}", "psk": f"{n + 1:032x}", **about}) for n in range(count)]
        headers["Content-Type"] = "application/x-ndjson"
        answer = await client.post("/api/v1/devices/bulk", content="\n".join(lines), headers=headers)
        answer.raise_for_status()
    await asyncio.sleep(2)  # the keys are read once a second


async def register_all(port: int, count: int, *, dtls: bool) -> tuple[list[Association], float]:
    connector = Connector() if dtls else None
    gate = asyncio.Semaphore(AT_ONCE)

    def answer(request: Message) -> Message:
        is_device = request.path == ("3", "0")
        options = ((Option.CONTENT_FORMAT, (11542).to_bytes(2, "big")),)
        return Message(Code.CONTENT, options, DEVICE) if is_device else Message(Code.NOT_FOUND)

    async def one(n: int) -> Association:
        secret = None if connector is None else Credentials(connector, f"d{n}", (n + 1).to_bytes(16, "big"))
        link = Association(("127.0.0.1", port), answer, Network(), Random(n), secret)
        async with gate:
            await link.open()
            query = (f"ep=d{n}", "lt=3600", "lwm2m=1.1", "b=U")
            options = ((Option.URI_PATH, b"rd"), *((Option.URI_QUERY, part.encode()) for part in query))
            created = await link.request(Code.POST, options, b"</1/0>,</3/0>,</5/0>")
            assert created.code == Code.CREATED, created
        return link

    began = time.monotonic()
    links = list(await asyncio.gather(*(one(n) for n in range(count))))
    return links, time.monotonic() - began


async def measure(count: int, *, dtls: bool) -> dict[str, Any]:
    port, http = (int(n) for n in Random().sample(range(40_000, 50_000), 2))
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder), port, http, dtls=dtls)
        try:
            app_id, secret = credentials_of(server)
            await asyncio.sleep(1)
            await make_devices(http, app_id, secret, count)
            memory, cpu = rss_kib(server.pid), cpu_seconds(server.pid)
            links, seconds = await register_all(port, count, dtls=dtls)
            registered_cpu = cpu_seconds(server.pid) - cpu
            await asyncio.sleep(5)  # objects 3 are read, times of contact are written
            grown = rss_kib(server.pid) - memory
            idle = cpu_seconds(server.pid)
            await asyncio.sleep(5)
            idle = (cpu_seconds(server.pid) - idle) / 5
            for link in links:
                link.close()
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
    return {
        "carrier": "dtls" if dtls else "plain",
        "devices": count,
        "registrations_per_s": round(count / seconds),
        "server_cpu_ms_per_registration": round(registered_cpu / count * 1000, 3),
        "kib_per_registered_device": round(grown / count, 1),
        "cpu_share_while_all_are_idle": round(idle, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=2000)
    asked = parser.parse_args()
    os.sched_setaffinity(0, {CORES[-1]})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    results = [asyncio.run(measure(asked.devices, dtls=dtls)) for dtls in (False, True)]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
