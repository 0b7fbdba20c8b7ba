"""Which columns are features, and which Arrow types a shard may hold.

Only plain types pass: numbers, booleans, strings, timestamps, lists of numbers. A file's extension
types are never instantiated: Arrow metadata that names one has led to code execution.
"""

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from hourglass.errors import DataError, few, nearest
from hourglass.strict import Strict

Missing = Literal["error", "drop_row", "mean"]

FEATURE_TYPES = (
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.bool_()),
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.float16(), pa.float32(), pa.float64()),
)
ALLOWED = "numbers, booleans, strings, dates, timestamps and lists of numbers"


class Features(Strict):
    """The features: one vector column, or many numeric columns chosen by name or glob."""

    vector: str | None = Field(None, description="A column of equally long lists of numbers.")
    columns: tuple[str, ...] = Field((), description="Numeric columns: names or globs such as x*.")
    exclude: tuple[str, ...] = Field((), description="Names or globs left out of `columns`.")

    @model_validator(mode="after")
    def _check_one_kind(self) -> Self:
        if (self.vector is None) == (not self.columns):
            raise ValueError(
                "give either `vector: NAME` or `columns: [GLOB, ...]`, not both or none"
            )
        return self


@dataclass(frozen=True)
class FeatureSchema:
    """The schema of a row of features: resolved once from the shards, stored with the artifact."""

    vector: str | None
    columns: tuple[str, ...]
    width: int
    dtype: str

    @property
    def source_columns(self) -> list[str]:
        """The Parquet columns to read."""
        return [self.vector] if self.vector is not None else list(self.columns)

    @property
    def feature_names(self) -> list[str]:
        """A name for each of the `width` features: `image[3]` for vectors."""
        if self.vector is None:
            return list(self.columns)
        return [f"{self.vector}[{i}]" for i in range(self.width)]

    @property
    def row_bytes(self) -> int:
        """Bytes of one decoded row."""
        return self.width * np.dtype(self.dtype).itemsize


def is_list(kind: pa.DataType) -> bool:
    """True for list, large_list and fixed_size_list."""
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def is_allowed(kind: pa.DataType) -> bool:
    """True when values of this type may be read at all."""
    if isinstance(kind, pa.BaseExtensionType):
        return False
    if is_list(kind):
        return kind.value_type in FEATURE_TYPES
    if pa.types.is_dictionary(kind):
        return bool(
            pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
        )
    return bool(
        kind in FEATURE_TYPES
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_timestamp(kind)
        or pa.types.is_date(kind)
        or pa.types.is_time(kind)
        or pa.types.is_decimal(kind)
    )


def check_column(path: str, schema: pa.Schema, name: str) -> pa.DataType:
    """The type of column `name`. Raises DataError naming file and column, with the nearest name."""
    found = schema.get_all_field_indices(name)
    if not found:
        raise DataError(
            f"{path}: no column '{name}'{nearest(name, schema.names)} Columns: {few(schema.names)}"
        )
    if len(found) > 1:
        raise DataError(f"{path}: column '{name}' occurs {len(found)} times; names must be unique")
    kind = schema.field(found[0]).type
    if not is_allowed(kind):
        raise DataError(f"{path}: column '{name}' has unsupported type {kind}; allowed: {ALLOWED}")
    return kind


def resolve(
    features: Features, path: str, schema: pa.Schema, missing: Missing, vector_width: int | None
) -> FeatureSchema:
    """Match the spec against the first shard's schema; rows that may miss cells hold floats.

    `vector_width` is the list length where the type does not fix it. Raises DataError.
    """
    if features.vector is not None:
        kind = check_column(path, schema, features.vector)
        if not is_list(kind):
            raise DataError(
                f"{path}: column '{features.vector}' is {kind}, a vector needs a list of numbers; "
                f"for single numbers write `features: {{columns: [...]}}`"
            )
        width = kind.list_size if pa.types.is_fixed_size_list(kind) else vector_width
        if not width:
            raise DataError(
                f"{path}: column '{features.vector}' has no list to infer the length from"
            )
        return FeatureSchema(
            features.vector, (), int(width), feature_dtype([kind.value_type], missing == "error")
        )
    names = _match(features, path, schema)
    kinds = _feature_kinds(path, schema, names)
    return FeatureSchema(None, tuple(names), len(names), feature_dtype(kinds, missing == "error"))


def _feature_kinds(path: str, schema: pa.Schema, names: list[str]) -> list[pa.DataType]:
    """The types of columns of single numbers. Raises DataError naming all others."""
    bad = {f.name: f.type for f in schema if f.name in names and f.type not in FEATURE_TYPES}
    if len(bad) > 1:
        found = ", ".join(f"'{name}' ({kind})" for name, kind in bad.items())
        raise DataError(
            f"{path}: {len(bad)} columns do not hold numbers or booleans, which features need: {found}; "
            f"leave them out with `exclude: {exclusion(bad)}`"
        )
    for name in names:
        kind = check_column(path, schema, name)
        if name in bad:
            raise DataError(
                f"{path}: column '{name}' is {kind}, a feature needs numbers or booleans; "
                f"leave it out with `exclude: [{name}]`"
            )
    return [schema.field(name).type for name in names]


def exclusion(names: Iterable[str]) -> str:
    """A list of names in YAML, to paste after `exclude: `."""
    return json.dumps([*names], ensure_ascii=False)


def require_columns(
    path: str, schema: pa.Schema, features: FeatureSchema, beside: Sequence[str]
) -> None:
    """Raise DataError naming every unusable column, of the `features` or `beside` them."""
    problems = []
    for name in dict.fromkeys([*features.source_columns, *beside]):
        try:
            kind = check_column(path, schema, name)
        except DataError as error:
            problems.append(str(error))
            continue
        if name in features.columns and kind not in FEATURE_TYPES:
            problems.append(
                f"{path}: column '{name}' is {kind}, a feature needs numbers or booleans"
            )
        if name == features.vector and not is_list(kind):
            problems.append(f"{path}: column '{name}' is {kind}, a vector needs a list of numbers")
        if name == features.vector and getattr(kind, "list_size", features.width) != features.width:
            problems.append(
                f"{path}: column '{name}' holds lists of {kind.list_size} numbers, the model needs "
                f"{features.width}"
            )
    if problems:
        raise DataError("\n".join(problems))


def _match(features: Features, path: str, schema: pa.Schema) -> list[str]:
    lost = [
        f"{path}: features.{field}: '{pattern}' matches no column"
        f"{nearest(pattern, schema.names)} Columns: {few(schema.names)}"
        for field in ("columns", "exclude")
        for pattern in getattr(features, field)
        if not _any(schema.names, (pattern,))
    ]
    if lost:
        raise DataError("\n".join(lost))
    left_out = set(_any(schema.names, features.exclude))
    chosen = [name for name in _any(schema.names, features.columns) if name not in left_out]
    if not chosen:
        raise DataError(f"{path}: features.exclude leaves no column; Columns: {few(schema.names)}")
    return chosen


def _any(names: list[str], patterns: tuple[str, ...]) -> list[str]:
    """The names that are, or match, one of the patterns; in their own order."""
    return [
        name
        for name in names
        if any(name == pattern or fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    ]


def feature_dtype(kinds: Sequence[pa.DataType], whole: bool) -> str:
    """The dtype that features of these types travel in; `whole`: no cell is missing.

    uint8 stays uint8 until it is on the device; everything else travels as float32 or float64.
    """
    if whole and all(kind in (pa.uint8(), pa.bool_()) for kind in kinds):
        return "uint8"
    small = (pa.uint8(), pa.bool_(), pa.int8(), pa.uint16(), pa.int16(), pa.float16(), pa.float32())
    return "float32" if all(kind in small for kind in kinds) else "float64"


def kind_name(kind: pa.DataType) -> str:
    """A type's name, without the name that the writer gave to the items of a list."""
    if pa.types.is_fixed_size_list(kind):
        return f"fixed_size_list<{kind_name(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (
            f"{'large_' if pa.types.is_large_list(kind) else ''}list<{kind_name(kind.value_type)}>"
        )
    return str(kind)


def schema_hash(schema: pa.Schema) -> str:
    """SHA-256 of names and types, in order; without metadata and nullability."""
    lines = "\n".join(f"{field.name}\t{kind_name(field.type)}" for field in schema)
    return hashlib.sha256(lines.encode()).hexdigest()
