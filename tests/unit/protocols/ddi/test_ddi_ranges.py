"""Byte ranges and preconditions of an artifact download (hawkBit DDI v1; RFC 9110, 13 and 14)."""

import re

import pytest

from openiodm.clock import Instant
from openiodm.protocols.ranges import (
    BOUNDARY,
    RANGES,
    Answer,
    Plan,
    Span,
    content_disposition,
    http_date,
    is_common,
    parse_range,
    plan,
)

ETAG = '"2fd4e1c67a2d28fced849ee1bb76e7391b93eb12"'
MODIFIED = Instant(784_111_777_900)  # Sun, 06 Nov 1994 08:49:37 GMT and 900 ms
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


def ask(size: int = 10_000, /, *, method: str = "GET", **headers: str) -> Plan:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return plan(named, size, ETAG, MODIFIED, method=method)


# Range


@pytest.mark.parametrize(
    ("header", "spans"),
    [
        # RFC 9110, 14.1.2: the examples for a representation of 10000 bytes
        ("bytes=0-499", [(0, 499)]),
        ("bytes=500-999", [(500, 999)]),
        ("bytes=-500", [(9500, 9999)]),
        ("bytes=9500-", [(9500, 9999)]),
        ("bytes=0-0,-1", [(0, 0), (9999, 9999)]),
        ("bytes= 0-999, 4500-5499, -1000", [(0, 999), (4500, 5499), (9000, 9999)]),
        ("bytes=500-600,601-999", [(500, 999)]),
        ("bytes=500-700,601-999", [(500, 999)]),
        # beyond the examples
        ("bytes=9999-10000", [(9999, 9999)]),
        ("bytes=0-" + "9" * 5000, [(0, 9999)]),
        ("bytes=-" + "9" * 5000, [(0, 9999)]),
        ("bytes=000-0001", [(0, 1)]),
        ("bytes=700-800,0-1,300-400,350-360", [(0, 1), (300, 400), (700, 800)]),
        ("Bytes=0-1", [(0, 1)]),
        ("bytes=0-1,,3-4,", [(0, 1), (3, 4)]),
    ],
)
def test_ranges_become_sorted_spans_that_do_not_touch(header: str, spans: list[tuple[int, int]]) -> None:
    assert parse_range(header, 10_000) == tuple(spans)


@pytest.mark.parametrize("header", [None, "items=0-5", "pages=x", "", "0-5"])
def test_without_a_range_in_bytes_the_whole_file_is_meant(header: str | None) -> None:
    assert parse_range(header, 10_000) is Answer.WHOLE


@pytest.mark.parametrize(
    "header",
    [
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=a-b",
        "bytes=5",
        "bytes=1-2-3",
        "bytes=5-4",
        "bytes=--5",
        "bytes=+1-2",
        "bytes=\u0661-\u0662",
        "bytes=1 - 2",
        "bytes=-0",
        "bytes=0-5,x",
        "bytes=10000-",
        "bytes=10000-20000",
        "bytes=" + "9" * 5000 + "-",
        "bytes=0-5,10000-10001",
    ],
)
def test_a_range_that_is_bad_or_past_the_end_is_unsatisfiable(header: str) -> None:
    assert parse_range(header, 10_000) is Answer.UNSATISFIABLE


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=0-0", "bytes=-5"])
def test_an_empty_file_has_no_ranges(header: str) -> None:
    assert parse_range(header, 0) is Answer.UNSATISFIABLE


def test_a_range_bomb_is_unsatisfiable() -> None:
    spread = [f"{2 * number}-{2 * number}" for number in range(RANGES + 1)]
    assert parse_range("bytes=" + ",".join(spread), 10_000) is Answer.UNSATISFIABLE
    allowed = parse_range("bytes=" + ",".join(spread[:RANGES]), 10_000)
    assert isinstance(allowed, tuple)
    assert len(allowed) == RANGES


# Plan


def test_without_range_the_whole_file_is_sent() -> None:
    answer = ask()
    assert (answer.status, answer.pieces) == (200, (Span(0, 9999),))
    assert answer.headers == {
        "ETag": ETAG,
        "Accept-Ranges": "bytes",
        "Last-Modified": DATE,
        "Content-Type": "application/octet-stream",
        "Content-Length": "10000",
        "X-Content-Type-Options": "nosniff",
    }


def test_an_empty_file_is_sent_as_nothing() -> None:
    answer = ask(0)
    assert (answer.status, answer.pieces, answer.headers["Content-Length"]) == (200, (), "0")


def test_one_range_is_sent_bare_with_its_place() -> None:
    answer = ask(range="bytes=500-999")
    assert (answer.status, answer.pieces) == (206, (Span(500, 999),))
    assert answer.headers["Content-Range"] == "bytes 500-999/10000"
    assert answer.headers["Content-Length"] == "500"
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["ETag"] == ETAG


def test_ranges_that_melt_into_one_are_sent_bare() -> None:
    answer = ask(range="bytes=500-700,601-999")
    assert answer.headers["Content-Range"] == "bytes 500-999/10000"


def test_several_ranges_are_sent_in_parts_of_the_announced_length() -> None:
    content = bytes(range(256)) * 40
    answer = ask(len(content), range="bytes=-10,0-4")
    sent = b"".join(
        content[piece.start : piece.end + 1] if isinstance(piece, Span) else piece for piece in answer.pieces
    )
    assert answer.status == 206
    assert answer.headers["Content-Type"] == f"multipart/byteranges; boundary={BOUNDARY}"
    assert answer.headers["Content-Length"] == str(len(sent))
    assert "Content-Range" not in answer.headers
    assert sent == (
        b"--THIS_STRING_SEPARATES_MULTIPART\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Range: bytes 0-4/10240\r\n\r\n" + content[:5] + b"\r\n--THIS_STRING_SEPARATES_MULTIPART\r\n"
        b"Content-Type: application/octet-stream\r\nContent-Range: bytes 10230-10239/10240\r\n\r\n"
        + content[-10:]
        + b"\r\n--THIS_STRING_SEPARATES_MULTIPART--\r\n"
    )


def test_a_reader_that_goes_on_until_416_comes_to_an_end() -> None:
    # rauc-hawkbit-updater, streaming: the next block is asked for as long as the server has one.
    size, block, at = 300_000, 131_072, 0
    for _ in range(4):
        answer = ask(size, range=f"bytes={at}-{at + block - 1}")
        if answer.status == 416:
            break
        at += answer.spans[0].size
    assert at == size
    assert (answer.status, answer.headers["Content-Range"], answer.pieces) == (416, f"bytes */{size}", ())


def test_head_tells_of_the_whole_file_whatever_the_range() -> None:
    assert ask(method="HEAD", range="bytes=0-1").status == 200


@pytest.mark.parametrize(
    ("if_match", "status"),
    [
        (ETAG, 200),
        ("*", 200),
        (ETAG.strip('"'), 200),
        ('"x", ' + ETAG, 200),
        ('"x"', 412),
        ("W/" + ETAG, 412),
        ("", 412),
    ],
)
def test_if_match_with_another_tag_fails(if_match: str, status: int) -> None:
    assert ask(if_match=if_match).status == status


@pytest.mark.parametrize(("if_none_match", "status"), [(ETAG, 304), ("W/" + ETAG, 304), ("*", 304), ('"x"', 200)])
def test_if_none_match_with_the_tag_spares_the_body(if_none_match: str, status: int) -> None:
    answer = ask(if_none_match=if_none_match)
    assert answer.status == status
    assert answer.headers["ETag"] == ETAG
    assert bool(answer.pieces) == (status == 200)


@pytest.mark.parametrize(
    ("if_range", "status"),
    [
        (ETAG, 206),
        (ETAG.strip('"'), 206),
        ('"x"', 200),
        ("W/" + ETAG, 200),
        ("*", 200),
        (DATE, 206),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 206),
        ("Sun Nov  6 08:49:37 1994", 206),
        ("Mon, 07 Nov 1994 08:49:37 GMT", 206),
        ("Sun, 06 Nov 1994 08:49:36 GMT", 200),
        ("yesterday", 200),
        ("Sun, 99 Foo 1994 08:49:37 GMT", 200),
        ("", 200),
    ],
)
def test_if_range_keeps_the_range_only_for_the_same_file(if_range: str, status: int) -> None:
    assert ask(range="bytes=0-1", if_range=if_range).status == status


def test_a_bad_range_does_not_count_when_if_range_is_against_it() -> None:
    assert ask(range="bytes=x", if_range='"x"').status == 200


def test_if_match_is_looked_at_before_anything_else() -> None:
    assert ask(if_match='"x"', if_none_match=ETAG, range="bytes=x").status == 412
    assert ask(if_match=ETAG, if_none_match=ETAG, range="bytes=x").status == 304
    assert ask(if_match=ETAG, range="bytes=x").status == 416


def test_a_date_is_in_whole_seconds_of_gmt() -> None:
    assert http_date(MODIFIED) == DATE


# What may be left to another server


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"range": "bytes=0-9"},
        {"range": "bytes=10-"},
        {"range": "bytes=-10"},
        {"range": "bytes=10-", "if-range": ETAG},
        {"if-none-match": '"other"', "if-modified-since": DATE},
    ],
)
def test_what_every_server_answers_alike_may_be_left_to_another(headers: dict[str, str]) -> None:
    assert is_common(headers, plan(headers, 10_000, ETAG, MODIFIED))


@pytest.mark.parametrize(
    "headers",
    [
        {"range": "bytes=0-1,5-6"},
        {"range": "bytes=0-1,2-3"},  # one span, once coalesced
        {"range": "bytes =0-1"},
        {"range": "bytes= 0-1"},
        {"range": "seconds=0-1"},
        {"range": "bytes=0-1\n"},
        {"range": f"bytes=0-{'9' * 30}"},
        {"range": "bytes=10-", "if-range": DATE},
        {"range": "bytes=10-", "if-range": ETAG.strip('"')},
        {"if-range": '"other"'},
        {"if-match": ETAG},
        {"if-match": '"other"'},
        {"if-none-match": ETAG},
        {"if-unmodified-since": DATE},
        {"range": "bytes=20000-"},
    ],
)
def test_what_servers_answer_in_several_ways_is_kept(headers: dict[str, str]) -> None:
    assert not is_common(headers, plan(headers, 10_000, ETAG, MODIFIED))


# Content-Disposition


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        ("x.swu", "attachment;filename=x.swu"),
        ("a b.swu", 'attachment;filename="a b.swu"'),
        ("a;b.swu", 'attachment;filename="a;b.swu"'),
        ('a"b\\c', "attachment;filename=a_b_c;filename*=UTF-8''a%22b%5Cc"),
        ("f\u00fcr.bin", "attachment;filename=f_r.bin;filename*=UTF-8''f%C3%BCr.bin"),
        ("", 'attachment;filename=""'),
    ],
)
def test_a_file_name_is_quoted_only_if_it_has_specials(filename: str, header: str) -> None:
    assert content_disposition(filename) == header


@pytest.mark.parametrize("filename", ["x" * 200, "x y" * 100, "a\r\nSet-Cookie: b", "\udc80", "\x00\x7f"])
def test_no_file_name_breaks_the_header_or_its_length(filename: str) -> None:
    header = content_disposition(filename)
    assert header.isascii()
    assert header.isprintable()
    shown = re.match(r"attachment;filename=([^;]*)", header)
    assert shown is not None
    assert len(shown[1]) <= 78
