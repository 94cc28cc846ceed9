"""Debian's own SWUpdate as a device: signed images for it, and its process in a folder of its own.

Needs the packages `swupdate`, `cpio` and `openssl`; `available()` tells. No partition, boot loader or network beyond
loopback is touched: an image writes one file, by `path`, wherever the test wants it, and SWUpdate's sockets and scratch
files go below the device's folder (`TMPDIR`), so that many devices run side by side and again and again.

What one update looks like (seen with 2022.12; `golden/swupdate_ddi.json` has every request of it):

1. `start()`: it polls and sends configData, then polls as often as the server's `config.polling.sleep` says.
2. An offered image is fetched and installed; reports `proceeding` go out. The job stays open, as the device expects a
   reboot. Wait for the log line `INSTALLED`.
3. `attributes` get the new version and `restart(Confirm.SUCCESS)`: the "rebooted" device asks for the open job, closes
   it, polls and sends configData. Wait for `UP`, which comes once the confirmation was taken (or nothing was open).

A broken image is reported `closed`/`failure` at once, without a reboot. Wait for `INSTALL_FAILED`.

Everything here blocks; on an event loop that also runs the server, call it through `asyncio.to_thread`.
"""

import contextlib
import enum
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

TOOLS = ("swupdate", "cpio", "openssl")
HARDWARE = "lab:1.0"
PAYLOAD = "payload.bin"

UP = "Server initialized, entering suricatta main loop"
INSTALLED = "Post-update actions successfully executed"
INSTALL_FAILED = "Error processing update chunk"


class Confirm(enum.IntEnum):
    """What a device that comes up after an installation says of it (SWUpdate's `-c`)."""

    AGAIN = 1
    SUCCESS = 2
    FAILURE = 3


@dataclass(frozen=True, slots=True)
class Keys:
    """A self-signed certificate with emailProtection (SWUpdate asks for it) and its key, both PEM."""

    certificate: Path
    key: Path


def available() -> bool:
    """Whether the three tools are on the path."""
    return all(shutil.which(tool) for tool in TOOLS)


def make_keys(folder: Path) -> Keys:
    """The keys in `folder`, made at the first call."""
    keys = Keys(folder / "signer.crt", folder / "signer.key")
    if not keys.certificate.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run(
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", "/CN=openiodm lab"),
            *("-addext", "extendedKeyUsage=emailProtection", "-addext", "keyUsage=digitalSignature"),
            *("-keyout", str(keys.key), "-out", str(keys.certificate)),
        )
    return keys


def build_image(
    folder: Path, *, version: str, payload: bytes, hardware: str = HARDWARE, target_path: Path, keys: Keys | None = None
) -> Path:
    """A signed image `update-VERSION.swu` in `folder` that writes `payload` to `target_path` on the device.

    Args:
        keys: who signs; without it the keys of `folder`, made when missing.
    """
    return _pack(folder, version, payload, hardware, target_path, hashlib.sha256(payload).hexdigest(), keys)


def build_broken_image(
    folder: Path, *, version: str, payload: bytes, hardware: str = HARDWARE, target_path: Path, keys: Keys | None = None
) -> Path:
    """As `build_image`, validly signed, but the payload has another SHA-256 than it claims: every install fails."""
    return _pack(folder, version, payload, hardware, target_path, hashlib.sha256(payload + b"!").hexdigest(), keys)


def _pack(
    folder: Path, version: str, payload: bytes, hardware: str, target_path: Path, sha256: str, keys: Keys | None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    keys = keys or make_keys(folder)
    board, revision = hardware.split(":")
    image = folder / f"update-{version}.swu"
    content = folder / f"update-{version}.content"
    shutil.rmtree(content, ignore_errors=True)
    content.mkdir()
    (content / PAYLOAD).write_bytes(payload)
    (content / "sw-description").write_text(
        f"""software = {{
  version = "{version}";
  hardware-compatibility: [ "{revision}" ];
  {board} = {{
    hardware-compatibility: [ "{revision}" ];
    files: ( {{ filename = "{PAYLOAD}"; path = "{target_path}"; sha256 = "{sha256}"; }} );
  }};
}}
"""
    )
    _run(
        *("openssl", "cms", "-sign", "-in", "sw-description", "-out", "sw-description.sig", "-outform", "DER"),
        *("-signer", str(keys.certificate.absolute()), "-inkey", str(keys.key.absolute())),
        *("-nosmimecap", "-binary"),
        cwd=content,
    )
    # The device reads a stream: the description and its signature must come before what they describe.
    names = f"sw-description\nsw-description.sig\n{PAYLOAD}\n"
    image.write_bytes(_run("cpio", "-o", "-H", "crc", "--quiet", cwd=content, stdin=names.encode()))
    shutil.rmtree(content)
    return image


def _run(*command: str, cwd: Path | None = None, stdin: bytes = b"") -> bytes:
    """The command's stdout.

    Raises:
        RuntimeError: it failed; the message is its stderr.
    """
    done = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, check=False, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])}: {done.stderr.decode(errors='replace')}")
    return done.stdout


@dataclass(slots=True)
class SwupdateDevice:
    """One SWUpdate, polling `server` as `device_id`; a context manager that stops it.

    Args:
        folder: of this device alone; kept between starts, as a device keeps its storage.
        server: base URL without the tenant, `http://127.0.0.1:PORT`.
        token: a target token, or with `gateway` the gateway token; None: no Authorization header.
        attributes: sent as configData after every start, asked for or not; replace it before a restart.
        poll_s: what it starts with; the server's `config.polling.sleep` replaces it with the first answer.
        tls: PEM files for `https` by SWUpdate's names: `cafile`, `sslcert`, `sslkey`.
        forgetful: with SWUpdate's `-m`: it does not remember, while it runs, that an image waits for its reboot, so
            it fetches and installs an open job again at each poll.
    """

    folder: Path
    server: str
    device_id: str
    certificate: Path
    token: str | None = None
    gateway: bool = False
    tenant: str = "DEFAULT"
    hardware: str = HARDWARE
    poll_s: int = 3
    attributes: Mapping[str, str] = field(default_factory=dict)
    tls: Mapping[str, Path] = field(default_factory=dict)
    forgetful: bool = False
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _log_start: int = field(default=0, init=False, repr=False)

    def __enter__(self) -> Self:
        """Not started yet: `start()` does that, with what the "boot" should confirm."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log_path(self) -> Path:
        """Its output since the folder was made, over all starts."""
        return self.folder / "swupdate.log"

    @property
    def pid(self) -> int | None:
        """The running process, which is also the leader of its group."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """Its output since the last start."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def command(self, confirm: Confirm | None = None) -> list[str]:
        """The command line of a start."""
        agent = ["-t", self.tenant, "-u", self.server, "-i", self.device_id, "-p", str(self.poll_s)]
        if self.token:
            agent += ["-g" if self.gateway else "-k", self.token]
        if confirm:
            agent += ["-c", str(int(confirm))]
        swupdate = shutil.which("swupdate") or "swupdate"
        where = ["-f", str(self.folder / "swupdate.cfg"), "-H", self.hardware, "-k", str(self.certificate)]
        forget = ["-m"] if self.forgetful else []
        return [swupdate, *where, "-M", *forget, "-l", "5", "-u", " ".join(agent)]

    def start(self, confirm: Confirm | None = None) -> None:
        """Boot: write the configuration and start SWUpdate, which polls at once."""
        if self.running:
            raise RuntimeError("the device runs already")
        scratch = self.folder / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        (self.folder / "swupdate.cfg").write_text(self._configuration())
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self.command(confirm),
                cwd=scratch,
                env={"PATH": os.environ.get("PATH", os.defpath), "TMPDIR": f"{scratch}/"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it forks an agent and a downloader, which go by the group
            )

    def stop(self, timeout: float = 10.0) -> None:
        """Pull the plug; no error when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def restart(self, confirm: Confirm | None = None) -> None:
        """Reboot, and tell the server how the new software does."""
        self.stop()
        self.start(confirm)

    def wait_for_log(self, text: str, timeout: float = 60.0) -> str:
        """The first line since the last start that contains `text`.

        Raises:
            TimeoutError: it did not come, or the process ended without it; the message is the end of the log.
        """
        end = time.monotonic() + timeout
        while True:
            alive = self.running
            for line in self.log.splitlines():
                if text in line:
                    return line
            if not alive or time.monotonic() > end:
                what = f"no {text!r} in {timeout} s" if alive else f"SWUpdate ended without {text!r}"
                raise TimeoutError(f"{what}\n{self.log[-4000:]}")
            time.sleep(0.05)

    def _configuration(self) -> str:
        pairs = ",\n".join(f'  {{ name = "{name}"; value = "{value}"; }}' for name, value in self.attributes.items())
        identify = f"identify : (\n{pairs}\n);\n" if pairs else ""
        files = " ".join(f'{name} = "{path}";' for name, path in self.tls.items())
        agent = f"suricatta : {{ {files} }};\n" if files else ""
        return f"globals : {{ verbose = true; loglevel = 5; }};\n{agent}{identify}"
