"""What holds of the LwM2M and PCP codecs for every input."""

from contextlib import suppress

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openiodm.protocols.lwm2m.codec import content, registration, senml, tlv
from openiodm.protocols.lwm2m.codec.tlv import Kind, Tlv
from openiodm.protocols.lwm2m.codec.values import ContentFormat, Lwm2mFormatError, as_int, as_text, parse_path
from openiodm.protocols.pcp import codec as pcp
from openiodm.protocols.pcp.codec import PcpFormatError

IDS = st.integers(0, 65_534)
PATHS = st.lists(IDS, min_size=1, max_size=4).map(tuple)
FORMATS = st.sampled_from([None, *map(int, ContentFormat), 11543])
RESOURCES = st.builds(Tlv, st.just(Kind.RESOURCE), IDS, st.binary(max_size=300))
MULTIPLE = st.builds(
    Tlv,
    st.just(Kind.MULTIPLE_RESOURCE),
    IDS,
    st.lists(st.builds(Tlv, st.just(Kind.RESOURCE_INSTANCE), IDS, st.binary(max_size=9)), max_size=4).map(tuple),
)
ELEMENTS = st.lists(RESOURCES | MULTIPLE, max_size=5).map(tuple)
INSTANCES = st.lists(st.builds(Tlv, st.just(Kind.OBJECT_INSTANCE), IDS, ELEMENTS), max_size=3).map(tuple)
RAW = st.binary(max_size=20) | st.text(max_size=20) | st.integers(-(2**62), 2**62) | st.booleans()

RECORDS = st.lists(
    st.dictionaries(
        st.sampled_from([-2, 0, 2, 3, 4, 8, "vlo", 6]),
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.sampled_from(["/3/0/", "3"])
        | st.binary(max_size=5),
        max_size=4,
    ),
    max_size=5,
)

VERSIONS = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=16)
BYTE, WORD = st.integers(0, 255), st.integers(0, 65_535)
FROM_DEVICE = (
    st.builds(pcp.VersionAnswer, BYTE, VERSIONS)
    | st.builds(pcp.NewVersionAnswer, BYTE)
    | st.builds(pcp.AskFragment, VERSIONS, WORD)
    | st.builds(pcp.DownloadState, BYTE)
    | st.builds(pcp.ExecuteAnswer, BYTE)
    | st.builds(pcp.UpgradeResult, BYTE, VERSIONS)
)
FROM_PLATFORM = (
    st.builds(pcp.QueryVersion)
    | st.builds(pcp.NewVersion, VERSIONS, WORD, WORD, WORD)
    | st.builds(pcp.Fragment, BYTE, WORD, st.binary(max_size=500))
    | st.builds(pcp.DownloadStateAnswer, BYTE)
    | st.builds(pcp.Execute)
    | st.builds(pcp.UpgradeResultAnswer, BYTE)
)


@given(FORMATS, st.binary(max_size=60), PATHS)
def test_random_payloads_raise_only_the_codecs_error(
    content_format: int | None, payload: bytes, path: tuple[int, ...]
) -> None:
    with suppress(Lwm2mFormatError):
        for raw in content.decode(content_format, payload, path).values():
            with suppress(Lwm2mFormatError):
                as_int(raw)
            with suppress(Lwm2mFormatError):
                assert "\0" not in as_text(raw)


@given(RECORDS, PATHS)
def test_random_packs_raise_only_the_codecs_error(
    records: list[dict[int | str, object]], path: tuple[int, ...]
) -> None:
    with suppress(Lwm2mFormatError):
        content.decode(ContentFormat.SENML_CBOR, cbor2.dumps(records), path)


@given(
    st.lists(st.text(max_size=20) | st.sampled_from(["ep=x", "lt=60", "b=UQ", "Q", "lwm2m=1.1"])),
    st.binary(max_size=60),
)
def test_random_registrations_raise_only_the_codecs_error(query: list[str], payload: bytes) -> None:
    for decode in (registration.decode_registration, registration.decode_update):
        with suppress(Lwm2mFormatError):
            decode(query, payload)


@given(st.text(alphabet='</>;=", 0123456789abrt.lwm2mo\0', max_size=60))
def test_random_links_raise_only_the_codecs_error(text: str) -> None:
    with suppress(Lwm2mFormatError):
        registration.decode_links(text.encode())


@given(st.text(max_size=20))
def test_random_paths_raise_only_the_codecs_error(text: str) -> None:
    with suppress(Lwm2mFormatError):
        parse_path(text)


@given(ELEMENTS | INSTANCES)
def test_tlvs_are_read_as_they_were_written(elements: tuple[Tlv, ...]) -> None:
    assert tlv.decode(tlv.encode(elements)) == elements


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_are_read_as_they_were_written(value: int) -> None:
    assert as_int(tlv.integer(value)) == value


@given(st.dictionaries(PATHS, RAW, max_size=5))
def test_senml_is_read_as_it_was_written(values: dict[tuple[int, ...], object]) -> None:
    assert senml.decode_json(senml.encode_json(values)) == values  # type: ignore[arg-type]
    assert senml.decode_cbor(senml.encode_cbor(values)) == values  # type: ignore[arg-type]


@given(st.sets(st.lists(IDS, min_size=1, max_size=2).map(tuple), max_size=10))
def test_links_are_read_as_they_were_written(paths: set[tuple[int, ...]]) -> None:
    assert registration.decode_links(registration.encode_links(paths)).paths == paths


@given(FROM_DEVICE)
def test_a_devices_pcp_message_is_read_as_it_was_written(message: pcp.FromDevice) -> None:
    assert pcp.decode_device(pcp.encode(message)) == message


@given(FROM_PLATFORM)
def test_a_platforms_pcp_message_is_read_as_it_was_written(message: pcp.FromPlatform) -> None:
    assert pcp.decode_platform(pcp.encode(message)) == message


@given(st.binary(max_size=40), BYTE)
def test_random_pcp_frames_raise_only_the_codecs_error(data: bytes, code: int) -> None:
    frame = bytearray(b"\xff\xfe\x01" + bytes([code]) + b"\0\0" + len(data).to_bytes(2, "big") + data)
    frame[4:6] = pcp.check_code(bytes(frame)).to_bytes(2, "big")
    for raw in (data, bytes(frame)):
        for decode in (pcp.decode_device, pcp.decode_platform):
            with suppress(PcpFormatError):
                decode(raw)


@given(FROM_DEVICE, st.data())
def test_one_damaged_byte_is_noticed(message: pcp.FromDevice, data: st.DataObject) -> None:
    frame = bytearray(pcp.encode(message))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PcpFormatError):
        pcp.decode_device(bytes(frame))
