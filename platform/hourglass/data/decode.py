"""From the rows of a shard to one contiguous feature matrix, with every missing cell accounted for.

Shapes: B rows, C columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hourglass.data.footer import open_shard, reaching
from hourglass.data.schema import (
    FEATURE_TYPES,
    FeatureSchema,
    Missing,
    check_column,
    feature_dtype,
    is_list,
)
from hourglass.errors import DataError, first_line

Matrix = NDArray[Any]
FLOAT32_MAX = float(np.finfo(np.float32).max)
CHUNK_BYTES = 32 * 2**20
"""Decoded features held at once; a row group of any size is read in pieces of about this."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a row group: `extra` columns, features, and which rows have no missing cell."""

    start: int
    table: pa.Table
    features: Matrix
    whole: NDArray[np.bool_]


def chunk_rows(schema: FeatureSchema) -> int:
    """Rows of one chunk, which depend on the schema alone: the same in every process."""
    return max(64, min(65536, CHUNK_BYTES // max(1, schema.row_bytes)))


def read_chunks(
    path: str,
    group: int,
    schema: FeatureSchema,
    missing: Missing,
    extra: tuple[str, ...] = (),
    digest: str | None = None,
) -> Iterator[Chunk]:
    """Decode one row group piece by piece: features, and `extra` columns unchanged.

    With `digest`, the footer of the shard must still have it. Raises DataError naming file, row
    group, column (and row, for a missing cell).
    """
    where = f"{path}: row group {group}"
    rows = chunk_rows(schema)
    with open_shard(path, digest, plain=True) as shard:
        arrow = shard.schema_arrow
        for name in schema.source_columns:
            check_column(path, arrow, name)
        beside = _beside(path, group, extra, rows, digest)
        start = 0
        for table in read_tables(path, shard, group, schema.source_columns, rows):
            features, bad = to_matrix(table, schema, where, start)
            if missing == "error" and bad.any():
                raise _missing_cell(where, start, table, bad, schema)
            whole = ~bad if missing == "drop_row" else np.ones(len(features), dtype=np.bool_)
            others = next(beside) if extra else table.select([])
            if extra and len(others) != len(features):
                raise DataError(f"{where}: the values of {', '.join(extra)} are too long to read")
            yield Chunk(start, others, features, whole)
            start += len(features)


def _beside(
    path: str, group: int, extra: tuple[str, ...], rows: int, digest: str | None
) -> Iterator[pa.Table]:
    """The `extra` columns in the same pieces, with the Arrow types stored in the shard."""
    with open_shard(path, digest) as shard:
        arrow = shard.schema_arrow
        for name in extra:
            check_column(path, arrow, name)
        yield from read_tables(path, shard, group, list(dict.fromkeys(extra)), rows)


def read_tables(
    path: str, shard: pq.ParquetFile, group: int, columns: list[str], rows: int
) -> Iterator[pa.Table]:
    """A row group in pieces of at most `rows` rows, validated. Raises DataError."""
    with reaching(path):
        try:
            batches = shard.iter_batches(
                rows, row_groups=[group], columns=columns, use_threads=False
            )
            for batch in batches:
                batch.validate(full=True)
                yield pa.Table.from_batches([batch]).select(columns)
        except (pa.ArrowException, OSError) as error:
            if _is_input_output(error):
                raise
            raise DataError(
                f"{path}: row group {group}{_damaged_column(shard, group, columns, rows)}: "
                f"cannot be decoded ({first_line(error)})"
            ) from None


def _is_input_output(error: BaseException) -> bool:
    """True for errors of the disk or of S3; pyarrow reports a damaged page as a plain OSError."""
    return isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None)


def _damaged_column(shard: pq.ParquetFile, group: int, columns: list[str], rows: int) -> str:
    """The column whose pages do not decode, as `, column 'x'`."""
    for name in columns:
        try:
            for batch in shard.iter_batches(
                rows, row_groups=[group], columns=[name], use_threads=False
            ):
                batch.validate(full=True)
        except (pa.ArrowException, OSError):  # the caller reports it
            return f", column '{name}'"
    return ""


def to_matrix(
    table: pa.Table, schema: FeatureSchema, where: str, start: int = 0
) -> tuple[Matrix, NDArray[np.bool_]]:
    """Features (B, C), missing cells NaN or infinite, and which rows have one. Raises DataError."""
    return bounded(cells(table, schema, where, start))


def cells(table: pa.Table, schema: FeatureSchema, where: str, start: int = 0) -> Matrix:
    """The numbers (B, C) in `table`, NaN for nulls. Raises DataError."""
    if schema.vector is not None:
        return _vectors(_array(table.column(schema.vector)), schema, where, start)
    return _columns([_array(table.column(name)) for name in schema.columns], schema, where)


def bounded(features: Matrix) -> tuple[Matrix, NDArray[np.bool_]]:
    """Features (B, C) with infinity for numbers beyond float32, and which rows have a missing cell.

    The only definition of a missing cell, for shards, notebooks and endpoints.
    """
    if features.dtype.kind != "f":
        return features, np.zeros(len(features), dtype=np.bool_)
    good = np.abs(features) <= FLOAT32_MAX
    bad = np.asarray(~good.all(axis=1))
    if features.dtype == np.float64 and bad.any():
        features = np.where(good | np.isnan(features), features, np.copysign(np.inf, features))
    return features, bad


def _array(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; a single chunk is not copied."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _columns(arrays: list[pa.Array], schema: FeatureSchema, where: str) -> Matrix:
    for name, array in zip(schema.columns, arrays, strict=True):
        if array.type not in FEATURE_TYPES:
            raise DataError(
                f"{where}, column '{name}': is {array.type}, a feature needs numbers or booleans"
            )
    whole = not any(array.null_count for array in arrays)
    dtype = _dtype(schema, [array.type for array in arrays], whole)
    features = np.empty((len(arrays[0]), schema.width), dtype=dtype)
    for index, array in enumerate(arrays):
        features[:, index] = _numbers(array, dtype)
    return features


def _vectors(array: pa.Array, schema: FeatureSchema, where: str, start: int) -> Matrix:
    where_column = f"column '{schema.vector}'"
    if not is_list(array.type):
        raise DataError(
            f"{where}, {where_column}: is {array.type}, a vector needs a list of numbers"
        )
    total = len(array)
    rows = np.arange(total)
    if array.null_count:
        rows = rows[np.asarray(array.is_valid())]
        array = array.drop_null()
    lengths = np.asarray(array.value_lengths())
    wrong = np.flatnonzero(lengths != schema.width)
    if len(wrong):
        raise DataError(
            f"{where}, row {start + rows[wrong[0]]}, {where_column}: a list of {lengths[wrong[0]]} "
            f"values, {schema.width} are needed; vectors must be equally long"
        )
    flat = array.flatten()
    present = len(rows) == total
    dtype = _dtype(schema, [flat.type], whole=present and not flat.null_count)
    values = _numbers(flat, dtype).reshape(-1, schema.width)
    if present:
        return values
    features = np.full((total, schema.width), np.nan, dtype=dtype)
    features[rows] = values
    return features


def _dtype(schema: FeatureSchema, kinds: list[pa.DataType], whole: bool) -> str:
    """The schema's dtype; uint8 only if the values fit, so that none wraps around."""
    return schema.dtype if schema.dtype != "uint8" else feature_dtype(kinds, whole)


def _numbers(values: pa.Array, dtype: str) -> Matrix:
    """Numbers as `dtype`, NaN for nulls; integers beyond the dtype's precision are rounded."""
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    if values.null_count:
        values = values.cast(pa.from_numpy_dtype(np.dtype(dtype)), safe=False)
    with np.errstate(over="ignore"):
        return np.asarray(values.to_numpy(zero_copy_only=False)).astype(dtype, copy=False)


def _missing_cell(
    where: str, start: int, table: pa.Table, bad: NDArray[np.bool_], schema: FeatureSchema
) -> DataError:
    row = int(np.flatnonzero(bad)[0])
    cells = table.slice(row, 1).select(schema.source_columns).to_pylist()[0]
    if schema.vector is not None and cells[schema.vector] is not None:
        cells = dict(zip(schema.feature_names, cells[schema.vector], strict=True))
    name, found = next(
        (name, cell) for name, cell in cells.items() if cell is None or not abs(cell) <= FLOAT32_MAX
    )
    return DataError(
        f"{where}, row {start + row}, column '{name}': found {'null' if found is None else found} "
        f"({int(bad.sum())} such rows in these {len(bad)}); `missing: error` allows finite numbers "
        "only. Set data.missing to `mean` or `drop_row`"
    )
