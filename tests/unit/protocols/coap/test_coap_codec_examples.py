"""Bytes from RFC 7252 (appendix A), RFC 7641 (appendix A) and RFC 7959 (section 2.2), and what no message may be."""

import pytest

from openiodm.protocols.coap.codec import (
    DATAGRAM_BYTES,
    Block,
    CoapFormatError,
    Code,
    Message,
    Option,
    Type,
    code_text,
    decode,
    decode_block,
    encode,
    encode_block,
    encode_uint,
    path_options,
)

TEMPERATURE = "bb 74656d7065726174757265"  # Uri-Path, delta 11, length 11
PATH = ((Option.URI_PATH, b"temperature"),)
C22_3 = b"22.3 C"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"40 01 7d34 {TEMPERATURE}", Message(Code.GET, PATH, type=Type.CON, mid=0x7D34)),
        ("60 45 7d34 ff 32322e332043", Message(Code.CONTENT, (), C22_3, Type.ACK, 0x7D34)),
        (f"41 01 7d35 20 {TEMPERATURE}", Message(Code.GET, PATH, b"", Type.CON, 0x7D35, b"\x20")),
        ("61 45 7d35 20 ff 32322e332043", Message(Code.CONTENT, (), C22_3, Type.ACK, 0x7D35, b"\x20")),
        ("60 00 7d38", Message(Code.EMPTY, type=Type.ACK, mid=0x7D38)),
        ("41 45 ad7b 53 ff 32322e332043", Message(Code.CONTENT, (), C22_3, Type.CON, 0xAD7B, b"\x53")),
        ("70 00 ad7c", Message(Code.EMPTY, type=Type.RST, mid=0xAD7C)),
        (f"51 01 7d40 75 {TEMPERATURE}", Message(Code.GET, PATH, b"", Type.NON, 0x7D40, b"\x75")),
        ("51 45 ad7d 75 ff 32322e332043", Message(Code.CONTENT, (), C22_3, Type.NON, 0xAD7D, b"\x75")),
    ],
    ids=[
        "figure 16 request",
        "figure 16 piggybacked response",
        "figure 17 request with a token",
        "figure 17 response with the token",
        "figure 20 acknowledgement",
        "figure 20 separate response",
        "figure 21 reset",
        "figure 22 non-confirmable request",
        "figure 22 non-confirmable response",
    ],
)
def test_examples_of_rfc_7252_appendix_a(text: str, message: Message) -> None:
    assert decode(bytes.fromhex(text)) == message
    assert encode(message) == bytes.fromhex(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "41 01 1633 4a 60 5b 74656d7065726174757265",
            Message(Code.GET, ((Option.OBSERVE, b""), *PATH), b"", Type.CON, 0x1633, b"\x4a"),
        ),
        (
            "61 45 1633 4a 61 09 81 0f ff 31382e352043656c",
            Message(
                Code.CONTENT,
                ((Option.OBSERVE, b"\x09"), (Option.MAX_AGE, b"\x0f")),
                b"18.5 Cel",
                Type.ACK,
                0x1633,
                b"\x4a",
            ),
        ),
        (
            "51 45 7b50 4a 61 10 81 0f ff 31392e322043656c",
            Message(
                Code.CONTENT,
                ((Option.OBSERVE, b"\x10"), (Option.MAX_AGE, b"\x0f")),
                b"19.2 Cel",
                Type.NON,
                0x7B50,
                b"\x4a",
            ),
        ),
    ],
    ids=["registration", "first answer", "notification"],
)
def test_examples_of_rfc_7641_appendix_a1(text: str, message: Message) -> None:
    assert decode(bytes.fromhex(text)) == message
    assert encode(message) == bytes.fromhex(text)


@pytest.mark.parametrize(
    ("text", "number", "length"),
    [
        ("40 01 0001 d0 00", 13, 0),
        ("40 01 0001 d0 ff", 268, 0),
        ("40 01 0001 e0 0000", 269, 0),
        ("40 01 0001 e0 fef2", 65535, 0),
        ("40 01 0001 bd 00" + "61" * 13, 11, 13),
        ("40 01 0001 bd ff" + "61" * 268, 11, 268),
        ("40 01 0001 be 0000" + "61" * 269, 11, 269),
    ],
)
def test_rfc_7252_section_3_1_extended_deltas_and_lengths(text: str, number: int, length: int) -> None:
    message = decode(bytes.fromhex(text))
    assert message.options == ((number, b"a" * length),)
    assert encode(message) == bytes.fromhex(text)


def test_rfc_7252_section_5_10_1_uri_as_options() -> None:
    request = Message(
        Code.GET,
        (*path_options("/.well-known/core"), (Option.URI_QUERY, b"rt=light"), (Option.URI_QUERY, "ä=ö".encode())),
    )
    again = decode(encode(request))
    assert again.path == (".well-known", "core")
    assert again.query == ("rt=light", "ä=ö")


def test_options_out_of_order_are_sorted_and_repeated_ones_keep_their_order() -> None:
    message = Message(Code.GET, ((Option.ACCEPT, b"\x2a"), (Option.URI_PATH, b"b"), (Option.URI_PATH, b"a")))
    assert decode(encode(message)).options == ((11, b"b"), (11, b"a"), (17, b"\x2a"))


def test_a_path_that_is_no_utf_8_matches_nothing() -> None:
    assert Message(Code.GET, ((Option.URI_PATH, b"\xff5"),)).path == ("\ufffd5",)


@pytest.mark.parametrize(
    ("value", "block"),
    [
        ("", Block(0, False, 0)),
        ("03", Block(0, False, 3)),
        ("0b", Block(0, True, 3)),
        ("13", Block(1, False, 3)),
        ("2a", Block(2, True, 2)),
        ("0ffe", Block(255, True, 6)),
        ("fffff6", Block(0xFFFFF, False, 6)),
    ],
)
def test_rfc_7959_section_2_2_block_values(value: str, block: Block) -> None:
    assert decode_block(bytes.fromhex(value)) == block
    assert encode_block(block) == bytes.fromhex(value)


def test_a_block_knows_its_size_and_start() -> None:
    assert (Block(3, True, 2).size, Block(3, True, 2).start) == (64, 192)


@pytest.mark.parametrize("value", ["07", "0f", "01000000"])
def test_rfc_7959_section_2_2_reserved_block_values(value: str) -> None:
    with pytest.raises(CoapFormatError):
        decode_block(bytes.fromhex(value))


@pytest.mark.parametrize(("number", "value"), [(0, ""), (1, "01"), (255, "ff"), (256, "0100"), (65536, "010000")])
def test_rfc_7252_section_3_2_numbers_are_as_short_as_possible(number: int, value: str) -> None:
    assert encode_uint(number) == bytes.fromhex(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4001",
        "80 01 0001",
        "c0 01 0001",
        "49 01 0001" + "00" * 9,
        "42 01 0001 aa",
        "40 01 0001 ff",
        "40 01 0001 b5 6161",
        "40 01 0001 f0",
        "40 01 0001 0f",
        "40 01 0001 d0",
        "40 01 0001 e0 00",
        "40 01 0001 e0 ffff",
        "40 00 0001 ff 61",
        "41 00 0001 aa",
        "40 21 0001",
        "40 c0 0001",
        "40 e0 0001",
        "40 01 0001" + "10" * 65,
    ],
    ids=[
        "nothing",
        "half a head",
        "version 2",
        "version 3",
        "token of 9",
        "token cut short",
        "marker without payload",
        "option cut short",
        "delta 15",
        "length 15",
        "delta's byte missing",
        "delta's second byte missing",
        "option number above 65535",
        "empty with a payload",
        "empty with a token",
        "class 1",
        "class 6",
        "class 7",
        "65 options",
    ],
)
def test_what_is_no_message(text: str) -> None:
    with pytest.raises(CoapFormatError):
        decode(bytes.fromhex(text))


def test_the_error_says_which_message_to_reset() -> None:
    with pytest.raises(CoapFormatError) as raised:
        decode(bytes.fromhex("40 01 1234 ff"))
    assert raised.value.confirmable == 0x1234


def test_the_error_says_nothing_of_bytes_of_another_version() -> None:
    with pytest.raises(CoapFormatError) as raised:
        decode(bytes.fromhex("80 01 1234"))
    assert raised.value.confirmable is None


def test_codes_read_as_in_the_standards() -> None:
    assert [code_text(code) for code in (Code.GET, Code.CONTENT, Code.CONTINUE, Code.PROXYING_NOT_SUPPORTED)] == [
        "0.01",
        "2.05",
        "2.31",
        "5.05",
    ]


def test_the_largest_datagram_holds_a_block_of_1024_with_room_to_spare() -> None:
    message = Message(Code.CONTENT, ((Option.ETAG, b"12345678"), (Option.BLOCK2, b"\xff\xff\xfe")), b"x" * 1024)
    assert len(encode(message)) + 100 < DATAGRAM_BYTES
