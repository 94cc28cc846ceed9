"""Native routes of devices: registration by the hundred thousand, target tokens, what a device told of itself.

A device is named in a path by its deviceId or its nodeId; where one text is both, the deviceId counts.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request

from openiodm.access.model import Actor, Product
from openiodm.devices.commands import DeviceCommands
from openiodm.devices.model import (
    BULK_CHUNK,
    TARGET_TOKEN_CHARS,
    TIMEOUT_MAX_S,
    BulkRecord,
    BulkResult,
    DeviceFilter,
    DeviceStatus,
    NewDevice,
    Page,
    Registered,
)
from openiodm.devices.queries import DeviceQueries, SeenDevice
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import NUL_IN_JSON, Call, Needs, Route, field_of, json_response
from openiodm.northbound.native.edge import PREFIX
from openiodm.northbound.native.ndjson import MAX_LINE_BYTES, MEDIA, LineStream, lines
from openiodm.northbound.native.times import moment

PATH = PREFIX + "/devices"
MAX_PAGE_SIZE = 500
PSK_PATTERN = r"^[0-9a-fA-F]{8,32}$(?!\n)"  # as the published contract has it

# A node id may be any text; one with a slash, and one that is `bulk`, is found by the list's filter.
PATH_SCHEMAS: Mapping[str, Mapping[str, Any]] = {"device": {"type": "string", "minLength": 1, "maxLength": 256}}

_PRINTABLE = r"^[^\u0000-\u001f\u007f-\u009f]*$(?!\n)"
Text = Annotated[str, Meta(max_length=256, pattern=_PRINTABLE)]
Named = Annotated[str, Meta(min_length=1, max_length=256, pattern=_PRINTABLE)]
TargetToken = Annotated[
    str, Meta(min_length=TARGET_TOKEN_CHARS[0], max_length=TARGET_TOKEN_CHARS[1], pattern=r"^[!-~]*$(?!\n)")
]
PageNo = Annotated[int, Meta(ge=0, le=2**31 - 1)]
PageSize = Annotated[int, Meta(ge=1, le=MAX_PAGE_SIZE)]


class NewDeviceBody(msgspec.Struct, rename="camel"):
    """A device to be registered; what is left out is generated, or told by the device later."""

    node_id: Annotated[Named, Meta(description="the device's own name, in DDI its controllerId")]
    device_type: Named
    model: Named
    manufacturer_name: Named
    name: Text | None = None
    verify_code: Named | None = None
    psk: Annotated[str, Meta(pattern=PSK_PATTERN)] | None = None
    timeout: Annotated[
        int, Meta(ge=0, le=TIMEOUT_MAX_S, description="seconds to the first contact, or it is deleted; 0 = for ever")
    ] = 0
    protocol_type: Text | None = None
    fw_version: Named | None = None
    sw_version: Named | None = None
    target_token: TargetToken | None = None
    info: Annotated[dict[Text, Annotated[str, Meta(max_length=1024)]], Meta(max_length=32)] = {}


class RegisteredView(msgspec.Struct, rename="camel"):
    """What a device's installer needs."""

    device_id: str
    node_id: str
    verify_code: str
    psk: str


class LineError(msgspec.Struct, rename="camel"):
    """Why a line was refused."""

    reason: str
    field: str | None
    detail: str


class LineResult(msgspec.Struct, rename="camel", omit_defaults=True):
    """What became of a line: a device, or `error`."""

    line: int
    device_id: str | None = None
    node_id: str | None = None
    verify_code: str | None = None
    psk: str | None = None
    error: LineError | None = None


class ListQuery(msgspec.Struct, rename="camel"):
    """Conditions that must all hold; an empty one is not given."""

    node_id: Text = ""
    device_type: Text = ""
    model: Text = ""
    manufacturer_name: Text = ""
    name: Text = ""
    status: DeviceStatus | UnsetType = UNSET
    page_no: PageNo = 0
    page_size: PageSize = 50


class DeviceView(msgspec.Struct, rename="camel"):
    """A device."""

    device_id: str
    node_id: str
    name: str | None
    device_type: str
    model: str
    manufacturer_name: str
    protocol_type: str | None
    status: DeviceStatus
    fw_version: str | None
    sw_version: str | None
    attributes: Annotated[Mapping[str, str], Meta(description="what the device told of itself")]
    info: Annotated[Mapping[str, Any], Meta(description="what others told of it")]
    timeout: int
    registered_at: datetime
    modified_at: datetime
    activated_at: datetime | None
    last_seen_at: datetime | None
    address: str | None
    has_target_token: bool


class DeviceList(msgspec.Struct, rename="camel"):
    """One page, newest first; `total` counts all matches."""

    items: list[DeviceView]
    total: int
    page_no: int
    page_size: int


class TargetTokenBody(msgspec.Struct, rename="camel"):
    """The token to set; left out, one is made."""

    token: TargetToken | None = None


class TargetTokenView(msgspec.Struct, rename="camel"):
    """A device's token: shown here and never again."""

    device_id: str
    node_id: str
    token: str


def routes(commands: DeviceCommands, queries: DeviceQueries) -> list[Route]:
    """The seven operations on devices."""
    api = _Devices(commands, queries)
    one, token = PATH + "/{device}", PATH + "/{device}/target-token"
    taken = (Reason.NODE_ID_TAKEN, Reason.VERIFY_CODE_TAKEN)
    unknown = (Reason.DEVICE_UNKNOWN,)
    return [
        Route(
            "POST",
            PATH + "/bulk",
            api.register_devices,
            Needs.APPLICATION,
            "Register many devices",
            answer=LineResult,
            description=(
                f"The body is a stream of lines, one device each, as `POST {PATH}` takes it, of at most "
                f"{MAX_LINE_BYTES} bytes. The answer is a stream of lines too, one for each that is not blank, in "
                "order: the device, or an `error`. A line stands for itself: a refused one undoes no other, and what "
                "is answered is durable. Results are sent while lines are still read: read while you send, or send "
                f"at most {BULK_CHUNK} lines a call. A `targetToken` is set after its device was registered."
            ),
            request_media=MEDIA,
            answer_media=(MEDIA,),
            streams_body=True,
        ),
        Route(
            "POST",
            PATH,
            api.register_device,
            Needs.APPLICATION,
            "Register a device",
            body=NewDeviceBody,
            answer=RegisteredView,
            status=201,
            refusals=taken,
        ),
        Route(
            "GET",
            PATH,
            api.list_devices,
            Needs.APPLICATION,
            "List devices, newest first",
            query=ListQuery,
            answer=DeviceList,
            bad_input=lambda field: Reason.BAD_PAGING if field in {"pageNo", "pageSize"} else Reason.BAD_FILTER,
            refusals=(Reason.BAD_FILTER, Reason.BAD_PAGING),
        ),
        Route(
            "GET",
            one,
            api.get_device,
            Needs.APPLICATION,
            "Show a device",
            answer=DeviceView,
            refusals=unknown,
        ),
        Route(
            "DELETE",
            one,
            api.delete_device,
            Needs.APPLICATION,
            "Delete a device",
            status=204,
            description="Its open upgrade fails; its node id is free again.",
            refusals=unknown,
        ),
        Route(
            "PUT",
            token,
            api.set_target_token,
            Needs.APPLICATION,
            "Set a device's own token",
            body=TargetTokenBody,
            optional_body=True,
            answer=TargetTokenView,
            description="In place of any earlier one. The answer is the only place that shows it.",
            refusals=unknown,
        ),
        Route(
            "DELETE",
            token,
            api.remove_target_token,
            Needs.APPLICATION,
            "Remove a device's own token",
            status=204,
            refusals=unknown,
        ),
    ]


async def find_device(queries: DeviceQueries, actor: Actor, name: str) -> SeenDevice:
    """A device by its deviceId, else by its nodeId.

    Raises:
        Refusal: DEVICE_UNKNOWN.
    """
    try:
        return await queries.device(actor, name)
    except Refusal as refusal:
        if refusal.reason is not Reason.DEVICE_UNKNOWN:
            raise
        return await queries.device_by_node(actor, name)


def in_camel_case(refusal: Refusal) -> Refusal:
    """The refusal with its field spelt as this API does: the rooms speak of `node_id`."""
    if refusal.field is None:
        return refusal
    head, *rest = refusal.field.split("_")
    field = {"timeout_s": "timeout"}.get(refusal.field, head + "".join(part.capitalize() for part in rest))
    return Refusal(refusal.reason, refusal.detail, field=field)


class _Devices:
    def __init__(self, commands: DeviceCommands, queries: DeviceQueries) -> None:
        self._commands = commands
        self._queries = queries

    async def register_devices(self, call: Call) -> LineStream:
        return LineStream(_Bulk(self._commands, call.actor).results(call.request))

    async def register_device(self, call: Call) -> Any:
        body: NewDeviceBody = call.body
        try:
            done = await self._commands.register(call.actor, _new_device(body))
        except Refusal as refusal:
            raise in_camel_case(refusal) from refusal
        if body.target_token is not None:
            await self._commands.set_target_token(call.actor, done.device_id, body.target_token)
        view = RegisteredView(done.device_id, done.node_id, done.verify_code, done.psk)
        response = json_response(view, 201)
        response.headers["Location"] = f"{PATH}/{done.device_id}"
        return response

    async def list_devices(self, call: Call) -> DeviceList:
        query: ListQuery = call.query
        wanted = DeviceFilter(
            call.actor.application,
            node_id=query.node_id or None,
            device_type=query.device_type or None,
            model=query.model or None,
            manufacturer_name=query.manufacturer_name or None,
            name=query.name or None,
            status=None if query.status is UNSET else query.status,
        )
        total, found = await self._queries.devices(wanted, Page(query.page_no, query.page_size))
        return DeviceList([_view(seen) for seen in found], total, query.page_no, query.page_size)

    async def get_device(self, call: Call) -> DeviceView:
        return _view(await self._one(call))

    async def delete_device(self, call: Call) -> None:
        await self._commands.delete(call.actor, (await self._one(call)).device.device_id)

    async def set_target_token(self, call: Call) -> TargetTokenView:
        body: TargetTokenBody = call.body
        device = (await self._one(call)).device
        token = await self._commands.set_target_token(call.actor, device.device_id, body.token)
        return TargetTokenView(device.device_id, device.node_id, token)

    async def remove_target_token(self, call: Call) -> None:
        await self._commands.remove_target_token(call.actor, (await self._one(call)).device.device_id)

    async def _one(self, call: Call) -> SeenDevice:
        return await find_device(self._queries, call.actor, call.path["device"])


@dataclass(frozen=True, slots=True)
class _Bulk:
    """One bulk registration. What it holds: a chunk's lines, their target tokens, their results."""

    commands: DeviceCommands
    actor: Actor

    async def results(self, request: Request) -> AsyncIterator[bytes]:
        """The answer, a chunk at a time."""
        tokens: dict[int, str] = {}
        held: list[BulkResult] = []
        async for result in self.commands.register_many(self.actor, _records(request, tokens)):
            held.append(result)
            if len(held) == BULK_CHUNK:  # the rooms' own chunk: its last result is there
                yield await self._encode(held, tokens)
                held = []
        if held:
            yield await self._encode(held, tokens)

    async def _encode(self, results: Sequence[BulkResult], tokens: dict[int, str]) -> bytes:
        given = await asyncio.gather(*(self._with_token(r, tokens.pop(r.line, None)) for r in results))
        return _encoder.encode_lines(given)

    async def _with_token(self, result: BulkResult, token: str | None) -> LineResult:
        outcome = result.outcome
        if isinstance(outcome, Registered) and token is not None:
            try:
                await self.commands.set_target_token(self.actor, outcome.device_id, token)
            except Refusal as refusal:  # deleted in between
                outcome = refusal
        return _line_result(result.line, outcome)


async def _records(request: Request, tokens: dict[int, str]) -> AsyncIterator[BulkRecord]:
    """The lines as devices; target tokens go into `tokens` by line."""
    async for number, line in lines(request.stream()):
        try:
            body = _parse(line)
        except Refusal as refusal:
            yield BulkRecord(number, refusal)
            continue
        if body.target_token is not None:
            tokens[number] = body.target_token
        yield BulkRecord(number, _new_device(body))


_encoder = msgspec.json.Encoder()
_line_decoder = msgspec.json.Decoder(NewDeviceBody)


def _parse(line: bytes | None) -> NewDeviceBody:
    if line is None:
        raise Refusal(Reason.BAD_INPUT, f"the line is longer than {MAX_LINE_BYTES} bytes")
    if NUL_IN_JSON in line:
        raise Refusal(Reason.BAD_INPUT, "a text of the line holds a NUL")
    try:
        return _line_decoder.decode(line)
    except msgspec.ValidationError as error:
        raise Refusal(Reason.BAD_INPUT, str(error), field=field_of(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(Reason.BAD_INPUT, f"the line is not JSON: {error}") from error


def _line_result(line: int, outcome: Registered | Refusal) -> LineResult:
    if isinstance(outcome, Refusal):
        no = in_camel_case(outcome)
        return LineResult(line, error=LineError(no.reason.value, no.field, no.detail))
    return LineResult(line, outcome.device_id, outcome.node_id, outcome.verify_code, outcome.psk)


def _new_device(body: NewDeviceBody) -> NewDevice:
    return NewDevice(
        node_id=body.node_id,
        verify_code=body.verify_code,
        psk=body.psk,
        timeout_s=body.timeout,
        name=body.name,
        product=Product(body.device_type, body.model, body.manufacturer_name),
        protocol_type=body.protocol_type,
        fw_version=body.fw_version,
        sw_version=body.sw_version,
        info=body.info,
    )


def _view(seen: SeenDevice) -> DeviceView:
    device = seen.device
    return DeviceView(
        device_id=device.device_id,
        node_id=device.node_id,
        name=device.name,
        device_type=device.product.device_type,
        model=device.product.model,
        manufacturer_name=device.product.manufacturer_name,
        protocol_type=device.protocol_type,
        status=seen.status,
        fw_version=device.fw_version,
        sw_version=device.sw_version,
        attributes=device.attributes,
        info=device.info,
        timeout=device.timeout_s,
        registered_at=moment(device.registered_at),
        modified_at=moment(device.modified_at),
        activated_at=None if device.activated_at is None else moment(device.activated_at),
        last_seen_at=None if device.last_seen_at is None else moment(device.last_seen_at),
        address=device.address,
        has_target_token=device.has_target_token,
    )
