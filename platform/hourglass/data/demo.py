"""Example datasets as Parquet shards: real digits, and a generated chaotic series."""

import io
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hourglass import storage
from hourglass.data.footer import reaching
from hourglass.errors import DataError

SHARDS = 4
GROUP_ROWS = 128
WINDOW = 24
"""Steps of one row of the series."""
STEP_S = 0.02
SERIES_ROWS = 4000
STRANGE_ROWS = 200


def write_digits(uri: str) -> int:
    """Write scikit-learn's 8 x 8 digits below `uri` (`image` uint8[64], 0 to 16, `label`).

    Returns the number of rows. Raises: DataError, WriteError.
    Source: Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", test part.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.data.astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    parts = np.array_split(np.arange(len(images)), SHARDS)
    columns = [{"image": images[i], "label": labels[i], "row_id": i} for i in parts]
    _write(uri, {_shard(number): _table(each) for number, each in enumerate(columns)})
    return len(images)


def write_lorenz(uri: str) -> int:
    """Write windows of Lorenz's system below `uri`/train and `uri`/test.

    A row is `window` float32[24 x 3], consecutive steps of (x, y, z); `is_anomaly` marks a region of
    the test series in which the steps of each window are shuffled: the values are usual, their order is
    not. Returns the number of rows of both. Raises: DataError, WriteError.
    Source: Lorenz 1963, equations 25 to 27; the task after Sakurada and Yairi 2014.
    """
    rng = np.random.default_rng(0)
    shards = {}
    for split, start in (("train", (1.0, 1.0, 20.0)), ("test", (-5.0, 3.0, 30.0))):
        windows = _windows(lorenz(start, SERIES_ROWS + WINDOW))
        strange = np.zeros(len(windows), dtype=np.bool_)
        if split == "test":
            strange[SERIES_ROWS // 2 : SERIES_ROWS // 2 + STRANGE_ROWS] = True
            windows[strange] = rng.permuted(windows[strange], axis=1)
        flat = windows.reshape(len(windows), -1).astype(np.float32)
        steps = np.arange(len(windows))
        parts = np.array_split(steps, SHARDS)
        columns = {"window": flat, "is_anomaly": strange, "step": steps}
        for number, i in enumerate(parts):
            shards[f"{split}/{_shard(number)}"] = _table({k: v[i] for k, v in columns.items()})
    _write(uri, shards)
    return 2 * SERIES_ROWS


def lorenz(start: tuple[float, float, float], steps: int) -> NDArray[np.float64]:
    """`steps` points (steps, 3) of Lorenz's system, STEP_S apart, by the Runge-Kutta method of order 4."""

    # SciPy's solvers sum with BLAS, which rounds as the CPU does; in a chaotic system other roundings
    # become other rows, and the same command would write another dataset on another machine.

    def slope(p: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y, z = p
        return np.array([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z])

    points = np.empty((steps, 3))
    point = np.array(start)
    for index in range(steps):
        points[index] = point
        one = slope(point)
        two = slope(point + STEP_S / 2 * one)
        three = slope(point + STEP_S / 2 * two)
        four = slope(point + STEP_S * three)
        point = point + STEP_S / 6 * (one + 2 * two + 2 * three + four)
    return points


def _windows(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every run of WINDOW points (rows, WINDOW, 3), one starting at each step."""
    view = np.lib.stride_tricks.sliding_window_view(points, WINDOW, axis=0)
    return view.transpose(0, 2, 1)[:SERIES_ROWS].copy()


def _shard(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _table(columns: Mapping[str, NDArray[np.generic]]) -> pa.Table:
    """A matrix becomes a vector column."""
    return pa.table(
        {
            name: pa.FixedSizeListArray.from_arrays(pa.array(v.reshape(-1)), v.shape[1])
            if v.ndim == 2
            else pa.array(v)
            for name, v in columns.items()
        }
    )


def _write(uri: str, shards: Mapping[str, pa.Table]) -> None:
    """One Parquet file for each table, by its name below `uri`; no file of other rows is replaced."""
    missing = [name for name in shards if not _is_there(storage.join(uri, name), shards[name])]
    with storage.new_folder(uri) as folder:
        for name in missing:
            buffer = io.BytesIO()
            pq.write_table(
                shards[name],
                buffer,
                compression="zstd",
                row_group_size=GROUP_ROWS,
                write_page_checksum=True,
            )
            storage.write(storage.join(folder, name), buffer.getvalue())


def _is_there(path: str, table: pa.Table) -> bool:
    """True when the file at `path` holds the table. Raises DataError when it holds something else."""
    with reaching(path):
        if not storage.exists(path):
            return False
        content = storage.read(path)
    try:
        same = pq.read_table(io.BytesIO(content)).equals(table)
    except (pa.ArrowException, OSError):
        same = False
    if not same:
        raise DataError(
            f"{path}: exists, and holds other rows; move it away, or choose another folder"
        )
    return True
