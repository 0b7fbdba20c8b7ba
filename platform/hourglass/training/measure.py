"""The rows of a run, read once: checked, counted, measured, and kept in memory where the job allows it."""

import subprocess
import warnings
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from hourglass.config.train import TrainJob
from hourglass.data import reading, unlikely
from hourglass.data.manifest import Manifest, describe, locate
from hourglass.data.prepare import feature_schema
from hourglass.data.reading import DatasetStatistics, Rows
from hourglass.errors import SpecError
from hourglass.training.build import (
    account,
    fit_preprocessing,
    require_values,
    require_watched,
    require_width,
    software,
)
from hourglass.training.complete import Run


@dataclass(frozen=True)
class Measured:
    """A job's rows, read once: statistics, cached chunks, and the record of the dataset."""

    rows: Rows
    statistics: DatasetStatistics
    refs: list[Any]
    data_digest: str
    dataset: dict[str, Any]

    def run(self, job: TrainJob, uri: str) -> Run:
        """The run of `job` on these rows, in the folder `uri`."""
        return Run(
            job=job,
            schema=self.rows.schema,
            stats=self.statistics.stats,
            uri=uri,
            data_digest=self.data_digest,
            provenance={"dataset": self.dataset, **software("ray"), "git_commit": _git_commit()},
        )


def measure(job: TrainJob, manifest: Manifest, schema: pa.Schema, levels: bool = False) -> Measured:
    """Read, check, count and measure every row; keep the features where the job allows it.

    With `levels`, distinct values are counted whether this job asks for them or not.

    Raises: DataError, SpecError.
    """
    columns = feature_schema(manifest, schema, job.data.features, job.data.missing)
    require_width(job, columns.width)
    data = job.data
    rows = reading.of(
        manifest, columns, data.missing, data.holdout, levels or data.scaling.counts_levels
    )
    cached = _cached(job, manifest.rows * columns.row_bytes)
    chosen = unlikely.globbed(data.features, columns.columns)
    watched = [columns.columns.index(name) for name in chosen if columns.dtype != "uint8"]
    statistics, refs = reading.load(rows, keep_features=cached, watched=watched)
    require_values(statistics.stats, columns.feature_names)
    fit_preprocessing(job, statistics.stats)
    dataset = {
        **locate(job.data.uri),
        **describe(manifest),
        **account(
            job,
            statistics.stats,
            columns.feature_names,
            train=statistics.rows("train"),
            holdout=statistics.rows("holdout"),
            dropped=statistics.dropped,
            imputed=statistics.imputed,
        ),
        "cached": cached,
    }
    if job.train.early_stop is not None:
        require_watched(dataset)
    constant = dict(zip(columns.feature_names, statistics.stats.constant, strict=True))
    reasons = unlikely.why(
        chosen,
        index=unlikely.index_columns(schema),
        near_unique=[n for n, s in zip(chosen, statistics.samples, strict=False) if s.near_unique],
        constant=[n for n in chosen if constant[n] and job.data.constant == "keep"],
    )
    if reasons:
        warnings.warn(f"features.columns: a glob chose {unlikely.advice(reasons)}", stacklevel=2)
    return Measured(rows, statistics, refs, manifest.digest, dataset)


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
    except (OSError, subprocess.SubprocessError):  # no git, or it takes too long: not known
        return None
    return done.stdout.strip() or None
