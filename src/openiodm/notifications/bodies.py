"""What is pushed: which notices a change makes, and their bodies as the published contract has them. Pure.

Bodies are compact JSON with `notifyType` first: receivers choose their handler by a search for `"notifyType":"..."`
(section 1.3). The bodies of the upgrade notices are those of section 4.4, those of devices of section 4.5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from openiodm.campaigns.model import CampaignKind
from openiodm.campaigns.states import GRANTED, UpgradeState
from openiodm.clock import SECOND, Instant
from openiodm.notifications.model import NotifyType

S = UpgradeState

# The state word of each state that a device enters. `otacreated` and `RequestDownload` are newer than the others.
WORDS: dict[UpgradeState, tuple[str, ...]] = {
    S.OFFERED: ("otacreated",),
    S.DOWNLOADING: ("RequestDownload", "downloading"),
    S.DOWNLOADED: ("downloaded",),
    S.INSTALLING: ("updating",),
    S.VERIFYING: ("updating",),
    S.SUCCESS: ("idle",),
    S.FAIL: ("idle",),
    S.TIMEOUT: ("idle",),
    S.STOP: ("idle",),
}
NEWER_WORDS = frozenset({"otacreated", "RequestDownload"})

# The step of a firmware notice beside its word.
STEPS = {"otacreated": "0", "idle": "0", "RequestDownload": "1", "downloading": "1", "downloaded": "2", "updating": "3"}

STATE_TYPE = {CampaignKind.FIRMWARE: NotifyType.FW_STATE, CampaignKind.SOFTWARE: NotifyType.SW_STATE}
RESULT_TYPE = {CampaignKind.FIRMWARE: NotifyType.FW_RESULT, CampaignKind.SOFTWARE: NotifyType.SW_RESULT}


def words(from_state: UpgradeState, to_state: UpgradeState, *, newer: bool) -> tuple[str, ...]:
    """The state words of a transition, in order; most have one, some none, `downloading` two.

    A device that never got its turn was idle all the time. One that says it is done was `updating` already, unless it
    skipped that report. `newer`: with the two words that old clients do not know.
    """
    if from_state not in GRANTED and to_state is not S.OFFERED:
        return ()
    if to_state is S.VERIFYING and from_state in (S.INSTALLING, S.CANCELLING):
        return ()
    return tuple(w for w in WORDS.get(to_state, ()) if newer or w not in NEWER_WORDS)


def has_result(from_state: UpgradeState, to_state: UpgradeState) -> bool:
    """Does this transition decide the upgrade for those who are told? One that is stopped while it waits is not."""
    return to_state in (S.SUCCESS, S.FAIL, S.TIMEOUT) or (to_state is S.STOP and from_state in GRANTED)


class Facts(msgspec.Struct, frozen=True):
    """An upgrade as its notices show it, read when they are written."""

    app_id: str
    operation_id: str
    kind: CampaignKind
    sub_operation_id: str
    device_id: str
    target_version: str
    source_version: str | None
    version: str | None  # the device's, of the kind that is upgraded
    state: UpgradeState
    detail: str | None
    error_code: str | None
    started_at: Instant | None
    finished_at: Instant | None


class _Upgrade(msgspec.Struct, rename="camel"):
    notify_type: str
    device_id: str
    app_id: str
    operation_id: str
    sub_operation_id: str


class SwState(_Upgrade):
    """swUpgradeStateChangeNotify."""

    sw_upgrade_state: str


class FwState(_Upgrade):
    """fwUpgradeStateChangeNotify."""

    step: str
    step_desc: str


class _Result(_Upgrade):
    cur_version: str
    target_version: str
    source_version: str


class SwResult(_Result):
    """swUpgradeResultNotify."""

    sw_upgrade_result: str
    upgrade_time: int  # seconds
    result_desc: str
    error_code: str
    description: str


class FwResult(_Result):
    """fwUpgradeResultNotify."""

    status: str
    status_desc: str
    upgrade_time: int  # seconds


class DeviceAdded(msgspec.Struct, rename="camel"):
    """deviceAdded; `device_info` as the device list shows it."""

    notify_type: str
    device_id: str
    gateway_id: str
    node_type: str
    device_info: Any


class DeviceInfoChanged(msgspec.Struct, rename="camel"):
    """deviceInfoChanged."""

    notify_type: str
    device_id: str
    gateway_id: str
    device_info: Any


class DeviceDeleted(msgspec.Struct, rename="camel"):
    """deviceDeleted."""

    notify_type: str
    device_id: str
    gateway_id: str


@dataclass(frozen=True, slots=True)
class DeviceShown:
    """A device as the published device list shows it."""

    device_id: str
    gateway_id: str
    node_type: str
    device_info: Any


_encoder = msgspec.json.Encoder()


def compact(body: msgspec.Struct) -> str:
    """JSON without a blank between its members."""
    return _encoder.encode(body).decode()


def state_bodies(facts: Facts, state_words: Sequence[str]) -> Iterator[str]:
    """One body per word."""
    of = _of(STATE_TYPE[facts.kind], facts)
    for word in state_words:
        if facts.kind is CampaignKind.SOFTWARE:
            yield compact(SwState(*of, word))
        else:
            yield compact(FwState(*of, STEPS[word], word))


def result_body(facts: Facts) -> str:
    """How it ended. A stop of a device under way is a FAIL to those who were told that it began."""
    good = facts.state is S.SUCCESS
    word = "SUCCESS" if good else "FAIL"
    source = facts.source_version or ""
    current = facts.target_version if good else facts.version or source
    result = (*_of(RESULT_TYPE[facts.kind], facts), current, facts.target_version, source)
    detail = facts.detail or ""
    if facts.kind is CampaignKind.FIRMWARE:
        return compact(FwResult(*result, word, detail, _seconds(facts)))
    code, cause = ("0", "") if good else (facts.error_code or "", detail)
    return compact(SwResult(*result, word, _seconds(facts), detail, code, cause))


def device_added(device: DeviceShown) -> str:
    """A device was registered, or has registered itself."""
    name = NotifyType.DEVICE_ADDED.value
    return compact(DeviceAdded(name, device.device_id, device.gateway_id, device.node_type, device.device_info))


def device_info_changed(device: DeviceShown) -> str:
    """What is told of it is not what it was."""
    name = NotifyType.DEVICE_INFO_CHANGED.value
    return compact(DeviceInfoChanged(name, device.device_id, device.gateway_id, device.device_info))


def device_deleted(device_id: str) -> str:
    """It is gone. All devices are directly connected ones: each is its own gateway."""
    return compact(DeviceDeleted(NotifyType.DEVICE_DELETED.value, device_id, device_id))


def _of(notify_type: NotifyType, facts: Facts) -> tuple[str, str, str, str, str]:
    return notify_type.value, facts.device_id, facts.app_id, facts.operation_id, facts.sub_operation_id


def _seconds(facts: Facts) -> int:
    if facts.started_at is None or facts.finished_at is None:
        return 0
    return max(0, facts.finished_at - facts.started_at) // SECOND
