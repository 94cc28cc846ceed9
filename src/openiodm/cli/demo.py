"""`openiodm demo`: a whole server with devices that are upgraded, in less than a minute.

The server is a process of its own, as an operator would run it; this process speaks HTTP to it, and so do its devices.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from openiodm.cli import apps, options, tables, tasks
from openiodm.cli.client import Access, Client
from openiodm.cli.devices import DEVICES, IMPORT_LINES
from openiodm.cli.failure import REFUSED, USAGE, Failure
from openiodm.cli.groups import CHANGE_DEVICES, GROUPS
from openiodm.cli.options import NATIVE
from openiodm.cli.packages import PACKAGES

if TYPE_CHECKING:
    from openiodm.simulator import Behaviour, DeviceProfile, Fleet

T = TypeVar("T")

PRODUCT = {"deviceType": "SmartMeter", "model": "SM-100", "manufacturerName": "Acme"}
OLD_VERSION, NEW_VERSION = "V1.0.0", "V1.1.0"
GROUP = "demo"
IMAGE_BYTES = 2 * 1024 * 1024
FAILURE_RATE = 0.04
RETRY_TIMES = 3
POLL_INTERVAL_S = 1
LOOK_EVERY_S = 0.75  # at the task list: the server allows 100 calls a minute, and the visitor wants some too
START_WITHIN_S = 20.0
UPGRADE_WITHIN_S = 300.0
STOP_WITHIN_S = 15.0
HOST = "127.0.0.1"


def demo(
    devices: Annotated[int, typer.Option("--devices", min=1, max=20_000, help="How many.")] = 200,
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0 = any that is free.")] = 8743,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="A new folder, kept; else one that is removed.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when the task has ended.")] = False,
) -> None:
    """Show an upgrade: server, devices, package, group, task, a few failures, their retry.

    Everything is real but the devices, which are simulated and speak DDI over HTTP. Afterwards the server stays up for
    you to try, until Ctrl-C.
    """
    import uvloop

    from openiodm.settings import load

    address = f"{HOST}:{_free_port(port)}"
    with _folder(data_dir) as folder:
        print(f"Data in {folder}", flush=True)
        # The visitor's own settings, and their database above all, are none of the demo's.
        made = apps.create_application(load(environ={}, data_dir=str(folder)), "demo")
        with _server(folder, address) as process:
            access = Access(f"http://{address}", made["appId"], made["secret"])
            uvloop.run(_until_stopped(_Demo(access, devices, once=once), process))


# ---------------------------------------------------------------- the server


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise Failure(f"cannot listen on {HOST}:{port}: {error.strerror}; try --port 0", USAGE) from error
        return int(probe.getsockname()[1])


@contextmanager
def _folder(wanted: Path | None) -> Iterator[Path]:
    if wanted is None:
        path = Path(tempfile.mkdtemp(prefix="openiodm-demo-"))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
        return
    if wanted.exists() and any(wanted.iterdir()):
        raise Failure(f"{wanted} is not empty", USAGE)
    wanted.mkdir(parents=True, exist_ok=True)
    yield wanted.absolute()


@contextmanager
def _server(folder: Path, address: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`openiodm serve` with its defaults, its log in the folder; stopped at the end of the block.

    It stays in our process group, so that Ctrl-C and a closed terminal end it even if we are killed.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENIODM_")}
    environment["OPENIODM_POLL_INTERVAL_S"] = str(POLL_INTERVAL_S)
    command = [sys.executable, "-m", "openiodm.cli.main", "serve", "--data-dir", str(folder), "--listen", address]
    log = folder / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment
        )
    try:
        _wait_until_ready(process, address, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    until = time.monotonic() + START_WITHIN_S
    while time.monotonic() < until:
        if process.poll() is not None:
            lines = log.read_text("utf-8", "replace").strip().splitlines() or ["no word"]
            raise Failure(f"the server ended at its start: {lines[-1]}")
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://{address}/readyz", timeout=2).close()
            return
        time.sleep(0.05)
    raise Failure(f"the server did not start within {START_WITHIN_S:.0f} s; see {log}")


async def _until_stopped(show: "_Demo", process: "subprocess.Popen[bytes]") -> None:
    """Runs the demo until it ends, Ctrl-C, or the server's end."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def watch() -> None:
        while process.poll() is None and not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)

    work, watching = asyncio.create_task(show.run()), asyncio.create_task(watch())
    await asyncio.wait({work, watching}, return_when=asyncio.FIRST_COMPLETED)
    stopped = stop.is_set()
    if not work.done():
        process.terminate()  # so that no call of ours waits for it
    for task in (work, watching):
        task.cancel()
    results = await asyncio.gather(work, watching, return_exceptions=True)
    if stopped:
        print("\nStopped.", flush=True)
        return
    if isinstance(results[0], asyncio.CancelledError):
        raise Failure("the server ended; see its log")
    if isinstance(results[0], BaseException):
        raise results[0]


# ------------------------------------------------------------------ the show


@dataclass(frozen=True, slots=True)
class _Devices:
    """Half of them are registered beforehand with tokens of their own, the others come with a gateway token."""

    own: "list[DeviceProfile]"
    gateway: "list[DeviceProfile]"

    @property
    def all(self) -> "list[DeviceProfile]":
        return [*self.own, *self.gateway]


class _Demo:
    def __init__(self, access: Access, count: int, *, once: bool) -> None:
        self._access = access
        self._client = Client(access)
        self._count = count
        self._once = once

    async def run(self) -> None:
        """From an empty server to a finished task."""
        began = time.monotonic()
        file_id = await self._call(_upload, self._client)
        token = await self._call(_gateway_token, self._client)
        devices = _make_devices(self._count, token)
        await self._call(_register, self._client, devices.own)
        print(f"{len(devices.own)} devices registered, each with a token of its own", flush=True)
        async with self._fleet(devices.all) as fleet:
            await self._first_contact(fleet, devices)
            group = [device.controller_id for device in devices.all]
            await self._call(_group, self._client, group)
            operation_id = await self._call(_task, self._client, file_id)
            print(f"Task {operation_id}: {NEW_VERSION} for group {GROUP!r}, up to {RETRY_TIMES} retries", flush=True)
            await self._watch(operation_id)
            await self._show_result(fleet, time.monotonic() - began)
            if not self._once:
                print(_farewell(self._access, operation_id), flush=True)
                await asyncio.Event().wait()

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        """The client waits for the network: off the loop, one call at a time."""
        return await asyncio.to_thread(function, *arguments)

    @asynccontextmanager
    async def _fleet(self, profiles: "Sequence[DeviceProfile]") -> "AsyncIterator[Fleet]":
        from openiodm.simulator import Fleet

        fleet = Fleet(self._access.url, profiles, seed=_seed(profiles), ramp_seconds=1.0)
        async with fleet.running():
            yield fleet

    async def _first_contact(self, fleet: "Fleet", devices: _Devices) -> None:
        await fleet.wait_for(lambda f: f.stats.registered == self._count, within=UPGRADE_WITHIN_S)
        await fleet.wait_for(lambda f: f.stats.attributes_sent >= self._count, within=UPGRADE_WITHIN_S)
        print(f"{len(devices.gateway)} devices registered themselves with a gateway token", flush=True)

    async def _watch(self, operation_id: str) -> None:
        """The counters of the task, from the task list, until it ends."""
        from openiodm.cli.progress import counter_bars

        until = time.monotonic() + UPGRADE_WITHIN_S
        with counter_bars() as bars:
            while time.monotonic() < until:
                listed = await self._call(self._client.get, tasks.OPERATIONS)
                task = next(t for t in listed["data"] if t["operationId"] == operation_id)
                ended = task["status"] in tasks.FINAL
                bars.show(task["staResult"], max(task["staResult"]["total"], self._count), last=ended)
                if ended:
                    return
                await asyncio.sleep(LOOK_EVERY_S)
        raise Failure("the task did not end in time", REFUSED)

    async def _show_result(self, fleet: "Fleet", seconds: float) -> None:
        stats = fleet.stats
        retried = sum(max(0, len(record.actions) - 1) for record in fleet.records())
        print(
            f"Done after {seconds:.1f} s: {stats.offered} attempts, {retried} of them retries, "
            f"{stats.failed} failed; {tables.size(stats.bytes_received)} downloaded, {stats.requests} requests",
            flush=True,
        )
        for violation in fleet.violations():
            tables.note(f"broken law: {violation}")
        print(f"\nGET {tasks.OPERATIONS}\n", flush=True)
        listed = await self._call(self._client.get, tasks.OPERATIONS)
        tables.print_table(listed["data"], tasks.COLUMNS)


def _upload(client: Client) -> str:
    # Made up, but the same at every demo, and no easier to pack than a real image.
    image = Random("openiodm demo").randbytes(IMAGE_BYTES)  # noqa: S311 - no secret
    query = {
        "type": "firmwarePackage",
        "name": f"meter-{NEW_VERSION}.swu",
        "version": NEW_VERSION,
        **PRODUCT,
        "description": "a made-up firmware image",
        "sha256": sha256(image).hexdigest(),
    }
    done = client.upload(PACKAGES, query, BytesIO(image), len(image), lambda _octets: None)
    print(f"Package {done['fileId']}: {done['name']}, {tables.size(done['size'])}", flush=True)
    return str(done["fileId"])


def _gateway_token(client: Client) -> str:
    return str(client.call("POST", f"{NATIVE}/gateway-tokens", body={"name": "demo", **PRODUCT})["token"])


def _make_devices(count: int, gateway_token: str) -> _Devices:
    from openiodm.simulator import DeviceProfile, TokenKind, make_profiles

    template = DeviceProfile("template", versions={"fwVersion": OLD_VERSION}, behaviour=_behaviour())
    own = [
        replace(profile, token_kind=TokenKind.TARGET, token=secrets.token_urlsafe(24))
        for profile in make_profiles(count // 2, prefix="meter", template=template)
    ]
    gateway = make_profiles(
        count - len(own),
        prefix="meter",
        first=len(own),
        template=template,
        token_kind=TokenKind.GATEWAY,
        token=gateway_token,
    )
    return _Devices(own, gateway)


def _behaviour() -> "Behaviour":
    from openiodm.simulator import Behaviour

    return Behaviour(
        failure_rate=FAILURE_RATE, install_seconds=(0.5, 4.0), reboot_seconds=(0.1, 1.0), progress_reports=2
    )


def _seed(profiles: "Sequence[DeviceProfile]") -> int:
    """A seed with which some devices fail at first, and none at every try."""
    from openiodm.simulator.behaviour import plan_of

    def fails(seed: int, profile: "DeviceProfile", ordinal: int) -> bool:
        return plan_of(profile.behaviour, seed, profile.controller_id, ordinal).fails

    for seed in range(100):
        failing = [p for p in profiles if fails(seed, p, 0)]
        if failing and not any(all(fails(seed, p, n) for n in range(1, RETRY_TIMES + 1)) for p in failing):
            return seed
    return 0


def _register(client: Client, profiles: "Sequence[DeviceProfile]") -> None:
    import json

    lines = [
        json.dumps({"nodeId": p.controller_id, **PRODUCT, "fwVersion": OLD_VERSION, "targetToken": p.token}).encode()
        for p in profiles
    ]
    for at in range(0, len(lines), IMPORT_LINES):
        for result in client.send_lines(f"{DEVICES}/bulk", lines[at : at + IMPORT_LINES]):
            if "error" in result:
                raise Failure(f"a device was refused: {result['error']['detail']}")


def _group(client: Client, node_ids: list[str]) -> None:
    group = client.call("POST", GROUPS, body={"name": GROUP, "description": "all devices of the demo"})
    for at in range(0, len(node_ids), CHANGE_DEVICES):
        body = {"nodeIds": node_ids[at : at + CHANGE_DEVICES]}
        client.call("POST", f"{GROUPS}/{group['groupId']}/devices", body=body)


def _task(client: Client, file_id: str) -> str:
    body = {
        "fileId": file_id,
        "targets": {"deviceGroups": [GROUP], **PRODUCT},
        "policy": {"executeType": "now", "retryType": True, "retryTimes": RETRY_TIMES},
    }
    return str(client.call("POST", f"{tasks.OPERATIONS}/firmwareUpgrade", body=body)["operationId"])


def _farewell(access: Access, operation_id: str) -> str:
    program = "openiodm" if shutil.which("openiodm") else sys.argv[0]  # not every environment is activated
    return f"""
The server stays up until Ctrl-C, and so do the devices.

  applications  {access.url}{options.COMPAT}/...   (the published contract)
                {access.url}{NATIVE}/...   (what it cannot say)
                {access.url}/api/docs   (both, for your browser)
  devices       {access.url}/DEFAULT/controller/v1/NODE_ID   (DDI)

Try it, from another terminal:

  export OPENIODM_URL={access.url}
  export OPENIODM_APP_ID={access.app_id}
  export OPENIODM_SECRET={access.secret}
  TOKEN=$(curl -s $OPENIODM_URL/iocm/app/sec/v1.1.0/login -d appId=$OPENIODM_APP_ID -d secret=$OPENIODM_SECRET \\
    | sed 's/.*"accessToken":"\\([^"]*\\)".*/\\1/')
  curl -s "$OPENIODM_URL{tasks.OPERATIONS}?pageNo=0&pageSize=10" \\
    -H "app_key: $OPENIODM_APP_ID" -H "Authorization: Bearer $TOKEN"
  curl -s "$OPENIODM_URL{tasks.OPERATIONS}/{operation_id}/subOperations?subOperationStatus=success" \\
    -H "app_key: $OPENIODM_APP_ID" -H "Authorization: Bearer $TOKEN"
  {program} task list
  {program} device show meter-000000
"""
