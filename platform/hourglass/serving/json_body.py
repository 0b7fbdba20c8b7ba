"""JSON bodies to rows: every cell is checked, and errors name row and column.

Shapes: B rows, C raw columns.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hourglass.config.serve import Limits
from hourglass.data.decode import FLOAT32_MAX, bounded
from hourglass.data.schema import FeatureSchema
from hourglass.errors import few, nearest
from hourglass.inference.endpoints import ModelMetadata
from hourglass.serving.limits import RequestError, check_shape

Matrix = NDArray[Any]
BOM = b"\xef\xbb\xbf"


class _NotJson(NamedTuple):
    """NaN, Infinity or -Infinity: Python's parser accepts them, but JSON has no such values."""

    text: str


class _Twice(dict[str, Any]):
    """An object with a duplicate key, kept until the number of its row is known."""

    key: str


def decode_json(body: bytes, metadata: ModelMetadata, limits: Limits) -> Matrix:
    """Rows (B, C) in the artifact's dtype, NaN where null. Raises RequestError."""
    features = metadata.features
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError("Malformed", f"byte {error.start}: not UTF-8") from None
    if body.startswith(BOM):
        raise RequestError("Malformed", "the body begins with a byte order mark; send plain UTF-8")
    check_shape(body, limits.depth, (limits.max_rows + 1) * (features.width + 1))
    rows = _rows_of(_parse(text))
    check_count(len(rows), limits.max_rows)
    cells = [_cells(index, row, metadata) for index, row in enumerate(rows)]
    _same_form(rows)
    matrix = np.array(cells, dtype=np.float64)
    beyond = np.argwhere(np.isinf(matrix))
    if len(beyond):
        raise refuse_cell(beyond[0], features, "found a number beyond 64-bit floats")
    return fit(matrix, metadata)


def _parse(text: str) -> Any:
    try:
        # Integers are parsed as floats: features are at most float64, and an integer of 5,000
        # digits becomes infinity instead of raising an exception.
        return json.loads(text, parse_int=float, parse_constant=_NotJson, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise RequestError("Malformed", f"{where}: not JSON ({error.msg.lower()})") from None
    except (ValueError, RecursionError):
        raise RequestError("Malformed", "not JSON") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    seen: set[str] = set()
    twice = _Twice(plain)
    twice.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return twice


def _rows_of(tree: Any) -> list[Any]:
    if not isinstance(tree, dict):
        raise RequestError("Invalid", f'found {_shown(tree)}, expected {{"rows": [...]}}')
    if isinstance(tree, _Twice):
        raise RequestError("Malformed", f"field {_shown(tree.key)} is given twice")
    other = [key for key in tree if key != "rows"]
    if other:
        raise RequestError("Invalid", f'unknown field {_shown(other[0])}; allowed is "rows"')
    if "rows" not in tree:
        raise RequestError("Invalid", 'field "rows" is missing')
    rows = tree["rows"]
    if not isinstance(rows, list):
        raise RequestError("Invalid", f'"rows": found {_shown(rows)}, expected a list of rows')
    return rows


def check_count(rows: int, most: int) -> None:
    """Raise RequestError for zero rows, or more than allowed."""
    if rows == 0:
        raise RequestError("Invalid", "found 0 rows, allowed is at least 1")
    if rows > most:
        raise RequestError(
            "TooLarge", f"found {rows} rows, allowed are {most}; send several requests"
        )


def _same_form(rows: list[Any]) -> None:
    for index, row in enumerate(rows):
        if isinstance(row, dict) != isinstance(rows[0], dict):
            raise RequestError(
                "Invalid",
                f"row {index}: is {'a record' if isinstance(row, dict) else 'a list'}, row 0 is "
                f"{'a record' if isinstance(rows[0], dict) else 'a list'}; use one form",
            )


def _cells(index: int, row: Any, metadata: ModelMetadata) -> list[Any]:
    """The C cells of a row in feature order, each a float, or None if it will be imputed."""
    features = metadata.features
    if isinstance(row, dict):
        check_columns(row, features, f"row {index}: ")
        if isinstance(row, _Twice):
            raise RequestError("Malformed", f"row {index}: column {_shown(row.key)} is given twice")
        if features.vector is not None:
            row = row[features.vector]
            if not isinstance(row, list):
                raise RequestError(
                    "Invalid",
                    f"row {index}, '{features.vector}': found {_shown(row)}, expected a list of "
                    f"{features.width} numbers",
                )
        else:
            row = [row[name] for name in features.columns]
    if not isinstance(row, list):
        raise RequestError(
            "Invalid", f"row {index}: found {_shown(row)}, expected a list or a record"
        )
    if len(row) != features.width:
        raise RequestError(
            "Invalid", f"row {index}: found {len(row)} values, the model expects {features.width}"
        )
    if set(map(type, row)) != {float}:
        _check_types(index, row, metadata)
    return row


def _check_types(index: int, row: list[Any], metadata: ModelMetadata) -> None:
    for column, cell in enumerate(row):
        if type(cell) is float or (cell is None and metadata.imputes):
            continue
        raise refuse_cell((index, column), metadata.features, _problem(cell, metadata))


def _problem(cell: Any, metadata: ModelMetadata) -> str:
    if cell is None:
        return null_problem(metadata)
    if isinstance(cell, _NotJson):
        null = "; write null for a missing cell" if metadata.imputes else ""
        return f"found {cell.text}, which is not JSON; allowed are finite numbers{null}"
    if isinstance(cell, bool):
        return f"found {_shown(cell)}, allowed are numbers; write {int(cell)}"
    return f"found {_shown(cell)}, allowed are numbers"


def null_problem(metadata: ModelMetadata) -> str:
    """Why a missing cell is rejected."""
    return (
        f"found null; the model was trained with `missing: {metadata.missing}`, so an endpoint "
        "needs a number in every cell"
    )


def check_columns(names: Iterable[str], features: FeatureSchema, where: str = "") -> None:
    """Raise RequestError for an unknown or missing column."""
    needed = dict.fromkeys(features.source_columns)
    given = dict.fromkeys(names)
    unknown = next((name for name in given if name not in needed), None)
    if unknown is not None:
        raise RequestError(
            "Invalid",
            f"{where}unknown column {_shown(unknown)}{nearest(unknown[:100], needed)} "
            f"Columns: {few(list(needed))}",
        )
    absent = next((name for name in needed if name not in given), None)
    if absent is not None:
        raise RequestError(
            "Invalid", f"{where}column '{absent}' is missing; the model expects {few(list(needed))}"
        )


def fit(matrix: Matrix, metadata: ModelMetadata) -> Matrix:
    """`matrix` (B, C) in the artifact's dtype. Raises RequestError where a value does not fit."""
    features, dtype = metadata.features, np.dtype(metadata.features.dtype)
    if matrix.dtype == dtype and dtype.kind != "f":
        return matrix
    if (
        dtype.kind == "f" and metadata.imputes
    ):  # what float32 does not hold is missing, as in shards
        with np.errstate(over="ignore"):
            return bounded(matrix.astype(dtype, copy=False))[0]
    finite = np.isfinite(matrix)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        found = matrix[row, column]
        problem = null_problem(metadata) if np.isnan(found) else f"found {found}"
        raise refuse_cell((row, column), features, problem)
    if dtype == np.uint8:
        fits = (matrix >= 0) & (matrix <= 255) & (matrix == np.floor(matrix))
        limits = "whole numbers from 0 to 255"
    else:
        fits = np.abs(matrix) <= FLOAT32_MAX
        limits = f"numbers up to {FLOAT32_MAX:.3g}"
    if not fits.all():
        row, column = np.argwhere(~fits)[0]
        problem = f"found {matrix[row, column]:.15g}, allowed are {limits}"
        raise refuse_cell((row, column), features, problem)
    return matrix.astype(dtype, copy=False)


def refuse_cell(at: Any, features: FeatureSchema, problem: str) -> RequestError:
    """An error that names row and column."""
    row, column = int(at[0]), int(at[1])
    return RequestError("Invalid", f"row {row}, '{features.feature_names[column]}': {problem}")


def _shown(value: Any) -> str:
    """The value as JSON, shortened."""
    if isinstance(value, list | dict):
        return ("a list" if isinstance(value, list) else "an object") + f" of {len(value)}"
    if isinstance(value, _NotJson):
        return value.text
    if isinstance(value, str) and len(value) > 40:
        return json.dumps(value[:40]) + "..."
    return json.dumps(value)
