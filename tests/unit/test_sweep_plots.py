"""The page of a sweep: the axes, lines and captions of its figures; it loads nothing from outside."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hourglass.report.charts import even_ticks, is_log, log_ticks
from hourglass.tuning import plots
from hourglass.tuning.leaderboard import Entry, Leaderboard, ranked, short_names
from hourglass.tuning.plots import axis

HOSTILE = '"><script>alert(1)</script><a href="http://evil.example/x">'


def entry(trial: str, mse: float | None, **fields: Any) -> Entry:
    given = {"trial": trial, "status": "finished", "values": {}, "holdout_mse": mse}
    return Entry.model_validate({**given, **fields})


def board(*entries: Entry, **fields: Any) -> Leaderboard:
    return ranked("grid", fields.pop("metric", "holdout_mse"), entries, **fields)


@pytest.fixture
def mixed() -> Leaderboard:
    """Values of every kind, one that a condition left out, and all three ends."""
    kinds = [{"kind": "plain"}, {"kind": "top_k", "k": 8}]
    entries = [
        entry(
            f"t{i}",
            0.4 / 2**i,
            values={
                "train.optimizer.lr": 1e-4 * 10 ** (i / 2),
                "model.network.widths": [[64], [128, 8], [128, 16], [64]][i % 4],
                "model.code": kinds[i % 2],
                **({"model.code.k": 4 + i} if i % 2 else {}),
                "model.corruption.p": 0.1 * i,
                "model.tied": bool(i % 2),
            },
            pca_mse=0.1,
            seconds=1.0 + i,
        )
        for i in range(6)
    ]
    stopped = entry("s0", 0.5, status="stopped", values={"train.optimizer.lr": 0.5}, seconds=0.5)
    failed = Entry(trial="", status="failed", reason="no", values={"train.optimizer.lr": 1.0})
    return board(*entries, stopped, failed)


def axes(made: Leaderboard) -> dict[str, dict[str, Any]]:
    section = plots._swept(made)
    assert section is not None
    (trace,) = section.parts[0].to_dict()["data"]
    assert trace["type"] == "parcoords"
    return {axis["label"]: axis for axis in trace["dimensions"]}


# -- parallel coordinates ---------------------------------------------------------------------


def test_each_value_has_the_axis_of_its_kind(mixed: Leaderboard) -> None:
    found = axes(mixed)
    assert list(found) == [
        "optimizer.lr, log",
        "widths",
        "code",
        "code.k",
        "corruption.p",
        "tied",
        "holdout_mse, log",
    ]
    first = mixed.entries[0]  # the best of the finished ones, which alone are drawn
    assert all(len(axis["values"]) == 6 for axis in found.values())
    assert 10 ** found["optimizer.lr, log"]["values"][0] == pytest.approx(
        first.values["train.optimizer.lr"]
    )
    assert found["corruption.p"]["values"][0] == pytest.approx(0.5)
    widths = found["widths"]
    assert widths["ticktext"] == ["[64]", "[128, 8]", "[128, 16]"]  # by number, not by letter
    assert [widths["ticktext"][place] for place in widths["values"]] == [
        "[128, 8]", "[64]", "[64]", "[128, 16]", "[128, 8]", "[64]",
    ]  # fmt: skip
    assert found["code"]["ticktext"] == ["plain", "top_k k 8"]
    assert found["tied"]["ticktext"] == ["false", "true"]


def test_a_value_that_a_condition_left_out_has_its_place(mixed: Leaderboard) -> None:
    axis = axes(mixed)["code.k"]
    assert axis["ticktext"][0] == "not set"
    below = axis["tickvals"][0]
    assert below < 5
    assert [value == below for value in axis["values"]] == [False, True] * 3
    assert axis["range"][0] < below
    words = [{"model.loss.kind": "mae"}, {"train.epochs": 3}]
    found = axes(board(*(entry(f"t{i}", 0.1, values=v) for i, v in enumerate(words))))
    assert found["kind"]["ticktext"] == ["not set", "mae"]
    assert found["kind"]["values"] == [1, 0]


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([1e-4, 1e-3, 1e-2, 1e-1], True),
        ([0.01, 0.1, 0.2, 0.3, 0.4, 0.5], False),  # far apart, but even
        ([4, 8, 16, 32], False),
        ([0.0, 0.001, 1.0], False),
        ([-1.0, 1.0, 100.0], False),
        ([], False),
    ],
)
def test_a_log_axis_is_for_values_spread_so(values: list[float], log: bool) -> None:
    assert is_log(values) is log


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.01, 0.1, ["0.01", "0.02", "0.05", "0.1"]),
        (0.0004, 0.03, ["0.0005", "0.001", "0.002", "0.005", "0.01", "0.02"]),
        (1e-6, 1.0, ["1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1"]),
    ],
)
def test_ticks_of_a_log_axis(low: float, high: float, ticks: list[str]) -> None:
    assert [f"{tick:g}" for tick in log_ticks(low, high)] == ticks


def test_ticks_of_an_even_axis() -> None:
    assert even_ticks(0.0, 0.5) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert even_ticks(3.0, 31.0) == [5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
    assert even_ticks(2.0, 2.0) == [2.0]


def test_dark_lines_are_the_best_either_way() -> None:
    for mode, metric, turned in (("min", "holdout_mse", False), ("max", "rank_agreement", True)):
        entries = [
            entry(f"t{i}", 0.1, rank_agreement=0.5 + i / 10, values={"train.epochs": i + 1})
            for i in range(2)
        ]
        section = plots._swept(board(*entries, metric=metric, mode=mode))
        assert section is not None
        (trace,) = section.parts[0].to_dict()["data"]
        assert trace["line"]["reversescale"] is turned
        assert ("highest" if turned else "lowest") in section.text


def test_what_is_left_out_is_counted(mixed: Leaderboard) -> None:
    section = plots._swept(mixed)
    assert section is not None
    assert section.text.endswith("2 trials that did not finish are not shown.")
    assert plots._leaders(mixed).text == (
        "8 trials: 6 finished, 1 stopped, 1 failed. Ranked by holdout_mse, lowest first."
    )


def test_names_are_short_where_they_can_be() -> None:
    paths = ["train.optimizer.lr", "model.loss.kind", "model.code.kind", "train.epochs"]
    assert list(short_names(paths).values()) == [
        "optimizer.lr",
        "model.loss.kind",
        "model.code.kind",
        "epochs",
    ]


# -- time, epochs, width ----------------------------------------------------------------------


def test_the_running_best_never_gets_worse() -> None:
    times = [(3.0, 0.2), (1.0, 0.3), (2.0, 0.4), (4.0, 0.1)]
    entries = [entry(f"t{i}", mse, seconds=s) for i, (s, mse) in enumerate(times)]
    made = board(*entries)
    assert plots._running_best(made, made.entries) == {
        "x": [1.0, 2.0, 3.0, 4.0],
        "y": [0.3, 0.3, 0.2, 0.1],
    }
    entries = [entry(f"t{i}", 0, rank_agreement=m, seconds=s) for i, (s, m) in enumerate(times)]
    made = board(*entries, metric="rank_agreement", mode="max")
    assert plots._running_best(made, made.entries)["y"] == [0.3, 0.4, 0.4, 0.4]


def test_metric_over_time_shows_the_stopped_apart(mixed: Leaderboard) -> None:
    section = plots._time(mixed)
    assert section is not None
    traces = {trace["name"]: trace for trace in section.parts[0].to_dict()["data"]}
    assert list(traces) == ["finished trials", "stopped trials", "best so far"]
    assert list(traces["stopped trials"]["x"]) == [0.5]
    assert list(traces["best so far"]["y"]) == pytest.approx([0.4 / 2**i for i in range(6)])
    assert plots._time(board(entry("a", 0.1))) is None  # no seconds are known


def test_curves_are_of_the_trials_that_have_them(mixed: Leaderboard) -> None:
    curve = [{"epoch": e, "holdout_mse": 1.0 / e, "loss": 2.0} for e in (1.0, 2.0)]
    section = plots._curves(mixed, {"t5": curve, "s0": curve[:1], "t1": [{"loss": 1.0}]})
    assert section is not None
    drawn = section.parts[0].to_dict()["data"]
    assert [list(trace["y"]) for trace in drawn] == [[1.0], [1.0, 0.5]]
    assert [trace["name"] for trace in drawn] == ["", "1: t5"]
    assert plots._curves(mixed, {}) is None


def test_the_width_error_curve_stands_beside_pca() -> None:
    entries = [
        entry("a", 0.30, pca_mse=0.20),
        entry("b", 0.10, pca_mse=0.20),
        entry("c", 0.09, pca_mse=0.08),
        entry("d", 0.01),  # as wide as a row: PCA proves nothing there
        entry("e", 0.50, status="stopped", pca_mse=0.2),
    ]
    section = plots._widths(board(*entries), {"a": 2, "b": 2, "c": 4, "d": 8, "e": 2})
    assert section is not None
    traces = {trace["name"]: trace for trace in section.parts[0].to_dict()["data"]}
    assert sorted(zip(traces["trials"]["x"], traces["trials"]["y"], strict=True)) == [
        (2, 0.10), (2, 0.30), (4, 0.09), (8, 0.01),
    ]  # fmt: skip
    assert list(traces["best trial of a width"]["x"]) == [2, 4, 8]
    assert list(traces["best trial of a width"]["y"]) == [0.10, 0.09, 0.01]
    assert (list(traces["PCA"]["x"]), list(traces["PCA"]["y"])) == ([2, 4], [0.20, 0.08])
    assert section.text.endswith("The best trial beats PCA at 2 units, but not at the others.")
    assert plots._widths(board(*entries), {}) is None


@pytest.mark.parametrize(
    ("mse", "pca", "ends"),
    [
        (0.1, 0.2, "beats PCA at every width."),
        (0.3, 0.2, "PCA beats the trials at every width: a linear map would do better."),
        (0.3, None, "Every code is as wide as a row, so PCA is no baseline here."),
    ],
)
def test_the_caption_about_pca(mse: float, pca: float | None, ends: str) -> None:
    section = plots._widths(board(entry("a", mse, pca_mse=pca)), {"a": 2})
    assert section is not None
    assert section.text.endswith(ends)


# -- the page ---------------------------------------------------------------------------------


def test_the_page_is_closed_and_whole(mixed: Leaderboard, tmp_path: Path) -> None:
    uri = plots.save(str(tmp_path), mixed, {f"t{i}": 2 + i for i in range(6)})
    made = Path(uri).read_text()
    assert uri == f"{tmp_path}/plots.html"
    assert re.findall("<h2>(.*?)</h2>", made) == [
        "Trials",
        "Values and metric",
        "Metric and time",
        "Width and error",
    ]
    assert "default-src 'none'" in made
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"http", made)


def test_words_from_a_sweep_are_no_markup() -> None:
    hostile = entry(
        HOSTILE, 0.1, values={"train.name": HOSTILE, HOSTILE: 1.0}, pca_mse=0.2, seconds=1.0
    )
    curve = {HOSTILE: [{"epoch": 1.0, "holdout_mse": 0.1}]}
    made = plots.page(ranked(HOSTILE, "holdout_mse", [hostile, hostile]), {HOSTILE: 3}, curve)
    assert "<script>alert" not in made
    assert "<a href=" not in re.sub(r'<a href="#s\d">', "", made).split("</head>")[1]
    figures = re.findall(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*(\[.*?\]),\s*\{\"", made, re.S)
    assert len(figures) == 4
    for data in figures:
        assert "<script" not in json.dumps(json.loads(data))


def test_a_sweep_without_a_finished_trial_has_a_page() -> None:
    made = plots.page(board(Entry(trial="", status="failed", reason="x", values={})), {})
    assert "No trial finished, so nothing is ranked." in made
    assert re.findall("<h2>(.*?)</h2>", made) == ["Trials"]


def test_an_axis_of_nothing_has_one_place() -> None:
    """As where all finished trials have `clip_norm: null`."""
    assert axis("clip_norm", [None, None])["ticktext"] == ["not set"]
