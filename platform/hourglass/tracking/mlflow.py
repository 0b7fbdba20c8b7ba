"""MLflow as the tracking backend: its client, its registered models, its errors as errors of ours.

A version carries the digest of its artifact as a tag. Of the files that MLflow stores with a version,
only those of the artifact are read. An artifact is a logged model whose loader is a module of ours,
without pickle: `MLmodel` and `requirements.txt` beside `data/artifact/`, the artifact byte for byte.
"""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from hourglass import __version__, artifact
from hourglass.errors import HourglassError, RegistryError, WriteError, explain, redact
from hourglass.settings import Settings
from hourglass.tracking import backend
from hourglass.tracking.backend import Event, Logged, Version
from hourglass.tracking.mlflow_runs import MlflowWriter
from hourglass.tracking.records import DIGEST_TAG, same

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a disk of this machine, which no server returns."""
METRICS_TAG = "hourglass.metrics"
INSIDE = "data/artifact"
"""Where the artifact is in a logged model."""

DEFAULTS = {
    # Notice a dead server in seconds; MLflow's own defaults retry for four minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # Keep upload bars, links and schema migrations out of our progress line.
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Otherwise the lock file of the project in the current folder goes into the model.
    "MLFLOW_UV_AUTO_DETECT": "false",
}


def client(settings: Settings) -> Any:
    """An MLflow client of the store that `settings` names; MLflow's globals stay untouched."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    if settings.tracking_uri is None:
        settings.root.mkdir(parents=True, exist_ok=True)
    return mlflow.MlflowClient(tracking_uri=settings.mlflow_uri)


@contextmanager
def answering(settings: Settings) -> Iterator[None]:
    """Raise what MLflow raises as a RegistryError that names the store, or as a WriteError."""
    try:
        yield
    except HourglassError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK:
            where = error.filename or str(settings.root)
            raise WriteError(error.errno, error.strerror, where) from error
        raise RegistryError(
            f"MLflow ({redact(settings.mlflow_uri)}): {explain(error)}; "
            "check that it is up and that MLFLOW_TRACKING_URI names it"
        ) from None


class MlflowTracker:
    """The store of MLflow that `settings` name."""

    def __init__(self, settings: Settings) -> None:
        self.title = f"MLflow ({redact(settings.mlflow_uri)})"
        self._settings = settings

    @cached_property
    def _client(self) -> Any:
        return client(self._settings)

    def writer(self, begin: Event | None) -> backend.RunWriter:
        """A writer that continues with the events after `begin`."""
        return MlflowWriter(self._settings, self, self._client, begin)

    @property
    def empty(self) -> bool:
        """True when the local database does not exist; a server is not asked."""
        settings = self._settings
        return settings.tracking_uri is None and not (settings.root / "mlflow.db").exists()

    def errors(self) -> AbstractContextManager[None]:
        """Raise what MLflow raises as RegistryError, or WriteError for the local disk."""
        return answering(self._settings)

    def names(self) -> list[str]:
        """All registered models, sorted."""
        return sorted(model.name for model in _pages(self._client.search_registered_models))

    def versions(self, name: str) -> list[Version] | None:
        """The versions of a model, newest first; None when there is no such model."""
        from mlflow.exceptions import MlflowException

        try:
            # The search below returns no aliases, so they come from the model itself.
            aliases = dict(self._client.get_registered_model(name).aliases)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        found = _pages(self._client.search_model_versions, filter_string=f"name = '{name}'")
        found.sort(key=lambda stored: -int(stored.version))
        return [
            Version(
                name=stored.name,
                version=str(stored.version),
                digest=stored.tags.get(DIGEST_TAG),
                aliases=backend.aliases_of(str(stored.version), aliases),
                metrics=backend.metrics_of(stored.tags.get(METRICS_TAG, "{}")),
                run_id=stored.run_id or None,
                created_ms=int(stored.creation_timestamp),
            )
            for stored in found
        ]

    def add_version(self, name: str, run_id: str, logged: Logged) -> str:
        """Add a version, and the model if it is the first; the number of the version."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {DIGEST_TAG: logged.digest, METRICS_TAG: json.dumps(logged.metrics)}
        # The location, not models:/ID: MLflow looks that up in its global store, not in ours.
        made = self._client.create_model_version(
            name, logged.location, run_id, tags=tags, model_id=logged.model_id
        )
        return str(made.version)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Let `alias` name this version of the model, and no other."""
        self._client.set_registered_model_alias(name, alias, version)

    def registering(self, name: str) -> nullcontext[None]:
        """MLflow numbers versions in a transaction of its own."""
        return nullcontext()

    def download(self, version: Version, folder: Path) -> None:
        """Copy the artifact's files that its manifest lists; the caller verifies them."""
        from mlflow.artifacts import download_artifacts

        from hourglass import artifact

        stored = self._client.get_model_version_download_uri(version.name, version.version)
        inside = f"{stored.rstrip('/')}/{INSIDE}"
        get = partial(
            download_artifacts, dst_path=str(folder), tracking_uri=self._settings.mlflow_uri
        )
        manifest = Path(get(artifact_uri=f"{inside}/{artifact.MANIFEST}")).read_bytes()
        if hashlib.sha256(manifest).hexdigest() == version.digest:  # else the caller refuses it
            for name in artifact.parse_manifest(inside, manifest).files:
                get(artifact_uri=f"{inside}/{name}")

    def attach(self, run_id: str, name: str, text: str) -> None:
        """Store `text` as the file `name` of a run."""
        self._client.log_text(run_id, text, name)


def _pages(search: Any, **query: Any) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(page_token=token, **query)
        found += page
        token = page.token
        if not token:
            return found


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
    """Show the metrics of the kept weights at the logged model: values of its run, as the model's.

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
