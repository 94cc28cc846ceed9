"""Devices and groups, as their owner sees them, and as they are asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NewType

import msgspec

from openiodm.access.model import ApplicationKey, Product
from openiodm.clock import DAY, Instant, Millis
from openiodm.errors import Reason, Refusal

DeviceKey = NewType("DeviceKey", int)  # row ids: never shown
GroupKey = NewType("GroupKey", int)

TEXT_CHARS = 256
"""Longest nodeId, verify code, name and the like, in characters (contract section 5.2)."""
GROUP_NAME_CHARS = 50
GROUP_CHANGE_DEVICES = 1000
"""Most devices that one call may add to a group, or remove from it (contract section 5.5)."""
BULK_CHUNK = 500
"""Devices that one transaction of a bulk registration takes."""
TIMEOUT_MAX_S = 2**31 - 1
INFO_BYTES = 64 * 1024
"""Most of what is told of a device beside its columns, in bytes of JSON."""
SECRET_CHARS = 20
"""Length of a device's secret, in hexadecimal digits (contract section 5.1, v2.0.0 of the registration)."""
LINGER = DAY
"""How long the member rows of a deleted group stay: a task that was made before may still be expanding over them."""
TARGET_TOKEN_CHARS = (16, 256)
"""Shortest and longest target token that an application may choose itself, in characters."""

UNTOLD = Product("", "", "")


@dataclass(frozen=True, slots=True)
class NewDevice:
    """A device to be registered. What is None is generated.

    `timeout_s`: deleted when it has made no contact for so long; 0 = never. `target_token`: its own DDI token, kept as
    a hash; None = it has none. `info`: what else is told of it, kept as it is, under the keys of whoever registered it.
    """

    node_id: str
    verify_code: str | None = None
    psk: str | None = None
    timeout_s: int = 0
    name: str | None = None
    product: Product = UNTOLD
    protocol_type: str | None = None
    fw_version: str | None = None
    sw_version: str | None = None
    target_token: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """What no edge may let pass, whatever its contract says.

        Raises:
            Refusal: BAD_INPUT with the field.
        """
        _check_text("node_id", self.node_id, least=1)
        for name in ("verify_code", "psk", "name", "protocol_type", "fw_version", "sw_version"):
            value = getattr(self, name)
            if value is not None:
                _check_text(name, value)
        if not self.product.storable or "\0" in "".join(_members(self.product)):
            raise Refusal(Reason.BAD_INPUT, "the product is too long", field="product")
        if not 0 <= self.timeout_s <= TIMEOUT_MAX_S:
            raise Refusal(Reason.BAD_INPUT, "the time-out is out of range", field="timeout_s")
        if self.target_token is not None:
            check_target_token(self.target_token)
        check_info(self.info)


def check_target_token(token: str) -> None:
    """It goes into an HTTP header, and is long enough not to be guessed.

    Raises:
        Refusal: BAD_INPUT.
    """
    least, most = TARGET_TOKEN_CHARS
    if not (least <= len(token) <= most and token.isascii() and token.isprintable()):
        raise Refusal(Reason.BAD_INPUT, f"a target token has {least} to {most} characters", field="token")


def check_info(info: Mapping[str, Any]) -> None:
    """Bounded, since every list of devices carries it.

    Raises:
        Refusal: BAD_INPUT.
    """
    if len(msgspec.json.encode(info)) > INFO_BYTES:
        raise Refusal(Reason.BAD_INPUT, f"more than {INFO_BYTES} bytes are told of the device", field="info")


def _members(product: Product) -> tuple[str, str, str]:
    return product.device_type, product.model, product.manufacturer_name


def _check_text(field_name: str, value: str, least: int = 0) -> None:
    if not least <= len(value) <= TEXT_CHARS or "\0" in value:
        raise Refusal(Reason.BAD_INPUT, f"{field_name} has {least} to {TEXT_CHARS} characters", field=field_name)


@dataclass(frozen=True, slots=True)
class PreparedDevice:
    """A `NewDevice` with everything generated, ready to be a row."""

    device_id: str
    verify_code: str
    psk: str
    new: NewDevice


@dataclass(frozen=True, slots=True)
class Registered:
    """What a registration answers: the psk and the verify code are for the device's installer."""

    device_id: str
    node_id: str
    verify_code: str
    psk: str
    timeout_s: int


@dataclass(frozen=True, slots=True)
class BulkRecord:
    """One line of a bulk registration as the edge read it: a device, or why it is none."""

    line: int
    device: NewDevice | Refusal


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What became of one line. Lines stand for themselves: a refused one undoes no other."""

    line: int
    outcome: Registered | Refusal


@dataclass(frozen=True, slots=True)
class DeviceChange:
    """What to change; None leaves a member as it is, as does an `info` key that is not named (None removes it)."""

    name: str | None = None
    device_type: str | None = None
    model: str | None = None
    manufacturer_name: str | None = None
    protocol_type: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    def product_of(self, old: Product) -> Product:
        """The product after the change."""
        return Product(
            old.device_type if self.device_type is None else self.device_type,
            old.model if self.model is None else self.model,
            old.manufacturer_name if self.manufacturer_name is None else self.manufacturer_name,
        )


@dataclass(frozen=True, slots=True)
class Device:
    """A device. `attributes` is what it told of itself (DDI configData); `info` what others told of it."""

    key: DeviceKey
    device_id: str
    node_id: str
    product: Product
    name: str | None
    protocol_type: str | None
    fw_version: str | None
    sw_version: str | None
    attributes: Mapping[str, str]
    info: Mapping[str, Any]
    verify_code: str | None
    timeout_s: int
    registered_at: Instant
    modified_at: Instant
    activated_at: Instant | None
    last_seen_at: Instant | None
    address: str | None
    has_target_token: bool


class DeviceStatus(StrEnum):
    """How long a device has been silent."""

    INACTIVE = "INACTIVE"  # never made contact
    ONLINE = "ONLINE"
    ABNORMAL = "ABNORMAL"
    OFFLINE = "OFFLINE"


@dataclass(frozen=True, slots=True)
class Silences:
    """After how much silence a device is ABNORMAL, and OFFLINE."""

    abnormal_after: Millis
    offline_after: Millis

    def status(self, last_seen_at: Instant | None, now: Instant) -> DeviceStatus:
        """The status of a device that was last heard then."""
        if last_seen_at is None:
            return DeviceStatus.INACTIVE
        for status in (DeviceStatus.ONLINE, DeviceStatus.ABNORMAL):
            seen_after, _ = self.window(status, now)
            if seen_after is None or last_seen_at > seen_after:
                return status
        return DeviceStatus.OFFLINE

    def window(self, status: DeviceStatus, now: Instant) -> tuple[Instant | None, Instant | None]:
        """Last contact is (after, until) for that status; None = open. INACTIVE has no last contact."""
        abnormal, offline = Instant(now - self.abnormal_after), Instant(now - self.offline_after)
        windows: dict[DeviceStatus, tuple[Instant | None, Instant | None]] = {
            DeviceStatus.ONLINE: (abnormal, None),
            DeviceStatus.ABNORMAL: (offline, abnormal),
            DeviceStatus.OFFLINE: (None, offline),
            DeviceStatus.INACTIVE: (None, None),
        }
        return windows[status]


@dataclass(frozen=True, slots=True)
class DeviceFilter:
    """Conditions of the device list; all given ones must hold. Registration lies in [start, end], both inclusive."""

    application: ApplicationKey
    device_id: str | None = None
    node_id: str | None = None
    device_type: str | None = None
    model: str | None = None
    manufacturer_name: str | None = None
    name: str | None = None
    location: str | None = None  # info["location"]
    status: DeviceStatus | None = None
    start: Instant | None = None
    end: Instant | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list: `number` from 0. A page past the end is empty, whatever its number."""

    number: int
    size: int

    @property
    def offset(self) -> int:
        """Rows before it; bounded to what both engines take."""
        return min(self.number * self.size, 2**62)


@dataclass(frozen=True, slots=True)
class Group:
    """A group of devices. `max_devices` 0 = no limit."""

    key: GroupKey
    group_id: str
    name: str
    description: str | None
    max_devices: int
    device_count: int
    created_at: Instant


@dataclass(frozen=True, slots=True)
class NewGroup:
    """A group to be made, with its first members."""

    name: str
    description: str | None = None
    max_devices: int = 0
    device_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupChange:
    """What to change; None leaves a member as it is."""

    name: str | None = None
    description: str | None = None
    max_devices: int | None = None
