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
        "ours": {"idle_poll_per_s": 100.0}, "peer": {"idle_poll_per_s": 10.0},
        "ratios": {"idle_poll": 10.0, "download_nginx": 0.95},
        "list_p99_ms": {"sqlite": 4.0, "postgres": 6.0}, "size": {"devices": 1, "fleet": 2, "tasks": 3},
    }  # fmt: skip
    met = {what: met for what, *_, met in compare.verdicts(report)}
    assert met["idle polls /s, 1 devices"] is False
    assert met["durable reports /s"] is None
    assert met["download behind nginx"] is True
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


def test_pictures_show_the_figures_of_the_results_and_are_small() -> None:
    import plots

    drawn = list(plots.plots())
    assert len(drawn) >= 3
    assert [file.name for file in plots.stale()] == [], "run: make plots"
    assert all(plot.file.stat().st_size <= plots.MOST_BYTES for plot in drawn)
    shown = (plots.FOLDER.parent / "performance.md").read_text()
    assert [plot.name for plot in drawn if f"(plots/{plot.file.name})" not in shown] == []


def test_a_picture_is_stale_when_a_figure_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import plots

    growth = json.loads((plots.RESULTS / "growth.json").read_text())
    growth["devices"]["sqlite"][0]["poll"]["cpu_ms"] = 99.0
    (tmp_path / "growth.json").write_text(json.dumps(growth))
    (tmp_path / "list.json").write_text((plots.RESULTS / "list.json").read_text())
    monkeypatch.setattr(plots, "RESULTS", tmp_path)
    assert "devices.png" in [file.name for file in plots.stale()]
    assert plots.shows(tmp_path / "growth.json") == ""


def test_the_arithmetic_of_ten_million_devices() -> None:
    import scale

    costs = scale.Costs(
        fleet=100_000, poll_ms=0.1, poll_db_ms=0.05, poll_wal=500, report_ms=0.2, report_db_ms=0.3, update_ms=2.0,
        update_db_ms=1.0, update_wal=6000, history_rows=4.0, page_ms=1.0, list_mib=7.0, list_build_s=3.0,
        rows={"device": 1000, "group_member": 300, "upgrade": 700, "history": 250, "device_log": 120},
        notices_s=1000, download_mb_s=1000, subtask_mib=20.0, subtask_build_s=5.0,
    )  # fmt: skip
    hourly = scale.polls(costs, 3600)
    assert round(hourly.per_s, 1) == 2777.8
    assert round(hourly.cores, 3) == 0.278
    assert round(hourly.wal_mb_s, 2) == 1.39
    week = scale.rollout(costs, 7)
    assert (round(week.updates_s, 2), round(week.reports_s, 1), round(week.notices_s, 1)) == (16.53, 49.6, 82.7)
    assert (round(week.cores, 4), round(week.gbit_s, 2)) == (0.0331, 13.23)
    assert scale.rows_a_year(costs)["history"] == (160.0, 40.0)
    assert scale.rows_a_year(costs)["device"] == (10.0, 10.0)
    found = {one.what: one.needed / one.gives for one in scale.limits(costs)}
    assert round(found["a network card"], 3) == 1.323
    assert round(found["a core with a server process"], 3) == 0.311


def test_the_page_on_scale_is_for_the_sizes_of_its_arithmetic() -> None:
    import pages
    import scale

    page = " ".join((pages.HERE.parent / "docs" / "scale.md").read_text().split())
    assert f"{scale.DEVICES:,} devices, a package of {scale.PACKAGE_MB} MB, four rollouts" in page
    assert (scale.ROLLOUTS_A_YEAR, scale.TASKS_A_YEAR, scale.INTERVAL_S, scale.ROLLOUT_DAY) == (4, 1_000_000, 3600, 7)
    names = {name for file in pages.PAGES for _, name, *_ in pages.BLOCK.findall(file.read_text())}
    assert names == set(pages.BLOCKS)


def test_a_size_that_is_measured_again_replaces_its_figures() -> None:
    import growth

    some = [{"devices": 100, "poll": 1}, {"devices": 10_000, "poll": 2}]
    growth.keep(some, {"devices": 1000, "poll": 3}, "devices")
    growth.keep(some, {"devices": 100, "poll": 4}, "devices")
    assert [(one["devices"], one["poll"]) for one in some] == [(100, 4), (1000, 3), (10_000, 2)]


def test_steady_polls_are_read_as_they_were_written(tmp_path: Path) -> None:
    from array import array

    import steady

    file = tmp_path / "polls.bin"
    file.write_bytes(array("d", [1.0, 0.002, 200.0, 2.0, 0.004, 0.0]).tobytes())
    answers = steady.read(file)
    assert answers == [steady.Answer(1.0, 0.002, 200), steady.Answer(2.0, 0.004, 0)]
    assert steady.shape(answers) == {"n": 2, "bad": 1, "p50_ms": 4.0, "p99_ms": 4.0, "p999_ms": 4.0, "max_ms": 4.0}
    assert steady.shape([]) == {"n": 0}


def test_a_crowd_that_is_swept_too_late_misses_its_target() -> None:
    import crowd

    polls = {phase: {"p99_ms": 1.0, "bad": 0} for phase in ("before", "expanding", "granting", "sweeping", "after")}
    seen = {
        "create_ms": 10.0, "expanded_s": 30.0, "stop_ms": 5.0, "grants_after_stop": 0, "download_refused_s": 0.1,
        "download_cut_within_1_s": True, "swept_s": 61.0, "polls": polls,
    }  # fmt: skip
    assert [what for what, value, most in crowd.verdicts(seen) if value > most] == ["swept after, s"]
