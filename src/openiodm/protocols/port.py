"""What a protocol gets from the rest: who is calling, where the device stands, and the words of the core.

A protocol authenticates and reads with one `DeviceDirectory` look-up, turns what the device says into the core's
signals (`campaigns.rollout`), and renders what `Contacted.standing` allows. It knows no table and no campaign.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from openiodm.access.model import ApplicationKey, Product
from openiodm.campaigns.model import UpgradeKey
from openiodm.campaigns.rollout import Standing
from openiodm.clock import Instant
from openiodm.devices.model import DeviceKey


class Credential(Enum):
    """How a device shows that it may speak."""

    GATEWAY = "gateway"  # a token that many devices of an application share; registers unknown ones
    TARGET = "target"  # the device's own


@dataclass(frozen=True, slots=True)
class File:
    """The package that an upgrade hands out."""

    file_id: str
    file_type: str
    name: str
    version: str
    sha256: str
    sha1: str
    md5: str
    size: int
    stored_at: Instant


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A registered device."""

    key: DeviceKey
    device_id: str
    activated: bool  # its first contact is on record
    attributes_wanted: bool
    auto_confirm: str | None  # JSON of its auto-confirmation, while active
    installed_action_id: int | None


@dataclass(frozen=True, slots=True)
class Contacted:
    """Who calls and where it stands. `device` is None for one that a gateway token speaks for and nobody knows yet."""

    application: ApplicationKey
    app_id: str
    gateway_product: Product | None  # what devices that register themselves with the gateway token are
    device: KnownDevice | None
    standing: Standing | None
    file: File | None  # of the unfinished upgrade


@dataclass(frozen=True, slots=True)
class Installed:
    """An upgrade that succeeded, and its package."""

    upgrade: UpgradeKey
    file: File


class DeviceDirectory(Protocol):
    """Reads for devices' requests, each one indexed look-up."""

    async def contact(self, credential: Credential, token_hash: str, node_id: str) -> Contacted | None:
        """The caller, or None when the token fits nobody."""
        ...

    async def installed(self, device: DeviceKey, action_id: int) -> Installed | None:
        """What attempt `action_id` installed; None when it installed nothing."""
        ...

    async def kept_log(self, upgrade: UpgradeKey, action_id: int, entries: int) -> list[str]:
        """The newest lines that the device said during an attempt, newest first."""
        ...

    async def current(self, upgrade: UpgradeKey) -> Standing | None:
        """Where an unfinished upgrade stands now; None also while its application is frozen."""
        ...
