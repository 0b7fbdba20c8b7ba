"""Which columns become features: properties of `resolve`, for any shard's schema."""

import fnmatch
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hourglass.data.schema import (
    FEATURE_TYPES,
    Features,
    FeatureSchema,
    Missing,
    check_column,
    is_allowed,
    resolve,
    schema_hash,
)
from hourglass.errors import DataError

NAMES = st.text("abx1_", min_size=1, max_size=3)
GLOBS = st.lists(st.text("abx1_*?", min_size=1, max_size=3), min_size=1, max_size=3)
KINDS = st.sampled_from(FEATURE_TYPES)
COLUMNS = st.dictionaries(NAMES, KINDS, min_size=1, max_size=8)
EXACT = [kind for kind in FEATURE_TYPES if kind not in (pa.int64(), pa.uint64())]


def matches(name: str, globs: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def resolved(
    features: dict[str, Any],
    schema: pa.Schema,
    width: int | None = None,
    missing: Missing = "error",
) -> FeatureSchema:
    return resolve(Features.model_validate(features), "a.parquet", schema, missing, width)


@given(COLUMNS, GLOBS, st.one_of(st.just([]), GLOBS))
def test_columns_are_the_matching_ones_in_the_shards_order(
    columns: dict[str, pa.DataType], wanted: list[str], exclude: list[str]
) -> None:
    expected = [name for name in columns if matches(name, wanted) and not matches(name, exclude)]
    lost = [
        f"features.{field}: '{glob}' matches no column"
        for field, globs in (("columns", wanted), ("exclude", exclude))
        for glob in globs
        if not any(matches(name, [glob]) for name in columns)
    ]
    features, schema = {"columns": wanted, "exclude": exclude}, pa.schema(list(columns.items()))
    if lost or not expected:
        with pytest.raises(DataError) as caught:
            resolved(features, schema)
        message = lost[0] if lost else "features.exclude leaves no column; Columns: "
        assert str(caught.value).startswith(f"a.parquet: {message}")
        return
    found = resolved(features, schema)
    assert list(found.columns) == found.feature_names == found.source_columns == expected
    assert found.width == len(expected)
    assert found.row_bytes == found.width * np.dtype(found.dtype).itemsize


@given(st.lists(st.sampled_from(EXACT), min_size=1, max_size=4), st.data())
def test_the_common_type_holds_every_value_exactly(
    kinds: list[pa.DataType], data: st.DataObject
) -> None:
    schema = pa.schema([(f"x{i}", kind) for i, kind in enumerate(kinds)])
    missing = data.draw(st.sampled_from(get_args(Missing)))
    dtype = resolved({"columns": ["*"]}, schema, missing=missing).dtype
    assert dtype != "uint8" or missing == "error"  # a missing cell needs a NaN
    for kind in kinds:
        numpy = np.dtype(kind.to_pandas_dtype())
        if numpy.kind == "f":
            value = data.draw(st.floats(width=numpy.itemsize * 8, allow_nan=False))
        else:
            low, high = (0, 1) if numpy.kind == "b" else (np.iinfo(numpy).min, np.iinfo(numpy).max)
            value = data.draw(st.integers(int(low), int(high)))
        with np.errstate(over="ignore"):
            assert np.asarray(value, numpy).astype(dtype) == value


@given(KINDS, st.integers(1, 5000), st.booleans())
def test_a_vector_has_the_width_of_its_lists(kind: pa.DataType, width: int, fixed: bool) -> None:
    lists = pa.list_(kind, width) if fixed else pa.list_(kind)
    found = resolved({"vector": "v"}, pa.schema([("v", lists)]), None if fixed else width)
    assert (found.width, found.source_columns) == (width, ["v"])
    assert found.feature_names[-1] == f"v[{width - 1}]"
    assert (found.dtype == "uint8") == (kind in (pa.uint8(), pa.bool_()))


@given(COLUMNS, st.dictionaries(st.binary(max_size=4), st.binary(max_size=4), max_size=2))
def test_the_hash_is_of_names_types_and_order(
    columns: dict[str, pa.DataType], metadata: dict[bytes, bytes]
) -> None:
    schema = pa.schema(list(columns.items()))
    other = pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in columns.items()], metadata
    )
    assert schema_hash(schema) == schema_hash(other)
    turned = pa.schema(list(reversed(columns.items())))
    assert (schema_hash(schema) == schema_hash(turned)) == (len(columns) == 1)


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        *((kind, True) for kind in FEATURE_TYPES),
        *((pa.list_(kind), True) for kind in FEATURE_TYPES),
        (pa.string(), True),
        (pa.timestamp("ns", "UTC"), True),
        (pa.decimal128(10, 2), True),
        (pa.dictionary(pa.int8(), pa.string()), True),
        (pa.binary(), False),
        (pa.list_(pa.string()), False),
        (pa.list_(pa.list_(pa.float32())), False),
        (pa.struct([("a", pa.int8())]), False),
        (pa.map_(pa.string(), pa.int8()), False),
        (pa.dictionary(pa.int8(), pa.binary()), False),
        (pa.null(), False),
        (pa.uuid(), False),
        (pa.list_(pa.uuid()), False),
        (pa.fixed_shape_tensor(pa.float32(), [2]), False),
    ],
    ids=str,
)
def test_only_plain_types_pass(kind: pa.DataType, allowed: bool) -> None:
    schema = pa.schema([("x", kind)])
    assert is_allowed(kind) == allowed
    if allowed:
        assert check_column("a.parquet", schema, "x") == kind
        return
    with pytest.raises(DataError) as caught:
        check_column("a.parquet", schema, "x")
    assert str(caught.value) == (
        f"a.parquet: column 'x' has unsupported type {kind}; allowed: "
        "numbers, booleans, strings, dates, timestamps and lists of numbers"
    )


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"vector": "imgae"},
            "a.parquet: no column 'imgae', did you mean 'image'? Columns: image, image, id",
        ),
        (
            {"vector": "image"},
            "a.parquet: column 'image' occurs 2 times; names must be unique",
        ),
        (
            {"vector": "id"},
            "a.parquet: column 'id' is string, a vector needs a list of numbers; "
            "for single numbers write `features: {columns: [...]}`",
        ),
        (
            {"columns": ("id",)},
            "a.parquet: column 'id' is string, a feature needs numbers or booleans; "
            "leave it out with `exclude: [id]`",
        ),
    ],
)
def test_what_does_not_resolve(features: dict[str, str], message: str) -> None:
    image = pa.list_(pa.uint8(), 4)
    schema = pa.schema([("image", image), ("image", image), ("id", pa.string())])
    with pytest.raises(DataError) as caught:
        resolved(features, schema)
    assert str(caught.value) == message
