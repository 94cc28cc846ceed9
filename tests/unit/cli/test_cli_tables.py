"""What commands print."""

import json

import pytest

from openiodm.cli import tables


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("", "-"),
        (0, "0"),
        (True, "yes"),
        (False, "no"),
        ([], "-"),
        (["a", "b"], "a, b"),
        ({}, "-"),
        ({"k": "v", "n": 1}, "k=v, n=1"),
        ("text", "text"),
    ],
)
def test_a_cell_reads_well(value: object, shown: str) -> None:
    assert tables.cell(value) == shown


@pytest.mark.parametrize(
    ("octets", "shown"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 1024**2, "3.0 MiB"),
        (5 * 1024**3 // 2, "2.5 GiB"),
        (2048 * 1024**3, "2048.0 GiB"),
    ],
)
def test_sizes_have_a_unit(octets: int | None, shown: str) -> None:
    assert tables.size(octets) == shown


def test_a_field_is_read_through_missing_and_null_parts() -> None:
    read = tables.field("a", "b")
    assert read({"a": {"b": 1}}) == 1
    assert read({"a": None}) is None
    assert read({}) is None


def test_a_moment_is_shown_to_the_second() -> None:
    assert tables.when("at")({"at": "2030-01-31T22:00:01.250000Z"}) == "2030-01-31 22:00:01Z"
    assert tables.when("at")({"at": None}) is None


def test_a_table_shows_names_with_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table([{"name": "[red]a[/red]"}], [("name", tables.field("name"))], caption="page [0]")
    out = capsys.readouterr().out
    assert "[red]a[/red]" in out
    assert "page [0]" in out


def test_a_table_outside_a_terminal_cuts_nothing_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    long = "x" * 300
    tables.print_table([{"a": long, "b": "end"}], [("a", tables.field("a")), ("b", tables.field("b"))])
    assert any(long in line and "end" in line for line in capsys.readouterr().out.splitlines())


def test_json_is_one_document_and_remarks_go_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_json({"name": "Gerät"})
    tables.note("a remark")
    seen = capsys.readouterr()
    assert json.loads(seen.out) == {"name": "Gerät"}
    assert seen.err == "a remark\n"


def test_ndjson_is_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_line({"a": "x\ny"})
    tables.print_line([1])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{"a": "x\ny"}, [1]]


@pytest.mark.parametrize(("columns", "as_blocks"), [(40, True), (100, False)])
def test_a_table_that_is_too_wide_for_a_terminal_is_shown_as_blocks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, as_blocks: bool
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    rows = [{"a": "x" * 30, "b": "y" * 30}, {"a": "1", "b": None}]
    tables.print_table(rows, [("first", tables.field("a")), ("second", tables.field("b"))], caption="2 in all")
    out = capsys.readouterr().out
    assert ("first   " + "x" * 30 in out) is as_blocks
    assert ("second  -" in out) is as_blocks
    assert out.endswith("2 in all\n")
