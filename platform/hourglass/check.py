"""A job file against the shards that it names: all that can be told before a cluster is asked."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from hourglass import artifact
from hourglass.config.files import AnyJob
from hourglass.config.train import ScoreJob, TrainJob
from hourglass.config.tune import TuneJob
from hourglass.data import unlikely
from hourglass.data.dataset import Dataset, scan_dataset
from hourglass.data.decode import read_tables, to_matrix
from hourglass.data.footer import open_shard
from hourglass.data.schema import Features, FeatureSchema, require_columns
from hourglass.data.stats import measure, merge_all
from hourglass.data.unlikely import Sample
from hourglass.errors import DataError, HourglassError
from hourglass.settings import Settings
from hourglass.tracking.registry import resolve
from hourglass.training.build import require_width

LOOKED_AT = 8
"""Shards of which the first rows are looked at, spread over all of them."""
ROWS = 8192
"""Most rows of each."""


def against_shards(where: str, job: AnyJob, settings: Settings) -> str:
    """One line about the shards of the job in the file `where`; warns of columns that are
    probably not features.

    Raises: DataError listing everything in which the job and the shards do not agree.
    """
    told: list[str] = []
    if isinstance(job, ScoreJob):
        line = _to_score(job, settings, told)
    else:
        line = _to_train(job.job if isinstance(job, TuneJob) else job, told)
    if told:
        mistakes = sum(not line.startswith(" ") for line in told)
        count = "1 mistake" if mistakes == 1 else f"{mistakes} mistakes"
        raise DataError("\n  ".join([f"{where}: {count} beside the shards", *told]))
    return line


@contextmanager
def _into(told: list[str]) -> Iterator[None]:
    """Go on after an error, which `told` has then."""
    try:
        yield
    except HourglassError as error:
        told += str(error).splitlines()


def _to_train(job: TrainJob, told: list[str]) -> str:
    data = job.data
    dataset = scan_dataset(data.uri)
    with _into(told):
        dataset.check(data.manifest)
    with _into(told):
        schema = dataset.features(data.features, data.missing)
        require_width(job, schema.width)
        _warn(data.features, dataset, schema, data.constant == "keep")
        return f"{_size(dataset)}, {schema.width} features"
    return ""


def _to_score(job: ScoreJob, settings: Settings, told: list[str]) -> str:
    from hourglass.inference import batch  # Ray takes a second, which no other job needs here

    dataset = scan_dataset(job.uri)
    with _into(told):
        dataset.check(job.manifest)
    for require in (batch.require_elsewhere, batch.require_no_clash):
        with _into(told):
            require(job)
    features = FeatureSchema(None, (), 0, "float32")
    with _into(told):
        model = resolve(job.model, settings)
        features = artifact.load(model.path, model.digest).manifest.features.schema_
    with _into(told):
        first = dataset.manifest.shards[0].path
        require_columns(first, dataset.schema, features, job.passthrough)
        if features.vector is not None:
            found = dataset.features(Features(vector=features.vector), "error")
            if found.width != features.width:
                raise DataError(
                    f"{first}: column '{features.vector}' holds lists of "
                    f"{found.width} numbers, the model needs {features.width}"
                )
    return f"{_size(dataset)}, {features.width} features"


def _size(dataset: Dataset) -> str:
    return f"{len(dataset.manifest.shards)} shards, {dataset.manifest.rows} rows"


def _warn(features: Features, dataset: Dataset, columns: FeatureSchema, keep: bool) -> None:
    """Warn of columns that a glob chose and that, by the first rows of some shards, are not features."""
    chosen = unlikely.globbed(features, columns.columns)
    full = [shard for shard in dataset.manifest.shards if sum(shard.rows)]
    if not chosen or not full:
        return
    parts = []
    wanted = FeatureSchema(None, tuple(chosen), len(chosen), "float64")
    for shard in full[:: -(-len(full) // LOOKED_AT)]:
        group = next(i for i, rows in enumerate(shard.rows) if rows)
        with open_shard(shard.path, plain=True) as file:
            table = next(read_tables(shard.path, file, group, chosen, ROWS))
        parts.append(to_matrix(table, wanted, shard.path)[0])
    samples = [Sample() for _ in chosen]
    for part in parts:
        samples = [s.merge(Sample.of(part[:, i])) for i, s in enumerate(samples)]
    constant = merge_all(map(measure, parts)).constant
    reasons = unlikely.why(
        chosen,
        index=unlikely.index_columns(dataset.schema),
        near_unique=[n for n, sample in zip(chosen, samples, strict=True) if sample.near_unique],
        constant=[n for n, flat in zip(chosen, constant, strict=True) if flat and keep],
    )
    if reasons:
        rows = sum(map(len, parts))
        warnings.warn(
            f"features.columns: of {rows} rows, a glob chose {unlikely.advice(reasons)}",
            stacklevel=2,
        )
