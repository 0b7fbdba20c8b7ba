"""Scaling against NumPy, its inverse, constant columns and missing cells."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hourglass.model.preprocessing import (
    ColumnStats,
    Divide,
    NoScaling,
    Preprocessing,
    Range,
    Standard,
    Unit,
)

RNG = np.random.default_rng(3)
ROWS = RNG.normal([0.0, 50.0, -3.0, 0.0], [1.0, 20.0, 0.1, 1.0], (40, 4))
ROWS[:, 3] = 6.5  # constant

SCALINGS: list[tuple[Any, Callable[[np.ndarray], np.ndarray]]] = [
    (NoScaling(), lambda x: x),
    (Range(), lambda x: (x - x.mean(0)) / nonzero(np.ptp(x, axis=0))),
    (Unit(), lambda x: (x - x.min(0)) / nonzero(np.ptp(x, axis=0))),
    (Standard(), lambda x: (x - x.mean(0)) / nonzero(x.std(0))),
    (Divide(by=255), lambda x: x / 255),
]
each_scaling = pytest.mark.parametrize(
    ("scaling", "expected"), SCALINGS, ids=[scaling.kind for scaling, _ in SCALINGS]
)


def nonzero(spread: np.ndarray) -> np.ndarray:
    return np.where(spread > 1e-12, spread, 1.0)


def exact_stats(rows: np.ndarray) -> ColumnStats:
    """As data/stats gives them: a constant column has spread 0 to the last bit."""
    constant = rows.min(0) == rows.max(0)
    sd = np.where(constant, 0.0, rows.std(0))
    mean = np.where(constant, rows.min(0), rows.mean(0))
    return ColumnStats(mean, sd, rows.min(0), rows.max(0))


STATS = exact_stats(ROWS)


@each_scaling
@pytest.mark.parametrize("drop", [False, True], ids=["keep", "drop"])
def test_scaling_is_numpys_and_has_an_inverse(
    scaling: Any, expected: Callable[[np.ndarray], np.ndarray], drop: bool
) -> None:
    preprocessing = Preprocessing.fit(scaling, STATS, drop_constant=drop)
    kept = [0, 1, 2] if drop else [0, 1, 2, 3]
    assert preprocessing.kept_F.tolist() == kept
    for dtype in (torch.float32, torch.float64):
        rows = torch.from_numpy(ROWS).to(dtype)
        scaled = preprocessing(rows)
        assert scaled.dtype == torch.float32
        np.testing.assert_allclose(scaled, expected(ROWS)[:, kept], rtol=1e-4, atol=1e-5)
        back = preprocessing.inverse(scaled)
        assert back.shape == rows.shape
        np.testing.assert_allclose(back, ROWS, rtol=1e-5, atol=1e-5)


@each_scaling
def test_bounds_are_the_scaled_extremes(
    scaling: Any, expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    preprocessing = Preprocessing.fit(scaling, STATS, drop_constant=False)
    scaled = expected(ROWS)
    np.testing.assert_allclose(preprocessing.low_F, scaled.min(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(preprocessing.high_F, scaled.max(0), rtol=1e-4, atol=1e-5)


@each_scaling
@pytest.mark.parametrize("drop", [False, True], ids=["keep", "drop"])
def test_range_ratio_turns_errors_into_range_space(
    scaling: Any, expected: Callable[[np.ndarray], np.ndarray], drop: bool
) -> None:
    preprocessing = Preprocessing.fit(scaling, STATS, drop_constant=drop)
    other = ROWS + RNG.normal(0, 0.1, ROWS.shape)
    error = preprocessing(torch.from_numpy(other)) - preprocessing(torch.from_numpy(ROWS))
    in_range = (other - ROWS) / nonzero(np.ptp(ROWS, axis=0))
    found = error * preprocessing.range_ratio_F
    np.testing.assert_allclose(found, in_range[:, preprocessing.kept_F], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("drop", [False, True], ids=["keep", "drop"])
@pytest.mark.parametrize("cell", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_missing_cells_become_the_columns_mean(cell: float, dtype: Any, drop: bool) -> None:
    preprocessing = Preprocessing.fit(Unit(), STATS, drop_constant=drop)
    rows = ROWS[:3].astype(dtype)
    rows[1, 2] = cell
    scaled = preprocessing(torch.from_numpy(rows))
    mean = (ROWS[:, 2].mean() - ROWS[:, 2].min()) / np.ptp(ROWS[:, 2])
    assert float(scaled[1, 2]) == pytest.approx(mean, abs=1e-4)
    rows[1, 2] = 0.0
    others = preprocessing(torch.from_numpy(rows))
    scaled[1, 2] = others[1, 2]
    assert torch.equal(scaled, others)


@pytest.mark.parametrize("drop", [False, True], ids=["keep", "drop"])
def test_every_integer_type_gives_the_bits_of_float32(drop: bool) -> None:
    rows = RNG.integers(0, 128, (64, 9))
    rows[:, 4] = 100
    preprocessing = Preprocessing.fit(Range(), exact_stats(rows.astype(np.float64)), drop)
    expected = preprocessing(torch.from_numpy(rows.astype(np.float32)))
    assert expected.shape == (64, 8 if drop else 9)
    for dtype in (np.uint8, np.int8, np.int16, np.int32, np.int64):
        found = preprocessing(torch.from_numpy(rows.astype(dtype)))
        assert torch.equal(found, expected), dtype
    wide = preprocessing(torch.from_numpy(rows.astype(np.float64)))
    torch.testing.assert_close(wide, expected, rtol=1e-6, atol=1e-7)


def test_a_dropped_column_returns_at_its_constant_whatever_the_row_held() -> None:
    preprocessing = Preprocessing.fit(Standard(), STATS, drop_constant=True)
    rows = torch.from_numpy(ROWS.copy())
    rows[:, 3] = 99.0
    assert preprocessing.inverse(preprocessing(rows))[:, 3].unique().tolist() == [6.5]


def test_buffers_travel_with_the_weights() -> None:
    fitted = Preprocessing.fit(Range(), STATS, drop_constant=True)
    empty = Preprocessing(4, 3)
    empty.load_state_dict(fitted.state_dict())
    rows = torch.from_numpy(ROWS)
    assert torch.equal(empty(rows), fitted(rows))
    assert torch.equal(empty.inverse(empty(rows)), fitted.inverse(fitted(rows)))
