"""What a run says about itself: the rows it took, counted, and the software it ran on."""

import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from hourglass.config.train import TrainJob
from hourglass.data.stats import Stats
from hourglass.errors import SpecError

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
    packages = ("hourglass", "torch", "pyarrow", "numpy", "safetensors", *more)
    return {
        "packages": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
