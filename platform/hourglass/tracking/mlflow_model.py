"""Artifacts as logged models of MLflow, whose loader is a module of ours, without pickle.

MLmodel, requirements.txt ...    what MLflow wants to see
data/artifact/                   the artifact, byte for byte
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hourglass import __version__, artifact
from hourglass.tracking.backend import Logged
from hourglass.tracking.records import DIGEST_TAG, same

LOADER = "hourglass.inference.pyfunc"
"""A module name, not an import: MLflow imports it when somebody loads the model."""
OUTPUT = "encode"
EXAMPLE_ROWS = 2


def log(client: Any, run_id: str, uri: str) -> Logged:
    """Log the artifact at `uri` as a model of the run, once per digest; a half-logged one is completed.

    Raises: ArtifactError when the artifact does not verify.
    """
    from mlflow.entities import LoggedModelOutput

    files = artifact.read(uri)
    loaded = artifact.rebuild(uri, files)
    run = client.get_run(run_id)
    found = client.search_logged_models(
        [run.info.experiment_id], f"tags.`{DIGEST_TAG}` = '{loaded.digest}'", max_results=10
    )
    own = [model for model in found if model.source_run_id == run_id]
    ready = next((model for model in own if str(model.status) == "READY"), None)
    model = ready or next(iter(own), None)
    if model is None:
        model = client.create_logged_model(
            run.info.experiment_id,
            name=loaded.manifest.name,
            source_run_id=run_id,
            tags={DIGEST_TAG: loaded.digest},
        )
    if ready is None:
        _fill(client, model, files, loaded)
    outputs = run.outputs.model_outputs if run.outputs else ()
    if all(output.model_id != model.model_id for output in outputs):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return Logged(
        model_id=model.model_id,
        location=model.artifact_location,
        digest=loaded.digest,
        metrics=dict(loaded.manifest.metrics),
        history=tuple(loaded.manifest.provenance.get("history", ())),
    )


def measure(client: Any, run_id: str, logged: Logged) -> None:
    """Show the metrics of the kept weights at the logged model: values that its run has, said to be its.

    Not others beside them: MLflow would show each twice in the run's history.
    """
    from mlflow.entities import Metric

    known = {metric.key for metric in client.get_logged_model(logged.model_id).metrics or ()}
    metrics = []
    for name in logged.metrics.keys() - known:
        of_run = client.get_metric_history(run_id, name)
        shown = max(of_run, key=lambda metric: (metric.step, metric.timestamp), default=None)
        if shown is not None and same(shown.value, logged.metrics[name]):
            at, step = shown.timestamp, shown.step
            metrics.append(Metric(name, shown.value, at, step, model_id=logged.model_id))
    if metrics:
        client.log_batch(run_id, metrics)


def _fill(client: Any, model: Any, files: Mapping[str, bytes], loaded: artifact.Artifact) -> None:
    """Upload the artifact into a logged model, which is ready then."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "artifact"
        plain.mkdir()
        for name, content in files.items():
            (plain / name).write_bytes(content)
        dressed = Path(folder) / "model"
        _dress(dressed, plain, model, loaded)
        client.log_model_artifacts(model.model_id, str(dressed))
    client.finalize_logged_model(model.model_id, "READY")


def _dress(path: Path, plain: Path, created: Any, loaded: artifact.Artifact) -> None:
    import mlflow.pyfunc
    from mlflow.models import Model

    mlflow.pyfunc.save_model(
        path,
        loader_module=LOADER,
        data_path=str(plain),
        signature=_signature(loaded),
        input_example=_example(plain, loaded),
        pip_requirements=[f"hourglass-autoencoder=={__version__}"],
        mlflow_model=Model(
            artifact_path=created.artifact_location,
            run_id=created.source_run_id,
            model_uuid=created.model_id,
            model_id=created.model_id,
        ),
    )


def _signature(loaded: artifact.Artifact) -> Any:
    """Tensors: MLflow casts a data frame's columns to them, but refuses integers for doubles."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    features = loaded.manifest.features
    kind = np.dtype(features.dtype)
    if features.vector is not None:
        inputs = [TensorSpec(kind, (-1, features.width))]
    else:
        inputs = [TensorSpec(kind, (-1,), name) for name in features.columns]
    code = TensorSpec(np.dtype("float32"), (-1, loaded.manifest.model.network.code_width))
    params = ParamSchema([ParamSpec("output", DataType.string, OUTPUT)])
    return ModelSignature(Schema(inputs), Schema([code]), params)


def _example(plain: Path, loaded: artifact.Artifact) -> Any:
    """The first reference rows, as an array or, for models of columns, a data frame."""
    name = loaded.manifest.reference
    rows = artifact.parse_tensors(name, (plain / name).read_bytes())["rows"][:EXAMPLE_ROWS].numpy()
    if loaded.manifest.features.vector is not None:
        return rows
    import pandas as pd

    return pd.DataFrame(rows, columns=list(loaded.manifest.features.columns))
