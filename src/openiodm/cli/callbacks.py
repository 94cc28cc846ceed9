"""`openiodm app callback-tls` and `callback-signature`: what an application's callbacks are made with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openiodm.cli import options, tables
from openiodm.cli.apps import AppId, acting_on, with_rooms
from openiodm.cli.failure import USAGE, Failure
from openiodm.cli.serve import load_settings

if TYPE_CHECKING:
    from openiodm.rooms import Rooms


def callback_tls(
    app_id: AppId,
    ca: Annotated[Path | None, typer.Option("--ca", metavar="PEM", help="Authorities that certify receivers.")] = None,
    cert: Annotated[Path | None, typer.Option("--cert", metavar="PEM", help="The client certificate.")] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="PEM", help="Its key, without a password.")] = None,
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Set whom HTTPS callbacks trust and who they are, in place of what was set before.

    Without any file the system's authorities are trusted again, and no certificate is shown.
    """
    ca_pem, certificate_pem, key_pem = map(_read, (ca, cert, key))

    async def change(rooms: "Rooms") -> dict[str, Any]:
        actor = await acting_on(rooms, app_id)
        await rooms.subscriptions.set_tls(actor, ca_pem=ca_pem, certificate_pem=certificate_pem, key_pem=key_pem)
        return {
            "appId": app_id,
            "ownAuthorities": ca_pem is not None,
            "clientCertificate": certificate_pem is not None,
        }

    _print(with_rooms(load_settings(config, database, data_dir), change), as_json=as_json)


def callback_signature(
    app_id: AppId,
    off: Annotated[bool, typer.Option("--off", help="Notices are not signed any more.")] = False,
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Sign an application's notices, with a new secret that is shown once."""

    async def change(rooms: "Rooms") -> dict[str, Any]:
        secret = await rooms.subscriptions.sign(await acting_on(rooms, app_id), signed=not off)
        return {"appId": app_id, "signed": not off, "secret": secret}

    _print(with_rooms(load_settings(config, database, data_dir), change), as_json=as_json)


def _read(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}", USAGE) from error
    except UnicodeDecodeError as error:
        raise Failure(f"{file} is not PEM", USAGE) from error


def _print(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        tables.print_json(made)
    else:
        tables.print_fields(made.items())
