"""Who a simulated device is, and how fast it goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from openiodm.simulator.behaviour import Behaviour


class TokenKind(StrEnum):
    """The Authorization scheme of a device (ddi.md, 2.8)."""

    NONE = ""
    TARGET = "TargetToken"
    GATEWAY = "GatewayToken"


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Who a device is.

    `versions` are the versions at the start, by configData key. `version_keys` says which of them a chunk of a part
    replaces; for a part that is not in it, all are: the image is the whole device.
    """

    controller_id: str
    tenant: str = "DEFAULT"
    token_kind: TokenKind = TokenKind.NONE
    token: str = field(default="", repr=False)
    attributes: Mapping[str, str] = field(default_factory=dict)
    version_keys: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: {"fwVersion": "1.0.0"})
    behaviour: Behaviour = field(default_factory=Behaviour)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a device goes on; seconds."""

    poll_seconds: float | None = None  # None: what the server says
    poll_jitter: float = 0.1  # part of the interval, both ways
    backoff_first: float = 0.2
    backoff_most: float = 10.0
