"""What devices tell of themselves: attributes with versions and product in them, what is installed, auto-confirmation.

A version that is told may decide an upgrade, so it is handed to the core within the same transaction (`VersionsHeard`).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from openiodm.access.model import ApplicationKey, Product
from openiodm.clock import Clock, Instant
from openiodm.devices.attributes import AttributeMode, merge_attributes, product_of, versions_of
from openiodm.devices.model import DeviceKey
from openiodm.devices.ports import DeviceNotices


@dataclass(frozen=True, slots=True)
class AttributeKeys:
    """Names under which devices tell things in their attributes; the first that is there counts."""

    fw_version: tuple[str, ...]
    sw_version: tuple[str, ...]
    device_type: tuple[str, ...]
    model: tuple[str, ...]
    manufacturer: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of a device before it tells more; its row is locked."""

    application: ApplicationKey
    device_id: str
    attributes: Mapping[str, str]
    product: Product
    self_registered: bool
    fw_version: str | None
    sw_version: str | None


@dataclass(frozen=True, slots=True)
class Description:
    """What a device says of itself; None is "not told"."""

    fw_version: str | None = None
    sw_version: str | None = None
    device_type: str | None = None
    model: str | None = None
    manufacturer_name: str | None = None


class ToldRows(Protocol):
    """What this module needs of storage."""

    async def lock(self, device: DeviceKey) -> Kept | None:
        """None when the device was deleted meanwhile."""
        ...

    async def keep_attributes(self, device: DeviceKey, attributes: Mapping[str, str], now: Instant) -> None:
        """Writes them; nothing more is asked for."""
        ...

    async def keep_versions(self, device: DeviceKey, fw: str | None, sw: str | None, now: Instant) -> None:
        """Writes the versions that are not None; from now on the device is one that reports them."""
        ...

    async def keep_product(self, device: DeviceKey, product: Product) -> None:
        """Changes the product, in the device's group memberships too."""
        ...

    async def is_software(self, device: DeviceKey, name: str, version: str) -> bool:
        """Does a name and version that the device says it runs mean software (else firmware)?"""
        ...

    async def keep_auto_confirm(self, device: DeviceKey, state: str | None) -> bool:
        """Switches it; False when it was so already."""
        ...


class ToldWork(Protocol):
    """One transaction, as far as it is used here."""

    @property
    def told(self) -> ToldRows:
        """The rows."""
        ...

    @property
    def device_notices(self) -> DeviceNotices:
        """Where changes are told."""
        ...


class ToldWriter(Protocol):
    """The one writer."""

    async def run(self, command: Callable[[Any], Awaitable[Any]]) -> Any:
        """Durable when it returns."""
        ...


class VersionsHeard(Protocol):
    """The core's ear."""

    async def versions_told(self, work: Any, device: DeviceKey, fw: str | None, sw: str | None) -> None:
        """An upgrade that waits for its proof may end with it."""
        ...


class ToldCommands:
    """Commands of devices about themselves."""

    def __init__(self, writer: ToldWriter, clock: Clock, keys: AttributeKeys, core: VersionsHeard) -> None:
        self._writer = writer
        self._clock = clock
        self._keys = keys
        self._core = core

    async def attributes(self, device: DeviceKey, mode: str, data: Mapping[str, str | None]) -> None:
        """hawkBit's configData. Only what is in `data` counts as told: an old version is not told again by silence.

        Raises:
            Refusal: BAD_INPUT; the device would have too many attributes.
        """

        async def command(work: ToldWork) -> None:
            kept = await work.told.lock(device)
            if kept is None:
                return
            now = self._clock.now()
            how = AttributeMode(mode)
            await work.told.keep_attributes(device, merge_attributes(kept.attributes, how, data), now)
            if how is AttributeMode.REMOVE:
                return
            told = {k: v for k, v in data.items() if v is not None}
            moved = kept.self_registered and await self._follow_product(work, device, kept.product, told)
            fw, sw = versions_of(told, self._keys.fw_version, self._keys.sw_version)
            await self._hear(work, device, kept, (fw, sw), now, moved=moved)

        await self._writer.run(command)

    async def _follow_product(
        self, work: ToldWork, device: DeviceKey, profile: Product, told: Mapping[str, str]
    ) -> bool:
        """Is it another product now?"""
        keys = self._keys
        product = product_of(told, profile, keys.device_type, keys.model, keys.manufacturer)
        if product == profile or not product.storable:
            return False
        await work.told.keep_product(device, product)
        return True

    async def _hear(
        self,
        work: ToldWork,
        device: DeviceKey,
        kept: Kept,
        told: tuple[str | None, str | None],
        now: Instant,
        *,
        moved: bool = False,
    ) -> None:
        fw, sw = told
        if fw is not None or sw is not None:
            await work.told.keep_versions(device, fw, sw, now)
        if moved or fw not in (None, kept.fw_version) or sw not in (None, kept.sw_version):
            await work.device_notices.changed(kept.application, kept.device_id, now)
        if fw is not None or sw is not None:
            await self._core.versions_told(work, device, fw, sw)

    async def installed(self, device: DeviceKey, name: str, version: str) -> bool:
        """hawkBit's installedBase: the device says what it runs; True when that was news."""

        async def command(work: ToldWork) -> bool:
            kept = await work.told.lock(device)
            if kept is None:
                return False
            software = await work.told.is_software(device, name, version)
            fw, sw = (None, version) if software else (version, None)
            await self._hear(work, device, kept, (fw, sw), self._clock.now())
            return version != (kept.sw_version if software else kept.fw_version)

        return bool(await self._writer.run(command))

    async def described(self, device: DeviceKey, told: Description) -> None:
        """What a device answered when it was asked about itself. Versions count as told, as in `attributes`.

        The product's members are taken where its registration left them out; where it did not, they stay.
        """

        async def command(work: ToldWork) -> None:
            kept = await work.told.lock(device)
            if kept is None:
                return
            product = Product(
                kept.product.device_type or told.device_type or "",
                kept.product.model or told.model or "",
                kept.product.manufacturer_name or told.manufacturer_name or "",
            )
            moved = product != kept.product and product.storable
            if moved:
                await work.told.keep_product(device, product)
            versions = (told.fw_version, told.sw_version)
            await self._hear(work, device, kept, versions, self._clock.now(), moved=moved)

        await self._writer.run(command)

    async def auto_confirm(self, device: DeviceKey, initiator: str | None, remark: str | None) -> bool:
        """Switches auto-confirmation on; False when it was on already."""
        state = {"activated_at": self._clock.now(), "initiator": initiator, "remark": remark}
        text = msgspec.json.encode(state).decode()

        async def command(work: ToldWork) -> bool:
            return await work.told.keep_auto_confirm(device, text)

        return bool(await self._writer.run(command))

    async def no_auto_confirm(self, device: DeviceKey) -> bool:
        """Switches it off; False when it was off already."""

        async def command(work: ToldWork) -> bool:
            return await work.told.keep_auto_confirm(device, None)

        return bool(await self._writer.run(command))
