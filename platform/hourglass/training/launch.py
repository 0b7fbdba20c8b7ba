"""Launching a run on Ray Train: check, measure the rows, start the workers, listen, conclude."""

import math
import secrets
import subprocess
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.train
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, remove_placement_group

from hourglass import artifact, storage
from hourglass.config.train import TrainJob
from hourglass.data import reading, unlikely
from hourglass.data.manifest import Manifest, describe, locate
from hourglass.data.prepare import feature_schema, open_dataset
from hourglass.data.reading import Census, Rows
from hourglass.errors import (
    ArtifactError,
    ClusterError,
    DataError,
    HourglassError,
    SpecError,
    TrainingError,
    WriteError,
)
from hourglass.model.preprocessing import counts_levels
from hourglass.settings import Settings
from hourglass.tracking import locks
from hourglass.training import provenance
from hourglass.training.board import Listener, Listening, error_of
from hourglass.training.build import fit_preprocessing, require_values, require_width
from hourglass.training.calibrate import other_quantile
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.complete import CHECKPOINTS, FRESH, Run
from hourglass.training.trainer import Trainer
from hourglass.training.worker import Task, train_worker

BEGINS = "nothing was committed yet; the same command begins again"
LEAST_READ_CPUS = 0.5
"""What workers must leave: a read task computes as much as it can, so it asks for a whole CPU."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: where its artifact is, and what it says."""

    uri: str
    manifest: artifact.Manifest
    digest: str
    already: bool


@dataclass(frozen=True)
class Room:
    """What each worker of a run owns, and the CPUs of a read task beside them."""

    cpus: float
    gpus: float
    read_cpus: float

    @property
    def threads(self) -> int:
        """Threads of torch: the CPUs owned."""
        return max(1, int(self.cpus))


def run_uri(job: TrainJob, settings: Settings) -> str:
    """Where the run keeps checkpoints and artifact."""
    return storage.join(settings.runs_uri, job.run_name)


@contextmanager
def alone(job: TrainJob, settings: Settings, fresh: bool = False) -> Iterator[None]:
    """Train the run of `job`, and no other command beside it.

    Where nothing can be written, a finished run can still be found: nobody trains it there. Raises:
    DataError when another one trains it, WriteError.
    """
    uri = run_uri(job, settings)
    with ExitStack() as stack:
        try:
            stack.enter_context(
                locks.alone(
                    locks.beside(uri),
                    f"{uri}: another process trains this run",
                    "under another name (--set name=NAME)",
                )
            )
        except WriteError:
            if fresh or not _is_finished(uri):
                raise
        yield


def train(job: TrainJob, settings: Settings, listener: Listener, fresh: bool = False) -> Outcome:
    """Run `job` to its end on the connected Ray cluster; the same job again resumes or is done.

    With `fresh`, it trains anew, and what is there stays until the new artifact takes its place; a
    `fresh` run that was cut short is gone on with, once it has a checkpoint, by the same job without.
    Hold `alone` meanwhile.
    Raises: DataError, SpecError, ClusterError, TrainingError, WriteError.
    """
    uri = run_uri(job, settings)
    manifest, schema = open_dataset(job.data.uri, job.data.manifest)
    found = storage.join(uri, "artifact")
    replaces = bool(storage.names(uri)) if fresh else _began_anew(uri, found)
    if not replaces and storage.exists(storage.join(found, artifact.MANIFEST)):
        outcome = _finished(job, found, manifest.digest)
        if FRESH in outcome.manifest.provenance:
            _clear_up(uri)
        return outcome
    room = _room(job)
    measured = measure(job, manifest, schema)
    if fresh:
        _anew(uri).remove()
    listener.prepared(job, measured.dataset)
    run = replace(measured.run(job, uri), fresh=replaces)
    if fresh:
        run = replace(run, again="the same command without --fresh")
    try:
        distribute(run, measured, room, listener)
    except KeyboardInterrupt as stop:
        if fresh and not run.checkpoints.committed():
            stop.add_note(BEGINS)
        raise
    loaded = artifact.load(found)
    if replaces:
        _clear_up(uri)
    return Outcome(found, loaded.manifest, loaded.digest, already=False)


def _anew(uri: str) -> Checkpoints:
    """Those of a run that began anew beside an earlier one."""
    return Checkpoints(storage.join(uri, FRESH), None, "", 1)


def _began_anew(uri: str, found: str) -> bool:
    """True when the run began anew and has a checkpoint since, but is not what the artifact is of.

    Its checkpoints may be there after it has ended: to remove them was refused, or cut short.
    """
    committed = _anew(uri).committed()
    if not committed:
        return False
    try:
        ended = artifact.load(found).manifest.provenance.get(FRESH, ())
    except ArtifactError:
        return True
    return not set(committed) <= set(ended)


def _clear_up(uri: str) -> None:
    """Remove the checkpoints of a run that has replaced another, and of that one; again the next time."""
    with suppress(OSError):
        storage.remove(storage.join(uri, CHECKPOINTS))
        _anew(uri).remove()


def _is_finished(uri: str) -> bool:
    found = storage.join(uri, "artifact")
    return storage.exists(storage.join(found, artifact.MANIFEST)) and not _began_anew(uri, found)


@dataclass(frozen=True)
class Measured:
    """A job's rows, read once: their census, their chunks where cached, what the record says."""

    rows: Rows
    census: Census
    refs: list[Any]
    data_digest: str
    dataset: dict[str, Any]

    def run(self, job: TrainJob, uri: str) -> Run:
        """The run of `job` on these rows, in the folder `uri`."""
        software = {**provenance.software("ray"), "git_commit": _git_commit()}
        return Run(
            job=job,
            schema=self.rows.schema,
            stats=self.census.stats,
            uri=uri,
            data_digest=self.data_digest,
            provenance={"dataset": self.dataset, **software},
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
        manifest, columns, data.missing, data.holdout, levels or counts_levels(data.scaling)
    )
    cached = _cached(job, manifest.rows * columns.row_bytes)
    chosen = unlikely.globbed(data.features, columns.columns)
    watched = [columns.columns.index(name) for name in chosen if columns.dtype != "uint8"]
    census, refs = reading.load(rows, keep_features=cached, watched=watched)
    require_values(census.stats, columns.feature_names)
    fit_preprocessing(job, census.stats)
    dataset = {
        **locate(job.data.uri),
        **describe(manifest),
        **provenance.account(
            job,
            census.stats,
            columns.feature_names,
            train=census.rows("train"),
            holdout=census.rows("holdout"),
            dropped=census.dropped,
            imputed=census.imputed,
        ),
        "cached": cached,
    }
    if job.train.early_stop is not None:
        provenance.require_watched(dataset)
    constant = dict(zip(columns.feature_names, census.stats.constant, strict=True))
    reasons = unlikely.why(
        chosen,
        index=unlikely.index_columns(schema),
        near_unique=[n for n, s in zip(chosen, census.samples, strict=False) if s.near_unique],
        constant=[n for n in chosen if constant[n] and job.data.constant == "keep"],
    )
    if reasons:
        warnings.warn(f"features.columns: a glob chose {unlikely.advice(reasons)}", stacklevel=2)
    return Measured(rows, census, refs, manifest.digest, dataset)


def distribute(
    run: Run,
    measured: "Measured",
    room: Room,
    listener: Listener,
    reserved: Callable[[str], None] | None = None,
) -> None:
    """Complete `run` with Ray Train, one process for each of its workers.

    `reserved` hears the id of their placement group, which is free in the end, whoever died. Raises:
    whatever ends the run, as in one process.
    """
    groups: list[str] = []

    def hear(group: str) -> None:
        groups.append(group)
        if reserved:
            reserved(group)

    listening = Listening(listener, hear)
    with _freed(groups), listening as line:
        task = Task(
            run=run,
            rows=measured.rows,
            census=measured.census,
            refs=measured.refs,
            threads=room.threads,
            read_cpus=room.read_cpus,
            line=line,
        )
        for number in range(1, run.job.train.seeds + 1):
            run.checkpoints.of(number).check()
        _fit(task, room, listening)


@contextmanager
def _freed(groups: list[str]) -> Iterator[None]:
    try:
        yield
    finally:
        free(groups)


def free(groups: Iterable[str]) -> None:
    """Free what workers reserved; what is free already stays free, and a lost cluster holds nothing."""
    for group in groups:
        with suppress(ray.exceptions.RayError):
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))


def _fit(task: Task, room: Room, listening: Listening) -> None:
    """Run the workers to their end; Ray Train's own files are gone after it."""
    folder = storage.join(task.run.uri, "ray")
    scaling = ray.train.ScalingConfig(
        num_workers=task.run.job.scale.workers,
        use_gpu=room.gpus > 0,
        resources_per_worker={"CPU": room.cpus, **({"GPU": room.gpus} if room.gpus else {})},
    )
    trainer = Trainer(
        train_worker,
        train_loop_config={"task": task},
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=f"attempt-{secrets.token_hex(4)}",
            storage_path=folder,
            failure_config=ray.train.FailureConfig(
                max_failures=task.run.job.scale.max_failures, controller_failure_limit=3
            ),
        ),
    )
    lost: Exception | None = None
    try:
        listening.hear(trainer.fit().return_value or ())
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
        lost = error
    finally:
        with suppress(OSError):  # the next attempt removes it, and what ends this one is told
            storage.remove(folder)
    failure = listening.failure or (lost and _told(lost))
    if failure:
        raise failure from None
    if lost:
        raise TrainingError(
            f"training failed: {_cause(lost)} What was committed is kept; {task.run.again} resumes"
        ) from lost


def _told(lost: Exception) -> HourglassError | None:
    """The error of ours that a worker raised, of which Ray Train has the traceback in words."""
    for error in (getattr(lost, "worker_failures", None) or {}).values():
        kind, _, words = _last_line(error).partition(": ")
        package, _, name = kind.rpartition(".")
        if package == HourglassError.__module__:
            return error_of((name, words))
    return None


def _cause(lost: Exception) -> str:
    if isinstance(lost, ray.exceptions.RayActorError):
        return "the process of Ray Train's controller was lost; out of memory?"
    failures = getattr(lost, "worker_failures", None) or {}
    causes = [f"worker {rank}: {_last_line(error)[:300]}" for rank, error in failures.items()]
    return f"{'; '.join(causes) or _last_line(lost)[:300]}."


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _finished(job: TrainJob, uri: str, data: str) -> Outcome:
    loaded = artifact.load(uri)
    trained_on = loaded.manifest.provenance.get("dataset", {}).get("digest")
    if trained_on != data:
        raise DataError(
            f"{uri}: run {job.run_name} is finished, but on other shards; train anew with --fresh"
        )
    other = other_quantile(f"run {job.run_name}", loaded.manifest.calibration, job.quantile)
    if other:
        warnings.warn(other, stacklevel=2)
    return Outcome(uri, loaded.manifest, loaded.digest, already=True)


def _cached(job: TrainJob, size: int) -> bool:
    if job.data.cache == "memory" and size > job.data.cache_bytes:
        raise SpecError(
            f"data.cache: memory needs {size} bytes for the features, cache_bytes allows "
            f"{job.data.cache_bytes}; raise it, or use cache: stream"
        )
    return job.data.cache != "stream" and size <= job.data.cache_bytes


def _room(job: TrainJob) -> Room:
    """What the cluster has for each worker. Raises ClusterError when that is not enough.

    Workers never take every CPU: Ray Data needs some to read, and would wait forever for it.
    """
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    workers = job.scale.workers
    gpu = job.scale.accelerator == "gpu" or (job.scale.accelerator == "auto" and gpus >= workers)
    if gpu and gpus < workers:
        raise ClusterError(
            f"scale.accelerator: gpu needs one for each of {workers} workers, the cluster has "
            f"{gpus:g}; use fewer workers, or accelerator: cpu"
        )
    spare = max(cpus - 1.0, cpus / 2.0)
    if job.scale.cpus_per_worker == "auto":
        share = spare / workers
        each = float(math.floor(share)) if share >= 1 else math.floor(share * 100) / 100
    else:
        each = job.scale.cpus_per_worker
    left = cpus - each * workers
    if left < LEAST_READ_CPUS:
        raise ClusterError(
            f"{workers} workers of {each:g} CPUs leave none of the cluster's {cpus:g} to read; "
            f"use fewer workers, or scale.cpus_per_worker up to {spare / workers:.2g}"
        )
    return Room(each, 1.0 if gpu else 0.0, min(1.0, left))


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):  # no git, or it takes too long: not known
        return None
    return done.stdout.strip() or None
