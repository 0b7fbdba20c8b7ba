"""Per-column statistics in one pass: partial results of any split of the rows merge to the same result.

Source of the merge: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm".
Shapes: B rows, C columns.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hourglass.errors import DataError

Float64s = NDArray[np.float64]
ROUNDING = 8.0
"""Rounding error of a sum of a few numbers, in steps of a column's largest value."""
HEAD_ROWS = 512
"""Rows that suffice to find most columns with many distinct values."""
MOST_LEVELS = 32
"""Distinct values of a column that are counted, when requested."""


@dataclass(frozen=True)
class Stats:
    """Statistics of rows, each (C,): cells present, min, max, missing, and mean and spread from the min.

    `excess` is mean - low and `root` the root of the summed squared deviations: both stay precise
    however far from zero a column lies, and however small its spread is. `step` is the distance of
    neighbouring values at the largest: what rounding may add. `rounded` is 1 where it may have: whole
    numbers are exact up to 2^53, and with an offset of that size as exact as their type allows. `values`
    are the first distinct values of each column, MOST_LEVELS + 1 at most, flat; empty unless requested.
    """

    count: Float64s
    low: Float64s
    high: Float64s
    excess: Float64s
    root: Float64s
    step: Float64s
    rounded: Float64s
    missing: Float64s
    values: Float64s

    @property
    def mean(self) -> Float64s:
        """The mean; 0 for a column without values."""
        return np.where(self.count > 0, self.low + self.excess, 0.0)

    @property
    def m2(self) -> Float64s:
        """Sum of the squared deviations from the mean."""
        return np.square(self.root)

    @property
    def sd(self) -> Float64s:
        """Standard deviation of the population."""
        return self.root / np.sqrt(np.maximum(self.count, 1.0))

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Columns with a single value, or several that differ by rounding only, or none at all."""
        return np.asarray(self.high - self.low <= ROUNDING * self.step * self.rounded)

    @property
    def distinct(self) -> NDArray[np.int64]:
        """Distinct values of each column, MOST_LEVELS + 1 for more. Raises ValueError unless requested."""
        known = self.values.reshape(len(self.count), MOST_LEVELS + 1)
        return np.asarray((~np.isnan(known)).sum(axis=1))

    def merge(self, other: "Stats") -> "Stats":
        """The statistics of the rows of both."""
        count = self.count + other.count
        share = np.divide(other.count, count, out=np.zeros_like(count), where=count > 0)
        low = np.minimum(self.low, other.low)
        mine, its = self._above(low), other._above(low)
        delta = np.where((self.count > 0) & (other.count > 0), its - mine, 0.0)
        apart = np.abs(delta) * np.sqrt(self.count * share)
        return Stats(
            count=count,
            low=low,
            high=np.maximum(self.high, other.high),
            excess=np.where(self.count > 0, mine, its) + delta * share,
            root=np.hypot(np.hypot(self.root, other.root), apart),
            step=np.maximum(self.step, other.step),
            rounded=np.maximum(self.rounded, other.rounded),
            missing=self.missing + other.missing,
            values=_both(self.values, other.values, len(low)),
        )

    def _above(self, low: Float64s) -> Float64s:
        """How far the mean lies above `low`; 0 without a value."""
        known = self.count > 0
        return np.subtract(self.low, low, out=np.zeros_like(low), where=known) + self.excess

    def arrays(self) -> dict[str, Float64s]:
        """The arrays by name, for a table row or a file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def measure(features: NDArray[Any], levels: bool = False) -> Stats:
    """Statistics of the rows `features` (B, C); NaN and infinite cells count as missing.

    Two passes, from the lowest value: a constant column has exactly its value as mean, and no spread.
    With `levels` also the first distinct values of each column.
    """
    columns = features.shape[1]
    values = _first_values(features) if levels else np.empty(0)
    if not len(features):
        zero = np.zeros(columns)
        return Stats(zero, zero + np.inf, zero - np.inf, zero, zero, zero, zero, zero, values)
    if features.dtype == np.uint8:
        return replace(_measure_bytes(features), values=values)
    return replace(_measure_numbers(features), values=values)


def _first_values(features: NDArray[Any]) -> Float64s:
    """The lowest distinct values of each column, flat; of one with more than that, any of them."""
    cells = np.where(np.isfinite(features), features, np.nan).astype(np.float64)
    found = _distinct(np.ascontiguousarray(cells[:HEAD_ROWS].T))
    for column in np.flatnonzero(np.isnan(found[:, -1])):  # the others already have too many
        some = np.unique(cells[:, column])[: MOST_LEVELS + 1]
        found[column] = np.nan
        found[column, : len(some)] = some
    return found.ravel()


def _distinct(cells: Float64s) -> Float64s:
    """Of each row of `cells` the lowest distinct values, MOST_LEVELS + 1 of them, then NaN."""
    cells = np.sort(np.pad(cells, ((0, 0), (0, MOST_LEVELS + 1)), constant_values=np.nan), axis=1)
    again = cells[:, 1:] == cells[:, :-1]
    cells[:, 1:][again] = np.nan
    return np.sort(cells, axis=1)[:, : MOST_LEVELS + 1]


def _both(first: Float64s, second: Float64s, columns: int) -> Float64s:
    if not first.size or not second.size:
        return first[:0]
    parts = [values.reshape(columns, -1) for values in (first, second)]
    return _distinct(np.concatenate(parts, axis=1)).ravel()


def _measure_numbers(features: NDArray[Any]) -> Stats:
    values = features.astype(np.float64)
    gone = ~np.isfinite(values)
    holes = bool(gone.any())
    missing = gone.sum(axis=0, dtype=np.float64)
    count = len(values) - missing
    present: Any = ~gone if holes else True
    low = values.min(axis=0, initial=np.inf, where=present)
    high = values.max(axis=0, initial=-np.inf, where=present)
    step = _step(low, high, features.dtype)
    rounded = _rounded(values, low, high, step, features.dtype)
    values -= np.where(count > 0, low, 0.0)
    if holes:
        values[gone] = 0.0
    excess = values.sum(axis=0) / np.maximum(count, 1.0)
    values -= excess
    if holes:
        values[gone] = 0.0
    unit = _unit(low, high)
    if (unit != 1.0).any():
        values /= unit
    root = unit * np.sqrt(np.einsum("bc,bc->c", values, values))
    return Stats(count, low, high, excess, root, step, rounded, missing, np.empty(0))


def _unit(low: Float64s, high: Float64s) -> Float64s:
    """Divisor of deviations before they are squared, so that squares neither overflow nor vanish."""
    spread = np.where(high > low, high - low, 1.0)
    return np.where((spread < 1e-100) | (spread > 1e100), spread, 1.0)


def _step(low: Float64s, high: Float64s, dtype: "np.dtype[Any]") -> Float64s:
    """The distance from the largest value to the next in `dtype`; 0 without a value."""
    number = dtype if dtype.kind == "f" else np.dtype(np.float64)
    step = np.spacing(_largest(low, high).astype(number)).astype(np.float64)
    return np.where(high >= low, step, 0.0)


def _rounded(
    values: Float64s, low: Float64s, high: Float64s, step: Float64s, dtype: "np.dtype[Any]"
) -> Float64s:
    """1 for columns with a fraction or beyond the whole numbers of `dtype`; looked at where it matters.

    That is where the spread is so small that rounding may have made it. Of a whole column of this kind
    any part has no more than twice its own steps, so that the answer is the same for any split.
    """
    limit = 2.0**24 if dtype.kind == "f" and dtype.itemsize < 8 else 2.0**54
    exact = _largest(low, high) <= limit
    narrow = np.flatnonzero((high - low <= 2 * ROUNDING * step) & exact)
    cells = values[:, narrow]
    exact[narrow] = ((np.trunc(cells) == cells) | ~np.isfinite(cells)).all(axis=0)
    return np.where(exact, 0.0, 1.0)


def _largest(low: Float64s, high: Float64s) -> Float64s:
    return np.where(high >= low, np.maximum(np.abs(low), np.abs(high)), 0.0)


def _measure_bytes(features: NDArray[np.uint8]) -> Stats:
    """Exact: sums of 256 squares fit float32's 24 bits, all the others float64's 53."""
    rows, columns = features.shape
    total, squares = np.zeros(columns), np.zeros(columns)
    for start in range(0, rows, 256):
        wide = features[start : start + 256].astype(np.float32)
        total += wide.sum(axis=0)
        squares += np.einsum("bc,bc->c", wide, wide)
    low, zero = features.min(axis=0).astype(np.float64), np.zeros(columns)
    return Stats(
        count=np.full(columns, float(rows)),
        low=low,
        high=features.max(axis=0).astype(np.float64),
        excess=(total - rows * low) / rows,
        root=np.sqrt((rows * squares - total**2) / rows),
        step=zero,
        rounded=zero,
        missing=zero,
        values=np.empty(0),
    )


def merge_all(parts: Iterable[Stats]) -> Stats:
    """Merge in the order given, so that the result is bit-identical for the same shards. Raises DataError."""
    parts = list(parts)
    if not parts:
        raise DataError("no rows: every shard is empty")
    return reduce(Stats.merge, parts)
