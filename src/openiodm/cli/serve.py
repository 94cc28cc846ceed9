"""`openiodm serve`: the server, and what its very first start shows."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openiodm.cli import options, tables
from openiodm.cli.failure import REFUSED, USAGE, Failure

if TYPE_CHECKING:
    from openiodm.access.model import Product
    from openiodm.rooms import Rooms
    from openiodm.settings import Settings
    from openiodm.traces import Traces
    from openiodm.workers import Worker

FIRST_APPLICATION = "default"


def load_settings(config: Path | None, database: str | None, data_dir: Path | None, **overrides: Any) -> "Settings":
    """The server's settings: file, environment, options.

    Raises:
        Failure: one makes no sense; it is named.
    """
    from openiodm.settings import SettingsError, load

    if config is None and (named := os.environ.get("OPENIODM_CONFIG")):
        config = Path(named)
    try:
        return load(config, database=database, data_dir=None if data_dir is None else str(data_dir), **overrides)
    except SettingsError as error:
        raise Failure(str(error), USAGE) from error


def product_of(device_type: str | None, model: str | None, manufacturer: str | None) -> "Product | None":
    """The product of the three options; None when none is given.

    Raises:
        Failure: some are missing.
    """
    from openiodm.access.model import Product

    given = (device_type, model, manufacturer)
    if not any(given):
        return None
    if device_type is None or model is None or manufacturer is None:
        raise Failure("a product is --device-type, --model and --manufacturer together", USAGE)
    return Product(device_type, model, manufacturer)


def database_errors() -> tuple[type[Exception], ...]:
    """What a database that is not there, or not ours, ends in."""
    import sqlite3

    import asyncpg

    from openiodm.errors import Unavailable

    return (OSError, sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError, Unavailable)


def _is_away(error: Exception, settings: "Settings") -> bool:
    """Is it a PostgreSQL that is not there yet, and not a wrong setting? Then another start is worth while."""
    import asyncpg

    from openiodm.errors import Unavailable

    away = (
        OSError,
        Unavailable,
        asyncpg.PostgresConnectionError,
        asyncpg.CannotConnectNowError,
        asyncpg.TooManyConnectionsError,
    )
    return isinstance(error, away) and not settings.database_url.startswith("sqlite")


def serve(
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="The northbound APIs, and devices.")
    ] = None,
    device_listen: Annotated[
        str | None, typer.Option("--device-listen", metavar="HOST:PORT", help="Devices alone, apart from --listen.")
    ] = None,
    tls: Annotated[
        str | None,
        typer.Option("--tls", metavar="CERT,KEY", help="PEM files: answer --listen over TLS (1.2 or 1.3) alone."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="So many processes; more than 1 needs PostgreSQL.")
    ] = None,
    device_type: Annotated[
        str | None, typer.Option("--device-type", help="At the first start: make a gateway token for this product.")
    ] = None,
    model: options.Model = None,
    manufacturer: options.Manufacturer = None,
) -> None:
    """Run the server until Ctrl-C or SIGTERM.

    The very first start on a database makes the application "default" and shows its id and secret once, on stderr; with
    --device-type, --model and --manufacturer a gateway token for such devices too.
    """
    certificate, _, key = (tls or "").partition(",")
    settings = load_settings(
        config,
        database,
        data_dir,
        listen=listen,
        device_listen=device_listen,
        tls_certificate=certificate or None,
        tls_key=None if tls is None else key,
        workers=workers,
    )
    product = product_of(device_type, model, manufacturer)

    from openiodm import logs
    from openiodm.workers import ALONE

    logs.configure(settings.log_level, settings.log_format)
    if settings.workers == 1:
        _run(settings, product, ALONE, lambda: None)
    else:
        raise typer.Exit(_supervise(settings, product))


def _supervise(settings: "Settings", product: "Product | None") -> int:
    """Runs the workers; the exit status."""
    from openiodm import app
    from openiodm.workers import Supervisor

    try:
        app.check_addresses(settings)
    except app.StartError as error:
        raise Failure(str(error), USAGE) from error

    def serve_as(worker: "Worker", serving: Callable[[], None]) -> int:
        try:
            _run(settings, product, worker, serving)
        except Failure as failure:
            print(f"openiodm: {failure}", file=sys.stderr)
            return failure.code
        return 0

    return Supervisor(serve_as, settings.workers, grace_s=settings.shutdown_grace_s, hopeless=USAGE).run()


def _run(settings: "Settings", product: "Product | None", worker: "Worker", serving: Callable[[], None]) -> None:
    """Serves in this process until it is told to stop; calls `serving` when it does.

    Raises:
        Failure: it cannot start; the message says why.
    """
    import uvloop

    from openiodm import app

    begun = False

    async def started(rooms: "Rooms") -> None:
        nonlocal begun
        if worker.first:
            await _first_start(rooms, settings, product)
        begun = True
        serving()

    try:
        uvloop.run(app.serve(settings, started, worker, _traces() if settings.traces else None))
    except app.StartError as error:
        raise Failure(str(error), USAGE) from error
    except database_errors() as error:
        if begun:  # then it is no wrong setting
            raise
        away = _is_away(error, settings)
        raise Failure(f"cannot start: {error}", REFUSED if away else USAGE) from error


def _traces() -> "Traces":
    """Here and not in `app`: what is not wanted is not imported, and need not be installed.

    Raises:
        Failure: it is not installed.
    """
    try:
        from openiodm.traces import Traces
    except ImportError as error:
        raise Failure(f"traces = true needs a package more: pip install 'openiodm[otel]' ({error})", USAGE) from error
    from openiodm import __version__

    return Traces(__version__)


async def _first_start(rooms: "Rooms", settings: "Settings", product: "Product | None") -> None:
    """Makes an application where there is none. Its secret goes to the terminal and never into the log."""
    from openiodm.access.model import OPERATOR

    if await rooms.access_queries.applications():
        return
    credentials = await rooms.access.create_first_application(FIRST_APPLICATION)
    if credentials is None:  # another server was quicker
        return
    lines = [
        "",
        f"This is the first start: an application {FIRST_APPLICATION!r} was made. Its secret is shown only now.",
        f"  address  {settings.url}",
        f"  app id   {credentials.app_id}",
        f"  secret   {credentials.secret}",
    ]
    if product is not None:
        actor = (await rooms.access_queries.application(credentials.app_id)).acted_on_by(OPERATOR)
        _, token = await rooms.access.create_gateway_token(actor, FIRST_APPLICATION, product)
        lines.append(f"  gateway token of {product.device_type} {product.model}, {product.manufacturer_name}: {token}")
    tables.note("\n".join([*lines, ""]))
