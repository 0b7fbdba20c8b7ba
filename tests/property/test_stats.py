"""Figures of any split of the rows merge to the figures of the whole, which are NumPy's."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hourglass.data.stats import HEAD_ROWS, MOST_LEVELS, Stats, measure, merge_all
from hourglass.errors import DataError

CELLS = {
    "float64": st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, -np.inf]),
    "float32": st.floats(-1e6, 1e6, width=32) | st.just(np.nan),
    "uint8": st.integers(0, 255),
}


@st.composite
def split_matrix(draw: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    dtype = draw(st.sampled_from(sorted(CELLS)))
    shape = (draw(st.integers(1, 40)), draw(st.integers(1, 4)))
    rows = draw(arrays(dtype, shape, elements=CELLS[dtype]))
    cuts = sorted(draw(st.lists(st.integers(0, len(rows)), max_size=5)))
    return rows, np.split(rows, cuts)  # cuts may repeat: empty parts


@given(split_matrix())
def test_any_split_merges_to_numpys_figures(given: tuple[np.ndarray, list[np.ndarray]]) -> None:
    rows, parts = given
    cells = rows.astype(np.float64)
    masked = np.ma.masked_array(cells, ~np.isfinite(cells))
    count = masked.count(0)
    for stats in (measure(rows), merge_all(map(measure, parts))):
        assert {array.dtype for array in stats.arrays().values()} == {np.dtype(np.float64)}
        assert stats.count.tolist() == count.tolist()
        assert stats.missing.tolist() == (len(rows) - count).tolist()
        assert stats.low.tolist() == masked.min(0).filled(np.inf).tolist()
        assert stats.high.tolist() == masked.max(0).filled(-np.inf).tolist()
        largest = float(np.abs(masked).max()) if masked.count() else 0.0
        close = {"rtol": 1e-12, "atol": 1e-12 * max(1.0, largest)}
        np.testing.assert_allclose(stats.mean, masked.mean(0).filled(0.0), **close)
        np.testing.assert_allclose(stats.sd, masked.std(0).filled(0.0), **close)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_long_columns_are_exact_and_merge_in_order(dtype: str) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (65_536, 3)).astype(dtype)
    rows[:, 2] = 255
    whole, parts = measure(rows), merge_all(map(measure, np.array_split(rows, 7)))
    deviations = rows.astype(np.int64) * len(rows) - rows.sum(0, dtype=np.int64)
    exact = (deviations.astype(object) ** 2).sum(0) / len(rows) ** 2
    tolerance = 1e-14 if dtype == "uint8" else 1e-11
    np.testing.assert_allclose(whole.m2, exact.astype(float), rtol=tolerance)
    np.testing.assert_allclose(parts.m2, whole.m2, rtol=1e-11)
    np.testing.assert_allclose(parts.mean, rows.mean(0, dtype=np.float64), rtol=1e-13)


@given(st.floats(-1e30, 1e30), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_a_constant_column_has_its_value_as_mean_and_no_spread(
    value: float, lengths: list[int]
) -> None:
    stats = merge_all(measure(np.full((length, 1), value)) for length in lengths)
    assert (stats.mean[0], stats.sd[0], stats.constant[0]) == (value, 0.0, True)


def test_a_distant_mean_keeps_its_digits() -> None:
    rows = 1e9 + np.random.default_rng(1).normal(size=(1000, 1))
    np.testing.assert_allclose(measure(rows).sd, rows.std(0), rtol=1e-12)
    naive = np.sqrt((rows**2).mean(0) - rows.mean(0) ** 2)
    assert abs(naive - rows.std(0)) > 0.1  # the control: the textbook formula loses them all


@given(split_matrix())
def test_few_distinct_values_are_counted_whatever_the_split(
    given: tuple[np.ndarray, list[np.ndarray]],
) -> None:
    rows, parts = given
    rounded = [np.round(part.astype(float) / 1e5) for part in (rows, *parts)]
    for stats in (
        measure(rounded[0], True),
        merge_all(measure(part, True) for part in rounded[1:]),
    ):
        expected = [len(np.unique(column[np.isfinite(column)])) for column in rounded[0].T]
        assert stats.distinct.tolist() == [min(found, MOST_LEVELS + 1) for found in expected]


def test_many_distinct_values_are_seen_behind_the_first_rows() -> None:
    """A column of one value in its head, and one that has too many there."""
    late = np.zeros((HEAD_ROWS + 40, 3), np.uint8)
    late[HEAD_ROWS:, 0] = np.arange(40)
    late[:, 1] = np.arange(len(late)) % 50
    assert measure(late, True).distinct.tolist() == [MOST_LEVELS + 1, MOST_LEVELS + 1, 1]
    assert measure(late[:, 2:], True).merge(measure(late[:0, 2:], True)).distinct.tolist() == [1]
    assert measure(late).values.size == 0


@given(
    st.sampled_from([0.1, 2.0**52, 2.0**53, 2.0**54 - 8, 2.0**55, -(2.0**24), 1.7e12]),
    st.sampled_from([np.float32, np.float64]),
    st.lists(st.integers(-12, 12), min_size=1, max_size=12),
    st.sampled_from([0.25, 0.5, 1.0]),
)
def test_what_counts_as_constant_is_the_same_for_any_split(
    value: float, dtype: Any, offsets: list[int], unit: float
) -> None:
    """Also where one part holds whole numbers only and another fractions, around 2^52."""
    steps = np.array(offsets) * unit * max(1.0, np.spacing(dtype(value)))
    rows = (dtype(value) + steps.astype(dtype))[:, None]
    whole = bool((rows == np.trunc(rows)).all())
    largest = np.abs(rows).max()
    exact = whole and largest <= (2.0**24 if dtype == np.float32 else 2.0**54)
    spread = float(rows.max()) - float(rows.min())
    expected = spread <= (0.0 if exact else 8 * float(np.spacing(largest)))
    for cut in range(len(rows)):
        assert bool(measure(rows[:cut]).merge(measure(rows[cut:])).constant[0]) == expected
    each = merge_all(measure(row[None]) for row in rows)
    assert bool(each.constant[0]) == expected


def test_nothing_to_merge() -> None:
    with pytest.raises(DataError, match="^no rows: every shard is empty$"):
        merge_all([])
    empty = measure(np.zeros((0, 2)))
    assert isinstance(empty, Stats)
    assert empty.count.tolist() == [0, 0]
    assert empty.constant.tolist() == [True, True]
