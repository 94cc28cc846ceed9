"""Native routes of tasks: what the published contract cannot say of them.

Create with confirmation and clocks, stop, retry, every device with its core state and the reason why it waits, its
history and own words, exports of any size, and the proof that the counters are the rows.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import StreamingResponse

from openiodm.access.model import Actor
from openiodm.campaigns.commands import CampaignCommands
from openiodm.campaigns.model import CampaignKind, Clocks
from openiodm.campaigns.queries import CampaignQueries
from openiodm.campaigns.states import CampaignStatus, UpgradeState
from openiodm.clock import SECOND, Clock
from openiodm.errors import Reason
from openiodm.http.routes import Call, Needs, Route, json_response
from openiodm.northbound.native.edge import PREFIX
from openiodm.northbound.native.export import CSV_MEDIA, NDJSON_MEDIA, ExportFormat, csv_lines, ndjson_lines
from openiodm.northbound.native.task_views import (
    ChangeView,
    CountersView,
    LogView,
    TaskDevice,
    TaskView,
    change_view,
    counters_view,
    device_view,
    task_view,
)
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


Text = Annotated[str, Meta(max_length=MAX_CHARS)]
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
    max_concurrent: (
        Annotated[int, Meta(ge=1, le=2**31 - 1, description="most devices under way at any moment; null = no bound")]
        | None
    ) = None


class ResumeBody(msgspec.Struct, rename="camel"):
    """Who goes on."""

    unproven: Annotated[
        bool, Meta(description="also devices that never tell their version: they may be upgraded a second time")
    ] = False


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


class TaskDevicePage(msgspec.Struct, rename="camel"):
    """Devices in the order in which they joined the task; `nextCursor` null: there are no more."""

    items: list[TaskDevice]
    next_cursor: int | None


class DeviceHistory(msgspec.Struct, rename="camel"):
    """All that happened to one device in a task, oldest first."""

    changes: list[ChangeView]
    log: list[LogView]


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
    """The eleven operations on tasks. `clocks` are the server's, for those that a body leaves out."""
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
            "POST",
            one + "/resume",
            api.resume_task,
            Needs.APPLICATION,
            "Let a task go on that a restore has held",
            body=ResumeBody,
            optional_body=True,
            status=204,
            description=(
                "Devices that tell their version are asked for it first, and end without a download if they have the "
                "task's. A task that is not held stays as it is."
            ),
            refusals=(*unknown, Reason.CAMPAIGN_FINISHED),
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
                max_concurrent=body.max_concurrent,
                clocks=None if body.clocks is None else _clocks(body.clocks, self._clocks),
                idempotency=key,
            )
            operation_id = await self._commands.create(call.actor, asked)
        response = json_response(task_view(await self._queries.one(call.actor, operation_id)), 201)
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
        return TaskList([task_view(c) for c in campaigns], total, query.page_no, query.page_size)

    async def get_task(self, call: Call) -> TaskView:
        return task_view(await self._queries.one(call.actor, _operation_id(call)))

    async def stop_task(self, call: Call) -> None:
        await self._commands.stop(call.actor, _operation_id(call))

    async def retry_task(self, call: Call) -> None:
        await self._commands.retry(call.actor, _operation_id(call))

    async def resume_task(self, call: Call) -> None:
        body: ResumeBody = call.body
        await self._commands.resume(call.actor, _operation_id(call), unproven=body.unproven)

    async def get_task_invariants(self, call: Call) -> Invariants:
        recount = await self._queries.recount(call.actor, _operation_id(call))
        return Invariants(
            recount.exact, counters_view(recount.counters), counters_view(recount.rows), dict(recount.states)
        )

    async def list_task_devices(self, call: Call) -> TaskDevicePage:
        query: DevicesQuery = call.query
        found = await self._queries.upgrades_after(
            call.actor, _operation_id(call), query.cursor, query.limit + 1, _states(query.state)
        )
        items = found[: query.limit]
        return TaskDevicePage([device_view(u) for u in items], items[-1].ordinal if len(found) > len(items) else None)

    async def get_task_device_history(self, call: Call) -> DeviceHistory:
        operation_id, device = _operation_id(call), call.path["device"]
        changes = await self._queries.history(call.actor, operation_id, device)
        log = await self._queries.device_log(call.actor, operation_id, device)
        return DeviceHistory([change_view(c) for c in changes], [LogView(moment(e[0]), e[1], e[2], e[3]) for e in log])

    async def stop_task_device(self, call: Call) -> None:
        await self._commands.stop_device(call.actor, _operation_id(call), call.path["device"])

    async def export_task(self, call: Call) -> StreamingResponse:
        query: ExportQuery = call.query
        operation_id = _operation_id(call)
        await self._queries.one(call.actor, operation_id)  # an unknown task is refused before anything is sent
        pages = self._pages(call.actor, operation_id, _states(query.state))
        as_csv = query.format is ExportFormat.CSV
        return StreamingResponse(
            csv_lines(pages) if as_csv else ndjson_lines(pages),
            media_type=CSV_MEDIA if as_csv else NDJSON_MEDIA,
            headers={"Content-Disposition": f'attachment; filename="{operation_id}.{query.format.value}"'},
        )

    async def _pages(
        self, actor: Actor, operation_id: str, states: list[UpgradeState] | None
    ) -> AsyncIterator[list[TaskDevice]]:
        async for page in self._queries.export(actor, operation_id, states):
            yield [device_view(u) for u in page]


def _operation_id(call: Call) -> str:
    return known_operation_id(call.path["operationId"])


def _states(state: UpgradeState | UnsetType) -> list[UpgradeState] | None:
    return None if state is UNSET else [state]


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
