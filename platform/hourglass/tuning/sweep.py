"""A sweep on Ray Tune: rows are read and placed once, each point trains, a leaderboard is written.

<runs>/<sweep>/trials/<trial>/artifact      a finished trial; the same command does not run it again
<runs>/<sweep>/trials/<trial>/checkpoints   of one that was stopped; it goes on from there
<runs>/<sweep>/leaderboard.{json,csv,parquet}
"""

import logging
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa
import ray
from ray import tune

from hourglass import artifact, storage
from hourglass.artifact import Artifact
from hourglass.data.feed import Features
from hourglass.data.manifest import Manifest
from hourglass.data.prepare import feature_schema, open_dataset
from hourglass.data.reading import fetch
from hourglass.errors import ClusterError, DataError, SpecError
from hourglass.settings import Settings
from hourglass.spec import TrainJob
from hourglass.training import launch
from hourglass.training.complete import Run
from hourglass.training.launch import Measured
from hourglass.tune_job import TuneJob
from hourglass.tuning import leaderboard
from hourglass.tuning.judge import pca_errors
from hourglass.tuning.leaderboard import METRICS, Entry, Leaderboard
from hourglass.tuning.space import Point, points
from hourglass.tuning.trial import Share, train_trial

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the artifact is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, which resumes when run again
    "RAY_AIR_NEW_OUTPUT": "0",  # it frames the search in boxes; the listener tells
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class Listener(Protocol):
    """Hears how a sweep goes, in the process that launched it."""

    def sweeping(self, trials: int, finished: int, failed: int, at_once: int, cpus: float) -> None:
        """How many trials there are, ended before, invalid, and how many run at a time on what."""
        ...

    def ended(self, values: Mapping[str, Any], metric: float | None, reason: str) -> None:
        """A trial ended: its values, and its metric or the reason why it failed."""
        ...


@dataclass(frozen=True)
class Placed:
    """The rows of a sweep in this process: measured, and parted into training and held-out rows."""

    measured: Measured
    train: Features
    holdout: Features


def run(sweep: TuneJob, settings: Settings, listener: Listener, fresh: bool = False) -> Leaderboard:
    """Run `sweep` to its end on the connected cluster; finished trials are never run twice.

    Raises: DataError, SpecError, ClusterError, ArtifactError.
    """
    name, base, every = sweep.name or "sweep", sweep.job, points(sweep)
    folder = storage.join(settings.runs_uri, name)
    if fresh:
        storage.remove(folder)
    manifest, schema = open_dataset(base.data.uri, base.data.manifest)
    jobs = {point.trial: point.job for point in every if point.job}
    done = _finished(folder, jobs, manifest.digest)
    share, at_once = _room(sweep, base)
    listener.sweeping(len(every), len(done), len(every) - len(jobs), at_once, share.cpus)
    todo = {trial: job for trial, job in jobs.items() if trial not in done}
    judged = _judged(folder)
    failed: dict[str, str] = {}
    if todo or not done.keys() <= judged.keys():
        placed = _place(base, manifest, schema)
        if todo:
            runs = _runs(placed.measured, base, folder, todo)
            heard = _Heard(listener, sweep.metric, {p.trial: p.values for p in every})
            _fit(runs, placed, share, at_once, folder, heard)
            failed = heard.failed
            done |= _finished(folder, todo, manifest.digest)
        newly = {trial: jobs[trial] for trial in done if trial not in judged}
        stats = placed.measured.census.stats
        judged |= pca_errors(newly, stats, placed.train, placed.holdout)
    entries = [
        _entry(point, done.get(point.trial), judged.get(point.trial), failed) for point in every
    ]
    board = leaderboard.ranked(name, sweep.metric, entries)
    board.save(folder)
    return board


def _finished(folder: str, trials: Iterable[str], data: str) -> dict[str, Artifact]:
    """The verified artifacts of the trials that have one. Raises DataError, ArtifactError."""
    found = {}
    for trial in trials:
        uri = storage.join(_folder_of(folder, trial), "artifact")
        if not storage.exists(storage.join(uri, artifact.MANIFEST)):
            continue
        found[trial] = artifact.load(uri)
        if found[trial].manifest.provenance.get("dataset", {}).get("digest") != data:
            raise DataError(f"{uri}: trained on other shards; begin the sweep anew with --fresh")
    return found


def _folder_of(folder: str, trial: str) -> str:
    return storage.join(folder, "trials", trial)


def _judged(folder: str) -> dict[str, float | None]:
    """What the leaderboard of an earlier sitting says of PCA, for each finished trial."""
    earlier = leaderboard.load(folder)
    entries = earlier.entries if earlier else ()
    return {entry.trial: entry.pca_mse for entry in entries if entry.status == "finished"}


def _room(sweep: TuneJob, base: TrainJob) -> tuple[Share, int]:
    """What each trial gets, and how many run at a time. Raises ClusterError when not even one fits.

    A trial's CPUs do not depend on how many run beside it: with other threads sums would round
    otherwise, and the leaderboard would depend on the concurrency.
    """
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    asked = base.scale.cpus_per_worker
    each = 1.0 if asked == "auto" else asked
    gpu = base.scale.accelerator == "gpu" or (base.scale.accelerator == "auto" and gpus >= 1)
    room = math.floor(min(cpus / each, gpus) if gpu else cpus / each)
    if room < 1:
        raise ClusterError(
            f"a trial of {each:g} CPUs{' and a GPU' if gpu else ''} does not fit the cluster's "
            f"{cpus:g} CPUs and {gpus:g} GPUs; change base.scale"
        )
    return Share(each, gpu), room if sweep.concurrency == "auto" else min(sweep.concurrency, room)


def _place(base: TrainJob, manifest: Manifest, schema: pa.Schema) -> Placed:
    """Read the rows once. Raises DataError, SpecError when they may not be kept in memory."""
    columns = feature_schema(manifest, schema, base.data.features, base.data.missing)
    size = manifest.rows * columns.row_bytes
    if size > base.data.cache_bytes:
        raise SpecError(
            f"base.data.cache_bytes: trials share the rows in memory, which takes {size} bytes, found "
            f"{base.data.cache_bytes}; raise it, or search on fewer rows"
        )
    measured = launch.measure(base, manifest, schema)
    features, held = fetch(measured.refs, measured.rows.schema)
    return Placed(measured, features[~held], features[held])


def _runs(
    measured: Measured, base: TrainJob, folder: str, jobs: Mapping[str, TrainJob]
) -> dict[str, Run]:
    """The run of each trial, in a folder of its own."""
    any_run = measured.run(base, folder)
    return {
        trial: replace(any_run, job=job, uri=_folder_of(folder, trial))
        for trial, job in jobs.items()
    }


def _fit(
    runs: dict[str, Run], placed: Placed, share: Share, at_once: int, folder: str, heard: "_Heard"
) -> None:
    """Run all trials in processes that are used again; Ray Tune's own files are gone after it."""
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # It misses the metrics' files, whose writers we have just switched off.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    trainable = tune.with_parameters(
        train_trial, runs=runs, train=placed.train, holdout=placed.holdout, share=share
    )
    resources = {"cpu": share.cpus, **({"gpu": 1} if share.gpu else {})}
    losses = next(iter(runs.values())).job.scale.max_failures
    own = storage.join(folder, "ray")
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space={"trial": tune.grid_search(list(runs))},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once, reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"attempt-{secrets.token_hex(4)}",
            storage_path=own,
            failure_config=tune.FailureConfig(max_failures=losses),
            callbacks=[heard],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        storage.remove(own)


class _Heard(tune.Callback):  # type: ignore[misc]
    """Tune's news for the listener; `failed` has the reason of each trial that failed."""

    def __init__(
        self, listener: Listener, metric: str, values: Mapping[str, dict[str, Any]]
    ) -> None:
        self.failed: dict[str, str] = {}
        self._listener, self._metric, self._values = listener, metric, values

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its callbacks down to restore them, which we never do."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial came to its end, or said why it could not."""
        said = trial.last_result
        self._ended(trial.config["trial"], said.get(self._metric), said["reason"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial lost its process more often than base.scale.max_failures allows."""
        times = f"{trial.num_failures} times"
        self._ended(trial.config["trial"], None, f"its process was lost {times}; out of memory?")

    def _ended(self, trial: str, metric: float | None, reason: str) -> None:
        if reason:
            self.failed[trial] = reason
        self._listener.ended(self._values[trial], metric, reason)


def _entry(
    point: Point, found: Artifact | None, pca: float | None, failed: Mapping[str, str]
) -> Entry:
    """The leaderboard's line about a point."""
    if found is None:
        reason = point.reason or failed.get(point.trial) or "it did not end"
        return Entry(trial=point.trial, status="failed", reason=reason, values=point.values)
    said = found.manifest
    return Entry(
        trial=point.trial,
        status="finished",
        values=point.values,
        **{name: said.metrics.get(name) for name in METRICS},
        pca_mse=pca,
        parameters=sum(weight.numel() for weight in found.module.parameters()),
        seconds=said.provenance["seconds"],
    )
