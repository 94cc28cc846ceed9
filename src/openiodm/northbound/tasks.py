"""What a caller asks for when it creates a task: the body that both northbound APIs share, and its rules.

The structs say what the JSON may look like; `new_campaign` holds the rest against the rules of the contract (section
3.3), in the contract's order: fileId, targets (123022, 23, 24, 19 to 21), policy (123025, 26, 32, 33, 34, 28). Whether
package, devices and groups exist, and whether they match, is for `campaigns.commands` to say. How moments are spelt is
the edge's business: it passes its own reader.
"""

import hashlib
import re
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.datastructures import Headers

from openiodm.campaigns.model import (
    MAX_RETRY_TIMES,
    MAX_TARGETS,
    MIN_WINDOW_MS,
    START_SKEW_MS,
    CampaignKind,
    Clocks,
    ExecuteType,
    IdempotencyKey,
    NewCampaign,
    Policy,
    Target,
)
from openiodm.clock import Instant
from openiodm.errors import Reason, Refusal

MAX_CHARS = 256
"""Longest text of a body or a query, in characters (section 3.3)."""
MAX_PAGE_SIZE = 100
MAX_PAGE_NO = 2**31 - 1
"""Numbers of the answers fit a client's 32 bits (section 3.7, 17), and the answer echoes pageNo."""
IDEMPOTENCY_HEADER = "Idempotency-Key"

ReadTime = Callable[[str], Instant]
"""Text to moment; ValueError when it is none."""

Text = Annotated[str, Meta(max_length=MAX_CHARS)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_CHARS)]

_EXECUTE_TYPES = {t.value: t for t in ExecuteType}
_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)
_OPERATION_ID = re.compile(r"[0-9A-Za-z_-]{1,256}", re.ASCII)


class TargetsBody(msgspec.Struct, rename="camel"):
    """Either device ids, or names of groups with the product that is meant; 256 of them at most."""

    device_groups: list[Name] | None = None
    device_type: Text | None = None
    model: Text | None = None
    manufacturer_name: Text | None = None
    devices: list[Name] | None = None


class PolicyBody(msgspec.Struct, rename="camel"):
    """When, and how often. The window counts for `custom` alone, retryTimes (1 to 5) where retryType is true."""

    execute_type: Annotated[str | None, Meta(extra_json_schema={"enum": list(_EXECUTE_TYPES)})] | UnsetType = UNSET
    start_time: str | None = None
    end_time: str | None = None
    retry_type: bool | None = None
    retry_times: int | None = None


class CreateBody(msgspec.Struct, rename="camel", kw_only=True):
    """A task as both APIs take it. Unknown members are ignored; null is not given, but for executeType."""

    file_id: Name
    targets: TargetsBody | None = None
    policy: PolicyBody | None = None


def new_campaign(
    body: CreateBody,
    kind: CampaignKind,
    *,
    now: Instant,
    read_time: ReadTime,
    node_ids: bool = False,
    confirmation: bool = False,
    max_concurrent: int | None = None,
    clocks: Clocks | None = None,
    idempotency: IdempotencyKey | None = None,
) -> NewCampaign:
    """The task asked for.

    Raises:
        Refusal: with the reason of the first rule that is broken, in the contract's order.
    """
    return NewCampaign(
        kind=kind,
        file_id=body.file_id,
        target=_target(body.targets or TargetsBody()),
        policy=None if body.policy is None else _policy(body.policy, now, read_time),
        node_ids=node_ids,
        confirmation=confirmation,
        max_concurrent=max_concurrent,
        clocks=clocks,
        idempotency=idempotency,
    )


def _target(asked: TargetsBody) -> Target:
    devices, groups = asked.devices or None, asked.device_groups or None
    if devices is None and groups is None:
        raise Refusal(Reason.TARGETS_MISSING, "neither devices nor deviceGroups is given", field="targets")
    if devices is not None and groups is not None:
        raise Refusal(Reason.TARGETS_BOTH, "both devices and deviceGroups are given", field="targets")
    for field, names in (("devices", devices), ("deviceGroups", groups)):
        if names is not None and len(names) > MAX_TARGETS:
            raise Refusal(Reason.TARGETS_TOO_MANY, f"more than {MAX_TARGETS} {field}", field=field)
    if groups is not None:
        _need_product(asked)
    return Target(
        devices=_once(devices),
        groups=_once(groups),
        device_type=asked.device_type or None,
        model=asked.model or None,
        manufacturer_name=asked.manufacturer_name or None,
    )


def _need_product(asked: TargetsBody) -> None:
    """A group may hold devices of many kinds, so the caller has to say which are meant."""
    for field, given, reason in (
        ("manufacturerName", asked.manufacturer_name, Reason.TARGET_MANUFACTURER_MISSING),
        ("deviceType", asked.device_type, Reason.TARGET_DEVICE_TYPE_MISSING),
        ("model", asked.model, Reason.TARGET_MODEL_MISSING),
    ):
        if not given:
            raise Refusal(reason, f"deviceGroups need {field}", field=field)


def _once(names: list[str] | None) -> tuple[str, ...] | None:
    """What was given twice counts once, where it came first."""
    return None if names is None else tuple(dict.fromkeys(names))


def _policy(asked: PolicyBody, now: Instant, read_time: ReadTime) -> Policy:
    execute_type = _execute_type(asked.execute_type)
    start = end = None
    if execute_type is ExecuteType.CUSTOM:
        start, end = _window(asked, now, read_time)
    return Policy(execute_type, start, end, _retry_times(asked))


def _execute_type(asked: str | UnsetType | None) -> ExecuteType:
    if asked is UNSET:
        return ExecuteType.NOW
    chosen = _EXECUTE_TYPES.get(asked or "")
    if chosen is None:
        raise Refusal(
            Reason.EXECUTE_TYPE_BAD, f"executeType is one of {', '.join(_EXECUTE_TYPES)}", field="executeType"
        )
    return chosen


def _window(asked: PolicyBody, now: Instant, read_time: ReadTime) -> tuple[Instant, Instant]:
    start = _moment(asked.start_time, "startTime", read_time)
    end = _moment(asked.end_time, "endTime", read_time)
    if start > end:
        raise Refusal(Reason.WINDOW_REVERSED, "startTime is later than endTime", field="startTime")
    if start < now - START_SKEW_MS:
        raise Refusal(Reason.WINDOW_IN_PAST, "startTime is past", field="startTime")
    if end - start < MIN_WINDOW_MS:
        raise Refusal(Reason.WINDOW_TOO_SHORT, "from startTime to endTime it is less than 5 minutes", field="endTime")
    return start, end


def _moment(text: str | None, field: str, read_time: ReadTime) -> Instant:
    if not text:
        raise Refusal(Reason.WINDOW_BAD, f"executeType custom needs {field}", field=field)
    try:
        return read_time(text)
    except ValueError as error:
        raise Refusal(Reason.WINDOW_BAD, f"{field}: {error}", field=field) from error


def _retry_times(asked: PolicyBody) -> int:
    if not asked.retry_type:
        return 0
    times = asked.retry_times
    if times is None or not 1 <= times <= MAX_RETRY_TIMES:
        raise Refusal(Reason.RETRY_TIMES_BAD, f"retryTimes is 1 to {MAX_RETRY_TIMES}", field="retryTimes")
    return times


def idempotency_key(headers: Headers, kind: CampaignKind, raw: bytes) -> IdempotencyKey | None:
    """The caller's key with a digest of what was asked; None where it sent none.

    Raises:
        Refusal: BAD_INPUT; it is not 1 to 255 visible ASCII characters, or given twice.
    """
    given = headers.getlist(IDEMPOTENCY_HEADER)
    if not given:
        return None
    if len(given) > 1 or not _IDEMPOTENCY_KEY.fullmatch(given[0]):
        raise Refusal(
            Reason.BAD_INPUT, f"{IDEMPOTENCY_HEADER} is 1 to 255 visible ASCII characters", field=IDEMPOTENCY_HEADER
        )
    digest = hashlib.sha256(kind.value.encode() + b"\n" + raw)
    return IdempotencyKey(given[0], digest.hexdigest())


def known_operation_id(text: str) -> str:
    """A public id as it may look; what looks otherwise is no task's.

    Raises:
        Refusal: CAMPAIGN_UNKNOWN.
    """
    if not _OPERATION_ID.fullmatch(text):
        raise Refusal(Reason.CAMPAIGN_UNKNOWN, "no such task", field="operationId")
    return text
