"""A small model, and its endpoints in this process: what the serving tests share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import torch

from hourglass import artifact
from hourglass.config.serve import ServeSpec
from hourglass.inference.endpoints import ENDPOINTS, Arrays, Endpoint, ModelMetadata
from hourglass.inference.predictor import Predictor
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.preprocessing import ColumnStats, Preprocessing, Unit
from hourglass.model.spec import ModelSpec
from hourglass.serving import middleware
from hourglass.serving.answers import ModelRequest, answer_all
from hourglass.serving.http import create_app

TOKEN = "a-token-of-the-tests"
BEARER = {"authorization": f"Bearer {TOKEN}"}
JSON = {"content-type": "application/json"}
ARROW = {"content-type": "application/vnd.apache.arrow.stream"}


def save_model(
    folder: Path,
    *,
    vector: str | None = None,
    columns: tuple[str, ...] = (),
    width: int = 6,
    dtype: str = "float32",
    missing: str = "error",
    seed: int = 0,
) -> str:
    """An untrained 3-unit model on random rows, as an artifact; returns its digest."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    rows = (random.random((64, width)) * 255).astype(dtype)
    low, high = rows.min(0).astype(float), rows.max(0).astype(float)
    stats = ColumnStats(rows.mean(0).astype(float), rows.std(0).astype(float), low, high)
    spec = ModelSpec.model_validate(
        {"network": {"kind": "dense", "widths": [3], "activation": "tanh"}}
    )
    module = AutoencoderModule(spec, Preprocessing.fit(Unit(), stats, True), True)
    return artifact.save(
        str(folder),
        module=module,
        features=artifact.FeatureRecord(
            vector=vector,
            columns=columns,
            width=width,
            dtype=dtype,
            kept=width,
            missing=missing,
        ),
        calibration=artifact.Calibration(
            rows=1, quantile=0.99, threshold=0.1, quantiles={}, hash_threshold=(0.0,) * 3
        ),
        reference_rows=torch.from_numpy(rows[:4]),
        name=folder.name,
        metrics={},
        job={},
        provenance={},
    )


class Local:
    """A backend of predictors in this process."""

    def __init__(self, predictors: Mapping[str, Predictor]) -> None:
        self.predictors = predictors
        self.models = {name: ModelMetadata.of(p, name, None) for name, p in predictors.items()}
        self.is_ready = True

    async def answer(self, name: str, request: ModelRequest) -> Arrays:
        return answer_all(self.predictors[name], [request])[0]

    async def ready(self) -> bool:
        return self.is_ready


def spec(**fields: Any) -> ServeSpec:
    """A serve spec with one model of no importance."""
    return ServeSpec.model_validate({"models": [{"name": "any", "uri": "any"}], **fields})


def client(
    backend: Any, endpoints: Sequence[Endpoint] = ENDPOINTS, **fields: Any
) -> httpx.AsyncClient:
    """A client of the endpoints, without sockets; carries no token."""
    app = create_app(spec(**fields), backend, middleware.fingerprint(TOKEN), endpoints)
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def arrow_stream(table: pa.Table, **options: Any) -> bytes:
    """`table` as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def arrow_table(content: bytes) -> pa.Table:
    """The table of an Arrow IPC stream."""
    return pa.ipc.open_stream(content).read_all()
