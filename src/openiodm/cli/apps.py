"""`openiodm app`: applications, for whoever runs the server. Straight on the database, also beside a running server."""

import asyncio
import os
import pwd
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from openiodm.cli import options, tables
from openiodm.cli.failure import USAGE, Failure
from openiodm.cli.serve import database_errors, load_settings
from openiodm.cli.tables import field

if TYPE_CHECKING:
    from openiodm.access.model import Actor
    from openiodm.rooms import Rooms
    from openiodm.settings import Settings

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True, help="Applications, on the database itself: create, rotate, freeze, authorize, gateway-token."
)

COLUMNS: tuple[tables.Column, ...] = (
    ("name", field("name")),
    ("app id", field("appId")),
    ("target tokens", field("targetTokens")),
    ("gateway tokens", field("gatewayTokens")),
    ("frozen", field("frozen")),
)

AUTHORIZATION_COLUMNS: tuple[tables.Column, ...] = (
    ("may act for it", field("mayActForIt")),
    ("app id", field("appId")),
    ("name", field("name")),
)

AppId = Annotated[str, typer.Argument(metavar="APP_ID")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Create an application and show its secret, once."""
    made = create_application(load_settings(config, database, data_dir), name)
    _print(made, as_json=as_json)


@app.command("list")
def list_(
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """List all applications, oldest first."""

    async def read(rooms: "Rooms") -> list[dict[str, Any]]:
        return [
            {
                "appId": a.app_id,
                "name": a.name,
                "targetTokens": a.target_tokens,
                "gatewayTokens": a.gateway_tokens,
                "frozen": a.frozen,
            }
            for a in await rooms.access_queries.applications()
        ]

    found = with_rooms(load_settings(config, database, data_dir), read)
    if as_json:
        tables.print_json(found)
    else:
        tables.print_table(found, COLUMNS)


@app.command()
def rotate(
    app_id: AppId,
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Give an application a new secret, shown once, and end its logins."""

    async def change(rooms: "Rooms") -> dict[str, Any]:
        credentials = await rooms.access.rotate_secret(app_id, operator=operator())
        return {"appId": credentials.app_id, "secret": credentials.secret}

    _print(with_rooms(load_settings(config, database, data_dir), change), as_json=as_json)


OtherAppId = Annotated[str, typer.Argument(metavar="OTHER_APP_ID", help="The application that may act for it.")]


@app.command()
def freeze(
    app_id: AppId,
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Shut an application and its devices out, and end its logins."""
    _set_frozen(load_settings(config, database, data_dir), app_id, frozen=True, as_json=as_json)


@app.command()
def thaw(
    app_id: AppId,
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Let a frozen application and its devices in again. It has to log in anew."""
    _set_frozen(load_settings(config, database, data_dir), app_id, frozen=False, as_json=as_json)


def _set_frozen(settings: "Settings", app_id: str, *, frozen: bool, as_json: bool) -> None:
    async def change(rooms: "Rooms") -> None:
        await rooms.access.set_frozen(app_id, frozen=frozen, operator=operator())

    with_rooms(settings, change)
    if as_json:
        tables.print_json({"appId": app_id, "frozen": frozen})


@app.command()
def authorize(
    app_id: AppId,
    other_app_id: OtherAppId,
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Let another application act on this one's devices, groups and subscriptions."""

    async def change(rooms: "Rooms") -> None:
        await rooms.access.authorize(await acting_on(rooms, app_id), other_app_id)

    with_rooms(load_settings(config, database, data_dir), change)
    if as_json:
        tables.print_json({"appId": app_id, "authorized": other_app_id})


@app.command()
def unauthorize(
    app_id: AppId,
    other_app_id: OtherAppId,
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Take such an authorization back."""

    async def change(rooms: "Rooms") -> None:
        await rooms.access.unauthorize(await acting_on(rooms, app_id), other_app_id)

    with_rooms(load_settings(config, database, data_dir), change)
    if as_json:
        tables.print_json({"appId": app_id, "unauthorized": other_app_id})


@app.command()
def authorizations(
    app_id: AppId,
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """List who may act for an application, and for whom it may act."""

    async def read(rooms: "Rooms") -> list[dict[str, Any]]:
        actor = (await rooms.access_queries.application(app_id)).actor
        both = (
            (True, await rooms.access_queries.authorized_by(actor)),
            (False, await rooms.access_queries.authorizing(actor)),
        )
        return [{"mayActForIt": granted, "appId": a.app_id, "name": a.name} for granted, found in both for a in found]

    found = with_rooms(load_settings(config, database, data_dir), read)
    if as_json:
        tables.print_json(found)
    else:
        tables.print_table(found, AUTHORIZATION_COLUMNS)


@app.command("gateway-token")
def gateway_token(
    app_id: AppId,
    name: Annotated[str, typer.Option("--name", help="What the token is for.")],
    device_type: Annotated[str, typer.Option("--device-type")],
    model: Annotated[str, typer.Option("--model")],
    manufacturer: Annotated[str, typer.Option("--manufacturer")],
    authority: Annotated[
        str | None,
        typer.Option("--authority", help="No token: what a trusted proxy's X-Authority says of the devices' issuer."),
    ] = None,
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """Make a token that many devices share, and show it, once.

    Devices that register themselves with it become devices of this product.
    """
    from openiodm.access.model import Product

    product = Product(device_type, model, manufacturer)

    async def make(rooms: "Rooms") -> dict[str, Any]:
        actor = await acting_on(rooms, app_id)
        if authority is not None:
            kept = await rooms.access.create_authority(actor, name, product, authority)
            return {"tokenId": str(kept.key), "name": name, "authority": authority}
        kept, token = await rooms.access.create_gateway_token(actor, name, product)
        return {"tokenId": str(kept.key), "name": name, "token": token}

    _print(with_rooms(load_settings(config, database, data_dir), make), as_json=as_json)


def create_application(settings: "Settings", name: str) -> dict[str, str]:
    """A new application: appId, name, secret."""

    async def make(rooms: "Rooms") -> dict[str, str]:
        credentials = await rooms.access.create_application(name, operator=operator())
        return {"appId": credentials.app_id, "name": name, "secret": credentials.secret}

    return with_rooms(settings, make)


def operator() -> str:
    """Whom the audit trail names for what is done here: the user of the machine."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run as a number without a name
        name = str(os.getuid())
    return f"operator:{name}"


async def acting_on(rooms: "Rooms", app_id: str) -> "Actor":
    """The application, acted on by whoever runs this command."""
    return (await rooms.access_queries.application(app_id)).acted_on_by(operator())


def with_rooms(settings: "Settings", use: "Callable[[Rooms], Awaitable[T]]") -> T:
    """What `use` gives on the database's rooms.

    Raises:
        Failure: the server's rules refuse it, or the database cannot be opened.
    """
    from openiodm import logs
    from openiodm.app import StartError
    from openiodm.errors import Refusal
    from openiodm.rooms import open_rooms

    logs.configure("warning", settings.log_format)

    async def run() -> T:
        async with open_rooms(settings) as rooms:
            return await use(rooms)

    try:
        return asyncio.run(run())
    except Refusal as refusal:
        at = f", {refusal.field}" if refusal.field else ""
        raise Failure(f"{refusal.detail} ({refusal.reason}{at})") from refusal
    except StartError as error:
        raise Failure(str(error), USAGE) from error
    except database_errors() as error:
        raise Failure(f"cannot open the database: {error}", USAGE) from error


def _print(made: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        tables.print_json(made)
    else:
        tables.print_fields(made.items())
