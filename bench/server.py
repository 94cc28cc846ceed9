"""What the comparison needs of a server, and what both share: its process on one core, the load on another."""

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, ClassVar

HERE = Path(__file__).resolve().parent
WORK = HERE / ".work"
GENERATOR = HERE / "ddi_load.py"
BLOCK = 1_000_000

CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, GENERATOR_CORE = CORES[0], CORES[-1]


class BenchError(Exception):
    """The run cannot go on; the message says why."""


class Server(ABC):
    """One server under test: `start`, `prepare`, `offer_to_all`, any `load`, `stop`."""

    name: ClassVar[str]
    path = "/DEFAULT/controller/v1/{id}"
    attributes: Mapping[str, str] = {"hw_boardname": "bench", "hw_revision": "1.0", "sw_version": "1.0.0"}

    def __init__(self, port: int, commands: list[str]) -> None:
        self.port, self.commands = port, commands
        self.base = f"http://127.0.0.1:{port}"
        self.folder = WORK / self.name
        self.run = self.folder / "run"
        self.headers: list[str] = []
        self.secrets: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    # --- what each says of itself -------------------------------------------------------------------------------
    @abstractmethod
    def version(self) -> str:
        """Of what is measured."""

    @abstractmethod
    def setup(self) -> None:
        """Install it, when it is not there."""

    @abstractmethod
    def reset(self) -> None:
        """An empty database, no packages; the server is stopped."""

    @abstractmethod
    def command(self) -> list[str]:
        """Starts it on `port`."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What its process gets beside PATH."""

    @abstractmethod
    def prepare(self, n_devices: int, artifact: Path) -> None:
        """Devices 0..n-1 registered with their attributes, and the artifact uploaded."""

    @abstractmethod
    def publish(self, artifact: Path) -> None:
        """Uploads another artifact, after `prepare`; the next `offer_to_all` is of this one."""

    @abstractmethod
    def offer_to_all(self) -> None:
        """Afterwards each device is offered the artifact at its next poll."""

    @abstractmethod
    def log_in(self) -> None:
        """As an operator, for what devices may not do; the server runs."""

    @abstractmethod
    def fill_list(self, rows: int) -> None:
        """So many finished tasks (goosebit: rollouts) in an empty database; the server is stopped before and after."""

    @abstractmethod
    def list_load(self) -> tuple[str, list[str]]:
        """Path of a page of 100 of that list, newest first, {n} being its number; and the headers of who may see it."""

    # --- its process ----------------------------------------------------------------------------------------------
    @property
    def pid(self) -> int:
        if self.process is None:
            raise BenchError(f"{self.name} does not run")
        return self.process.pid

    def pinned(self) -> list[str]:
        return ["taskset", "-c", str(SERVER_CORE), *self.command()]

    def full_environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), **self.environment()}

    def start(self) -> None:
        """Returns at the first answer, whatever it is."""
        self.run.mkdir(parents=True, exist_ok=True)
        with (self.run / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.pinned(), cwd=self.run, env=self.full_environment(), stdout=log, stderr=log
            )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                self.call("GET", "/")
            except OSError:
                time.sleep(0.05)
            else:
                return
        tail = (self.run / "server.log").read_text(errors="replace")[-2000:]
        self.stop()
        raise BenchError(f"{self.name} did not start:\n{tail}")

    def stop(self) -> None:
        """No error when it does not run."""
        process, self.process = self.process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # --- calls and load -------------------------------------------------------------------------------------------
    def call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of an answer, whatever its status.

        Raises:
            OSError: there was none.
        """
        request = urllib.request.Request(self.base + path, data=body, method=method, headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()

    def ask(self, method: str, path: str, value: object = None, headers: Mapping[str, str] | None = None) -> Any:
        """JSON in, JSON out (None for an empty body).

        Raises:
            BenchError: not a 2xx.
        """
        body = None if value is None else json.dumps(value).encode()
        status, answer = self.call(method, path, body, {"Content-Type": "application/json", **(headers or {})})
        return self.accepted(method, path, status, answer)

    def accepted(self, method: str, path: str, status: int, answer: bytes) -> Any:
        """The answer's JSON, when it is a 2xx."""
        if not 200 <= status < 300:
            raise BenchError(f"{self.name}: {method} {path}: {status} {answer[:500]!r}")
        return json.loads(answer) if answer else None

    def upload(self, method: str, path: str, file: Path, headers: Mapping[str, str], form: str = "") -> Any:
        """The file as the whole body, or as `form`, a field of multipart/form-data; never whole in memory."""
        head = tail = b""
        sent = dict(headers)
        if form:
            head = (
                f'--bench\r\nContent-Disposition: form-data; name="{form}"; filename="{file.name}"\r\n'
                "Content-Type: application/octet-stream\r\n\r\n"
            ).encode()
            tail = b"\r\n--bench--\r\n"
            sent["Content-Type"] = "multipart/form-data; boundary=bench"
        sent["Content-Length"] = str(len(head) + file.stat().st_size + len(tail))

        def body() -> Iterator[bytes]:
            yield head
            with file.open("rb") as source:
                while block := source.read(BLOCK):
                    yield block
            yield tail

        peer = HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            peer.request(method, path, body(), sent)
            answer = peer.getresponse()
            return self.accepted(method, path, answer.status, answer.read())
        finally:
            peer.close()

    def load(
        self, mode: str, *options: str, path: str = "", headers: Sequence[str] | None = None, may_fail: bool = False
    ) -> dict[str, Any]:
        """One run of the generator on its own core; as a device, unless `path` and `headers` say otherwise.

        Raises:
            BenchError: anything but 2xx came back.
        """
        command = [sys.executable, str(GENERATOR), mode, "--base", self.base, "--core", str(GENERATOR_CORE)]
        command += ["--path", path or self.path]
        command += [word for header in (self.headers if headers is None else headers) for word in ("--header", header)]
        if self.process:
            command += ["--pid", str(self.pid)]
        command += options
        environment = {**os.environ, **self.full_environment()} if mode == "startup" else None
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.run, check=False)
        self.note(command)
        if not done.stdout or (done.returncode and not may_fail):
            raise BenchError(f"{self.name}: {mode} failed: {done.stdout[-1000:]}{done.stderr[-2000:]}")
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def startup(self, count: int) -> dict[str, Any]:
        """Seconds from spawn to the first answer; the server is stopped."""
        log = str(self.run / "startup.log")
        return self.load("startup", "--count", str(count), "--cmd", shlex.join(self.pinned()), "--cmd-log", log)

    def register(self, first: int, count: int, concurrency: int = 16) -> dict[str, Any]:
        """Devices first..first+count-1."""
        where = ("--first", str(first), "--devices", str(count), "--concurrency", str(concurrency))
        return self.load("register", *where, "--attributes", json.dumps(dict(self.attributes)))

    def note(self, command: list[str]) -> None:
        """Remember it for the report, once, without secrets, pids and this machine's folders."""
        words = shlex.join(
            "PID" if before == "--pid" else word for before, word in zip(["", *command], command, strict=False)
        )
        for secret in self.secrets:
            words = words.replace(secret, "SECRET")
        words = words.replace(sys.executable, "python").replace(f"{HERE.parent}/", "").replace(str(HERE.parent), ".")
        if words not in self.commands:
            self.commands.append(words)


def make_artifact(file: Path, version: str, megabytes: int) -> Path:
    """A .swu (a cpio archive, its first member an unsigned sw-description) of about that size, its payload random."""

    def member(name: str, size: int) -> bytes:
        fields = (1, 0o100644, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % value for value in fields) + name.encode() + b"\0"
        return head + bytes(-len(head) % 4)

    description = f"""software = {{
  version = "{version}";
  hardware-compatibility: [ "1.0" ];
  bench = {{
    hardware-compatibility: [ "1.0" ];
    files: ( {{ filename = "payload.bin"; path = "/var/bench-payload.bin"; }} );
  }};
}}
""".encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        out.write(member("sw-description", len(description)) + description + bytes(-len(description) % 4))
        out.write(member("payload.bin", megabytes * BLOCK))
        for _ in range(megabytes):
            out.write(os.urandom(BLOCK))
        out.write(member("TRAILER!!!", 0))
    return file
