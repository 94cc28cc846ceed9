"""Tasks and their devices as the native API shows them."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from openiodm.campaigns.model import Campaign, CampaignKind, Change, Counters, ExecuteType, Hold, Policy, Upgrade
from openiodm.campaigns.states import CampaignStatus, UpgradeState
from openiodm.clock import Instant
from openiodm.northbound.native.times import moment

Texts = Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "array", "items": {"type": "string"}})]


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
    hold: Annotated[
        Hold | None,
        Meta(
            description="set by a restore: `all` while nobody goes on, then `unproven` while devices that never tell "
            "their version wait; null: none"
        ),
    ]
    target_version: str
    targets: TargetsView
    policy: PolicyView | None
    confirmation: bool
    max_concurrent: int | None
    counters: CountersView
    created_at: datetime
    started_at: datetime | None
    stopped_at: datetime | None


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


def task_view(c: Campaign) -> TaskView:
    """A campaign as this API shows it."""
    product = c.product
    return TaskView(
        operation_id=c.operation_id,
        kind=c.kind,
        status=c.status,
        work=c.work,
        round=c.round,
        hold=c.hold,
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
        max_concurrent=c.max_concurrent,
        counters=counters_view(c.counters),
        created_at=moment(c.created_at),
        started_at=_moment(c.started_at),
        stopped_at=_moment(c.stopped_at),
    )


def _policy(p: Policy) -> PolicyView:
    return PolicyView(p.execute_type, _moment(p.window_start), _moment(p.window_end), p.retry_times)


def counters_view(c: Counters) -> CountersView:
    """Its counters."""
    return CountersView(c.total, c.wait, c.processing, c.success, c.fail, c.stop, c.timeout)


def device_view(u: Upgrade) -> TaskDevice:
    """One device of it."""
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


def change_view(c: Change) -> ChangeView:
    """One row of a device's history."""
    return ChangeView(moment(c.at), c.from_state, c.to_state, c.action_id, c.cause)


def _moment(at: Instant | None) -> datetime | None:
    return None if at is None else moment(at)


def _texts(stored: str | None) -> msgspec.Raw | None:
    """Lists are kept as JSON and passed on as they are."""
    return None if stored is None else msgspec.Raw(stored)
