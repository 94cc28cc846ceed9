#!/usr/bin/env python3
"""Load client for any update server that speaks hawkBit's DDI (device) API; standard library, uvloop when it is there.

Every path is a parameter, so the same load goes on any such server in one run. It talks to loopback addresses only, and
every run is bounded by --duration, --count or --devices. The generator is one process on one core: the rate loop
(`poll`, `feedback`) sends requests built beforehand and answers each reply from the protocol's callback, without a task
or future in between. `ceiling` shows how much that is.

Modes
  register   GET poll, follow _links.configData, PUT attributes                     (each device once)
  poll       GET --path, round robin over the devices                               (for --duration)
  feedback   POST "proceeding" to each device's own open action, which it has begun (for --duration)
  cycle      one whole update: poll, deploymentBase, one byte of the artifact,
             proceeding, proceeding, closed/success                                 (each device once)
  download   GET the artifact of each device's open action, --concurrency at once   (--count times)
  startup    start --cmd --count times: seconds from spawn to the first HTTP answer on --path
  ceiling    the rate loop against a responder that does nothing, on core 0: the generator's own limit

Placeholders in --path, --header and --attributes: {id} the device id ("bench-000042"), {n} its number.
Each mode prints one JSON object on one line. The exit code is 1 if anything but 2xx came back.
"""

import argparse
import asyncio
import contextlib
import hashlib
import ipaddress
import json
import os
import resource
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

try:
    import uvloop

    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
except ImportError:
    new_event_loop = asyncio.new_event_loop

HEAD_END = b"\r\n\r\n"
FIRST_BYTE = ("Range: bytes=0-0",)
RECEIVE_BYTES = 1 << 20


@dataclass(slots=True, frozen=True)
class Reply:
    """One answer; `body` is whole."""

    status: int
    head: bytes
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Wire(asyncio.Protocol):
    """A keep-alive HTTP/1.1 connection with one request under way; `on_reply` gets each answer, None if it was cut."""

    def __init__(self, on_reply: Callable[["Wire", Reply | None], None]) -> None:
        self.on_reply = on_reply
        self.transport: asyncio.Transport
        self.closed = False
        self.pending = False
        self.buffer = b""
        self.expected = 0  # length of head and body together once the head is in; 0: unknown

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.pending:
            self.pending = False
            self.on_reply(self, None)

    def send(self, raw: bytes) -> None:
        self.pending = True
        self.transport.write(raw)

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data if self.buffer else data
        if len(buffer) < self.expected:
            self.buffer = buffer
            return
        end = buffer.find(HEAD_END)
        if end < 0:
            self.buffer = buffer
            return
        head = buffer[:end].lower()
        status = int(head[9:12])
        if 100 <= status < 200:
            self.buffer = b""
            self.data_received(buffer[end + 4 :])
            return
        body_at = end + 4
        at = head.find(b"\ncontent-length:")
        if at >= 0:
            stop = head.find(b"\r", at)
            length = int(head[at + 16 : stop if stop >= 0 else end])
            if len(buffer) < body_at + length:
                self.buffer, self.expected = buffer, body_at + length
                return
            body = buffer[body_at : body_at + length]
        elif b"\ntransfer-encoding: chunked" in head:
            whole = unchunk(buffer[body_at:])
            if whole is None:
                self.buffer = buffer
                return
            body = whole
        else:
            body = b""  # 204 and 304; a body that ends with the connection is nothing DDI has
        self.buffer, self.expected, self.pending = b"", 0, False
        if b"\nconnection: close" in head:
            self.closed = True
            self.transport.close()
        self.on_reply(self, Reply(status, head, body))


def unchunk(data: bytes) -> bytes | None:
    """The body of a chunked message, None if its end has not come yet."""
    body, at = b"", 0
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line].split(b";")[0], 16)
        if len(data) < line + size + 4:
            return None
        if size == 0:
            return body
        body += data[line + 2 : line + 2 + size]
        at = line + size + 4
    return None


class Connection:
    """A Wire for tasks: `call` sends and waits, and opens it again when the server has closed it."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.wire: Wire | None = None
        self.reply: asyncio.Future[Reply | None] | None = None

    async def call(self, raw: bytes) -> Reply | None:
        loop = asyncio.get_running_loop()
        for _ in range(2):
            fresh = self.wire is None or self.wire.closed
            if fresh:
                try:
                    _, self.wire = await loop.create_connection(lambda: Wire(self._answer), self.host, self.port)
                except OSError:
                    return None
            assert self.wire
            self.reply = loop.create_future()
            self.wire.send(raw)
            if (reply := await self.reply) or fresh:
                return reply
        return None

    def _answer(self, _: Wire, reply: Reply | None) -> None:
        if self.reply and not self.reply.done():
            self.reply.set_result(reply)

    def close(self) -> None:
        if self.wire:
            self.wire.transport.close()


@dataclass(slots=True)
class Stats:
    """What came back: seconds of each answer, answers by status, requests without an answer."""

    seconds: list[float] = field(default_factory=list)
    status: dict[int, int] = field(default_factory=dict)
    cut: int = 0

    def add(self, seconds: float, reply: Reply | None) -> None:
        if reply is None:
            self.cut += 1
        else:
            self.seconds.append(seconds)
            self.status[reply.status] = self.status.get(reply.status, 0) + 1

    @property
    def bad(self) -> bool:
        return bool(self.cut) or not self.status or any(not 200 <= status < 300 for status in self.status)

    def report(self, wall: float) -> dict[str, Any]:
        ordered = sorted(self.seconds)

        def quantile(share: float) -> float | None:
            return round(ordered[round(share * (len(ordered) - 1))] * 1000, 2) if ordered else None

        return {
            "requests": len(ordered),
            "cut": self.cut,
            "status": {str(status): count for status, count in sorted(self.status.items())},
            "wall_s": round(wall, 3),
            "per_s": round(len(ordered) / wall, 1) if wall else None,
            "ms": {"p50": quantile(0.5), "p95": quantile(0.95), "p99": quantile(0.99), "max": quantile(1)},
        }


def process_tree(pid: int) -> list[int]:
    """`pid` and its descendants: a server may run several workers."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        todo += children.get(one, [])
    return found


def usage(pid: int) -> dict[str, float]:
    """Memory now, its high-water mark and CPU seconds so far, of the process and its descendants."""
    rss = peak = ticks = 0
    for one in process_tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/status").read_text().splitlines():
                if line.startswith("VmRSS"):
                    rss += int(line.split()[1])
                elif line.startswith("VmHWM"):
                    peak += int(line.split()[1])
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return {
        "rss_mib": round(rss / 1024, 1),
        "peak_mib": round(peak / 1024, 1),
        "cpu_s": ticks / os.sysconf("SC_CLK_TCK"),
    }


def machine_ticks() -> tuple[int, int, int]:
    """All ticks of the machine since its start, those of them idle, those stolen by other guests."""
    values = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(values), values[3] + values[4], values[7]


def build(method: str, path: str, host: str, headers: list[str], body: bytes = b"") -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}",
        "User-Agent: ddi-load",
        "Accept: application/hal+json",
        *headers,
    ]
    if method in ("POST", "PUT"):
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def local(href: str) -> str:
    """A link's path and query: whatever host it names, it is fetched from the one under test."""
    parts = urlsplit(href)
    return parts.path + (f"?{parts.query}" if parts.query else "")


def feedback(action: str, execution: str, finished: str, note: str) -> bytes:
    result = {"execution": execution, "result": {"finished": finished}, "details": [note]}
    return json.dumps({"id": action, "status": result}).encode()


class Load:
    """One run against one server."""

    def __init__(self, options: argparse.Namespace) -> None:
        base = urlsplit(options.base)
        host = base.hostname or ""
        if base.scheme != "http" or (host != "localhost" and not ipaddress.ip_address(host).is_loopback):
            sys.exit("refusing: only http to a loopback address")
        self.options, self.host, self.port = options, host, base.port or 80
        self.stats, self.extra = Stats(), dict[str, Any]()

    # --- requests -----------------------------------------------------------------------------------------------
    def fill(self, template: str, n: int) -> str:
        return template.replace("{id}", f"bench-{n:06d}").replace("{n}", str(n))  # JSON's own braces stay

    def request(self, method: str, path: str, n: int, body: bytes = b"", extra: tuple[str, ...] = ()) -> bytes:
        headers = [*(self.fill(header, n) for header in self.options.header), *extra]
        return build(method, path, f"{self.host}:{self.port}", headers, body)

    def poll_request(self, n: int) -> bytes:
        return self.request("GET", self.fill(self.options.path, n), n)

    async def call(
        self, to: Connection, n: int, method: str, path: str, body: bytes = b"", extra: tuple[str, ...] = ()
    ) -> Reply | None:
        """A measured call; None unless it was a 2xx."""
        raw = self.request(method, path, n, body, extra)
        began = time.perf_counter()
        reply = await to.call(raw)
        self.stats.add(time.perf_counter() - began, reply)
        return reply if reply and 200 <= reply.status < 300 else None

    # --- two ways to put load ---------------------------------------------------------------------------------
    async def at_rate(self, requests: list[bytes]) -> float:
        """The requests round robin over --concurrency connections, until --duration is over."""
        options, loop = self.options, asyncio.get_running_loop()
        turn, total, clock = 0, len(requests), time.perf_counter
        sent: dict[Wire, float] = {}
        open_wires = options.concurrency
        done = loop.create_future()
        seconds, status = list[float](), dict[int, int]()
        end = clock() + options.warmup
        cut = 0

        def next_on(wire: Wire) -> None:
            nonlocal turn
            raw = requests[turn % total]
            turn += 1
            sent[wire] = clock()
            wire.send(raw)

        def answered(wire: Wire, reply: Reply | None) -> None:
            nonlocal open_wires, cut
            now = clock()
            if reply is None or wire.closed:
                cut += reply is None
                open_wires -= 1  # a server that closes under load is reported, not helped
            else:
                seconds.append(now - sent[wire])
                status[reply.status] = status.get(reply.status, 0) + 1
                if now < end:
                    next_on(wire)
                    return
                open_wires -= 1
            if not open_wires:
                done.set_result(None)

        wires = [
            (await loop.create_connection(lambda: Wire(answered), self.host, self.port))[1]
            for _ in range(options.concurrency)
        ]
        if options.warmup:
            for wire in wires:
                next_on(wire)
            await done
            done, open_wires = loop.create_future(), len(wires)
            if cut:
                sys.exit("the server closed connections while warming up")
            seconds.clear()
            status.clear()
        self.mark()
        began = clock()
        end = began + options.duration
        for wire in wires:
            next_on(wire)
        await done
        wall = clock() - began
        for wire in wires:
            wire.transport.close()
        self.stats = Stats(seconds, status, cut)
        return wall

    async def each_device(self, one: Callable[[Connection, int], Awaitable[None]]) -> float:
        """`one` for each device, --concurrency at once."""
        numbers = iter(self.numbers())

        async def worker() -> None:
            connection = Connection(self.host, self.port)
            for n in numbers:
                await one(connection, n)
            connection.close()

        self.mark()
        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(self.options.concurrency)))
        return time.perf_counter() - began

    def numbers(self) -> range:
        first, step = self.options.first, self.options.stride
        return range(first, first + step * self.options.devices, step)

    def mark(self) -> None:
        """The measured part begins here."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        self.marked = (
            machine_ticks(),
            own.ru_utime + own.ru_stime,
            usage(self.options.pid) if self.options.pid else None,
        )

    # --- modes --------------------------------------------------------------------------------------------------
    async def poll(self) -> float:
        return await self.at_rate([self.poll_request(n) for n in self.numbers()])

    async def feedback(self) -> float:
        requests = list[bytes]()

        async def one(connection: Connection, n: int) -> None:
            reply = await connection.call(self.poll_request(n))
            if reply is None or "deploymentBase" not in reply.json().get("_links", {}):
                sys.exit(f"device {n} has no open action")
            path = urlsplit(reply.json()["_links"]["deploymentBase"]["href"]).path
            body = feedback(path.rsplit("/", 1)[1], "proceeding", "none", "step")
            requests.append(self.request("POST", f"{path}/feedback", n, body))
            # The one that begins the attempt is another kind of work: it is not counted.
            first = await connection.call(requests[-1])
            if first is None or first.status != 200:
                sys.exit(f"device {n} was not heard: {first}")

        await self.each_device(one)
        return await self.at_rate(requests)

    async def register(self) -> float:
        sent = 0

        async def one(connection: Connection, n: int) -> None:
            nonlocal sent
            reply = await self.call(connection, n, "GET", self.fill(self.options.path, n))
            if reply and (link := reply.json().get("_links", {}).get("configData")):
                attributes = json.loads(self.fill(self.options.attributes, n))
                # the members beside mode and data are what SWUpdate sends, and goosebit insists on them
                status = {"result": {"finished": "success"}, "execution": "closed", "details": []}
                body = json.dumps({"mode": "merge", "data": attributes, "id": "", "status": status}).encode()
                sent += await self.call(connection, n, "PUT", local(link["href"]), body) is not None

        wall = await self.each_device(one)
        self.extra = {"config_data": sent}
        return wall

    async def cycle(self) -> float:
        done = idle = 0

        async def one(connection: Connection, n: int) -> None:
            nonlocal done, idle
            polled = await self.call(connection, n, "GET", self.fill(self.options.path, n))
            link = polled and polled.json().get("_links", {}).get("deploymentBase")
            if not link:
                idle += 1
                return
            offer = await self.call(connection, n, "GET", local(link["href"]))
            if not offer:
                return
            await self.call(connection, n, "GET", artifact_of(offer)[0], extra=FIRST_BYTE)
            path, action = urlsplit(link["href"]).path + "/feedback", str(offer.json()["id"])
            last = None
            for execution, finished, note in (
                ("proceeding", "none", "Update started"),
                ("proceeding", "none", "Installing artifacts"),
                ("closed", "success", "Done"),
            ):
                last = await self.call(connection, n, "POST", path, feedback(action, execution, finished, note))
            done += last is not None

        wall = await self.each_device(one)
        self.extra = {"updates": done, "not_offered": idle, "updates_per_s": round(done / wall, 1)}
        return wall

    async def download(self) -> float:
        """Threads with blocking sockets: the cheapest way to take bytes, so that the server's speed is what shows."""
        options = self.options
        requests = list[bytes]()
        for n in range(options.first, options.first + options.concurrency):
            connection = Connection(self.host, self.port)
            polled = await connection.call(self.poll_request(n))
            link = polled and polled.json().get("_links", {}).get("deploymentBase")
            if not link:
                sys.exit(f"device {n} has no open action")
            offer = await connection.call(self.request("GET", local(link["href"]), n))
            assert offer
            path, hashes = artifact_of(offer)
            requests.append(self.request("GET", path, n))
            if options.verify and n == options.first:
                whole = await connection.call(requests[0])
                assert whole
                self.extra["hashes_match"] = {
                    name: hashlib.new(name, whole.body).hexdigest() == value for name, value in hashes.items() if value
                }
                del whole
            connection.close()
        left, got = iter(range(options.count)), [0] * options.concurrency

        def fetch(worker: int) -> None:
            buffer = memoryview(bytearray(RECEIVE_BYTES))
            with socket.create_connection((self.host, self.port)) as peer:
                for _ in left:
                    began = time.perf_counter()
                    status, size = receive(peer, requests[worker], buffer)
                    self.stats.add(time.perf_counter() - began, Reply(status, b"", b""))
                    got[worker] += size

        self.mark()
        began = time.perf_counter()
        threads = [threading.Thread(target=fetch, args=(worker,)) for worker in range(options.concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        wall = time.perf_counter() - began
        self.extra |= {"bytes": sum(got), "mb_per_s": round(sum(got) / 1e6 / wall, 1)}
        return wall

    async def startup(self) -> float:
        """Not a rate: the times are in `startup_s`."""
        options = self.options
        times, rss = list[float](), list[float]()
        self.mark()
        with Path(options.cmd_log).open("ab") as log:  # noqa: ASYNC230 - nothing else runs on this loop
            for _ in range(options.count):
                began = time.perf_counter()
                server = subprocess.Popen(shlex.split(options.cmd), stdout=log, stderr=log)  # noqa: ASYNC220 - ditto
                try:
                    while server.poll() is None and time.perf_counter() - began < 60:
                        connection = Connection(self.host, self.port)
                        if reply := await connection.call(self.poll_request(options.first)):
                            times.append(time.perf_counter() - began)
                            rss.append(usage(server.pid)["rss_mib"])
                            self.stats.add(times[-1], Reply(200, reply.head, b""))  # a 401 is an answer too
                            connection.close()
                            break
                        await asyncio.sleep(0.005)
                    else:
                        sys.exit("the server did not come up")
                finally:
                    server.terminate()
                    server.wait(30)
        times.sort()
        self.extra = {
            "startup_s": [round(t, 3) for t in times],
            "startup_median_s": round(times[len(times) // 2], 3),
            "rss_mib": rss,
        }
        return sum(times)

    async def ceiling(self) -> float:
        """Its own responder on a free port of the same address."""
        with socket.create_server((self.host, 0)) as listener:
            self.port = listener.getsockname()[1]
            child = os.fork()
            if child == 0:
                responder(listener)
                os._exit(0)
        try:
            return await self.poll()
        finally:
            os.kill(child, 15)
            os.waitpid(child, 0)  # noqa: ASYNC222 - it was just killed


def artifact_of(offer: Reply) -> tuple[str, dict[str, str]]:
    """Path and hashes of the first artifact of a deploymentBase."""
    artifact = offer.json()["deployment"]["chunks"][0]["artifacts"][0]
    links = artifact["_links"]
    return local((links.get("download") or links["download-http"])["href"]), artifact["hashes"]


def receive(peer: socket.socket, raw: bytes, buffer: memoryview) -> tuple[int, int]:
    """Send, and read one answer with a Content-Length into nowhere: status and length of its body."""
    peer.sendall(raw)
    got = head_end = 0
    while not head_end:
        got += peer.recv_into(buffer[got:])
        head_end = bytes(buffer[:got]).find(HEAD_END) + 4 if HEAD_END in bytes(buffer[:got]) else 0
    head = bytes(buffer[:head_end]).lower()
    length = int(head.split(b"\ncontent-length:", 1)[1].split(b"\r", 1)[0])
    left = length - (got - head_end)
    while left > 0:
        size = peer.recv_into(buffer)
        if not size:
            return 0, length - left
        left -= size
    return int(head[9:12]), length


def responder(listener: socket.socket) -> None:
    """Answers every request with the same idle poll, as cheaply as Python can."""
    body = b'{"config":{"polling":{"sleep":"00:01:00"}}}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/hal+json\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    class Responder(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.write = transport.write  # type: ignore[attr-defined]

        def data_received(self, _: bytes) -> None:
            self.write(answer)

    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {0})
    loop = new_event_loop()
    loop.run_until_complete(loop.create_server(Responder, sock=listener))
    loop.run_forever()


async def measure(options: argparse.Namespace) -> int:
    load = Load(options)
    wall = await getattr(load, options.mode)()
    (total0, idle0, steal0), own0, server0 = load.marked
    total1, idle1, steal1 = machine_ticks()
    own = resource.getrusage(resource.RUSAGE_SELF)
    own_s = own.ru_utime + own.ru_stime - own0
    result = {
        "label": options.label or options.mode,
        "mode": options.mode,
        "devices": options.devices,
        "concurrency": options.concurrency,
        **load.stats.report(wall),
        **load.extra,
        "generator_cpu_s": round(own_s, 2),
    }
    server_s = 0.0
    if options.pid and server0:
        server1 = usage(options.pid)
        server_s = server1["cpu_s"] - server0["cpu_s"]
        result["server"] = {
            "rss_mib_before": server0["rss_mib"],
            "rss_mib": server1["rss_mib"],
            "peak_mib": server1["peak_mib"],
            "cpu_s": round(server_s, 2),
        }
    all_s = (total1 - total0) / os.sysconf("SC_CLK_TCK")
    if all_s > 0.5 and options.mode != "ceiling":
        busy_s = all_s - (idle1 - idle0) / os.sysconf("SC_CLK_TCK")
        # What neither the server nor this client used, as a share of all cores: over some 10 the run was disturbed.
        result["others_pct"] = round(max(0.0, 100 * (busy_s - own_s - server_s) / all_s), 1)
        result["steal_pct"] = round(100 * (steal1 - steal0) / (total1 - total0), 1)
    print(json.dumps(result))
    return int(load.stats.bad)


def arguments() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "mode", {"choices": ["register", "poll", "feedback", "cycle", "download", "startup", "ceiling"]}
    yield "--base", {"default": "http://127.0.0.1:8743"}
    yield "--path", {"default": "/DEFAULT/controller/v1/{id}"}
    yield "--header", {"action": "append", "default": [], "help": "repeatable"}
    yield "--attributes", {"default": '{"hw_boardname":"bench","hw_revision":"1.0","sw_version":"1.0.0"}'}
    yield "--devices", {"type": int, "default": 1}
    yield "--first", {"type": int, "default": 0, "help": "number of the first device"}
    yield "--stride", {"type": int, "default": 1, "help": "from a device's number to the next one's"}
    yield "--concurrency", {"type": int, "default": 16, "help": "connections"}
    yield "--duration", {"type": float, "default": 10.0, "help": "seconds, 300 at most"}
    yield "--warmup", {"type": float, "default": 0.0, "help": "seconds before them, not counted"}
    yield "--count", {"type": int, "default": 10}
    yield "--verify", {"action": "store_true", "help": "download: check the published hashes once, before"}
    yield "--pid", {"type": int, "help": "of the server: its memory and CPU, children included"}
    yield "--core", {"type": int, "help": "run on this core alone"}
    yield "--cmd", {"help": "startup: the server's command line"}
    yield "--cmd-log", {"default": os.devnull}
    yield "--label", {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, how in arguments():
        parser.add_argument(name, **how)
    options = parser.parse_args()
    options.duration = min(options.duration, 300)
    if options.core is not None and options.mode != "startup":  # a child would inherit it
        os.sched_setaffinity(0, {options.core})
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(measure(options))


if __name__ == "__main__":
    sys.exit(main())
