"""From a job and the figures of its rows to the seeded module, and what the run records about both."""

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
from hourglass.data.decode import FLOAT32_MAX
from hourglass.data.schema import FeatureSchema
from hourglass.data.stats import Stats
from hourglass.errors import DataError, SpecError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.preprocessing import ColumnStats, Preprocessing


def build(job: TrainJob, stats: Stats) -> AutoencoderModule:
    """The module before training: the same job and rows give the same bits.

    Raises: DataError, SpecError (see `fit_preprocessing`).
    """
    preprocessing = fit_preprocessing(job, stats)
    require_width(job, len(preprocessing.kept_F))
    torch.manual_seed(job.train.seed)
    return AutoencoderModule(job.model, preprocessing, job.unit_data)


def require_width(job: TrainJob, features: int) -> None:
    """Raises SpecError when the network is made for rows of another number of features."""
    try:
        job.model.network.require(features)
    except ValueError as error:
        raise SpecError(f"model.network: {error}; say in `shape` what a row is") from None


def fit_preprocessing(job: TrainJob, stats: Stats) -> Preprocessing:
    """The part of the module that the rows decide.

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
    figures = ColumnStats(
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
    preprocessing = Preprocessing.fit(job.data.scaling, figures, drop)
    low, high = float(preprocessing.low_F.min()), float(preprocessing.high_F.max())
    asks = [f"loss {job.model.loss.kind}"] if job.model.loss.unit_data else []
    asks += [f"phase {phase.kind}" for phase in job.train.phases if phase.unit_rows]
    if asks and (low < -1e-6 or high > 1 + 1e-6):
        raise SpecError(
            f"{asks[0]} needs rows in [0, 1], scaling '{job.data.scaling.kind}' leaves "
            f"[{low:g}, {high:g}]; use `scaling: {{kind: unit}}`"
        )
    return preprocessing


def require_values(stats: Stats, names: Sequence[str]) -> None:
    """Raise DataError naming the features that have no value in any training row."""
    empty = [names[index] for index in np.flatnonzero(stats.count == 0).tolist()]
    if empty and stats.count.any():
        shown = ", ".join(f"'{name}'" for name in empty[:20])
        more = f" and {len(empty) - 20} more" if len(empty) > 20 else ""
        raise DataError(
            f"column {shown}{more}: no value in any training row (NaN, infinity and numbers beyond "
            f"±{FLOAT32_MAX:.2g} are missing); exclude {'it' if len(empty) == 1 else 'them'}"
        )


def feature_record(
    job: TrainJob, schema: FeatureSchema, module: AutoencoderModule
) -> FeatureRecord:
    """What the artifact says about the rows it takes."""
    return FeatureRecord(
        vector=schema.vector,
        columns=schema.columns,
        width=schema.width,
        dtype=schema.dtype,
        kept=len(module.preprocessing.kept_F),
        missing=job.data.missing,
    )


MOST_NAMES = 100


def account(
    job: TrainJob,
    stats: Stats,
    names: Sequence[str],
    *,
    train: int,
    holdout: int,
    dropped: int,
    imputed: int,
) -> dict[str, Any]:
    """Nothing silent: rows and cells that did not go through untouched, counted.

    `stats` are the figures of the training rows, `names` those of the features; the others count
    rows, and cells in training and held-out rows alike.
    """
    constant = [names[i] for i in stats.constant.nonzero()[0].tolist()]
    return {
        "train_rows": train,
        "holdout_rows": holdout,
        "dropped_rows": dropped,
        "imputed_cells": imputed,
        "constant_columns": len(constant),
        "constant_policy": job.data.constant,
        "constant_names": constant[:MOST_NAMES],
    }


def require_watched(dataset: Mapping[str, Any], field: str = "train.early_stop") -> None:
    """Raise SpecError when `field` would watch nothing; `dataset` is the account of the rows."""
    if not dataset["holdout_rows"]:
        raise SpecError(
            f"{field} watches the holdout error, but none of the {dataset['train_rows']} rows is held "
            "out; raise data.holdout, or remove it"
        )


def software(*more: str) -> dict[str, Any]:
    """Versions of Python and of the packages that decide the numbers, `more` included; the time."""
    packages = ("torch", "pyarrow", "numpy", "safetensors", *more)
    return {
        "packages": {"hourglass": __version__} | {name: version(name) for name in packages},
        "python": platform.python_version(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
