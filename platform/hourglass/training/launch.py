"""Launching a run on Ray Train: check, measure the rows, start the workers, listen, conclude."""

import math
import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import ray
import ray.train
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, remove_placement_group

from hourglass import artifact, ray_internals, storage
from hourglass.config.train import TrainJob
from hourglass.data.prepare import open_dataset
from hourglass.errors import ClusterError, DataError, HourglassError, TrainingError, last_line
from hourglass.settings import Settings
from hourglass.training.calibrate import other_quantile
from hourglass.training.complete import FRESH, Run
from hourglass.training.events import Listener, Subscription, error_of
from hourglass.training.folder import anew, began_anew, clear_up, run_uri
from hourglass.training.measure import Measured, measure
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
    replaces = bool(storage.names(uri)) if fresh else began_anew(uri, found)
    if not replaces and storage.exists(storage.join(found, artifact.MANIFEST)):
        outcome = _finished(job, found, manifest.digest)
        if FRESH in outcome.manifest.provenance:
            clear_up(uri)
        return outcome
    room = _room(job)
    measured = measure(job, manifest, schema)
    if fresh:
        anew(uri).remove()
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
        clear_up(uri)
    return Outcome(found, loaded.manifest, loaded.digest, already=False)


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

    subscription = Subscription(listener, hear)
    with _freed(groups), subscription as publisher:
        task = Task(
            run=run,
            rows=measured.rows,
            statistics=measured.statistics,
            refs=measured.refs,
            threads=room.threads,
            read_cpus=room.read_cpus,
            publisher=publisher,
        )
        for number in range(1, run.job.train.seeds + 1):
            run.checkpoints.of(number).check()
        _fit(task, room, subscription)


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


def _fit(task: Task, room: Room, subscription: Subscription) -> None:
    """Run the workers to their end; Ray Train's own files are gone after it."""
    folder = storage.join(task.run.uri, "ray")
    scaling = ray.train.ScalingConfig(
        num_workers=task.run.job.scale.workers,
        use_gpu=room.gpus > 0,
        resources_per_worker={"CPU": room.cpus, **({"GPU": room.gpus} if room.gpus else {})},
    )
    trainer = ray_internals.trainer_class()(
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
        subscription.deliver(trainer.fit().return_value or ())
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
        lost = error
    finally:
        with suppress(OSError):  # the next attempt removes it, and what ends this one is told
            storage.remove(folder)
    failure = subscription.failure or (lost and _told(lost))
    if failure:
        raise failure from None
    if lost:
        raise TrainingError(
            f"training failed: {_cause(lost)} What was committed is kept; {task.run.again} resumes"
        ) from lost


def _told(lost: Exception) -> HourglassError | None:
    """The error of ours that a worker raised, of which Ray Train has the traceback in words."""
    for error in (getattr(lost, "worker_failures", None) or {}).values():
        kind, _, words = last_line(error).partition(": ")
        package, _, name = kind.rpartition(".")
        if package == HourglassError.__module__:
            return error_of((name, words))
    return None


def _cause(lost: Exception) -> str:
    if isinstance(lost, ray.exceptions.RayActorError):
        return "the process of Ray Train's controller was lost; out of memory?"
    failures = getattr(lost, "worker_failures", None) or {}
    causes = [f"worker {rank}: {last_line(error)[:300]}" for rank, error in failures.items()]
    return f"{'; '.join(causes) or last_line(lost)[:300]}."


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
