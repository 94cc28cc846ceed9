"""Modification and deletion of devices, one device, the device list, the shadow (sections 5.1, 5.3 and 5.4).

All devices are directly connected ones here: each is its own gateway, as the platform had it for such devices.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from openiodm.access.model import Actor
from openiodm.clock import Instant
from openiodm.devices.commands import DeviceCommands
from openiodm.devices.model import DeviceChange, DeviceFilter, DeviceStatus, Page
from openiodm.devices.queries import DeviceQueries, SeenDevice
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Call, Needs, Route
from openiodm.northbound.compat.fields import (
    CustomField,
    Location,
    PageNo,
    Text,
    given,
    integer,
    paging,
    rest_of,
)
from openiodm.northbound.compat.times import format_time, parse_time
from openiodm.notifications.bodies import DeviceShown

DEVICES = "/iocm/app/dm/v1.4.0/devices"
SHADOW = "/iocm/app/shadow/v1.5.0/devices"
NODE_TYPE = "GATEWAY"
ACTS_FOR = ("appId",)  # section 1.1
PAGE_SIZE, PAGE_SIZE_MOST = 25, 250

Name = Annotated[str, Meta(min_length=1, max_length=256)]
NameOfImsi = Annotated[str, Meta(min_length=1, max_length=64)]
NameOfLocation = Annotated[str, Meta(min_length=1, max_length=1024)]
PageSize = Annotated[str, Meta(extra_json_schema=integer(1, PAGE_SIZE_MOST, PAGE_SIZE))]

# Members that have columns of their own.
_COLUMNS = ("name", "device_type", "model", "manufacturer_name", "protocol_type")


class DataConfig(msgspec.Struct, rename="camel", omit_defaults=True):
    """How long the platform kept a device's data."""

    data_aging_time: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


class DeviceConfig(msgspec.Struct, rename="camel", omit_defaults=True):
    """The device's configuration."""

    data_config: DataConfig | None = None


class ModifyBody(msgspec.Struct, rename="camel"):
    """What to change (0013); what is left out, or null, stays. An empty text is none (`String(1-256)`)."""

    name: Name | None = None
    end_user: Name | None = None
    mute: Name | None = None
    manufacturer_id: Name | None = None
    manufacturer_name: Name | None = None
    device_type: Name | None = None
    model: Name | None = None
    protocol_type: Name | None = None
    region: Name | None = None
    organization: Name | None = None
    timezone: Name | None = None
    location: NameOfLocation | None = None
    product_id: Name | None = None
    imsi: NameOfImsi | None = None
    custom_fields: list[CustomField] | None = None
    device_config: DeviceConfig | None = None


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


class OneQuery(msgspec.Struct, rename="camel"):
    """As AppQuery, and whether the imsi is asked for."""

    app_id: Text = ""
    select: Literal["imsi", ""] = ""


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
    page_no: PageNo = ""
    page_size: PageSize = ""
    status: Literal["ONLINE", "OFFLINE", "INACTIVE", "ABNORMAL", ""] = ""
    start_time: Text = ""
    end_time: Text = ""
    sort: Literal["ASC", "DESC", ""] = ""
    select: Literal["imsi", ""] = ""


def _bad_filter(_field: str | None) -> Reason:
    return Reason.BAD_FILTER


def routes(commands: DeviceCommands, queries: DeviceQueries) -> list[Route]:
    """The five calls."""
    api = _Devices(commands, queries)
    unknown = Reason.DEVICE_UNKNOWN
    return [
        Route(
            "GET",
            DEVICES,
            api.list_devices,
            Needs.APPLICATION,
            "Device list",
            acts_for=ACTS_FOR,
            query=ListQuery,
            answer=DeviceList,
            bad_input=_bad_filter,
            refusals=(Reason.DEVICE_LIST_UNBOUND, Reason.BAD_FILTER),
        ),
        Route(
            "GET",
            DEVICES + "/{deviceId}",
            api.get_device,
            Needs.APPLICATION,
            "One device",
            acts_for=ACTS_FOR,
            query=OneQuery,
            answer=DeviceObject,
            bad_input=_bad_filter,
            refusals=(unknown, Reason.BAD_FILTER),
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
        Route(
            "GET",
            SHADOW + "/{deviceId}",
            api.get_shadow,
            Needs.APPLICATION,
            "Shadow of a device",
            acts_for=ACTS_FOR,
            query=AppQuery,
            answer=DeviceObject,
            refusals=(unknown,),
        ),
    ]


class _Devices:
    def __init__(self, commands: DeviceCommands, queries: DeviceQueries) -> None:
        self._commands = commands
        self._queries = queries

    async def get_device(self, call: Call) -> DeviceObject:
        return _object(await self._one(call), with_imsi=call.query.select == "imsi")

    async def get_shadow(self, call: Call) -> DeviceObject:
        """The device again: services are empty here, and with them what was reported and what is desired."""
        return _object(await self._one(call))

    async def _one(self, call: Call) -> SeenDevice:
        return await self._queries.device(call.actor, call.path["deviceId"])

    async def list_devices(self, call: Call) -> DeviceList:
        query: ListQuery = call.query
        if not query.gateway_id and not query.page_no:
            raise Refusal(Reason.DEVICE_LIST_UNBOUND, "gatewayId and pageNo are both empty", field="pageNo")
        bad = Reason.BAD_FILTER
        page = Page(*paging(query.page_no, query.page_size, default=PAGE_SIZE, most=PAGE_SIZE_MOST, bad=bad))
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


def _change(body: ModifyBody) -> DeviceChange:
    return DeviceChange(
        name=body.name,
        device_type=body.device_type,
        model=body.model,
        manufacturer_name=body.manufacturer_name,
        protocol_type=body.protocol_type,
        info=rest_of(body, _COLUMNS),
    )


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


def shown(seen: SeenDevice) -> DeviceShown:
    """A device as notices show it: the same as the list does."""
    device = _object(seen)
    return DeviceShown(device.device_id, device.gateway_id, device.node_type, device.device_info)


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
