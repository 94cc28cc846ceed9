"""Options that commands share, as types; and the client that they lead to."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from openiodm.cli.client import Client, Refused, find_access, segment
from openiodm.cli.failure import USAGE, Failure

NATIVE = "/api/v1"
COMPAT = "/iodm/northbound/v1.5.0"
PAGE = 500  # items a call when a command reads a whole list

Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The server; else OPENIODM_URL, else http://127.0.0.1:8743."),
]
AppId = Annotated[str | None, typer.Option("--app-id", metavar="ID", help="The application; else OPENIODM_APP_ID.")]
SecretFile = Annotated[
    Path | None,
    typer.Option(
        "--secret-file", metavar="FILE", help="Its secret; else OPENIODM_SECRET, else the file OPENIODM_SECRET_FILE."
    ),
]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="Trust these authorities (PEM) for https; else OPENIODM_CA."),
]
ClientCert = Annotated[
    str | None,
    typer.Option("--client-cert", metavar="CERT,KEY", help="Show this certificate (PEM); else OPENIODM_CLIENT_CERT."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")]

DeviceType = Annotated[str | None, typer.Option("--device-type", metavar="TEXT")]
Model = Annotated[str | None, typer.Option("--model", metavar="TEXT")]
Manufacturer = Annotated[str | None, typer.Option("--manufacturer", metavar="TEXT")]
PageNo = Annotated[int, typer.Option("--page", min=0, help="From 0.")]
All = Annotated[bool, typer.Option("--all", help="Every page; with --json one line of JSON each.")]

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings as TOML; else OPENIODM_CONFIG.")
]
Database = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="sqlite:///PATH or postgresql://...; wins over all.")
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", metavar="DIR", help="Embedded database and package files.")]


def connect(
    url: str | None, app_id: str | None, secret_file: Path | None, ca: Path | None, client_cert: str | None
) -> Client:
    """The client of these options and the environment."""
    return Client(find_access(url, app_id, secret_file, ca=ca, client_cert=client_cert))


def every(client: Client, path: str, **query: Any) -> Iterator[Any]:
    """All items of a list of the native API, page by page."""
    number = 0
    while items := client.get(path, pageNo=number, pageSize=PAGE, **query)["items"]:
        yield from items
        if len(items) < PAGE:
            return
        number += 1


def device_path(device: str) -> str:
    """Where a device is, by its deviceId or nodeId."""
    return f"{NATIVE}/devices/{segment(device)}"


def device_id(client: Client, device: str) -> str:
    """Our id of a device that is named by either of its ids.

    Raises:
        Failure: there is none; it names it.
    """
    try:
        return str(client.get(device_path(device))["deviceId"])
    except Refused as refused:
        if refused.reason == "device-unknown":
            raise Failure(f"there is no device {device}") from refused
        raise


def group_of(client: Client, group: str) -> dict[str, Any]:
    """A group that is named by its name or its id.

    Raises:
        Failure: there is none.
    """
    named: list[dict[str, Any]] = client.get(f"{NATIVE}/groups", name=group)["items"]
    if named:
        return named[0]
    try:
        found: dict[str, Any] = client.get(f"{NATIVE}/groups/{segment(group)}")
    except Refused as refused:
        if refused.reason == "group-unknown":
            raise Failure(f"there is no group {group}") from refused
        raise
    return found


def device_names(file: Path) -> Iterator[tuple[str, str]]:
    """("nodeIds" or "deviceIds", name) of each line: a bare nodeId, or JSON that has a deviceId or a nodeId."""
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                text = line.strip()
                if text:
                    yield _device_name(text, f"{file}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"cannot read {file}: {error}", USAGE) from error


def _device_name(text: str, where: str) -> tuple[str, str]:
    if not text.startswith("{"):
        return "nodeIds", text
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Failure(f"{where}: {error}", USAGE) from error
    for key in ("deviceId", "nodeId"):
        if isinstance(value.get(key), str):
            return key + "s", value[key]
    raise Failure(f"{where}: it has neither a deviceId nor a nodeId", USAGE)
