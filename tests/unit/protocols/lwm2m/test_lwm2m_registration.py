"""Registrations and links as the standard has them, and as devices write them."""

import pytest

from openiodm.protocols.lwm2m.codec import registration
from openiodm.protocols.lwm2m.codec.registration import Links, decode_links, decode_registration, decode_update
from openiodm.protocols.lwm2m.codec.values import Lwm2mFormatError, format_path, parse_path

HUAWEI = b'</>;rt="oma.lwm2m",</1/0>,</2>,</3/0>,</4/0>,</5/0>,</6/0>,</19/0>,</19/1>'


def test_lwm2m_1_0_section_5_3_1_the_example_of_a_registration() -> None:
    query = ["ep=node1", "lt=86400", "lwm2m=1.0", "b=UQ", "sms=0123456789"]
    said = decode_registration(query, b"</1>,</1/0>,</3/0>,</5>")
    assert (said.endpoint, said.lifetime_s, said.version, said.binding, said.sms) == (
        "node1",
        86_400,
        "1.0",
        "UQ",
        "0123456789",
    )
    assert said.links.paths == {(1,), (1, 0), (3, 0), (5,)}


def test_what_is_left_out_has_the_standards_defaults() -> None:
    said = decode_registration(["ep=x"], b"</3/0>")
    assert (said.lifetime_s, said.version, said.binding) == (86_400, "1.0", "U")


def test_lwm2m_1_1_section_6_2_1_queue_mode_is_an_option_by_itself() -> None:
    assert decode_registration(["ep=x", "lt=2000", "lwm2m=1.1", "b=U", "Q"], HUAWEI).binding == "UQ"
    assert decode_registration(["ep=x", "lwm2m=1.1", "Q"], HUAWEI).binding == "UQ"


def test_huaweis_links() -> None:
    links = decode_links(HUAWEI)
    assert links.has(5)
    assert links.has(19, 1)
    assert not links.has(9)
    assert links.instances(19) == [0, 1]


@pytest.mark.parametrize(
    "payload",
    [
        b"</3/0>,</5/0>,",
        b"</3/0>,,</5/0>",
        b"/3/0,/5/0",
        b"</3/0>, </5/0>\0",
        b'</3/0>;ver=1.1,</5/0>;title="a, b"',
        b'</lwm2m>;rt="oma.lwm2m";ct=11543,</lwm2m/3/0>,</lwm2m/5/0>',
        b"</3/0>,</5/0>,</.well-known/core>",
    ],
)
def test_links_as_devices_write_them(payload: bytes) -> None:
    assert decode_links(payload).paths == {(3, 0), (5, 0)}


def test_an_object_without_instances_is_there_and_has_none() -> None:
    links = decode_links(b"</9>")
    assert links.has(9)
    assert links.instances(9) == []


def test_an_update_says_what_changed_alone() -> None:
    assert decode_update([], b"") == registration.Update(None, None, None, None)
    said = decode_update(["lt=60", "b=UQ"], b"</3/0>")
    assert (said.lifetime_s, said.binding, said.links) == (60, "UQ", Links(frozenset({(3, 0)})))


@pytest.mark.parametrize(
    ("query", "payload"),
    [
        ([], b""),
        (["ep="], b""),
        (["ep=" + "x" * 257], b""),
        (["ep=a\x00b"], b""),
        (["ep=a", "lt=-1"], b""),
        (["ep=a", "lt=soon"], b""),
        (["ep=a", "lwm2m=2.0"], b""),
        (["ep=a", "b=U!"], b""),
        (["ep=a"], b"<3/0"),
        (["ep=a"], b"\xff"),
        (["ep=a"], b",".join(b"</%d>" % n for n in range(600))),
        (["ep=a"], b" " * 17_000),
    ],
)
def test_what_is_no_registration_is_refused(query: list[str], payload: bytes) -> None:
    with pytest.raises(Lwm2mFormatError):
        decode_registration(query, payload)


def test_a_lifetime_of_zero_is_for_ever_and_a_huge_one_is_cut() -> None:
    assert decode_registration(["ep=a", "lt=0"], b"").lifetime_s == registration.LIFETIME_MAX_S
    assert decode_registration(["ep=a", "lt=4294967295"], b"").lifetime_s == registration.LIFETIME_MAX_S


def test_paths() -> None:
    assert parse_path("/5/0/3") == (5, 0, 3)
    assert parse_path("/") == ()
    assert parse_path("/3/0/") == (3, 0)
    assert format_path((5, 0, 3)) == "/5/0/3"
    for bad in ("5/0", "/5//3", "/-1", "/65535", "/x", "/1/2/3/4/5", "/²"):
        with pytest.raises(Lwm2mFormatError):
            parse_path(bad)


def test_links_are_written_as_devices_write_them() -> None:
    assert registration.encode_links([(3, 0), (5, 0)]) == b'</>;rt="oma.lwm2m",</3/0>,</5/0>'
