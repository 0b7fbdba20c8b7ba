"""A run on rows at hand: the same loop, calibration, manifest and artifact as on a cluster, in this process.

Shapes: B rows, C columns.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data
from torch import Tensor

from hourglass import artifact
from hourglass.artifact import Artifact
from hourglass.config import files
from hourglass.config.train import TrainJob
from hourglass.data import arrays, unlikely
from hourglass.data.arrays import VECTOR
from hourglass.data.decode import FLOAT32_MAX, Matrix, bounded
from hourglass.data.loader import MemoryLoader
from hourglass.data.schema import FeatureSchema
from hourglass.data.stats import Stats
from hourglass.errors import ArtifactError, DataError, SpecError
from hourglass.inference.predictor import Predictor
from hourglass.training import members
from hourglass.training.build import account, build, feature_record, software
from hourglass.training.calibrate import calibrate
from hourglass.training.collective import SingleProcessGroup
from hourglass.training.sensitivity import check_sensitivity
from hourglass.training.state import Record


@dataclass(frozen=True)
class Fitted:
    """A model that was trained here: it has no digest before it is saved."""

    artifact: Artifact
    reference_rows: Tensor
    """Its reference rows (B, C)."""
    dataset: dict[str, Any]
    device: torch.device


def fit(
    job: TrainJob,
    rows: Matrix,
    vector: str,
    names: Sequence[str] | None,
    say: Callable[[str], None],
) -> Fitted:
    """Train `job` on rows (B, C) of the column `vector`, or of the columns `names`.

    Raises: SpecError for a hyperparameter without effect or a GPU that is missing, DataError for rows
    that do not fit, TrainingError when a value becomes non-finite.
    """
    schema = arrays.schema(rows, vector, names, job.data.missing)
    features, held, stats, dataset = _read(job, rows, schema)
    device = _device(job)
    loader = MemoryLoader(features, held, batch_size=job.train.batch_size, seed=job.train.seed)
    say("{train_rows} rows to train on, {holdout_rows} held out, {dropped_rows} dropped, "
        "{imputed_cells} cells imputed".format(**dataset))  # fmt: skip

    def send(kind: str, payload: Any) -> None:
        say(_line(payload, job) if kind == "epoch" else payload)

    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        sensitivity = check_sensitivity(build(job, stats).to(device), loader, device)
        trained = members.train(job, stats, loader, SingleProcessGroup(), device, send)
    if trained.members[-1].interrupted:
        last = trained.history[-1]
        warnings.warn(
            f"interrupted after {_line(last, job)}: the fit ends with the best weights so far",
            stacklevel=4,
        )
    primary, *others = trained.modules
    calibration, reference_rows, agreement = calibrate(
        [primary, *others], job.train.combine, loader, SingleProcessGroup(), job.quantile, device
    )
    manifest = artifact.Manifest(
        format=artifact.FORMAT,
        name="autoencoder",
        model=job.model,
        unit_data=job.unit_data,
        features=feature_record(job, schema, primary),
        calibration=calibration,
        metrics=trained.best | agreement,
        job=files.dump(job),
        provenance={
            "dataset": dataset,
            **software("scikit-learn"),
            "sensitivity": sensitivity,
            "history": trained.history,
        },
        files={},
        ensemble=trained.ensemble,
    )
    for module in trained.modules:
        module.eval().requires_grad_(False)
    return Fitted(Artifact(manifest, primary, "", tuple(others)), reference_rows, dataset, device)


def save(
    path: str, predictor: Predictor, reference_rows: Tensor, quantile: float, name: str
) -> str:
    """Write the artifact of a fitted model, with its threshold as it is now; returns its digest.

    Raises: ArtifactError, DataError for a folder in another artifact's, WriteError.
    """
    artifact.require_outside(path, replaces=True)
    manifest, moved = predictor.artifact.manifest, {"quantile": quantile}
    calibration = artifact.Calibration.model_validate(
        manifest.calibration.model_dump() | moved | {"threshold": predictor.threshold}
    )
    primary, *others = copy.deepcopy(predictor.members)
    return artifact.save(
        path,
        module=primary,
        features=manifest.features,
        calibration=calibration,
        reference_rows=reference_rows,
        name=name,
        metrics=manifest.metrics,
        job=manifest.job | moved,
        provenance=manifest.provenance,
        ensemble=manifest.ensemble,
        others=others,
    )


def load(path: str) -> tuple[TrainJob, Artifact, Tensor]:
    """The job, the model and the reference rows (B, C) of a saved artifact. Raises ArtifactError."""
    stored = artifact.read(path)
    loaded = artifact.rebuild(path, stored)
    recorded = loaded.manifest.reference
    rows = artifact.parse_tensors(recorded, stored[recorded])["rows"]
    try:
        job = files.parse(loaded.manifest.job)
    except SpecError as error:
        raise ArtifactError(f"{path}: its job does not fit this version\n{error}") from None
    if not isinstance(job, TrainJob):
        raise ArtifactError(f"{path}: its job is a {job.kind} job, needed is train")
    return job, loaded, rows


def _read(
    job: TrainJob, rows: Matrix, schema: FeatureSchema
) -> tuple[Matrix, NDArray[np.bool_], Stats, dict[str, Any]]:
    """The features, which of them are held out, the statistics of the others, and the record of all."""
    data = job.data
    features, held, statistics = arrays.read(
        rows, schema, data.missing, data.holdout, data.scaling.counts_levels
    )
    counts = account(job, schema, statistics)
    samples = zip(schema.columns, statistics.samples, strict=True)
    reasons = unlikely.why(
        schema.columns,
        index=[name for name in schema.columns if unlikely.INDEX.fullmatch(name)],
        near_unique=[name for name, sample in samples if sample.near_unique],
        constant=counts["constant_names"] if data.constant == "keep" else (),
    )
    if reasons:
        advice = unlikely.advice(reasons, how="X.drop(columns={})")
        warnings.warn(f"X has {advice}", stacklevel=2)
    return features, held, statistics.stats, {"rows": len(rows), **counts}


def _device(job: TrainJob) -> torch.device:
    """Raises SpecError when a GPU is asked for and there is none."""
    found = torch.cuda.is_available()
    if job.scale.accelerator == "gpu" and not found:
        raise SpecError("accelerator: gpu; PyTorch sees none on this machine")
    return torch.device("cuda" if found and job.scale.accelerator != "cpu" else "cpu")


def _line(record: Record, job: TrainJob) -> str:
    whose = f"member {record['member']:g}/{job.train.seeds}  " if "member" in record else ""
    held = f"  holdout {record['holdout_mse']:.5f}" if "holdout_mse" in record else ""
    epoch = f"epoch {record['epoch']:g}/{job.train.epochs}"
    return f"{epoch}  {whose}loss {record['loss']:.5f}{held}"


class InputError(DataError, ValueError):
    """A DataError about an argument: scikit-learn's callers expect a ValueError."""


@contextmanager
def about_arguments() -> Iterator[None]:
    """Whatever does not fit here is an argument."""
    try:
        yield
    except DataError as error:
        raise InputError(str(error)) from None


def numbers(estimator: Any, X: Any, reset: bool) -> tuple[Matrix, str | None]:
    """Rows (B, C) as numbers, and the name of the vector column they came from, if they did.

    With `reset` the estimator takes the names and the width of `X`; without, `X` must have its own.
    """
    X = arrays.tabular(X)
    rows = arrays.uniform(X)
    found = arrays.vectors(X) if rows is None else None
    columns = arrays.table_columns(X) if rows is None and found is None else None
    if columns:
        rows = arrays.from_columns(columns)
    if rows is not None:
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        return check_array(rows, ensure_all_finite=False), None
    rows, vector = found or (arrays.plain(X), None)
    checked = validate_data(estimator, rows, reset=reset, dtype="numeric", ensure_all_finite=False)
    return checked, vector


def require_finite(
    rows: Matrix, vector: str | None, names: Sequence[str] | None, policy: str
) -> None:
    """Raise InputError for NaN, infinity or what float32 does not hold, with its row and column."""
    exact, bad = bounded(rows)
    if bad.any():
        row, column = np.argwhere(~np.isfinite(exact))[0]
        where = f"{vector or VECTOR}[{column}]" if names is None or vector else names[column]
        found = rows[row, column]
        beyond = f", which is beyond ±{FLOAT32_MAX:.2g}" if np.isfinite(found) else ""
        raise InputError(
            f"row {row}, '{where}': found {found}{beyond} ({int(bad.sum())} such rows); "
            f"missing='{policy}' allows no NaN or infinity here: fit with missing='mean', or "
            "clean the rows"
        )
