"""Registration to deletion of devices, one device, the device list (sections 5.1 to 5.4).

All devices are directly connected ones here: each is its own gateway, as the platform had it for such devices.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from openiodm.access.model import Actor, Product
from openiodm.clock import Instant
from openiodm.devices.commands import DeviceCommands
from openiodm.devices.model import DeviceChange, DeviceFilter, DeviceStatus, NewDevice, Page
from openiodm.devices.queries import DeviceQueries, SeenDevice
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Call, Needs, Route
from openiodm.northbound.compat.fields import Number, Text, given, paging
from openiodm.northbound.compat.times import format_time, parse_time

CREDENTIALS = "/iocm/app/reg/v1.1.0/deviceCredentials"
DEVICES = "/iocm/app/dm/v1.4.0/devices"
NODE_TYPE = "GATEWAY"
ACTS_FOR = ("appId",)  # section 1.1
PAGE_SIZE, PAGE_SIZE_MOST = 25, 250

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Imsi = Annotated[str, Meta(max_length=64)]
Psk = Annotated[str, Meta(pattern=r"^([0-9a-fA-F]{8,32})?$(?!\n)", max_length=32)]
Location = Annotated[str, Meta(max_length=1024)]
Timeout = Annotated[int, Meta(ge=0, le=2**31 - 1)]

# Members of deviceInfo that have columns of their own, or are told by the server.
_COLUMNS = ("name", "device_type", "model", "manufacturer_name", "protocol_type", "fw_version", "sw_version")


class RegisterInfo(msgspec.Struct, rename="camel"):
    """deviceInfo of a registration: what may be told of a device beforehand."""

    name: Text | None = None
    description: Location | None = None
    manufacturer_id: Text | None = None
    manufacturer_name: Text | None = None
    mac: Text | None = None
    location: Location | None = None
    device_type: Text | None = None
    model: Text | None = None
    sw_version: Text | None = None
    fw_version: Text | None = None
    hw_version: Text | None = None
    protocol_type: Text | None = None
    bridge_id: Text | None = None
    mute: Text | None = None
    supported_security: Text | None = None
    is_security: Text | None = None
    sig_version: Text | None = None
    serial_number: Text | None = None


class RegisterBody(msgspec.Struct, rename="camel"):
    """A registration (0010). What is empty is not given."""

    node_id: Name
    verify_code: Text | None = None
    end_user_id: Text | None = None
    imsi: Imsi | None = None
    psk: Psk | None = None
    timeout: Timeout | None = None
    is_secure: bool | None = None
    device_info: RegisterInfo | None = None
    product_id: Text | None = None


class RegisterAnswer(msgspec.Struct, rename="camel"):
    """What the installer of the device needs."""

    device_id: str
    verify_code: str
    timeout: int
    psk: str


class RefreshBody(msgspec.Struct, rename="camel"):
    """New credentials for a device that is there."""

    verify_code: Text | None = None
    node_id: Text | None = None
    timeout: Timeout | None = None


class RefreshAnswer(msgspec.Struct, rename="camel"):
    """The credentials after it."""

    verify_code: str
    timeout: int


class Activation(msgspec.Struct, rename="camel"):
    """Has it ever made contact (0016)?"""

    device_id: str
    activated: bool
    name: str | None


class ModifyBody(msgspec.Struct, rename="camel"):
    """What to change (0013); what is left out, or null, stays."""

    name: Text | None = None
    end_user: Text | None = None
    mute: Text | None = None
    manufacturer_id: Text | None = None
    manufacturer_name: Text | None = None
    device_type: Text | None = None
    model: Text | None = None
    protocol_type: Text | None = None
    region: Text | None = None
    organization: Text | None = None
    timezone: Text | None = None
    location: Location | None = None
    product_id: Text | None = None
    imsi: Imsi | None = None
    custom_fields: list[dict[str, Any]] | None = None
    device_config: dict[str, Any] | None = None


class DeviceInfo(msgspec.Struct, rename="camel"):
    """All members, all texts; null when unset (section 5.4)."""

    node_id: str
    name: str | None
    description: str | None
    manufacturer_id: str | None
    manufacturer_name: str | None
    mac: str | None
    location: str | None
    device_type: str | None
    model: str | None
    sw_version: str | None
    fw_version: str | None
    hw_version: str | None
    protocol_type: str | None
    bridge_id: str | None
    status: str
    status_detail: str | None
    mute: str | None
    supported_security: str | None
    is_security: str | None
    signal_strength: str | None
    sig_version: str | None
    serial_number: str | None
    battery_level: str | None


class DeviceObject(msgspec.Struct, rename="camel"):
    """A device. `imsi` is there when the list was asked for it."""

    device_id: str
    gateway_id: str
    node_type: str
    create_time: str
    last_modified_time: str
    device_info: DeviceInfo
    services: list[Any]
    imsi: str | UnsetType | None = UNSET


class DeviceList(msgspec.Struct, rename="camel"):
    """A page of devices."""

    total_count: int
    page_no: int
    page_size: int
    devices: list[DeviceObject]


class AppQuery(msgspec.Struct, rename="camel"):
    """Whose device it is: the caller's, or that of an application that has authorized it."""

    app_id: Text = ""


class DeleteQuery(msgspec.Struct, rename="camel"):
    """`cascade` speaks of children; there are none here."""

    app_id: Text = ""
    cascade: Literal["true", "false", ""] = ""


class ListQuery(msgspec.Struct, rename="camel"):
    """Filters (0061). One of gatewayId and pageNo must be given."""

    app_id: Text = ""
    gateway_id: Text = ""
    node_type: Literal["ENDPOINT", "GATEWAY", "UNKNOW", ""] = ""
    device_type: Text = ""
    location: Location = ""
    name: Text = ""
    page_no: Number = ""
    page_size: Number = ""
    status: Literal["ONLINE", "OFFLINE", "INACTIVE", "ABNORMAL", ""] = ""
    start_time: Text = ""
    end_time: Text = ""
    sort: Literal["ASC", "DESC", ""] = ""
    select: Literal["imsi", ""] = ""


def routes(commands: DeviceCommands, queries: DeviceQueries) -> list[Route]:
    """The seven calls."""
    api = _Devices(commands, queries)
    unknown = Reason.DEVICE_UNKNOWN
    taken = (Reason.NODE_ID_TAKEN, Reason.VERIFY_CODE_TAKEN)
    return [
        Route(
            "POST",
            CREDENTIALS,
            api.register,
            Needs.APPLICATION,
            "Register a device",
            acts_for=ACTS_FOR,
            query=AppQuery,
            body=RegisterBody,
            answer=RegisterAnswer,
            refusals=taken,
        ),
        Route(
            "PUT",
            CREDENTIALS + "/{deviceId}",
            api.refresh_credentials,
            Needs.APPLICATION,
            "Give a device new credentials",
            acts_for=ACTS_FOR,
            query=AppQuery,
            body=RefreshBody,
            answer=RefreshAnswer,
            refusals=(unknown, *taken),
        ),
        Route(
            "GET",
            CREDENTIALS + "/{deviceId}",
            api.activation,
            Needs.APPLICATION,
            "Activation status",
            acts_for=ACTS_FOR,
            query=AppQuery,
            answer=Activation,
            refusals=(unknown,),
        ),
        Route(
            "GET",
            DEVICES,
            api.list_devices,
            Needs.APPLICATION,
            "Device list",
            acts_for=ACTS_FOR,
            query=ListQuery,
            answer=DeviceList,
        ),
        Route(
            "GET",
            DEVICES + "/{deviceId}",
            api.get_device,
            Needs.APPLICATION,
            "One device",
            acts_for=ACTS_FOR,
            query=AppQuery,
            answer=DeviceObject,
            refusals=(unknown,),
        ),
        Route(
            "PUT",
            DEVICES + "/{deviceId}",
            api.modify_device,
            Needs.APPLICATION,
            "Modify a device",
            acts_for=ACTS_FOR,
            query=AppQuery,
            body=ModifyBody,
            status=204,
            refusals=(unknown,),
        ),
        Route(
            "DELETE",
            DEVICES + "/{deviceId}",
            api.delete_device,
            Needs.APPLICATION,
            "Delete a device",
            acts_for=ACTS_FOR,
            query=DeleteQuery,
            status=204,
            refusals=(unknown,),
        ),
    ]


class _Devices:
    def __init__(self, commands: DeviceCommands, queries: DeviceQueries) -> None:
        self._commands = commands
        self._queries = queries

    async def register(self, call: Call) -> RegisterAnswer:
        done = await self._commands.register(call.actor, _new_device(call.body))
        return RegisterAnswer(done.device_id, done.verify_code, done.timeout_s, done.psk)

    async def refresh_credentials(self, call: Call) -> RefreshAnswer:
        body: RefreshBody = call.body
        done = await self._commands.refresh_credentials(
            call.actor,
            call.path["deviceId"],
            node_id=given(body.node_id),
            verify_code=given(body.verify_code),
            timeout_s=body.timeout,
        )
        return RefreshAnswer(done.verify_code, done.timeout_s)

    async def activation(self, call: Call) -> Activation:
        device = (await self._one(call)).device
        return Activation(device.device_id, device.activated_at is not None, device.name)

    async def get_device(self, call: Call) -> DeviceObject:
        return _object(await self._one(call))

    async def _one(self, call: Call) -> SeenDevice:
        return await self._queries.device(call.actor, call.path["deviceId"])

    async def list_devices(self, call: Call) -> DeviceList:
        query: ListQuery = call.query
        if not query.gateway_id and not query.page_no:
            raise Refusal(Reason.BAD_PAGING, "gatewayId and pageNo are both empty", field="pageNo")
        page = Page(*paging(query.page_no, query.page_size, default=PAGE_SIZE, most=PAGE_SIZE_MOST))
        wanted = _filter(call.actor, query)
        total, found = 0, []
        if query.node_type in ("", NODE_TYPE):
            newest_first = query.sort != "ASC"
            total, seen = await self._queries.devices(wanted, page, newest_first=newest_first)
            found = [_object(each, with_imsi=query.select == "imsi") for each in seen]
        return DeviceList(total, page.number, page.size, found)

    async def modify_device(self, call: Call) -> Response:
        await self._commands.modify(call.actor, call.path["deviceId"], _change(call.body))
        return Response(status_code=204)

    async def delete_device(self, call: Call) -> Response:
        await self._commands.delete(call.actor, call.path["deviceId"])
        return Response(status_code=204)


def _new_device(body: RegisterBody) -> NewDevice:
    told = body.device_info or RegisterInfo()
    info = {**_rest(told), "endUserId": body.end_user_id, "imsi": body.imsi, "productId": body.product_id}
    return NewDevice(
        node_id=body.node_id,
        verify_code=given(body.verify_code),
        psk=given(body.psk),
        timeout_s=body.timeout or 0,
        name=told.name,
        product=Product(told.device_type or "", told.model or "", told.manufacturer_name or ""),
        protocol_type=told.protocol_type,
        fw_version=given(told.fw_version),
        sw_version=given(told.sw_version),
        info={k: v for k, v in info.items() if v is not None} | {"isSecure": bool(body.is_secure)},
    )


def _change(body: ModifyBody) -> DeviceChange:
    return DeviceChange(
        name=body.name,
        device_type=body.device_type,
        model=body.model,
        manufacturer_name=body.manufacturer_name,
        protocol_type=body.protocol_type,
        info={k: v for k, v in _rest(body).items() if v is not None},
    )


def _rest(told: msgspec.Struct) -> dict[str, Any]:
    """What has no column, under the contract's names."""
    return {f.encode_name: getattr(told, f.name) for f in msgspec.structs.fields(told) if f.name not in _COLUMNS}


def _filter(actor: Actor, query: ListQuery) -> DeviceFilter:
    return DeviceFilter(
        actor.application,
        device_id=given(query.gateway_id),
        device_type=given(query.device_type),
        name=given(query.name),
        location=given(query.location),
        status=DeviceStatus(query.status) if query.status else None,
        start=_moment(query.start_time, "startTime"),
        end=_end_of_second(_moment(query.end_time, "endTime")),
    )


def _moment(text: str, field: str) -> Instant | None:
    try:
        return parse_time(text) if text else None
    except ValueError as error:
        raise Refusal(Reason.BAD_FILTER, str(error), field=field) from error


def _end_of_second(at: Instant | None) -> Instant | None:
    # The contract's moments are whole seconds: a device registered within that second is inside.
    return None if at is None else Instant(at + 999)


def _object(seen: SeenDevice, *, with_imsi: bool = False) -> DeviceObject:
    device = seen.device
    return DeviceObject(
        device_id=device.device_id,
        gateway_id=device.device_id,
        node_type=NODE_TYPE,
        create_time=format_time(device.registered_at),
        last_modified_time=format_time(device.modified_at),
        device_info=_info(seen),
        services=[],
        imsi=device.info.get("imsi") if with_imsi else UNSET,
    )


def _info(seen: SeenDevice) -> DeviceInfo:
    device, told = seen.device, seen.device.info
    return DeviceInfo(
        node_id=device.node_id,
        name=device.name,
        description=told.get("description"),
        manufacturer_id=told.get("manufacturerId"),
        manufacturer_name=given(device.product.manufacturer_name),
        mac=told.get("mac"),
        location=told.get("location"),
        device_type=given(device.product.device_type),
        model=given(device.product.model),
        sw_version=device.sw_version,
        fw_version=device.fw_version,
        hw_version=told.get("hwVersion"),
        protocol_type=device.protocol_type,
        bridge_id=told.get("bridgeId"),
        status=seen.status.value,
        status_detail=None,
        mute=told.get("mute"),
        supported_security=told.get("supportedSecurity"),
        is_security=told.get("isSecurity"),
        signal_strength=None,
        sig_version=told.get("sigVersion"),
        serial_number=told.get("serialNumber"),
        battery_level=None,
    )
