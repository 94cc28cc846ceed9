"""Native routes of tasks: what the published contract cannot say of them.

Create with confirmation and clocks, stop, retry, every device with its core state and the reason why it waits, its
history and own words, exports of any size, and the proof that the counters are the rows.
"""

import csv
import io
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import StreamingResponse

from openiodm.access.model import Actor
from openiodm.campaigns.commands import CampaignCommands
from openiodm.campaigns.model import Campaign, CampaignKind, Change, Clocks, Counters, ExecuteType, Policy, Upgrade
from openiodm.campaigns.queries import CampaignQueries
from openiodm.campaigns.states import CampaignStatus, UpgradeState
from openiodm.clock import SECOND, Clock, Instant
from openiodm.errors import Reason
from openiodm.http.routes import Call, Needs, Route, json_response
from openiodm.northbound.native.edge import PREFIX
from openiodm.northbound.native.times import moment, read_moment
from openiodm.northbound.tasks import (
    IDEMPOTENCY_HEADER,
    MAX_CHARS,
    MAX_PAGE_NO,
    MAX_PAGE_SIZE,
    CreateBody,
    idempotency_key,
    known_operation_id,
    new_campaign,
)

PATH = PREFIX + "/tasks"
MAX_LIMIT = 500
NDJSON_MEDIA, CSV_MEDIA = "application/x-ndjson", "text/csv; charset=utf-8"

_FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # OWASP: CSV injection

Text = Annotated[str, Meta(max_length=MAX_CHARS)]
Texts = Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "array", "items": {"type": "string"}})]
PhaseSeconds = Annotated[int, Meta(ge=1, le=10 * 365 * 86_400)]
PageNo = Annotated[int, Meta(ge=0, le=MAX_PAGE_NO)]
PageSize = Annotated[int, Meta(ge=1, le=MAX_PAGE_SIZE)]
Cursor = Annotated[int, Meta(ge=0, le=2**31 - 1, description="`nextCursor` of the page before; 0 = from the first")]
Limit = Annotated[int, Meta(ge=1, le=MAX_LIMIT)]

_IDEMPOTENCY_PARAMETER = {
    "name": IDEMPOTENCY_HEADER,
    "in": "header",
    "required": False,
    "description": "Repeats with the same key and body within 24 hours create one task and answer with it.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}


class ClocksBody(msgspec.Struct, rename="camel"):
    """How long each phase of a device may take; what is left out is as the server is set."""

    online_seconds: PhaseSeconds | None = None
    download_seconds: PhaseSeconds | None = None
    install_seconds: PhaseSeconds | None = None
    verify_seconds: PhaseSeconds | None = None
    cancel_seconds: PhaseSeconds | None = None


class CreateTaskBody(CreateBody, rename="camel", kw_only=True):
    """The published contract's body, with what it lacks. Moments are RFC 3339, or the contract's form.

    `targets.devices` are device ids or node ids; where one text is both, the device id counts.
    """

    kind: CampaignKind
    confirmation: Annotated[bool, Meta(description="devices ask their users first")] = False
    clocks: ClocksBody | None = None


class TargetsView(msgspec.Struct, rename="camel"):
    """Whom a task is for: devices, or groups; the product is the package's."""

    devices: Texts | None
    device_groups: Texts | None
    device_type: str
    model: str
    manufacturer_name: str


class PolicyView(msgspec.Struct, rename="camel"):
    """When and how often."""

    execute_type: ExecuteType
    start_time: datetime | None
    end_time: datetime | None
    retry_times: int


class CountersView(msgspec.Struct):
    """Numbers of devices; disjoint, `total` is their sum."""

    total: int
    wait: int
    processing: int
    success: int
    fail: int
    stop: int
    timeout: int


class TaskView(msgspec.Struct, rename="camel"):
    """A task."""

    operation_id: str
    kind: CampaignKind
    status: CampaignStatus
    work: Annotated[str, Meta(description="what the server itself still does: idle, expanding, retrying, sweeping")]
    round: Annotated[int, Meta(description="0 = the first; rises with every retry of the task")]
    target_version: str
    targets: TargetsView
    policy: PolicyView | None
    confirmation: bool
    counters: CountersView
    created_at: datetime
    started_at: datetime | None
    stopped_at: datetime | None


class TaskList(msgspec.Struct, rename="camel"):
    """One page, newest first; `total` counts all matches."""

    items: list[TaskView]
    total: int
    page_no: int
    page_size: int


class ListQuery(msgspec.Struct, rename="camel"):
    """Conditions that must all hold; an empty one is not given."""

    kind: CampaignKind | UnsetType = UNSET
    status: CampaignStatus | UnsetType = UNSET
    device_type: Text = ""
    model: Text = ""
    manufacturer_name: Text = ""
    device_id: Text = ""
    page_no: PageNo = 0
    page_size: PageSize = 10


class DevicesQuery(msgspec.Struct, rename="camel"):
    """Which devices of a task, and from where on."""

    state: UpgradeState | UnsetType = UNSET
    cursor: Cursor = 0
    limit: Limit = 100


class TaskDevice(msgspec.Struct, rename="camel"):
    """A device in a task."""

    ordinal: int
    sub_operation_id: str
    device_id: str
    node_id: str
    state: UpgradeState
    reason: Annotated[str | None, Meta(description="why it waits")]
    detail: str | None
    error_code: str | None
    blocker: Annotated[str | None, Meta(description="operationId of the task that held it: Task Conflict")]
    attempt: Annotated[int, Meta(description="1 = the first; rises with every retry of the device")]
    action_id: int | None
    confirmed: bool | None
    source_version: str | None
    current_version: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    due_at: Annotated[datetime | None, Meta(description="when the clock of its present phase runs out")]
    last_seen_at: datetime | None


class TaskDevicePage(msgspec.Struct, rename="camel"):
    """Devices in the order in which they joined the task; `nextCursor` null: there are no more."""

    items: list[TaskDevice]
    next_cursor: int | None


class ChangeView(msgspec.Struct, rename="camel"):
    """One change of state."""

    at: datetime
    from_state: UpgradeState
    to_state: UpgradeState
    action_id: int | None
    cause: str


class LogView(msgspec.Struct, rename="camel"):
    """What the device said at one time, in its own words."""

    at: datetime
    action_id: int
    kind: str
    lines: list[str]


class DeviceHistory(msgspec.Struct, rename="camel"):
    """All that happened to one device in a task, oldest first."""

    changes: list[ChangeView]
    log: list[LogView]


class ExportFormat(StrEnum):
    """One JSON object a line, or a table with a header."""

    NDJSON = "ndjson"
    CSV = "csv"


class ExportQuery(msgspec.Struct, rename="camel"):
    """Which devices of a task, and how."""

    format: ExportFormat = ExportFormat.NDJSON
    state: UpgradeState | UnsetType = UNSET


class Invariants(msgspec.Struct, rename="camel"):
    """The counters as they stand and the rows counted, in one snapshot: `exact` false is a bug of the server."""

    exact: bool
    counters: CountersView
    rows: CountersView
    states: dict[UpgradeState, int]


def _bad_list(field: str | None) -> Reason:
    return Reason.BAD_PAGING if field in {"pageNo", "pageSize", "cursor", "limit"} else Reason.BAD_FILTER


def routes(commands: CampaignCommands, queries: CampaignQueries, clock: Clock, clocks: Clocks) -> list[Route]:
    """The ten operations on tasks. `clocks` are the server's, for those that a body leaves out."""
    api = _Tasks(commands, queries, clock, clocks)
    return [*_task_routes(api), *_device_routes(api)]


def _task_routes(api: "_Tasks") -> list[Route]:
    one = PATH + "/{operationId}"
    unknown = (Reason.CAMPAIGN_UNKNOWN,)
    return [
        Route(
            "POST",
            PATH,
            api.create_task,
            Needs.APPLICATION,
            "Create a task",
            body=CreateTaskBody,
            answer=TaskView,
            status=201,
            refusals=_CREATE_REFUSALS,
            extra_parameters=(_IDEMPOTENCY_PARAMETER,),
        ),
        Route(
            "GET",
            PATH,
            api.list_tasks,
            Needs.APPLICATION,
            "List tasks, newest first",
            query=ListQuery,
            answer=TaskList,
            bad_input=_bad_list,
            refusals=(Reason.BAD_FILTER, Reason.BAD_PAGING),
        ),
        Route("GET", one, api.get_task, Needs.APPLICATION, "Show a task", answer=TaskView, refusals=unknown),
        Route(
            "POST",
            one + "/stop",
            api.stop_task,
            Needs.APPLICATION,
            "Stop a task",
            status=204,
            description=(
                "From the answer on no device is given its turn. Waiting devices end soon after; those under way are "
                "asked to give up, and end with their answer or the cancel clock."
            ),
            refusals=(*unknown, Reason.CAMPAIGN_FINISHED),
        ),
        Route(
            "POST",
            one + "/retry",
            api.retry_task,
            Needs.APPLICATION,
            "Retry the failed devices of a failed task",
            status=204,
            refusals=(*unknown, Reason.CAMPAIGN_FINISHED, Reason.NOTHING_TO_RETRY),
        ),
        Route(
            "GET",
            one + "/invariants",
            api.get_task_invariants,
            Needs.APPLICATION,
            "Count a task's devices and compare",
            answer=Invariants,
            refusals=unknown,
        ),
        Route(
            "GET",
            one + "/export",
            api.export_task,
            Needs.APPLICATION,
            "Export a task's devices",
            query=ExportQuery,
            description="As they stand while they are read, in the order in which they joined the task.",
            bad_input=_bad_list,
            refusals=(Reason.BAD_FILTER, *unknown),
            answer_media=(NDJSON_MEDIA, CSV_MEDIA),
        ),
    ]


def _device_routes(api: "_Tasks") -> list[Route]:
    devices = PATH + "/{operationId}/devices"
    one = devices + "/{device}"
    return [
        Route(
            "GET",
            devices,
            api.list_task_devices,
            Needs.APPLICATION,
            "List a task's devices",
            query=DevicesQuery,
            answer=TaskDevicePage,
            bad_input=_bad_list,
            refusals=(Reason.BAD_FILTER, Reason.BAD_PAGING, Reason.CAMPAIGN_UNKNOWN),
        ),
        Route(
            "GET",
            one + "/history",
            api.get_task_device_history,
            Needs.APPLICATION,
            "Show what happened to a device in a task",
            answer=DeviceHistory,
            description="The device is named by its deviceId or its nodeId.",
            refusals=(Reason.CAMPAIGN_UNKNOWN, Reason.UPGRADE_UNKNOWN),
        ),
        Route(
            "POST",
            one + "/stop",
            api.stop_task_device,
            Needs.APPLICATION,
            "Stop one device of a task",
            status=204,
            description="The device is named by its deviceId or its nodeId.",
            refusals=(Reason.CAMPAIGN_UNKNOWN, Reason.UPGRADE_UNKNOWN, Reason.UPGRADE_CLOSED),
        ),
    ]


_CREATE_REFUSALS = (
    Reason.TARGETS_MISSING,
    Reason.TARGETS_BOTH,
    Reason.TARGETS_TOO_MANY,
    Reason.TARGET_MANUFACTURER_MISSING,
    Reason.TARGET_DEVICE_TYPE_MISSING,
    Reason.TARGET_MODEL_MISSING,
    Reason.EXECUTE_TYPE_BAD,
    Reason.WINDOW_BAD,
    Reason.WINDOW_REVERSED,
    Reason.WINDOW_IN_PAST,
    Reason.WINDOW_TOO_SHORT,
    Reason.RETRY_TIMES_BAD,
    Reason.PACKAGE_UNKNOWN,
    Reason.DEVICE_UNKNOWN,
    Reason.GROUP_UNKNOWN,
    Reason.PACKAGE_TYPE_MISMATCH,
    Reason.TARGET_MISMATCH,
    Reason.IDEMPOTENCY_KEY_REUSED,
)


class _Tasks:
    def __init__(self, commands: CampaignCommands, queries: CampaignQueries, clock: Clock, clocks: Clocks) -> None:
        self._commands = commands
        self._queries = queries
        self._clock = clock
        self._clocks = clocks

    async def create_task(self, call: Call) -> Any:
        body: CreateTaskBody = call.body
        key = idempotency_key(call.request.headers, body.kind, call.raw)
        operation_id = await self._queries.created_with(call.actor, key)
        if operation_id is None:
            asked = new_campaign(
                body,
                body.kind,
                now=self._clock.now(),
                read_time=read_moment,
                node_ids=True,
                confirmation=body.confirmation,
                clocks=None if body.clocks is None else _clocks(body.clocks, self._clocks),
                idempotency=key,
            )
            operation_id = await self._commands.create(call.actor, asked)
        response = json_response(_task(await self._queries.one(call.actor, operation_id)), 201)
        response.headers["Location"] = f"{PATH}/{operation_id}"
        return response

    async def list_tasks(self, call: Call) -> TaskList:
        query: ListQuery = call.query
        total, campaigns = await self._queries.page(
            call.actor,
            query.page_no,
            query.page_size,
            kind=None if query.kind is UNSET else query.kind,
            status=None if query.status is UNSET else query.status,
            device_type=query.device_type or None,
            model=query.model or None,
            manufacturer_name=query.manufacturer_name or None,
            device_id=query.device_id or None,
        )
        return TaskList([_task(c) for c in campaigns], total, query.page_no, query.page_size)

    async def get_task(self, call: Call) -> TaskView:
        return _task(await self._queries.one(call.actor, _operation_id(call)))

    async def stop_task(self, call: Call) -> None:
        await self._commands.stop(call.actor, _operation_id(call))

    async def retry_task(self, call: Call) -> None:
        await self._commands.retry(call.actor, _operation_id(call))

    async def get_task_invariants(self, call: Call) -> Invariants:
        recount = await self._queries.recount(call.actor, _operation_id(call))
        return Invariants(recount.exact, _counters(recount.counters), _counters(recount.rows), dict(recount.states))

    async def list_task_devices(self, call: Call) -> TaskDevicePage:
        query: DevicesQuery = call.query
        found = await self._queries.upgrades_after(
            call.actor, _operation_id(call), query.cursor, query.limit + 1, _states(query.state)
        )
        items = found[: query.limit]
        return TaskDevicePage([_device(u) for u in items], items[-1].ordinal if len(found) > len(items) else None)

    async def get_task_device_history(self, call: Call) -> DeviceHistory:
        operation_id, device = _operation_id(call), call.path["device"]
        changes = await self._queries.history(call.actor, operation_id, device)
        log = await self._queries.device_log(call.actor, operation_id, device)
        return DeviceHistory([_change(c) for c in changes], [LogView(moment(e[0]), e[1], e[2], e[3]) for e in log])

    async def stop_task_device(self, call: Call) -> None:
        await self._commands.stop_device(call.actor, _operation_id(call), call.path["device"])

    async def export_task(self, call: Call) -> StreamingResponse:
        query: ExportQuery = call.query
        operation_id = _operation_id(call)
        await self._queries.one(call.actor, operation_id)  # an unknown task is refused before anything is sent
        pages = self._pages(call.actor, operation_id, _states(query.state))
        as_csv = query.format is ExportFormat.CSV
        return StreamingResponse(
            _csv(pages) if as_csv else _ndjson(pages),
            media_type=CSV_MEDIA if as_csv else NDJSON_MEDIA,
            headers={"Content-Disposition": f'attachment; filename="{operation_id}.{query.format.value}"'},
        )

    async def _pages(
        self, actor: Actor, operation_id: str, states: list[UpgradeState] | None
    ) -> AsyncIterator[list[TaskDevice]]:
        async for page in self._queries.export(actor, operation_id, states):
            yield [_device(u) for u in page]


_encoder = msgspec.json.Encoder()


async def _ndjson(pages: AsyncIterator[list[TaskDevice]]) -> AsyncIterator[bytes]:
    async for page in pages:
        yield _encoder.encode_lines(page)


async def _csv(pages: AsyncIterator[list[TaskDevice]]) -> AsyncIterator[bytes]:
    yield csv_rows([[f.encode_name for f in msgspec.structs.fields(TaskDevice)]])
    async for page in pages:
        yield csv_rows([msgspec.to_builtins(msgspec.structs.astuple(device)) for device in page])


def csv_rows(rows: Iterable[Iterable[object]]) -> bytes:
    """Lines of RFC 4180, UTF-8; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([[_cell(value) for value in row] for row in rows])
    return text.getvalue().encode()


def _cell(value: object) -> object:
    """Devices choose some of these texts: none may be run as a formula by the spreadsheet that opens the file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value.startswith(_FORMULA_BEGINS):
        return "'" + value
    return value


def _operation_id(call: Call) -> str:
    return known_operation_id(call.path["operationId"])


def _states(state: UpgradeState | UnsetType) -> list[UpgradeState] | None:
    return None if state is UNSET else [state]


def _moment(at: Instant | None) -> datetime | None:
    return None if at is None else moment(at)


def _clocks(asked: ClocksBody, default: Clocks) -> Clocks:
    def phase(seconds: int | None, otherwise: int) -> int:
        return otherwise if seconds is None else seconds * SECOND

    return Clocks(
        online=phase(asked.online_seconds, default.online),
        download=phase(asked.download_seconds, default.download),
        install=phase(asked.install_seconds, default.install),
        verify=phase(asked.verify_seconds, default.verify),
        cancel=phase(asked.cancel_seconds, default.cancel),
    )


def _texts(stored: str | None) -> msgspec.Raw | None:
    """Lists are kept as JSON and passed on as they are."""
    return None if stored is None else msgspec.Raw(stored)


def _task(c: Campaign) -> TaskView:
    product = c.product
    return TaskView(
        operation_id=c.operation_id,
        kind=c.kind,
        status=c.status,
        work=c.work,
        round=c.round,
        target_version=c.target_version,
        targets=TargetsView(
            _texts(c.target_devices),
            _texts(c.target_groups),
            product.device_type,
            product.model,
            product.manufacturer_name,
        ),
        policy=None if c.policy is None else _policy(c.policy),
        confirmation=c.confirmation,
        counters=_counters(c.counters),
        created_at=moment(c.created_at),
        started_at=_moment(c.started_at),
        stopped_at=_moment(c.stopped_at),
    )


def _policy(p: Policy) -> PolicyView:
    return PolicyView(p.execute_type, _moment(p.window_start), _moment(p.window_end), p.retry_times)


def _counters(c: Counters) -> CountersView:
    return CountersView(c.total, c.wait, c.processing, c.success, c.fail, c.stop, c.timeout)


def _device(u: Upgrade) -> TaskDevice:
    return TaskDevice(
        ordinal=u.ordinal,
        sub_operation_id=u.public_id,
        device_id=u.device_id,
        node_id=u.node_id,
        state=u.state,
        reason=u.reason,
        detail=u.detail,
        error_code=u.error_code,
        blocker=u.blocker,
        attempt=u.round + 1,
        action_id=u.action_id,
        confirmed=u.confirmed,
        source_version=u.source_version,
        current_version=u.current_version,
        created_at=moment(u.created_at),
        started_at=_moment(u.started_at),
        finished_at=_moment(u.finished_at),
        due_at=_moment(u.due_at),
        last_seen_at=_moment(u.last_seen_at),
    )


def _change(c: Change) -> ChangeView:
    return ChangeView(moment(c.at), c.from_state, c.to_state, c.action_id, c.cause)
