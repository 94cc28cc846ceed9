"""What holds of the CoAP codec for every input; aiocoap's codec is the second opinion."""

import aiocoap
import aiocoap.error
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from openiodm.protocols.coap import codec
from openiodm.protocols.coap.codec import CoapFormatError, Message, Type, decode, encode

CODES = st.integers(0, 31) | st.integers(64, 191)
OPTIONS = st.lists(
    st.tuples(st.integers(0, 70) | st.integers(0, 0xFFFF), st.binary(max_size=20) | st.binary(max_size=300)),
    max_size=8,
).map(lambda options: tuple(sorted(options, key=lambda option: option[0])))
MESSAGES = st.builds(
    Message,
    code=CODES.filter(bool),
    options=OPTIONS,
    payload=st.binary(max_size=40),
    type=st.sampled_from(Type),
    mid=st.integers(0, 0xFFFF),
    token=st.binary(max_size=8),
)


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: b"\x42\x01\x00\x01\x01\x02" + tail))
@example(b"\x40\x01\x00\x01\xff")
def test_random_bytes_raise_the_codecs_error_alone(datagram: bytes) -> None:
    try:
        message = decode(datagram)
    except CoapFormatError:
        return
    assert decode(encode(message)) == message


@given(MESSAGES)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    assert decode(encode(message)) == message


@given(MESSAGES, st.integers(0, 30))
def test_a_message_cut_short_raises_the_codecs_error_alone(message: Message, bytes_left: int) -> None:
    try:
        decode(encode(message)[:bytes_left])
    except CoapFormatError as error:
        assert error.confirmable in (None, message.mid)


@given(st.integers(0, codec.BLOCK_NUM_MAX), st.booleans(), st.integers(0, 6))
def test_blocks_come_through(num: int, more: bool, szx: int) -> None:
    block = codec.Block(num, more, szx)
    assert codec.decode_block(codec.encode_block(block)) == block


@given(st.binary(max_size=5))
def test_random_block_values_raise_the_codecs_error_alone(value: bytes) -> None:
    try:
        block = codec.decode_block(value)
    except CoapFormatError:
        return
    assert block.num <= codec.BLOCK_NUM_MAX
    assert block.szx <= codec.LARGEST_SZX


# Options whose values aiocoap keeps as bytes or text, and unknown ones.
PLAIN = st.sampled_from([1, 4, 8, 11, 15, 20, 2049, 65001])
TEXTS = st.lists(st.tuples(PLAIN, st.from_regex("[a-z]{1,300}", fullmatch=True)), max_size=6)


def in_order(options: list[tuple[int, str]]) -> codec.Options:
    return tuple(sorted(((n, text.encode()) for n, text in options), key=lambda option: option[0]))


@given(MESSAGES, TEXTS)
def test_aiocoap_reads_what_we_write(message: Message, options: list[tuple[int, str]]) -> None:
    ours = msgspec.structs.replace(message, options=in_order(options))
    theirs = aiocoap.Message.decode(encode(ours))
    assert (int(theirs.mtype), int(theirs.code), theirs.mid) == (ours.type, ours.code, ours.mid)
    assert (theirs.token, theirs.payload) == (ours.token, ours.payload)
    assert tuple((int(o.number), o.encode()) for o in theirs.opt.option_list()) == ours.options


@given(TEXTS, st.binary(max_size=40), st.binary(max_size=8))
def test_we_read_what_aiocoap_writes(options: list[tuple[int, str]], payload: bytes, token: bytes) -> None:
    theirs = aiocoap.Message(code=aiocoap.GET, payload=payload, _token=token, _mid=7, _mtype=aiocoap.CON)
    for number, text in options:
        theirs.opt.add_option(aiocoap.numbers.OptionNumber(number).create_option(decode=text.encode()))
    ours = decode(theirs.encode())
    assert ours.options == in_order(options)
    assert (ours.payload, ours.token, ours.mid) == (payload, token, 7)


@pytest.mark.parametrize("datagram", [b"", b"\x80\x01\x00\x01", b"\x40\x01\x00\x01\xf0"])
def test_aiocoap_refuses_it_too(datagram: bytes) -> None:
    with pytest.raises(CoapFormatError):
        decode(datagram)
    with pytest.raises((aiocoap.error.Error, ValueError, IndexError)):
        aiocoap.Message.decode(datagram)
