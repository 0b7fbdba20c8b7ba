"""What the estimator takes for numbers, and what it keeps when a fit fails, ends early, or is moved."""

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from hourglass import Autoencoder, load
from hourglass.data import arrays
from hourglass.errors import DataError, SpecError, TrainingError
from hourglass.estimator import InputError
from hourglass.inference.pyfunc import Pyfunc
from hourglass.training import loop

NAMES = ["a", "b", "c"]
DAY = datetime.datetime(2024, 1, 1)


@pytest.fixture(scope="module", name="X")
def _rows() -> np.ndarray:
    return np.random.default_rng(0).normal(5.0, 2.0, (200, 3))


def make(**parameters: Any) -> Autoencoder:
    return Autoencoder(**{"widths": (2,), "epochs": 3, "random_state": 7, **parameters})


def masked(X: np.ndarray, hidden: float = 1e20) -> Any:
    """X with row 3 of 'b' and row 9 of 'c' masked, and `hidden` behind the mask."""
    mask = np.zeros(X.shape, bool)
    mask[3, 1] = mask[9, 2] = True
    return np.ma.masked_array(np.where(mask, hidden, X), mask)


def test_masked_cells_are_missing_cells(X: np.ndarray) -> None:
    hidden, holes = masked(X), masked(X).filled(np.nan)
    with pytest.raises(InputError, match=r"row 3, 'x\[1\]': found nan .2 such rows."):
        make().fit(hidden)
    ae = make(missing="mean").fit(hidden)
    assert ae.dataset_["imputed_cells"] == 2
    scores = make(missing="mean").fit(holes).anomaly(holes)
    for rows in (hidden, list(hidden), masked(X, -5.0)):
        assert ae.anomaly(rows).tolist() == scores.tolist()
    predictor = ae.predictor_
    assert predictor.anomaly(hidden).tolist() == scores.tolist()
    assert Pyfunc(predictor).predict(hidden, {"output": "anomaly"}).tolist() == scores.tolist()
    assert make(missing="drop_row").fit(hidden).dataset_["dropped_rows"] == 2
    seen = arrays.unmasked(np.ma.masked_array(np.array([[1, 2]], np.int64), [[True, False]]))
    assert (seen.dtype, np.isnan(seen).tolist()) == (np.float64, [[True, False]])
    nothing = np.ma.masked_array(X, False)
    assert make().fit(nothing).anomaly(X).tolist() == make().fit(X).anomaly(X).tolist()


WRONG = {
    "text": (["x"] * 200, r"'gamma' is (large_)?string"),
    "digits": (["1", "2"] * 100, r"'gamma' is (large_)?string"),
    "dates": ([DAY] * 200, r"'gamma' is timestamp\[.s\]"),
    "days": ([DAY.date()] * 200, r"'gamma' is date32\[day\]"),
    "durations": ([DAY - DAY] * 200, r"'gamma' is duration\[.s\]"),
    "bytes": ([b"1"] * 200, r"'gamma' is (large_)?binary"),
    "lists": ([[1.0, 2.0]] * 200, r"'gamma' is (large_)?list<"),
    "records": ([{"x": 1}] * 200, r"'gamma' is struct<"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("of", ["pandas", "polars", "arrow"])
def test_columns_that_are_no_numbers_are_refused_by_name(X: np.ndarray, of: str, kind: str) -> None:
    values, printed = WRONG[kind]
    columns = {"a": X[:, 0], "gamma": values, "b": X[:, 1]}
    table: Any = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "arrow": pa.table}[of](columns)
    with pytest.raises(
        InputError, match=f"^column {printed}.*: a feature needs numbers or booleans"
    ):
        make().fit(table)
    fitted = make().fit(pd.DataFrame(X, columns=["a", "gamma", "b"]))
    with pytest.raises(InputError, match=f"^column {printed}"):
        fitted.anomaly(table)
    with pytest.raises(DataError, match=f"^column {printed}"):
        fitted.predictor_.from_columns(table)


def test_every_column_that_is_no_number_is_named_at_once(X: np.ndarray) -> None:
    frame = pd.DataFrame(X, columns=NAMES).assign(
        day=DAY, word="x", kind=pd.Series(["x", "y"] * 100, dtype="category"), mixed=[1, "x"] * 100
    )
    with pytest.raises(InputError) as caught:
        make().fit(frame)
    text = str(caught.value)
    assert text.startswith("columns 'day' is timestamp[")
    assert "'word' is large_string, 'kind' is dictionary<" in text
    assert text.endswith(
        "'mixed' is object: a feature needs numbers or booleans; leave them out, or convert them to numbers"
    )


@pytest.mark.parametrize(
    ("rows", "printed"),
    [
        ([[1.0, "2"], [3.0, "4"]], r"^column x\[1\] is str: a feature needs numbers or booleans"),
        (np.array([["1", "2"]], object), r"^columns x\[0\] is str, x\[1\] is str: "),
        (np.array([["1", "2"]]), r"^columns x\[0\] is <U1, x\[1\] is <U1: "),
        (np.array([[1, DAY]], object), r"^column x\[1\] is datetime: "),
        (
            np.zeros((2, 2), "M8[s]"),
            r"^columns x\[0\] is datetime64\[s\], x\[1\] is datetime64\[s\]",
        ),
        (np.zeros((2, 2), "m8[s]"), r"^columns x\[0\] is timedelta64\[s\]"),
    ],
    ids=["list", "objects", "text", "date", "dates", "durations"],
)
def test_text_and_dates_without_names_are_no_numbers(rows: Any, printed: str) -> None:
    """The control: NumPy makes numbers of all of them but the date among objects."""
    if not (
        isinstance(rows, np.ndarray) and rows.dtype == object and isinstance(rows[0, 1], object)
    ):
        np.asarray(rows).astype(float)
    with pytest.raises(InputError, match=printed):
        make().fit(rows)


NUMBERS = {
    "decimals": [Decimal("1.25"), Decimal("2.5")] * 100,
    "booleans": [True, False] * 100,
    "bytes": np.array([1, 255] * 100, np.uint8),
    "large": np.array([2**53, 2**53 - 1] * 100, np.int64),
}


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("of", ["pandas", "polars", "arrow"])
def test_numbers_of_every_kind_are_read_alike(X: np.ndarray, of: str, kind: str) -> None:
    columns = {"a": X[:, 0], "gamma": NUMBERS[kind]}
    table: Any = {"pandas": pd.DataFrame, "polars": pl.DataFrame, "arrow": pa.table}[of](columns)
    plain = np.column_stack([X[:, 0], np.asarray(NUMBERS[kind]).astype(float)])
    found = make().fit(table)
    assert found.anomaly(table).tolist() == make().fit(plain).anomaly(plain).tolist()
    assert found.predictor_.feature_names == ["a", "gamma"]


def test_nulls_of_frames_are_missing(X: np.ndarray) -> None:
    holes = X.copy()
    holes[4, 1] = np.nan
    frame = pd.DataFrame(holes, columns=NAMES)
    nullable = frame.convert_dtypes(dtype_backend="numpy_nullable").assign(
        b=frame.b.astype("Float64")
    )
    expected = make(missing="mean").fit(frame).anomaly(frame).tolist()
    for table in (nullable, pl.from_pandas(frame), pa.Table.from_pandas(frame)):
        assert make(missing="mean").fit(table).anomaly(table).tolist() == expected
        with pytest.raises(InputError, match="row 4, 'b': found nan"):
            make().fit(table)


def test_sparse_columns_are_numbers(X: np.ndarray) -> None:
    frame = pd.DataFrame(X.round(), columns=NAMES)
    sparse = frame.astype({"b": pd.SparseDtype(float, 0.0)})
    assert make().fit(sparse).anomaly(sparse).tolist() == make().fit(frame).anomaly(frame).tolist()


@pytest.mark.parametrize(
    "cells",
    [
        [1, 2.5, True, False, Decimal("0.5")] * 40,
        np.arange(200, dtype=">i4"),
        np.arange(200, dtype=np.longdouble),
        [2**70, 1] * 100,
    ],
    ids=["of several kinds", "other byte order", "long double", "beyond int64"],
)
def test_unusual_numbers_are_numbers(X: np.ndarray, cells: Any) -> None:
    frame = pd.DataFrame({"a": X[:, 0], "b": cells})
    expected = np.column_stack([X[:, 0], [float(cell) for cell in cells]])
    assert (
        make().fit(frame).anomaly(frame).tolist() == make().fit(expected).anomaly(expected).tolist()
    )


def test_lists_with_none_are_rows_with_missing_cells(X: np.ndarray) -> None:
    holes = X.copy()
    holes[3, 1] = np.nan
    lists = [[None if np.isnan(cell) else cell for cell in row] for row in holes.tolist()]
    ae = make(missing="mean").fit(lists)
    assert ae.dataset_["imputed_cells"] == 1
    assert ae.anomaly(lists).tolist() == ae.anomaly(holes).tolist()


def test_vectors_in_any_table_are_rows_for_pyfunc(X: np.ndarray) -> None:
    ae = make(missing="mean").fit(pd.DataFrame({"v": list(X)}))
    expected = ae.anomaly(X).tolist() if ae.n_features_in_ == 3 else None
    for table in (
        {"v": X},
        {"v": X.tolist()},
        pd.DataFrame({"v": list(X)}),
        pl.DataFrame({"v": X}),
        pa.table({"v": X.tolist()}),
    ):
        found = Pyfunc(ae.predictor_).predict(table, {"output": "anomaly"})
        assert found.tolist() == expected
    hidden = masked(X)
    scores = Pyfunc(ae.predictor_).predict({"v": hidden}, {"output": "anomaly"})
    assert scores.tolist() == ae.predictor_.anomaly(hidden.filled(np.nan)).tolist()


def test_quantiles_that_no_fit_takes_move_nothing(X: np.ndarray, tmp_path: Path) -> None:
    ae = make().fit(X)
    first = ae.threshold_
    for wrong in (0.0, 1.0, True, -1, 2.0, np.nan, None, "0.95"):
        with pytest.warns(UserWarning, match="takes effect with the next fit"):
            ae.set_params(quantile=wrong)
        assert ae.threshold_ == first
    with pytest.raises(ValueError, match="Invalid parameter 'bogus'"):
        ae.set_params(quantile=0.5, bogus=1)
    assert ae.threshold_ == first
    ae.save(tmp_path / "model")
    assert Autoencoder.load(tmp_path / "model").threshold_ == first
    for wrong in (None, "x", True):
        with pytest.raises(InputError, match="threshold_: found .*, allowed are finite numbers"):
            ae.threshold_ = wrong


def test_an_interrupt_after_the_look_at_the_holdout_keeps_the_epoch_before(
    X: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, seen = loop.watch, []

    def interrupted(*arguments: Any) -> None:
        look(*arguments)
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "watch", interrupted)
    with pytest.warns(UserWarning, match="interrupted after epoch 2/50"):
        ae = make(epochs=50).fit(X)
    monkeypatch.undo()
    assert len(ae.history_) == 2
    assert ae.anomaly(X).tolist() == make(epochs=2).fit(X).anomaly(X).tolist()


def test_without_a_holdout_an_interrupt_keeps_the_weights_of_its_record(
    X: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, 5)
    with pytest.warns(UserWarning, match="interrupted after epoch 1/50"):
        ae = make(epochs=50, holdout=0.0, batch_size=64).fit(X)
    monkeypatch.undo()
    assert (
        ae.anomaly(X).tolist()
        == make(epochs=1, holdout=0.0, batch_size=64).fit(X).anomaly(X).tolist()
    )


def test_two_columns_of_one_name(X: np.ndarray) -> None:
    with pytest.raises(InputError, match="^column 'a' occurs 2 times; names must be unique$"):
        make().fit(pd.DataFrame(X, columns=["a", "a", "b"]))


def test_a_failed_fit_leaves_the_old_model_whole(X: np.ndarray) -> None:
    old, new = pd.DataFrame(X, columns=NAMES), pd.DataFrame(X, columns=["p", "q", "r"])
    ae = make().fit(old)
    scores, state = ae.anomaly(old).tolist(), set(vars(ae))
    for parameters, rows, error in (
        ({"lr": 1e30, "optimizer": "sgd"}, new, TrainingError),
        ({"epochs": -1}, new, SpecError),
        ({}, new.assign(r=np.nan), InputError),
        ({}, new.assign(r="x"), InputError),
        ({}, new.iloc[:0], ValueError),
    ):
        with pytest.raises(error):
            ae.set_params(**parameters).fit(rows)
        ae.set_params(lr=None, optimizer="adam", epochs=3)
        assert ae.anomaly(old).tolist() == scores
        assert list(ae.feature_names_in_) == NAMES
        assert set(vars(ae)) == state
        with pytest.raises(ValueError, match="feature names should match"):
            ae.anomaly(new)
    fresh = make(lr=1e30, optimizer="sgd")
    with pytest.raises(TrainingError):
        fresh.fit(new)
    assert not [name for name in vars(fresh) if name.endswith("_")]  # not fitted, and not a bit


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C in the given step of this process, counted from 0 over all members."""
    take, taken = loop.train_step, []

    def interrupted(*arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == step + 1:
            raise KeyboardInterrupt
        return take(*arguments)

    monkeypatch.setattr(loop, "train_step", interrupted)


def test_an_interrupted_fit_keeps_what_was_trained(
    X: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = -(-int(make().fit(X).dataset_["train_rows"]) // 64)
    interrupt(monkeypatch, 4 * steps + 1)
    printed = r"^interrupted after epoch 4/100  loss 0.* the fit ends with the best weights so far$"
    with pytest.warns(UserWarning, match=printed):
        ae = make(epochs=100, batch_size=64).fit(X)
    monkeypatch.undo()
    assert len(ae.history_) == 4
    four = make(epochs=4, batch_size=64).fit(X)  # the same steps, with the same best epoch
    assert ae.anomaly(X).tolist() == four.anomaly(X).tolist()
    assert ae.threshold_ == four.threshold_
    ae.save(tmp_path / "model")
    assert Autoencoder.load(tmp_path / "model").anomaly(X).tolist() == ae.anomaly(X).tolist()


def test_an_interrupt_before_an_epoch_is_done_is_an_interrupt(
    X: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    ae = make().fit(X)
    scores = ae.anomaly(X).tolist()
    interrupt(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        ae.fit(X + 1.0)
    assert ae.anomaly(X).tolist() == scores


@pytest.mark.parametrize(("step", "members"), [(3, 1), (4, 2)])
def test_an_interrupted_ensemble_has_the_members_that_began(
    X: np.ndarray, monkeypatch: pytest.MonkeyPatch, step: int, members: int
) -> None:
    """Three steps a member: the interrupt comes as the second begins, and within its second epoch."""
    interrupt(monkeypatch, step)
    with pytest.warns(UserWarning, match="interrupted after epoch"):
        ae = make(seeds=3, batch_size=256).fit(X)
    monkeypatch.undo()
    assert len(ae.predictor_.members) == members
    assert np.isfinite(ae.anomaly(X)).all()


def test_a_threshold_that_was_set_survives(X: np.ndarray, tmp_path: Path) -> None:
    ae = make().fit(X)
    ae.threshold_ = 0.125
    path = tmp_path / "model"
    ae.save(path)
    again = Autoencoder.load(path)
    assert (again.threshold_, load(str(path)).threshold) == (0.125, 0.125)
    scores = load(str(path)).score(X)
    assert scores.is_anomaly.tolist() == (scores.score > 0.125).tolist()
    with pytest.raises(InputError, match="threshold_: found nan, allowed are finite numbers"):
        ae.threshold_ = np.nan
    assert ae.threshold_ == 0.125
    assert ae.fit(X).threshold_ != 0.125


def test_a_quantile_that_is_set_moves_the_threshold_or_says_that_it_does_not(
    X: np.ndarray, tmp_path: Path
) -> None:
    ae = make().fit(X)
    first = ae.threshold_
    kept = ae.predictor_.artifact.manifest.calibration.quantiles
    ae.set_params(quantile=0.9)
    assert ae.threshold_ == kept["0.9"] == make(quantile=0.9).fit(X).threshold_ < first
    ae.save(tmp_path / "model")
    again = Autoencoder.load(tmp_path / "model")
    assert (again.quantile, again.threshold_) == (0.9, kept["0.9"])
    with pytest.warns(
        UserWarning, match="quantile=0.97 takes effect with the next fit: threshold_"
    ):
        ae.set_params(quantile=0.97)
    assert ae.threshold_ == kept["0.9"]
    assert ae.fit(X).threshold_ == make(quantile=0.97).fit(X).threshold_
    ae.set_params(quantile=0.99)
    assert ae.threshold_ == first
    make().set_params(quantile=0.97)  # nothing is fitted, nothing to say


def test_an_imputed_cell_says_so_where_it_takes_a_share(X: np.ndarray) -> None:
    holes = pd.DataFrame(X, columns=NAMES)
    holes.loc[3, "b"], holes.loc[9, "c"] = np.nan, 1e300
    ae = make(missing="mean").fit(holes)
    found = ae.predictor_.score(holes.to_numpy(), feature_errors=True)
    assert np.argwhere(found.imputed).tolist() == [[3, 1], [9, 2]]
    parts, errors = ae.feature_errors(holes)
    np.testing.assert_allclose(parts.sum(axis=1), ae.anomaly(holes), rtol=1e-5)
    assert np.isnan(errors).tolist() == found.imputed.tolist()
    assert parts[3, 1] > 0.0
