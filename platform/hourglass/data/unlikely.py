"""Columns chosen by a glob that are probably not features: table indexes, ids, constants.

They are used all the same; a warning suggests excluding them.
Shapes: B rows.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hourglass.data.schema import Features, exclusion

KEPT = 256
"""Distinct values in a sample: enough to estimate the number of all to within about 6 %."""
NEAR, SURE = 0.95, 0.85
"""Smallest shares of distinct values among near-unique whole numbers: in the rows of the sample, and in
all rows, less two standard errors of the estimate.
"""
FEWEST_ROWS = 100
"""With fewer rows, most values may differ by chance."""
INDEX = re.compile(r"__index_level_\d+__")
_NONE = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True)
class Sample:
    """The values of a column of whole numbers with the lowest hashes, and how many rows have each.

    Samples of any split of the rows merge to the same result. A column with `fractions` has none.
    Source: Gibbons 2001, "Distinct Sampling for Highly-Accurate Answers to Distinct Values Queries".
    """

    hashes: NDArray[np.uint64] = field(default_factory=_NONE.copy)
    counts: NDArray[np.uint64] = field(default_factory=_NONE.copy)
    rows: int = 0
    fractions: bool = False

    @classmethod
    def of(cls, values: NDArray[Any]) -> Self:
        """The sample of numbers (B,); non-finite ones do not count."""
        kind = values.dtype.kind
        if kind == "f":
            values = values[np.isfinite(values)]
            if not (_whole(values[:64]) and _whole(values)):
                return cls(rows=len(values), fractions=True)
        wide = values.astype(np.float64 if kind == "f" else np.uint64 if kind == "u" else np.int64)
        hashes, counts = np.unique(_hashed(wide), return_counts=True)
        return cls(hashes[:KEPT], counts[:KEPT].astype(np.uint64), len(values))

    def merge(self, other: "Sample") -> "Sample":
        """The sample of the rows of both."""
        rows, fractions = self.rows + other.rows, self.fractions or other.fractions
        if fractions:
            return Sample(rows=rows, fractions=True)
        both = np.concatenate([self.hashes, other.hashes])
        hashes, place = np.unique(both, return_inverse=True)
        counts = np.zeros(len(hashes), dtype=np.uint64)
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        return Sample(hashes[:KEPT], counts[:KEPT], rows)

    def to_bytes(self) -> bytes:
        """The sample as bytes, which `from_bytes` reads."""
        head = np.array([self.rows, self.fractions], dtype=np.uint64)
        return np.concatenate([head, self.hashes, self.counts]).tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """The sample that `to_bytes` wrote."""
        (rows, fractions), both = np.split(np.frombuffer(content, dtype=np.uint64), [2])
        hashes, counts = np.split(both, 2)
        return cls(hashes, counts, int(rows), bool(fractions))

    @property
    def different(self) -> float:
        """Distinct values: exact below KEPT, else an estimate.

        Source: Bar-Yossef et al. 2002, "Counting Distinct Elements in a Data Stream", section 4.
        """
        if len(self.hashes) < KEPT:
            return float(len(self.hashes))
        return (KEPT - 1) * 2.0**64 / float(self.hashes[-1])

    @property
    def near_unique(self) -> bool:
        """True if nearly every row has another whole number, as with ids and running counts."""
        if self.rows < FEWEST_ROWS or self.fractions:
            return False
        sampled = len(self.hashes) >= NEAR * int(self.counts.sum())
        return sampled and self.different >= SURE * self.rows


def _whole(values: NDArray[Any]) -> bool:
    """True if all are whole numbers that float64 holds exactly."""
    return bool(((np.rint(values) == values) & (np.abs(values) <= 2**53)).all())


def _hashed(values: NDArray[Any]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014) over the bits; it is injective."""
    mixed = values.view(np.uint64)
    with np.errstate(over="ignore"):
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def index_columns(schema: pa.Schema) -> set[str]:
    """Columns that were the index of a pandas table, by the metadata in the footer or by their names."""
    found = {name for name in schema.names if INDEX.fullmatch(name)}
    try:
        stored = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        found |= {name for name in stored if isinstance(name, str) and name in schema.names}
    except (KeyError, TypeError, ValueError):
        pass  # another program wrote it, or something that only looks like pandas
    return found


def globbed(features: Features, names: Collection[str]) -> list[str]:
    """The columns among `names` that a glob chose, and not their own name."""
    return [name for name in names if name not in features.columns]


def why(
    names: Collection[str],
    index: Collection[str],
    near_unique: Collection[str],
    constant: Collection[str],
) -> dict[str, str]:
    """The columns among `names` that are probably not features, each with the reason."""
    kinds = {
        "the index of a table": index,
        "near-unique whole numbers, as ids are": near_unique,
        "constant": constant,
    }
    first = {name: next((k for k, of in kinds.items() if name in of), "") for name in names}
    return {name: kind for name, kind in first.items() if kind}


def advice(reasons: Mapping[str, str], how: str = "`exclude: {}`") -> str:
    """A phrase that lists columns that are probably not features, and `how` to exclude them."""
    listed = ", ".join(f"'{name}' ({kind})" for name, kind in reasons.items())
    return (
        f"columns that are probably not features: {listed}; to exclude them: "
        f"{how.format(exclusion(reasons))}"
    )
