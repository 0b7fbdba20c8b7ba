"""Rows in memory, in arrays and tables of NumPy, pandas, polars or Arrow, read as shards would be.

Neither pandas nor polars is imported. Shapes: B rows, C columns.
"""

import datetime
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hourglass.data import order
from hourglass.data.dataset import DatasetStatistics
from hourglass.data.decode import Matrix, bounded, cells, chunk_rows
from hourglass.data.order import GroupCount
from hourglass.data.schema import FEATURE_TYPES, FeatureSchema, Missing, feature_dtype, is_list
from hourglass.data.stats import measure, merge_all
from hourglass.data.unlikely import Sample
from hourglass.errors import DataError

VECTOR = "x"
"""Name of the vector column of rows without column names."""
NUMBERS = "numbers or booleans"
NON_NUMBERS = (
    *(str, bytes, datetime.date, datetime.time, datetime.timedelta),
    *(np.datetime64, np.timedelta64),
)
"""Types of cells that are not numbers, even if Python can convert them to one."""


def vectors(table: Any) -> tuple[Matrix, str] | None:
    """The rows (B, C) in a table's only column, when that holds lists, or in an Arrow array; its name.

    None for anything else. Raises DataError for vectors of unequal lengths.
    """
    column, name = table, VECTOR
    if hasattr(table, "columns") and len(table.columns) == 1:
        name = str(getattr(table, "column_names", table.columns)[0])
        column = table[name] if name in getattr(table, "column_names", table.columns) else table
    if hasattr(column, "to_arrow") and not hasattr(column, "columns"):  # a polars Series
        column = column.to_arrow()
    elif getattr(column, "ndim", 0) == 1 and column.dtype == object:  # a pandas Series
        column = _arrow(column)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not isinstance(column, pa.Array) or not is_list(column.type):
        return None
    values = column.flatten()
    width = len(values) // max(1, len(column) - column.null_count)
    whole = column.null_count + values.null_count == 0
    if values.type not in FEATURE_TYPES:
        raise DataError(f"column '{name}' holds lists of {values.type}, allowed are {NUMBERS}")
    kind = np.dtype(values.type.to_pandas_dtype()).str if whole else "float64"
    schema = FeatureSchema(name, (), width, "uint8" if kind == "|b1" else kind)
    return cells(pa.table({name: column}), schema, "X"), name


def table_columns(table: Any) -> dict[str, Any] | None:
    """The columns of a pandas, polars or Arrow table by name; None for anything else."""
    if isinstance(table, pa.Table):
        return _named(table.column_names, table.columns)
    if not hasattr(table, "columns") or not hasattr(table, "shape"):
        return None
    if hasattr(table, "iloc"):
        names = list(table.columns)
        return _named(names, [table.iloc[:, index] for index in range(len(names))])
    return _named(table.columns, [table[name] for name in table.columns])


def uniform(table: Any) -> Matrix | None:
    """The matrix (B, C) of a pandas table whose columns are of one plain number type; None for others."""
    if not hasattr(table, "iloc") or getattr(table, "ndim", 0) != 2:
        return None
    kinds = set(table.dtypes)
    kind = kinds.pop() if len(kinds) == 1 else None
    if not isinstance(kind, np.dtype) or kind.kind not in "buif" or not table.columns.is_unique:
        return None
    if kind.itemsize > 8 or not kind.isnative:
        return None
    return np.asarray(table)


def from_vectors(name: str, column: Any) -> Matrix:
    """The rows (B, C) in the column `name` of equally long lists. Raises DataError."""
    if hasattr(column, "to_arrow") or isinstance(column, pa.Array | pa.ChunkedArray):
        found = vectors(column)
        if found is None:
            raise DataError(f"column '{name}' does not hold lists; a vector is a list of numbers")
        return found[0]
    if getattr(column, "dtype", None) == np.dtype(object):
        column = list(column)
    try:
        return unmasked(column)
    except ValueError:
        raise DataError(f"rows of unequal lengths in {name}") from None


def tabular(X: Any) -> Any:
    """`X`, an Arrow record batch as a table."""
    return pa.Table.from_batches([X]) if isinstance(X, pa.RecordBatch) else X


def _named(names: Sequence[Any], columns: Sequence[Any]) -> dict[str, Any]:
    words = Counter(str(name) for name in names)
    twice, count = next(((word, count) for word, count in words.items() if count > 1), ("", 0))
    if count:
        raise DataError(f"column '{twice}' occurs {count} times; names must be unique")
    return dict(zip(words, columns, strict=True))


def from_columns(columns: Mapping[str, Any]) -> Matrix:
    """The rows (B, C) of numeric columns, one value each, as their shards would be read.

    Raises: DataError naming every column that is not numeric, with its type; for unequal lengths.
    """
    arrays = {name: _arrow(column) for name, column in columns.items()}
    wrong = [
        f"'{name}' is {array if isinstance(array, str) else array.type}"
        for name, array in arrays.items()
        if isinstance(array, str) or array.type not in FEATURE_TYPES
    ]
    if wrong:
        raise _refused(wrong)
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"rows of unequal lengths in {', '.join(list(lengths)[:12])}")
    kinds = [array.type for array in arrays.values()]
    whole = not any(array.null_count for array in arrays.values())
    names = tuple(arrays)
    schema = FeatureSchema(None, names, len(names), feature_dtype(kinds, whole))
    return cells(pa.table(arrays), schema, "X")


def _refused(wrong: Sequence[str]) -> DataError:
    """`wrong` names columns with their types."""
    more = f" and {len(wrong) - 20} more" if len(wrong) > 20 else ""
    noun, they = ("column", "it") if len(wrong) == 1 else ("columns", "them")
    return DataError(
        f"{noun} {', '.join(wrong[:20])}{more}: a feature needs {NUMBERS}; leave {they} out, or convert "
        f"{they} to numbers"
    )


def _arrow(column: Any) -> Any:
    """A column as an Arrow array, decimals as float64; the name of its type where Arrow has none.

    Text that looks like numbers stays text.
    """
    if hasattr(column, "to_arrow"):  # polars
        try:
            column = column.to_arrow()
        except Exception:  # polars panics on Python objects
            return str(getattr(column, "dtype", type(column).__name__))
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not isinstance(column, pa.Array):
        column = unmasked(column) if isinstance(column, np.ma.MaskedArray) else column
        kind = getattr(column, "dtype", None)
        if str(kind).startswith("Sparse"):  # of pandas
            column = np.asarray(column)
        dtype = getattr(column, "dtype", None)
        if isinstance(dtype, np.dtype) and dtype.kind in "buif":
            native = dtype.newbyteorder("=") if dtype.itemsize <= 8 else np.dtype(np.float64)
            column = np.asarray(column).astype(native, copy=False)
        try:
            column = pa.array(column, from_pandas=not isinstance(column, np.ndarray))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            numbers = _floats(column)
            if numbers is None:
                return str(kind) if kind is not None else type(column).__name__
            column = numbers
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
    if pa.types.is_decimal(column.type) or pa.types.is_null(column.type):
        column = column.cast(pa.float64())
    return column


def _floats(column: Any) -> pa.Array | None:
    """A column of Python numbers of several types as float64, None and NaN as null; None for others."""
    cells = [None if cell is None or cell is np.ma.masked else cell for cell in column]
    if not all(isinstance(cell, Real | Decimal | None) for cell in cells):
        return None
    try:
        return pa.array([None if cell is None else float(cell) for cell in cells], pa.float64())
    except (OverflowError, ValueError):
        return None


def is_masked(rows: Any) -> bool:
    """True for NumPy's masked arrays, and for lists of them."""
    if isinstance(rows, list | tuple):
        return any(isinstance(row, np.ma.MaskedArray) for row in rows)
    return isinstance(rows, np.ma.MaskedArray)


def unmasked(rows: Any) -> Matrix:
    """`rows` as an array in which masked cells are NaN, that is missing."""
    if is_masked(rows):
        rows = np.ma.asarray(rows) if hasattr(rows, "mask") else np.ma.stack(rows)
    if not np.ma.is_masked(rows):
        return np.asarray(rows)
    small = np.can_cast(rows.dtype, np.float32)
    return np.asarray(rows.astype(np.float32 if small else np.float64).filled(np.nan))


def plain(rows: Any) -> Any:
    """Rows without column names as an array; masked cells, and None in lists of numbers, are NaN.

    Anything but an array or a list of rows is returned unchanged. Raises DataError for text, dates and
    durations.
    """
    if is_masked(rows):
        return unmasked(rows)
    if not isinstance(rows, list | tuple | np.ndarray):
        return rows
    try:
        array = np.asarray(rows)
        if array.dtype.kind in "buifcV":
            return array
        _refuse_non_numbers(
            np.array(rows, dtype=object) if isinstance(rows, list | tuple) else array
        )
        return array if isinstance(rows, np.ndarray) else array.astype(np.float64)
    except (ValueError, TypeError, OverflowError):  # ragged or not numeric: reported elsewhere
        return rows


def _refuse_non_numbers(array: Matrix) -> None:
    wrong = (
        [f"{VECTOR}[{at}] is {kind}" for at, kind in _non_numbers(array)] if array.ndim == 2 else []
    )
    if wrong:
        raise _refused(wrong)


def _non_numbers(array: Matrix) -> Iterator[tuple[int, str]]:
    for at in range(array.shape[1]):
        if array.dtype.kind != "O":
            yield at, str(array.dtype)
            continue
        found = next(
            (kind for kind in set(map(type, array[:, at])) if issubclass(kind, NON_NUMBERS)), None
        )
        if found is not None:
            yield at, found.__name__


def schema(
    rows: Matrix, vector: str, names: Sequence[str] | None, missing: Missing
) -> FeatureSchema:
    """The schema that shards of these rows would have; `names` of the columns, if they have any."""
    whole = rows.dtype in (np.uint8, np.bool_) and missing == "error"
    small = np.can_cast(rows.dtype, np.float32)
    dtype = "uint8" if whole else "float32" if small else "float64"
    if names is None:
        return FeatureSchema(vector, (), rows.shape[1], dtype)
    return FeatureSchema(None, tuple(names), rows.shape[1], dtype)


def read(
    rows: Matrix, schema: FeatureSchema, missing: Missing, holdout: float, levels: bool = False
) -> tuple[Matrix, NDArray[np.bool_], DatasetStatistics]:
    """Features (B, C), which of them are held out, and their statistics, as of a shard with these rows.

    Which rows are held out depends on their numbers alone.
    """
    with np.errstate(over="ignore"):
        features, missed = bounded(rows.astype(schema.dtype, copy=False))
    held = order.holdout_mask("", 0, 0, len(rows), holdout)
    if missing == "drop_row":
        features, held = features[~missed], held[~missed]
    train, size = features[~held], chunk_rows(schema)
    starts = range(0, max(1, len(train)), size)
    stats = merge_all(measure(train[start : start + size], levels) for start in starts)
    count = GroupCount(0, 0, len(train), int(held.sum()), len(rows) - len(features))
    imputed = int((~np.isfinite(features)).sum())
    samples = tuple(map(Sample.of, rows.T)) if schema.columns else ()
    return features, held, DatasetStatistics(stats, (count,), imputed, samples)
