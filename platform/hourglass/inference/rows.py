"""Rows of a dataset in this process, in shard order, and raw rows back as a Parquet file.

Shapes: B rows, C columns.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hourglass import storage
from hourglass.data.decode import Chunk, read_chunks
from hourglass.data.manifest import Manifest
from hourglass.data.prepare import open_dataset
from hourglass.data.schema import FeatureSchema, Missing, check_column, is_list
from hourglass.errors import DataError

Array = NDArray[Any]


@dataclass(frozen=True)
class Rows:
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
) -> Rows:
    """The first `most` rows at `uri`, with `columns` beside their features; nothing runs on Ray.

    Raises: DataError naming file, row group and column, or when every row is dropped.
    """
    manifest, schema = open_dataset(uri)
    for name in [*features.source_columns, *columns]:
        check_column(manifest.shards[0].path, schema, name)
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
    return Rows(
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


def as_table(rows: Array, features: FeatureSchema) -> tuple[pa.Table, int]:
    """Raw rows (B, C) as the columns the features came in; the count of cells clipped to uint8."""
    clipped = 0
    if features.dtype == "uint8":
        whole = np.rint(rows)
        rows = whole.clip(0, 255)
        clipped = int((rows != whole).sum())
    cells = rows.astype(features.dtype, copy=False)
    if features.vector is not None:
        return pa.table({features.vector: lists(cells)}), clipped
    return pa.table({name: cells[:, i] for i, name in enumerate(features.columns)}), clipped


def lists(matrix: Array) -> pa.Array:
    """A matrix (B, C) as one column of equally long lists."""
    flat = pa.array(np.ascontiguousarray(matrix).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def require_new(uri: str) -> None:
    """Raise DataError when something is at `uri`: it could be a shard of the data."""
    if storage.exists(uri):
        raise DataError(f"{uri}: exists already; remove it, or write elsewhere")


def write_table(uri: str, table: pa.Table) -> None:
    """Write one Parquet file, whole or not at all. Raises DataError."""
    buffer = io.BytesIO()
    pq.write_table(
        table, buffer, compression="zstd", use_dictionary=False, write_page_checksum=True
    )
    try:
        storage.write(uri, buffer.getvalue())
    except OSError as error:
        raise DataError(f"{uri}: cannot be written ({error.strerror or error})") from None
