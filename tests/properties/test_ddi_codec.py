"""What holds of the DDI codec and its ranges for every input."""

from itertools import pairwise

import cbor2
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from openiodm.clock import Instant
from openiodm.protocols.ddi import codec, negotiation
from openiodm.protocols.ddi.codec import ConfigData, DdiFormatError, Execution, Feedback, Finished, Mode
from openiodm.protocols.ddi.negotiation import Media
from openiodm.protocols.etags import match_etag
from openiodm.protocols.ranges import RANGES, Answer, Span, content_disposition, parse_range, plan

DECODERS = [
    codec.decode_feedback,
    codec.decode_config_data,
    codec.decode_installed_base,
    codec.decode_confirmation,
    codec.decode_auto_confirm,
]
# Members of the contract's bodies, so that random trees get past the first check.
NAMES = st.sampled_from(
    [
        "status",
        "execution",
        "result",
        "finished",
        "code",
        "details",
        "data",
        "mode",
        "name",
        "version",
        "confirmation",
        "initiator",
        "remark",
    ]
)
WORDS = st.sampled_from(["closed", "none", "merge", "confirmed", "1"]) | st.text(max_size=5)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | WORDS
    | st.binary(max_size=5)
    | st.builds(cbor2.CBORSimpleValue, st.sampled_from([0, 19, 32, 255]))
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES | WORDS, inner, max_size=5)
        | st.builds(cbor2.CBORTag, st.sampled_from([0, 1, 2, 4, 5, 25, 28, 29, 30, 35, 37, 256, 258, 999]), inner)
    ),
    max_leaves=20,
)
FEEDBACKS = st.builds(
    Feedback,
    st.sampled_from(Execution),
    st.sampled_from(Finished),
    st.none() | st.integers(-(2**31), 2**31 - 1),
    st.lists(st.text()).map(tuple),
)
ATTRIBUTE_TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=codec.ATTRIBUTE_CHARS)
CONFIGS = st.builds(
    ConfigData,
    st.sampled_from(Mode),
    st.dictionaries(ATTRIBUTE_TEXT.filter(bool), st.none() | ATTRIBUTE_TEXT, min_size=1, max_size=8),
)


def body_of(tree: object, media: Media) -> bytes:
    return cbor2.dumps(tree) if media is Media.CBOR else msgspec.json.encode(tree)


def feedback_body(feedback: Feedback, media: Media) -> bytes:
    """As a device sends it; what is not there is left out."""
    status: dict[str, object] = {"execution": feedback.execution, "result": {"finished": feedback.finished}}
    if feedback.code is not None:
        status["code"] = feedback.code
    if feedback.details:
        status["details"] = feedback.details
    return body_of({"status": status}, media)


def config_body(config: ConfigData, media: Media) -> bytes:
    return body_of({"mode": config.mode, "data": config.data}, media)


def refuses_or_reads(body: bytes, media: Media) -> None:
    for decode in DECODERS:
        try:
            decode(body, media)
        except DdiFormatError:
            continue


@given(st.binary(max_size=200), st.sampled_from(Media))
@example(b"\xd8\x1c\x81\xd8\x1d\x00", Media.CBOR)
@example(b'"\\ud800"', Media.JSON)
def test_random_bytes_raise_only_the_codecs_own_error(body: bytes, media: Media) -> None:
    refuses_or_reads(body, media)


@given(TREES)
def test_random_cbor_trees_raise_only_the_codecs_own_error(tree: object) -> None:
    refuses_or_reads(cbor2.dumps(tree), Media.CBOR)


@given(FEEDBACKS, st.data(), st.sampled_from(Media))
def test_a_damaged_feedback_raises_only_the_codecs_own_error(
    feedback: Feedback, data: st.DataObject, media: Media
) -> None:
    body = bytearray(feedback_body(feedback, media))
    place = st.integers(0, len(body) - 1)
    for at, byte in data.draw(st.lists(st.tuples(place, st.integers(0, 255)), max_size=4)):
        body[at] = byte
    refuses_or_reads(bytes(body), media)


@given(FEEDBACKS, st.sampled_from(Media))
def test_a_feedback_survives_the_wire(feedback: Feedback, media: Media) -> None:
    assert codec.decode_feedback(feedback_body(feedback, media), media) == feedback


@given(CONFIGS, st.sampled_from(Media))
def test_config_data_survives_the_wire(config: ConfigData, media: Media) -> None:
    assert codec.decode_config_data(config_body(config, media), media) == config


@given(st.lists(st.text(), max_size=60))
def test_kept_details_are_bounded_and_storable(details: list[str]) -> None:
    kept = codec.bound_details(details)
    assert len(kept) == min(len(details), codec.ENTRY_LINES)
    assert all(len(line) <= codec.LINE_CHARS and "\x00" not in line for line in kept)
    assert codec.bound_details(kept) == kept


@given(st.text(st.characters(max_codepoint=255), max_size=60))
@example('"a", W/"b"')
def test_any_header_text_is_answered(text: str) -> None:
    negotiation.choose_media(text)
    negotiation.media_of(text)
    match_etag(text, '"a"')
    content_disposition(text)
    for name in ("range", "if-range", "if-match", "if-none-match"):
        assert plan({name: text, "range": text}, 10, '"a"', Instant(0)).status in (200, 206, 304, 412, 416)


@given(st.text("=-, 0123456789", max_size=40))
def test_any_range_text_is_answered(text: str) -> None:
    parse_range(f"bytes={text}", 100)


BOUNDS = st.integers(0, 60)
RANGE_TEXTS = st.one_of(
    st.tuples(BOUNDS, BOUNDS).map(lambda pair: f"{pair[0]}-{pair[1]}"),
    BOUNDS.map(lambda start: f"{start}-"),
    BOUNDS.map(lambda length: f"-{length}"),
)


def naive(text: str, size: int) -> set[int]:
    """The positions one range covers, counted out."""
    first, _, last = text.partition("-")
    if not first:
        return {at for at in range(size) if at >= size - int(last)}
    return {at for at in range(size) if int(first) <= at and (not last or at <= int(last))}


@given(st.integers(0, 50), st.lists(RANGE_TEXTS, min_size=1, max_size=6))
def test_spans_cover_exactly_the_bytes_that_were_asked_for(size: int, texts: list[str]) -> None:
    wanted = [naive(text, size) for text in texts]
    found = parse_range("bytes=" + ",".join(texts), size)
    if not all(wanted):
        assert found is Answer.UNSATISFIABLE
        return
    assert isinstance(found, tuple)
    covered = [at for span in found for at in range(span.start, span.end + 1)]
    assert covered == sorted(set().union(*wanted))
    assert all(later.start > earlier.end + 1 for earlier, later in pairwise(found))


@given(st.binary(min_size=1, max_size=60), st.lists(RANGE_TEXTS, min_size=1, max_size=6))
def test_the_announced_length_is_the_length_sent(content: bytes, texts: list[str]) -> None:
    answer = plan({"range": "bytes=" + ",".join(texts)}, len(content), '"a"', Instant(0))
    sent = b"".join(
        content[piece.start : piece.end + 1] if isinstance(piece, Span) else piece for piece in answer.pieces
    )
    assert answer.headers["Content-Length"] == str(len(sent))
    assert (answer.status == 416) == (not answer.pieces)


@pytest.mark.parametrize("count", [RANGES, RANGES + 1])
def test_the_limit_of_ranges_counts_what_was_sent(count: int) -> None:
    found = parse_range("bytes=" + ",".join(["0-0"] * count), 10)
    assert found == ((Span(0, 0),) if count == RANGES else Answer.UNSATISFIABLE)
