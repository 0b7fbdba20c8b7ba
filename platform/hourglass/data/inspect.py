"""The content of shards: rows, row groups, columns, types, nulls, statistics, constant columns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hourglass.data.decode import read_tables
from hourglass.data.footer import open_shard
from hourglass.data.manifest import Manifest, scan, unchecked
from hourglass.data.schema import FEATURE_TYPES, is_allowed, is_list
from hourglass.data.stats import Stats, measure
from hourglass.data.unlikely import Sample, advice, index_columns, why

BATCH_ROWS = 8192
BATCH_CELLS = 2**22


@dataclass
class Column:
    """Statistics of one column; of a vector column, over all its values.

    The lowest and highest integers are exact; `span` is the first and the last date or timestamp.
    """

    name: str
    kind: str
    nulls: int = 0
    values: int = 0
    non_finite: int = 0
    low: float | int | None = None
    high: float | int | None = None
    mean: float | None = None
    lengths: tuple[int, int] | None = None
    constant: int = 0
    near_unique: bool = False
    span: tuple[str, str] | None = None

    def describe(self) -> str:
        """One line of the report."""
        text = f"{self.name:<20} {self.kind:<38} {self.nulls:>8} nulls"
        if self.span is not None:
            text += f"  min {self.span[0]} max {self.span[1]}"
        if self.low is not None and self.high is not None and self.mean is not None:
            values = (self.low, self.mean, self.high)
            digits = digits_of(values, self.high - self.low)
            low, mean, high = (_number(value, digits) for value in values)
            text += f"  min {low:<10} mean {mean:<10} max {high:<10}"
        if self.non_finite:
            text += f"  {self.non_finite} NaN or infinite"
        if self.lengths is not None and self.lengths[0] != self.lengths[1]:
            text += f"  lengths {self.lengths[0]} to {self.lengths[1]}: not usable as a vector"
        elif self.lengths is not None:
            text += f"  {self.constant} of {self.lengths[1]} positions constant"
        elif self.constant:
            text += "  constant"
        elif self.near_unique:
            text += "  near-unique"
        return text


def digits_of(values: Sequence[float], spread: float) -> int:
    """Significant digits, at least 6, that print values to within a hundredth of their spread."""
    near = spread / 100 or 0.5
    enough = (
        digits
        for digits in range(6, 17)
        if all(abs(float(f"{value:.{digits}g}") - value) <= near for value in values)
    )
    return next(enough, 17)


def _number(value: float, digits: int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.{digits}g}"


@dataclass(frozen=True)
class Inspection:
    """The manifest and the columns of a dataset; columns that are probably not features, and why."""

    manifest: Manifest
    columns: list[Column]
    unlikely: dict[str, str]


def inspect(uri: str | Sequence[str], progress: Callable[[float, float, str], None]) -> Inspection:
    """Read every shard once, in pieces; `progress` is called with (shards read, all shards, name).

    Raises DataError naming file, row group and column.
    """
    manifest, schema = scan(uri)
    columns = [Column(field.name, str(field.type)) for field in schema]
    stats: dict[str, Stats] = {}
    extents: dict[str, Extent] = {}
    samples: dict[str, Sample] = {}
    readable = [field.name for field in schema if is_allowed(field.type)]
    rows = max(1, min(BATCH_ROWS, BATCH_CELLS // max(map(_width, schema.types), default=1)))
    for number, shard in enumerate(manifest.shards):
        with open_shard(shard.path, shard.digest, plain=True) as file:
            for group in range(file.num_row_groups if readable else 0):
                for table in read_tables(shard.path, file, group, readable, rows):
                    for column in columns:
                        if column.name in readable:
                            array = table.column(column.name).chunk(0)
                            _count(column, array, stats, extents)
                            if array.type in FEATURE_TYPES:
                                part = Sample.of(_floats(array.drop_null()))
                                samples[column.name] = samples.get(column.name, Sample()).merge(
                                    part
                                )
        progress(number + 1, len(manifest.shards), shard.name)
    for column in columns:
        _conclude(column, stats.get(column.name), extents.get(column.name))
        column.near_unique = column.name in samples and samples[column.name].near_unique
    return Inspection(manifest, columns, _unlikely(schema, columns))


def _unlikely(schema: pa.Schema, columns: Sequence[Column]) -> dict[str, str]:
    """Columns that are probably not features, with the reason, in a table also non-numeric ones."""
    numbers = [c for c in columns if schema.field(c.name).type in FEATURE_TYPES]
    reasons = why(
        [column.name for column in numbers],
        index=index_columns(schema),
        near_unique=[column.name for column in numbers if column.near_unique],
        constant=[column.name for column in numbers if column.constant],
    )
    if numbers and not any(is_list(kind) for kind in schema.types):
        reasons |= {column.name: column.kind for column in columns if column not in numbers}
    return {column.name: reasons[column.name] for column in columns if column.name in reasons}


def _width(kind: pa.DataType) -> int:
    return kind.list_size if pa.types.is_fixed_size_list(kind) else 1


Extent = tuple[Any, Any]
"""Lowest and highest values: of integers an array (C,) in their own type, one for each position; of dates
and timestamps an Arrow scalar.
"""


def _count(
    column: Column, array: pa.Array, stats: dict[str, Stats], extents: dict[str, Extent]
) -> None:
    column.nulls += array.null_count
    array = array.drop_null()
    if not len(array):
        return
    if is_list(array.type):
        lengths = np.asarray(array.value_lengths())
        low, high = int(lengths.min()), int(lengths.max())
        known = column.lengths or (low, high)
        column.lengths = (min(known[0], low), max(known[1], high))
        if column.lengths[0] != column.lengths[1]:
            stats.pop(column.name, None)
            extents.pop(column.name, None)
            return
        values, width = array.flatten(), column.lengths[0]
    else:
        values, width = array, 1
    if values.type in FEATURE_TYPES:
        part = measure(_floats(values).reshape(-1, width) if width else np.empty((0, 0)))
        stats[column.name] = stats[column.name].merge(part) if column.name in stats else part
    found = _extent(values, width) if len(values) else None
    if found is not None:
        known_low, known_high = extents.get(column.name, found)
        extents[column.name] = (least(known_low, found[0]), most(known_high, found[1]))


def _extent(values: pa.Array, width: int) -> Extent | None:
    if pa.types.is_integer(values.type):
        there = ~np.asarray(values.is_null()).reshape(-1, width)
        numbers = values.fill_null(0).to_numpy(zero_copy_only=False).reshape(-1, width)
        ends = np.iinfo(numbers.dtype)
        return (
            numbers.min(axis=0, where=there, initial=ends.max),
            numbers.max(axis=0, where=there, initial=ends.min),
        )
    if pa.types.is_temporal(values.type):
        return tuple(pc.min_max(values).values())
    return None


def least(first: Any, second: Any) -> Any:
    """The lower of two ends, position by position."""
    if isinstance(first, pa.Scalar):
        return first if first.value <= second.value else second
    return np.minimum(first, second)


def most(first: Any, second: Any) -> Any:
    """The higher of two ends, position by position."""
    if isinstance(first, pa.Scalar):
        return first if first.value >= second.value else second
    return np.maximum(first, second)


def _instant(end: pa.Scalar) -> str:
    """As text; a timestamp with a time zone in UTC, so that no time zone database is needed."""
    if pa.types.is_timestamp(end.type) and end.type.tz is not None:
        end = end.cast(pa.timestamp(end.type.unit, "UTC"))
    text: str = end.cast(pa.string()).as_py()
    return text


def _floats(values: pa.Array) -> Any:
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    return values.to_numpy(zero_copy_only=False)


def _conclude(column: Column, stats: Stats | None, extent: Extent | None) -> None:
    if extent is not None and stats is None:
        column.span = _instant(extent[0]), _instant(extent[1])
    if stats is not None:
        column.non_finite = int(stats.missing.sum())
    if stats is None or not stats.count.any():
        return
    column.values = int(stats.count.sum())
    column.low, column.high = float(stats.low.min()), float(stats.high.max())
    column.mean = float((stats.mean * stats.count).sum() / stats.count.sum())
    column.constant = int(stats.constant.sum())
    if extent is not None:
        low, high = extent
        there = stats.count > 0
        column.low, column.high = int(low[there].min()), int(high[there].max())
        column.constant = int((high <= low).sum())


def lines(report: Inspection) -> Iterator[str]:
    """The report as text."""
    manifest = report.manifest
    groups = sum(len(shard.rows) for shard in manifest.shards)
    size = sum(shard.size for shard in manifest.shards)
    yield f"{len(manifest.shards)} shards, {manifest.rows} rows, {groups} row groups, {size} bytes"
    for shard in manifest.shards:
        rows, groups = sum(shard.rows), len(shard.rows)
        yield f"  {shard.name:<40} {rows:>10} rows {groups:>5} row groups {shard.size:>12} bytes"
    yield unchecked(manifest) or "every page carries a checksum"
    yield f"{len(report.columns)} columns"
    for column in report.columns:
        yield f"  {column.describe()}"
    if report.unlikely:
        yield f'`columns: ["*"]` would choose {advice(report.unlikely)}'
