"""Requests to a model and their answers: computed in batches, encoded as JSON or Arrow.

Shapes: B rows, C raw columns.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from hourglass.inference.endpoints import Array, Arrays, Endpoint, ModelMetadata, Options
from hourglass.inference.predictor import Predictor
from hourglass.serving.arrow import MEDIA_TYPE, encode_arrow
from hourglass.serving.limits import RequestError

JSON = "application/json"


@dataclass(frozen=True)
class ModelRequest:
    """One request to a model: an endpoint, rows (B, C) and the endpoint's options."""

    endpoint: Endpoint
    rows: Array
    options: Options = field(default_factory=dict)


def answer_all(predictor: Predictor, requests: list[ModelRequest]) -> list[Arrays]:
    """The answers to several requests, from one pass per endpoint and set of options."""
    answers: list[Arrays] = [{} for _ in requests]
    kinds = [(request.endpoint, frozenset(request.options)) for request in requests]
    for kind in dict.fromkeys(kinds):
        members = [index for index, other in enumerate(kinds) if other == kind]
        endpoint, options = kind
        rows = np.concatenate([requests[index].rows for index in members])
        arrays = endpoint.compute(predictor, rows, options)
        start = 0
        for index in members:
            stop = start + len(requests[index].rows)
            part = {name: values[start:stop] for name, values in arrays.items()}
            answers[index] = endpoint.select(part, requests[index].options)
            start = stop
    return answers


def check_finite(arrays: Arrays) -> None:
    """Raise RequestError naming the first row whose answer overflowed: NaN and infinity are never sent.

    A notebook or a batch job reports such a score as infinite, which JSON cannot express.
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


def to_json(endpoint: Endpoint, metadata: ModelMetadata, arrays: Arrays) -> bytes:
    """The answer as JSON."""
    repeated = {name: getattr(metadata, name) for name in endpoint.fields}
    answer = metadata.identity | repeated | endpoint.to_json(metadata, arrays)
    return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()


def to_arrow(endpoint: Endpoint, metadata: ModelMetadata, arrays: Arrays) -> bytes:
    """The answer as an Arrow IPC stream, with the model's identity in the schema's metadata."""
    repeated = {name: str(getattr(metadata, name)) for name in endpoint.fields}
    return encode_arrow(endpoint.to_arrow(metadata, arrays), metadata.identity | repeated)


ENCODERS: Mapping[str, Callable[[Endpoint, ModelMetadata, Arrays], bytes]] = {
    JSON: to_json,
    MEDIA_TYPE: to_arrow,
}
