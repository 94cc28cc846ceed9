"""`openiodm simulate`: devices that speak DDI or LwM2M to a server, for trying things out and for load."""

import asyncio
import os
import signal
import ssl
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openiodm.cli import options, simulate_lwm2m, tables
from openiodm.cli.client import find_tls, find_url, read_secret_file
from openiodm.cli.device_lines import device_lines
from openiodm.cli.failure import REFUSED, TIMED_OUT, USAGE, Failure
from openiodm.cli.simulate_lwm2m import Lwm2mRun

if TYPE_CHECKING:
    from openiodm.simulator import Behaviour, DeviceProfile, Fleet

SHOWN = ("registered", "offered", "downloaded", "succeeded", "failed", "canceled")
VIEW_EVERY_S = 0.25
VIOLATIONS_SHOWN = 20


class Protocol(StrEnum):
    """What the devices speak."""

    DDI = "ddi"
    LWM2M = "lwm2m"
    PCP = "pcp"


def simulate(
    url: options.Url = None,
    protocol: Annotated[
        Protocol, typer.Option("--protocol", help="ddi; lwm2m: firmware by object 5; pcp: LwM2M with software by PCP.")
    ] = Protocol.DDI,
    coap: Annotated[
        str | None,
        typer.Option("--coap", metavar="HOST:PORT", help="LwM2M: the server; else 127.0.0.1:5683, or :5684."),
    ] = None,
    dtls: Annotated[
        bool, typer.Option("--dtls", help="LwM2M: over DTLS, with the psk of each line of --devices.")
    ] = False,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    token: Annotated[
        str | None, typer.Option("--token", help="A gateway token; else OPENIODM_TOKEN, OPENIODM_TOKEN_FILE.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option("--token-file", metavar="FILE")] = None,
    devices: Annotated[
        Path | None,
        typer.Option(
            "--devices", metavar="FILE.ndjson", help="Be these devices: nodeId and targetToken, or psk, of each line."
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="How many, without --devices.")] = 10,
    prefix: Annotated[str, typer.Option("--prefix", help="Their nodeIds begin so.")] = "sim",
    tenant: Annotated[str, typer.Option("--tenant", help="The DDI tenant: DEFAULT, or the app id.")] = "DEFAULT",
    device_type: options.DeviceType = None,
    model: options.Model = None,
    manufacturer: options.Manufacturer = None,
    version: Annotated[str, typer.Option("--version", help="The firmware version that they start with.")] = "1.0.0",
    sw_version: Annotated[str | None, typer.Option("--sw-version", help="And the software version.")] = None,
    new_version: Annotated[
        str | None, typer.Option("--new-version", help="LwM2M: the firmware version that they have after an upgrade.")
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="LwM2M: they take pushes alone.")] = False,
    queue_mode: Annotated[bool, typer.Option("--queue-mode", help="LwM2M: they sleep between contacts.")] = False,
    power_loss_rate: Annotated[
        float, typer.Option("--power-loss-rate", min=0, max=1, help="LwM2M: reboot in the middle of a download.")
    ] = 0.0,
    loss_rate: Annotated[float, typer.Option("--loss-rate", min=0, max=1, help="LwM2M: of datagrams, each way.")] = 0.0,
    reorder_rate: Annotated[
        float, typer.Option("--reorder-rate", min=0, max=1, help="LwM2M: of the datagrams that they send.")
    ] = 0.0,
    failure_rate: Annotated[float, typer.Option("--failure-rate", min=0, max=1, help="Of installations.")] = 0.0,
    silence_rate: Annotated[float, typer.Option("--silence-rate", min=0, max=1, help="Fall silent for ever.")] = 0.0,
    install_seconds: Annotated[float, typer.Option("--install-seconds", min=0, help="At most.")] = 1.0,
    poll_seconds: Annotated[
        float | None, typer.Option("--poll-seconds", min=0, help="Else as the server says.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed, the same chance.")] = 0,
    duration: Annotated[float | None, typer.Option("--duration", min=0, metavar="SECONDS", help="End then.")] = None,
    until_done: Annotated[
        bool, typer.Option("--until-done", help="End when every device has ended an upgrade, or is silent.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON summary at the end.")] = False,
) -> None:
    """Run simulated devices against a server, until Ctrl-C or as asked.

    DDI devices register themselves with a gateway token, or have been registered with tokens of their own (--devices).
    LwM2M devices must have been registered, by their nodeId. The exit code is 1 when the server broke a law that a
    device can see, 4 when --duration ended before --until-done.
    """
    if protocol is not Protocol.DDI:
        asked = Lwm2mRun(
            pcp=protocol is Protocol.PCP,
            dtls=dtls,
            coap=coap,
            devices=devices,
            count=count,
            prefix=prefix,
            version=version,
            sw_version=sw_version,
            new_version=new_version,
            push=push,
            queue_mode=queue_mode,
            failure_rate=failure_rate,
            power_loss_rate=power_loss_rate,
            stuck_rate=silence_rate,
            loss_rate=loss_rate,
            reorder_rate=reorder_rate,
            install_seconds=install_seconds,
            seed=seed,
            duration=duration,
            until_done=until_done,
        )
        import uvloop

        _conclude(uvloop.run(simulate_lwm2m.run(asked)), as_json=as_json, until_done=until_done)
        return
    from openiodm.simulator import Behaviour

    told = {"deviceType": device_type, "model": model, "manufacturerName": manufacturer}
    behaviour = Behaviour(
        failure_rate=failure_rate,
        silence_rate=silence_rate,
        install_seconds=(install_seconds / 4, install_seconds),
        reboot_seconds=(0.0, install_seconds / 4),
    )
    versions = {"fwVersion": version, **({"swVersion": sw_version} if sw_version else {})}
    attributes = {k: v for k, v in told.items() if v is not None}
    template = _template(tenant, attributes, versions, behaviour)
    profiles = (
        _profiles_of(devices, template)
        if devices is not None
        else _new_profiles(count, prefix, template, find_token(token, token_file))
    )

    import uvloop

    outcome = uvloop.run(
        _run(
            find_url(url),
            profiles,
            tls=find_tls(ca, client_cert),
            seed=seed,
            poll_seconds=poll_seconds,
            duration=duration,
            until_done=until_done,
        )
    )
    _conclude(outcome, as_json=as_json, until_done=until_done)


def _conclude(outcome: dict[str, Any], *, as_json: bool, until_done: bool) -> None:
    _report(outcome, as_json=as_json)
    if outcome["violations"]:
        raise Failure(f"the server broke {len(outcome['violations'])} laws", REFUSED)
    if until_done and outcome["ended"] == "duration":
        raise Failure("not done in time", TIMED_OUT)


def find_token(token: str | None, token_file: Path | None, environ: Mapping[str, str] = os.environ) -> str:
    """The gateway token: an option, or the environment.

    Raises:
        Failure: there is none, or it cannot be one.
    """
    given = _given_token(token, token_file, environ)
    if not (given.isascii() and given.isprintable()):
        raise Failure("the gateway token has characters that no token has; was more than it copied?", USAGE)
    return given


def _given_token(token: str | None, token_file: Path | None, environ: Mapping[str, str]) -> str:
    if token:
        return token
    if token_file is not None:
        return read_secret_file(token_file)
    if given := environ.get("OPENIODM_TOKEN"):
        return given
    if named := environ.get("OPENIODM_TOKEN_FILE"):
        return read_secret_file(Path(named))
    raise Failure("devices need a gateway token (--token, --token-file, OPENIODM_TOKEN) or --devices FILE", USAGE)


def _template(
    tenant: str, attributes: Mapping[str, str], versions: Mapping[str, str], behaviour: "Behaviour"
) -> "DeviceProfile":
    from openiodm.simulator import DeviceProfile

    return DeviceProfile("template", tenant=tenant, attributes=attributes, versions=versions, behaviour=behaviour)


def _new_profiles(count: int, prefix: str, template: "DeviceProfile", token: str) -> "list[DeviceProfile]":
    from openiodm.simulator import TokenKind, make_profiles

    return make_profiles(count, prefix=prefix, template=template, token_kind=TokenKind.GATEWAY, token=token)


def _profiles_of(file: Path, template: "DeviceProfile") -> "list[DeviceProfile]":
    from dataclasses import replace

    from openiodm.simulator import TokenKind

    return [
        replace(template, controller_id=line.node_id, token=line.secret("targetToken"), token_kind=TokenKind.TARGET)
        for line in device_lines(file)
    ]


async def _run(
    url: str,
    profiles: "list[DeviceProfile]",
    *,
    tls: ssl.SSLContext | None,
    seed: int,
    poll_seconds: float | None,
    duration: float | None,
    until_done: bool,
) -> dict[str, Any]:
    """Runs the fleet and shows it; what became of it, as plain values."""
    from openiodm.cli.progress import Bars
    from openiodm.simulator import Fleet, Pace

    try:
        fleet = Fleet(url, profiles, seed=seed, pace=Pace(poll_seconds=poll_seconds), ssl=tls)
    except ValueError as error:
        raise Failure(str(error), USAGE) from error
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    began = time.monotonic()
    ended = "interrupted"
    with Bars(SHOWN) as bars:
        look = _throttled(lambda: bars.show(_shown(fleet), len(profiles)))

        def done(running: "Fleet") -> bool:
            nonlocal ended
            look()
            if until_done and running.all_final():
                ended = "done"
            elif duration is not None and time.monotonic() - began >= duration:
                ended = "duration"
            else:
                return stop.is_set()
            return True

        await fleet.run_until(done)
        bars.show(_shown(fleet), len(profiles), last=True)
    seconds = round(time.monotonic() - began, 3)
    return {"ended": ended, "seconds": seconds, **fleet.stats.to_json(), "violations": fleet.violations()}


def _shown(fleet: "Fleet") -> dict[str, int]:
    return {name: getattr(fleet.stats, name) for name in SHOWN}


def _throttled(show: Callable[[], None]) -> Callable[[], None]:
    next_at = 0.0

    def look() -> None:
        nonlocal next_at
        if (now := time.monotonic()) >= next_at:
            next_at = now + VIEW_EVERY_S
            show()

    return look


def _report(outcome: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        tables.print_json(outcome)
    else:
        tables.print_fields((name, value) for name, value in outcome.items() if name != "violations")
    for violation in outcome["violations"][:VIOLATIONS_SHOWN]:
        tables.note(f"broken law: {violation}")
