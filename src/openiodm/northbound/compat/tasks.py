"""Tasks as the published contract has them (sections 3.3 to 3.7): create, one, subtasks, list.

Spellings that look like slips are the contract's: `operationType` is asked for and `operateType` answered, a task is
`failed` where a subtask is `fail`, and the list tells its total twice, since some published SDKs read `totalSize`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from openiodm.campaigns.commands import CampaignCommands
from openiodm.campaigns.model import Campaign, CampaignKind, Counters, ExecuteType, Policy, Upgrade
from openiodm.campaigns.queries import CampaignQueries
from openiodm.campaigns.states import COUNTER_OF, CampaignStatus, Counter, UpgradeState
from openiodm.clock import Clock
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Call, Handler, Needs, Route
from openiodm.northbound.compat.fields import PageNo, Text, given, integer, one_of, paging
from openiodm.northbound.compat.times import format_time, format_time_or_none, parse_time
from openiodm.northbound.tasks import (
    MAX_PAGE_NO,
    MAX_PAGE_SIZE,
    CreateBody,
    idempotency_key,
    known_operation_id,
    new_campaign,
)

PATH = "/iodm/northbound/v1.5.0/operations"
DEFAULT_PAGE_SIZE = 10

T = TypeVar("T")

_KINDS = {k.value: k for k in CampaignKind}
_TASK_STATUS = {**{s.value: s for s in CampaignStatus}, "fail": CampaignStatus.FAILED}


def _states_counted_in(*counters: Counter) -> tuple[UpgradeState, ...]:
    return tuple(s for s in UpgradeState if COUNTER_OF[s] in counters)


# A timed-out device is shown as `fail` and counted apart (section 3.7, 14).
_SUBTASK_STATES = {
    "wait": _states_counted_in(Counter.WAIT),
    "processing": _states_counted_in(Counter.PROCESSING),
    "success": _states_counted_in(Counter.SUCCESS),
    "fail": _states_counted_in(Counter.FAIL, Counter.TIMEOUT),
    "stop": _states_counted_in(Counter.STOP),
}
_SUBTASK_FILTER = {**_SUBTASK_STATES, "failed": _SUBTASK_STATES["fail"]}
_SUBTASK_STATUS = {state: status for status, states in _SUBTASK_STATES.items() for state in states}

PageSize = Annotated[str, Meta(extra_json_schema=integer(1, MAX_PAGE_SIZE, DEFAULT_PAGE_SIZE))]
OperationType = Annotated[Text, Meta(extra_json_schema=one_of(*_KINDS))]
OperationStatus = Annotated[Text, Meta(extra_json_schema=one_of(*(s.value for s in CampaignStatus)))]
SubOperationStatus = Annotated[Text, Meta(extra_json_schema=one_of(*_SUBTASK_STATES))]


class ListQuery(msgspec.Struct, rename="camel"):
    """Conditions that must all hold; an empty one is not given."""

    operation_type: OperationType = ""
    operation_status: OperationStatus = ""
    device_type: Text = ""
    model: Text = ""
    manufacturer_name: Text = ""
    device_id: Text = ""
    page_no: PageNo = ""
    page_size: PageSize = ""


class SubOperationQuery(msgspec.Struct, rename="camel"):
    """Which subtasks."""

    sub_operation_status: SubOperationStatus = ""
    page_no: PageNo = ""
    page_size: PageSize = ""


class CreateAnswer(msgspec.Struct, rename="camel"):
    """The new task's id."""

    operation_id: str


class OperateDevices(msgspec.Struct, rename="camel"):
    """Whom a task is for. The lists are kept as JSON and passed on as they are."""

    device_groups: msgspec.Raw | None
    device_type: str
    model: str
    manufacturer_name: str
    devices: msgspec.Raw | None


class OperatePolicy(msgspec.Struct, rename="camel"):
    """The policy as given, defaults filled in."""

    execute_type: ExecuteType
    start_time: str | None
    end_time: str | None
    retry_type: bool
    retry_times: int | None


class OperationStaResult(msgspec.Struct):
    """Numbers of devices; disjoint, `total` is their sum."""

    total: int
    wait: int
    processing: int
    success: int
    fail: int
    stop: int
    timeout: int


class ExtendPara(msgspec.Struct, rename="camel"):
    """What the task brings."""

    file_version: str


class OperationInfo(msgspec.Struct, rename="camel"):
    """A task: every member is always there."""

    operation_id: str
    create_time: str
    start_time: str | None
    stop_time: str | None
    operate_type: CampaignKind
    targets: OperateDevices
    policy: OperatePolicy | None
    status: CampaignStatus
    sta_result: OperationStaResult
    extend_para: ExtendPara


class OperationList(msgspec.Struct, rename="camel"):
    """A page of tasks, newest first."""

    data: list[OperationInfo]
    page_no: int
    page_size: int
    total_count: int
    total_size: int


class ExtendInfo(msgspec.Struct, rename="camel"):
    """Versions of a subtask's device: before, wanted, now."""

    source_version: str | None
    target_version: str
    cur_version: str | None


class SubOperationInfo(msgspec.Struct, rename="camel"):
    """A subtask: every member is always there."""

    sub_operation_id: str
    create_time: str
    start_time: str | None
    stop_time: str | None
    operate_type: CampaignKind
    device_id: str
    status: str
    detail_info: str | None
    extend_info: ExtendInfo


class SubOperationList(msgspec.Struct, rename="camel"):
    """A page of subtasks, newest first."""

    data: list[SubOperationInfo]
    page_no: int
    page_size: int
    total_count: int


def _bad_query(field: str | None) -> Reason:
    return Reason.BAD_PAGING if field in {"pageNo", "pageSize"} else Reason.BAD_FILTER


_CREATE_REFUSALS = (
    Reason.BAD_INPUT,
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


def routes(commands: CampaignCommands, queries: CampaignQueries, clock: Clock) -> list[Route]:
    """The five calls of the contract."""
    api = _Operations(commands, queries, clock)
    return [
        _create("softwareUpgrade", api.create_software_upgrade, "Create a software upgrade task"),
        _create("firmwareUpgrade", api.create_firmware_upgrade, "Create a firmware upgrade task"),
        Route(
            "GET",
            PATH,
            api.list_operations,
            Needs.APPLICATION,
            "Task list",
            query=ListQuery,
            answer=OperationList,
            bad_input=_bad_query,
            refusals=(Reason.BAD_FILTER, Reason.BAD_PAGING),
        ),
        Route(
            "GET",
            PATH + "/{operationId}",
            api.get_operation,
            Needs.APPLICATION,
            "One task",
            answer=OperationInfo,
            refusals=(Reason.CAMPAIGN_UNKNOWN,),
        ),
        Route(
            "GET",
            PATH + "/{operationId}/subOperations",
            api.list_sub_operations,
            Needs.APPLICATION,
            "Subtasks of a task",
            query=SubOperationQuery,
            answer=SubOperationList,
            bad_input=_bad_query,
            refusals=(Reason.BAD_FILTER, Reason.BAD_PAGING, Reason.CAMPAIGN_UNKNOWN),
        ),
    ]


def _create(name: str, handler: Handler, summary: str) -> Route:
    return Route(
        "POST",
        f"{PATH}/{name}",
        handler,
        Needs.APPLICATION,
        summary,
        body=CreateBody,
        answer=CreateAnswer,
        refusals=_CREATE_REFUSALS,
    )


class _Operations:
    def __init__(self, commands: CampaignCommands, queries: CampaignQueries, clock: Clock) -> None:
        self._commands = commands
        self._queries = queries
        self._clock = clock

    async def create_software_upgrade(self, call: Call) -> CreateAnswer:
        return await self._create(call, CampaignKind.SOFTWARE)

    async def create_firmware_upgrade(self, call: Call) -> CreateAnswer:
        return await self._create(call, CampaignKind.FIRMWARE)

    async def _create(self, call: Call, kind: CampaignKind) -> CreateAnswer:
        key = idempotency_key(call.request.headers, kind, call.raw)
        earlier = await self._queries.created_with(call.actor, key)
        if earlier is not None:
            return CreateAnswer(earlier)
        asked = new_campaign(call.body, kind, now=self._clock.now(), read_time=parse_time, idempotency=key)
        return CreateAnswer(await self._commands.create(call.actor, asked))

    async def list_operations(self, call: Call) -> OperationList:
        query: ListQuery = call.query
        page_no, page_size = _page(query.page_no, query.page_size)
        total, campaigns = await self._queries.page(
            call.actor,
            page_no,
            page_size,
            kind=_one_of(_KINDS, query.operation_type, "operationType"),
            status=_one_of(_TASK_STATUS, query.operation_status, "operationStatus"),
            device_type=given(query.device_type),
            model=given(query.model),
            manufacturer_name=given(query.manufacturer_name),
            device_id=given(query.device_id),
        )
        return OperationList([_operation(c) for c in campaigns], page_no, page_size, total, total)

    async def get_operation(self, call: Call) -> OperationInfo:
        operation_id = known_operation_id(call.path["operationId"])
        return _operation(await self._queries.one(call.actor, operation_id))

    async def list_sub_operations(self, call: Call) -> SubOperationList:
        query: SubOperationQuery = call.query
        page_no, page_size = _page(query.page_no, query.page_size)
        states: Sequence[UpgradeState] | None
        states = _one_of(_SUBTASK_FILTER, query.sub_operation_status, "subOperationStatus")
        operation_id = known_operation_id(call.path["operationId"])
        campaign = await self._queries.one(call.actor, operation_id)
        total, upgrades = await self._queries.upgrades(call.actor, operation_id, page_no, page_size, states)
        return SubOperationList([_sub_operation(campaign, u) for u in upgrades], page_no, page_size, total)


def _page(page_no: str, page_size: str) -> tuple[int, int]:
    number, size = paging(page_no, page_size, default=DEFAULT_PAGE_SIZE, most=MAX_PAGE_SIZE)
    if number > MAX_PAGE_NO:
        raise Refusal(Reason.BAD_PAGING, "pageNo is out of range", field="pageNo")
    return number, size


def _one_of(choices: Mapping[str, T], text: str, field: str) -> T | None:
    """Case does not matter; empty is not given; what is unknown is a bad filter (section 3.7, 1 and 12)."""
    if not text:
        return None
    chosen = choices.get(text.lower())
    if chosen is None:
        raise Refusal(Reason.BAD_FILTER, f"{field} is one of {', '.join(choices)}", field=field)
    return chosen


def _operation(c: Campaign) -> OperationInfo:
    return OperationInfo(
        c.operation_id,
        format_time(c.created_at),
        format_time_or_none(c.started_at),
        format_time_or_none(c.stopped_at),
        c.kind,
        OperateDevices(
            None if c.target_groups is None else msgspec.Raw(c.target_groups),
            c.product.device_type,
            c.product.model,
            c.product.manufacturer_name,
            None if c.target_devices is None else msgspec.Raw(c.target_devices),
        ),
        None if c.policy is None else _policy(c.policy),
        c.status,
        _sta_result(c.counters),
        ExtendPara(c.target_version),
    )


def _policy(p: Policy) -> OperatePolicy:
    return OperatePolicy(
        p.execute_type,
        format_time_or_none(p.window_start),
        format_time_or_none(p.window_end),
        p.retry_times > 0,
        p.retry_times or None,
    )


def _sta_result(c: Counters) -> OperationStaResult:
    return OperationStaResult(c.total, c.wait, c.processing, c.success, c.fail, c.stop, c.timeout)


def _sub_operation(campaign: Campaign, u: Upgrade) -> SubOperationInfo:
    return SubOperationInfo(
        u.public_id,
        format_time(u.created_at),
        format_time_or_none(u.started_at),
        format_time_or_none(u.finished_at),
        campaign.kind,
        u.device_id,
        _SUBTASK_STATUS[u.state],
        u.detail,
        ExtendInfo(u.source_version, campaign.target_version, u.current_version),
    )
