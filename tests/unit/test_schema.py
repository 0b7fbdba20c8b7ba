"""PQ-04: shards of another schema are refused by file and column, or read alike; and features."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hourglass.data.dataset import scan_dataset
from hourglass.data.decode import read_chunks
from hourglass.data.footer import read_footer
from hourglass.data.manifest import scan
from hourglass.data.schema import Features, FeatureSchema, Missing, require_columns
from hourglass.errors import DataError

F32 = pa.float32()
BASE = {
    "a": pa.array([1, 2, 3], pa.int32()),
    "v": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(F32)),
    "word": pa.array(["x", "y", "z"]),
    "at": pa.array([1, 2, 3], pa.timestamp("ms")),
}


@dataclass(frozen=True)
class Drift:
    """The second shard: columns that replace the base's, and what is said of it (or nothing)."""

    change: dict[str, Any]
    refusal: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def table(self) -> pa.Table:
        columns = {**BASE, **self.change}
        return pa.table({name: array for name, array in columns.items() if array is not None})


def of_type(name: str, kind: pa.DataType) -> dict[str, pa.Array]:
    return {name: BASE[name].cast(kind)}


def is_(name: str, found: str, base: str) -> str:
    return (
        f"{{second}}: column '{name}' is {found}, in {{first}} it is {base}; "
        "all shards must have one schema"
    )


def lists(kind: pa.DataType) -> dict[str, pa.Array]:
    return {"v": pa.array(BASE["v"].to_pylist(), kind)}


def extra(name: str) -> str:
    return f"{{second}}: column '{name}' is not in {{first}}; all shards must have one schema"


NO_A = "{second}: no column 'a', which {first} has"
DRIFTS = {
    "the same": Drift({}),
    "int64 for int32": Drift(of_type("a", pa.int64()), is_("a", "int64", "int32")),
    "uint32 for int32": Drift(of_type("a", pa.uint32()), is_("a", "uint32", "int32")),
    "float for int32": Drift(of_type("a", F32), is_("a", "float", "int32")),
    "string for int32": Drift(of_type("a", pa.string()), is_("a", "string", "int32")),
    "only nulls": Drift({"a": pa.nulls(3)}, is_("a", "null", "int32")),
    "missing": Drift({"a": None}, NO_A),
    "upper case": Drift({"a": None, "A": BASE["a"]}, NO_A),
    "zero-width name": Drift({"a": None, "a\u200b": BASE["a"]}, NO_A),
    "extra": Drift({"more": BASE["a"]}, extra("more")),
    "decomposed name": Drift({"e\u0301": BASE["a"]}, extra("e\u0301")),
    "list of doubles": Drift(
        lists(pa.list_(pa.float64())), is_("v", "list<double>", "list<float>")
    ),
    "large list": Drift(lists(pa.large_list(F32)), is_("v", "large_list<float>", "list<float>")),
    "fixed-size list": Drift(
        lists(pa.list_(F32, 2)), is_("v", "fixed_size_list<float>[2]", "list<float>")
    ),
    "list items by another name": Drift(lists(pa.list_(pa.field("item", F32)))),
    "list items never null": Drift(lists(pa.list_(pa.field("element", F32, nullable=False)))),
    "large string": Drift(
        of_type("word", pa.large_string()), is_("word", "large_string", "string")
    ),
    "dictionary": Drift(
        {"word": BASE["word"].dictionary_encode()},
        is_("word", "dictionary<values=string, indices=int32, ordered=0>", "string"),
    ),
    "nanoseconds": Drift(
        of_type("at", pa.timestamp("ns")), is_("at", "timestamp[ns]", "timestamp[ms]")
    ),
    "time zone": Drift(
        of_type("at", pa.timestamp("ms", "UTC")),
        is_("at", "timestamp[ms, tz=UTC]", "timestamp[ms]"),
    ),
    "no stored Arrow schema": Drift({}, options={"store_schema": False}),
    "other compression, encoding and page version": Drift(
        {}, options={"compression": "gzip", "use_dictionary": False, "data_page_version": "2.0"}
    ),
    "nulls": Drift({"word": pa.array([None, None, "z"])}),
}


def written(folder: Path, drift: Drift) -> tuple[Path, Path]:
    first, second = folder / "a=1" / "part-0.parquet", folder / "a=2" / "part-0.parquet"
    for path in (first, second):
        path.parent.mkdir()
    pq.write_table(pa.table(BASE), first)
    pq.write_table(drift.table(), second, **drift.options)
    return first, second


def features_of(uri: str, features: Features, missing: Missing = "error") -> np.ndarray:
    dataset = scan_dataset(uri)
    schema = dataset.features(features, missing)
    return np.concatenate(
        [
            chunk.features
            for shard in dataset.manifest.shards
            for group in range(len(shard.rows))
            for chunk in read_chunks(shard.path, group, schema, missing)
        ]
    )


@pytest.mark.parametrize("name", DRIFTS)
def test_drift_is_refused_by_column_or_read_alike(tmp_path: Path, name: str) -> None:
    drift = DRIFTS[name]
    first, second = written(tmp_path, drift)
    if drift.refusal:
        with pytest.raises(DataError) as caught:
            scan(str(tmp_path))
        assert str(caught.value) == drift.refusal.format(first=first, second=second)
        return
    vectors = features_of(str(tmp_path), Features(vector="v"))
    assert vectors.tolist() == [[1, 2], [3, 4], [5, 6]] * 2
    columns = features_of(str(tmp_path), Features(columns=("a",)))  # not the folders' a=1, a=2
    assert columns.tolist() == [[1], [2], [3]] * 2


def test_another_order_of_columns_is_refused(tmp_path: Path) -> None:
    first, second = written(tmp_path, Drift({}))
    pq.write_table(pa.table(BASE).select(["a", "word", "v", "at"]), second)
    with pytest.raises(DataError) as caught:
        scan(str(tmp_path))
    assert str(caught.value) == f"{second}: column 'word' is at another position than in {first}"


def test_repeated_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "part-0.parquet"
    pq.write_table(pa.Table.from_arrays([BASE["a"]] * 3, names=["a", "b", "a"]), path)
    with pytest.raises(DataError) as caught:
        scan(str(tmp_path))
    assert str(caught.value) == f"{path}: column 'a' occurs 2 times; names must be unique"


def test_nullability_and_metadata_do_not_count(tmp_path: Path) -> None:
    _, second = written(tmp_path, Drift({}))
    strict = pa.schema(
        [field.with_nullable(False).with_metadata({"k": "v"}) for field in pa.table(BASE).schema],
        metadata={"writer": "another"},
    )
    pq.write_table(pa.table(BASE, schema=strict), second)
    assert scan(str(tmp_path))[0].rows == 6


TABLE = {
    "x1": pa.array([1.5, 2.5], pa.float32()),
    "x2": pa.array([1, 2], pa.uint8()),
    "x[3]": pa.array([3, 4], pa.int16()),
    "café 🙂": pa.array([True, False]),
    "big": pa.array([7, 8], pa.int64()),
    "half": pa.array([0.5, 1.0], pa.float16()),
    "label": pa.array(["a", "b"]),
    "image": pa.array([[1, 2, 3], [4, 5, 6]], pa.list_(pa.uint8(), 3)),
    "words": pa.array([[1, 2], [3, 4]], pa.list_(pa.int8())),
    "texts": pa.array([["a"], ["b"]]),
    "points": pa.array([{"x": 1}, {"x": 2}]),
}


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "part-0.parquet"
    pq.write_table(pa.table(TABLE), path)
    return path


def resolved(shard: Path, missing: Missing = "error", **features: Any) -> FeatureSchema:
    dataset = scan_dataset(str(shard))
    return dataset.features(Features.model_validate(features), missing)


@pytest.mark.parametrize(
    ("features", "names", "dtype"),
    [
        ({"columns": ["x*"]}, ["x1", "x2", "x[3]"], "float32"),
        ({"columns": ["x*"], "exclude": ["x1", "x[3]"]}, ["x2"], "uint8"),
        ({"columns": ["x[3]"]}, ["x[3]"], "float32"),
        ({"columns": ["x2", "café*"]}, ["x2", "café 🙂"], "uint8"),
        ({"columns": ["x1", "big"]}, ["x1", "big"], "float64"),
        ({"columns": ["half"]}, ["half"], "float32"),
        ({"columns": ["big", "x1", "x*"]}, ["x1", "x2", "x[3]", "big"], "float64"),
        ({"vector": "image"}, ["image[0]", "image[1]", "image[2]"], "uint8"),
        ({"vector": "words"}, ["words[0]", "words[1]"], "float32"),
    ],
)
def test_features_by_name_and_glob(
    shard: Path, features: dict[str, Any], names: list[str], dtype: str
) -> None:
    schema = resolved(shard, **features)
    assert schema.feature_names == names
    assert (schema.width, schema.dtype) == (len(names), dtype)
    assert schema.row_bytes == len(names) * np.dtype(dtype).itemsize


@pytest.mark.parametrize("missing", ["mean", "drop_row"])
def test_rows_that_may_miss_cells_are_floats(shard: Path, missing: Missing) -> None:
    assert resolved(shard, missing, vector="image").dtype == "float32"
    assert resolved(shard, missing, columns=["x2"]).dtype == "float32"


SOME = "Columns: x1, x2, x[3], café 🙂, big, half, label, image, words, texts, points"


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"vector": "imag"}, f"no column 'imag', did you mean 'image'? {SOME}"),
        (
            {"vector": "x1"},
            "column 'x1' is float, a vector needs a list of numbers; "
            "for single numbers write `features: {columns: [...]}`",
        ),
        (
            {"vector": "texts"},
            "column 'texts' has unsupported type list<element: string>; allowed: numbers, "
            "booleans, strings, dates, timestamps and lists of numbers",
        ),
        (
            {"columns": ["points"]},
            "column 'points' has unsupported type struct<x: int64>; allowed: numbers, booleans, "
            "strings, dates, timestamps and lists of numbers",
        ),
        (
            {"columns": ["x1", "label"]},
            "column 'label' is string, a feature needs numbers or booleans; "
            "leave it out with `exclude: [label]`",
        ),
        ({"columns": ["y*"]}, f"features.columns: 'y*' matches no column. {SOME}"),
        (
            {"columns": ["x*"], "exclude": ["lable"]},
            f"features.exclude: 'lable' matches no column, did you mean 'label'? {SOME}",
        ),
        ({"columns": ["x1"], "exclude": ["x*"]}, f"features.exclude leaves no column; {SOME}"),
    ],
)
def test_features_that_are_not_there(shard: Path, features: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        resolved(shard, **features)
    assert str(caught.value) == f"{shard}: {message}"


@pytest.mark.parametrize("features", [{}, {"vector": "v", "columns": ["a"]}])
def test_features_are_given_one_way(features: dict[str, Any]) -> None:
    message = "give either `vector: NAME` or `columns: [GLOB, ...]`, not both or none"
    with pytest.raises(ValueError, match=re.escape(message)):
        Features.model_validate(features)


@pytest.mark.parametrize("first", [[None, None], [[], []], []])
def test_the_length_of_a_vector_comes_from_the_first_list_there_is(
    tmp_path: Path, first: list[Any]
) -> None:
    for name, rows in (("a", first), ("b", [None, [1.0, 2.0]])):
        pq.write_table(pa.table({"v": pa.array(rows, pa.list_(F32))}), tmp_path / f"{name}.parquet")
    assert resolved(tmp_path, "drop_row", vector="v").width == 2


def test_a_vector_without_a_list_has_no_length(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"v": pa.array([None], pa.list_(F32))}), path)
    with pytest.raises(DataError) as caught:
        resolved(path, "mean", vector="v")
    assert str(caught.value) == f"{path}: column 'v' has no list to infer the length from"


def test_all_that_is_wrong_with_columns_is_told_at_once(shard: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolved(shard, columns=["*"], exclude=["image", "words", "texts"])
    assert str(caught.value) == (
        f"{shard}: 2 columns do not hold numbers or booleans, which features need: 'label' (string), "
        '\'points\' (struct<x: int64>); leave them out with `exclude: ["label", "points"]`'
    )
    exclude = json.loads(str(caught.value).split("exclude: ")[1].rstrip("`"))
    resolved(shard, columns=["*"], exclude=["image", "words", "texts", *exclude])
    with pytest.raises(DataError) as caught:
        resolved(shard, columns=["y*", "x1"], exclude=["lable"])
    assert [line.removeprefix(f"{shard}: ") for line in str(caught.value).splitlines()] == [
        f"features.columns: 'y*' matches no column. {SOME}",
        f"features.exclude: 'lable' matches no column, did you mean 'label'? {SOME}",
    ]


def test_all_columns_that_a_model_misses_are_told_at_once(shard: Path) -> None:
    schema = read_footer(str(shard)).schema
    columns = FeatureSchema(None, ("x1", "label", "gone"), 3, "float64")
    with pytest.raises(DataError) as caught:
        require_columns(str(shard), schema, columns, ["words", "wrods", "x1"])
    assert [line.removeprefix(f"{shard}: ") for line in str(caught.value).splitlines()] == [
        "column 'label' is string, a feature needs numbers or booleans",
        f"no column 'gone'. {SOME}",
        f"no column 'wrods', did you mean 'words'? {SOME}",
    ]
    for width, name, printed in [
        (5, "image", "holds lists of 3 numbers, the model needs 5"),
        (1, "x1", "is float, a vector needs a list of numbers"),
    ]:
        with pytest.raises(DataError, match=f"column '{name}' {printed}"):
            require_columns(str(shard), schema, FeatureSchema(name, (), width, "uint8"), [])
    require_columns(str(shard), schema, FeatureSchema("image", (), 3, "uint8"), ["label"])
