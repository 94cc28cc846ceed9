"""The reader of SOTA zips; the first example is the template of the published guide (contract, section 6.1)."""

import io
import json
import struct
import zipfile
import zlib
from typing import Any

import pytest

from openiodm.errors import Reason, Refusal
from openiodm.packages import sota

FULL: dict[str, Any] = {
    "specVersion": "1.0",
    "fileName": "ExamplePackage_V1.0.10.bin",
    "packageType": "softwarePackage",
    "version": "V1.0.10",
    "deviceType": "WaterMeter",
    "manufacturerName": "TestManu",
    "model": "TestModel",
    "protocolType": "CoAP",
    "description": "a water meter",
    "versionCheckCode": "0101",
    "deviceShard": "256",
    "platform": "linux",
    "supportSourceVersionList": ["V1.0.8", "V1.0.9"],
    "date": "2015-2-1",
}


def sota_zip(
    description: dict[str, Any] | bytes = FULL, payload: str = FULL["fileName"], method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    raw = description if isinstance(description, bytes) else json.dumps(description).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(sota.DESCRIPTION, raw)
        archive.writestr(sota.FOLDER + payload, b"payload" * 100)
    return buffer.getvalue()


def read(content: bytes) -> sota.SotaDescription | None:
    return sota.read(io.BytesIO(content))


def refusal(content: bytes) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(content)
    assert caught.value.reason is Reason.BAD_INPUT
    return caught.value


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_member_of_the_description_is_read(method: int) -> None:
    assert read(sota_zip(method=method)) == sota.SotaDescription(
        file_name="ExamplePackage_V1.0.10.bin",
        version="V1.0.10",
        device_type="WaterMeter",
        manufacturer_name="TestManu",
        model="TestModel",
        protocol_type="CoAP",
        description="a water meter",
        source_versions=("V1.0.8", "V1.0.9"),
        version_check_code="0101",
        device_shard=256,
        platform="linux",
        date="2015-2-1",
    )


def test_members_left_empty_as_in_the_published_template_are_not_given() -> None:
    template = FULL | dict.fromkeys(
        ("model", "protocolType", "description", "versionCheckCode", "deviceShard", "platform"), ""
    )
    described = read(sota_zip(template | {"supportSourceVersionList": [], "date": ""}))
    assert described is not None
    assert (described.model, described.platform, described.date, described.source_versions) == (None, None, None, ())
    assert described.device_shard == 500


def test_only_the_mandatory_members_are_needed() -> None:
    mandatory = ("specVersion", "fileName", "packageType", "version", "deviceType", "manufacturerName")
    assert read(sota_zip({name: FULL[name] for name in mandatory})) is not None
    for name in mandatory:
        short = {other: FULL[other] for other in mandatory if other != name}
        assert refusal(sota_zip(short)).field == name


def test_a_byte_order_mark_and_unknown_members_are_no_fault() -> None:
    assert read(sota_zip(b"\xef\xbb\xbf" + json.dumps(FULL | {"x": [1]}).encode())) == read(sota_zip())


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("specVersion", "2.0"),
        ("packageType", "firmwarePackage"),
        ("version", ""),
        ("version", "V" * 17),
        ("version", "版本版本版本"),  # 6 characters, 18 bytes
        ("version", 7),
        ("fileName", "../passwd"),
        ("fileName", "another.bin"),
        ("deviceType", "x" * 257),
        ("deviceType", "a\x00b"),
        ("manufacturerName", None),
        ("protocolType", "HTTP"),
        ("versionCheckCode", "12345"),
        ("deviceShard", 31),
        ("deviceShard", "501"),
        ("deviceShard", "many"),
        ("deviceShard", "9" * 5000),
        ("supportSourceVersionList", "V1"),
        ("supportSourceVersionList", [1]),
        ("supportSourceVersionList", ["v"] * 1001),
    ],
)
def test_a_bad_member_is_refused_by_its_name(member: str, value: Any) -> None:
    assert refusal(sota_zip(FULL | {member: value})).field == member


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff\xfe", b"nul", b'{"x":' + b"[" * 60_000])
def test_what_is_not_a_json_object_is_refused(raw: bytes) -> None:
    assert refusal(sota_zip(raw)).field == "file"


@pytest.mark.parametrize("content", [b"", b"PK", b"\x7fELF" + bytes(100), sota_zip()[1:]])
def test_a_file_that_is_no_zip_is_not_sota(content: bytes) -> None:
    assert read(content) is None


def test_a_zip_without_the_description_is_not_sota() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("root/" + sota.DESCRIPTION, b"{}")
    assert read(buffer.getvalue()) is None


def test_a_truncated_zip_is_refused() -> None:
    assert "damaged" in refusal(sota_zip()[:-30]).detail


def test_bytes_after_the_zip_do_not_hide_it() -> None:
    assert read(sota_zip() + b"signature" * 10) is not None


def test_a_zip_bomb_is_neither_inflated_nor_believed() -> None:
    bomb = sota_zip(b" " * 50_000_000)
    assert len(bomb) < 100_000
    assert "larger" in refusal(bomb).detail
    # The same with headers that claim a small size.
    packed = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    raw = packed.compress(b" " * 1_000_000) + packed.flush()
    name = sota.DESCRIPTION.encode()
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, len(raw), 10, len(name), 0) + name + raw
    central = struct.pack(
        "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, 0, len(raw), 10, len(name), 0, 0, 0, 0, 0, 0
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(central) + len(name), len(local), 0)
    assert "larger" in refusal(local + central + name + end).detail


def test_a_directory_beyond_the_limits_is_not_read() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(sota.DESCRIPTION, json.dumps(FULL))
        for i in range(sota.MAX_ENTRIES):
            archive.writestr(f"{i}", b"")
    assert read(buffer.getvalue()) is None


def test_two_descriptions_are_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(sota.DESCRIPTION, json.dumps(FULL))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(sota.DESCRIPTION, json.dumps(FULL))
    assert "two members" in refusal(buffer.getvalue()).detail


def test_an_encrypted_description_is_refused() -> None:
    content = bytearray(sota_zip())
    at = content.find(b"PK\x01\x02")
    content[at + 8] |= 1
    assert "encrypted" in refusal(bytes(content)).detail
