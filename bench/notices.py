#!/usr/bin/env python3
"""What a subscriber costs the devices: whole updates a second without one, with a live one, with a dead one.

    python bench/notices.py                  five rounds of 1,500 devices (some six minutes)
    python bench/notices.py --rounds 1 --devices 300

Each round runs the three variants in turn, each on an empty server, and begins with another one. The live receiver
takes everything on this machine, on the generator's core; the dead one's port answers nobody, and notices of 100,000
devices wait for it already. A ratio is the median of the rounds' ratios; the target is 0.9.
"""

import argparse
import asyncio
import json
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from compare import OursServer, machine, say
from server import CORES, GENERATOR_CORE, HERE, WORK, BenchError, make_artifact

RESULTS = HERE / "results" / "notices.json"
TARGET = 0.9
BACKLOG = 100_000  # devices of which a notice waits for the dead receiver
TYPES = ("fwUpgradeStateChangeNotify", "fwUpgradeResultNotify")
NOTICES_A_DEVICE = 5  # otacreated, RequestDownload, downloading, idle; the result
DEAD_PORT = 9  # discard: nobody listens
VARIANTS = ("none", "live", "dead")


class ToldServer(OursServer):
    """A server whose application subscribes to what becomes of firmware upgrades."""

    name = "openiodm-notices"

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "OPENIODM_CALLBACK_ALLOW": "127.0.0.1"}

    def subscribe(self, port: int) -> None:
        for notify_type in TYPES:
            body = {"notifyType": notify_type, "callbackUrl": f"http://127.0.0.1:{port}/"}
            self.ask("POST", "/iodm/app/sub/v1.1.0/subscribe", body, self.token)

    def fill(self, devices: int) -> None:
        """Notices of devices that are none, as if they had been waiting."""
        database = sqlite3.connect(self.run / "data" / "openiodm.db", timeout=60)
        now = int(time.time() * 1000)
        rows = ((10**9 + n, json.dumps({"n": n, "filler": "x" * 250}), now, now) for n in range(devices))
        with database:
            database.executemany(
                "INSERT INTO notice (subscription_id, device_id, body, created_at, pending_since, attempts) "
                "VALUES ((SELECT min(id) FROM subscription), ?, ?, ?, ?, 0)",
                rows,
            )
        database.close()

    def waiting(self) -> int:
        found = self.ask("GET", "/api/v1/subscriptions", headers=self.token)
        return sum(item["pending"] for item in found["items"])


# --- the live receiver: a process of its own ------------------------------------------------------------------------
class _Peer(asyncio.Protocol):
    """Answers every request with 200 and counts; GET tells how many there were."""

    taken = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            if head.startswith(b"get"):
                body = str(_Peer.taken).encode()
            else:
                _Peer.taken += 1
                body = b"ok"
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


async def _receive() -> None:
    server = await asyncio.get_running_loop().create_server(_Peer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class LiveReceiver:
    """Runs while it is entered."""

    def __enter__(self) -> Self:
        command = ["taskset", "-c", str(GENERATOR_CORE), sys.executable, __file__, "--receive"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def taken(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=10) as answer:
            return int(answer.read())


# --- a round ----------------------------------------------------------------------------------------------------------
def measure(server: ToldServer, variant: str, options: argparse.Namespace, artifact: Path) -> dict[str, float]:
    server.reset()
    server.start()
    try:
        with LiveReceiver() as receiver:
            server.prepare(options.devices, artifact)
            if variant != "none":
                server.subscribe(receiver.port if variant == "live" else DEAD_PORT)
            if variant == "dead":
                server.fill(options.backlog)
            server.offer_to_all()
            time.sleep(1.0)
            began = time.monotonic()
            got = server.load("cycle", "--devices", str(options.devices), "--concurrency", "16")
            if got["updates"] != options.devices:
                raise BenchError(f"{got['updates']} of {options.devices} devices were updated")
            result = {"updates_per_s": got["updates_per_s"], "rss_mib": got["server"]["rss_mib"]}
            if variant == "live":
                result |= delivered(server, receiver, options.devices, began)
            return result
    finally:
        server.stop()


def delivered(server: ToldServer, receiver: LiveReceiver, devices: int, began: float) -> dict[str, float]:
    """Waits until nothing is left, and checks that all of it has come."""
    during = receiver.taken()
    while server.waiting():
        if time.monotonic() - began > 600:
            raise BenchError(f"{server.waiting()} notices are left after ten minutes")
        time.sleep(0.2)
    taken, seconds = receiver.taken(), time.monotonic() - began
    if taken < NOTICES_A_DEVICE * devices:
        raise BenchError(f"{taken} notices came, of {NOTICES_A_DEVICE * devices}")
    return {"notices": taken, "notices_during": during, "all_delivered_after_s": round(seconds, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--devices", type=int, default=1500)
    parser.add_argument("--backlog", type=int, default=BACKLOG)
    parser.add_argument("--port", type=int, default=18_763)
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.receive:
        asyncio.run(_receive())
        return 0
    commands: list[str] = []
    server = ToldServer(options.port, commands)
    server.setup()
    artifact = make_artifact(WORK / "notices.swu", "V2", 1)
    rounds: list[dict[str, dict[str, float]]] = []
    for number in range(options.rounds):
        order = VARIANTS[number % 3 :] + VARIANTS[: number % 3]
        found = {variant: measure(server, variant, options, artifact) for variant in order}
        say(f"round {number + 1}: " + ", ".join(f"{v} {found[v]['updates_per_s']:.0f}/s" for v in VARIANTS))
        rounds.append(found)
    ratio = {
        v: round(statistics.median(r[v]["updates_per_s"] / r["none"]["updates_per_s"] for r in rounds), 3)
        for v in ("live", "dead")
    }
    report = {
        "machine": machine(),
        "cores": len(CORES),
        "devices": options.devices,
        "backlog": options.backlog,
        "ratio": ratio,
        "target": TARGET,
        "rounds": rounds,
        "commands": commands,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    say(f"whole updates beside those without a subscriber: live {ratio['live']}, dead {ratio['dead']}")
    return 0 if min(ratio.values()) >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
