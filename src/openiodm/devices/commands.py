"""Changes of devices. Each command is one transaction; a bulk registration is one for every chunk."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from openiodm.access.model import Actor, ApplicationKey, Product, hash_secret
from openiodm.clock import Clock, random_id, random_secret
from openiodm.devices.model import (
    BULK_CHUNK,
    TARGET_TOKEN_CHARS,
    BulkRecord,
    BulkResult,
    Device,
    DeviceChange,
    NewDevice,
    PreparedDevice,
    Registered,
)
from openiodm.devices.ports import DeviceLists, DeviceRows, DeviceWork, DeviceWriter, UnfinishedWork
from openiodm.errors import Reason, Refusal

EXPIRY_CHUNK = 100


class DeviceCommands:
    """Registration to deletion."""

    def __init__(self, writer: DeviceWriter, clock: Clock, unfinished: UnfinishedWork) -> None:
        self._writer = writer
        self._clock = clock
        self._unfinished = unfinished

    async def register(self, actor: Actor, new: NewDevice) -> Registered:
        """A new device (contract 5.2). Attempts are numbered on from those of earlier devices of the node id.

        Raises:
            Refusal: BAD_INPUT, NODE_ID_TAKEN, VERIFY_CODE_TAKEN (verify codes are unique over all applications).
        """
        new.check()
        device = _prepare(new)

        async def register(work: DeviceWork) -> Registered:
            rows = work.devices
            if await rows.insert_device(actor.application, device, self._clock.now()) is None:
                raise await _taken(rows, actor.application, device)
            return _registered(device)

        return await self._writer.run(register)

    async def register_many(self, actor: Actor, records: AsyncIterator[BulkRecord]) -> AsyncIterator[BulkResult]:
        """One result per record, in order. Good ones stay registered whatever comes after them.

        A chunk is durable before its results are given out and the next one is read.
        """
        chunk: list[BulkRecord] = []
        async for record in records:
            chunk.append(record)
            if len(chunk) == BULK_CHUNK:
                for result in await self._register_chunk(actor, chunk):
                    yield result
                chunk = []
        for result in await self._register_chunk(actor, chunk):
            yield result

    async def _register_chunk(self, actor: Actor, chunk: Sequence[BulkRecord]) -> list[BulkResult]:
        prepared = _prepare_chunk(chunk)
        devices = [p for p in prepared if isinstance(p, PreparedDevice)]

        async def register(work: DeviceWork) -> tuple[frozenset[str], frozenset[str]]:
            rows = work.devices
            await rows.insert_devices(actor.application, devices, self._clock.now())
            present = await rows.device_ids_present([d.device_id for d in devices])
            refused = [d.new.node_id for d in devices if d.device_id not in present]
            return present, await rows.node_ids_taken(actor.application, refused)

        present, node_ids_taken = await self._writer.run(register) if devices else (frozenset(), frozenset())

        def outcome(device: PreparedDevice | Refusal) -> Registered | Refusal:
            if isinstance(device, Refusal):
                return device
            if device.device_id in present:
                return _registered(device)
            return _node_id_taken() if device.new.node_id in node_ids_taken else _verify_code_taken()

        return [BulkResult(r.line, outcome(p)) for r, p in zip(chunk, prepared, strict=True)]

    async def self_register(
        self,
        application: ApplicationKey,
        node_id: str,
        product: Product,
        address: str,
        protocol_type: str = "DDI",
    ) -> Device:
        """The device of that node id, made now if it makes its first contact. Parallel first contacts agree on one.

        Raises:
            Refusal: BAD_INPUT for the node id.
        """
        new = NewDevice(node_id=node_id, product=product)
        new.check()
        prepared = _prepare(new)

        async def first_contact(work: DeviceWork) -> Device:
            rows, now = work.devices, self._clock.now()
            await rows.insert_contact(application, prepared, protocol_type, address, now)
            device = await rows.device_by_node(application, node_id)
            assert device is not None
            return device

        return await self._writer.run(first_contact)

    async def modify(self, actor: Actor, device_id: str, change: DeviceChange) -> None:
        """Sets the members that are given. Another product also moves the device within its groups.

        Raises:
            Refusal: DEVICE_UNKNOWN, BAD_INPUT.
        """

        async def modify(work: DeviceWork) -> None:
            rows = work.devices
            device = await _locked(rows, actor, device_id)
            product = change.product_of(device.product)
            NewDevice(device.node_id, name=change.name, product=product).check()
            info = {k: v for k, v in {**device.info, **change.info}.items() if v is not None}
            await rows.update_device(
                device.key,
                name=device.name if change.name is None else change.name,
                protocol_type=device.protocol_type if change.protocol_type is None else change.protocol_type,
                info=info,
                now=self._clock.now(),
            )
            if product != device.product:
                await rows.set_product(device.key, product)

        await self._writer.run(modify)

    async def refresh_credentials(
        self,
        actor: Actor,
        device_id: str,
        *,
        node_id: str | None = None,
        verify_code: str | None = None,
        timeout_s: int | None = None,
    ) -> Registered:
        """A new verify code (generated unless given), and another node id where hardware was swapped.

        Raises:
            Refusal: DEVICE_UNKNOWN, BAD_INPUT, NODE_ID_TAKEN, VERIFY_CODE_TAKEN.
        """

        async def refresh(work: DeviceWork) -> Registered:
            rows = work.devices
            device = await _locked(rows, actor, device_id)
            new = NewDevice(
                node_id or device.node_id,
                verify_code=verify_code,
                timeout_s=device.timeout_s if timeout_s is None else timeout_s,
            )
            new.check()
            wanted = replace(_prepare(new), device_id=device_id)
            now = self._clock.now()
            if not await rows.set_credentials(device, new.node_id, wanted.verify_code, new.timeout_s, now):
                raise await _taken(rows, actor.application, wanted, but=device.node_id)
            return _registered(wanted)

        return await self._writer.run(refresh)

    async def delete(self, actor: Actor, device_id: str) -> None:
        """Soft: history keeps speaking of it; its node id is free again. Its open upgrade fails.

        Raises:
            Refusal: DEVICE_UNKNOWN.
        """

        async def delete(work: DeviceWork) -> None:
            if not await self._delete(work, actor.application, device_id):
                raise _unknown()

        await self._writer.run(delete)

    async def delete_unactivated(self, lists: DeviceLists) -> int:
        """Deletes at most `EXPIRY_CHUNK` devices that made no contact within their time-out; how many it were."""
        late = await lists.unactivated(self._clock.now(), EXPIRY_CHUNK)

        async def delete(work: DeviceWork) -> int:
            # One that made contact, or was given more time, since it was found stays.
            still = [
                (application, device_id)
                for application, device_id in late
                if await work.devices.is_unactivated(application, device_id, self._clock.now())
            ]
            return sum([await self._delete(work, *each) for each in still])

        return await self._writer.run(delete) if late else 0

    async def _delete(self, work: DeviceWork, application: ApplicationKey, device_id: str) -> bool:
        now = self._clock.now()
        key = await work.devices.delete_device(application, device_id, now)
        if key is not None:
            await self._unfinished.device_deleted(work, key, now)
        return key is not None

    async def set_target_token(self, actor: Actor, device_id: str, token: str | None = None) -> str:
        """The device's own DDI token, in place of any earlier one: the one given, or a random one.

        Raises:
            Refusal: DEVICE_UNKNOWN, BAD_INPUT.
        """
        least, most = TARGET_TOKEN_CHARS
        if token is not None and not (least <= len(token) <= most and token.isascii() and token.isprintable()):
            raise Refusal(Reason.BAD_INPUT, f"a target token has {least} to {most} characters", field="token")
        text = token or random_secret()
        await self._write_target_token(actor, device_id, hash_secret(text))
        return text

    async def remove_target_token(self, actor: Actor, device_id: str) -> None:
        """From now on the device needs a gateway token.

        Raises:
            Refusal: DEVICE_UNKNOWN.
        """
        await self._write_target_token(actor, device_id, None)

    async def _write_target_token(self, actor: Actor, device_id: str, token_hash: str | None) -> None:
        async def write(work: DeviceWork) -> None:
            device = await _locked(work.devices, actor, device_id)
            await work.devices.set_target_token(device.key, token_hash, self._clock.now())

        await self._writer.run(write)


def _prepare(new: NewDevice) -> PreparedDevice:
    return PreparedDevice(random_id(), new.verify_code or random_id(), new.psk or random_id(), new)


def _prepare_chunk(chunk: Sequence[BulkRecord]) -> list[PreparedDevice | Refusal]:
    """Refuses what is wrong in itself, or takes what an earlier line of the chunk has taken."""
    node_ids: set[str] = set()
    verify_codes: set[str] = set()

    def prepare(new: NewDevice | Refusal) -> PreparedDevice | Refusal:
        if isinstance(new, Refusal):
            return new
        try:
            new.check()
        except Refusal as refusal:
            return refusal
        device = _prepare(new)
        if new.node_id in node_ids:
            return _node_id_taken()
        if device.verify_code in verify_codes:
            return _verify_code_taken()
        node_ids.add(new.node_id)
        verify_codes.add(device.verify_code)
        return device

    return [prepare(record.device) for record in chunk]


def _registered(device: PreparedDevice) -> Registered:
    return Registered(device.device_id, device.new.node_id, device.verify_code, device.psk, device.new.timeout_s)


async def _locked(rows: DeviceRows, actor: Actor, device_id: str) -> Device:
    device = await rows.lock_device(actor.application, device_id)
    if device is None:
        raise _unknown()
    return device


async def _taken(
    rows: DeviceRows, application: ApplicationKey, device: PreparedDevice, but: str | None = None
) -> Refusal:
    """Which of the two was taken; `but` is the node id that the device itself has now."""
    node_id = device.new.node_id
    if node_id != but and await rows.node_ids_taken(application, [node_id]):
        return _node_id_taken()
    return _verify_code_taken()


def _unknown() -> Refusal:
    return Refusal(Reason.DEVICE_UNKNOWN, "there is no such device")


def _node_id_taken() -> Refusal:
    return Refusal(Reason.NODE_ID_TAKEN, "another device has this node id", field="node_id")


def _verify_code_taken() -> Refusal:
    return Refusal(Reason.VERIFY_CODE_TAKEN, "another device has this verify code", field="verify_code")
