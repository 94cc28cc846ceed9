"""The two state machines, each one table. Pure: nothing here knows a clock, a database or a protocol.

Rules of an upgrade (one device in a campaign)
 * `wait` until the device is granted its turn at a contact; then `offered`, and forward from there; steps may be
   skipped (no protocol reports them all) but never taken back.
 * `verifying`: the device says it has installed the package, and must now show the new version.
 * `cancelling`: a stop found it after its grant; it ends `stop` at the device's answer or its clock, or as the device
   reports first.
 * Final states are left only by a retry that policy or operator asked for, and `success` and `stop` never.

Rules of a campaign
 * `wait` until the first grant; from there `processing`; from any unfinished state to a final one.
 * A failed one is `processing` again when an operator retries its failed devices.

What is not in a table is illegal and changes nothing: `next_upgrade_state` then answers None, and the report is late.
"""

from enum import StrEnum
from types import MappingProxyType


class UpgradeState(StrEnum):
    """Where one device stands. The contract shows the middle ones all as `processing`."""

    WAIT = "wait"
    OFFERED = "offered"
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    INSTALLING = "installing"
    VERIFYING = "verifying"
    CANCELLING = "cancelling"
    SUCCESS = "success"
    FAIL = "fail"
    TIMEOUT = "timeout"
    STOP = "stop"


class UpgradeEvent(StrEnum):
    """What can happen to one device's upgrade."""

    GRANTED = "granted"  # the device's turn, written at its contact
    DOWNLOAD_STARTED = "download_started"
    DOWNLOADED = "downloaded"
    INSTALL_STARTED = "install_started"
    INSTALLED = "installed"  # the device says so; its version is still to be seen
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"  # a clock of ours, or the device's own time-out
    STOPPED = "stopped"  # by an operator, or the end of the window
    CANCELLED = "cancelled"  # the device gave up as asked, or never answered
    RETRIED = "retried"


_S, _E = UpgradeState, UpgradeEvent

_ENDS = {_E.SUCCEEDED: _S.SUCCESS, _E.FAILED: _S.FAIL, _E.EXPIRED: _S.TIMEOUT}

UPGRADE_TRANSITIONS: MappingProxyType[UpgradeState, dict[UpgradeEvent, UpgradeState]] = MappingProxyType(
    {
        _S.WAIT: {_E.GRANTED: _S.OFFERED, _E.STOPPED: _S.STOP, **_ENDS},
        _S.OFFERED: {
            _E.DOWNLOAD_STARTED: _S.DOWNLOADING,
            _E.DOWNLOADED: _S.DOWNLOADED,
            _E.INSTALL_STARTED: _S.INSTALLING,
            _E.INSTALLED: _S.VERIFYING,
            _E.STOPPED: _S.CANCELLING,
            **_ENDS,
        },
        _S.DOWNLOADING: {
            _E.DOWNLOADED: _S.DOWNLOADED,
            _E.INSTALL_STARTED: _S.INSTALLING,
            _E.INSTALLED: _S.VERIFYING,
            _E.STOPPED: _S.CANCELLING,
            **_ENDS,
        },
        _S.DOWNLOADED: {
            _E.INSTALL_STARTED: _S.INSTALLING,
            _E.INSTALLED: _S.VERIFYING,
            _E.STOPPED: _S.CANCELLING,
            **_ENDS,
        },
        _S.INSTALLING: {_E.INSTALLED: _S.VERIFYING, _E.STOPPED: _S.CANCELLING, **_ENDS},
        _S.VERIFYING: {_E.STOPPED: _S.CANCELLING, **_ENDS},
        _S.CANCELLING: {
            _E.INSTALLED: _S.VERIFYING,
            _E.CANCELLED: _S.STOP,
            _E.SUCCEEDED: _S.SUCCESS,
            _E.FAILED: _S.FAIL,
        },
        _S.SUCCESS: {},
        _S.FAIL: {_E.RETRIED: _S.WAIT},
        _S.TIMEOUT: {_E.RETRIED: _S.WAIT},
        _S.STOP: {},
    }
)

FINAL = frozenset({_S.SUCCESS, _S.FAIL, _S.TIMEOUT, _S.STOP})
BORN_FINAL = (_S.SUCCESS, _S.FAIL)  # what a device that needs nothing, or can have nothing, begins and ends as
GRANTED = frozenset(s for s in UpgradeState if s is not _S.WAIT and s not in FINAL)


class Counter(StrEnum):
    """The contract's seven numbers without `total`; each state counts in exactly one."""

    WAIT = "wait"
    PROCESSING = "processing"
    SUCCESS = "success"
    FAIL = "fail"
    STOP = "stop"
    TIMEOUT = "timeout"


COUNTER_OF: MappingProxyType[UpgradeState, Counter] = MappingProxyType(
    {
        _S.WAIT: Counter.WAIT,
        **dict.fromkeys(GRANTED, Counter.PROCESSING),
        _S.SUCCESS: Counter.SUCCESS,
        _S.FAIL: Counter.FAIL,
        _S.TIMEOUT: Counter.TIMEOUT,
        _S.STOP: Counter.STOP,
    }
)


def next_upgrade_state(state: UpgradeState, event: UpgradeEvent) -> UpgradeState | None:
    """The state after `event`, or None when the event is not legal here (late, repeated, or nonsense)."""
    return UPGRADE_TRANSITIONS[state].get(event)


class CampaignStatus(StrEnum):
    """The contract's task status."""

    WAIT = "wait"
    PROCESSING = "processing"
    SUCCESS = "success"
    FAILED = "failed"
    STOP = "stop"


class CampaignEvent(StrEnum):
    """What can happen to a campaign as a whole."""

    STARTED = "started"  # its first device was granted
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # by an operator, or everything ended without a failure and not all succeeded
    RETRIED = "retried"  # by an operator


_C, _F = CampaignStatus, CampaignEvent

_CAMPAIGN_ENDS = {_F.SUCCEEDED: _C.SUCCESS, _F.FAILED: _C.FAILED, _F.STOPPED: _C.STOP}

CAMPAIGN_TRANSITIONS: MappingProxyType[CampaignStatus, dict[CampaignEvent, CampaignStatus]] = MappingProxyType(
    {
        _C.WAIT: {_F.STARTED: _C.PROCESSING, **_CAMPAIGN_ENDS},
        _C.PROCESSING: dict(_CAMPAIGN_ENDS),
        _C.SUCCESS: {},
        _C.FAILED: {_F.RETRIED: _C.PROCESSING},
        _C.STOP: {},
    }
)

CAMPAIGN_FINAL = frozenset({_C.SUCCESS, _C.FAILED, _C.STOP})


def next_campaign_status(status: CampaignStatus, event: CampaignEvent) -> CampaignStatus | None:
    """The status after `event`, or None when it is not legal here."""
    return CAMPAIGN_TRANSITIONS[status].get(event)
