"""SenML: the examples of LwM2M 1.1 sections 7.4.4 and 7.4.5."""

import json

import pytest

from openiodm.protocols.lwm2m.codec import content, senml
from openiodm.protocols.lwm2m.codec.values import ContentFormat, Lwm2mFormatError, as_int, as_text

DEVICE_JSON = b"""[{"bn":"/3/0/","n":"0","vs":"Open Mobile Alliance"},
{"n":"1","vs":"Lightweight M2M Client"},
{"n":"2","vs":"345000123"},
{"n":"3","vs":"1.0"},
{"n":"6/0","v":1},
{"n":"6/1","v":5},
{"n":"7/0","v":3800},
{"n":"7/1","v":5000},
{"n":"8/0","v":125},
{"n":"8/1","v":900},
{"n":"9","v":100},
{"n":"10","v":15},
{"n":"11/0","v":0},
{"n":"13","v":1367491215},
{"n":"14","vs":"+02:00"},
{"n":"16","vs":"U"}]"""
DEVICE_CBOR = bytes.fromhex(
    "90a321652f332f302f00613003744f70656e204d6f62696c6520416c6c69616e6365a200613103764c69676874776569676874204d324d20"
    "436c69656e74a20061320369333435303030313233a20061330363312e30a20063362f300201a20063362f310205a20063372f3002190ed8"
    "a20063372f3102191388a20063382f3002187da20063382f3102190384a2006139021864a200623130020fa2006431312f300200a2006231"
    "33021a5182428fa20062313403662b30323a3030a200623136036155"
)


def test_7_4_4_the_device_object_in_json() -> None:
    found = senml.decode_json(DEVICE_JSON)
    assert as_text(found[3, 0, 1]) == "Lightweight M2M Client"
    assert as_int(found[3, 0, 7, 1]) == 5000
    assert as_int(found[3, 0, 13]) == 1_367_491_215
    assert len(found) == 16


def test_7_4_5_the_device_object_in_cbor_means_the_same() -> None:
    assert senml.decode_cbor(DEVICE_CBOR) == senml.decode_json(DEVICE_JSON)


def test_a_single_resource_may_be_named_by_the_base_alone() -> None:
    assert content.value(ContentFormat.SENML_JSON, b'[{"bn":"/5/0/3","v":2}]', (5, 0, 3)) == 2
    assert content.value(ContentFormat.SENML_CBOR, bytes.fromhex("81a221662f352f302f330202"), (5, 0, 3)) == 2


def test_opaque_values_are_base64url_in_json_and_bytes_in_cbor() -> None:
    values = {(19, 0, 0): b"\xff\xfe\x01"}
    assert json.loads(senml.encode_json(values)) == [{"n": "/19/0/0", "vd": "__4B"}]
    assert senml.decode_json(senml.encode_json(values)) == values
    assert senml.decode_cbor(senml.encode_cbor(values)) == values


def test_booleans_and_object_links() -> None:
    found = senml.decode_json(b'[{"n":"/9/0/12","vb":true},{"n":"/65/0/2","vlo":"66:0"}]')
    assert as_int(found[9, 0, 12]) == 1
    assert found[65, 0, 2] == "66:0"


@pytest.mark.parametrize(
    "pack", [b"", b"{}", b"[1]", b'[{"n":"x","v":1}]', b'[{"n":"/1/2/3/4/5","v":1}]', b'[{"n":"/1","vd":"*"}]', b"\xff"]
)
def test_what_is_no_pack_is_refused(pack: bytes) -> None:
    with pytest.raises(Lwm2mFormatError):
        senml.decode_json(pack)
    with pytest.raises(Lwm2mFormatError):
        senml.decode_cbor(pack)


def test_text_and_opaque_and_no_format() -> None:
    assert content.value(ContentFormat.TEXT, b"1.0", (3, 0, 3)) == "1.0"
    assert content.value(None, b"1.0", (3, 0, 3)) == "1.0"
    assert content.value(ContentFormat.OPAQUE, b"\0\1", (19, 0, 0)) == b"\0\1"
    with pytest.raises(Lwm2mFormatError, match="content format 11543"):
        content.value(11543, b"{}", (3, 0, 3))


def test_another_resource_than_the_one_asked_for_is_refused() -> None:
    with pytest.raises(Lwm2mFormatError, match="no /5/0/3"):
        content.value(ContentFormat.SENML_JSON, b'[{"n":"/5/0/5","v":2}]', (5, 0, 3))


def test_the_resources_of_an_instance() -> None:
    found = content.resources(ContentFormat.SENML_CBOR, DEVICE_CBOR, (3, 0))
    assert sorted(found) == [0, 1, 2, 3, 9, 10, 13, 14, 16]
