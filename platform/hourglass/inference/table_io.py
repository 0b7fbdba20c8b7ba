"""Rows or codes of a dataset in this process, in shard order, and raw rows back as a Parquet file.

Shapes: B rows, C columns, K code units.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hourglass import storage
from hourglass.data.dataset import open_dataset
from hourglass.data.decode import Chunk, read_chunks
from hourglass.data.manifest import Manifest
from hourglass.data.schema import FeatureSchema, Missing, check_column, is_list
from hourglass.errors import DataError

Array = NDArray[Any]
ORIGIN = ("shard", "row_group", "row")
"""Columns that tell which row a code is of: `encode` writes the last, `score` all three."""


@dataclass(frozen=True)
class FirstRows:
    """The first rows of a dataset: features (B, C), and for each its number in the dataset.

    `dropped` had missing cells; `left_out` come after those that were read.
    """

    uri: str
    features: Array
    numbers: NDArray[np.int64]
    columns: pa.Table
    dropped: int
    left_out: int

    def position(self, number: int) -> int:
        """Where the dataset's row `number` is in `features`. Raises DataError."""
        found = np.flatnonzero(self.numbers == number)
        if len(found):
            return int(found[0])
        read = len(self.numbers) + self.dropped
        if 0 <= number < read:
            raise DataError(f"{self.uri}: row {number} was dropped, it has missing cells")
        more = f", {self.left_out} more were left out; raise the limit" if self.left_out else ""
        raise DataError(f"{self.uri}: no row {number}; read were rows 0 to {read - 1}{more}")

    def labels(self, name: str) -> Array:
        """The values (B,) of column `name`. Raises DataError for lists and for rows without one."""
        column = self.columns.column(name)
        if is_list(column.type):
            raise DataError(f"{self.uri}: column '{name}' is {column.type}, a label is one value")
        if column.null_count:
            raise DataError(
                f"{self.uri}: column '{name}' is null in {column.null_count} of {len(column)} rows; "
                "every row needs a label"
            )
        return np.asarray(column.to_pylist())


def read_rows(
    uri: str, features: FeatureSchema, missing: Missing, columns: Sequence[str], most: int
) -> FirstRows:
    """The first `most` rows at `uri`, with `columns` beside their features; nothing runs on Ray.

    Raises: DataError naming file, row group and column, or when every row is dropped.
    """
    dataset = open_dataset(uri)
    for name in [*features.source_columns, *columns]:
        check_column(dataset.manifest.shards[0].path, dataset.schema, name)
    return _read(uri, dataset.manifest, features, missing, columns, most)


def read_codes(uri: str, column: str, width: int, most: int) -> FirstRows:
    """The first `most` codes (B, K) in the list column `column` at `uri`, with their ORIGIN if known.

    Raises: DataError naming file and column (and row, for a code that cannot be decoded).
    """
    dataset = open_dataset(uri)
    manifest, schema = dataset.manifest, dataset.schema
    first = manifest.shards[0].path
    kind = check_column(first, schema, column)
    if not is_list(kind):
        raise DataError(
            f"{first}: column '{column}' is {kind}, a code is a list of {width} numbers; "
            "name the column that holds the codes"
        )
    if pa.types.is_fixed_size_list(kind) and kind.list_size != width:
        raise DataError(
            f"{first}: column '{column}' holds lists of {kind.list_size} numbers, the model's code "
            f"has {width} units; decode with the model that encoded"
        )
    origin = [name for name in ORIGIN if name in schema.names]
    for name in origin:
        check_column(first, schema, name)
    codes = FeatureSchema(vector=column, columns=(), width=width, dtype="float32")
    rows = _read(uri, manifest, codes, "mean", origin, most)
    bad = np.argwhere(~np.isfinite(rows.features))
    if len(bad):
        row, unit = bad[0]
        raise DataError(
            f"{uri}: row {rows.numbers[row]}, column '{column}': found {rows.features[row, unit]} "
            f"for unit {unit}, a code has finite numbers only; remove the row, or encode it again"
        )
    return rows


def _read(
    uri: str,
    manifest: Manifest,
    features: FeatureSchema,
    missing: Missing,
    columns: Sequence[str],
    most: int,
) -> FirstRows:
    """The first `most` rows of the manifest. Raises DataError when every row is dropped."""
    read = min(most, manifest.rows)
    parts: list[Array] = []
    numbers: list[NDArray[np.int64]] = []
    tables: list[pa.Table] = []
    for start, chunk in _chunks(manifest, features, missing, tuple(columns)):
        kept = np.flatnonzero(chunk.whole[: read - start])
        parts.append(chunk.features[kept])
        numbers.append(kept + start)
        tables.append(chunk.table.take(pa.array(kept)))
        if start + len(chunk.whole) >= read:
            break
    found = np.concatenate(numbers)
    if not len(found):
        raise DataError(f"{uri}: each of the {read} rows read has missing cells; none is left")
    return FirstRows(
        uri=uri,
        features=np.concatenate(parts),
        numbers=found,
        columns=pa.concat_tables(tables),
        dropped=read - len(found),
        left_out=manifest.rows - read,
    )


def _chunks(
    manifest: Manifest, features: FeatureSchema, missing: Missing, columns: tuple[str, ...]
) -> Iterator[tuple[int, Chunk]]:
    """The dataset in pieces, each with the number of its first row."""
    start = 0
    for shard in manifest.shards:
        footer = shard.digest if shard.digest.startswith("footer-") else None
        for group, rows in enumerate(shard.rows):
            if rows:
                for chunk in read_chunks(shard.path, group, features, missing, columns, footer):
                    yield start + chunk.start, chunk
            start += rows


def as_table(
    rows: Array, features: FeatureSchema, beside: Mapping[str, Any] | None = None
) -> tuple[pa.Table, int]:
    """Columns `beside`, then raw rows (B, C) as they came in; the count of cells clipped to uint8.

    Raises: DataError when a column beside has the name of a feature's.
    """
    clipped = 0
    if features.dtype == "uint8":
        whole = np.rint(rows)
        rows = whole.clip(0, 255)
        clipped = int((rows != whole).sum())
    columns = as_columns(rows.astype(features.dtype, copy=False), features)
    for name in beside or ():
        if name in columns:
            raise DataError(
                f"column '{name}': is a feature of the model, so the output cannot have another "
                "column of that name; call the model in Python instead"
            )
    return pa.table({**(beside or {}), **columns}), clipped


def as_columns(cells: Array, features: FeatureSchema) -> dict[str, Any]:
    """Cells (B, C) by the names of the columns the features came in."""
    if features.vector is not None:
        return {features.vector: lists(cells)}
    return {name: cells[:, i] for i, name in enumerate(features.columns)}


def lists(matrix: Array) -> pa.Array:
    """A matrix (B, C) as one column of equally long lists."""
    flat = pa.array(np.ascontiguousarray(matrix).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def require_new(uri: str) -> None:
    """Raise DataError when something is at `uri`: it could be a shard of the data."""
    if storage.exists(uri):
        raise DataError(f"{uri}: exists already; remove it, or write elsewhere")


def write_table(uri: str, table: pa.Table) -> None:
    """Write one Parquet file, whole or not at all. Raises WriteError."""
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, compression="zstd", use_dictionary=False, write_page_checksum=True
    )
    storage.write(uri, buffer.getvalue())
