#!/usr/bin/env python3
"""Large files: downloads through nginx beside nginx alone, an upload of 1 GiB, a thousand readers of ranges at once.

    python bench/files.py              some two minutes; writes bench/results/files.json
    python bench/files.py --quick      a small round of each, to see that it works

1. A 100 MB package in three ways that take turns: nginx with the file, nginx with the server behind it
   (X-Accel-Redirect), the server without nginx; 40 times by 1 connection, 8 times by 8. nginx (one worker) and the
   server share the first core, the generator has the last. A ratio is the median of the turns' ratios. CPU time is that
   of nginx and the server together: others who use the machine are not in it.
2. An upload of 1 GiB over the native API, and what it does to the server's memory.
3. A thousand connections that each ask for a range of 4 MiB of that file and read nothing until all have asked.
"""

import argparse
import contextlib
import json
import os
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from ddi_load import RECEIVE_BYTES, receive, usage
from machine import machine
from ours import PROBE, OursServer
from server import GENERATOR_CORE, HERE, SERVER_CORE, WORK, BenchError, make_artifact

RESULTS = HERE / "results" / "files.json"
OURS, NGINX = 18055, 18056  # ports
PROXY = "127.0.0.3"  # from here nginx asks: what the generator asks for directly comes from no trusted proxy
MEBI = 1024 * 1024
UPLOAD_BYTES = 1024 * MEBI
READERS, RANGE_BYTES = 1000, 4 * MEBI
GROWTH_TARGET_MIB, RATIO_TARGET = 50.0, 0.9
WAYS = ("nginx_alone", "nginx_in_front", "direct")

_NGINX = """\
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
{user}
worker_processes 1;
events {{ worker_connections 2048; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  scgi_temp_path {folder}/scgi;
  uwsgi_temp_path {folder}/uwsgi;
  upstream openiodm {{ server 127.0.0.1:{ours}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port};
    keepalive_requests 100000;
    sendfile on;
    tcp_nopush on;
    location /alone/ {{ alias {packages}/; }}
    location / {{
      proxy_pass http://openiodm;
      proxy_bind {proxy};
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
    }}
    location /packages/ {{
      internal;
      alias {packages}/;
      etag off;
      if_modified_since off;
      add_header ETag $upstream_http_etag;
      add_header Last-Modified $upstream_http_last_modified;
    }}
  }}
}}
"""


class Fronted(OursServer):
    """OpenIODM as it is set behind nginx."""

    def __init__(self, commands: list[str]) -> None:
        super().__init__(OURS, commands)

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "OPENIODM_TRUSTED_PROXIES": PROXY,
            "OPENIODM_ACCEL_PREFIX": "/packages/",
        }

    @property
    def packages(self) -> Path:
        return self.run / "data" / "packages"

    def image(self) -> str:
        """The path of the download that the first device was offered."""
        authorization = dict([self.headers[0].split(": ", 1)])
        links = self.ask("GET", self.path.replace("{id}", PROBE), headers=authorization)["_links"]
        offer = self.ask("GET", _local(links["deploymentBase"]["href"]), headers=authorization)
        (artifact,) = offer["deployment"]["chunks"][0]["artifacts"]
        return _local(artifact["_links"]["download-http"]["href"])

    def request(self, path: str, *headers: str) -> bytes:
        """A GET as a device sends it."""
        lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *self.headers, *headers, "", ""]
        return "\r\n".join(lines).encode()


def _local(url: str) -> str:
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")


@contextmanager
def nginx(packages: Path) -> Iterator[int]:
    """nginx on the server's core, in front of it and over its files; its process id.

    Raises:
        BenchError: there is none, or it does not start.
    """
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        raise BenchError("nginx is not installed: apt-get install nginx-light")
    folder = WORK / "nginx"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    user = "user root;" if os.geteuid() == 0 else ""
    text = _NGINX.format(folder=folder, user=user, ours=OURS, port=NGINX, proxy=PROXY, packages=packages)
    (folder / "nginx.conf").write_text(text)
    command = ["taskset", "-c", str(SERVER_CORE), program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen([*command, "-e", str(folder / "error.log")])
    try:
        end = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", NGINX)):
                yield process.pid
                return
            time.sleep(0.05)
        raise BenchError(f"nginx did not start: {(folder / 'error.log').read_text()}")
    finally:
        process.terminate()
        process.wait()


# --- downloads beside nginx -----------------------------------------------------------------------------------------
def rate(port: int, request: bytes, size: int, connections: int, count: int) -> float:
    """MB/s of `count` downloads; threads with blocking sockets, so that the server's speed is what shows.

    Raises:
        BenchError: an answer was not the whole file.
    """
    left, wrong = iter(range(count)), list[str]()

    def fetch() -> None:
        buffer = memoryview(bytearray(RECEIVE_BYTES))
        with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
            for _ in left:
                got = receive(peer, request, buffer)
                if got != (200, size):
                    wrong.append(f"status and size {got}")

    threads = [threading.Thread(target=fetch) for _ in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise BenchError(f"a download came to {wrong[0]} instead of 200 and {size}")
    return size * count / 1e6 / (time.perf_counter() - began)


def beside_nginx(server: Fronted, nginx_pid: int, artifact: Path, rounds: int) -> dict[str, Any]:
    """The three ways by turns, by 1 and by 8 connections. The server has the offer out."""
    size, image = artifact.stat().st_size, server.image()
    (stored,) = (file.relative_to(server.packages) for file in server.packages.glob("??/??/*"))
    requests = {
        "nginx_alone": (NGINX, server.request(f"/alone/{stored.as_posix()}")),
        "nginx_in_front": (NGINX, server.request(image)),
        "direct": (OURS, server.request(image)),
    }
    figures: dict[str, Any] = {}
    for connections, samples in ((1, 5 * rounds), (8, rounds)):
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        cpu = dict.fromkeys(WAYS, 0.0)
        for number in range(samples + 1):  # the first one warms up
            for way in WAYS if number % 2 else WAYS[::-1]:
                before = _cpu(server.pid, nginx_pid)
                got = rate(*requests[way], size, connections, connections)
                if number:
                    rates[way].append(got)
                    cpu[way] += _cpu(server.pid, nginx_pid) - before
        figures[f"{connections}_connections"] = {
            "mb_per_s": {way: round(statistics.median(many), 1) for way, many in rates.items()},
            "cpu_s_per_gb": {way: round(cpu[way] / (size * connections * samples / 1e9), 3) for way in WAYS},
            "to_nginx": {
                way: round(statistics.median(a / b for a, b in zip(rates[way], rates["nginx_alone"], strict=True)), 3)
                for way in WAYS[1:]
            },
        }
    return figures


def _cpu(*pids: int) -> float:
    """Seconds so far, of both servers: nobody else's work is in it."""
    return sum(usage(pid)["cpu_s"] for pid in pids)


def nginx_ratio(commands: list[str], *, megabytes: int = 100, rounds: int = 8) -> dict[str, Any]:
    """Downloads through nginx with us behind it, to nginx alone: `download_nginx` is the lower of 1 and 8 connections.

    Starts a server and an nginx of its own.

    Raises:
        BenchError: nginx or the server does not start, or an answer is wrong.
    """
    server = Fronted(commands)
    server.setup()
    server.reset()
    artifact = make_artifact(WORK / "4.0.0.swu", "4.0.0", megabytes)
    pinned = os.sched_getaffinity(0)
    server.start()
    try:
        server.prepare(1, artifact)
        server.offer_to_all()
        os.sched_setaffinity(0, {GENERATOR_CORE})
        with nginx(server.packages) as nginx_pid:
            figures = beside_nginx(server, nginx_pid, artifact, rounds)
    finally:
        os.sched_setaffinity(0, pinned)
        server.stop()
        server.reset()
        artifact.unlink()
    ratios = [figures[key]["to_nginx"]["nginx_in_front"] for key in ("1_connections", "8_connections")]
    return {"download_nginx": min(ratios), **figures}


# --- memory -----------------------------------------------------------------------------------------------------------
def from_here(server: Fronted) -> dict[str, float]:
    """The server's memory now, from where its high-water mark counts anew."""
    Path(f"/proc/{server.pid}/clear_refs").write_text("5")
    return usage(server.pid)


def upload(server: Fronted, size: int) -> dict[str, Any]:
    """One package of `size` bytes, from a file; rate and growth of the server's memory."""
    file = WORK / "5.0.0.swu"
    block = os.urandom(MEBI)
    with file.open("wb") as out:
        for number in range(size // MEBI):
            out.write(number.to_bytes(8, "big") + block[8:])
    query = {"type": "firmwarePackage", "name": "bench", "version": "5.0.0", **server.product}
    before = from_here(server)
    began = time.perf_counter()
    sent = {**server.token, "Content-Type": "application/octet-stream"}
    try:
        server.file_id = server.upload("POST", f"/api/v1/packages?{urlencode(query)}", file, sent)["fileId"]
    finally:
        file.unlink()
    took, after = time.perf_counter() - began, usage(server.pid)
    return {
        "bytes": size,
        "mb_per_s": round(size / 1e6 / took, 1),
        "cpu_s": round(after["cpu_s"] - before["cpu_s"], 2),
        "rss_mib_before": before["rss_mib"],
        "rss_growth_mib": round(after["peak_mib"] - before["rss_mib"], 1),
    }


def parallel_readers(server: Fronted, size: int, readers: int, length: int) -> dict[str, Any]:
    """All connections ask before any reads; then all read to the end."""
    path = server.image()
    before = from_here(server)
    buffer = memoryview(bytearray(RECEIVE_BYTES))
    waiting, done, received = selectors.DefaultSelector(), 0, 0
    try:
        for number in range(readers):
            peer = socket.create_connection(("127.0.0.1", OURS))
            start = number * (size - length) // readers
            peer.sendall(server.request(path, f"Range: bytes={start}-{start + length - 1}", "Connection: close"))
            peer.setblocking(False)
            waiting.register(peer, selectors.EVENT_READ)
        time.sleep(2)  # what the server keeps for those who do not read
        held = usage(server.pid)
        began = time.perf_counter()
        while done < readers:
            for key, _ in waiting.select():
                peer = key.fileobj  # type: ignore[assignment]
                if got := peer.recv_into(buffer):
                    received += got
                else:
                    waiting.unregister(peer)
                    peer.close()
                    done += 1
        took = time.perf_counter() - began
    finally:
        for key in list(waiting.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        waiting.close()
    if not readers * length < received < readers * (length + 2048):
        raise BenchError(f"{readers} readers got {received} bytes, heads included, of {readers * length}")
    after = usage(server.pid)
    return {
        "readers": readers,
        "range_bytes": length,
        "mb_per_s": round(received / 1e6 / took, 1),
        "rss_mib_before": before["rss_mib"],
        "rss_growth_mib_while_none_reads": round(held["rss_mib"] - before["rss_mib"], 1),
        "rss_growth_mib": round(after["peak_mib"] - before["rss_mib"], 1),
    }


def memory(commands: list[str], size: int, readers: int, length: int) -> dict[str, Any]:
    """An upload, then the readers of what was uploaded, on one server."""
    server = Fronted(commands)
    server.reset()
    server.start()
    small = make_artifact(WORK / "1.0.0.swu", "1.0.0", 1)
    try:
        server.prepare(1, small)
        found = {"upload": upload(server, size)}
        server.offer_to_all()
        return found | {"readers": parallel_readers(server, size, readers, length)}
    finally:
        server.stop()
        server.reset()
        small.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args()
    commands: list[str] = []
    if options.quick:
        report = {"downloads": nginx_ratio(commands, megabytes=20, rounds=1)}
        report |= memory(commands, 64 * MEBI, 50, MEBI)
    else:
        report = {"downloads": nginx_ratio(commands)}
        report |= memory(commands, UPLOAD_BYTES, READERS, RANGE_BYTES)
    met = report["downloads"]["download_nginx"] >= RATIO_TARGET and all(
        report[part]["rss_growth_mib"] <= GROWTH_TARGET_MIB for part in ("upload", "readers")
    )
    report |= {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "targets": {"download_nginx": RATIO_TARGET, "rss_growth_mib": GROWTH_TARGET_MIB},
        "met": met,
        "machine": machine(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({part: report[part] for part in ("downloads", "upload", "readers", "met")}, indent=2))
    return int(options.check and not met)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench: {error}")
