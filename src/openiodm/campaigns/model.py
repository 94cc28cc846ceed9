"""Values of the core: what a caller asks for, and what a campaign and an upgrade look like from outside."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

import msgspec

from openiodm.access.model import ApplicationKey, Product
from openiodm.campaigns.states import CampaignStatus, UpgradeState
from openiodm.clock import Instant
from openiodm.errors import Reason, Refusal

CampaignKey = NewType("CampaignKey", int)  # row ids: never shown
UpgradeKey = NewType("UpgradeKey", int)

MAX_TARGETS = 256  # device ids or group names a task (contract section 3.3)
MAX_RETRY_TIMES = 5
MIN_WINDOW_MS = 5 * 60_000
START_SKEW_MS = 60_000  # a startTime this little in the past is still "now"


class CampaignKind(StrEnum):
    """What is upgraded; the contract's operateType."""

    FIRMWARE = "firmware_upgrade"
    SOFTWARE = "software_upgrade"

    @property
    def file_type(self) -> str:
        """The type that a package must have for it."""
        return "firmwarePackage" if self is CampaignKind.FIRMWARE else "softwarePackage"


class ExecuteType(StrEnum):
    """When devices may be granted their turn."""

    NOW = "now"
    DEVICE_ONLINE = "device_online"
    CUSTOM = "custom"  # within a window


class Hold(StrEnum):
    """What a restore has left of a task's right to go on."""

    ALL = "all"  # nobody is granted and nothing is offered, until an operator resumes or stops it
    UNPROVEN = "unproven"  # resumed; devices that never tell their version wait


class Clocks(msgspec.Struct, frozen=True):
    """How long each phase may take, in milliseconds, from the entry into it."""

    online: int
    download: int
    install: int
    verify: int
    cancel: int


@dataclass(frozen=True, slots=True)
class Policy:
    """When and how often. The window is set for `CUSTOM` alone; `retry_times` 0 means no retry rounds."""

    execute_type: ExecuteType = ExecuteType.NOW
    window_start: Instant | None = None
    window_end: Instant | None = None
    retry_times: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """Either device ids or names of groups. Of a group, the members of the product are meant."""

    devices: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    device_type: str | None = None
    model: str | None = None
    manufacturer_name: str | None = None


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The caller's key and a digest of the request it came with; both must match for a repeat to be one."""

    key: str
    request_hash: str

    def answered(self, request_hash: str, operation_id: str) -> str:
        """The earlier answer for a repeat of the earlier request.

        Raises:
            Refusal: IDEMPOTENCY_KEY_REUSED; it was another request.
        """
        if request_hash != self.request_hash:
            detail = "this key came with another request before"
            raise Refusal(Reason.IDEMPOTENCY_KEY_REUSED, detail, field="Idempotency-Key")
        return operation_id


@dataclass(frozen=True, slots=True)
class NewCampaign:
    """A task as asked for; `policy` None is kept apart from a policy of defaults, since the contract echoes it.

    `node_ids`: the target may name devices by their node ids too. `max_concurrent`: most devices that are between their
    grant and their end at any moment, over all servers; None: no bound.
    """

    kind: CampaignKind
    file_id: str
    target: Target
    policy: Policy | None = None
    node_ids: bool = False
    confirmation: bool = False
    clocks: Clocks | None = None
    max_concurrent: int | None = None
    idempotency: IdempotencyKey | None = None


class Counters(msgspec.Struct, frozen=True):
    """Numbers of devices; disjoint, and `total` is their sum."""

    total: int = 0
    wait: int = 0
    processing: int = 0
    success: int = 0
    fail: int = 0
    stop: int = 0
    timeout: int = 0

    @property
    def unfinished(self) -> int:
        """Devices that are still to end."""
        return self.wait + self.processing


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign as its owner sees it."""

    key: CampaignKey
    operation_id: str
    kind: CampaignKind
    product: Product
    target_version: str
    target_devices: str | None  # JSON list, as given
    target_groups: str | None
    policy: Policy | None
    confirmation: bool
    status: CampaignStatus
    round: int
    work: str
    created_at: Instant
    started_at: Instant | None
    stopped_at: Instant | None
    counters: Counters
    hold: Hold | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Upgrade:
    """One device of a campaign as its owner sees it. `reason` says why it waits, where that was asked for."""

    ordinal: int
    public_id: str
    device_id: str
    node_id: str
    state: UpgradeState
    round: int
    action_id: int | None
    source_version: str | None
    current_version: str | None
    detail: str | None
    error_code: str | None
    created_at: Instant
    started_at: Instant | None
    finished_at: Instant | None
    due_at: Instant | None
    confirmed: bool | None = None
    last_seen_at: Instant | None = None
    blocker: str | None = None  # operationId of the task that held the device
    reason: str | None = None
    reports_version: bool = False  # has the device ever told one of that kind?


@dataclass(frozen=True, slots=True)
class CampaignFilter:
    """Conditions of the task list; all given ones must hold."""

    application: ApplicationKey
    kind: CampaignKind | None = None
    status: CampaignStatus | None = None
    device_type: str | None = None
    model: str | None = None
    manufacturer_name: str | None = None
    device_id: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One row of an upgrade's history."""

    at: Instant
    from_state: UpgradeState
    to_state: UpgradeState
    action_id: int | None
    cause: str


@dataclass(frozen=True, slots=True)
class LogEntry:
    """What a device said, in its own words: at most 50 lines are kept."""

    kind: str
    lines: tuple[str, ...] = field(default=())
