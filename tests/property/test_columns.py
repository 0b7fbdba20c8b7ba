"""Columns as the world has them: far from zero, tiny, huge, constant, rare, counted, heavy-tailed.

Model space and scores are compared with NumPy in extended precision, and with the same column elsewhere.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from hourglass import Autoencoder, load
from hourglass.config.serve import Limits
from hourglass.data.decode import FLOAT32_MAX
from hourglass.data.manifest import scan
from hourglass.data.stats import measure, merge_all
from hourglass.errors import DataError
from hourglass.inference import parts
from hourglass.inference.endpoints import ModelMetadata
from hourglass.inference.pyfunc import Pyfunc
from hourglass.model.preprocessing import (
    ColumnStats,
    Preprocessing,
    Range,
    Scaling,
    Standard,
    Unit,
)
from hourglass.serving.arrow import decode_arrow, encode_arrow
from hourglass.serving.json_body import decode_json
from hourglass.serving.limits import RequestError

ROWS = 400
SHAPES = {
    "normal": lambda r: r.normal(size=ROWS),
    "uniform": lambda r: r.uniform(size=ROWS),
    "whole": lambda r: r.integers(0, 1000, ROWS).astype(float),
    "rare": lambda r: (r.random(ROWS) < 0.02).astype(float) + np.eye(ROWS)[0],
    "counts": lambda r: r.poisson(0.5, ROWS).astype(float),
    "heavy": lambda r: r.standard_cauchy(ROWS),
}
OFFSETS = (0.0, 1.0, -273.15, 5_500_000.37, 1.7e9, 1.7e12, -(2.0**40), 2.0**52, 2.0**53)


def column(shape: str, exponent: int, offset: float, seed: int) -> np.ndarray:
    made = SHAPES[shape](np.random.default_rng(seed)) * 10.0**exponent + offset
    return np.where(np.abs(made) <= FLOAT32_MAX, made, 0.0)


def fitted(scaling: Scaling, rows: np.ndarray) -> Preprocessing:
    stats = merge_all(map(measure, np.array_split(rows, 3)))
    figures = ColumnStats(stats.mean, stats.sd, stats.low, stats.high, stats.excess, stats.constant)
    return Preprocessing.fit(scaling, figures, drop_constant=False)


def in_model_space(module: Preprocessing, rows: np.ndarray) -> np.ndarray:
    return module(torch.from_numpy(rows)).numpy()


def reference(scaling: Scaling, x: np.ndarray) -> np.ndarray:
    """Model space in extended precision, of a column with more spread than rounding makes."""
    wide = x.astype(np.longdouble) - x.min()
    centre = 0.0 if scaling.kind == "unit" else wide.mean()
    unit = wide.max()
    if scaling.kind == "standard":
        unit = unit * np.sqrt(np.square((wide - wide.mean()) / unit).mean())
    return (wide - centre) / unit


@profile(max_examples=150)
@given(
    st.sampled_from(sorted(SHAPES)),
    st.integers(-300, 37),
    st.sampled_from(OFFSETS),
    st.sampled_from([Range(), Unit(), Standard()]),
    st.integers(0, 5),
)
@example("normal", 0, 2.0**52, Range(), 0)  # fractions in one part of the rows only
def test_model_space_is_that_of_exact_arithmetic(
    shape: str, exponent: int, offset: float, scaling: Scaling, seed: int
) -> None:
    x = column(shape, exponent, offset, seed)
    module = fitted(scaling, x[:, None])
    found = in_model_space(module, x[:, None])[:, 0]
    spread = x.max() - x.min()
    whole = bool((x == np.trunc(x)).all()) and np.abs(x).max() <= 2.0**54
    if spread <= 8 * np.spacing(np.abs(x).max()) and not (whole and spread):
        assert (found == 0.0).all()
        return
    expected = reference(scaling, x)
    np.testing.assert_allclose(found, expected.astype(float), rtol=3e-7, atol=3e-7)
    back = module.inverse(torch.from_numpy(found[:, None])).numpy()[:, 0]
    unit = float(module.scale_F[0])
    tolerance = 3e-7 * unit * np.abs(found.astype(float)).clip(1.0) + np.spacing(np.abs(x).max())
    assert (np.abs(back - x) <= tolerance).all()


def test_float32_shift_was_wrong() -> None:
    """The control: the same column with its mean and scale rounded to float32, as they used to be."""
    x = 1.7e12 + np.random.default_rng(0).uniform(0, 1000, ROWS)
    module = fitted(Range(), x[:, None])
    exact = reference(Range(), x).astype(float)
    np.testing.assert_allclose(in_model_space(module, x[:, None])[:, 0], exact, atol=3e-7)
    module.shift_F.copy_(module.shift_F.float())
    module.rest_F.zero_()
    module.derive()
    assert np.abs(in_model_space(module, x[:, None])[:, 0] - exact).max() > 10.0


CONSTANTS = (0.0, 0.1, -7.0, 20240115.0, 1.7e12 + 123, 2.0**53, 3e38, 1e-47, 5e-324, 1e-300)


@pytest.mark.parametrize("scaling", [Range(), Unit(), Standard()], ids=lambda s: s.kind)
@pytest.mark.parametrize("value", CONSTANTS)
def test_a_constant_is_zero_in_model_space_and_comes_back(value: float, scaling: Scaling) -> None:
    x = np.full((ROWS, 1), value)
    module = fitted(scaling, x)
    assert (in_model_space(module, x) == 0.0).all()
    assert (module.inverse(torch.zeros(3, 1)).numpy() == value).all()


@pytest.mark.parametrize("scaling", [Range(), Unit(), Standard()], ids=lambda s: s.kind)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [0.1, -7.3, 20240115.7, 1.7e12 + 0.25, 3e38, 1e-30])
def test_jitter_of_one_step_counts_as_constant(value: float, dtype: Any, scaling: Scaling) -> None:
    x = np.full((ROWS, 1), value, dtype)
    up, down = dtype(np.inf), dtype(-np.inf)
    x[::3], x[1::3] = np.nextafter(dtype(value), up), np.nextafter(dtype(value), down)
    assert len(np.unique(x)) == 3
    assert merge_all(map(measure, np.array_split(x, 4))).constant.tolist() == [True]
    module = fitted(scaling, x)
    assert (in_model_space(module, x) == 0.0).all()
    apart = x.copy()
    apart[0] = dtype(value) + 100 * np.spacing(dtype(value))  # the control: more than rounding
    assert measure(apart).constant.tolist() == [False]


def test_sums_that_should_be_one_are_constant() -> None:
    """Rows normalised to 1, and means of equal numbers: off by several steps."""
    r = np.random.default_rng(0)
    weights = np.exp(r.normal(size=(ROWS, 9)))
    sums = (weights / weights.sum(1, keepdims=True)).sum(1)
    means = np.array([np.full(k, 0.1).cumsum()[-1] / k for k in range(1, 40)])
    for x in (sums, means, 1e10 + np.round(r.normal(size=ROWS)) * np.spacing(1e10)):
        assert len(np.unique(x)) > 3
        assert measure(x[:, None]).constant.tolist() == [True]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"])
def test_whole_numbers_are_exact_at_every_width(dtype: str) -> None:
    """Two neighbours at the end of what float64 holds are two values, not one with jitter."""
    top = min(int(np.iinfo(dtype).max), 2**53)
    x = np.full((ROWS, 1), top - 1, dtype)
    x[:5] = top
    assert measure(x).constant.tolist() == [False]
    small = (x - (top - 1)).astype(dtype)
    for scaling in (Range(), Unit(), Standard()):
        far = in_model_space(fitted(scaling, x), x.astype(float))
        near = in_model_space(fitted(scaling, small), small.astype(float))
        assert far.tolist() == near.tolist()


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("settings", [{}, {"scaling": "standard"}, {"preset": "anomaly"}], ids=str)
def test_scores_do_not_depend_on_where_a_column_lies(
    offset: float, settings: dict[str, Any]
) -> None:
    r = np.random.default_rng(0)
    base = np.column_stack([r.integers(0, 2000, ROWS) / 2, r.normal(size=(ROWS, 3))])
    far = base.copy()
    far[:, 0] += offset
    near = base.copy()
    near[:, 0] = far[:, 0] - offset  # what is left of it after the rounding of the sum
    widths = {} if settings.get("preset") else {"widths": [2]}
    parameters = {"epochs": 8, "lr": 0.01, "random_state": 0, **widths, **settings}
    scores = [Autoencoder(**parameters).fit(rows).anomaly(rows) for rows in (far, near)]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)


CELLS = {"finite": 0.25, "beyond float32": 1e39, "huge": -1e300, "tiny": 1e-47, "subnormal": 5e-324}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Autoencoder, str]]:
    """A model for each policy, of columns at very different places and scales."""
    made = {}
    for missing in ("error", "mean"):
        ae = Autoencoder(widths=[3], epochs=3, random_state=0, missing=missing).fit(frame())
        path = str(tmp_path_factory.mktemp("model") / missing)
        ae.save(path)
        made[missing] = (ae, path)
    return made


def frame(**cells: float) -> pd.DataFrame:
    r = np.random.default_rng(1)
    rows = pd.DataFrame(
        {
            "ms": 1_700_000_000_000 + r.integers(0, 10_000, ROWS),
            "tiny": r.normal(size=ROWS) * 1e-47,
            "plain": r.normal(size=ROWS),
            "constant": np.full(ROWS, 20240115.0),
            "large": r.normal(size=ROWS) * 1e37,
        }
    )
    for name, cell in cells.items():
        rows.loc[1, name] = cell
    return rows


def surfaces(ae: Autoencoder, path: str, rows: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """The scores, or the refusal, of the same rows on every surface that needs no cluster."""
    predictor = load(path)
    table = pa.Table.from_pandas(rows, preserve_index=False)
    metadata = ModelMetadata.of(predictor, "model", None)
    pq.write_table(table, folder / "rows.parquet")
    item = parts.items(scan(str(folder / "rows.parquet"))[0], 8)[0]
    options = parts.Options(("score",), (), 1.0, predictor.missing, "m", "1", "d")
    out = folder / "out" / "part.parquet"

    def batch() -> Any:
        parts.write(str(out), item, options, predictor)
        return pq.read_table(out).column("score").to_numpy()

    body = json.dumps({"rows": rows.to_dict("records")}).encode()
    stream = encode_arrow({name: table.column(name).combine_chunks() for name in rows}, {})
    asked = {
        "notebook": lambda: ae.anomaly(rows),
        "polars": lambda: ae.anomaly(pl.from_pandas(rows)),
        "loaded": lambda: predictor.anomaly(predictor.from_columns(rows)),
        "batch": batch,
        "pyfunc": lambda: Pyfunc(predictor).predict(rows, {"output": "anomaly"}),
        "json": lambda: predictor.anomaly(decode_json(body, metadata, Limits())),
        "arrow": lambda: predictor.anomaly(decode_arrow(stream, metadata, Limits())),
    }
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = np.asarray(ask()).tolist()
        except (DataError, RequestError) as error:
            assert "plain" in str(error), (name, str(error))
            found[name] = "refused"
    return found


@pytest.mark.parametrize("missing", ["error", "mean"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_surface_gives_the_same_bits(
    cell: str,
    missing: str,
    models: dict[str, tuple[Autoencoder, str]],
    tmp_path: Path,
) -> None:
    found = surfaces(*models[missing], frame(plain=CELLS[cell]), tmp_path)
    first = found["notebook"]
    assert found == dict.fromkeys(found, first)
    beyond = abs(CELLS[cell]) > FLOAT32_MAX
    assert (first == "refused") == (beyond and missing == "error")
    if first != "refused":
        assert np.isfinite(first).all()
    if beyond and missing == "mean":  # as if the cell were not there
        ae, _ = models[missing]
        assert ae.anomaly(frame(plain=np.nan)).tolist() == first


def test_reconstructions_are_in_the_units_of_the_rows(
    models: dict[str, tuple[Autoencoder, str]],
) -> None:
    ae, path = models["error"]
    rows = frame()
    made = ae.reconstruct(rows)
    assert made.dtype == np.float64
    errors = (made - rows.to_numpy()) / np.ptp(rows.to_numpy(), axis=0).clip(1e-300)
    assert np.abs(errors[:, [0, 1, 2, 4]]).max() < 2.0
    assert (made[:, 3] - 20240115.0).std() < 1.0
    assert len(np.unique(made[:, 0])) > ROWS // 2  # float32 would leave one
    assert load(path).reconstruct(rows.to_numpy()).tolist() == made.tolist()


def test_a_column_beyond_float32_is_refused_or_left_out_by_name(tmp_path: Path) -> None:
    rows = frame()
    rows["gone"] = np.linspace(1e300, 2e300, ROWS)
    with pytest.raises(DataError, match=r"row 0, 'gone': found 1e\+300, which is beyond"):
        Autoencoder(widths=[3], epochs=2).fit(rows)
    with pytest.raises(DataError, match="column 'gone': no value in any training row"):
        Autoencoder(widths=[3], epochs=2, missing="mean").fit(rows)


def test_vectors_of_text_are_refused() -> None:
    with pytest.raises(DataError, match="column 'v' holds lists of string"):
        Autoencoder().fit(pa.table({"v": [["a", "b"], ["c", "d"]]}))
