"""The rows that a caller passes in, as numbers, and the errors of those that do not fit.

Shapes: B rows, C columns.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from hourglass.data import arrays
from hourglass.data.arrays import VECTOR
from hourglass.data.decode import FLOAT32_MAX, Matrix, bounded
from hourglass.errors import DataError


class InputError(DataError, ValueError):
    """A DataError about an argument: scikit-learn's callers expect a ValueError."""


@contextmanager
def about_arguments() -> Iterator[None]:
    """Whatever does not fit here is an argument."""
    try:
        yield
    except DataError as error:
        raise InputError(str(error)) from None


def numbers(estimator: Any, X: Any, reset: bool) -> tuple[Matrix, str | None]:
    """Rows (B, C) as numbers, and the name of the vector column they came from, if they did.

    With `reset` the estimator takes the names and the width of `X`; without, `X` must have its own.
    """
    X = arrays.tabular(X)
    rows = arrays.uniform(X)
    found = arrays.vectors(X) if rows is None else None
    columns = arrays.table_columns(X) if rows is None and found is None else None
    if columns:
        rows = arrays.from_columns(columns)
    if rows is not None:
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        return check_array(rows, ensure_all_finite=False), None
    rows, vector = found or (arrays.plain(X), None)
    checked = validate_data(estimator, rows, reset=reset, dtype="numeric", ensure_all_finite=False)
    return checked, vector


def require_finite(
    rows: Matrix, vector: str | None, names: Sequence[str] | None, policy: str
) -> None:
    """Raise InputError for NaN, infinity or what float32 does not hold, with its row and column."""
    exact, bad = bounded(rows)
    if bad.any():
        row, column = np.argwhere(~np.isfinite(exact))[0]
        where = f"{vector or VECTOR}[{column}]" if names is None or vector else names[column]
        found = rows[row, column]
        beyond = f", which is beyond ±{FLOAT32_MAX:.2g}" if np.isfinite(found) else ""
        raise InputError(
            f"row {row}, '{where}': found {found}{beyond} ({int(bad.sum())} such rows); "
            f"missing='{policy}' allows no NaN or infinity here: fit with missing='mean', or "
            "clean the rows"
        )
