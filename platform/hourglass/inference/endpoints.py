"""Endpoints: the answers a model gives, each declared once.

An `Endpoint` names an answer, computes it, and gives it a JSON and an Arrow form. The HTTP routes,
their OpenAPI document and query parameters, and the outputs of MLflow's `predict` all derive from
`ENDPOINTS`. Shapes: B rows, C raw columns, F features in model space, K code units.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hourglass.data.schema import FeatureSchema, Missing
from hourglass.inference.predictor import Predictor
from hourglass.inference.table_io import as_columns, lists
from hourglass.strict import Strict

Array = NDArray[Any]
Arrays = dict[str, Array]
"""The computed answer by name; the first array is the answer itself, others accompany it."""
Options = Mapping[str, int]


class ModelMetadata(Strict):
    """What a model expects of a row, and what identifies its answers."""

    name: str
    version: str
    digest: str
    vector: str | None
    columns: tuple[str, ...]
    feature_names: tuple[str, ...]
    width: int
    dtype: str
    missing: Missing
    code_width: int
    threshold: float

    @classmethod
    def of(cls, predictor: Predictor, name: str, version: str | None) -> "ModelMetadata":
        """The metadata of a loaded model; the version of an artifact folder is its digest."""
        features, digest = predictor.features, predictor.artifact.digest
        return cls(
            name=name,
            version=version or digest[:12],
            digest=digest,
            vector=features.vector,
            columns=features.columns,
            feature_names=tuple(predictor.feature_names),
            width=features.width,
            dtype=features.dtype,
            missing=predictor.missing,
            code_width=predictor.code_width,
            threshold=predictor.threshold,
        )

    @cached_property
    def features(self) -> FeatureSchema:
        """The columns of a raw row."""
        return FeatureSchema(self.vector, self.columns, self.width, self.dtype)

    @property
    def imputes(self) -> bool:
        """True when missing cells are imputed; an endpoint cannot drop a row it must answer."""
        return self.missing == "mean"

    @property
    def identity(self) -> dict[str, str]:
        """The fields that identify the model in every answer."""
        return {"model": self.name, "version": self.version, "digest": self.digest}


class Answer(Strict):
    """The fields of every JSON answer."""

    model: str
    version: str
    digest: str


class Option(NamedTuple):
    """A query parameter: one integer from 1 to `maximum` of the model."""

    name: str
    description: str
    maximum: Callable[[ModelMetadata], int]


def plain_json(metadata: ModelMetadata, arrays: Arrays) -> dict[str, Any]:
    """Each array as a JSON list under its own name."""
    return {name: values.tolist() for name, values in arrays.items()}


def plain_arrow(metadata: ModelMetadata, arrays: Arrays) -> dict[str, pa.Array]:
    """Each array (B,) or (B, N) as a column under its own name."""
    return {
        name: pa.array(values) if values.ndim == 1 else lists(values)
        for name, values in arrays.items()
    }


def _whole(arrays: Arrays, options: Options) -> Arrays:
    return arrays


@dataclass(frozen=True)
class Endpoint:
    """One answer about rows: `POST /models/{model}/{name}`.

    `compute` gets the rows (B, C) of several requests that name the same options, and `select` cuts
    the arrays of one request down to its options. `fields` names fields of the metadata that every
    answer repeats. All functions are module-level, since a request with its endpoint is pickled.
    """

    name: str
    response: type[Answer]
    compute: Callable[[Predictor, Array, Collection[str]], Arrays]
    to_json: Callable[[ModelMetadata, Arrays], dict[str, Any]] = plain_json
    to_arrow: Callable[[ModelMetadata, Arrays], dict[str, pa.Array]] = plain_arrow
    options: tuple[Option, ...] = ()
    select: Callable[[Arrays, Options], Arrays] = _whole
    fields: tuple[str, ...] = ()


class Codes(Answer):
    """Codes (B, K)."""

    codes: list[list[float]]


def _encode(predictor: Predictor, rows: Array, options: Collection[str]) -> Arrays:
    return {"code": predictor.encode(rows)}


def _codes(metadata: ModelMetadata, arrays: Arrays) -> dict[str, Any]:
    return {"codes": arrays["code"].tolist()}


class Hashes(Answer):
    """Hashes as hex, one bit per code unit, first unit in the highest bit."""

    hashes: list[str]


def _hash(predictor: Predictor, rows: Array, options: Collection[str]) -> Arrays:
    return {"hash": predictor.hash(rows)}


def _hex_hashes(metadata: ModelMetadata, arrays: Arrays) -> dict[str, Any]:
    return {"hashes": [row.tobytes().hex() for row in arrays["hash"]]}


def _binary_hashes(metadata: ModelMetadata, arrays: Arrays) -> dict[str, pa.Array]:
    rows = arrays["hash"]
    return {"hash": pa.array([row.tobytes() for row in rows], pa.binary(rows.shape[1]))}


class FeatureError(Strict):
    """One feature's share of a row's score, with the expected value in the units of the row.

    `imputed`: the cell is missing, and the error is that of the column's mean.
    """

    feature: str
    error: float
    expected: float
    imputed: bool


class Scores(Answer):
    """Anomaly scores; higher = more abnormal."""

    scores: list[float]
    is_anomaly: list[bool]
    threshold: float
    feature_errors: list[list[FeatureError]] | None = None


PER_FEATURE = ("features", "feature_errors", "expected", "imputed")
"""Arrays (B, N) about the N features of each row with the largest errors."""


def _anomaly(predictor: Predictor, rows: Array, options: Collection[str]) -> Arrays:
    if "feature_errors" not in options:
        score = predictor.anomaly(rows)
        return {"score": score, "is_anomaly": score > predictor.threshold}
    found = predictor.score(rows, reconstruction=True, feature_errors=True)
    assert found.reconstruction is not None
    assert found.feature_errors is not None
    assert found.imputed is not None
    return {
        "score": found.score,
        "is_anomaly": found.is_anomaly,
        "feature_errors": found.feature_errors,
        "expected": found.reconstruction[:, predictor.kept],
        "imputed": found.imputed,
    }


def _largest_errors(arrays: Arrays, options: Options) -> Arrays:
    """Of the F features of a row, the requested number with the largest errors, largest first."""
    if "feature_errors" not in options:
        return arrays
    order = np.argsort(-arrays["feature_errors"], axis=1, kind="stable")
    largest = order[:, : options["feature_errors"]]
    cut = {name: np.take_along_axis(arrays[name], largest, axis=1) for name in PER_FEATURE[1:]}
    return arrays | {"features": largest} | cut


def _named_scores(metadata: ModelMetadata, arrays: Arrays) -> dict[str, Any]:
    answer = {"scores": arrays["score"].tolist(), "is_anomaly": arrays["is_anomaly"].tolist()}
    if "features" in arrays:
        names = metadata.feature_names
        answer["feature_errors"] = [
            [
                {"feature": names[f], "error": e, "expected": x, "imputed": i}
                for f, e, x, i in zip(*row, strict=True)
            ]
            for row in zip(*(arrays[name].tolist() for name in PER_FEATURE), strict=True)
        ]
    return answer


def _score_columns(metadata: ModelMetadata, arrays: Arrays) -> dict[str, pa.Array]:
    if "features" in arrays:
        names = np.array(metadata.feature_names, dtype=object)[arrays["features"]]
        arrays = arrays | {"features": names}
    return plain_arrow(metadata, arrays)


def _features_kept(metadata: ModelMetadata) -> int:
    return len(metadata.feature_names)


class Reconstruction(Answer):
    """Reconstructed rows (B, C), in the units of the rows sent."""

    rows: list[list[float]]


def _reconstruct(predictor: Predictor, rows: Array, options: Collection[str]) -> Arrays:
    return {"rows": predictor.reconstruct(rows)}


def _raw_columns(metadata: ModelMetadata, arrays: Arrays) -> dict[str, pa.Array]:
    columns = as_columns(arrays["rows"], metadata.features)
    return {name: pa.array(cells) for name, cells in columns.items()}


ENDPOINTS = (
    Endpoint("encode", Codes, _encode, to_json=_codes),
    Endpoint("hash", Hashes, _hash, to_json=_hex_hashes, to_arrow=_binary_hashes),
    Endpoint(
        "anomaly",
        Scores,
        _anomaly,
        to_json=_named_scores,
        to_arrow=_score_columns,
        options=(
            Option(
                "feature_errors",
                "Number of features to report for each row, largest error first.",
                _features_kept,
            ),
        ),
        select=_largest_errors,
        fields=("threshold",),
    ),
    Endpoint("reconstruct", Reconstruction, _reconstruct, to_arrow=_raw_columns),
)
