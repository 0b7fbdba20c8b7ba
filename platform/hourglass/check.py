"""A job file against its shards: everything that can be checked without a cluster."""

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

SHARDS = 8
"""Maximum shards to sample, spread evenly."""
ROWS = 8192
"""Maximum rows of each, from its start."""


def against_shards(where: str, job: AnyJob, settings: Settings) -> str:
    """One line about the shards of the job in the file `where`; warns about unlikely features.

    Raises: DataError listing every mismatch of the job and its shards.
    """
    problems: list[str] = []
    if isinstance(job, ScoreJob):
        line = _to_score(job, settings, problems)
    else:
        line = _to_train(job.job if isinstance(job, TuneJob) else job, problems)
    if problems:
        mistakes = sum(not line.startswith(" ") for line in problems)
        count = "1 mistake" if mistakes == 1 else f"{mistakes} mistakes"
        raise DataError("\n  ".join([f"{where}: {count} with respect to the shards", *problems]))
    return line


@contextmanager
def _collect(problems: list[str]) -> Iterator[None]:
    """Append an error to `problems` instead of raising it."""
    try:
        yield
    except HourglassError as error:
        problems += str(error).splitlines()


def _to_train(job: TrainJob, problems: list[str]) -> str:
    data = job.data
    dataset = scan_dataset(data.uri)
    with _collect(problems):
        dataset.check(data.manifest)
    with _collect(problems):
        schema = dataset.features(data.features, data.missing)
        require_width(job, schema.width)
        _warn(data.features, dataset, schema, data.constant == "keep")
        return f"{_size(dataset)}, {schema.width} features"
    return ""


def _to_score(job: ScoreJob, settings: Settings, problems: list[str]) -> str:
    from hourglass.inference import batch  # imports Ray, which takes a second

    dataset = scan_dataset(job.uri)
    with _collect(problems):
        dataset.check(job.manifest)
    for require in (batch.require_elsewhere, batch.require_no_clash):
        with _collect(problems):
            require(job)
    features = FeatureSchema(None, (), 0, "float32")
    with _collect(problems):
        model = resolve(job.model, settings)
        features = artifact.load(model.path, model.digest).manifest.features.schema_
    with _collect(problems):
        first = dataset.manifest.shards[0].path
        require_columns(first, dataset.schema, features, job.passthrough)
        if features.vector is not None:
            found = dataset.features(Features(vector=features.vector), "error")
            if found.width != features.width:
                raise DataError(
                    f"{first}: column '{features.vector}': found lists of "
                    f"{found.width} numbers, the model needs {features.width}"
                )
    return f"{_size(dataset)}, {features.width} features"


def _size(dataset: Dataset) -> str:
    return f"{len(dataset.manifest.shards)} shards, {dataset.manifest.rows} rows"


def _warn(features: Features, dataset: Dataset, columns: FeatureSchema, keep: bool) -> None:
    """Warn about unlikely features that a glob matched, by the first rows of some shards."""
    chosen = unlikely.globbed(features, columns.columns)
    full = [shard for shard in dataset.manifest.shards if sum(shard.rows)]
    if not chosen or not full:
        return
    parts = []
    wanted = FeatureSchema(None, tuple(chosen), len(chosen), "float64")
    for shard in full[:: -(-len(full) // SHARDS)]:
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
