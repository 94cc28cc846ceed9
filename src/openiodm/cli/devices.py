"""`openiodm device`: register one or a hundred thousand, look at them, their own tokens."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from openiodm.cli import options, tables
from openiodm.cli.client import Client, read_secret_file
from openiodm.cli.failure import REFUSED, USAGE, Failure
from openiodm.cli.options import NATIVE, connect
from openiodm.cli.tables import field, when

app = typer.Typer(no_args_is_help=True, help="Devices: list, show, register, import, delete, token.")

DEVICES = f"{NATIVE}/devices"
IMPORT_LINES = 500  # devices a call; the server registers as many at once
ERRORS_SHOWN = 20

COLUMNS: tuple[tables.Column, ...] = (
    ("node id", field("nodeId")),
    ("device id", field("deviceId")),
    ("device type", field("deviceType")),
    ("model", field("model")),
    ("manufacturer", field("manufacturerName")),
    ("firmware", field("fwVersion")),
    ("software", field("swVersion")),
    ("status", field("status")),
    ("last seen", when("lastSeenAt")),
)
FIELDS = (
    *COLUMNS[:5],
    ("name", field("name")),
    *COLUMNS[5:],
    ("address", field("address")),
    ("protocol", field("protocolType")),
    ("registered", when("registeredAt")),
    ("first contact", when("activatedAt")),
    ("own token", field("hasTargetToken")),
    ("attributes", field("attributes")),
    ("info", field("info")),
)

DeviceArgument = Annotated[str, typer.Argument(metavar="DEVICE", help="A deviceId or a nodeId.")]


@app.command("list")
def list_(
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    device_type: options.DeviceType = None,
    model: options.Model = None,
    manufacturer: options.Manufacturer = None,
    name: Annotated[str | None, typer.Option("--name")] = None,
    status: Annotated[str | None, typer.Option("--status", help="INACTIVE, ONLINE, ABNORMAL or OFFLINE.")] = None,
    page: options.PageNo = 0,
    page_size: Annotated[int, typer.Option("--page-size", min=1, max=500)] = 50,
    everything: options.All = False,
    as_json: options.Json = False,
) -> None:
    """List devices, newest first."""
    wanted: dict[str, Any] = {
        "deviceType": device_type,
        "model": model,
        "manufacturerName": manufacturer,
        "name": name,
        "status": None if status is None else status.upper(),
    }
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        if everything:
            items = options.every(client, DEVICES, **wanted)
            if as_json:
                for item in items:
                    tables.print_line(item)
            else:
                tables.print_table(items, COLUMNS)
            return
        found = client.get(DEVICES, pageNo=page, pageSize=page_size, **wanted)
        if as_json:
            tables.print_json(found)
        else:
            tables.print_table(found["items"], COLUMNS, caption=f"page {page}, {found['total']} in all")


@app.command()
def show(
    device: DeviceArgument,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    as_json: options.Json = False,
) -> None:
    """Show a device with its attributes, versions and status."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = client.get(options.device_path(device))
    if as_json:
        tables.print_json(found)
    else:
        tables.print_fields((title, read(found)) for title, read in FIELDS)


@app.command()
def register(
    node_id: Annotated[str, typer.Argument(metavar="NODE_ID", help="The device's own name, in DDI its controllerId.")],
    device_type: Annotated[str, typer.Option("--device-type")],
    model: Annotated[str, typer.Option("--model")],
    manufacturer: Annotated[str, typer.Option("--manufacturer")],
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    name: Annotated[str | None, typer.Option("--name")] = None,
    verify_code: Annotated[str | None, typer.Option("--verify-code", help="Else one is made.")] = None,
    timeout: Annotated[int, typer.Option("--timeout", min=0, help="Seconds to its first contact; 0 = for ever.")] = 0,
    fw_version: Annotated[str | None, typer.Option("--fw-version")] = None,
    sw_version: Annotated[str | None, typer.Option("--sw-version")] = None,
    with_token: Annotated[bool, typer.Option("--with-token", help="Make its own DDI token, shown once.")] = False,
    as_json: options.Json = False,
) -> None:
    """Register a device."""
    body = {
        "nodeId": node_id,
        "deviceType": device_type,
        "model": model,
        "manufacturerName": manufacturer,
        "name": name,
        "verifyCode": verify_code,
        "timeout": timeout,
        "fwVersion": fw_version,
        "swVersion": sw_version,
    }
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        done = client.call("POST", DEVICES, body=body)
        if with_token:
            token = client.call("PUT", f"{options.device_path(done['deviceId'])}/target-token", body={})
            done["targetToken"] = token["token"]
    if as_json:
        tables.print_json(done)
    else:
        tables.print_fields(done.items())


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.ndjson", help="One device a line, as JSON; - is stdin.")],
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON for each device, as the server says.")
    ] = False,
) -> None:
    """Register many devices.

    A line is {"nodeId", "deviceType", "model", "manufacturerName"} and may have name, verifyCode, psk, timeout,
    protocolType, fwVersion, swVersion, targetToken, info. Refused lines undo no others; with any the exit code is 1.
    """
    registered, refused = 0, 0
    with (
        connect(url, app_id, secret_file, ca, client_cert) as client,
        _open(file) as stream,
        _progress(file) as advance,
    ):
        for batch in _batches(stream):
            for number, result in zip(batch, _register(client, list(batch.values())), strict=True):
                result["line"] = number
                if as_json:
                    tables.print_line(result)
                if "error" not in result:
                    registered += 1
                    continue
                refused += 1
                if refused <= ERRORS_SHOWN and not as_json:
                    tables.note(f"line {number}: {_why(result['error'])}")
            advance(sum(len(line) + 1 for line in batch.values()))
    tables.note(f"{registered} registered, {refused} refused")
    if refused:
        raise Failure(f"{refused} lines were refused", REFUSED)


@app.command()
def delete(
    devices: Annotated[list[str], typer.Argument(metavar="DEVICE...", help="deviceIds or nodeIds.")],
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    as_json: options.Json = False,
) -> None:
    """Delete devices; an open upgrade of one fails."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        for device in devices:
            client.call("DELETE", options.device_path(device))
    if as_json:
        tables.print_json({"deleted": devices})


@app.command()
def token(
    device: DeviceArgument,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="The token to set; else one is made.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the token away.")] = False,
    as_json: options.Json = False,
) -> None:
    """Set a device's own DDI token, and show it this once."""
    if remove and token_file is not None:
        raise Failure("--remove takes no --token-file", USAGE)
    path = f"{options.device_path(device)}/target-token"
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        if remove:
            client.call("DELETE", path)
            return
        body = {} if token_file is None else {"token": read_secret_file(token_file)}
        done = client.call("PUT", path, body=body)
    if as_json:
        tables.print_json(done)
    else:
        print(done["token"])


def _register(client: Client, lines: list[bytes]) -> list[dict[str, Any]]:
    results = client.send_lines(f"{DEVICES}/bulk", lines)
    if len(results) != len(lines):
        raise Failure(f"the answer broke off after {len(results)} of {len(lines)} devices")
    return results


def _why(error: dict[str, Any]) -> str:
    at = f", {error['field']}" if error.get("field") else ""
    return f"{error['detail']} ({error['reason']}{at})"


def _batches(stream: IO[bytes]) -> Iterator[dict[int, bytes]]:
    """Lines by their number in the file, `IMPORT_LINES` at a time; blank ones are left out."""
    batch: dict[int, bytes] = {}
    for number, line in enumerate(stream, 1):
        if line.strip():
            batch[number] = line.strip()
        if len(batch) == IMPORT_LINES:
            yield batch
            batch = {}
    if batch:
        yield batch


@contextmanager
def _open(file: Path) -> Iterator[IO[bytes]]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = file.open("rb")
    except OSError as error:
        raise Failure(f"cannot read {file}: {error.strerror}", USAGE) from error
    with stream:
        yield stream


@contextmanager
def _progress(file: Path) -> Iterator[Any]:
    """A bar over the file's bytes, on a terminal."""
    from openiodm.cli.progress import byte_bar

    total = None if str(file) == "-" or not file.is_file() else file.stat().st_size
    with byte_bar("registering", total) as advance:
        yield advance
