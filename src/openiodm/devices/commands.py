"""Changes of devices. Each command is one transaction; a bulk registration is one for every chunk."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from openiodm.access.model import Actor, ApplicationKey, Product, hash_secret
from openiodm.clock import Clock, Instant, random_id, random_secret
from openiodm.devices.model import (
    BULK_CHUNK,
    SECRET_CHARS,
    BulkRecord,
    BulkResult,
    Device,
    DeviceChange,
    DeviceStatus,
    NewDevice,
    PreparedDevice,
    Registered,
    Silences,
    check_info,
    check_target_token,
)
from openiodm.devices.ports import DeviceLists, DeviceRows, DeviceWork, DeviceWriter, UnfinishedWork
from openiodm.errors import Reason, Refusal

EXPIRY_CHUNK = 100


class DeviceCommands:
    """Registration to deletion. `max_devices`: most live devices of an application; 0 = no limit."""

    def __init__(
        self,
        writer: DeviceWriter,
        clock: Clock,
        unfinished: UnfinishedWork,
        silences: Silences,
        *,
        max_devices: int = 0,
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._unfinished = unfinished
        self._silences = silences
        self._max_devices = max_devices

    async def register(self, actor: Actor, new: NewDevice) -> Registered:
        """A new device (contract 5.2). Attempts are numbered on from those of earlier devices of the node id.

        Raises:
            Refusal: BAD_INPUT, NODE_ID_TAKEN, VERIFY_CODE_TAKEN (verify codes are unique over all applications),
                DEVICE_LIMIT.
        """
        new.check()
        device = _prepare(new)

        async def register(work: DeviceWork) -> Registered:
            rows = work.devices
            await self._check_room(rows, actor.application)
            now = self._clock.now()
            if await rows.insert_device(actor.application, device, now) is None:
                raise await _taken(rows, actor.application, device)
            await work.device_notices.added(actor.application, [device.device_id], now)
            await work.audit.record(actor, "device.register", device.device_id, now)
            return _registered(device)

        return await self._writer.run(register)

    async def register_many(self, actor: Actor, records: AsyncIterator[BulkRecord]) -> AsyncIterator[BulkResult]:
        """One result per record, in order. Good ones stay registered whatever comes after them.

        A chunk is durable before its results are given out and the next one is read; it leaves one row of audit.
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

        async def register(work: DeviceWork) -> dict[str, Registered | Refusal]:
            outcomes = await self._register_all(work.devices, actor.application, devices)
            made = [o.device_id for o in outcomes.values() if isinstance(o, Registered)]
            if made:
                await work.device_notices.added(actor.application, made, self._clock.now())
                done = f"{len(made)} of {len(chunk)} registered, from {devices[0].new.node_id}"
                await work.audit.record(actor, "device.register-many", None, self._clock.now(), done)
            return outcomes

        outcomes = await self._writer.run(register) if devices else {}

        def outcome(device: PreparedDevice | Refusal) -> Registered | Refusal:
            return device if isinstance(device, Refusal) else outcomes[device.device_id]

        return [BulkResult(r.line, outcome(p)) for r, p in zip(chunk, prepared, strict=True)]

    async def _register_all(
        self, rows: DeviceRows, application: ApplicationKey, todo: Sequence[PreparedDevice]
    ) -> dict[str, Registered | Refusal]:
        outcomes: dict[str, Registered | Refusal] = {}
        while todo:
            # What is refused for another reason leaves its room to those behind it.
            room = await self._room(rows, application)
            if not room:
                return outcomes | {d.device_id: _no_room() for d in todo}
            part, todo = todo[:room], todo[room:]
            outcomes |= await _insert(rows, application, part, self._clock.now())
        return outcomes

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
            Refusal: BAD_INPUT for the node id; DEVICE_LIMIT.
        """
        new = NewDevice(node_id=node_id, product=product)
        new.check()
        prepared = _prepare(new)

        async def first_contact(work: DeviceWork) -> Device:
            rows, now = work.devices, self._clock.now()
            known = await rows.device_by_node(application, node_id)
            if known is not None:
                return known
            await self._check_room(rows, application)
            await rows.insert_contact(application, prepared, protocol_type, address, now)
            device = await rows.device_by_node(application, node_id)
            assert device is not None
            if device.device_id == prepared.device_id:  # and not another server's, of a contact at the same moment
                await work.device_notices.added(application, [device.device_id], now)
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
            check_info(info)
            now = self._clock.now()
            name = device.name if change.name is None else change.name
            protocol_type = device.protocol_type if change.protocol_type is None else change.protocol_type
            await rows.update_device(device.key, name=name, protocol_type=protocol_type, info=info, now=now)
            if product != device.product:
                await rows.set_product(device.key, product)
            told = (device.name, device.protocol_type, dict(device.info), device.product)
            if (name, protocol_type, info, product) != told:
                await work.device_notices.changed(actor.application, device_id, now)
            await work.audit.record(actor, "device.modify", device_id, now)

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

        The time-out of a device that never made contact counts anew. A device that is online would go on with
        credentials that are no longer its own, so it is refused (contract section 5.3). With another node id an upgrade
        under way ends; one that waits goes on, and is confirmed anew.

        Raises:
            Refusal: DEVICE_UNKNOWN, BAD_INPUT, DEVICE_ONLINE, NODE_ID_TAKEN, VERIFY_CODE_BAD (another device's).
        """

        async def refresh(work: DeviceWork) -> Registered:
            device = await self._locked_offline(work.devices, actor, device_id)
            wanted = _renewed(device, node_id, timeout_s, verify_code or random_id())
            await self._set_credentials(work, actor.application, device, wanted)
            await work.audit.record(actor, "device.refresh-credentials", device_id, self._clock.now())
            return _registered(wanted)

        return await self._writer.run(refresh)

    async def refresh_secret(
        self,
        actor: Actor,
        device_id: str,
        *,
        node_id: str | None = None,
        secret: str | None = None,
        timeout_s: int | None = None,
    ) -> tuple[Registered, str]:
        """As `refresh_credentials`, for the secret (the device's own token) in place of the verify code.

        Raises:
            Refusal: DEVICE_UNKNOWN, BAD_INPUT, DEVICE_ONLINE, NODE_ID_TAKEN.
        """
        text = secret or new_secret()
        check_target_token(text)

        async def refresh(work: DeviceWork) -> Registered:
            rows = work.devices
            device = await self._locked_offline(rows, actor, device_id)
            wanted = _renewed(device, node_id, timeout_s, device.verify_code or random_id())
            await self._set_credentials(work, actor.application, device, wanted)
            now = self._clock.now()
            await rows.set_target_token(device.key, hash_secret(text), now)
            await work.audit.record(actor, "device.refresh-secret", device_id, now)
            return _registered(wanted)

        return await self._writer.run(refresh), text

    async def _locked_offline(self, rows: DeviceRows, actor: Actor, device_id: str) -> Device:
        device = await _locked(rows, actor, device_id)
        if self._silences.status(device.last_seen_at, self._clock.now()) is DeviceStatus.ONLINE:
            raise Refusal(Reason.DEVICE_ONLINE, "the device is online")
        return device

    async def _set_credentials(
        self, work: DeviceWork, application: ApplicationKey, device: Device, wanted: PreparedDevice
    ) -> None:
        new, now = wanted.new, self._clock.now()
        if await work.devices.set_credentials(device, new.node_id, wanted.verify_code, new.timeout_s, now):
            if new.node_id != device.node_id:
                await self._unfinished.node_id_changed(work, device.key)
                await work.device_notices.changed(application, device.device_id, now)
            return
        refusal = await _taken(work.devices, application, wanted, but=device.node_id)
        if refusal.reason is Reason.VERIFY_CODE_TAKEN:
            raise Refusal(Reason.VERIFY_CODE_BAD, refusal.detail, field=refusal.field)
        raise refusal

    async def delete(self, actor: Actor, device_id: str) -> None:
        """Soft: history keeps speaking of it; its node id is free again. Its open upgrade fails.

        Raises:
            Refusal: DEVICE_UNKNOWN.
        """

        async def delete(work: DeviceWork) -> None:
            if not await self._delete(work, actor.application, device_id):
                raise _unknown()
            await work.audit.record(actor, "device.delete", device_id, self._clock.now())

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
            await work.device_notices.deleted(application, key, device_id, now)
        return key is not None

    async def set_target_token(self, actor: Actor, device_id: str, token: str | None = None) -> str:
        """The device's own DDI token, in place of any earlier one: the one given, or a random one.

        Raises:
            Refusal: DEVICE_UNKNOWN, BAD_INPUT.
        """
        text = random_secret() if token is None else token
        check_target_token(text)
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
            device, now = await _locked(work.devices, actor, device_id), self._clock.now()
            await work.devices.set_target_token(device.key, token_hash, now)
            operation = "device.remove-target-token" if token_hash is None else "device.set-target-token"
            await work.audit.record(actor, operation, device_id, now)

        await self._writer.run(write)

    async def _room(self, rows: DeviceRows, application: ApplicationKey) -> int:
        """How many more devices the application may have, at most a bulk registration's chunk."""
        if not self._max_devices:
            return BULK_CHUNK
        used = await rows.count_devices(application, self._max_devices)
        return max(0, min(self._max_devices - used, BULK_CHUNK))

    async def _check_room(self, rows: DeviceRows, application: ApplicationKey) -> None:
        if not await self._room(rows, application):
            raise _no_room()


def new_secret() -> str:
    """A secret as the platform made them, of `SECRET_CHARS` hexadecimal digits."""
    return random_id()[:SECRET_CHARS]


async def _insert(
    rows: DeviceRows, application: ApplicationKey, devices: Sequence[PreparedDevice], now: Instant
) -> dict[str, Registered | Refusal]:
    """What became of each device, by its id."""
    await rows.insert_devices(application, devices, now)
    present = await rows.device_ids_present([d.device_id for d in devices])
    refused = [d.new.node_id for d in devices if d.device_id not in present]
    taken = await rows.node_ids_taken(application, refused)

    def outcome(device: PreparedDevice) -> Registered | Refusal:
        if device.device_id in present:
            return _registered(device)
        return _node_id_taken() if device.new.node_id in taken else _verify_code_taken()

    return {d.device_id: outcome(d) for d in devices}


def _renewed(device: Device, node_id: str | None, timeout_s: int | None, verify_code: str) -> PreparedDevice:
    """The device with new credentials; what is None stays."""
    new = NewDevice(
        node_id or device.node_id,
        verify_code=verify_code,
        timeout_s=device.timeout_s if timeout_s is None else timeout_s,
    )
    new.check()
    return replace(_prepare(new), device_id=device.device_id)


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


def _no_room() -> Refusal:
    return Refusal(Reason.DEVICE_LIMIT, "the application has as many devices as it may have")


def _node_id_taken() -> Refusal:
    return Refusal(Reason.NODE_ID_TAKEN, "another device has this node id", field="node_id")


def _verify_code_taken() -> Refusal:
    return Refusal(Reason.VERIFY_CODE_TAKEN, "another device has this verify code", field="verify_code")
