"""One device's upgrade by the core's pure rules alone: what a session's signals do to it."""

from collections.abc import Sequence

import msgspec

from openiodm.campaigns.model import CampaignKey, CampaignKind, Clocks, UpgradeKey
from openiodm.campaigns.rollout import Contact, Halt, Standing, Versions, What, step
from openiodm.campaigns.states import FINAL, UpgradeState
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey
from openiodm.packages.model import PackageKey

CLOCKS = Clocks(online=86_400_000, download=3_600_000, install=1_800_000, verify=600_000, cancel=300_000)


class Upgrade:
    """An upgrade to `V2` that has been granted; `states` is the way that it took."""

    def __init__(
        self, kind: CampaignKind = CampaignKind.FIRMWARE, version: str | None = "V1", sources: Sequence[str] = ()
    ) -> None:
        self.now = Instant(1_000_000)
        self.standing = Standing(
            upgrade=UpgradeKey(1),
            device=DeviceKey(2),
            campaign=CampaignKey(3),
            package=PackageKey(4),
            state=UpgradeState.WAIT,
            round=0,
            action_id=None,
            confirmed=None,
            halted_in=None,
            source_version=None,
            detail=None,
            error_code=None,
            started_at=None,
            finished_at=None,
            due_at=None,
            kind=kind,
            target_version="V2",
            source_versions=tuple(sources),
            confirmation=False,
            clocks=CLOCKS,
            window_start=None,
            window_end=None,
            open=True,
            version=version,
            reports_version=version is not None,
            auto_confirm=False,
            attempt_seq=0,
            sub_operation_id="sub-1",
            device_id="device-2",
        )
        self.states = [UpgradeState.WAIT]
        self.told: list[str] = []
        self.signal([Contact()])

    @property
    def state(self) -> UpgradeState:
        return self.standing.state

    @property
    def open(self) -> Standing | None:
        """As a protocol sees it: what has ended is not there."""
        return None if self.state in FINAL else self.standing

    def signal(self, signals: Sequence[What]) -> None:
        for what in signals:
            if isinstance(what, Versions):
                self.told += [v for v in (what.fw, what.sw) if v]
            done = step(self.standing, what, self.now)
            self.standing = done.standing
            if done.transition is not None:
                self.states.append(done.transition.to_state)

    def close(self) -> None:
        """The fence alone: what a stop commits first."""
        self.standing = msgspec.structs.replace(self.standing, open=False)

    def stop(self, *, whole_task: bool = True) -> None:
        """An operator's stop; the task's closes the fence as well."""
        if whole_task:
            self.close()
        self.signal([Halt()])

    def retry(self) -> None:
        """Another round: the same upgrade, a new attempt."""
        self.standing = msgspec.structs.replace(
            self.standing, state=UpgradeState.WAIT, action_id=None, halted_in=None, finished_at=None, detail=None
        )
        self.signal([Contact()])
