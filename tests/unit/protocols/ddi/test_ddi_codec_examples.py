"""The bodies of the hawkBit DDI v1 contract, example by example."""

import json

import cbor2
import pytest

from openiodm.clock import Instant
from openiodm.protocols.ddi import answers, codec, negotiation
from openiodm.protocols.ddi.answers import (
    ActionHistory,
    Artifact,
    AutoConfirmState,
    Chunk,
    ConfirmationStatus,
    Deployment,
    ErrorBody,
    ErrorCode,
    Handling,
    Part,
    Poll,
    Window,
)
from openiodm.protocols.ddi.codec import (
    AutoConfirm,
    ConfigData,
    Confirmation,
    DdiFormatError,
    Execution,
    Feedback,
    Finished,
    InstalledBase,
    InvalidAttributes,
    Mode,
    TooManyAttributes,
)
from openiodm.protocols.ddi.negotiation import Media
from openiodm.protocols.etags import match_etag

BASE = "https://ota.example/default/controller/v1/dev1"


def as_json(tree: object) -> bytes:
    return json.dumps(tree).encode()


# Feedback


def test_the_documents_feedback_example_is_read() -> None:
    body = b"""{ "timestamp": 1627997501890,
      "status": { "execution": "proceeding",
                  "result": { "finished": "none", "progress": { "cnt": 2, "of": 5 } },
                  "code": 200, "details": [ "text", "more" ] } }"""
    assert codec.decode_feedback(body, Media.JSON) == Feedback(
        Execution.PROCEEDING, Finished.NONE, 200, ("text", "more")
    )


def test_the_same_feedback_in_cbor_means_the_same() -> None:
    status = {"execution": "closed", "result": {"finished": "success"}, "details": ["done"]}
    body = cbor2.dumps({"id": "5", "status": status})
    assert codec.decode_feedback(body, Media.CBOR) == Feedback(Execution.CLOSED, Finished.SUCCESS, None, ("done",))


def test_the_members_real_agents_add_are_ignored() -> None:
    body = as_json(
        {
            "id": "11",
            "time": "20210803T131141",
            "timestamp": "whenever",
            "status": {
                "execution": "canceled",
                "result": {"finished": "none", "progress": "odd", "x": {}},
                "details": [],
                "y": 1,
            },
        }
    )
    assert codec.decode_feedback(body, Media.JSON) == Feedback(Execution.CANCELED, Finished.NONE, None, ())


@pytest.mark.parametrize("execution", list(Execution))
@pytest.mark.parametrize("finished", list(Finished))
def test_every_execution_goes_with_every_outcome(execution: Execution, finished: Finished) -> None:
    body = as_json({"status": {"execution": execution, "result": {"finished": finished}}})
    assert codec.decode_feedback(body, Media.JSON) == Feedback(execution, finished)


def test_null_stands_for_an_optional_member_that_is_absent() -> None:
    status = {"execution": "closed", "result": {"finished": "failure"}, "code": None, "details": None}
    assert codec.decode_feedback(as_json({"status": status}), Media.JSON) == Feedback(
        Execution.CLOSED, Finished.FAILURE
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b'{"status":{"execution":"closed"}}',
        b'{"status":{"result":{"finished":"none"}}}',
        b'{"status":{"execution":"closed","result":{}}}',
        b'{"status":{"execution":"CLOSED","result":{"finished":"none"}}}',
        b'{"status":{"execution":"closed","result":{"finished":"maybe"}}}',
        b'{"status":{"execution":"closed","result":{"finished":"none"},"details":"text"}}',
        b'{"status":{"execution":"closed","result":{"finished":"none"},"details":[1]}}',
        b'{"status":{"execution":"closed","result":{"finished":"none"},"code":2147483648}}',
        b'{"status":{"execution":"closed","result":{"finished":"none"},"code":1e999}}',
        b'{"status":{"execution":"closed","result":{"finished":"none"},"details":["\xff"]}}',
        b'{"status":{"execution":"closed","result":{"finished":"none"},"details":["\\ud800"]}}',
        b'{"x":' * 200_000,
        b'{"status":' + b"1" * 10_000 + b"}",
        b" " * (codec.BODY_BYTES + 1),
    ],
)
def test_a_feedback_that_cannot_be_read_is_a_format_error(body: bytes) -> None:
    with pytest.raises(DdiFormatError):
        codec.decode_feedback(body, Media.JSON)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x81" * 100_000,
        b"\xd8\x1c" * 100_000,
        b"\xc2\x5a\x00\x01\x00\x00" + b"\xff" * 65_536,
        b"\xd8\x1c\x81\xd8\x1d\x00",
        b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\xa1\xa0\x01",
        b"\xa1\x66status\xf9\x7e\x00",
    ],
    ids=["empty", "deep", "deep tags", "huge int", "cycle", "huge array", "map as a key", "NaN"],
)
def test_hostile_cbor_is_a_format_error(body: bytes) -> None:
    with pytest.raises(DdiFormatError):
        codec.decode_feedback(body, Media.CBOR)


def test_cbor_tags_are_looked_through() -> None:
    status = {"execution": "closed", "result": {"finished": "none"}}
    body = cbor2.dumps(cbor2.CBORTag(55799, {"status": status, "time": cbor2.CBORTag(35, "(")}))
    assert codec.decode_feedback(body, Media.CBOR) == Feedback(Execution.CLOSED, Finished.NONE)


def test_of_a_long_log_the_last_lines_are_kept_and_cut() -> None:
    lines = [f"{number} " + "x" * 600 for number in range(70)]
    kept = codec.bound_details(lines)
    assert len(kept) == codec.ENTRY_LINES
    assert all(len(line) == codec.LINE_CHARS for line in kept)
    assert kept[0].startswith("20 ")
    assert kept[-1].startswith("69 ")


def test_a_short_log_is_kept_as_it_is_but_for_nul() -> None:
    assert codec.bound_details(["a", "b\x00c"]) == ("a", "b\ufffdc")


# configData


def test_config_data_merges_unless_told_otherwise() -> None:
    body = b'{"data":{"hw_revision":"2","gone":null}}'
    assert codec.decode_config_data(body, Media.JSON) == ConfigData(Mode.MERGE, {"hw_revision": "2", "gone": None})


@pytest.mark.parametrize("mode", list(Mode))
def test_every_mode_of_config_data_is_read(mode: Mode) -> None:
    body = as_json({"mode": mode, "data": {"k": "v"}})
    assert codec.decode_config_data(body, Media.JSON) == ConfigData(mode, {"k": "v"})


def test_config_data_with_the_feedback_members_of_older_clients_is_read() -> None:
    body = as_json(
        {
            "id": "",
            "time": "20210803T131141",
            "status": {"result": {"finished": "success"}, "execution": "closed", "details": []},
            "data": {"VIN": "JH4TB2H26CC000000"},
        }
    )
    assert codec.decode_config_data(body, Media.JSON).data == {"VIN": "JH4TB2H26CC000000"}


@pytest.mark.parametrize(
    "body",
    [b"{}", b'{"data":{}}', b'{"data":null}', b'{"data":[]}', b'{"data":{"a":1}}', b'{"mode":"x","data":{"a":"1"}}'],
)
def test_config_data_without_usable_data_is_a_format_error(body: bytes) -> None:
    with pytest.raises(DdiFormatError) as refused:
        codec.decode_config_data(body, Media.JSON)
    assert answers.error_code_of(refused.value) is ErrorCode.NOT_READABLE


@pytest.mark.parametrize("data", [{"k" * 129: "v"}, {"k": "v" * 129}, {"": "v"}, {"k": "a\x00"}, {"k\n": "v"}])
def test_attributes_too_long_or_with_control_characters_are_invalid(data: dict[str, str]) -> None:
    with pytest.raises(InvalidAttributes) as refused:
        codec.decode_config_data(as_json({"data": data}), Media.JSON)
    code = answers.error_code_of(refused.value)
    assert (code, answers.STATUS_OF[code]) == ("hawkbit.server.error.repo.invalidTargetAttributes", 400)


def test_a_hundred_attributes_of_full_length_are_taken() -> None:
    data: dict[str, str | None] = {f"{number:0128}": "\N{GRINNING FACE}" * 128 for number in range(100)}
    assert codec.decode_config_data(as_json({"data": data}), Media.JSON).data == data


def test_more_than_a_hundred_attributes_are_too_many() -> None:
    body = as_json({"data": {str(number): "v" for number in range(101)}})
    with pytest.raises(TooManyAttributes) as refused:
        codec.decode_config_data(body, Media.JSON)
    code = answers.error_code_of(refused.value)
    assert (code, answers.STATUS_OF[code]) == ("hawkbit.server.error.quota.tooManyEntries", 429)


# installedBase, confirmation


def test_installed_base_names_a_distribution_set() -> None:
    body = b'{"name":"gateway","version":"1.2.0","extra":0}'
    assert codec.decode_installed_base(body, Media.JSON) == InstalledBase("gateway", "1.2.0")


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"name":"","version":"1"}',
        b'{"name":"a","version":null}',
        b'{"name":"a","version":"' + b"1" * 129 + b'"}',
        b'{"name":"a","version":"\\u0000"}',
    ],
)
def test_installed_base_needs_a_name_and_a_version(body: bytes) -> None:
    with pytest.raises(DdiFormatError):
        codec.decode_installed_base(body, Media.JSON)


def test_a_confirmation_confirms_or_denies() -> None:
    confirmed = codec.decode_confirmation(b'{"confirmation":"confirmed","code":200,"details":["ok"]}', Media.JSON)
    denied = codec.decode_confirmation(b'{"confirmation":"denied"}', Media.JSON)
    assert confirmed == Confirmation(confirmed=True, code=200, details=("ok",))
    assert denied == Confirmation(confirmed=False)
    with pytest.raises(DdiFormatError):
        codec.decode_confirmation(b'{"confirmation":"maybe"}', Media.JSON)


@pytest.mark.parametrize(
    ("body", "media"), [(b"", None), (b"", Media.JSON), (b"{}", Media.JSON), (b"null", Media.JSON)]
)
def test_automatic_confirmation_needs_no_body(body: bytes, media: Media | None) -> None:
    assert codec.decode_auto_confirm(body, media) == AutoConfirm()


def test_automatic_confirmation_may_say_who_and_why() -> None:
    body = b'{"initiator":"someone","remark":"night shift"}'
    assert codec.decode_auto_confirm(body, Media.JSON) == AutoConfirm("someone", "night shift")
    with pytest.raises(DdiFormatError):
        codec.decode_auto_confirm(body, None)
    with pytest.raises(DdiFormatError):
        codec.decode_auto_confirm(b'{"remark":"' + b"x" * 513 + b'"}', Media.JSON)


# Paths and queries


def test_an_action_id_is_a_number_and_0_when_no_action_can_have_it() -> None:
    assert [codec.parse_action_id(text) for text in ("5", "2147483647", "2147483648", "-5", "9" * 19)] == [
        5,
        2147483647,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize("segment", ["", "x", "5x", " 5", "\u0665", "1" * 20, "1_0", "5\n"])
def test_an_action_id_that_is_no_number_is_a_format_error(segment: str) -> None:
    with pytest.raises(DdiFormatError):
        codec.parse_action_id(segment)


def test_action_history_is_none_by_default_and_capped_at_a_hundred() -> None:
    asked = (None, "", "0", "7", "100", "101", "-1")
    assert [codec.parse_history(value) for value in asked] == [0, 0, 0, 7, 100, 100, 100]
    with pytest.raises(DdiFormatError):
        codec.parse_history("all")


# Poll


def test_an_idle_poll_has_no_links() -> None:
    assert answers.encode_poll(Poll(300), Media.HAL) == b'{"config":{"polling":{"sleep":"00:05:00"}}}'


def test_a_poll_shows_every_link_it_is_given() -> None:
    poll = Poll(
        45,
        deployment_base=f"{BASE}/deploymentBase/5?c=-2127183556",
        cancel_action=f"{BASE}/cancelAction/5",
        confirmation_base=f"{BASE}/confirmationBase/5?c=1",
        installed_base=f"{BASE}/installedBase/4",
        config_data=f"{BASE}/configData",
    )
    assert json.loads(answers.encode_poll(poll, Media.JSON)) == {
        "config": {"polling": {"sleep": "00:00:45"}},
        "_links": {
            "deploymentBase": {"href": f"{BASE}/deploymentBase/5?c=-2127183556"},
            "cancelAction": {"href": f"{BASE}/cancelAction/5"},
            "confirmationBase": {"href": f"{BASE}/confirmationBase/5?c=1"},
            "installedBase": {"href": f"{BASE}/installedBase/4"},
            "configData": {"href": f"{BASE}/configData"},
        },
    }


def test_a_poll_in_cbor_holds_what_it_holds_in_json() -> None:
    poll = Poll(60, config_data=f"{BASE}/configData")
    assert cbor2.loads(answers.encode_poll(poll, Media.CBOR)) == json.loads(answers.encode_poll(poll, Media.HAL))


def test_the_polling_sleep_stays_a_time_of_day() -> None:
    assert [answers.sleep_text(seconds) for seconds in (-1, 0, 1, 3661, 86_399, 86_400, 10**9)] == [
        "00:00:01",
        "00:00:01",
        "00:00:01",
        "01:01:01",
        "23:59:59",
        "23:59:59",
        "23:59:59",
    ]


# Deployment

ARTIFACT = Artifact("x.swu", 11, "5a", "https://h/x.swu", md5="3d", sha256="c0", other_url="http://h/x.swu")
CHUNK = Chunk(Part.OS, "firmware", "1.2.0", (ARTIFACT,), encrypted=True, metadata=(("k", "v"),))
ARTIFACT_JSON = {
    "filename": "x.swu",
    "hashes": {"sha1": "5a", "md5": "3d", "sha256": "c0"},
    "size": 11,
    "_links": {
        "download": {"href": "https://h/x.swu"},
        "md5sum": {"href": "https://h/x.swu.MD5SUM"},
        "download-http": {"href": "http://h/x.swu"},
        "md5sum-http": {"href": "http://h/x.swu.MD5SUM"},
    },
}


def test_a_deployment_with_everything_is_the_documents_example() -> None:
    deployment = Deployment(
        5,
        Handling.FORCED,
        Handling.FORCED,
        (CHUNK,),
        Window.AVAILABLE,
        ActionHistory("RUNNING", ("new", "old")),
    )
    assert json.loads(answers.encode_deployment(deployment, Media.HAL, secure=True)) == {
        "id": "5",
        "deployment": {
            "download": "forced",
            "update": "forced",
            "maintenanceWindow": "available",
            "chunks": [
                {
                    "part": "os",
                    "version": "1.2.0",
                    "name": "firmware",
                    "encrypted": True,
                    "metadata": [{"key": "k", "value": "v"}],
                    "artifacts": [ARTIFACT_JSON],
                }
            ],
        },
        "actionHistory": {"status": "RUNNING", "messages": ["new", "old"]},
    }


def test_a_plain_deployment_leaves_out_what_it_has_not() -> None:
    artifact = Artifact("x.swu", 11, "5a", "http://h/x.swu")
    deployment = Deployment(
        7,
        Handling.ATTEMPT,
        Handling.SKIP,
        (Chunk(Part.APPLICATION, "app", "2", (artifact,)),),
        history=ActionHistory("RUNNING", ()),
    )
    tree = json.loads(answers.encode_deployment(deployment, Media.HAL, secure=False))
    assert tree == {
        "id": "7",
        "deployment": {
            "download": "attempt",
            "update": "skip",
            "chunks": [
                {
                    "part": "bApp",
                    "version": "2",
                    "name": "app",
                    "artifacts": [
                        {
                            "filename": "x.swu",
                            "hashes": {"sha1": "5a"},
                            "size": 11,
                            "_links": {"download-http": {"href": "http://h/x.swu"}},
                        }
                    ],
                }
            ],
        },
    }


@pytest.mark.parametrize(
    ("secure", "names"),
    [(True, {"download", "md5sum"}), (False, {"download-http", "md5sum-http"})],
)
def test_links_of_an_artifact_are_named_after_the_scheme(secure: bool, names: set[str]) -> None:
    artifact = Artifact("x", 1, "5a", "//h/x", md5="3d")
    listed = json.loads(answers.encode_artifacts([artifact], Media.JSON, secure=secure))
    assert set(listed[0]["_links"]) == names


def test_an_artifact_list_shows_artifacts_as_a_chunk_does() -> None:
    assert json.loads(answers.encode_artifacts([ARTIFACT], Media.JSON, secure=True)) == [ARTIFACT_JSON]


def test_a_confirmation_base_is_a_deployment_under_another_key() -> None:
    deployment = Deployment(5, Handling.FORCED, Handling.FORCED, (CHUNK,))
    shown = json.loads(answers.encode_deployment(deployment, Media.JSON, secure=True))
    asked = json.loads(answers.encode_confirmation(deployment, Media.JSON, secure=True))
    assert asked == {"id": "5", "confirmation": shown["deployment"]}


def test_a_deployment_in_cbor_holds_what_it_holds_in_json() -> None:
    deployment = Deployment(5, Handling.FORCED, Handling.SKIP, (CHUNK,), Window.UNAVAILABLE)
    in_cbor = answers.encode_deployment(deployment, Media.CBOR, secure=True)
    assert cbor2.loads(in_cbor) == json.loads(answers.encode_deployment(deployment, Media.JSON, secure=True))


def test_an_action_id_beyond_a_c_int_is_never_offered() -> None:
    with pytest.raises(AssertionError):
        answers.encode_deployment(Deployment(2**31, Handling.FORCED, Handling.FORCED, ()), Media.JSON, secure=True)


# The other answers


def test_a_cancel_names_the_action_twice() -> None:
    assert answers.encode_cancel(11, Media.HAL) == b'{"id":"11","cancelAction":{"stopId":"11"}}'


def test_inactive_automatic_confirmation_can_be_activated() -> None:
    status = ConfirmationStatus(
        activate=f"{BASE}/confirmationBase/activateAutoConfirm", confirmation_base=f"{BASE}/confirmationBase/5"
    )
    assert json.loads(answers.encode_confirmation_status(status, Media.HAL)) == {
        "autoConfirm": {"active": False},
        "_links": {
            "activateAutoConfirm": {"href": f"{BASE}/confirmationBase/activateAutoConfirm"},
            "confirmationBase": {"href": f"{BASE}/confirmationBase/5"},
        },
    }


def test_active_automatic_confirmation_says_who_why_and_since_when() -> None:
    status = ConfirmationStatus(
        AutoConfirmState(Instant(1_627_997_501_890), "someone", "night shift"), deactivate=f"{BASE}/d"
    )
    assert json.loads(answers.encode_confirmation_status(status, Media.HAL)) == {
        "autoConfirm": {
            "active": True,
            "initiator": "someone",
            "remark": "night shift",
            "activatedAt": 1_627_997_501_890,
        },
        "_links": {"deactivateAutoConfirm": {"href": f"{BASE}/d"}},
    }


def test_an_md5sum_is_digest_two_blanks_and_name() -> None:
    assert answers.encode_md5sum("3d", "x.swu") == b"3d  x.swu"


def test_an_error_leaves_empty_parts_out() -> None:
    full = ErrorBody(ErrorCode.NOT_READABLE, "no JSON", "example.NotReadable", {"limit": 1})
    assert json.loads(answers.encode_error(full, Media.JSON)) == {
        "exceptionClass": "example.NotReadable",
        "errorCode": "hawkbit.server.error.rest.body.notReadable",
        "message": "no JSON",
        "info": {"limit": 1},
    }
    assert answers.encode_error(ErrorBody(), Media.JSON) == b"{}"


def test_every_error_code_has_a_status() -> None:
    assert set(answers.STATUS_OF) == set(ErrorCode)


# Entity tags (RFC 9110, 8.8.3 and 13.1.2)


def test_an_entity_tag_is_quoted_and_changes_with_the_body() -> None:
    tag = negotiation.etag_of(b"a")
    assert tag == negotiation.etag_of(b"a") != negotiation.etag_of(b"b")
    assert tag[0] == tag[-1] == '"'
    assert '"' not in tag[1:-1]


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        (None, False),
        ("", False),
        ('"abc"', True),
        ('W/"abc"', True),
        ("abc", True),
        ("*", True),
        (" * ", True),
        ('"x", W/"y","abc"', True),
        ('"x", "y"', False),
        ('"x,abc"', False),
        ('"ABC"', False),
        ('"', False),
        ('"*"', False),
    ],
)
def test_if_none_match_compares_weakly(header: str | None, matches: bool) -> None:
    assert match_etag(header, '"abc"') is matches


def test_a_weak_tag_never_matches_strongly() -> None:
    assert not match_etag('W/"abc"', '"abc"', strong=True)
    assert match_etag('W/"abc", "abc"', '"abc"', strong=True)


# Media types (RFC 9110, 12.5.1)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, Media.HAL),
        ("", Media.HAL),
        ("*/*", Media.HAL),
        ("application/*", Media.HAL),
        ("application/*+json", Media.HAL),
        ("application/hal+json", Media.HAL),
        ("application/json", Media.JSON),
        ("Application/JSON;charset=UTF-8", Media.JSON),
        ("application/json, application/hal+json", Media.JSON),
        ("application/hal+json, application/json", Media.HAL),
        ("application/cbor", Media.CBOR),
        ("application/cbor, */*", Media.CBOR),
        ("application/json;q=0.4, application/cbor;q=0.5", Media.CBOR),
        ("application/json;q=0.4, */*;q=0.8", Media.HAL),
        ("application/hal+json;q=0, */*", Media.JSON),
        ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", Media.HAL),
        ("text/html", None),
        ("application/json;q=0", None),
        ("application/json;q=nan", None),
        ("nonsense", None),
        (",,;q=1,", None),
    ],
)
def test_the_media_type_is_negotiated(accept: str | None, chosen: Media | None) -> None:
    assert negotiation.choose_media(accept) is chosen


def test_the_content_type_of_hal_names_its_charset() -> None:
    assert [media.content_type for media in Media] == [
        "application/hal+json;charset=utf-8",
        "application/json",
        "application/cbor",
    ]


@pytest.mark.parametrize(
    ("content_type", "media"),
    [
        ("application/json", Media.JSON),
        ("application/json;charset=UTF-8", Media.JSON),
        ("Application/JSON ; charset=utf-8", Media.JSON),
        ("application/cbor", Media.CBOR),
        ("application/hal+json", None),
        ("text/plain", None),
        ("", None),
        (None, None),
    ],
)
def test_a_request_body_is_json_or_cbor(content_type: str | None, media: Media | None) -> None:
    assert negotiation.media_of(content_type) is media
