"""What a protocol gets from the rest: who is calling, where the device stands, and the words of the core.

A protocol authenticates and reads with one `DeviceDirectory` look-up, turns what the device says into the core's
signals (`campaigns.rollout`), and renders what `Contacted.standing` allows. It knows no table and no campaign.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
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


LocalFile = Callable[[str], Awaitable[Path]]
"""The file of a SHA-256 on this machine's disk; it may have to be fetched. FileNotFoundError: there is no such package,
which the opening of the file may tell as well; `PackageAway`."""


class PackageAway(Exception):
    """The bytes cannot be had now; the same request may succeed later. The text says why, for the log."""


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


@dataclass(frozen=True, slots=True)
class EndpointDevice:
    """A registered device that an endpoint name may mean."""

    app_id: str
    key: DeviceKey
    device_id: str
    secure_only: bool  # an application said isSecure, or it has registered over DTLS before


@dataclass(frozen=True, slots=True)
class KeptRegistration:
    """A LwM2M registration as it outlives the process.

    `token`, eight bytes in hex, is the device's for good: observations and package URIs carry it. `address` is the
    socket's, in JSON, or empty when another device speaks from there. `links` are paths, as `3/0`, separated by blanks.
    """

    device: DeviceKey
    device_id: str
    endpoint: str
    location: str
    token: str
    address: str
    secure: bool
    lifetime_s: int
    version: str
    binding: str
    links: str
    speaks_pcp: bool
    registered_at: Instant
    last_seen_at: Instant | None = None
    attempted: bool = False  # the device has been given an upgrade before
    activated: bool = False


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A device's unfinished upgrade, its package, and how large the fragments are that the package is to be sent in."""

    standing: Standing
    file: File
    fragment_bytes: int


class EndpointDirectory(Protocol):
    """Reads for devices that registered with us and are spoken to: key look-ups, or a bounded many of them."""

    async def devices_of(self, node_id: str) -> Sequence[EndpointDevice]:
        """The devices of that node id, one for every application that has it; frozen applications left out."""
        ...

    async def unfinished(self, devices: Sequence[DeviceKey]) -> Mapping[DeviceKey, Unfinished]:
        """Those that have an unfinished upgrade."""
        ...

    async def keys_after(self, device: DeviceKey, limit: int) -> Sequence[tuple[DeviceKey, str, str]]:
        """(key, node id, psk) of devices with a psk, by rising key beyond `device`."""
        ...

    async def key_of(self, node_id: str) -> Sequence[tuple[str, DeviceKey, str]]:
        """(app id, key, psk) of the devices of that node id that have a psk."""
        ...


class Registrations(Protocol):
    """LwM2M registrations that outlive the process. What is written is durable when the call returns."""

    async def put(self, registration: KeptRegistration) -> KeptRegistration | None:
        """Keeps it in place of an earlier one of the device, whose token stays; None when the device is deleted."""
        ...

    async def moved(self, device: DeviceKey, location: str, address: str) -> None:
        """The device is reached at that address now, or nowhere (""); nothing when it has registered anew meanwhile."""
        ...

    async def end(self, device: DeviceKey, location: str) -> None:
        """The device has left; nothing when it has registered anew meanwhile."""
        ...

    async def at(self, location: str) -> KeptRegistration | None:
        """The one of that location, unless the device was deleted or its application frozen."""
        ...

    async def of_token(self, token: str) -> KeptRegistration | None:
        """The one whose device has that token, as `at`."""
        ...

    async def after(self, device: DeviceKey, limit: int) -> Sequence[KeptRegistration]:
        """Those that have not ended, by rising device beyond `device`."""
        ...
