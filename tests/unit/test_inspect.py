"""What `hourglass data inspect` says of shards, line by line."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hourglass.data.inspect import Column, inspect, lines
from hourglass.errors import DataError

MNIST = Path(__file__).parents[2] / ".." / "shared" / "data" / "mnist" / "test"
COLUMNS = {
    "bytes": pa.array([0, 255, 3], pa.uint8()),
    "float": pa.array([1.5, None, math.nan], pa.float32()),
    "flag": pa.array([True, None, False]),
    "same": pa.array([7, 7, 7]),
    "word": pa.array(["a", None, None]),
    "vector": pa.array([[1, 2], None, [1, 4]], pa.list_(pa.int8(), 2)),
    "ragged": pa.array([[1.0], [], [1.0, None]]),
    "empty": pa.array([[], [], None], pa.list_(pa.float32())),
    "point": pa.array([{"x": 1}, {"x": 2}, None]),
}
EXPECTED = [
    Column("bytes", "uint8", 0, 6, 0, 0.0, 255.0, 86.0),
    Column("float", "float", 2, 2, 2, 1.5, 1.5, 1.5, constant=1),
    Column("flag", "bool", 2, 4, 0, 0.0, 1.0, 0.5),
    Column("same", "int64", 0, 6, 0, 7.0, 7.0, 7.0, constant=1),
    Column("word", "string", 4),
    Column("vector", "fixed_size_list<element: int8>[2]", 2, 8, 0, 1.0, 4.0, 2.0, (2, 2), 1),
    Column("ragged", "list<element: double>", 0, lengths=(0, 2)),
    Column("empty", "list<element: float>", 2, lengths=(0, 0)),
    Column("point", "struct<x: int64>"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of the same three rows, one row a group."""
    for name in ("a", "b"):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table(COLUMNS), path, row_group_size=1, write_page_checksum=name == "a")
    return tmp_path


def test_every_column_is_counted(folder: Path) -> None:
    reported: list[tuple[float, float, str]] = []
    report = inspect(str(folder), lambda *what: reported.append(what))
    assert reported == [(1, 2, "a.parquet"), (2, 2, "b.parquet")]
    assert report.columns == EXPECTED


def test_the_report_is_these_lines(folder: Path) -> None:
    sizes = [(folder / f"{name}.parquet").stat().st_size for name in "ab"]
    assert list(lines(inspect(str(folder), lambda *_: None)))[:6] == [
        f"2 shards, 6 rows, 6 row groups, {sum(sizes)} bytes",
        f"  {'a.parquet':<40}          3 rows     3 row groups {sizes[0]:>12} bytes",
        f"  {'b.parquet':<40}          3 rows     3 row groups {sizes[1]:>12} bytes",
        f"1 of 2 shards carry no page checksums ({folder}/b.parquet is one): damage to them may "
        "change numbers unnoticed. Write them with write_page_checksum=True, or pin their content "
        "with `hourglass data manifest`",
        "9 columns",
        f"  {'bytes':<20} {'uint8':<38} {0:>8} nulls  min 0          mean 86         max 255       ",
    ]
    endings = [column.describe() for column in EXPECTED]
    assert endings[1].endswith("  2 NaN or infinite  constant")
    assert endings[5].endswith("  1 of 2 positions constant")
    assert endings[6].endswith("  lengths 0 to 2: not usable as a vector")


def test_a_damaged_page_stops_it(folder: Path) -> None:
    path = folder / "a.parquet"
    column = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[column.dictionary_page_offset + column.total_compressed_size - 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.parquet: row group 1, column 'bytes': cannot be decod"):
        inspect(str(folder), lambda *_: None)


N = np.arange(100)
FAR: dict[str, tuple[pa.Array, str]] = {
    "ids": (
        pa.array(2**60 + N),
        "min 1152921504606846976 mean 1.152921504606847e+18 max 1152921504606847075  near-unique",
    ),
    "unsigned": (
        pa.array(np.uint64(2**64 - 1) - N.astype(np.uint64) % np.uint64(2)),
        "min 18446744073709551614 mean 1.8446744073709552e+19 max 18446744073709551615",
    ),
    "one id": (
        pa.array(np.full(100, 2**60 + 1)),
        "min 1152921504606846977 mean 1.152921504606847e+18 max 1152921504606846977  constant",
    ),
    "epoch ms": (
        pa.array(1_700_000_000_000 + N % 2 * 6000),
        "min 1700000000000 mean 1.700000003e+12 max 1700000006000",
    ),
    "as floats": (
        pa.array(1.7e12 + N % 2 * 0.5),
        "min 1700000000000 mean 1700000000000.25 max 1700000000000.5",
    ),
    "one float": (
        pa.array(np.full(100, 1_700_000_000_123.0)),
        "min 1700000000123 mean 1700000000123 max 1700000000123  constant",
    ),
    "pairs": (
        pa.array([[2**60, 2**60 + k % 2] for k in range(100)], pa.list_(pa.int64(), 2)),
        "min 1152921504606846976 mean 1.152921504606847e+18 max 1152921504606846977  "
        "1 of 2 positions constant",
    ),
    "with gaps": (
        pa.array([[2**60 + 1, None], [2**60 + 2, 2**60]] * 50, pa.list_(pa.int64(), 2)),
        "min 1152921504606846976 mean 1.152921504606847e+18 max 1152921504606846978  "
        "50 NaN or infinite  1 of 2 positions constant",
    ),
    "days": (pa.array(N.astype("M8[D]")), "min 1970-01-01 max 1970-04-10"),
    "instants": (
        pa.array(N.astype("M8[ns]"), pa.timestamp("ns", "Europe/Zurich")),
        "min 1970-01-01 00:00:00.000000000Z max 1970-01-01 00:00:00.000000099Z",
    ),
}


@pytest.mark.parametrize("name", FAR)
def test_numbers_far_from_zero_are_told_apart(tmp_path: Path, name: str) -> None:
    column, figures = FAR[name]
    for number in range(2):
        table = pa.table({"x": column.slice(50 * number, 50)})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=9)
    (found,) = inspect(str(tmp_path), lambda *_: None).columns
    assert found.describe().rstrip().endswith(f"nulls  {figures}")


def test_floats_would_make_ids_one_value() -> None:
    assert len({*(2**60 + N).astype(np.float64).tolist()}) == 1


@pytest.mark.skipif(not MNIST.exists(), reason="MNIST's shards are not beside the repository")
def test_mnist_is_as_known() -> None:
    report = inspect(str(MNIST), lambda *_: None)
    image, label = report.columns
    assert report.manifest.rows == 10_000
    assert (image.lengths, image.low, image.high, image.nulls) == ((784, 784), 0.0, 255.0, 0)
    assert image.mean == pytest.approx(33.79, abs=0.01)
    assert (label.low, label.high) == (0.0, 9.0)
