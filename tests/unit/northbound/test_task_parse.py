"""The body of a create call against the rules of the contract, section 3.3: each row of its table, and their order."""

import json
from typing import Any

import pytest
from starlette.datastructures import Headers

from openiodm.campaigns.model import CampaignKind, ExecuteType, IdempotencyKey, NewCampaign, Policy, Target
from openiodm.clock import Instant
from openiodm.errors import Reason, Refusal
from openiodm.http.routes import parse_json
from openiodm.northbound.compat.times import format_time, parse_time
from openiodm.northbound.native.export import csv_rows
from openiodm.northbound.native.times import read_moment
from openiodm.northbound.tasks import CreateBody, idempotency_key, known_operation_id, new_campaign

R = Reason
NOW = parse_time("20240601T120000Z")
DEVICES = {"devices": ["d1"]}
GROUPS = {"deviceGroups": ["g1"], "deviceType": "t", "model": "m", "manufacturerName": "f"}
SECOND, MINUTE = 1_000, 60_000
ABSENT: Any = object()


def at(offset_ms: int) -> str:
    return format_time(Instant(NOW + offset_ms))


def window(start_ms: int = MINUTE, end_ms: int = 60 * MINUTE, **more: Any) -> dict[str, Any]:
    return {"executeType": "custom", "startTime": at(start_ms), "endTime": at(end_ms), **more}


def parse_raw(raw: bytes) -> NewCampaign:
    body = parse_json(raw, CreateBody, lambda _field: R.BAD_INPUT)
    return new_campaign(body, CampaignKind.FIRMWARE, now=NOW, read_time=parse_time)


def parse(*, fileId: Any = "f1", targets: Any = DEVICES, policy: Any = ABSENT, **more: Any) -> NewCampaign:  # noqa: N803
    body = {"fileId": fileId, "targets": targets, "policy": policy, **more}
    return parse_raw(json.dumps({k: v for k, v in body.items() if v is not ABSENT}).encode())


def policy_of(given: Any) -> Policy:
    policy = parse(policy=given).policy
    assert policy is not None
    return policy


def target_of(given: Any) -> Target:
    return parse(targets=given).target


def reason_of(**body: Any) -> Reason:
    with pytest.raises(Refusal) as refused:
        parse(**body)
    return refused.value.reason


def test_a_plain_request() -> None:
    assert parse() == NewCampaign(CampaignKind.FIRMWARE, "f1", Target(devices=("d1",)))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b'"x"',
        b"{",
        b"{} {}",
        b"\xff",
        b'{"fileId": "\\u0000", "targets": {"devices": ["d"]}}',
    ],
)
def test_what_is_no_json_object_is_a_bad_request(raw: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse_raw(raw)
    assert refused.value.reason is R.BAD_INPUT


@pytest.mark.parametrize("file_id", [ABSENT, None, "", 7, ["f1"], "x" * 257])
def test_without_a_file_id_it_is_a_bad_request(file_id: Any) -> None:
    assert reason_of(fileId=file_id) is R.BAD_INPUT


@pytest.mark.parametrize(
    "targets",
    [
        [],
        "d1",
        1,
        {"devices": "d1"},
        {"devices": [1]},
        {"devices": [None]},
        {"devices": [""]},
        {"devices": ["x" * 257]},
        {"deviceGroups": {}},
        {**GROUPS, "model": 1},
        {**GROUPS, "model": "x" * 257},
        {**DEVICES, "deviceType": "x" * 257},
    ],
)
def test_targets_of_a_wrong_shape_are_a_bad_request(targets: Any) -> None:
    assert reason_of(targets=targets) is R.BAD_INPUT


@pytest.mark.parametrize(
    "policy",
    [
        [],
        "now",
        {"executeType": 1},
        {"startTime": 20240601},
        {"retryType": "true"},
        {"retryTimes": "3"},
        {"retryType": True, "retryTimes": 1.5},
        {"retryType": True, "retryTimes": True},
    ],
)
def test_a_policy_of_a_wrong_shape_is_a_bad_request(policy: Any) -> None:
    assert reason_of(policy=policy) is R.BAD_INPUT


TARGET_ROWS: list[tuple[Any, Reason]] = [
    (ABSENT, R.TARGETS_MISSING),
    (None, R.TARGETS_MISSING),
    ({}, R.TARGETS_MISSING),
    ({"devices": [], "deviceGroups": None}, R.TARGETS_MISSING),
    ({"deviceType": "t", "model": "m", "manufacturerName": "f"}, R.TARGETS_MISSING),
    ({**GROUPS, **DEVICES}, R.TARGETS_BOTH),
    ({"devices": [f"d{n}" for n in range(257)]}, R.TARGETS_TOO_MANY),
    ({"devices": ["d1"] * 257}, R.TARGETS_TOO_MANY),
    ({**GROUPS, "deviceGroups": [f"g{n}" for n in range(257)]}, R.TARGETS_TOO_MANY),
    ({**GROUPS, "manufacturerName": None}, R.TARGET_MANUFACTURER_MISSING),
    ({**GROUPS, "manufacturerName": ""}, R.TARGET_MANUFACTURER_MISSING),
    ({**GROUPS, "deviceType": None}, R.TARGET_DEVICE_TYPE_MISSING),
    ({**GROUPS, "deviceType": ""}, R.TARGET_DEVICE_TYPE_MISSING),
    ({**GROUPS, "model": None}, R.TARGET_MODEL_MISSING),
    ({**GROUPS, "model": ""}, R.TARGET_MODEL_MISSING),
    # several at once: 22, 23, 24, 19, 20, 21
    ({"deviceGroups": ["g"] * 257, "devices": ["d"] * 257}, R.TARGETS_BOTH),
    ({"deviceGroups": ["g"] * 257}, R.TARGETS_TOO_MANY),
    ({"deviceGroups": ["g"]}, R.TARGET_MANUFACTURER_MISSING),
    ({"deviceGroups": ["g"], "manufacturerName": "f"}, R.TARGET_DEVICE_TYPE_MISSING),
    ({"deviceGroups": ["g"], "manufacturerName": "f", "deviceType": "t"}, R.TARGET_MODEL_MISSING),
]


@pytest.mark.parametrize(("targets", "reason"), TARGET_ROWS)
def test_rules_of_targets(targets: Any, reason: Reason) -> None:
    assert reason_of(targets=targets) is reason


def test_an_empty_list_is_not_given() -> None:
    assert target_of({"devices": ["d1"], "deviceGroups": []}) == Target(devices=("d1",))
    assert target_of({**GROUPS, "devices": []}).groups == ("g1",)


def test_duplicates_collapse_in_the_order_given() -> None:
    assert target_of({"devices": ["b", "a", "b", "c", "a"]}).devices == ("b", "a", "c")
    assert target_of({**GROUPS, "deviceGroups": ["g2", "g1", "g2"]}).groups == ("g2", "g1")


def test_256_targets_are_taken_and_texts_of_256_characters() -> None:
    assert len(target_of({"devices": [f"{n:0>256}" for n in range(256)]}).devices or ()) == 256
    assert target_of({**GROUPS, "model": "é" * 256}).model == "é" * 256


def test_a_product_given_with_devices_is_kept_and_an_empty_one_is_not_given() -> None:
    target = target_of({**DEVICES, "deviceType": "t", "model": "", "manufacturerName": None})
    assert target == Target(devices=("d1",), device_type="t")


def test_unknown_members_are_ignored_at_every_level() -> None:
    assert parse(targets={**DEVICES, "x": 1}, policy={"x": {}}, x=[]).policy == Policy()


def test_null_policy_is_none_and_an_empty_one_is_now() -> None:
    assert parse(policy=None).policy is None
    assert parse().policy is None
    assert policy_of({}) == Policy(ExecuteType.NOW)


@pytest.mark.parametrize("execute_type", [None, "", "NOW", "later", " now", "x" * 5000])
def test_an_execute_type_that_is_none_is_refused(execute_type: str | None) -> None:
    assert reason_of(policy={"executeType": execute_type}) is R.EXECUTE_TYPE_BAD


@pytest.mark.parametrize("execute_type", list(ExecuteType))
def test_every_execute_type_is_taken(execute_type: ExecuteType) -> None:
    assert policy_of({**window(), "executeType": execute_type.value}).execute_type is execute_type


@pytest.mark.parametrize("execute_type", ["now", "device_online"])
def test_outside_custom_the_window_is_ignored(execute_type: str) -> None:
    given = {"executeType": execute_type, "startTime": "nonsense", "endTime": at(-60 * MINUTE)}
    assert policy_of(given) == Policy(ExecuteType(execute_type))


BAD_TIMES = [
    None,
    "",
    "2024-06-01T13:00:00Z",
    "20240601T130000",
    "20240601t130000z",
    "20240601T130000Z\n",
    " 20240601T130000Z",
    "20240631T130000Z",
    "20230229T130000Z",
    "20240601T240000Z",
    "20240601T126000Z",
    "20240601T120060Z",
    "00000601T120000Z",
    "２0240601T130000Z",
    "20240601T130000+0000",
]


@pytest.mark.parametrize("time", BAD_TIMES)
@pytest.mark.parametrize("member", ["startTime", "endTime"])
def test_a_custom_policy_needs_both_moments_and_real_ones(member: str, time: str | None) -> None:
    assert reason_of(policy={**window(), member: time}) is R.WINDOW_BAD
    left_out = {k: v for k, v in window().items() if k != member}
    assert reason_of(policy=left_out) is R.WINDOW_BAD


def test_the_window_of_a_custom_policy_is_kept() -> None:
    policy = policy_of(window(MINUTE, 60 * MINUTE))
    assert (policy.window_start, policy.window_end) == (NOW + MINUTE, NOW + 60 * MINUTE)


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (10 * MINUTE, 9 * MINUTE, R.WINDOW_REVERSED),
        (10 * MINUTE, 10 * MINUTE - SECOND, R.WINDOW_REVERSED),
        (10 * MINUTE, 10 * MINUTE, R.WINDOW_TOO_SHORT),
        (10 * MINUTE, 15 * MINUTE - SECOND, R.WINDOW_TOO_SHORT),
        (10 * MINUTE, 15 * MINUTE, None),
        (-MINUTE - SECOND, 60 * MINUTE, R.WINDOW_IN_PAST),
        (-MINUTE, 60 * MINUTE, None),
        (-MINUTE, 4 * MINUTE, None),
        (0, 5 * MINUTE, None),
        # several at once: reversed, past, short
        (-10 * MINUTE, -11 * MINUTE, R.WINDOW_REVERSED),
        (-10 * MINUTE, -9 * MINUTE, R.WINDOW_IN_PAST),
    ],
)
def test_rules_of_the_window(start: int, end: int, reason: Reason | None) -> None:
    if reason is None:
        assert policy_of(window(start, end)).execute_type is ExecuteType.CUSTOM
    else:
        assert reason_of(policy=window(start, end)) is reason


@pytest.mark.parametrize("times", [ABSENT, None, 0, -1, 6, 2**31, 10**30])
def test_retries_need_their_number(times: Any) -> None:
    given = {"retryType": True} if times is ABSENT else {"retryType": True, "retryTimes": times}
    assert reason_of(policy=given) is R.RETRY_TIMES_BAD


@pytest.mark.parametrize("times", [1, 5])
def test_one_to_five_retries_are_taken(times: int) -> None:
    assert policy_of({"retryType": True, "retryTimes": times}).retry_times == times


@pytest.mark.parametrize("retry_type", [ABSENT, None, False])
def test_without_retry_type_the_number_is_ignored(retry_type: Any) -> None:
    given = {"retryTimes": 99} if retry_type is ABSENT else {"retryType": retry_type, "retryTimes": 99}
    assert policy_of(given).retry_times == 0


# Each body breaks its own rule and all that come after it; the first in the contract's order is told.
TOO_OFTEN = {"retryType": True, "retryTimes": 6}
IN_ORDER: list[tuple[dict[str, Any], Reason]] = [
    ({"fileId": 1, "targets": {}, "policy": {"executeType": ""}}, R.BAD_INPUT),
    ({"targets": {}, "policy": {"retryType": 1}}, R.BAD_INPUT),
    ({"fileId": "", "targets": {}}, R.BAD_INPUT),
    ({"targets": {}, "policy": {"executeType": None}}, R.TARGETS_MISSING),
    ({"targets": {**GROUPS, **DEVICES}, "policy": {"executeType": None}}, R.TARGETS_BOTH),
    ({"targets": {"devices": ["d"] * 257}, "policy": {"executeType": None}}, R.TARGETS_TOO_MANY),
    ({"targets": {"deviceGroups": ["g"]}, "policy": {"executeType": None}}, R.TARGET_MANUFACTURER_MISSING),
    ({"policy": {"executeType": "x", "startTime": "x", **TOO_OFTEN}}, R.EXECUTE_TYPE_BAD),
    ({"policy": {"executeType": "custom", "endTime": at(-60 * MINUTE), **TOO_OFTEN}}, R.WINDOW_BAD),
    ({"policy": {**window(-60 * MINUTE, -61 * MINUTE), **TOO_OFTEN}}, R.WINDOW_REVERSED),
    ({"policy": {**window(-60 * MINUTE, -59 * MINUTE), **TOO_OFTEN}}, R.WINDOW_IN_PAST),
    ({"policy": {**window(MINUTE, 2 * MINUTE), **TOO_OFTEN}}, R.WINDOW_TOO_SHORT),
    ({"policy": {**window(), **TOO_OFTEN}}, R.RETRY_TIMES_BAD),
]


@pytest.mark.parametrize(("body", "reason"), IN_ORDER)
def test_of_several_broken_rules_the_first_is_told(body: dict[str, Any], reason: Reason) -> None:
    assert reason_of(**body) is reason


def key_of(*keys: str, kind: CampaignKind = CampaignKind.FIRMWARE, raw: bytes = b"{}") -> IdempotencyKey | None:
    return idempotency_key(Headers(raw=[(b"idempotency-key", k.encode("latin-1")) for k in keys]), kind, raw)


def test_without_the_header_there_is_no_key() -> None:
    assert key_of() is None


@pytest.mark.parametrize("keys", [("",), ("a b",), ("é",), ("x" * 256,), ("a\x7f",), ("a", "a")])
def test_a_key_is_1_to_255_visible_characters_given_once(keys: tuple[str, ...]) -> None:
    with pytest.raises(Refusal) as refused:
        key_of(*keys)
    assert (refused.value.reason, refused.value.field) == (R.BAD_INPUT, "Idempotency-Key")


def test_the_digest_tells_kinds_and_bodies_apart() -> None:
    first = key_of("!" + "x" * 253 + "~")
    assert first is not None
    assert first == key_of("!" + "x" * 253 + "~")
    assert len(first.request_hash) == 64
    others = [key_of("k", kind=CampaignKind.SOFTWARE), key_of("k", raw=b"{ }"), key_of("k")]
    assert len({k.request_hash for k in others if k is not None}) == 3


@pytest.mark.parametrize("text", ["", "a/b", "é", "a b", "x" * 257, "a\n", "%00"])
def test_what_cannot_be_a_task_s_id_is_no_task(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        known_operation_id(text)
    assert refused.value.reason is R.CAMPAIGN_UNKNOWN


def test_what_can_be_a_task_s_id_is_looked_up() -> None:
    assert known_operation_id("aZ09_-") == "aZ09_-"


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2024-06-01T12:00:00Z", 0),
        ("20240601T120000Z", 0),
        ("2024-06-01t12:00:00.1239z", 123),
        ("2024-06-01T14:00:00+02:00", 0),
        ("2024-06-01T12:00:00.5-00:00", 500),
    ],
)
def test_the_native_api_reads_rfc_3339_and_the_contract_s_form(text: str, milliseconds: int) -> None:
    assert read_moment(text) == NOW + milliseconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2024-06-01",
        "2024-06-01T12:00:00",
        "2024-06-01 12:00:00Z",
        "2024-06-31T12:00:00Z",
        "2024-06-01T12:00:60Z",
        "2024-06-01T12:00:00+25:00",
        "1969-12-31T23:59:59Z",
        "0001-01-01T00:00:00+12:00",
        "9999-12-31T23:59:59-12:00",
        "2024-W01-1T12:00:00Z",
    ],
)
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_moment(text)


@pytest.mark.parametrize("begin", list("=+-@\t\r\n＝＋－＠"))
def test_no_cell_of_an_export_is_a_formula(begin: str) -> None:
    assert csv_rows([[begin + "1", 1, None, True]]).decode().lstrip('"').startswith("'" + begin)


def test_cells_are_quoted_where_they_must_be() -> None:
    assert csv_rows([['a,"b"', None, -1, False], ["x", "y", "", True]]) == b'"a,""b""",,-1,false\r\nx,y,,true\r\n'
