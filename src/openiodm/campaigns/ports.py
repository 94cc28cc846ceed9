"""What the core needs of storage and of the other rooms. `storage/campaigns.py` implements `CampaignRows`."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NewType, Protocol

import msgspec

from openiodm.access.model import ApplicationKey
from openiodm.access.ports import Audited
from openiodm.campaigns.model import (
    Campaign,
    CampaignFilter,
    CampaignKey,
    Change,
    Clocks,
    Counters,
    Hold,
    LogEntry,
    NewCampaign,
    Policy,
    Upgrade,
    UpgradeKey,
)
from openiodm.campaigns.rollout import Standing, Transition
from openiodm.campaigns.states import CampaignStatus, UpgradeState
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey
from openiodm.packages.model import PackageKey
from openiodm.scheduler.model import JobRows

ProductKey = NewType("ProductKey", int)


@dataclass(frozen=True, slots=True)
class PackageFacts:
    """What a new campaign needs to know of its package."""

    key: PackageKey
    file_type: str
    version: str
    product: ProductKey
    device_type: str
    model: str
    manufacturer_name: str
    source_versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A device as a target."""

    key: int
    device_id: str
    product: ProductKey


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """A group as a target: the newest membership that counts, and whether any member is of the product."""

    key: int
    watermark: int
    matches: bool


class CampaignDesk(msgspec.Struct, frozen=True):
    """A campaign's row and counters, locked: everything its end is decided by."""

    key: CampaignKey
    status: CampaignStatus
    work: str
    round: int
    retry_times: int
    window_start: Instant | None
    window_end: Instant | None
    clocks: Clocks
    open: bool
    counters: Counters
    hold: Hold | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class CampaignRow:
    """A campaign to be inserted."""

    operation_id: str
    application: ApplicationKey
    asked: NewCampaign
    package: PackageFacts
    policy: Policy
    clocks: Clocks
    work: str
    open: bool
    created_at: Instant


class Moved(msgspec.Struct, frozen=True):
    """What one commit of reports changes about one upgrade: from the row as read to the row as it is to be."""

    before: Standing
    after: Standing
    transitions: tuple[Transition, ...]
    logs: tuple[LogEntry, ...]


class DeliveryLimits(Protocol):
    """What the ways in which devices take packages cannot carry. The core does not know which ways there are."""

    async def objection(
        self, work: Any, package: PackageFacts, devices: Sequence[int] | None, groups: Sequence[int] | None
    ) -> str | None:
        """Why the package cannot get to one of these devices (or members of groups, of its product), if it cannot."""
        ...


class CampaignRows(Protocol):
    """The core's rows within one transaction."""

    async def package(self, application: ApplicationKey, file_id: str) -> PackageFacts | None:
        """A package of the application that is not deleted; locked against deletion until the commit."""
        ...

    async def devices(
        self, application: ApplicationKey, names: Sequence[str], *, node_ids: bool
    ) -> Mapping[str, DeviceFacts]:
        """name -> device of those that exist; a name is a device id or, with `node_ids`, else a node id."""
        ...

    async def groups(
        self, application: ApplicationKey, names: Sequence[str], product: ProductKey
    ) -> Mapping[str, GroupFacts]:
        """name -> facts of those that exist."""
        ...

    async def idempotent(self, application: ApplicationKey, key: str) -> tuple[str, str] | None:
        """(request hash, operationId) of an earlier request with that key."""
        ...

    async def forget(self, before: Instant) -> int:
        """Removes keys that were kept before that moment; how many."""
        ...

    async def remember(
        self, application: ApplicationKey, key: str, request_hash: str, operation_id: str, now: Instant
    ) -> bool:
        """Keeps the key; False when another transaction did so first."""
        ...

    async def insert(self, row: CampaignRow) -> CampaignKey:
        """The campaign and its counters, all zero."""
        ...

    async def insert_for_devices(
        self, campaign: CampaignKey, devices: Sequence[int], now: Instant, *, owed: bool
    ) -> int:
        """Upgrades for these devices, each in `wait` or born final; counters with them. The last ordinal before them.

        `owed`: those born failed are owed their result.
        """
        ...

    async def target_groups(self, campaign: CampaignKey, groups: Sequence[GroupFacts]) -> None:
        """Remembers what is to be expanded."""
        ...

    async def expand(self, campaign: CampaignKey, limit: int, now: Instant, *, owed: bool) -> int | None:
        """The same for the next `limit` group members at most; None when none is left."""
        ...

    async def lock(self, campaigns: Sequence[CampaignKey]) -> Mapping[CampaignKey, CampaignDesk]:
        """Locks counters, in the order of keys. Whoever changes a campaign's status holds this lock."""
        ...

    async def look(self, campaign: CampaignKey) -> CampaignDesk:
        """The same without the lock: for those who are about to lock upgrades, which come first."""
        ...

    async def find(self, application: ApplicationKey, operation_id: str) -> CampaignKey | None:
        """The key of a public id; nothing is locked."""
        ...

    async def locked_by_operation(self, application: ApplicationKey, operation_id: str) -> CampaignDesk | None:
        """The same, found by its public id."""
        ...

    async def set_status(
        self,
        campaign: CampaignKey,
        status: CampaignStatus,
        *,
        started_at: Instant | None = None,
        stopped_at: Instant | None = None,
    ) -> None:
        """Writes the status; `started_at` only where none is set."""
        ...

    async def set_work(self, campaign: CampaignKey, work: str) -> None:
        """idle, expanding, retrying or sweeping."""
        ...

    async def set_open(self, campaign: CampaignKey, is_open: bool) -> None:
        """The fence."""
        ...

    async def set_hold(self, campaign: CampaignKey, hold: Hold | None) -> None:
        """What a restore has left of its right to go on."""
        ...

    async def mark_stopped(self, campaign: CampaignKey, now: Instant) -> None:
        """An operator's stop: status, stop time, the fence."""
        ...

    async def package_lives(self, campaign: CampaignKey) -> bool:
        """Is the campaign's package still there, so that devices can be given it again?"""
        ...

    async def begin_round(self, campaign: CampaignKey, *, reopened: bool) -> None:
        """One round more; `reopened` when an operator asked, whose campaign had ended."""
        ...

    async def move_many(
        self,
        campaign: CampaignKey,
        states: Sequence[UpgradeState],
        to: UpgradeState,
        cause: str,
        detail: str | None,
        limit: int,
        now: Instant,
        due_at: Instant | None = None,
        *,
        after: int = 0,
        owed: bool = False,
    ) -> tuple[int, Sequence[UpgradeKey]] | None:
        """Moves up to `limit` upgrades with an ordinal above `after`, all of the first of these states that has any,
        with history and counters; the last ordinal, and which. None when none is left.

        `states` are in an order in which devices go through them, so that one that goes on meanwhile is not missed.
        `owed`: they are owed their result.
        """
        ...

    async def owe(self, upgrades: Collection[UpgradeKey]) -> None:
        """These have failed, and a round may retry them: their result is told when none does."""
        ...

    async def settle(self, campaign: CampaignKey, after: int, limit: int) -> tuple[int, Sequence[UpgradeKey]] | None:
        """Up to `limit` upgrades beyond that ordinal that are owed their result, which they are no more; the last
        ordinal, and which. None when none is left."""
        ...

    async def retry_many(self, campaign: CampaignKey, after: int, limit: int, now: Instant) -> int | None:
        """Resets up to `limit` failed upgrades with an ordinal above `after` to `wait`; the last ordinal, or None."""
        ...

    async def standings(self, devices: Sequence[DeviceKey]) -> Mapping[DeviceKey, Standing]:
        """The unfinished upgrades of these devices, locked in the order of their keys."""
        ...

    async def ended_as(self, device: DeviceKey, action_id: int) -> tuple[UpgradeState, Instant] | None:
        """How and when an attempt of the past ended."""
        ...

    async def newest_attempt(self, device: DeviceKey) -> int:
        """The number of the device's newest attempt, 0 before the first."""
        ...

    async def save(self, moved: Sequence[Moved], deltas: Mapping[CampaignKey, Mapping[str, int]], now: Instant) -> None:
        """States by compare-and-set, history, log lines, device rows, counters last."""
        ...

    async def upgrade_of(self, campaign: CampaignKey, device: str) -> tuple[DeviceKey, bool] | None:
        """(device, is it unfinished) of the campaign's upgrade of a device, by device id or node id."""
        ...


class NoticeRows(Protocol):
    """Where changes are told to those who subscribed, within the transaction that makes them.

    Called with rows as they are after the change. Costs one read where nobody subscribed, and one more where a device
    got a version that it does not tell itself.
    """

    async def moved(self, moved: Sequence[Moved], owed: Collection[UpgradeKey], now: Instant) -> None:
        """Each transition, in order; the result of those that ended, unless it is owed for now; versions believed."""
        ...

    async def born(
        self, campaign: CampaignKey, after: int, states: Sequence[UpgradeState], now: Instant, *, owed: bool
    ) -> None:
        """The results of upgrades with an ordinal above `after` that were born in these final states."""
        ...

    async def ended(self, campaign: CampaignKey, upgrades: Sequence[UpgradeKey], now: Instant, *, owed: bool) -> None:
        """The results of these, which never had their turn."""
        ...

    async def settled(self, campaign: CampaignKey, upgrades: Sequence[UpgradeKey], now: Instant) -> None:
        """The results of these, which were owed."""
        ...


class Work(Audited, Protocol):
    """One transaction, as far as the core uses it."""

    @property
    def campaigns(self) -> CampaignRows:
        """The core's rows."""
        ...

    @property
    def jobs(self) -> JobRows:
        """Work due."""
        ...

    @property
    def notices(self) -> NoticeRows:
        """Where changes are told."""
        ...


class WriterPort(Protocol):
    """The one writer. `stop` goes first, `chunk` last."""

    async def run(self, command: Callable[[Any], Awaitable[Any]], lane: Any = ...) -> Any:
        """One command, one savepoint, durable when it returns."""
        ...

    async def report(self, batcher: Any, payload: Any) -> Any:
        """One item of a set-based batch, durable when it returns."""
        ...


class CampaignList(Protocol):
    """The task list: exact total and one page, newest first. The plain SQL and the index both stand behind this."""

    async def page(self, where: CampaignFilter, number: int, size: int) -> tuple[int, Sequence[Campaign]]:
        """Total of all matches, and the `number`-th page (from 0) of `size`."""
        ...


class CampaignReads(Protocol):
    """Queries outside a transaction, each a key lookup or a bounded range."""

    async def idempotent(self, application: ApplicationKey, key: str) -> tuple[str, str] | None:
        """(request hash, operationId) of an earlier request with that key."""
        ...

    async def one(self, application: ApplicationKey, operation_id: str) -> Campaign | None:
        """A campaign of the application."""
        ...

    async def upgrades_page(
        self, campaign: Campaign, states: Sequence[UpgradeState] | None, number: int, size: int
    ) -> tuple[Counters, Sequence[Upgrade]]:
        """Newest first, with the counters of the same moment; `states` None = all."""
        ...

    async def upgrades_after(
        self, campaign: CampaignKey, after: int, size: int, states: Sequence[UpgradeState] | None
    ) -> Sequence[Upgrade]:
        """By ordinal, beyond `after`: the keyset pages of exports."""
        ...

    async def history(self, campaign: CampaignKey, device: str) -> Sequence[Change] | None:
        """The changes of one device's upgrade, oldest first; None when it is not in the campaign."""
        ...

    async def device_log(self, campaign: CampaignKey, device: str) -> Sequence[tuple[Instant, int, str, list[str]]]:
        """What the device said: (when, action id, kind, lines), oldest first."""
        ...

    async def recount(self, campaign: CampaignKey) -> tuple[Counters, Mapping[UpgradeState, int]]:
        """The counters as they stand and the rows counted by state, in one snapshot on a connection of its own."""
        ...

    async def unfinished(self, after: CampaignKey, limit: int, most: int) -> Sequence[CampaignKey]:
        """The next unfinished campaigns of at most `most` devices, by key; on a connection of its own."""
        ...

    async def due(self, now: Instant, limit: int) -> Sequence[DeviceKey]:
        """Devices whose phase clock has run out."""
        ...
