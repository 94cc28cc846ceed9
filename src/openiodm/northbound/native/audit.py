"""Native route of the audit trail: what was done to the caller's own things, by whomever."""

import re
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from openiodm.access.audit import AuditTrail
from openiodm.access.model import AuditEntry, AuditPlace
from openiodm.clock import Instant
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Call, Needs, Route
from openiodm.northbound.native.edge import PREFIX
from openiodm.northbound.native.times import moment, read_moment

AUDIT = PREFIX + "/audit"

_CURSOR = re.compile(r"([0-9]{1,16})-([0-9]{1,18})", re.ASCII)
Operation = Annotated[str, Meta(pattern=r"^[a-z-]+\.[a-z-]+$(?!\n)", max_length=64, description="As `device.delete`")]
ObjectId = Annotated[str, Meta(min_length=1, max_length=256, description="The id of what was changed")]
Cursor = Annotated[str, Meta(pattern=r"^[0-9]{1,16}-[0-9]{1,18}$(?!\n)", description="`nextCursor` of the page before")]
Limit = Annotated[int, Meta(ge=1, le=500)]
Moment = Annotated[str, Meta(max_length=64, extra_json_schema={"format": "date-time"})]


class AuditQuery(msgspec.Struct, rename="camel"):
    """Conditions that must all hold. `since` is inside of the span of time, `until` is not."""

    operation: Operation | None = None
    object_id: ObjectId | None = None
    since: Moment | None = None
    until: Moment | None = None
    cursor: Cursor | None = None
    limit: Limit = 100


class AuditView(msgspec.Struct, rename="camel"):
    """One change. `caller` is an appId, or who ran the server's command line; then there is no `address`."""

    at: datetime
    operation: str
    object_id: str | None
    caller: str
    address: str | None
    outcome: str


class AuditPage(msgspec.Struct, rename="camel"):
    """Newest first; `nextCursor` null: there are no more."""

    items: list[AuditView]
    next_cursor: str | None


def routes(trail: AuditTrail) -> list[Route]:
    """The one operation."""

    async def list_audit(call: Call) -> AuditPage:
        query: AuditQuery = call.query
        found = await trail.of(
            call.actor,
            _place(query.cursor),
            query.limit + 1,
            operation=query.operation,
            object_id=query.object_id,
            since=_instant(query.since, "since"),
            until=_instant(query.until, "until"),
        )
        shown = found[: query.limit]
        more = len(found) > query.limit
        return AuditPage([_view(entry) for entry in shown], _cursor(shown[-1].place) if more else None)

    return [
        Route(
            "GET",
            AUDIT,
            list_audit,
            Needs.APPLICATION,
            "List who changed what, newest first",
            query=AuditQuery,
            answer=AuditPage,
            description="What was done to the caller's own things, by itself, by others for it, or by the operator.",
        )
    ]


def _instant(text: str | None, field: str) -> Instant | None:
    try:
        return None if text is None else read_moment(text)
    except ValueError as error:
        raise Refusal(Reason.BAD_INPUT, str(error), field=field) from error


def _cursor(place: AuditPlace) -> str:
    return f"{place.at}-{place.number}"


def _place(cursor: str | None) -> AuditPlace | None:
    if cursor is None:
        return None
    parts = _CURSOR.fullmatch(cursor)
    if parts is None:  # `$` of the pattern above lets a line's end pass
        raise Refusal(Reason.BAD_INPUT, "that is no cursor", field="cursor")
    return AuditPlace(Instant(int(parts[1])), int(parts[2]))


def _view(entry: AuditEntry) -> AuditView:
    return AuditView(
        moment(entry.at), entry.operation, entry.object_id, entry.caller, entry.address or None, entry.outcome
    )
