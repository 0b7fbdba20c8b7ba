"""Rows at hand, in arrays and tables of NumPy, pandas, polars or Arrow: what their shards would say.

Neither pandas nor polars is imported. Shapes: B rows, C columns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hourglass.data import plan
from hourglass.data.decode import chunk_rows, to_matrix
from hourglass.data.schema import FeatureSchema, Missing, is_list
from hourglass.data.stats import Stats, measure, merge_all

Rows = NDArray[Any]
VECTOR = "x"
"""Name of the vector column that rows without column names are."""


def matrix(table: Any) -> tuple[Any, str | None]:
    """The matrix (B, C) in a table's only column, when that holds lists, or in an Arrow array; its name.

    Anything else comes back as it is. Raises DataError for vectors of unequal lengths.
    """
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    column, name = table, VECTOR
    if hasattr(table, "columns") and len(table.columns) == 1:
        name = str(getattr(table, "column_names", table.columns)[0])
        column = table[name] if name in getattr(table, "column_names", table.columns) else table
    if hasattr(column, "to_arrow") and not hasattr(column, "columns"):  # a polars Series
        column = column.to_arrow()
    elif getattr(column, "ndim", 0) == 1 and column.dtype == object:  # a pandas Series
        column = pa.array(column)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not isinstance(column, pa.Array) or not is_list(column.type):
        return table, None
    values = column.flatten()
    width = len(values) // max(1, len(column) - column.null_count)
    whole = column.null_count + values.null_count == 0
    kind = np.dtype(values.type.to_pandas_dtype()).str if whole else "float64"
    schema = FeatureSchema(name, (), width, "uint8" if kind == "|b1" else kind)
    return to_matrix(pa.table({name: column}), schema, "X")[0], name


def schema(rows: Rows, vector: str, names: Sequence[str] | None, missing: Missing) -> FeatureSchema:
    """What a row is, as shards of these rows would say; `names` where its columns have some."""
    whole = rows.dtype in (np.uint8, np.bool_) and missing == "error"
    small = np.can_cast(rows.dtype, np.float32)
    dtype = "uint8" if whole else "float32" if small else "float64"
    if names is None:
        return FeatureSchema(vector, (), rows.shape[1], dtype)
    return FeatureSchema(None, tuple(names), rows.shape[1], dtype)


def split(
    rows: Rows, schema: FeatureSchema, missing: Missing, holdout: float
) -> tuple[Rows, NDArray[np.bool_], int]:
    """Features, which of them are held out (by row number, whatever the seed), and rows dropped."""
    features = rows.astype(schema.dtype, copy=False)
    held = plan.holdout_mask("", 0, 0, len(rows), holdout)
    if missing != "drop_row":
        return features, held, 0
    whole = np.isfinite(features).all(axis=1)
    return features[whole], held[whole], int((~whole).sum())


def figures(features: Rows, schema: FeatureSchema) -> Stats:
    """Figures of the features, chunk by chunk as a shard's are measured."""
    size = chunk_rows(schema)
    starts = range(0, max(1, len(features)), size)
    return merge_all(measure(features[start : start + size]) for start in starts)
