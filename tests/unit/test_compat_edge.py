"""The compatible API's times, paging and table of refusals."""

import contextlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from openiodm.clock import Instant
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import json_response
from openiodm.northbound.compat.edge import COMMON, FAMILIES, CompatEdge, family_of
from openiodm.northbound.compat.fields import paging
from openiodm.northbound.compat.times import format_time, parse_time

TASKS, PACKAGES = "/iodm/northbound/v1.5.0/operations", "/iodm/northbound/v1.5.0/category"
LOGIN, DEVICE = "/iocm/app/sec/v1.1.0/login", "/iocm/app/dm/v1.4.0/devices/d"
GROUP, MEMBERS = "/iocm/app/devgroup/v1.3.0/devGroups", "/iocm/app/dm/v1.2.0/devices/ids"
ADD = "/iocm/app/dm/v1.1.0/devices/addDevGroupTagToDevices"
CREDENTIALS = "/iocm/app/reg/v1.1.0/deviceCredentials"


def request(path: str) -> Request:
    return Request({"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""})


def answer(reason: Reason, path: str, *, errors_as_4xx: bool = False) -> tuple[int, bytes]:
    response = CompatEdge(errors_as_4xx=errors_as_4xx).refusal(Refusal(reason), request(path))
    assert response.headers["content-type"] == "application/json"
    return response.status_code, bytes(response.body)


def test_the_contracts_own_example_of_a_moment() -> None:
    """Section 1.5."""
    assert format_time(parse_time("20151212T121212Z")) == "20151212T121212Z"
    assert parse_time("20151212T121212Z") == 1_449_922_332_000
    assert format_time(Instant(1_449_922_332_999)) == "20151212T121212Z"


@given(st.integers(0, 253_402_300_799))
def test_every_second_goes_there_and_back(second: int) -> None:
    assert parse_time(format_time(Instant(second * 1000))) == second * 1000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "20151212T121212",
        "20151212t121212z",
        "2015-12-12T12:12:12Z",
        "20151212T121212Z\n",
        " 20151212T121212Z",
        "20151312T121212Z",
        "20150230T000000Z",
        "20151212T240000Z",
        "20151212T121260Z",
        "19691231T235959Z",
        "00000101T000000Z",
        "٢٠١٥١٢١٢T121212Z",
    ],
)
def test_other_forms_and_moments_that_never_were_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


@given(st.text(max_size=20))
def test_any_text_is_a_moment_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert format_time(parse_time(text)) == text


@pytest.mark.parametrize(
    ("reason", "path", "status", "code"),
    [
        (Reason.CREDENTIALS_MISSING, LOGIN, 400, "102202"),
        (Reason.CREDENTIALS_WRONG, LOGIN, 401, "100208"),
        (Reason.APPLICATION_FROZEN, LOGIN, 400, "100247"),
        (Reason.BAD_INPUT, LOGIN, 400, "50400"),
        (Reason.TOKEN_INVALID, DEVICE, 403, "1010005"),
        (Reason.THROTTLED, GROUP, 403, "1010009"),
        (Reason.APPLICATION_UNKNOWN, DEVICE, 403, "100203"),
        (Reason.DEVICE_UNKNOWN, DEVICE, 404, "100403"),
        (Reason.DEVICE_UNKNOWN, TASKS, 404, "123002"),
        (Reason.DEVICE_UNKNOWN, ADD, 400, "100604"),
        (Reason.BAD_INPUT, DEVICE, 400, "50400"),
        (Reason.BAD_FILTER, DEVICE, 400, "100405"),
        (Reason.DEVICE_LIST_UNBOUND, DEVICE, 400, "100218"),
        (Reason.BAD_PAGING, MEMBERS, 400, "50400"),
        (Reason.BAD_PAGING, TASKS, 400, "123029"),
        (Reason.BAD_PAGING, PACKAGES, 400, "120015"),
        (Reason.BAD_FILTER, TASKS, 400, "120015"),
        (Reason.BAD_INPUT, TASKS, 400, "120015"),
        (Reason.PACKAGE_TYPE_MISMATCH, TASKS, 400, "120015"),
        (Reason.IDEMPOTENCY_KEY_REUSED, TASKS, 400, "120015"),
        (Reason.CAMPAIGN_UNKNOWN, TASKS, 404, "123009"),
        (Reason.PACKAGE_UNKNOWN, TASKS, 404, "123002"),
        (Reason.PACKAGE_UNKNOWN, PACKAGES, 404, "123002"),
        (Reason.GROUP_UNKNOWN, TASKS, 404, "123002"),
        (Reason.PACKAGE_IN_USE, PACKAGES, 400, "120015"),
        (Reason.TARGET_MISMATCH, TASKS, 400, "123016"),
        (Reason.TARGET_MANUFACTURER_MISSING, TASKS, 400, "123019"),
        (Reason.TARGET_DEVICE_TYPE_MISSING, TASKS, 400, "123020"),
        (Reason.TARGET_MODEL_MISSING, TASKS, 400, "123021"),
        (Reason.TARGETS_MISSING, TASKS, 400, "123022"),
        (Reason.TARGETS_BOTH, TASKS, 400, "123023"),
        (Reason.TARGETS_TOO_MANY, TASKS, 400, "123024"),
        (Reason.EXECUTE_TYPE_BAD, TASKS, 400, "123025"),
        (Reason.WINDOW_BAD, TASKS, 400, "123026"),
        (Reason.RETRY_TIMES_BAD, TASKS, 400, "123028"),
        (Reason.WINDOW_REVERSED, TASKS, 400, "123032"),
        (Reason.WINDOW_IN_PAST, TASKS, 400, "123033"),
        (Reason.WINDOW_TOO_SHORT, TASKS, 400, "123034"),
        (Reason.GROUP_FULL, ADD, 200, "100601"),
        (Reason.GROUP_NAME_TAKEN, GROUP, 200, "100602"),
        (Reason.GROUP_UNKNOWN, MEMBERS, 200, "100603"),
        (Reason.GROUP_TOO_MANY_DEVICES, ADD, 400, "100609"),
        (Reason.GROUP_LIMIT, GROUP, 200, "100607"),
        (Reason.NODE_ID_TAKEN, CREDENTIALS, 400, "100426"),
        (Reason.VERIFY_CODE_TAKEN, CREDENTIALS, 400, "100416"),
        (Reason.VERIFY_CODE_BAD, CREDENTIALS, 400, "100003"),
        (Reason.MESSAGE_BAD, CREDENTIALS, 400, "100007"),
        (Reason.BAD_INPUT, CREDENTIALS, 400, "50400"),
        (Reason.DEVICE_ONLINE, CREDENTIALS, 400, "100611"),
        (Reason.DEVICE_UNKNOWN, CREDENTIALS, 404, "100403"),
        (Reason.DEVICE_LIMIT, CREDENTIALS, 500, "100412"),
        (Reason.DEVICE_UNKNOWN, "/iocm/app/shadow/v1.5.0/devices/1", 404, "100418"),
    ],
)
def test_a_reason_has_the_status_and_code_of_its_family(reason: Reason, path: str, status: int, code: str) -> None:
    got, body = answer(reason, path)
    assert got == status
    assert body.startswith(b'{"error_code":"%s","error_desc":"' % code.encode())


def test_a_text_is_the_contracts_to_the_letter() -> None:
    _, body = answer(Reason.TARGET_MISMATCH, TASKS)
    expected: Mapping[str, str] = {
        "error_code": "123016",
        "error_desc": "The parameter is error, targetversion not match with device.",
    }
    assert body == bytes(json_response(expected).body)


def test_every_reason_in_every_family_has_an_answer_below_500_but_our_own_fault() -> None:
    paths = [prefix for prefix, _ in FAMILIES]
    for path in paths:
        for reason in Reason:
            status, _ = answer(reason, path)
            # The contract has the limit of devices as a 500.
            assert status < 500 or reason is Reason.DEVICE_LIMIT


def test_errors_shown_with_200_can_be_4xx() -> None:
    assert answer(Reason.GROUP_UNKNOWN, GROUP, errors_as_4xx=True)[0] == 404
    assert answer(Reason.GROUP_FULL, GROUP, errors_as_4xx=True)[0] == 409


def test_a_path_of_no_family_has_the_upgrade_apis_code() -> None:
    edge = CompatEdge()
    assert family_of("/elsewhere").name == "unknown"
    assert edge.unknown_path(request("/iocm/x")).status_code == 404
    wrong = edge.wrong_method(request(LOGIN), ["GET", "POST"])
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, POST")
    fault = edge.our_fault(request(TASKS))
    assert (fault.status_code, b"50252" in bytes(fault.body)) == (500, True)


def test_common_answers_are_the_same_in_every_family_that_takes_a_token() -> None:
    for reason in COMMON:
        for path in (TASKS, PACKAGES, DEVICE, GROUP):
            assert answer(reason, path)[0] == COMMON[reason].status


@pytest.mark.parametrize(
    ("page_no", "page_size", "expected"),
    [(None, None, (0, 10)), ("", "", (0, 10)), ("3", "100", (3, 100)), ("0", "1", (0, 1))],
)
def test_paging_fills_in_what_is_left_out(
    page_no: str | None, page_size: str | None, expected: tuple[int, int]
) -> None:
    assert paging(page_no, page_size, default=10, most=100) == expected


@pytest.mark.parametrize(
    ("page_no", "page_size"), [("-1", None), ("x", None), ("1.0", None), ("²", None), (None, "0"), (None, "101")]
)
def test_paging_outside_its_range_is_refused(page_no: str | None, page_size: str | None) -> None:
    with pytest.raises(Refusal) as refused:
        paging(page_no, page_size, default=10, most=100)
    assert refused.value.reason is Reason.BAD_PAGING
