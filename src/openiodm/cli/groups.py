"""`openiodm group`: groups of devices, which tasks name. A group is named by its name or its id."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from openiodm.cli import options, tables
from openiodm.cli.client import Client
from openiodm.cli.failure import USAGE, Failure
from openiodm.cli.options import NATIVE, connect
from openiodm.cli.tables import field, when

app = typer.Typer(no_args_is_help=True, help="Groups: list, create, delete, add, remove, members.")

GROUPS = f"{NATIVE}/groups"
CHANGE_DEVICES = 1000  # devices a call may add or remove

COLUMNS: tuple[tables.Column, ...] = (
    ("name", field("name")),
    ("group id", field("groupId")),
    ("devices", field("deviceCount")),
    ("limit", field("maxDevices")),
    ("created", when("createdAt")),
    ("description", field("description")),
)
MEMBER_COLUMNS: tuple[tables.Column, ...] = (("node id", field("nodeId")), ("device id", field("deviceId")))

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="Its name or its id.")]
Devices = Annotated[list[str] | None, typer.Argument(metavar="[DEVICE]...", help="deviceIds or nodeIds.")]
From = Annotated[
    Path | None,
    typer.Option("--from", metavar="FILE", help="A nodeId a line, or NDJSON with deviceId or nodeId."),
]


@app.command("list")
def list_(
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    page: options.PageNo = 0,
    page_size: Annotated[int, typer.Option("--page-size", min=1, max=500)] = 50,
    as_json: options.Json = False,
) -> None:
    """List groups, newest first."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = client.get(GROUPS, pageNo=page, pageSize=page_size)
    if as_json:
        tables.print_json(found)
    else:
        tables.print_table(found["items"], COLUMNS, caption=f"page {page}, {found['total']} in all")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    devices: Devices = None,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    description: Annotated[str | None, typer.Option("--description")] = None,
    max_devices: Annotated[int, typer.Option("--max-devices", min=0, help="0 = no limit.")] = 0,
    file: From = None,
    as_json: options.Json = False,
) -> None:
    """Create a group, with its first members if any are given."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        chunks = list(_chunks(client, devices, file))
        group = client.call("POST", GROUPS, body={"name": name, "description": description, "maxDevices": max_devices})
        for chunk in chunks:
            group = client.call("POST", f"{GROUPS}/{group['groupId']}/devices", body=chunk)
    _print(group, as_json=as_json)


@app.command()
def delete(
    group: GroupArgument,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    as_json: options.Json = False,
) -> None:
    """Delete a group; its devices stay."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        group_id = options.group_of(client, group)["groupId"]
        client.call("DELETE", f"{GROUPS}/{group_id}")
    if as_json:
        tables.print_json({"deleted": [group_id]})


@app.command()
def add(
    group: GroupArgument,
    devices: Devices = None,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    file: From = None,
    as_json: options.Json = False,
) -> None:
    """Put devices into a group, 1,000 at a time."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        _print(_change(client, "POST", group, devices, file), as_json=as_json)


@app.command()
def remove(
    group: GroupArgument,
    devices: Devices = None,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    file: From = None,
    as_json: options.Json = False,
) -> None:
    """Take devices out of a group, 1,000 at a time."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        _print(_change(client, "DELETE", group, devices, file), as_json=as_json)


@app.command()
def members(
    group: GroupArgument,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    page: options.PageNo = 0,
    page_size: Annotated[int, typer.Option("--page-size", min=1, max=500)] = 50,
    everything: options.All = False,
    as_json: options.Json = False,
) -> None:
    """List the devices of a group."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        path = f"{GROUPS}/{options.group_of(client, group)['groupId']}/devices"
        if everything:
            items = options.every(client, path)
            if as_json:
                for item in items:
                    tables.print_line(item)
            else:
                tables.print_table(items, MEMBER_COLUMNS)
            return
        found = client.get(path, pageNo=page, pageSize=page_size)
    if as_json:
        tables.print_json(found)
    else:
        tables.print_table(found["items"], MEMBER_COLUMNS, caption=f"page {page}, {found['total']} in all")


def _change(client: Client, method: str, group: str, devices: Sequence[str] | None, file: Path | None) -> Any:
    if not devices and file is None:
        raise Failure("which devices? name them, or give --from FILE", USAGE)
    found = options.group_of(client, group)
    for chunk in _chunks(client, devices, file):
        found = client.call(method, f"{GROUPS}/{found['groupId']}/devices", body=chunk)
    return found


def _chunks(client: Client, devices: Sequence[str] | None, file: Path | None) -> Iterator[dict[str, list[str]]]:
    """Bodies for the server, each with at most `CHANGE_DEVICES` ids of one kind."""
    held: dict[str, list[str]] = {"deviceIds": [options.device_id(client, d) for d in devices or ()], "nodeIds": []}
    for kind, name in () if file is None else options.device_names(file):
        held[kind].append(name)
        if len(held[kind]) == CHANGE_DEVICES:
            yield {kind: held[kind]}
            held[kind] = []
    for kind, names in held.items():
        for at in range(0, len(names), CHANGE_DEVICES):
            yield {kind: names[at : at + CHANGE_DEVICES]}


def _print(group: Any, *, as_json: bool) -> None:
    if as_json:
        tables.print_json(group)
    else:
        tables.print_fields((title, read(group)) for title, read in COLUMNS)
