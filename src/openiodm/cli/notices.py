"""`openiodm subscription` and `openiodm notice`: who is told, what was not delivered, and delivering it again."""

from typing import Annotated, Any

import typer

from openiodm.cli import options, tables
from openiodm.cli.failure import USAGE, Failure
from openiodm.cli.options import NATIVE, connect
from openiodm.cli.tables import field, when

subscriptions = typer.Typer(no_args_is_help=True, help="Subscriptions: list.")
notices = typer.Typer(no_args_is_help=True, help="Notices that are not delivered: list, replay.")

SUBSCRIPTION_COLUMNS: tuple[tables.Column, ...] = (
    ("type", field("notifyType")),
    ("subscription id", field("subscriptionId")),
    ("callback", field("callbackUrl")),
    ("pending", field("pending")),
    ("undelivered", field("undelivered")),
    ("last delivered", when("lastDeliveredAt")),
    ("last error", field("lastError")),
    ("at", when("lastErrorAt")),
)
NOTICE_COLUMNS: tuple[tables.Column, ...] = (
    ("notice id", field("noticeId")),
    ("type", field("notifyType")),
    ("device", lambda row: str(row["body"].get("deviceId", ""))),
    ("created", when("createdAt")),
    ("attempts", field("attempts")),
    ("given up", when("givenUpAt")),
    ("last error", field("lastError")),
)


@subscriptions.command("list")
def list_subscriptions(
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    as_json: options.Json = False,
) -> None:
    """List subscriptions, newest first, with how their delivery goes."""
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = client.get(f"{NATIVE}/subscriptions")
    if as_json:
        tables.print_json(found)
    else:
        tables.print_table(found["items"], SUBSCRIPTION_COLUMNS)


@notices.command("list")
def list_notices(
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    pending: Annotated[bool, typer.Option("--pending", help="Those on their way, not those given up.")] = False,
    subscription: Annotated[
        str | None, typer.Option("--subscription", metavar="ID", help="Of this subscription alone.")
    ] = None,
    cursor: Annotated[int, typer.Option("--cursor", min=0, help="nextCursor of the page before.")] = 0,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500)] = 100,
    as_json: options.Json = False,
) -> None:
    """List notices that are not delivered, oldest first."""
    query: dict[str, Any] = {"state": "pending" if pending else "undelivered", "cursor": cursor, "limit": limit}
    if subscription is not None:
        query["subscriptionId"] = subscription
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        found = client.get(f"{NATIVE}/notices", **query)
    if as_json:
        tables.print_json(found)
    else:
        more = f"more with --cursor {found['nextCursor']}" if found["nextCursor"] else ""
        tables.print_table(found["items"], NOTICE_COLUMNS, caption=more)


@notices.command()
def replay(
    notice_id: Annotated[str | None, typer.Argument(metavar="[NOTICE_ID]")] = None,
    url: options.Url = None,
    app_id: options.AppId = None,
    secret_file: options.SecretFile = None,
    ca: options.Ca = None,
    client_cert: options.ClientCert = None,
    subscription: Annotated[
        str | None, typer.Option("--subscription", metavar="ID", help="All undelivered ones of this subscription.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Deliver an undelivered notice again, or all of a subscription."""
    if (notice_id is None) == (subscription is None):
        raise Failure("give a notice id, or --subscription", USAGE)
    with connect(url, app_id, secret_file, ca, client_cert) as client:
        if notice_id is not None:
            client.call("POST", f"{NATIVE}/notices/{notice_id}/replay")
            done = {"replayed": 1}
        else:
            done = client.call("POST", f"{NATIVE}/subscriptions/{subscription}/replay")
    if as_json:
        tables.print_json(done)
    else:
        tables.print_fields(done.items())
