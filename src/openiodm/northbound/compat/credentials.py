"""Registration of devices by verify code (v1.1.0) or by secret (v2.0.0), new credentials, activation (5.1 to 5.3).

A secret is the device's DDI target token: what the platform's devices logged in with over MQTT, ours send with each
poll. The deprecated paths `.../reg/v1.1.0/devices` are the same calls under the name that older clients use.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from openiodm.access.model import Product
from openiodm.devices.commands import DeviceCommands, new_secret
from openiodm.devices.model import SECRET_CHARS, NewDevice
from openiodm.devices.queries import DeviceQueries
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import Call, Needs, Route
from openiodm.northbound.compat.fields import CustomField, Imsi, Location, Text, given, rest_of

CREDENTIALS = "/iocm/app/reg/v1.1.0/deviceCredentials"
DEPRECATED = "/iocm/app/reg/v1.1.0/devices"
ACTS_FOR = ("appId",)  # section 1.1
SECRETS = "/iocm/app/reg/v2.0.0/deviceCredentials"

NodeId = Annotated[str, Meta(min_length=1, max_length=256)]
Psk = Annotated[str, Meta(pattern=r"^([0-9a-fA-F]{8,32})?$(?!\n)", max_length=32)]
Secret = Annotated[str, Meta(pattern=rf"^([0-9a-fA-F]{{{SECRET_CHARS}}})?$(?!\n)")]
Timeout = Annotated[int, Meta(ge=0, le=2**31 - 1)]

# Members that have columns of their own, or are read by themselves.
_COLUMNS = ("name", "device_type", "model", "manufacturer_name", "protocol_type", "fw_version", "sw_version", "node_id")
_NOT_INFO = ("node_id", "verify_code", "psk", "timeout", "is_secure", "device_info", "device_name", "secret")


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


class SecretInfo(RegisterInfo, rename="camel"):
    """In secret mode the nodeId is in here."""

    node_id: Text | None = None


class RegisterBody(msgspec.Struct, rename="camel"):
    """A registration (0010). What is empty is not given. `deviceName` is the older word for deviceInfo's name."""

    node_id: Text | None = None
    verify_code: Text | None = None
    end_user_id: Text | None = None
    imsi: Imsi | None = None
    psk: Psk | None = None
    timeout: Timeout | None = None
    is_secure: bool | None = None
    device_info: RegisterInfo | None = None
    device_name: Text | None = None
    product_id: Text | None = None
    custom_fields: list[CustomField] | None = None


class RegisterForm(RegisterBody, rename="camel", kw_only=True):
    """What a registration needs: a missing nodeId has a code of its own, so that `RegisterBody` lets it pass."""

    node_id: NodeId


class RegisterAnswer(msgspec.Struct, rename="camel"):
    """What the installer of the device needs."""

    device_id: str
    verify_code: str
    timeout: int
    psk: str


class SecretBody(msgspec.Struct, rename="camel"):
    """A registration in secret mode (0005). Its answer speaks of a `psk` that its table lacks."""

    device_info: SecretInfo | None = None
    end_user_id: Text | None = None
    organization: Text | None = None
    region: Text | None = None
    timezone: Text | None = None
    mqtt_connect: bool | None = None
    product_id: Text | None = None
    secret: Secret | None = None
    imsi: Imsi | None = None
    psk: Psk | None = None
    timeout: Timeout | None = None
    is_secure: bool | None = None


class SecretInfoForm(SecretInfo, rename="camel", kw_only=True):
    """deviceInfo of a registration in secret mode needs the nodeId."""

    node_id: NodeId


class SecretForm(SecretBody, rename="camel", kw_only=True):
    """As `RegisterForm`."""

    device_info: SecretInfoForm


class SecretAnswer(msgspec.Struct, rename="camel"):
    """What the installer of the device needs; the secret is told here and never again."""

    device_id: str
    secret: str
    psk: str


class RefreshBody(msgspec.Struct, rename="camel"):
    """New credentials for a device that is there (0012)."""

    verify_code: Text | None = None
    node_id: Text | None = None
    timeout: Timeout | None = None


class RefreshAnswer(msgspec.Struct, rename="camel"):
    """The credentials after it."""

    verify_code: str
    timeout: int


class RefreshSecretBody(msgspec.Struct, rename="camel"):
    """The same in secret mode."""

    secret: Secret | None = None
    node_id: Text | None = None
    timeout: Timeout | None = None


class RefreshSecretAnswer(msgspec.Struct, rename="camel"):
    """The secret after it."""

    device_id: str
    secret: str
    timeout: int


class Activation(msgspec.Struct, rename="camel"):
    """Has it ever made contact (0016)?"""

    device_id: str
    activated: bool
    name: str | None


class AppQuery(msgspec.Struct, rename="camel"):
    """Whose device it is: the caller's, or that of an application that has authorized it."""

    app_id: Text = ""


def _bad(field: str | None) -> Reason:
    """A message that is none, a verify code, or any other member (section 5.2)."""
    return {None: Reason.MESSAGE_BAD, "verifyCode": Reason.VERIFY_CODE_BAD}.get(field, Reason.BAD_INPUT)


def routes(commands: DeviceCommands, queries: DeviceQueries) -> list[Route]:
    """Five calls, three of them under two paths."""
    api = _Credentials(commands, queries)
    return [
        *_verify_code_mode(api, CREDENTIALS, ""),
        *_verify_code_mode(api, DEPRECATED, " (deprecated path)"),
        Route(
            "POST",
            SECRETS,
            api.register_with_secret,
            Needs.APPLICATION,
            "Register a device in secret mode",
            acts_for=ACTS_FOR,
            query=AppQuery,
            body=SecretBody,
            described_body=SecretForm,
            answer=SecretAnswer,
            bad_input=_bad,
            refusals=(Reason.MESSAGE_BAD, Reason.NODE_ID_TAKEN, Reason.DEVICE_LIMIT),
        ),
        Route(
            "PUT",
            SECRETS + "/{deviceId}",
            api.refresh_secret,
            Needs.APPLICATION,
            "Give a device a new secret",
            acts_for=ACTS_FOR,
            query=AppQuery,
            body=RefreshSecretBody,
            answer=RefreshSecretAnswer,
            bad_input=_bad,
            refusals=(
                Reason.MESSAGE_BAD,
                Reason.DEVICE_UNKNOWN,
                Reason.DEVICE_ONLINE,
                Reason.NODE_ID_TAKEN,
            ),
        ),
    ]


def _verify_code_mode(api: "_Credentials", path: str, note: str) -> list[Route]:
    unknown = Reason.DEVICE_UNKNOWN
    bad = (Reason.MESSAGE_BAD, Reason.VERIFY_CODE_BAD)
    return [
        Route(
            "POST",
            path,
            api.register,
            Needs.APPLICATION,
            "Register a device" + note,
            acts_for=ACTS_FOR,
            query=AppQuery,
            body=RegisterBody,
            described_body=RegisterForm,
            answer=RegisterAnswer,
            bad_input=_bad,
            refusals=(*bad, Reason.NODE_ID_TAKEN, Reason.VERIFY_CODE_TAKEN, Reason.DEVICE_LIMIT),
        ),
        Route(
            "PUT",
            path + "/{deviceId}",
            api.refresh_credentials,
            Needs.APPLICATION,
            "Give a device new credentials" + note,
            acts_for=ACTS_FOR,
            query=AppQuery,
            body=RefreshBody,
            answer=RefreshAnswer,
            bad_input=_bad,
            refusals=(*bad, unknown, Reason.DEVICE_ONLINE, Reason.NODE_ID_TAKEN),
        ),
        Route(
            "GET",
            path + "/{deviceId}",
            api.activation,
            Needs.APPLICATION,
            "Activation status" + note,
            acts_for=ACTS_FOR,
            query=AppQuery,
            answer=Activation,
            refusals=(unknown,),
        ),
    ]


class _Credentials:
    def __init__(self, commands: DeviceCommands, queries: DeviceQueries) -> None:
        self._commands = commands
        self._queries = queries

    async def register(self, call: Call) -> RegisterAnswer:
        body: RegisterBody = call.body
        info = body.device_info or RegisterInfo()
        new = _new_device(body, info, body.node_id, info.name or body.device_name)
        done = await self._commands.register(call.actor, new)
        return RegisterAnswer(done.device_id, done.verify_code, done.timeout_s, done.psk)

    async def register_with_secret(self, call: Call) -> SecretAnswer:
        body: SecretBody = call.body
        info = body.device_info or SecretInfo()
        secret = given(body.secret) or new_secret()
        new = _new_device(body, info, info.node_id, info.name, secret)
        done = await self._commands.register(call.actor, new)
        return SecretAnswer(done.device_id, secret, done.psk)

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

    async def refresh_secret(self, call: Call) -> RefreshSecretAnswer:
        body: RefreshSecretBody = call.body
        done, secret = await self._commands.refresh_secret(
            call.actor,
            call.path["deviceId"],
            node_id=given(body.node_id),
            secret=given(body.secret),
            timeout_s=body.timeout,
        )
        return RefreshSecretAnswer(done.device_id, secret, done.timeout_s)

    async def activation(self, call: Call) -> Activation:
        device = (await self._queries.device(call.actor, call.path["deviceId"])).device
        return Activation(device.device_id, device.activated_at is not None, device.name)


def _new_device(
    body: RegisterBody | SecretBody,
    told: RegisterInfo,
    node_id: str | None,
    name: str | None,
    secret: str | None = None,
) -> NewDevice:
    """Raises:
    Refusal: MESSAGE_BAD; the nodeId is not given.
    """
    if not node_id:
        raise Refusal(Reason.MESSAGE_BAD, "nodeId is not given", field="nodeId")
    info = {**rest_of(told, _COLUMNS), **rest_of(body, _NOT_INFO)}
    return NewDevice(
        node_id=node_id,
        verify_code=given(body.verify_code) if isinstance(body, RegisterBody) else None,
        psk=given(body.psk),
        timeout_s=body.timeout or 0,
        name=name,
        product=Product(told.device_type or "", told.model or "", told.manufacturer_name or ""),
        protocol_type=told.protocol_type,
        fw_version=given(told.fw_version),
        sw_version=given(told.sw_version),
        target_token=secret,
        info=_with_security(info, body.is_secure),
    )


def _with_security(info: dict[str, Any], is_secure: bool | None) -> dict[str, Any]:
    """deviceInfo tells as a text what a registration says with a boolean."""
    told = {} if is_secure is None else {"isSecurity": str(is_secure).upper()}
    return {**told, **info, "isSecure": bool(is_secure)}
