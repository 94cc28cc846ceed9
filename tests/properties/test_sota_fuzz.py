"""Whatever the bytes, the SOTA reader answers a description, None or a Refusal, within its limits."""

import io
import json
import tracemalloc
import zipfile
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from openiodm.errors import Reason, Refusal
from openiodm.packages import sota

DESCRIBED = {
    "specVersion": "1.0",
    "fileName": "p.bin",
    "packageType": "softwarePackage",
    "version": "V1",
    "deviceType": "t",
    "manufacturerName": "f",
    "deviceShard": 100,
    "supportSourceVersionList": ["V0"],
}


def zipped(raw: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(sota.DESCRIPTION, raw)
        archive.writestr(sota.FOLDER + "p.bin", b"payload")
    return buffer.getvalue()


GOOD = [zipped(json.dumps(DESCRIBED).encode(), method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def survives(content: bytes) -> None:
    try:
        sota.read(io.BytesIO(content))
    except Refusal as refusal:
        no = refusal
    else:
        return
    assert no.reason is Reason.BAD_INPUT
    assert no.field


@given(st.binary(max_size=2000))
def test_random_bytes(content: bytes) -> None:
    survives(content)
    survives(b"PK\x03\x04" + content)
    survives(b"PK\x03\x04" + content + b"PK\x05\x06" + content)


@settings(max_examples=1000)
@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_mutated_zips(good: bytes, changes: list[tuple[int, int]], cut: int, grown: int) -> None:
    content = bytearray(good)
    for at, value in changes:
        content[at % len(content)] = value
    survives(bytes(content))
    survives(bytes(content[: len(content) - cut]) + bytes(grown))


@settings(max_examples=500)
@given(st.sampled_from(GOOD), st.integers(0, 2000), st.sampled_from([b"\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0"]))
def test_extreme_sizes_and_offsets(good: bytes, at: int, value: bytes) -> None:
    at %= len(good)
    survives(good[:at] + value + good[at + len(value) :])


@given(st.dictionaries(st.sampled_from([*DESCRIBED, "model", "date", "platform", "versionCheckCode"]), JSON))
def test_descriptions_of_any_types(changes: dict[str, Any]) -> None:
    survives(zipped(json.dumps(DESCRIBED | changes).encode()))


@given(st.binary(max_size=1000))
def test_descriptions_of_any_bytes(raw: bytes) -> None:
    survives(zipped(raw))


def test_a_bomb_costs_no_memory() -> None:
    bomb = zipped(bytes(64 * 1024 * 1024))
    tracemalloc.start()
    try:
        survives(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()
