"""What stands on the measurements: the history of ratios, and the tables and plots of docs/ that are made from them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(autouse=True)
def _bench_is_importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCH:
            del sys.modules[name]


def run(idle_poll: float, *, quick: bool = False, others_pct: float = 1.0) -> dict[str, object]:
    return {"commit": "c", "at": "2026-01-01T00:00:00", "quick": quick, "ratios": {"idle_poll": idle_poll},
            "others_pct": others_pct}  # fmt: skip


def test_a_run_below_the_median_by_more_than_the_noise_is_slower() -> None:
    import history

    before = [run(30.0), run(31.0), run(30.5)]
    assert history.slower(run(25.0), before) == ["idle_poll"]
    assert history.slower(run(26.5), before) == []  # 13 %
    assert history.slower(run(90.0), before) == []


def test_where_runs_differ_more_the_noise_is_more() -> None:
    import history

    scattered = [run(20.0), run(30.0), run(40.0)]
    assert history.slower(run(15.0), scattered) == []
    assert history.slower(run(15.0), [run(30.0)]) == ["idle_poll"]


def test_only_undisturbed_runs_of_the_same_size_are_compared_with() -> None:
    import history

    others = [run(30.0, quick=True), run(30.0, others_pct=80.0)]
    assert history.changes(run(10.0), others) == {}
    assert history.slower(run(10.0, others_pct=80.0), [run(30.0)]) == []


def test_each_run_adds_a_line(tmp_path: Path) -> None:
    import history

    file = tmp_path / "history.ndjson"
    report = {
        **run(30.0),
        "rounds": {"openiodm": [{"idle_poll_others_pct": 2.0}], "goosebit": [{"idle_poll_others_pct": 4.0}]},
    }
    assert "nothing is slower" in history.added(report, file)
    assert "idle_poll" in history.added({**report, "ratios": {"idle_poll": 20.0}}, file)
    assert [r["ratios"]["idle_poll"] for r in history.runs(file)] == [30.0, 20.0]
    assert history.runs(file)[0]["others_pct"] == 3.0
    shown = history.shown(history.runs(file)).splitlines()
    assert ["SLOWER" in line for line in shown[1:3]] == [False, True]


def test_every_line_of_the_history_can_be_shown() -> None:
    import history

    found = history.runs()
    assert len(history.shown(found).splitlines()) == len(found) + 2
    assert len(found) >= 3


def test_a_missed_target_is_told() -> None:
    import compare

    report = {
        "ours": {"idle_poll_per_s": 100.0}, "peer": {"idle_poll_per_s": 10.0}, "ratios": {"idle_poll": 10.0},
        "list_p99_ms": {"sqlite": 4.0, "postgres": 6.0}, "size": {"devices": 1, "fleet": 2, "tasks": 3},
    }  # fmt: skip
    met = {what: met for what, *_, met in compare.verdicts(report)}
    assert met["idle polls /s, 1 devices"] is False
    assert met["durable reports /s"] is None
    assert (met["page inside the server, sqlite, p99 ms"], met["page inside the server, postgres, p99 ms"]) == (
        True,
        False,
    )


def test_tables_of_the_pages_are_those_of_the_results() -> None:
    import pages

    assert [page.name for page in pages.stale()] == [], "run: python bench/pages.py"
    assert all("<!-- bench/pages.py" in page.read_text() for page in pages.PAGES)


def test_a_table_is_written_anew_when_its_results_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pages

    latest = json.loads((pages.RESULTS / "latest.json").read_text())
    latest["ours"]["idle_poll_per_s"] = 123_456
    (tmp_path / "latest.json").write_text(json.dumps(latest))
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    assert "123,456" in pages.comparison()
    assert "123,456" in pages.filled("<!-- bench/pages.py: comparison -->\nold\n<!-- end -->\n")
