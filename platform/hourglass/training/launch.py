"""Runs on Ray Train: the launching process prepares the data and starts workers, which train."""

import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.util
import torch
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, remove_placement_group

from hourglass import artifact, ray_internals, storage
from hourglass.config.train import TrainJob
from hourglass.data.dataset import open_dataset
from hourglass.data.loader import Loader, MemoryLoader, StreamLoader
from hourglass.data.reading import configure, fetch, stream_features
from hourglass.errors import DataError, HourglassError, TrainingError, last_line
from hourglass.settings import Settings
from hourglass.training.calibrate import other_quantile
from hourglass.training.collective import (
    DistributedProcessGroup,
    ProcessGroup,
    SingleProcessGroup,
)
from hourglass.training.complete import (
    FRESH,
    Run,
    complete,
    fresh_checkpoints,
    is_replacing,
    remove_checkpoints,
    run_uri,
)
from hourglass.training.events import (
    RESERVED,
    Event,
    Listener,
    Publisher,
    Subscription,
    error_of,
)
from hourglass.training.metrics import Measured
from hourglass.training.prepare import TrainingData, prepare
from hourglass.training.resources import WorkerResources, worker_resources

STARTS_OVER = "nothing was committed yet; the same command starts over"


@dataclass(frozen=True)
class Outcome:
    """A finished run and its artifact; `already` when it had finished before."""

    uri: str
    manifest: artifact.Manifest
    digest: str
    already: bool


def train(job: TrainJob, settings: Settings, listener: Listener, fresh: bool = False) -> Outcome:
    """Run `job` to its end on the connected Ray cluster; the same job again resumes it, if need be.

    With `fresh`, the job is retrained, and the artifact stays until the new one replaces it. Once an
    interrupted `fresh` run has a checkpoint, the same job without `fresh` resumes it.
    The caller holds the lock of the run (see `locked`).
    Raises: DataError, SpecError, ClusterError, TrainingError, WriteError.
    """
    uri = run_uri(job, settings)
    dataset = open_dataset(job.data.uri, job.data.manifest)
    found = storage.join(uri, "artifact")
    replaces = bool(storage.names(uri)) if fresh else is_replacing(uri, found)
    if not replaces and storage.exists(storage.join(found, artifact.MANIFEST)):
        outcome = _finished(job, found, dataset.manifest.digest)
        if FRESH in outcome.manifest.provenance:
            remove_checkpoints(uri)
        return outcome
    resources = worker_resources(job.scale, listener.note)
    data = prepare(job, dataset)
    if fresh:
        fresh_checkpoints(uri).remove()
    listener.prepared(job, data.record)
    run = replace(data.run(job, uri), fresh=replaces)
    if fresh:
        run = replace(run, again="the same command without --fresh")
    try:
        distribute(run, data, resources, listener)
    except KeyboardInterrupt as stop:
        if fresh and not run.checkpoints.committed():
            stop.add_note(STARTS_OVER)
        raise
    loaded = artifact.load(found)
    if replaces:
        remove_checkpoints(uri)
    return Outcome(found, loaded.manifest, loaded.digest, already=False)


def distribute(
    run: Run,
    data: TrainingData,
    resources: WorkerResources,
    listener: Listener,
    reserved: Callable[[str], None] | None = None,
) -> None:
    """Complete `run` with Ray Train, one process for each of its workers.

    `reserved` is called with the id of their placement group, which is always removed in the end.
    Raises: the error that ended the run, as in one process.
    """
    groups: list[str] = []
    measured = Measured(run.job, listener)

    def keep(group: str) -> None:
        groups.append(group)
        measured.started()
        if reserved:
            reserved(group)

    subscription = Subscription(measured, keep)
    with _freed(groups), subscription as publisher:
        task = Task(run, data, resources, publisher)
        for number in range(1, run.job.train.seeds + 1):
            run.checkpoints.of(number).check()
        _fit(task, subscription)


@contextmanager
def _freed(groups: list[str]) -> Iterator[None]:
    try:
        yield
    finally:
        free(groups)


def free(groups: Iterable[str]) -> None:
    """Remove placement groups; removing one twice is harmless, and a lost cluster has none."""
    for group in groups:
        with suppress(ray.exceptions.RayError):
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group)))


def _fit(task: "Task", subscription: Subscription) -> None:
    """Run the workers to their end, then remove Ray Train's own files."""
    cpus, gpus = task.resources.cpus, task.resources.gpus
    folder = storage.join(task.run.uri, "ray")
    scaling = ray.train.ScalingConfig(
        num_workers=task.run.job.scale.workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
    )
    trainer = ray_internals.trainer_class()(
        train_worker,
        train_loop_config={"task": task},
        torch_config=ray_internals.torch_config(),
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
        with suppress(OSError):  # the next attempt removes it; an error here must not hide another
            storage.remove(folder)
    failure = subscription.failure or (lost and _raised(lost))
    if failure:
        raise failure from None
    if lost:
        raise TrainingError(
            f"training failed: {_cause(lost)} What was committed is kept; {task.run.again} resumes"
        ) from lost


def _raised(lost: Exception) -> HourglassError | None:
    """The HourglassError that a worker raised, parsed from the traceback that Ray Train has of it."""
    for error in (getattr(lost, "worker_failures", None) or {}).values():
        kind, _, message = last_line(error).partition(": ")
        package, _, name = kind.rpartition(".")
        if package == HourglassError.__module__:
            return error_of((name, message))
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
            f"{uri}: run {job.run_name} is finished, but on other shards; retrain with --fresh"
        )
    other = other_quantile(f"run {job.run_name}", loaded.manifest.calibration, job.quantile)
    if other:
        warnings.warn(other, stacklevel=2)
    return Outcome(uri, loaded.manifest, loaded.digest, already=True)


@dataclass(frozen=True)
class Task:
    """What a worker needs to take part in a run."""

    run: Run
    data: TrainingData
    resources: WorkerResources
    publisher: Publisher


def train_worker(config: dict[str, Task]) -> list[Event]:
    """Train as one of the workers; returns the events that were not delivered.

    An HourglassError goes to the event channel, and a restarted worker that finds one there returns at
    once. A TrainingError is raised by all workers at the same step, so all return; another error may be
    this worker's alone while the others wait for it, so it is raised and Ray ends them.
    """
    task = config["task"]
    if task.publisher.failure():
        return []
    try:
        _work(task)
    except TrainingError as error:
        task.publisher.fail(error)
    except HourglassError as error:
        task.publisher.fail(error)
        if task.run.job.scale.workers > 1:
            raise
    return task.publisher.undelivered()


def _work(task: Task) -> None:
    torch.set_num_threads(task.resources.threads)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    group: ProcessGroup = DistributedProcessGroup() if size > 1 else SingleProcessGroup()
    send = task.publisher.send if rank == 0 else _ignore
    placement = ray.util.get_current_placement_group()
    if placement is not None:
        send(RESERVED, placement.id.hex())
    complete(task.run, _loader(task, rank, size), group, ray.train.torch.get_device(), send)


def _loader(task: Task, rank: int, size: int) -> Loader:
    job, data = task.run.job, task.data
    common = {"batch_size": job.train.batch_size, "seed": job.train.seed}
    if data.chunks:
        features, held = fetch(data.chunks, data.rows.schema)
        return MemoryLoader(features, held, worker=rank, workers=size, **common)
    configure()
    return StreamLoader(
        data.statistics.counts,
        partial(stream_features, data.rows, cpus=task.resources.read_cpus),
        columns=data.rows.schema.width,
        window_rows=job.data.shuffle_rows,
        epochs=job.train.epochs,
        keep_bytes=job.data.cache_bytes,
        worker=rank,
        workers=size,
        **common,
    )


def _ignore(kind: str, payload: Any) -> None:
    """Only the first worker sends events."""
