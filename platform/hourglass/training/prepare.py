"""The data of a run: every row read once, checked, counted, measured, and cached where the job allows it."""

import subprocess
import warnings
from dataclasses import dataclass
from typing import Any

from hourglass.config.train import TrainJob
from hourglass.data import reading, unlikely
from hourglass.data.dataset import Dataset, DatasetStatistics, Rows
from hourglass.errors import SpecError
from hourglass.training.build import account, require_width, software
from hourglass.training.complete import Run


@dataclass(frozen=True)
class TrainingData:
    """The data of a training job: its shards, rows and statistics, and what a run records of them.

    `chunks` are Ray references to the cached features, empty when rows are streamed.
    """

    dataset: Dataset
    rows: Rows
    statistics: DatasetStatistics
    chunks: list[Any]
    record: dict[str, Any]

    def run(self, job: TrainJob, uri: str) -> Run:
        """The run of `job` on this data, in the folder `uri`."""
        return Run(
            job=job,
            schema=self.rows.schema,
            stats=self.statistics.stats,
            uri=uri,
            data_digest=self.dataset.manifest.digest,
            provenance={"dataset": self.record, **software("ray"), "git_commit": _git_commit()},
        )


def prepare(job: TrainJob, dataset: Dataset, levels: bool = False) -> TrainingData:
    """Read every row of `dataset` once for `job`; keep the features in memory where the job allows it.

    With `levels`, distinct values are counted even if this job does not need them.

    Raises: DataError, SpecError.
    """
    data = job.data
    schema = dataset.features(data.features, data.missing)
    require_width(job, schema.width)
    levels = levels or data.scaling.counts_levels
    rows = Rows(dataset.manifest.shards, schema, data.missing, data.holdout, levels)
    cached = _cached(job, dataset.manifest.rows * schema.row_bytes)
    chosen = unlikely.globbed(data.features, schema.columns)
    watched = [schema.columns.index(name) for name in chosen if schema.dtype != "uint8"]
    statistics, chunks = reading.load(rows, keep_features=cached, watched=watched)
    counts = account(job, schema, statistics)
    constant = dict(zip(schema.feature_names, statistics.stats.constant, strict=True))
    reasons = unlikely.why(
        chosen,
        index=unlikely.index_columns(dataset.schema),
        near_unique=[n for n, s in zip(chosen, statistics.samples, strict=False) if s.near_unique],
        constant=[n for n in chosen if constant[n] and data.constant == "keep"],
    )
    if reasons:
        warnings.warn(f"features.columns: a glob chose {unlikely.advice(reasons)}", stacklevel=2)
    return TrainingData(
        dataset, rows, statistics, chunks, {**dataset.record, **counts, "cached": cached}
    )


def _cached(job: TrainJob, size: int) -> bool:
    if job.data.cache == "memory" and size > job.data.cache_bytes:
        raise SpecError(
            f"data.cache: memory needs {size} bytes for the features, cache_bytes allows "
            f"{job.data.cache_bytes}; raise it, or use cache: stream"
        )
    return job.data.cache != "stream" and size <= job.data.cache_bytes


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):  # git is missing, or takes too long
        return None
    return done.stdout.strip() or None
