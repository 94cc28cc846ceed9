"""PCP frames: the ones that the vendor's documents print, and ones that real devices took."""

import pytest

from openiodm.protocols.pcp import codec
from openiodm.protocols.pcp.codec import (
    AskFragment,
    DownloadState,
    DownloadStateAnswer,
    Execute,
    ExecuteAnswer,
    Fragment,
    NewVersion,
    NewVersionAnswer,
    PcpFormatError,
    QueryVersion,
    Status,
    UpgradeResult,
    UpgradeResultAnswer,
    VersionAnswer,
)

V1 = "56312E30" + 24 * "0"
V2 = "56322E30" + 24 * "0"

PLATFORM = {
    "FFFE01134C9A0000": QueryVersion(),
    f"FFFE01143AE60016{V1}01F400010000": NewVersion("V1.0", 500, 1),
    f"FFFE011402F70016{V1}01F400011234": NewVersion("V1.0", 500, 1, 0x1234),
    f"FFFE0114486D0016{V2}01F400040000": NewVersion("V2.0", 500, 4),
    "FFFE011574DF000700000041424344": Fragment(Status.OK, 0, b"ABCD"),
    "FFFE0115626B0003800000": Fragment(Status.NO_SUCH_TASK, 0),
    "FFFE011599E00003810009": Fragment(Status.NO_SUCH_FRAGMENT, 9),
    "FFFE0116850E000100": DownloadStateAnswer(Status.OK),
    "FFFE0117CF900000": Execute(),
    "FFFE0118AFA1000100": UpgradeResultAnswer(Status.OK),
    "FFFE01183E29000180": UpgradeResultAnswer(Status.NO_SUCH_TASK),
}
DEVICE = {
    f"FFFE01137AB3001100{V1}": VersionAnswer(Status.OK, "V1.0"),
    "FFFE0114D768000100": NewVersionAnswer(Status.OK),
    "FFFE0114E70B000103": NewVersionAnswer(Status.ALREADY_NEWEST),
    f"FFFE011556180012{V1}0000": AskFragment("V1.0", 0),
    f"FFFE0115CB4F0012{V2}0000": AskFragment("V2.0", 0),
    "FFFE0116850E000100": DownloadState(Status.OK),
    "FFFE0116F5E9000107": DownloadState(Status.CHECK_FAILED),
    "FFFE0117B725000100": ExecuteAnswer(Status.OK),
    f"FFFE0118C7D2001100{V1}": UpgradeResult(Status.OK, "V1.0"),
    f"FFFE01189B27001100{V2}": UpgradeResult(Status.OK, "V2.0"),
}


def test_the_check_code_is_the_protocols_own_not_a_standard_crc() -> None:
    assert codec.check_code(b"123456789") == 0xB955


@pytest.mark.parametrize(("frame", "message"), PLATFORM.items(), ids=lambda x: x if isinstance(x, str) else None)
def test_the_platforms_frames_are_those_of_the_documents(frame: str, message: codec.FromPlatform) -> None:
    assert codec.encode(message).hex().upper() == frame
    assert codec.decode_platform(bytes.fromhex(frame)) == message


@pytest.mark.parametrize(("frame", "message"), DEVICE.items(), ids=lambda x: x if isinstance(x, str) else None)
def test_the_devices_frames_are_those_of_the_documents(frame: str, message: codec.FromDevice) -> None:
    assert codec.decode_device(bytes.fromhex(frame)) == message
    assert codec.encode(message).hex().upper() == frame


def test_a_fresh_device_tells_an_empty_version() -> None:
    frame = codec.encode(VersionAnswer(Status.OK, ""))
    assert frame[9:] == bytes(16)
    assert codec.decode_device(frame) == VersionAnswer(Status.OK, "")


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "FFFE01134C9A00",  # cut off
        "FEFF01134C9A0000",  # no start mark
        "FFFE02134C9A0000",  # another version
        "FFFE01134C9B0000",  # damaged
        "FFFE01134C9A000000",  # longer than it says
        "FFFE0116850E000100FF",
    ],
)
def test_what_is_damaged_or_no_frame_is_refused(frame: str) -> None:
    for decode in (codec.decode_device, codec.decode_platform):
        with pytest.raises(PcpFormatError):
            decode(bytes.fromhex(frame))


def test_a_frame_with_a_good_check_code_and_a_reserved_message_code_is_refused() -> None:
    raw = bytearray.fromhex("FFFE010100000000")
    raw[4:6] = codec.check_code(bytes(raw)).to_bytes(2, "big")
    with pytest.raises(PcpFormatError, match="message code 1 "):
        codec.decode_device(bytes(raw))


@pytest.mark.parametrize("version", ["V" * 17, "V1é"])
def test_a_version_that_the_frame_cannot_carry_is_refused(version: str) -> None:
    with pytest.raises(PcpFormatError):
        codec.encode(NewVersion(version, 500, 1))


def test_a_count_that_sixteen_bits_cannot_say_is_refused() -> None:
    assert codec.encode(NewVersion("V1", 500, codec.FRAGMENTS_MAX))
    with pytest.raises(PcpFormatError):
        codec.encode(NewVersion("V1", 500, codec.FRAGMENTS_MAX + 1))


def test_the_last_fragment_is_short() -> None:
    assert [codec.fragments(size, 500) for size in (1, 500, 501, 1_000_001)] == [1, 1, 2, 2001]


def test_ordinary_data_of_a_device_is_told_apart_by_its_first_two_bytes() -> None:
    assert codec.is_pcp(bytes.fromhex("FFFE01"))
    assert not codec.is_pcp(b"\xff")
    assert not codec.is_pcp(b"hello")
