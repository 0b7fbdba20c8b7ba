"""The leaderboard: its order, its marks, and the same figures in JSON, CSV and Parquet."""

import datetime
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from hourglass.cli import sweeps
from hourglass.errors import DataError
from hourglass.settings import Settings
from hourglass.tuning.leaderboard import Entry, Leaderboard, format_values, load, named, ranked


def entry(trial: str, mse: float | None, **fields: Any) -> Entry:
    given = {"trial": trial, "status": "finished", "values": {"train.epochs": 1}}
    return Entry.model_validate({**given, "holdout_mse": mse, "train_mse": 0.5, **fields})


@pytest.fixture
def board() -> Leaderboard:
    mixed = {"model.network.widths": [3, 2], "train.optimizer.lr": 0.1, "model.loss.kind": "mae"}
    entries = [
        entry("b", 0.2, values=mixed, pca_mse=0.1, parameters=12, seconds=0.5),
        Entry(trial="", status="failed", reason='no, this: "x"', values={"train.optimizer.lr": 1}),
        entry("a", 0.1, values={**mixed, "model.network.widths": [3]}, pca_mse=0.3),
        entry("c", 0.1, values={"train.optimizer.lr": 2.0}),
    ]
    return ranked("grid", "holdout_mse", entries)


def test_the_lowest_error_is_first_and_failures_are_last(board: Leaderboard) -> None:
    assert [(e.rank, e.trial) for e in board.entries] == [(1, "a"), (2, "c"), (3, "b"), (None, "")]
    assert [e.worse_than_pca for e in board.entries] == [False, False, True, False]


def test_another_metric_is_another_order() -> None:
    entries = [entry("a", 0.1, holdout_fvu=0.3), entry("b", 0.2, holdout_fvu=0.2)]
    assert [e.trial for e in ranked("grid", "holdout_fvu", entries).entries] == ["b", "a"]


def test_json_csv_and_parquet_hold_the_same(board: Leaderboard, tmp_path: Path) -> None:
    board.save(str(tmp_path))
    assert load(str(tmp_path)) == board
    assert json.loads(board.to_json()) == json.loads((tmp_path / "leaderboard.json").read_text())
    parquet = pq.read_table(tmp_path / "leaderboard.parquet")
    assert parquet.equals(board.table())
    csv = pa_csv.read_csv(tmp_path / "leaderboard.csv")
    assert csv.column_names == parquet.column_names
    assert parquet.column("model.network.widths").to_pylist() == ["[3]", None, "[3, 2]", None]
    assert parquet.column("train.optimizer.lr").to_pylist() == [0.1, 2.0, 0.1, 1.0]
    assert parquet.column("model.loss.kind").to_pylist() == ["mae", None, "mae", None]
    for name in ("rank", "holdout_mse", "pca_mse", "parameters", "worse_than_pca"):
        assert csv.column(name).to_pylist() == parquet.column(name).to_pylist()
    assert csv.column("reason").to_pylist() == parquet.column("reason").to_pylist()


def test_a_sweep_is_found_by_its_name(board: Leaderboard, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with pytest.raises(DataError, match="no sweep 'gird' in .* There are none yet"):
        named("gird", settings)
    board.save(str(tmp_path / "runs" / "grid"))
    assert named("grid", settings) == board
    with pytest.raises(DataError, match=r"did you mean 'grid'\? Existing sweeps: grid"):
        named("gird", settings)
    (tmp_path / "runs" / "grid" / "leaderboard.json").write_text("{}")
    with pytest.raises(DataError, match="not a leaderboard"):
        named("grid", settings)


def test_a_trial_without_the_metric_has_no_rank() -> None:
    board = ranked("grid", "holdout_mse", [entry("a", None), entry("b", 0.2)])
    assert [(e.rank, e.trial) for e in board.entries] == [(1, "b"), (None, "a")]
    assert ranked("grid", "holdout_mse", [entry("a", None)]).best is None


def test_the_highest_agreement_is_first_and_the_stopped_come_by_their_epochs() -> None:
    entries = [
        entry("a", 0.1, rank_agreement=0.5),
        entry("b", 0.2, rank_agreement=0.9),
        entry("c", 0.3, status="stopped", epochs=2, rank_agreement=0.99),
        entry("d", 0.3, status="stopped", epochs=4, rank_agreement=0.1),
    ]
    board = ranked("grid", "rank_agreement", entries, "max")
    assert [(e.rank, e.trial) for e in board.entries] == [
        (1, "b"),
        (2, "a"),
        (None, "d"),
        (None, "c"),
    ]
    assert (board.best is not None, board.mode) == (True, "max")


def shown(board: Leaderboard, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a terminal of `width` letters shows."""
    out = io.StringIO()
    screen = Console(file=out, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr("hourglass.progress.console", lambda: screen)
    sweeps._show(board, as_json=False)
    return out.getvalue().splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split("[┃│]", line)[1:-1]]


def test_a_wide_terminal_shows_everything(
    board: Leaderboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    title, _, heads, _, *rows, _, failed = shown(board, 200, monkeypatch)
    assert title.strip() == "grid, by holdout_mse, lowest first"
    swept, figures = ["widths", "optimizer.lr", "kind"], ["holdout_mse", "train_mse", "PCA's mse"]
    last = ["parameters", "epochs", "s", "trial", "run"]
    assert cells(heads) == ["rank", *swept, *figures, *last]
    assert [cells(row)[:7] for row in rows] == [
        ["1", "[3]", "0.1", "mae", "0.1", "0.5", "0.3"],
        ["2", "", "2", "", "0.1", "0.5", "-"],
        ["3", "[3, 2]", "0.1", "mae", "0.2", "0.5", "0.1 better"],
    ]
    assert failed == 'failed: optimizer.lr 1: no, this: "x"'


def test_a_narrow_terminal_drops_optional_columns_and_wraps_no_number(
    board: Leaderboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(board, 90, monkeypatch)
    swept = ["widths", "optimizer.lr", "kind"]
    assert cells(lines[2]) == ["rank", *swept, "holdout_mse", "PCA's mse", "s", "run"]
    assert max(map(len, lines)) <= 90
    rows = [cells(line) for line in shown(board, 50, monkeypatch) if "│" in line]
    assert ["0.2", "0.1 better", "0.5"] in [row[-3:] for row in rows]


def test_no_swept_value_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by a column of figures of that name, nor as markup; a metric of 0 is one, too."""
    values = {"train.epochs": 100, "model.network.activation": ["tanh", "relu"]}
    made = ranked(
        "grid", "holdout_fvu", [entry("a", 0.0, values=values, holdout_fvu=0.0, epochs=37)]
    )
    lines = shown(made, 200, monkeypatch)
    found = dict(zip(cells(lines[2]), cells(lines[4]), strict=True))
    assert found["train.epochs"] == "100"
    assert found["epochs"] == "37"
    assert found["activation"] == "[tanh, relu]"
    assert (found["holdout_mse"], found["holdout_fvu"]) == ("0", "0")


def test_a_date_among_the_values_is_shown(tmp_path: Path) -> None:
    odd = Entry(trial="", status="failed", values={"train.epochs": datetime.date(2024, 1, 1)})
    assert format_values(odd.values) == 'epochs "2024-01-01"'
    ranked("grid", "holdout_mse", [odd]).save(str(tmp_path))
