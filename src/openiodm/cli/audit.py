"""`openiodm audit`: who changed what, for whoever runs the server. Straight on the database."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openiodm.cli import options, tables
from openiodm.cli.apps import with_rooms
from openiodm.cli.serve import load_settings
from openiodm.cli.tables import field, when

if TYPE_CHECKING:
    from openiodm.access.model import AuditEntry
    from openiodm.rooms import Rooms

app = typer.Typer(no_args_is_help=True, help="Who changed what, read from the database itself.")

COLUMNS: tuple[tables.Column, ...] = (
    ("at", when("at")),
    ("operation", field("operation")),
    ("object", field("objectId")),
    ("app id", field("appId")),
    ("caller", field("caller")),
    ("address", field("address")),
    ("outcome", field("outcome")),
)
FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]


@app.callback()
def _group() -> None:
    """Who changed what, read from the database itself."""


@app.command("list")
def list_(
    application: Annotated[
        str | None, typer.Option("--app", metavar="APP_ID", help="What was done to this application's things.")
    ] = None,
    operation: Annotated[str | None, typer.Option("--operation", metavar="NAME", help="Such as device.delete.")] = None,
    object_id: Annotated[str | None, typer.Option("--object", metavar="ID", help="The id of what was changed.")] = None,
    since: Annotated[datetime | None, typer.Option("--since", formats=FORMATS, help="UTC; this moment too.")] = None,
    until: Annotated[datetime | None, typer.Option("--until", formats=FORMATS, help="UTC; without it.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Most entries shown.")] = 100,
    config: options.ConfigFile = None,
    database: options.Database = None,
    data_dir: options.DataDir = None,
    as_json: options.Json = False,
) -> None:
    """List changes, newest first."""

    async def read(rooms: "Rooms") -> list[dict[str, Any]]:
        from openiodm.access.model import AuditFilter

        key = None if application is None else (await rooms.access_queries.application(application)).key
        wanted = AuditFilter(key, operation, object_id, _instant(since), _instant(until))
        return [_row(entry) for entry in await rooms.audit.page(wanted, None, limit)]

    found = with_rooms(load_settings(config, database, data_dir), read)
    if as_json:
        tables.print_json(found)
    else:
        tables.print_table(found, COLUMNS)


def _instant(moment: datetime | None) -> Any:
    from openiodm.clock import Instant

    return None if moment is None else Instant(int(moment.replace(tzinfo=UTC).timestamp() * 1000))


def _row(entry: "AuditEntry") -> dict[str, Any]:
    return {
        "at": datetime.fromtimestamp(entry.at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "operation": entry.operation,
        "objectId": entry.object_id,
        "appId": entry.app_id,
        "caller": entry.caller,
        "address": entry.address or None,
        "outcome": entry.outcome,
    }
