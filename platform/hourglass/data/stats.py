"""Per-column figures in one pass: partial results of any split of the rows merge to the same whole.

Source of the merge: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm".
Shapes: B rows, C columns.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hourglass.errors import DataError

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class Stats:
    """Figures of rows, each (C,): cells present, mean, squared deviations, min, max, missing."""

    count: Float64s
    mean: Float64s
    m2: Float64s
    low: Float64s
    high: Float64s
    missing: Float64s

    @property
    def sd(self) -> Float64s:
        """Standard deviation of the population."""
        return np.sqrt(self.m2 / np.maximum(self.count, 1.0))

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Columns with a single value (or none at all)."""
        return np.asarray(self.high <= self.low)

    def merge(self, other: "Stats") -> "Stats":
        """Figures of both sets of rows together."""
        count = self.count + other.count
        share = np.divide(other.count, count, out=np.zeros_like(count), where=count > 0)
        delta = np.where(other.count > 0, other.mean, 0.0) - np.where(
            self.count > 0, self.mean, 0.0
        )
        delta = np.where((self.count > 0) & (other.count > 0), delta, 0.0)
        base = np.where(self.count > 0, self.mean, other.mean)
        return Stats(
            count,
            base + delta * share,
            self.m2 + other.m2 + delta**2 * self.count * share,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.missing + other.missing,
        )

    def arrays(self) -> dict[str, Float64s]:
        """The figures by name, for a table row or a file."""
        return {
            name: getattr(self, name) for name in ("count", "mean", "m2", "low", "high", "missing")
        }


def measure(features: NDArray[Any]) -> Stats:
    """Figures of the rows `features` (B, C); NaN and infinite cells count as missing.

    Two passes, from the lowest value: a constant column has exactly its value as mean, and m2 = 0.
    """
    columns = features.shape[1]
    if not len(features):
        zero = np.zeros(columns)
        return Stats(zero, zero, zero, zero + np.inf, zero - np.inf, zero)
    if features.dtype == np.uint8:
        return _measure_bytes(features)
    values = features.astype(np.float64)
    gone = ~np.isfinite(values)
    holes = bool(gone.any())
    missing = gone.sum(axis=0, dtype=np.float64)
    count = len(values) - missing
    present: Any = ~gone if holes else True
    low = values.min(axis=0, initial=np.inf, where=present)
    high = values.max(axis=0, initial=-np.inf, where=present)
    pivot = np.where(count > 0, low, 0.0)
    values -= pivot
    if holes:
        values[gone] = 0.0
    shift = values.sum(axis=0) / np.maximum(count, 1.0)
    values -= shift
    if holes:
        values[gone] = 0.0
    m2 = np.einsum("bc,bc->c", values, values)
    return Stats(count, pivot + shift, m2, low, high, missing)


def _measure_bytes(features: NDArray[np.uint8]) -> Stats:
    """Exact: sums of 256 squares fit float32's 24 bits, all the others float64's 53."""
    rows, columns = features.shape
    total, squares = np.zeros(columns), np.zeros(columns)
    for start in range(0, rows, 256):
        wide = features[start : start + 256].astype(np.float32)
        total += wide.sum(axis=0)
        squares += np.einsum("bc,bc->c", wide, wide)
    return Stats(
        np.full(columns, float(rows)),
        total / rows,
        (rows * squares - total**2) / rows,
        features.min(axis=0).astype(np.float64),
        features.max(axis=0).astype(np.float64),
        np.zeros(columns),
    )


def merge_all(parts: Iterable[Stats]) -> Stats:
    """Merge in the order given, so that the same shards give the same bits. Raises DataError."""
    parts = list(parts)
    if not parts:
        raise DataError("no rows: every shard is empty")
    return reduce(Stats.merge, parts)
