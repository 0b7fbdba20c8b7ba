"""What is in the shards: rows, row groups, columns, types, nulls, figures, constant columns."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from hourglass.data.decode import read_tables
from hourglass.data.footer import open_shard
from hourglass.data.manifest import Manifest, scan, unchecked
from hourglass.data.schema import FEATURE_TYPES, is_allowed, is_list
from hourglass.data.stats import Stats, measure

BATCH_ROWS = 8192
BATCH_CELLS = 2**22


@dataclass
class Column:
    """Figures of one column; a vector column has them over all its values."""

    name: str
    kind: str
    nulls: int = 0
    values: int = 0
    non_finite: int = 0
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    lengths: tuple[int, int] | None = None
    constant: int = 0

    def describe(self) -> str:
        """One line of the report."""
        text = f"{self.name:<20} {self.kind:<38} {self.nulls:>8} nulls"
        if self.mean is not None:
            text += f"  min {self.low:<10.6g} mean {self.mean:<10.6g} max {self.high:<10.6g}"
        if self.non_finite:
            text += f"  {self.non_finite} NaN or infinite"
        if self.lengths is not None and self.lengths[0] != self.lengths[1]:
            text += f"  lengths {self.lengths[0]} to {self.lengths[1]}: not usable as a vector"
        elif self.lengths is not None:
            text += f"  {self.constant} of {self.lengths[1]} positions constant"
        elif self.constant:
            text += "  constant"
        return text


@dataclass(frozen=True)
class Report:
    """The manifest and the columns of a dataset."""

    manifest: Manifest
    columns: list[Column]


def inspect(uri: str | Sequence[str], tell: Callable[[float, float, str], None]) -> Report:
    """Read every shard once, in pieces. Raises DataError naming file, row group and column."""
    manifest, schema = scan(uri)
    columns = [Column(field.name, str(field.type)) for field in schema]
    stats: dict[str, Stats] = {}
    readable = [field.name for field in schema if is_allowed(field.type)]
    rows = max(1, min(BATCH_ROWS, BATCH_CELLS // max(map(_width, schema.types), default=1)))
    for number, shard in enumerate(manifest.shards):
        with open_shard(shard.path, shard.digest, plain=True) as file:
            for group in range(file.num_row_groups if readable else 0):
                for table in read_tables(shard.path, file, group, readable, rows):
                    for column in columns:
                        if column.name in readable:
                            _count(column, table.column(column.name).chunk(0), stats)
        tell(number + 1, len(manifest.shards), shard.name)
    for column in columns:
        _conclude(column, stats.get(column.name))
    return Report(manifest, columns)


def _width(kind: pa.DataType) -> int:
    return kind.list_size if pa.types.is_fixed_size_list(kind) else 1


def _count(column: Column, array: pa.Array, stats: dict[str, Stats]) -> None:
    column.nulls += array.null_count
    if is_list(array.type):
        array = array.drop_null()
        if not len(array):
            return
        lengths = np.asarray(array.value_lengths())
        low, high = int(lengths.min()), int(lengths.max())
        known = column.lengths or (low, high)
        column.lengths = (min(known[0], low), max(known[1], high))
        if column.lengths[0] != column.lengths[1]:
            stats.pop(column.name, None)
            return
        values = _floats(array.flatten()).reshape(len(array), -1)
    elif array.type in FEATURE_TYPES:
        values = _floats(array.drop_null()).reshape(-1, 1)
    else:
        return
    part = measure(values)
    stats[column.name] = stats[column.name].merge(part) if column.name in stats else part


def _floats(values: pa.Array) -> Any:
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    return values.to_numpy(zero_copy_only=False)


def _conclude(column: Column, stats: Stats | None) -> None:
    if stats is None or not stats.count.any():
        return
    column.values = int(stats.count.sum())
    column.non_finite = int(stats.missing.sum())
    column.low, column.high = float(stats.low.min()), float(stats.high.max())
    column.mean = float((stats.mean * stats.count).sum() / stats.count.sum())
    column.constant = int(stats.constant.sum())


def lines(report: Report) -> Iterator[str]:
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
