"""How the compatible API says no: one table per family of calls; HTTP status, code and text as the contract has them.

A family is told by its path. A refusal is looked up in its family's table, then in the common one; what neither names
is the family's word for a bad request. Both members of the error body are strings (section 1.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from openiodm.errors import Reason, Refusal
from openiodm.http.routes import json_response

R = Reason


class ErrorBody(msgspec.Struct, frozen=True):
    """The error body of every call."""

    error_code: str
    error_desc: str


@dataclass(frozen=True, slots=True)
class No:
    """One row of the contract's tables. `strict` is the status where 200 is not wanted for an error."""

    status: int
    code: str
    desc: str
    strict: int | None = None

    def status_of(self, errors_as_4xx: bool) -> int:
        """The HTTP status, as the setting `group_errors_as_4xx` has it."""
        return self.strict if errors_as_4xx and self.strict is not None else self.status


@dataclass(frozen=True, slots=True)
class Family:
    """Calls that share a table. `bad_request` answers every reason that has no row."""

    name: str
    bad_request: No
    rows: dict[Reason, No] = field(default_factory=dict)


_TOKEN = No(403, "1010005", "App_key or access_token is invalid.")
_BAD_REQUEST = No(400, "120015", "Bad request error.")
_NOT_FOUND = No(404, "123002", "Device or package file not found.")
_INPUT_INVALID = No(400, "50400", "The input is invalid.")
_NO_DEVICE = No(404, "100403", "The device is not existed.")
OUR_FAULT = No(500, "50252", "Internal server error.")

COMMON: dict[Reason, No] = {
    R.TOKEN_INVALID: _TOKEN,
    R.THROTTLED: No(403, "1010009", "app throttle exceed."),
    R.APPLICATION_UNKNOWN: No(403, "100203", "The application is not existed."),
    R.APPLICATION_UNAUTHORIZED: No(403, "100217", "The application hasn't been authorized."),
}

AUTH = Family(
    "auth",
    _INPUT_INVALID,
    {
        R.CREDENTIALS_MISSING: No(400, "102202", "Required Parameter is null or empty."),
        R.CREDENTIALS_WRONG: No(401, "100208", "AppId or secret is not right."),
        R.APPLICATION_FROZEN: No(400, "100247", "Operation not allowed. The application has been frozen."),
    },
)
CREDENTIALS = Family(
    "credentials",
    _INPUT_INVALID,
    {
        R.MESSAGE_BAD: No(400, "100007", "Bad request message."),
        R.VERIFY_CODE_BAD: No(400, "100003", "Invalid verify code."),
        R.VERIFY_CODE_TAKEN: No(400, "100416", "The device has already been binded."),
        R.NODE_ID_TAKEN: No(400, "100426", "The nodeId is duplicated."),
        R.DEVICE_ONLINE: No(400, "100611", "Device is online."),
        R.DEVICE_UNKNOWN: _NO_DEVICE,
        R.DEVICE_LIMIT: No(500, "100412", "The amount of device has reached the limit."),
    },
)
DEVICES = Family(
    "devices",
    _INPUT_INVALID,
    {
        R.DEVICE_LIST_UNBOUND: No(400, "100218", "The gatewayId and pageNo can't be both null."),
        R.BAD_FILTER: No(400, "100405", "The request parameter is invalid."),
        R.DEVICE_UNKNOWN: _NO_DEVICE,
    },
)
SHADOW = Family(
    "shadow",
    _INPUT_INVALID,
    {R.DEVICE_UNKNOWN: No(404, "100418", "The deviceData is not existed.")},
)
GROUPS = Family(
    "groups",
    _INPUT_INVALID,
    {
        R.DEVICE_UNKNOWN: No(400, "100604", "The device group request parameter is invalid."),
        R.GROUP_FULL: No(200, "100601", "The number of device in the group has reach the max.", strict=409),
        R.GROUP_NAME_TAKEN: No(200, "100602", "The device group name has been used.", strict=409),
        R.GROUP_UNKNOWN: No(200, "100603", "The device group is not existed.", strict=404),
        R.GROUP_LIMIT: No(200, "100607", "The devGroup has reached the limit.", strict=409),
        R.GROUP_TOO_MANY_DEVICES: No(400, "100609", "Too much devices to add."),
    },
)
TASKS = Family(
    "tasks",
    _BAD_REQUEST,
    {
        R.BAD_PAGING: No(400, "123029", "pageNo or pageSize beyond the limit."),
        R.CAMPAIGN_UNKNOWN: No(404, "123009", "The requested task does not exist."),
        R.PACKAGE_UNKNOWN: _NOT_FOUND,
        R.DEVICE_UNKNOWN: _NOT_FOUND,
        R.GROUP_UNKNOWN: _NOT_FOUND,
        R.TARGET_MISMATCH: No(400, "123016", "The parameter is error, targetversion not match with device."),
        R.TARGET_MANUFACTURER_MISSING: No(400, "123019", "manufacturerName is null."),
        R.TARGET_DEVICE_TYPE_MISSING: No(400, "123020", "deviceType is null"),
        R.TARGET_MODEL_MISSING: No(400, "123021", "model is null."),
        R.TARGETS_MISSING: No(400, "123022", "deviceGroups and devices cannot be null together"),
        R.TARGETS_BOTH: No(400, "123023", "deviceGroups and devices cannot be exist together"),
        R.TARGETS_TOO_MANY: No(400, "123024", "The number of deviceGroups or devices reached upper limit"),
        R.EXECUTE_TYPE_BAD: No(400, "123025", "executeType is error or can not to be null."),
        R.WINDOW_BAD: No(400, "123026", "startTime or endTime is null or error."),
        R.RETRY_TIMES_BAD: No(400, "123028", "retryTimes is null or beyond the limit."),
        R.WINDOW_REVERSED: No(400, "123032", "startTime can not be later than the endTime."),
        R.WINDOW_IN_PAST: No(400, "123033", "startTime can not be earlier than the now."),
        R.WINDOW_TOO_SHORT: No(400, "123034", "endtime must be greater than 5 minutes."),
    },
)
_CALLBACK_BAD = No(400, "100222", "The request callbackurl is illegal.")
MANAGEMENT = Family(
    "management subscriptions",
    No(400, "100228", "The application input is invalid."),
    {R.CALLBACK_BAD: _CALLBACK_BAD},
)
SUBSCRIPTIONS = Family(
    "subscriptions",
    _INPUT_INVALID,
    {
        R.CALLBACK_BAD: _CALLBACK_BAD,
        R.SUBSCRIPTION_UNKNOWN: No(404, "100225", "The resource is not found."),
        R.SUBSCRIPTIONS_NONE: No(404, "200001", "The resource is not found."),
        R.SUBSCRIPTION_EXISTS: No(409, "100227", "The resource is conflicted."),
    },
)
PACKAGES = Family("packages", _BAD_REQUEST, {R.PACKAGE_UNKNOWN: _NOT_FOUND})
UNKNOWN = Family("unknown", _BAD_REQUEST)

# The first prefix that fits names the family.
FAMILIES: Sequence[tuple[str, Family]] = (
    ("/iodm/northbound/v1.5.0/category", PACKAGES),
    ("/iodm/app/sub/", MANAGEMENT),
    ("/iodm/", TASKS),
    ("/iocm/app/sec/", AUTH),
    ("/iocm/app/sub/", SUBSCRIPTIONS),
    ("/iocm/app/devgroup/", GROUPS),
    ("/iocm/app/dm/v1.2.0/devices/ids", GROUPS),
    ("/iocm/app/dm/v1.1.0/devices/addDevGroupTagToDevices", GROUPS),
    ("/iocm/app/dm/v1.1.0/devices/deleteDevGroupTagFromDevices", GROUPS),
    ("/iocm/app/reg/", CREDENTIALS),
    ("/iocm/app/shadow/", SHADOW),
    ("/iocm/", DEVICES),
)


def family_of(path: str) -> Family:
    """The family of calls that a path belongs to."""
    return next((family for prefix, family in FAMILIES if path.startswith(prefix)), UNKNOWN)


def row_of(path: str, reason: Reason) -> No:
    """How a call says no: its family's row, or the common one, or the family's word for a bad request."""
    family = family_of(path)
    return family.rows.get(reason) or COMMON.get(reason) or family.bad_request


class CompatEdge:
    """See `http.routes.Edge`. `errors_as_4xx`: errors that the contract shows with 200 get a 4xx status."""

    def __init__(self, *, errors_as_4xx: bool = False) -> None:
        self._strict = errors_as_4xx

    def refusal(self, refusal: Refusal, request: Request) -> Response:
        """The row of the caller's family."""
        return self._answer(row_of(request.scope["path"], refusal.reason))

    def unknown_path(self, request: Request) -> Response:
        """404 with the upgrade API's code, in every family."""
        return self._answer(No(404, _BAD_REQUEST.code, _BAD_REQUEST.desc))

    def wrong_method(self, request: Request, allowed: Sequence[str]) -> Response:
        """405 with the same body."""
        response = self._answer(No(405, _BAD_REQUEST.code, _BAD_REQUEST.desc))
        response.headers["Allow"] = ", ".join(allowed)
        return response

    def unavailable(self, request: Request) -> Response:
        """500 as well: the contract has no other word for it."""
        return self.our_fault(request)

    def our_fault(self, request: Request) -> Response:
        """500, in every family."""
        return self._answer(OUR_FAULT)

    def _answer(self, no: No) -> Response:
        return json_response(ErrorBody(no.code, no.desc), no.status_of(self._strict))
