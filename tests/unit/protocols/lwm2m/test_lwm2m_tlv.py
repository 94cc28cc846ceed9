"""OMA TLV: the examples of LwM2M 1.0, section 6.4.3, and what real devices send."""

import pytest

from openiodm.protocols.lwm2m.codec import content, tlv
from openiodm.protocols.lwm2m.codec.tlv import Kind, Tlv
from openiodm.protocols.lwm2m.codec.values import ContentFormat, Lwm2mFormatError, as_int, as_text

DEVICE = bytes.fromhex(
    "C800144F70656E204D6F62696C6520416C6C69616E6365C801164C69676874776569676874204D324D20436C69656E74"
    "C80209333435303030313233C303312E30860641000141010588070842000ED842011388870841007D42010384C10964C10A0F"
    "830B410000C40D5182428FC60E2B30323A3030C11055"
)
ACL = bytes.fromhex("08000EC10001C101008302417F07C1037F080212C10003C101008702417F0761013601C1037F")
SERVER = bytes.fromhex("08000FC10001C40100015180C10601C10755")
LINKS = bytes.fromhex("88000C440000420000440100420001C8010D38363133383030373535353030C40212345678")


def test_6_4_3_1_a_request_for_an_object_instance_is_answered_by_its_resources() -> None:
    found = tlv.values(DEVICE, (3, 0))
    assert as_text(found[3, 0, 0]) == "Open Mobile Alliance"
    assert as_text(found[3, 0, 1]) == "Lightweight M2M Client"
    assert as_text(found[3, 0, 3]) == "1.0"
    assert {p: as_int(found[p]) for p in found if p[2] in (6, 7, 8)} == {
        (3, 0, 6, 0): 1,
        (3, 0, 6, 1): 5,
        (3, 0, 7, 0): 3800,
        (3, 0, 7, 1): 5000,
        (3, 0, 8, 0): 125,
        (3, 0, 8, 1): 900,
    }
    assert as_int(found[3, 0, 13]) == 1_367_491_215
    assert as_text(found[3, 0, 16]) == "U"


def test_6_4_3_2_a_request_for_an_object_is_answered_by_its_instances() -> None:
    assert tlv.values(b"\x08\x00\x79" + DEVICE, (3,)) == tlv.values(DEVICE, (3, 0))
    assert {p: as_int(v) for p, v in tlv.values(ACL, (2,)).items()} == {
        (2, 0, 0): 1,
        (2, 0, 1): 0,
        (2, 0, 2, 127): 7,
        (2, 0, 3): 127,
        (2, 2, 0): 3,
        (2, 2, 1): 0,
        (2, 2, 2, 127): 7,
        (2, 2, 2, 310): 1,
        (2, 2, 3): 127,
    }
    assert as_int(tlv.values(SERVER, (1,))[1, 0, 1]) == 86_400


def test_6_4_3_3_object_links_are_values_like_others() -> None:
    found = tlv.values(LINKS, (65, 0))
    assert found[65, 0, 0, 0] == bytes.fromhex("00420000")
    assert found[65, 0, 0, 1] == bytes.fromhex("00420001")
    assert as_text(found[65, 0, 1]) == "8613800755500"


@pytest.mark.parametrize("payload", [DEVICE, ACL, SERVER, LINKS])
def test_6_4_3_the_examples_are_written_as_they_are_read(payload: bytes) -> None:
    assert tlv.encode(tlv.decode(payload)) == payload


def test_an_instance_inside_the_answer_to_a_request_for_that_instance_is_read_too() -> None:
    assert tlv.values(b"\x08\x00\x79" + DEVICE, (3, 0)) == tlv.values(DEVICE, (3, 0))


def test_the_state_of_object_5_as_devices_tell_it() -> None:
    assert as_int(content.value(ContentFormat.TLV, bytes.fromhex("C10301"), (5, 0, 3))) == 1


def test_huaweis_package_uri_has_a_nul_at_its_end() -> None:
    raw = tlv.encode([Tlv(Kind.RESOURCE, 1, b"coap://x/fw\0")])
    assert as_text(content.value(ContentFormat.TLV, raw, (5, 0, 1))) == "coap://x/fw"


def test_pcp_in_an_answer_without_accept_is_the_value_of_the_resource() -> None:
    frame = bytes.fromhex("FFFE0116850E000100")
    raw = tlv.encode([Tlv(Kind.RESOURCE, 0, frame)])
    assert raw.startswith(bytes.fromhex("C80009"))
    assert content.value(ContentFormat.TLV, raw, (19, 0, 0)) == frame


@pytest.mark.parametrize(
    ("value", "raw"),
    [(0, "00"), (-1, "FF"), (127, "7F"), (128, "0080"), (-40_000, "FFFF63C0"), (2**40, "0000010000000000")],
)
def test_integers_have_1_2_4_or_8_bytes(value: int, raw: str) -> None:
    assert tlv.integer(value).hex().upper() == raw
    assert as_int(bytes.fromhex(raw)) == value


@pytest.mark.parametrize("raw", ["C8", "C800", "C80005AB", "C30361", "E1", "0800048600410100"])
def test_what_is_cut_off_is_refused(raw: str) -> None:
    with pytest.raises(Lwm2mFormatError):
        tlv.values(bytes.fromhex(raw), (3,))


def test_deep_nesting_is_refused_before_it_costs_anything() -> None:
    raw = b""
    for _ in range(50):
        raw = (
            tlv.encode([Tlv(Kind.OBJECT_INSTANCE, 0, ())])[:1] + b"\0"
            if not raw
            else b"\x08\x00" + bytes([len(raw)]) + raw
        )
    with pytest.raises(Lwm2mFormatError):
        tlv.values(raw, (3,))


def test_a_value_of_something_whose_place_is_not_known_is_refused() -> None:
    with pytest.raises(Lwm2mFormatError, match="without what is around it"):
        tlv.values(bytes.fromhex("C10301"), (5,))
