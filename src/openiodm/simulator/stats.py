"""Live numbers of a fleet, cheap to keep and readable at any moment: they change on one event loop only."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class DeviceState(StrEnum):
    """What a device is doing now."""

    OFF = "off"
    IDLE = "idle"
    DOWNLOADING = "downloading"
    INSTALLING = "installing"
    REBOOTING = "rebooting"
    REPORTING = "reporting"  # has a result to tell
    SILENT = "silent"


@dataclass(slots=True)
class FleetStats:
    """Counters since the start, and the present states.

    `offered`, `succeeded`, `failed` and `canceled` count pairs of device and action once each; the last three when
    the server acknowledged them (2xx), so they must equal the server's own counters.
    """

    devices: int = 0
    registered: int = 0  # devices with at least one answered poll
    polls: int = 0
    not_modified: int = 0
    attributes_sent: int = 0
    offered: int = 0
    confirmed: int = 0
    denied: int = 0
    downloaded: int = 0  # files got whole and checked
    installed: int = 0  # installations brought to a good end
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    refused: int = 0  # closing reports answered 404 or 410
    errors: int = 0  # no answer, 5xx or an answer that breaks the contract
    report_repeats: int = 0
    bytes_received: int = 0
    requests: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    states: Counter[DeviceState] = field(default_factory=Counter)

    @property
    def downloading(self) -> int:
        """Devices that are downloading now."""
        return self.states[DeviceState.DOWNLOADING]

    @property
    def installing(self) -> int:
        """Devices that are installing now."""
        return self.states[DeviceState.INSTALLING]

    @property
    def silent(self) -> int:
        """Devices that are silent now."""
        return self.states[DeviceState.SILENT]

    def to_json(self) -> dict[str, Any]:
        """A document of plain values."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in {"by_status", "states"}}
        plain["by_status"] = {str(code): count for code, count in sorted(self.by_status.items())}
        plain["states"] = {state.value: self.states[state] for state in DeviceState if self.states[state]}
        return plain
