"""From a job and the statistics of its rows to the seeded module and the record of a run."""

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from hourglass import __version__
from hourglass.artifact import FeatureRecord
from hourglass.config.train import TrainJob
from hourglass.data.dataset import DatasetStatistics
from hourglass.data.decode import FLOAT32_MAX
from hourglass.data.schema import FeatureSchema
from hourglass.data.stats import Stats
from hourglass.errors import DataError, SpecError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.preprocessing import ColumnStats, Preprocessing

MAX_NAMES = 100
"""Names of constant columns in the record of a run."""


def build(job: TrainJob, stats: Stats) -> AutoencoderModule:
    """The module before training: bit-identical for the same job and rows.

    Raises: DataError, SpecError (see `fit_preprocessing`).
    """
    preprocessing = fit_preprocessing(job, stats)
    require_width(job, len(preprocessing.kept_F))
    torch.manual_seed(job.train.seed)
    return AutoencoderModule(job.model, preprocessing, job.unit_data)


def require_width(job: TrainJob, features: int) -> None:
    """Raise SpecError when the network needs another number of features."""
    try:
        job.model.network.require(features)
    except ValueError as error:
        raise SpecError(f"model.network: {error}; set `shape` to the shape of a row") from None


def fit_preprocessing(job: TrainJob, stats: Stats) -> Preprocessing:
    """The part of the module that the rows determine.

    Raises: DataError when there are no rows or no column is left, SpecError when the loss or a phase
    does not fit the rows.
    """
    if not stats.count.any():
        raise DataError("every training row was dropped or held out; nothing is left to train on")
    large = np.flatnonzero(np.maximum(np.abs(stats.low), np.abs(stats.high)) > FLOAT32_MAX)
    if len(large) and stats.count[large].any():
        low, high = stats.low[large[0]], stats.high[large[0]]
        raise DataError(
            f"feature {large[0]} has values from {low:g} to {high:g}, which float32 does not hold; "
            "exclude that column"
        )
    columns = ColumnStats(
        mean=stats.mean,
        sd=stats.sd,
        low=stats.low,
        high=stats.high,
        excess=stats.excess,
        constant=stats.constant,
        distinct=stats.distinct if stats.values.size else None,
    )
    drop = job.data.constant == "drop"
    if drop and stats.constant.all():
        raise DataError("every column is constant; `constant: drop` leaves none")
    preprocessing = Preprocessing.fit(job.data.scaling, columns, drop)
    low, high = float(preprocessing.low_F.min()), float(preprocessing.high_F.max())
    asks = [f"loss {job.model.loss.kind}"] if job.model.loss.unit_data else []
    asks += [f"phase {phase.kind}" for phase in job.train.phases if phase.unit_rows]
    if asks and (low < -1e-6 or high > 1 + 1e-6):
        raise SpecError(
            f"{asks[0]} needs rows in [0, 1], scaling '{job.data.scaling.kind}' leaves "
            f"[{low:g}, {high:g}]; use `scaling: {{kind: unit}}`"
        )
    return preprocessing


def feature_record(
    job: TrainJob, schema: FeatureSchema, module: AutoencoderModule
) -> FeatureRecord:
    """The description in the artifact of the rows that the model takes."""
    return FeatureRecord(
        vector=schema.vector,
        columns=schema.columns,
        width=schema.width,
        dtype=schema.dtype,
        kept=len(module.preprocessing.kept_F),
        missing=job.data.missing,
    )


def account(job: TrainJob, schema: FeatureSchema, statistics: DatasetStatistics) -> dict[str, Any]:
    """Rows and cells that did not reach training unchanged, counted for the record of the run.

    Raises: DataError when a feature has no value in any training row, SpecError when the job does not
    fit the rows.
    """
    stats, names = statistics.stats, schema.feature_names
    _require_values(stats, names)
    fit_preprocessing(job, stats)
    constant = [names[i] for i in stats.constant.nonzero()[0].tolist()]
    counts = {
        "train_rows": statistics.rows("train"),
        "holdout_rows": statistics.rows("holdout"),
        "dropped_rows": statistics.dropped,
        "imputed_cells": statistics.imputed,
        "constant_columns": len(constant),
        "constant_policy": job.data.constant,
        "constant_names": constant[:MAX_NAMES],
    }
    if job.train.early_stop is not None:
        require_holdout(counts, "train.early_stop")
    return counts


def require_holdout(record: Mapping[str, Any], field: str) -> None:
    """Raise SpecError when `field` needs held-out rows and the record of the data has none."""
    if not record["holdout_rows"]:
        raise SpecError(
            f"{field} watches the holdout error, but none of the {record['train_rows']} rows is held "
            "out; raise data.holdout, or remove it"
        )


def software(*more: str) -> dict[str, Any]:
    """Versions of Python and of the packages that affect results, `more` included; the time."""
    packages = ("torch", "pyarrow", "numpy", "safetensors", *more)
    return {
        "packages": {"hourglass": __version__} | {name: version(name) for name in packages},
        "python": platform.python_version(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _require_values(stats: Stats, names: Sequence[str]) -> None:
    empty = [names[index] for index in np.flatnonzero(stats.count == 0).tolist()]
    if empty and stats.count.any():
        shown = ", ".join(f"'{name}'" for name in empty[:20])
        more = f" and {len(empty) - 20} more" if len(empty) > 20 else ""
        raise DataError(
            f"column {shown}{more}: no value in any training row (NaN, infinity and numbers beyond "
            f"±{FLOAT32_MAX:.2g} are missing); exclude {'it' if len(empty) == 1 else 'them'}"
        )
