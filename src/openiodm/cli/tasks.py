"""`openiodm task`: create, watch, stop, retry, export, wait."""

import sys
import time
import uuid
from pathlib import Path
from typing import Annotated, Any

import typer

from openiodm.cli import options, tables
from openiodm.cli.client import Client, segment
from openiodm.cli.failure import REFUSED, STOPPED, TIMED_OUT, USAGE, Failure
from openiodm.cli.options import COMPAT, NATIVE, connect
from openiodm.cli.packages import PACKAGES
from openiodm.cli.tables import field, when

app = typer.Typer(
    no_args_is_help=True,
    help="Tasks: create, list, show, devices, history, stop, retry, resume, export, wait, check.",
)

TASKS = f"{NATIVE}/tasks"
OPERATIONS = f"{COMPAT}/operations"
LOOK_EVERY_S = 1.0
COUNTERS = ("wait", "processing", "success", "fail", "timeout", "stop")
FINAL = frozenset({"success", "failed", "stop"})
KIND_OF_PACKAGE = {"firmwarePackage": "firmware_upgrade", "softwarePackage": "software_upgrade"}
KINDS = {"firmware": "firmware_upgrade", "software": "software_upgrade"}

COLUMNS: tuple[tables.Column, ...] = (
    ("operation id", field("operationId")),
    ("type", field("operateType")),
    ("status", field("status")),
    ("version", field("extendPara", "fileVersion")),
    *((name, field("staResult", name)) for name in ("total", *COUNTERS)),
    ("created", field("createTime")),
    ("started", field("startTime")),
    ("ended", field("stopTime")),
)
"""Of a task as the published contract shows it."""

NATIVE_COLUMNS: tuple[tables.Column, ...] = (
    ("operation id", field("operationId")),
    ("kind", field("kind")),
    ("status", field("status")),
    ("version", field("targetVersion")),
    *((name, field("counters", name)) for name in ("total", *COUNTERS)),
    ("created", when("createdAt")),
    ("ended", when("stoppedAt")),
)
FIELDS = (
    *NATIVE_COLUMNS[:4],
    ("round", field("round")),
    ("server's work", field("work")),
    ("held", field("hold")),
    ("devices", field("targets", "devices")),
    ("groups", field("targets", "deviceGroups")),
    ("device type", field("targets", "deviceType")),
    ("model", field("targets", "model")),
    ("manufacturer", field("targets", "manufacturerName")),
    ("executes", field("policy", "executeType")),
    ("window from", when("policy", "startTime")),
    ("window to", when("policy", "endTime")),
    ("retries", field("policy", "retryTimes")),
    ("confirmation", field("confirmation")),
    ("at once", field("maxConcurrent")),
    ("created", when("createdAt")),
    ("started", when("startedAt")),
    ("ended", when("stoppedAt")),
    *((name, field("counters", name)) for name in ("total", *COUNTERS)),
)
DEVICE_COLUMNS: tuple[tables.Column, ...] = (
    ("node id", field("nodeId")),
    ("device id", field("deviceId")),
    ("state", field("state")),
    ("attempt", field("attempt")),
    ("from", field("sourceVersion")),
    ("now", field("currentVersion")),
    ("detail", lambda row: row.get("detail") or row.get("reason")),
    ("ended", when("finishedAt")),
)
CHANGE_COLUMNS: tuple[tables.Column, ...] = (
    ("at", when("at")),
    ("from", field("fromState")),
    ("to", field("toState")),
    ("action", field("actionId")),
    ("cause", field("cause")),
)

OperationId = Annotated[str, typer.Argument(metavar="OPERATION_ID")]
State = Annotated[
    str | None,
    typer.Option(
        "--state",
        help="wait, offered, downloading, downloaded, installing, verifying, cancelling, success, fail, timeout, stop.",
    ),
]


@app.command()
def create(
    package: Annotated[str, typer.Option("--package", metavar="FILE_ID", help="What to install.")],
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", help="A deviceId or nodeId; may be repeated, at most 256.")
    ] = None,
    group: Annotated[list[str] | None, typer.Option("--group", help="A group's name; may be repeated.")] = None,
    execute: Annotated[
        str | None, typer.Option("--execute", help="now, device_online, or custom with --start and --end.")
    ] = None,
    start: Annotated[str | None, typer.Option("--start", metavar="TIME", help="2030-01-31T22:00:00Z")] = None,
    end: Annotated[str | None, typer.Option("--end", metavar="TIME", help="At least 5 minutes after --start.")] = None,
    retry: Annotated[int, typer.Option("--retry", min=0, max=5, help="Rounds over failed devices.")] = 0,
    confirmation: Annotated[bool, typer.Option("--confirmation", help="Devices ask their users first.")] = False,
    max_concurrent: Annotated[
        int | None, typer.Option("--max-concurrent", min=1, help="Most devices under way at any moment.")
    ] = None,
    online_seconds: Annotated[int | None, typer.Option("--online-seconds", min=1, help="Wait for contact.")] = None,
    download_seconds: Annotated[int | None, typer.Option("--download-seconds", min=1)] = None,
    install_seconds: Annotated[int | None, typer.Option("--install-seconds", min=1)] = None,
    verify_seconds: Annotated[int | None, typer.Option("--verify-seconds", min=1)] = None,
    cancel_seconds: Annotated[
        int | None, typer.Option("--cancel-seconds", min=1, help="For a stopped device's answer.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option("--idempotency-key", help="Repeats with it make one task.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Create a task for devices, or for groups, and print its id.

    Whether it is a firmware or a software upgrade, and for which product, is as the package says.
    """
    if bool(device) == bool(group):
        raise Failure("give --device or --group, not both", USAGE)
    if idempotency_key and not (idempotency_key.isascii() and idempotency_key.isprintable()):
        raise Failure(f"--idempotency-key is printable ASCII, not {idempotency_key!a}", USAGE)
    if execute is None and (start or end):
        execute = "custom"
    clocks = {
        "onlineSeconds": online_seconds,
        "downloadSeconds": download_seconds,
        "installSeconds": install_seconds,
        "verifySeconds": verify_seconds,
        "cancelSeconds": cancel_seconds,
    }
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = client.get(f"{PACKAGES}/{segment(package)}")
        product = {name: found[name] for name in ("deviceType", "model", "manufacturerName")}
        targets: dict[str, Any] = (
            {"devices": [options.device_id(client, each) for each in device]}
            if device
            else {"deviceGroups": group, **product}
        )
        body = {
            "kind": KIND_OF_PACKAGE[found["type"]],
            "fileId": found["fileId"],
            "targets": targets,
            "policy": {
                "executeType": execute or "now",
                "startTime": start,
                "endTime": end,
                "retryType": retry > 0,
                "retryTimes": retry or None,
            },
            "confirmation": confirmation,
            "maxConcurrent": max_concurrent,
            "clocks": {k: v for k, v in clocks.items() if v is not None},
        }
        key = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        made = client.call("POST", TASKS, body=body, headers=key)
    if as_json:
        tables.print_json(made)
    else:
        print(made["operationId"])


@app.command("list")
def list_(
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    type_: Annotated[str | None, typer.Option("--type", help="firmware or software.")] = None,
    status: Annotated[str | None, typer.Option("--status", help="wait, processing, success, failed or stop.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="Tasks of this device.")] = None,
    device_type: options.DeviceType = None,
    model: options.Model = None,
    manufacturer: options.Manufacturer = None,
    page: options.PageNo = 0,
    page_size: Annotated[int, typer.Option("--page-size", min=1, max=100)] = 10,
    as_json: options.Json = False,
) -> None:
    """List tasks with their counters, newest first."""
    if type_ is not None and type_ not in KINDS:
        raise Failure(f"--type is firmware or software, not {type_}", USAGE)
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = client.get(
            TASKS,
            kind=None if type_ is None else KINDS[type_],
            status=status,
            deviceId=None if device is None else options.device_id(client, device),
            deviceType=device_type,
            model=model,
            manufacturerName=manufacturer,
            pageNo=page,
            pageSize=page_size,
        )
    if as_json:
        tables.print_json(found)
    else:
        tables.print_table(found["items"], NATIVE_COLUMNS, caption=f"page {page}, {found['total']} in all")


@app.command()
def show(
    operation_id: OperationId,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Until it has ended; with --json a line at each change.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show a task."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = _follow(client, operation_id, None, as_json=as_json) if watch else _task(client, operation_id)
    if not as_json:
        tables.print_fields((title, read(found)) for title, read in FIELDS)
    elif not watch:
        tables.print_json(found)


@app.command()
def devices(
    operation_id: OperationId,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    state: State = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 100,
    cursor: Annotated[int, typer.Option("--cursor", min=0, help="nextCursor of the page before.")] = 0,
    as_json: options.Json = False,
) -> None:
    """List a task's devices, each waiting one with the reason why. All of them: see export."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = client.get(f"{_path(operation_id)}/devices", state=state, limit=limit, cursor=cursor)
    if as_json:
        tables.print_json(found)
    else:
        more = found["nextCursor"]
        tables.print_table(found["items"], DEVICE_COLUMNS, caption=f"more: --cursor {more}" if more else "")


@app.command()
def history(
    operation_id: OperationId,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="A deviceId or a nodeId.")],
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    as_json: options.Json = False,
) -> None:
    """Show all that happened to one device in a task."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = client.get(f"{_path(operation_id)}/devices/{segment(device)}/history")
    if as_json:
        tables.print_json(found)
        return
    tables.print_table(found["changes"], CHANGE_COLUMNS)
    for entry in found["log"]:
        for line in entry["lines"]:
            print(f"{entry['at']}  {entry['kind']}: {line}")


@app.command()
def stop(
    operation_id: OperationId,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    device: Annotated[str | None, typer.Option("--device", help="This one alone.")] = None,
    as_json: options.Json = False,
) -> None:
    """Stop a task: from now on no device begins. With --json: the task as it is then."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        one = "" if device is None else f"/devices/{segment(device)}"
        client.call("POST", f"{_path(operation_id)}{one}/stop")
        if as_json:
            tables.print_json(_task(client, operation_id))


@app.command()
def retry(
    operation_id: OperationId,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    as_json: options.Json = False,
) -> None:
    """Run the failed devices of a failed task again. With --json: the task as it is then."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        client.call("POST", f"{_path(operation_id)}/retry")
        if as_json:
            tables.print_json(_task(client, operation_id))


@app.command()
def resume(
    operation_id: OperationId,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    unproven: Annotated[
        bool,
        typer.Option(
            "--unproven",
            help="Also devices that never tell their version: they may be upgraded a second time.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Let a task go on that a restore has held. With --json: the task as it is then."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        client.call("POST", f"{_path(operation_id)}/resume", body={"unproven": unproven})
        if as_json:
            tables.print_json(_task(client, operation_id))


@app.command()
def export(
    operation_id: OperationId,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    format_: Annotated[str, typer.Option("--format", help="ndjson or csv.")] = "ndjson",
    state: State = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Else stdout.")] = None,
) -> None:
    """Write all devices of a task, however many."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        pieces = client.stream(f"{_path(operation_id)}/export", format=format_, state=state)
        if output is None:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        try:
            with output.open("wb") as stream:
                for piece in pieces:
                    stream.write(piece)
        except OSError as error:
            raise Failure(f"cannot write {output}: {error.strerror}", USAGE) from error


@app.command()
def wait(
    operation_id: OperationId,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    timeout: Annotated[float | None, typer.Option("--timeout", min=0, metavar="SECONDS", help="Else for ever.")] = None,
    as_json: options.Json = False,
) -> None:
    """Wait until a task has ended.

    Exit codes: 0 it succeeded, 1 it failed, 3 it was stopped, 4 it has not ended in time.
    """
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = _follow(client, operation_id, timeout, as_json=None)
    if as_json:
        tables.print_json(found)
    counters = ", ".join(f"{name} {found['counters'][name]}" for name in COUNTERS)
    match found["status"]:
        case "success":
            return
        case "failed":
            raise Failure(f"the task failed: {counters}", REFUSED)
        case "stop":
            raise Failure(f"the task was stopped: {counters}", STOPPED)
        case _:
            raise Failure(f"the task has not ended after {timeout:g} s: {counters}", TIMED_OUT)


@app.command()
def check(
    operation_id: OperationId,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    as_json: options.Json = False,
) -> None:
    """Count a task's devices and compare with its counters; exit code 1 where they differ."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = client.get(f"{_path(operation_id)}/invariants")
    if as_json:
        tables.print_json(found)
    else:
        tables.print_fields(found.items())
    if not found["exact"]:
        raise Failure("the counters are not the rows: a bug of the server", REFUSED)


def _path(operation_id: str) -> str:
    return f"{TASKS}/{segment(operation_id)}"


def _task(client: Client, operation_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(_path(operation_id))
    return found


def _follow(client: Client, operation_id: str, timeout: float | None, *, as_json: bool | None) -> dict[str, Any]:
    """The task once it has ended, or as it is after `timeout` seconds.

    `as_json` True prints a line at each change, False shows bars, None is silent.
    """
    from openiodm.cli.progress import counter_bars

    until = None if timeout is None else time.monotonic() + timeout
    before: dict[str, Any] | None = None
    with counter_bars(hidden=as_json is not False) as bars:
        while True:
            found = _task(client, operation_id)
            ended = found["status"] in FINAL
            bars.show(found["counters"], found["counters"]["total"], last=ended)
            if as_json and found != before:
                tables.print_line(found)
            before = found
            left = LOOK_EVERY_S if until is None else until - time.monotonic()
            if ended or left <= 0:
                return found
            time.sleep(min(LOOK_EVERY_S, left))
