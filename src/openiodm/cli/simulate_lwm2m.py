"""`openiodm simulate --protocol lwm2m|pcp`: devices that speak LwM2M to a server, over CoAP or DTLS."""

import asyncio
import resource
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openiodm.cli.device_lines import DeviceLine, device_lines
from openiodm.cli.failure import USAGE, Failure

if TYPE_CHECKING:
    from openiodm.simulator.lwm2m import Lwm2mProfile

SHOWN = ("online", "downloaded", "succeeded", "failed")
VIEW_EVERY_S = 0.25
SPARE_FILES = 64
"""Open files beside the devices' sockets."""


@dataclass(frozen=True, slots=True)
class Lwm2mRun:
    """What was asked for on the command line."""

    pcp: bool
    dtls: bool
    coap: str | None
    devices: Path | None
    count: int
    prefix: str
    version: str
    sw_version: str | None
    new_version: str | None
    push: bool
    queue_mode: bool
    failure_rate: float
    power_loss_rate: float
    stuck_rate: float
    loss_rate: float
    reorder_rate: float
    install_seconds: float
    seed: int
    duration: float | None
    until_done: bool


async def run(asked: Lwm2mRun) -> dict[str, Any]:
    """Runs the fleet and shows it; what became of it, as plain values.

    Raises:
        Failure: the devices or the address make no sense.
    """
    from openiodm.cli.progress import Bars
    from openiodm.simulator.coap import Network
    from openiodm.simulator.lwm2m_fleet import Lwm2mFleet

    profiles = _profiles(asked)
    _allow_files(len(profiles))
    network = Network(loss_rate=asked.loss_rate, reorder_rate=asked.reorder_rate)
    address = _address(asked)
    try:
        fleet = Lwm2mFleet(address, profiles, dtls=asked.dtls, network=network, seed=asked.seed)
    except ValueError as error:
        raise Failure(str(error), USAGE) from error
    fleet.draw_faults(asked.failure_rate, asked.power_loss_rate)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    began, ended, next_look = time.monotonic(), "interrupted", 0.0
    with Bars(SHOWN) as bars:

        def done(running: "Lwm2mFleet") -> bool:
            nonlocal ended, next_look
            if (now := time.monotonic()) >= next_look:
                next_look = now + VIEW_EVERY_S
                told = running.to_json()
                bars.show({name: told[name] for name in SHOWN}, len(profiles))
            if asked.until_done and running.all_ended():
                ended = "done"
            elif asked.duration is not None and now - began >= asked.duration:
                ended = "duration"
            else:
                return stop.is_set()
            return True

        async with fleet.running():
            await fleet.wait_for(done)
            told = fleet.to_json()
        bars.show({name: told[name] for name in SHOWN}, len(profiles), last=True)
    return {"ended": ended, "seconds": round(time.monotonic() - began, 3), **told, "violations": []}


def _address(asked: Lwm2mRun) -> tuple[str, int]:
    """Where the server is, by number: a name is looked up once. IPv4 where a name has both.

    Raises:
        Failure: it is no address, nobody has that name, or there is no way to it.
    """
    from openiodm.settings import SettingsError, host_port

    default = "127.0.0.1:5684" if asked.dtls else "127.0.0.1:5683"
    try:
        host, port = host_port(asked.coap or default, "--coap")
    except SettingsError as error:
        raise Failure(str(error), USAGE) from error
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
    except UnicodeError as error:
        raise Failure(f"--coap: {host!r} is no name of a host", USAGE) from error
    except OSError as error:
        raise Failure(f"--coap: cannot reach {host}: {error.strerror}", USAGE) from error
    return str(address[0]), port


def _profiles(asked: Lwm2mRun) -> "list[Lwm2mProfile]":
    from openiodm.simulator.lwm2m import Lwm2mBehaviour, Lwm2mProfile

    if asked.devices is None and asked.dtls:
        raise Failure("with --dtls each device needs its psk: --devices FILE", USAGE)
    names = (
        [(f"{asked.prefix}-{number:06d}", "") for number in range(asked.count)]
        if asked.devices is None
        else _read(asked.devices, needs_psk=asked.dtls)
    )
    behaviour = Lwm2mBehaviour(
        push=asked.push,
        queue_mode=asked.queue_mode,
        power_loss_rate=0.0 if asked.pcp else asked.power_loss_rate,
        stuck_rate=asked.stuck_rate,
        install_seconds=asked.install_seconds,
        reboot_seconds=asked.install_seconds / 4,
    )
    return [
        Lwm2mProfile(
            name,
            psk=bytes.fromhex(psk),
            version=asked.version,
            new_version=asked.new_version or asked.version,
            software=asked.sw_version or "",
            pcp=asked.pcp,
            behaviour=behaviour,
        )
        for name, psk in names
    ]


def _read(file: Path, *, needs_psk: bool) -> list[tuple[str, str]]:
    return [(line.node_id, _psk(line) if needs_psk else "") for line in device_lines(file)]


def _psk(line: DeviceLine) -> str:
    psk = line.secret("psk")
    try:
        bytes.fromhex(psk)
    except ValueError as error:
        raise line.wrong("psk", "hex digits, two a byte") from error
    return psk


def _allow_files(devices: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = devices + SPARE_FILES
    if wanted > soft:
        if hard != resource.RLIM_INFINITY and wanted > hard:
            raise Failure(f"{devices} devices need {wanted} open files, the limit is {hard} (ulimit -Hn)", USAGE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
