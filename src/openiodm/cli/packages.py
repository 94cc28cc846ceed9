"""`openiodm package`: upload, list, show, delete."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

import typer

from openiodm.cli import options, tables
from openiodm.cli.client import segment
from openiodm.cli.failure import USAGE, Failure
from openiodm.cli.options import NATIVE, connect
from openiodm.cli.tables import field, when

app = typer.Typer(no_args_is_help=True, help="Packages: upload, list, show, delete.")

PACKAGES = f"{NATIVE}/packages"
READ_PIECE = 1024 * 1024

COLUMNS: tuple[tables.Column, ...] = (
    ("file id", field("fileId")),
    ("type", field("type")),
    ("name", field("name")),
    ("version", field("version")),
    ("device type", field("deviceType")),
    ("model", field("model")),
    ("manufacturer", field("manufacturerName")),
    ("size", lambda row: tables.size(row.get("size"))),
    ("uploaded", when("uploadedAt")),
)
FIELDS = (
    *COLUMNS,
    ("source versions", field("sourceVersions")),
    ("description", field("description")),
    ("protocol", field("protocolType")),
    ("build date", field("buildDate")),
    ("extra", field("extra")),
    ("sha256", field("sha256")),
    ("sha1", field("sha1")),
    ("md5", field("md5")),
)

FileId = Annotated[str, typer.Argument(metavar="FILE_ID")]


def package_type(text: str) -> str:
    """`firmware` and `software` for short.

    Raises:
        Failure: it is neither.
    """
    short = text.removesuffix("Package")
    if short not in {"firmware", "software"}:
        raise Failure(f"--type is firmware or software, not {text}", USAGE)
    return f"{short}Package"


@app.command()
def upload(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, readable=True)],
    type_: Annotated[str, typer.Option("--type", help="firmware or software.")],
    version: Annotated[str | None, typer.Option("--version")] = None,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    device_type: options.DeviceType = None,
    model: options.Model = None,
    manufacturer: options.Manufacturer = None,
    name: Annotated[str | None, typer.Option("--name", help="Else the file's name.")] = None,
    source_version: Annotated[
        list[str] | None, typer.Option("--source-version", help="Upgrade only from these; may be repeated.")
    ] = None,
    description: Annotated[str | None, typer.Option("--description")] = None,
    protocol_type: Annotated[str | None, typer.Option("--protocol-type")] = None,
    build_date: Annotated[str | None, typer.Option("--build-date")] = None,
    as_json: options.Json = False,
) -> None:
    """Upload a package.

    Version and product are needed, unless the file is a SOTA zip that says them. The file is streamed, and its SHA-256
    computed here and compared by the server.
    """
    length = file.stat().st_size
    query = {
        "type": package_type(type_),
        "name": name or (None if file.suffix == ".zip" and version is None else file.name),
        "version": version,
        "deviceType": device_type,
        "model": model,
        "manufacturerName": manufacturer,
        "sourceVersions": ",".join(source_version) if source_version else None,
        "description": description,
        "protocolType": protocol_type,
        "buildDate": build_date,
        "sha256": _sha256(file),
    }
    from openiodm.cli.progress import byte_bar

    with (
        connect(url, app_id, secret_file, ca, client_cert) as client,
        file.open("rb") as stream,
        byte_bar("uploading", length) as advance,
    ):
        done = client.upload(PACKAGES, query, stream, length, advance)
    _print(done, as_json=as_json)


@app.command("list")
def list_(
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    type_: Annotated[str | None, typer.Option("--type", help="firmware or software.")] = None,
    version: Annotated[str | None, typer.Option("--version")] = None,
    device_type: options.DeviceType = None,
    model: options.Model = None,
    manufacturer: options.Manufacturer = None,
    page: options.PageNo = 0,
    page_size: Annotated[int, typer.Option("--page-size", min=1, max=100)] = 20,
    as_json: options.Json = False,
) -> None:
    """List packages, newest first."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = client.get(
            PACKAGES,
            type=None if type_ is None else package_type(type_),
            version=version,
            deviceType=device_type,
            model=model,
            manufacturerName=manufacturer,
            pageNo=page,
            pageSize=page_size,
        )
    if as_json:
        tables.print_json(found)
    else:
        tables.print_table(found["items"], COLUMNS, caption=f"page {page}, {found['total']} in all")


@app.command()
def show(
    file_id: FileId,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    as_json: options.Json = False,
) -> None:
    """Show a package with its digests."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = client.get(f"{PACKAGES}/{segment(file_id)}")
    _print(found, as_json=as_json)


@app.command()
def delete(
    file_id: FileId,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    give_up_retries: Annotated[
        bool, typer.Option("--give-up-retries", help="Also where a failed task could be retried with it.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Delete a package; refused while an unfinished task needs it, or a failed one that could be retried."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        query = {"giveUpRetries": "true"} if give_up_retries else None
        client.call("DELETE", f"{PACKAGES}/{segment(file_id)}", query=query)
    if as_json:
        tables.print_json({"deleted": [file_id]})


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(READ_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _print(package: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        tables.print_json(package)
    else:
        tables.print_fields((title, read(package)) for title, read in FIELDS)
