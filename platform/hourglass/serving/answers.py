"""What a model is asked, what it gives back, and how both look on the wire.

Shapes: B rows, C raw columns, K code units, N most erroneous features.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hourglass.data.schema import FeatureSchema, Missing
from hourglass.inference.predictor import Predictor
from hourglass.serving.arrow import MEDIA_TYPE, encode_arrow, fixed_lists
from hourglass.serving.limits import RequestError
from hourglass.serving.rows import Expected
from hourglass.strict import Strict

Verb = Literal["encode", "hash", "anomaly", "reconstruct"]
Arrays = dict[str, NDArray[Any]]
JSON = "application/json"


class Ask(NamedTuple):
    """One request to a model: rows (B, C) and, for anomaly, how many feature errors to name."""

    verb: Verb
    rows: NDArray[Any]
    feature_errors: int = 0


class Card(Strict):
    """A model as the endpoints know it."""

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
    def of(cls, predictor: Predictor, name: str, version: str | None) -> "Card":
        """The card of a loaded model; a model from a folder is its own version, by digest."""
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

    @property
    def expected(self) -> Expected:
        """What its rows must be."""
        return Expected(
            FeatureSchema(self.vector, self.columns, self.width, self.dtype), self.missing
        )

    @property
    def identity(self) -> dict[str, str]:
        """What every answer names."""
        return {"model": self.name, "version": self.version, "digest": self.digest}


def answer_all(predictor: Predictor, asks: list[Ask]) -> list[Arrays]:
    """The answers to several requests, from one forward pass per kind of question."""
    answers: list[Arrays] = [{} for _ in asks]
    kinds = [(ask.verb, ask.feature_errors > 0) for ask in asks]
    for kind in dict.fromkeys(kinds):
        members = [index for index, other in enumerate(kinds) if other == kind]
        rows = np.concatenate([asks[index].rows for index in members])
        together = _forward(predictor, *kind, rows)
        start = 0
        for index in members:
            stop = start + len(asks[index].rows)
            part = {name: values[start:stop] for name, values in together.items()}
            answers[index] = _named(part, asks[index].feature_errors)
            start = stop
    return answers


def _forward(predictor: Predictor, verb: Verb, with_errors: bool, rows: NDArray[Any]) -> Arrays:
    if verb == "encode":
        return {"codes": predictor.encode(rows)}
    if verb == "hash":
        return {"hashes": predictor.hash(rows)}
    if verb == "reconstruct":
        return {"rows": predictor.reconstruct(rows)}
    if not with_errors:
        score = predictor.anomaly(rows)
        return {"scores": score, "is_anomaly": score > predictor.threshold}
    scores = predictor.score(rows, reconstruction=True, feature_errors=True)
    assert scores.reconstruction is not None
    assert scores.feature_errors is not None
    assert scores.imputed is not None
    return {
        "scores": scores.score,
        "is_anomaly": scores.is_anomaly,
        "errors": scores.feature_errors,
        "expected": scores.reconstruction[:, predictor.kept],
        "imputed": scores.imputed,
    }


def _named(part: Arrays, most: int) -> Arrays:
    """Of the F features of a row, those of the `most` largest errors, largest first."""
    if "errors" not in part:
        return part
    worst = np.argsort(-part["errors"], axis=1, kind="stable")[:, :most]
    cut = {name: np.take_along_axis(part[name], worst, axis=1) for name in NAMED[1:]}
    return part | {"features": worst} | cut


def check_finite(arrays: Arrays) -> None:
    """Raise RequestError naming the row whose answer overflowed: no NaN or infinity is ever sent.

    A notebook and a batch job say infinite of its score, which JSON has no word for.
    """
    for values in arrays.values():
        if values.dtype.kind != "f":
            continue
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            raise RequestError(
                "Invalid",
                f"row {row}: the model's answer is not a finite number; the row's values are too "
                "far from those it was trained on",
            )


NAMED = ("features", "errors", "expected", "imputed")
"""What is said of the worst features of each row."""


def to_json(card: Card, arrays: Arrays) -> bytes:
    """The answer as JSON; hashes in hex, feature errors by name."""
    answer: dict[str, Any] = dict(card.identity)
    for name, values in arrays.items():
        if name == "hashes":
            answer[name] = [row.tobytes().hex() for row in values]
        elif name not in NAMED:
            answer[name] = values.tolist()
    if "scores" in arrays:
        answer["threshold"] = card.threshold
    if "errors" in arrays:
        names = card.feature_names
        answer["feature_errors"] = [
            [
                {"feature": names[f], "error": e, "expected": x, "imputed": i}
                for f, e, x, i in zip(*row, strict=True)
            ]
            for row in zip(*(arrays[name].tolist() for name in NAMED), strict=True)
        ]
    return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()


def to_arrow(card: Card, arrays: Arrays) -> bytes:
    """The answer as an Arrow IPC stream; model, version, digest and threshold in its metadata."""
    columns: dict[str, pa.Array] = {}
    for name, values in arrays.items():
        if name == "hashes":
            columns["hash"] = pa.array(
                [row.tobytes() for row in values], pa.binary(values.shape[1])
            )
        elif name == "codes":
            columns["code"] = fixed_lists(values)
        elif name == "scores":
            columns["score"] = pa.array(values)
        elif name == "rows":
            columns |= _raw_columns(card, values)
        elif name == "features":
            flat = pa.array([card.feature_names[f] for f in values.ravel()], pa.string())
            columns["features"] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        elif name == "errors":
            columns["feature_errors"] = fixed_lists(values)
        elif name in ("expected", "imputed"):
            columns[name] = fixed_lists(values)
        else:
            columns[name] = pa.array(values)
    metadata = dict(card.identity)
    if "scores" in arrays:
        metadata["threshold"] = repr(card.threshold)
    return encode_arrow(columns, metadata)


def _raw_columns(card: Card, rows: NDArray[Any]) -> Mapping[str, pa.Array]:
    if card.vector is not None:
        return {card.vector: fixed_lists(rows)}
    return {name: pa.array(rows[:, index]) for index, name in enumerate(card.columns)}


ENCODERS = {JSON: to_json, MEDIA_TYPE: to_arrow}


class ModelId(Strict):
    """Part of every answer."""

    model: str
    version: str
    digest: str


class Codes(ModelId):
    """Codes (B, K)."""

    codes: list[list[float]]


class Hashes(ModelId):
    """Hashes as hex, one bit per code unit, first unit in the highest bit."""

    hashes: list[str]


class FeatureError(Strict):
    """One feature's part of a row's score, and what was expected of it, in the units of the row sent.

    `imputed`: the row misses that cell, and the part is that of the column's mean in its place.
    """

    feature: str
    error: float
    expected: float
    imputed: bool


class Scores(ModelId):
    """Anomaly scores; higher = more abnormal."""

    scores: list[float]
    is_anomaly: list[bool]
    threshold: float
    feature_errors: list[list[FeatureError]] | None = None


class Reconstruction(ModelId):
    """Reconstructed rows (B, C), in the units of the rows sent."""

    rows: list[list[float]]


ANSWERS: dict[Verb, type[ModelId]] = {
    "encode": Codes,
    "hash": Hashes,
    "anomaly": Scores,
    "reconstruct": Reconstruction,
}
