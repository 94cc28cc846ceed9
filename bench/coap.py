"""Blocks of a firmware by CoAP: our endpoint, plain and by DTLS, beside aiocoap's server, in one run.

    python bench/coap.py [--quick]

Each server is a process of its own on the first core; one process that asks is on the last. What is compared is the
server's CPU time per answer: the asking side is Python too and the bottleneck, so the rate seen says little. Every
block that comes is compared with the file. Writes results/coap.json; ends with 1 when a target is missed.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import mmap
import os
import platform
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "coap.json"
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, CLIENT_CORE = CORES[0], CORES[-1]
HOST = "127.0.0.1"
KEY = b"0123456789abcdef"
FIRMWARE_BYTES = 500_000
FIRMWARE = hashlib.shake_256(b"firmware").digest(FIRMWARE_BYTES)
TARGETS = {"plain": 25_000, "dtls": 10_000}  # answers of CPU capacity a second, blocks of 1,024 bytes
CBC, CCM8 = "PSK-AES128-CBC-SHA256", "PSK-AES128-CCM8"
REPEAT_S = 2.0


class BenchError(Exception):
    """The run cannot go on; the message says why."""


# The servers.


def serve_ours(secure: bool) -> None:
    import uvloop

    from openiodm.clock import SteadyClock, random_bytes
    from openiodm.protocols.coap.blocks import serve
    from openiodm.protocols.coap.carrier import Peer
    from openiodm.protocols.coap.codec import Code, Message
    from openiodm.protocols.coap.dtls import Context
    from openiodm.protocols.coap.endpoint import Endpoint
    from openiodm.protocols.coap.udp import UdpSocket

    with tempfile.TemporaryFile() as file:
        file.write(FIRMWARE)
        file.flush()
        body = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

        def handle(_peer: Peer, request: Message) -> Message:
            if request.path == ("fw",):
                return serve(request, body, b"v1")
            return Message(Code.CONTENT, payload=b"22.3 C") if request.path == ("small",) else Message(Code.NOT_FOUND)

        async def run() -> None:
            udp = UdpSocket(HOST, 0)
            context = Context(lambda _identity: KEY, secret=random_bytes(32)) if secure else None
            clock = SteadyClock()
            endpoint = Endpoint(
                udp.transmit, handle, lambda _p, _m: False, clock=clock, chance=random_bytes, dtls=context
            )
            udp.start(endpoint)
            print(udp.address[1], flush=True)
            await asyncio.Event().wait()

        uvloop.run(run())


def serve_aiocoap() -> None:
    """Blocks are cut here, as its own block layer would keep a copy of the file for each client."""
    import aiocoap
    import aiocoap.resource

    class Firmware(aiocoap.resource.Resource):
        async def needs_blockwise_assembly(self, request: aiocoap.Message) -> bool:
            return False

        async def render_get(self, request: aiocoap.Message) -> aiocoap.Message:
            asked = request.opt.block2
            number, exponent = (asked.block_number, asked.size_exponent) if asked else (0, 6)
            start = number << exponent + 4
            end = start + (16 << exponent)
            answer = aiocoap.Message(code=aiocoap.CONTENT, payload=FIRMWARE[start:end])
            answer.opt.block2 = (number, end < FIRMWARE_BYTES, exponent)
            answer.opt.etag = b"v1"
            return answer

    class Small(aiocoap.resource.Resource):
        async def render_get(self, request: aiocoap.Message) -> aiocoap.Message:
            return aiocoap.Message(code=aiocoap.CONTENT, payload=b"22.3 C")

    async def run() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        site = aiocoap.resource.Site()
        site.add_resource(["fw"], Firmware())
        site.add_resource(["small"], Small())
        await aiocoap.Context.create_server_context(site, bind=(HOST, port), transports=["simplesocketserver"])
        print(port, flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


class Server:
    """A server process on its core."""

    def __init__(self, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "serve", kind], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.strip():
            raise BenchError(f"the server {kind} did not start")
        self.port = int(line)
        os.sched_setaffinity(self.process.pid, {SERVER_CORE})

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_kib(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise BenchError("the server has gone")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


# Who asks.


class Client:
    """One device: a socket with one request under way."""

    def __init__(self, port: int, suite: str | None, connector: Any, szx: int) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect((HOST, port))
        self.session = None
        self.szx = szx
        self.count = (FIRMWARE_BYTES + (16 << szx) - 1) >> szx + 4
        self.num = 0
        self.mid = 0
        self.rounds = 0
        self.sent_at = 0.0
        self.request = b""
        if suite is not None:
            self._shake(connector)
        self.socket.setblocking(False)

    def _shake(self, connector: Any) -> None:
        self.session, out = connector.connect("bench", KEY)
        self.socket.settimeout(REPEAT_S)
        for _ in range(20):
            if out:
                self.socket.send(out)
            if self.session.established:
                return
            try:
                datagram = self.socket.recv(4096)
            except TimeoutError:
                out = self.session.tick()
                continue
            _, out, alive = self.session.feed(datagram)
            if not alive:
                raise BenchError("a handshake was refused")
        raise BenchError("a handshake did not come to its end")

    def ask(self, small: bool) -> None:
        self.mid = (self.mid + 1) & 0xFFFF
        head = bytes((0x44, 1, self.mid >> 8, self.mid & 0xFF)) + b"tokn"
        if small:
            self.request = head + b"\xb5small"
        else:
            value = (self.num << 4 | self.szx).to_bytes(3, "big").lstrip(b"\0")
            self.request = head + b"\xb2fw" + bytes((0xC0 | len(value),)) + value
        self.send()

    def send(self) -> None:
        self.sent_at = time.perf_counter()
        datagram = self.request if self.session is None else self.session.seal(self.request)
        with contextlib.suppress(BlockingIOError):  # it will be repeated
            self.socket.send(datagram)

    def take(self, small: bool) -> bool:
        """Is what came the answer? Compared with the file."""
        datagram = self.socket.recv(4096)
        if self.session is not None:
            plaintexts, _, _ = self.session.feed(datagram)
            if not plaintexts:
                return False
            datagram = plaintexts[0]
        if datagram[1] != 0x45 or (datagram[2] << 8 | datagram[3]) != self.mid:
            return False
        payload = datagram[datagram.index(b"\xff", 8) + 1 :]
        start = self.num << self.szx + 4
        if payload != (b"22.3 C" if small else FIRMWARE[start : start + (16 << self.szx)]):
            raise BenchError(f"wrong bytes in block {self.num}")
        self.num += 1
        if self.num >= self.count:
            self.num = 0
            self.rounds += 1
        return True


def load(clients: list[Client], small: bool, stop: Callable[[float], bool]) -> tuple[int, int]:
    """Answers, and requests that had to be sent again."""
    poll = select.epoll()
    by_fd = {client.socket.fileno(): client for client in clients}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    for client in clients:
        client.ask(small)
    answers = repeats = 0
    looked_at = time.perf_counter()
    while True:
        for fd, _ in poll.poll(0.5):
            client = by_fd[fd]
            if client.take(small):
                answers += 1
                client.ask(small)
        now = time.perf_counter()
        if now - looked_at > 0.2:
            looked_at = now
            for client in clients:
                if now - client.sent_at > REPEAT_S:
                    repeats += 1
                    client.send()
        if stop(now):
            poll.close()
            return answers, repeats


def open_clients(server: Server, count: int, suite: str | None, szx: int) -> list[Client]:
    from openiodm.protocols.coap.dtls import Connector

    connector = None if suite is None else Connector((suite,))
    return [Client(server.port, suite, connector, szx) for _ in range(count)]


def close(clients: list[Client]) -> None:
    for client in clients:
        client.socket.close()


def measure(kind: str, suite: str | None, what: str, seconds: float) -> dict[str, Any]:
    """CPU time per answer of a server, of 32 devices that ask one after the other each."""
    small, szx = what == "small", 5 if what == "block 512" else 6
    server = Server(kind)
    try:
        clients = open_clients(server, 32, suite, szx)
        load(clients, small, _after(0.5))
        cpu, began = server.cpu_s(), time.perf_counter()
        answers, repeats = load(clients, small, _after(seconds))
        took, cpu = time.perf_counter() - began, server.cpu_s() - cpu
        close(clients)
    finally:
        server.stop()
    return {
        "server": kind,
        "suite": suite,
        "what": what,
        "answers": answers,
        "repeats": repeats,
        "seen_per_s": round(answers / took),
        "cpu_us_per_answer": round(cpu / answers * 1e6, 1),
        "capacity_per_s": round(answers / cpu),
    }


def _after(seconds: float) -> Callable[[float], bool]:
    until = time.perf_counter() + seconds
    return lambda now: now > until


def parallel(kind: str, suite: str | None, count: int) -> dict[str, Any]:
    """So many devices download the whole file at once."""
    server = Server(kind)
    try:
        clients = open_clients(server, count, suite, 6)
        cpu, began = server.cpu_s(), time.perf_counter()
        answers, repeats = load(clients, False, lambda _now: all(client.rounds for client in clients))
        took, cpu, rss = time.perf_counter() - began, server.cpu_s() - cpu, server.rss_kib()
        close(clients)
    finally:
        server.stop()
    return {
        "server": kind,
        "suite": suite,
        "downloads": count,
        "bytes_each": FIRMWARE_BYTES,
        "answers": answers,
        "repeats": repeats,
        "took_s": round(took, 1),
        "server_cpu_s": round(cpu, 1),
        "rss_mib": round(rss / 1024),
    }


def idle_sessions(count: int, suite: str) -> dict[str, Any]:
    """Memory and CPU time of sessions that shook hands, asked once and are silent."""
    server = Server("dtls")
    try:
        close(open_clients(server, 10, suite, 6))
        cpu, rss = server.cpu_s(), server.rss_kib()
        clients = open_clients(server, count, suite, 6)
        cpu, rss = server.cpu_s() - cpu, server.rss_kib() - rss
        close(clients)
    finally:
        server.stop()
    return {
        "suite": suite,
        "sessions": count,
        "kib_per_session": round(rss / count, 1),
        "cpu_ms_per_handshake": round(cpu / count * 1000, 2),
    }


def run(quick: bool) -> int:
    os.sched_setaffinity(0, {CLIENT_CORE})
    seconds = 2.0 if quick else 4.0
    rounds = 1 if quick else 3
    rates: list[dict[str, Any]] = []
    for number in range(rounds):
        for kind, suite in (("plain", None), ("dtls", CBC), ("dtls", CCM8), ("aiocoap", None)):
            for what in ("small", "block 512", "block 1024"):
                figure = {"round": number, **measure(kind, suite, what, seconds)}
                rates.append(figure)
                name = f"{kind} {suite or ''}".strip()
                print(
                    f"{name:30} {what:11} {figure['cpu_us_per_answer']:7} us of CPU an answer, "
                    f"{figure['capacity_per_s']:7}/s a core, {figure['seen_per_s']:6}/s seen",
                    flush=True,
                )
    idle = [idle_sessions(200 if quick else 2_000, suite) for suite in (CBC, CCM8)]
    for figure in idle:
        print(figure, flush=True)
    crowd = 100 if quick else 1_000
    downloads = [parallel(kind, suite, crowd) for kind, suite in (("plain", None), ("dtls", CBC))]
    downloads.append(parallel("aiocoap", None, 100))  # a thousand would take it minutes, and gigabytes
    for figure in downloads:
        print(figure, flush=True)
    capacity = {kind: _median(rates, kind, "block 1024") for kind in ("plain", "dtls", "aiocoap")}
    met = {kind: capacity[kind] >= least for kind, least in TARGETS.items()}
    result = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {len(CORES)} cores",
        "quick": quick,
        "capacity_per_s": capacity,
        "times_aiocoap": {kind: round(capacity[kind] / capacity["aiocoap"], 1) for kind in TARGETS},
        "targets_per_s": TARGETS,
        "met": met,
        "rates": rates,
        "idle_sessions": idle,
        "parallel_downloads": downloads,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: result[name] for name in ("capacity_per_s", "times_aiocoap", "met")}))
    return 0 if all(met.values()) else 1


def _median(rates: list[dict[str, Any]], kind: str, what: str) -> int:
    """Of DTLS, that of the slower suite."""
    by_suite: dict[Any, list[int]] = {}
    for figure in rates:
        if figure["server"] == kind and figure["what"] == what:
            by_suite.setdefault(figure["suite"], []).append(figure["capacity_per_s"])
    return min(sorted(found)[len(found) // 2] for found in by_suite.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it works")
    parser.add_argument("serve", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        kind = arguments.serve[1]
        if kind == "aiocoap":
            serve_aiocoap()
        else:
            serve_ours(secure=kind == "dtls")
        return 0
    try:
        return run(arguments.quick)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
