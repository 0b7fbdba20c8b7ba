"""PQ-05, PQ-01 and PQ-02: every cell is right, counted as missing, or refused by its place."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hourglass.data import decode, footer
from hourglass.data.dataset import scan_dataset
from hourglass.data.decode import read_chunks
from hourglass.data.footer import read_footer
from hourglass.data.schema import Features, FeatureSchema, Missing
from hourglass.errors import DataError

NAN, INF = math.nan, math.inf
ADVICE = "`missing: error` allows finite numbers only. Set data.missing to `mean` or `drop_row`"


def schema_of(path: Path, missing: Missing, **features: Any) -> FeatureSchema:
    dataset = scan_dataset(str(path))
    return dataset.features(Features.model_validate(features), missing)


def decoded(path: Path, schema: FeatureSchema, missing: Missing) -> tuple[np.ndarray, np.ndarray]:
    chunks = [
        chunk
        for group in range(len(read_footer(str(path)).rows))
        for chunk in read_chunks(str(path), group, schema, missing)
    ]
    return (
        np.concatenate([chunk.features for chunk in chunks]),
        np.concatenate([chunk.whole for chunk in chunks]),
    )


@dataclass(frozen=True)
class Values:
    """A column `x` (or vector `v`): the cell that is refused, as found, and what the others become."""

    array: pa.Array
    place: str
    found: str
    cells: list[Any]
    dtype: str = "float64"

    @property
    def features(self) -> dict[str, Any]:
        return {"vector": "x"} if pa.types.is_nested(self.array.type) else {"columns": ["x"]}

    @property
    def bad(self) -> list[bool]:
        rows = np.array(self.cells, dtype=np.float64).reshape(len(self.cells), -1)
        return (~np.isfinite(rows)).any(axis=1).tolist()


def vectors(rows: list[Any], kind: pa.DataType, size: int = -1) -> pa.Array:
    return pa.array(rows, pa.list_(kind, size))


F32, F64, I64, U8 = pa.float32(), pa.float64(), pa.int64(), pa.uint8()
VALUES = {
    "nan": Values(pa.array([1.0, NAN, NAN]), "row 1, column 'x'", "nan", [1, NAN, NAN]),
    "inf": Values(pa.array([INF, 1.0, -INF]), "row 0, column 'x'", "inf", [INF, 1, -INF]),
    "-inf": Values(pa.array([0, -INF], F32), "row 1, column 'x'", "-inf", [0, -INF], "float32"),
    "null": Values(pa.array([1.0, 2.0, None]), "row 2, column 'x'", "null", [1, 2, NAN]),
    "null int64": Values(pa.array([None, 2**53 + 1], I64), "row 0, column 'x'", "null", [NAN, 2**53]),
    "null uint8": Values(pa.array([7, None], U8), "row 1, column 'x'", "null", [7, NAN], "float32"),
    "null bool": Values(
        pa.array([True, None, False]), "row 1, column 'x'", "null", [1, NAN, 0], "float32"
    ),
    "null float16": Values(
        pa.array([0.5, None], pa.float16()), "row 1, column 'x'", "null", [0.5, NAN], "float32"
    ),
    "beyond float32": Values(
        pa.array([3e38, -1e300, NAN]), "row 1, column 'x'", "-1e+300", [3e38, -INF, NAN]
    ),
    "null list": Values(
        vectors([[1, 2], None, [3, 4]], F32), "row 1, column 'x'", "null",
        [[1, 2], [NAN, NAN], [3, 4]], "float32",
    ),
    "null fixed-size list": Values(
        vectors([[1, 2], None], U8, 2), "row 1, column 'x'", "null", [[1, 2], [NAN, NAN]], "float32"
    ),
    "null in a list": Values(
        vectors([[1, 2], [3, None], [None, None]], F64), "row 1, column 'x[1]'", "null",
        [[1, 2], [3, NAN], [NAN, NAN]],
    ),
    "null in a list of uint8": Values(
        vectors([[1, 2], [None, 255]], U8), "row 1, column 'x[0]'", "null", [[1, 2], [NAN, 255]],
        "float32",
    ),
    "nan in a fixed-size list": Values(
        vectors([[NAN, 2], [3, 4]], F32, 2), "row 0, column 'x[0]'", "nan", [[NAN, 2], [3, 4]],
        "float32",
    ),
}  # fmt: skip
CLEAN = {
    "int64 beyond 2**53 is rounded": Values(pa.array([2**53 + 1], I64), "", "", [2**53]),
    "uint64": Values(pa.array([2**64 - 1], pa.uint64()), "", "", [2.0**64]),
    "denormal and negative zero": Values(pa.array([5e-324, -0.0]), "", "", [5e-324, -0.0]),
    "uint8": Values(pa.array([0, 255], U8), "", "", [0, 255], "uint8"),
    "bool": Values(pa.array([True, False]), "", "", [1, 0], "uint8"),
    "float16": Values(pa.array([0.5], pa.float16()), "", "", [0.5], "float32"),
    "int8": Values(pa.array([-128], pa.int8()), "", "", [-128], "float32"),
    "list of bool": Values(vectors([[True, False]], pa.bool_()), "", "", [[1, 0]], "uint8"),
    "large list": Values(
        pa.array([[1, 2]], pa.large_list(pa.int32())), "", "", [[1, 2]], "float64"
    ),
    "a list that hides values behind a null": Values(
        pa.ListArray.from_arrays(pa.array([0, 2, 4]), pa.array([1.0, 2.0, 3.0, 4.0])), "", "",
        [[1, 2], [3, 4]],
    ),
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "part-0.parquet"


@pytest.mark.parametrize("name", VALUES)
def test_a_missing_cell_is_refused_by_its_place(path: Path, name: str) -> None:
    values = VALUES[name]
    pq.write_table(pa.table({"x": values.array}), path)
    schema = schema_of(path, "error", **values.features)
    with pytest.raises(DataError) as caught:
        decoded(path, schema, "error")
    rows = f"{sum(values.bad)} such rows in these {len(values.bad)}"
    assert str(caught.value) == (
        f"{path}: row group 0, {values.place}: found {values.found} ({rows}); {ADVICE}"
    )


@pytest.mark.parametrize("missing", ["mean", "drop_row"])
@pytest.mark.parametrize("name", VALUES)
def test_missing_cells_are_nan_or_dropped_and_counted(
    path: Path, name: str, missing: Missing
) -> None:
    values = VALUES[name]
    pq.write_table(pa.table({"x": values.array}), path)
    schema = schema_of(path, missing, **values.features)
    features, whole = decoded(path, schema, missing)
    expected = np.array(values.cells, dtype=np.float64).reshape(len(features), -1)
    np.testing.assert_array_equal(features, expected.astype(values.dtype))
    assert features.dtype == schema.dtype == values.dtype
    dropped = sum(values.bad) if missing == "drop_row" else 0
    assert int((~whole).sum()) == dropped
    if dropped:
        assert np.isfinite(features[whole]).all()


@pytest.mark.parametrize("name", CLEAN)
def test_numbers_arrive_as_they_are(path: Path, name: str) -> None:
    values = CLEAN[name]
    pq.write_table(pa.table({"x": values.array}), path)
    schema = schema_of(path, "error", **values.features)
    features, whole = decoded(path, schema, "error")
    expected = np.array(values.cells).reshape(len(features), -1)
    np.testing.assert_array_equal(features, expected)
    assert np.signbit(features).tolist() == np.signbit(expected).tolist()
    assert features.dtype == schema.dtype == values.dtype
    assert whole.all()


@pytest.mark.parametrize("missing", ["error", "mean", "drop_row"])
@pytest.mark.parametrize(("row", "length"), [([1.0, 2.0, 3.0], 3), ([], 0)])
def test_ragged_lists_are_refused_by_row(
    path: Path, missing: Missing, row: list[float], length: int
) -> None:
    null = [] if missing == "error" else [None]
    pq.write_table(pa.table({"x": vectors([[1, 2], *null, row], F64)}), path)
    with pytest.raises(DataError) as caught:
        decoded(path, schema_of(path, missing, vector="x"), missing)
    assert str(caught.value) == (
        f"{path}: row group 0, row {1 + len(null)}, column 'x': a list of {length} values, "
        "2 are needed; vectors must be equally long"
    )


BYTES = FeatureSchema("x", (), 2, "uint8")


@pytest.mark.parametrize(
    ("rows", "kind", "dtype"),
    [([[0.5, 300]], F32, "float32"), ([[-1, 256]], I64, "float64"), ([[1, 2]], U8, "uint8")],
)
def test_a_model_of_bytes_gets_other_numbers_unharmed(
    path: Path, rows: list[Any], kind: pa.DataType, dtype: str
) -> None:
    pq.write_table(pa.table({"x": vectors(rows, kind)}), path)
    features, _ = decoded(path, BYTES, "error")
    assert features.tolist() == rows
    assert features.dtype == dtype
    pq.write_table(pa.table({"a": [rows[0][0]], "b": [rows[0][1]]}), path)
    features, _ = decoded(path, FeatureSchema(None, ("a", "b"), 2, "uint8"), "error")
    assert features.tolist() == rows


@pytest.mark.parametrize(
    ("column", "schema", "message"),
    [
        (
            pa.array(["1", "2"]),
            FeatureSchema(None, ("x",), 1, "float32"),
            ": row group 0, column 'x': is string, a feature needs numbers or booleans",
        ),
        (
            pa.array(["1", "2"]),
            BYTES,
            ": row group 0, column 'x': is string, a vector needs a list of numbers",
        ),
        (pa.array([{"a": 1}]), BYTES, ": column 'x' has unsupported type struct<a: int64>"),
        (pa.array([1]), FeatureSchema(None, ("y",), 1, "float32"), ": no column 'y'"),
    ],
)
def test_columns_that_do_not_fit_the_model(
    path: Path, column: pa.Array, schema: FeatureSchema, message: str
) -> None:
    pq.write_table(pa.table({"x": column}), path)
    with pytest.raises(DataError, match=f"^{re.escape(str(path) + message)}"):
        decoded(path, schema, "error")


def test_extra_columns_come_beside_the_features(path: Path) -> None:
    pq.write_table(pa.table({"word": ["a", "b"], "x": [1.0, 2.0], "rest": [[1], [2]]}), path)
    schema = FeatureSchema(None, ("x",), 1, "float64")
    (chunk,) = read_chunks(str(path), 0, schema, "error", ("word", "x"))
    assert chunk.table.to_pydict() == {"word": ["a", "b"], "x": [1.0, 2.0]}


@pytest.mark.parametrize("size", [-1, 3])
def test_chunks_change_nothing(path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    rows: list[Any] = random.normal(size=(1000, 3)).tolist()
    rows[70], rows[130][1], rows[999][2] = None, NAN, None
    numbers = random.integers(0, 9, 1000)
    table = pa.table({"v": vectors(rows, F64, size), "n": numbers})
    pq.write_table(table, path, row_group_size=700, data_page_size=512)
    schema = schema_of(path, "drop_row", vector="v")
    whole = decoded(path, schema, "drop_row")
    assert int((~whole[1]).sum()) == 3
    for length in (1, 7, 64, 333, 700):
        monkeypatch.setattr(decode, "chunk_rows", lambda schema, length=length: length)
        assert all(map(np.array_equal, whole, decoded(path, schema, "drop_row"), (True, False)))
        starts = [chunk.start for chunk in read_chunks(str(path), 0, schema, "mean")]
        assert starts == list(range(0, 700, length))
        with pytest.raises(DataError, match="row group 0, row 70, column 'v': found null"):
            decoded(path, schema, "error")


def test_a_row_group_is_read_in_pieces_of_bounded_size() -> None:
    assert decode.chunk_rows(FeatureSchema("v", (), 784, "uint8")) == 42_799
    assert decode.chunk_rows(FeatureSchema("v", (), 1, "uint8")) == 65_536
    assert decode.chunk_rows(FeatureSchema("v", (), 10**7, "float64")) == 64


def test_bytes_are_not_copied_on_their_way() -> None:
    flat = pa.array(np.arange(12, dtype=np.uint8))
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(flat, 2)}).slice(2, 3)
    features, bad = decode.to_matrix(table, BYTES, "here")
    assert features.tolist() == [[4, 5], [6, 7], [8, 9]]
    assert features.ctypes.data == flat.buffers()[1].address + 4
    assert not bad.any()


# Damage


RANDOM = np.random.default_rng(5)
IMAGES = RANDOM.integers(0, 256, (400, 16), dtype=np.uint8)
NUMBERS = RANDOM.normal(size=400)


def images(path: Path, **options: Any) -> list[tuple[int, int, int, str]]:
    """Write two row groups; where the pages of each column lie: start, stop, group, column."""
    flat = pa.array(IMAGES.reshape(-1))
    table = pa.table({"image": pa.FixedSizeListArray.from_arrays(flat, 16), "x": NUMBERS})
    pq.write_table(table, path, row_group_size=200, data_page_size=1024, **options)
    metadata = pq.read_metadata(path)
    places = []
    for group in range(metadata.num_row_groups):
        for index in range(2):
            column = metadata.row_group(group).column(index)
            start = column.dictionary_page_offset or column.data_page_offset
            name = column.path_in_schema.split(".")[0]
            places.append((start, start + column.total_compressed_size, group, name))
    return places


SCHEMAS = {
    "image": FeatureSchema("image", (), 16, "uint8"),
    "x": FeatureSchema(None, ("x",), 1, "float64"),
}
RIGHT = {"image": IMAGES, "x": NUMBERS[:, None]}


def damaged(path: Path, places: list[Any], flips: int) -> Iterator[tuple[int, str]]:
    """One flipped bit after the other, each in a page of (group, column)."""
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    for flip in range(flips):
        start, stop, group, column = places[flip % len(places)]
        content = bytearray(whole)
        content[random.integers(start, stop)] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        yield group, column


def outcome(path: Path, column: str) -> str:
    """`right`, `wrong`, or the message it is refused with."""
    try:
        features, _ = decoded(path, SCHEMAS[column], "error")
    except DataError as error:
        return str(error)
    return "right" if np.array_equal(features, RIGHT[column]) else "wrong"


@pytest.mark.parametrize(
    "options", [{"compression": "none"}, {"compression": "zstd"}, {"data_page_version": "2.0"}]
)
def test_no_flipped_bit_gives_a_wrong_number(path: Path, options: dict[str, Any]) -> None:
    places = images(path, write_page_checksum=True, **options)
    assert [outcome(path, column) for column in SCHEMAS] == ["right", "right"]
    refused = 0
    for group, column in damaged(path, places, 100):
        reported = outcome(path, column)
        if reported == "right":  # a statistic in a page's header, which nobody reads
            continue
        refused += 1
        assert reported.startswith(
            f"{path}: row group {group}, column '{column}': cannot be decoded ("
        )
    assert refused >= 85


def test_a_damaged_page_is_named_verbatim(path: Path) -> None:
    start, stop, _, _ = images(path, write_page_checksum=True, compression="none")[2]
    content = bytearray(path.read_bytes())
    content[stop - 5] ^= 4
    path.write_bytes(content)
    assert start < stop - 5
    assert re.fullmatch(
        re.escape(f"{path}: row group 1, column 'image': cannot be decoded (")
        + "could not verify page integrity, CRC checksum verification failed for page_ordinal .*",
        outcome(path, "image"),
    )
    assert outcome(path, "x") == "right"


def test_without_verification_wrong_numbers_are_silent(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = images(path, write_page_checksum=True, compression="none")
    trusting = pq.ParquetFile
    monkeypatch.setattr(
        footer.pq,
        "ParquetFile",
        lambda *args, **options: trusting(
            *args, **(options | {"page_checksum_verification": False})
        ),
    )
    reported = [outcome(path, column) for _, column in damaged(path, places, 60)]
    assert reported.count("wrong") >= 30


def test_damage_without_checksums_never_crashes(
    path: Path, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    places = images(path, compression="zstd")
    reported = [outcome(path, column) for _, column in damaged(path, places, 200)]
    wrong = reported.count("wrong")
    record_property("silently wrong, of 200 flips without checksums", wrong)
    with capsys.disabled():
        print(f" [no checksums: {wrong} of 200 flips silently wrong]", end="")
    assert all(t in ("right", "wrong") or t.startswith(f"{path}: ") for t in reported)
    assert wrong > 0  # what the warning about missing checksums is for


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_cut_shard_gives_no_rows(path: Path, share: float) -> None:
    images(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert outcome(path, "x").startswith(f"{path}: does not end in a Parquet footer: truncated")


def test_a_shard_cut_while_it_is_read_is_told(path: Path) -> None:
    images(path, compression="none")
    chunks = read_chunks(str(path), 1, SCHEMAS["image"], "error")
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + whole[-2000:])
    with pytest.raises(DataError, match=re.escape(str(path))):
        list(chunks)


def test_a_disk_that_fails_is_not_called_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(path)

    def fail(*args: Any, **options: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail)
    assert outcome(path, "x") == f"{path}: cannot be read ([Errno 5] Input/output error)"
