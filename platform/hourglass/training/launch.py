"""Runs on Ray Train: the launching process prepares the data and starts workers, which train."""

import secrets
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
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

from hourglass import artifact, bundles, ray_internals, storage
from hourglass.bundles import Bundle
from hourglass.config.train import ScaleSpec, TrainJob
from hourglass.data.dataset import open_dataset
from hourglass.data.loader import Loader, MemoryLoader, StreamLoader
from hourglass.data.reading import configure, fetch, stream_features
from hourglass.errors import ClusterError, DataError, HourglassError, TrainingError, last_line
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

STARTS_OVER = "nothing was committed yet; the same command starts over"
MIN_READ_CPUS = 0.5
"""What workers must leave free: a read task is CPU-bound, so it asks for a whole CPU if there is one."""


@dataclass(frozen=True)
class Outcome:
    """A finished run and its artifact; `already` when it had finished before."""

    uri: str
    manifest: artifact.Manifest
    digest: str
    already: bool


@dataclass(frozen=True)
class WorkerResources:
    """What each worker of a run owns, and the CPUs of each read task."""

    cpus: float
    gpus: float
    read_cpus: float

    @property
    def threads(self) -> int:
        """Threads of PyTorch: the CPUs owned."""
        return max(1, int(self.cpus))


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
    resources = _resources(job, listener)
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


def _resources(job: TrainJob, listener: Listener) -> WorkerResources:
    """The cluster's share for each worker, once it is free. Raises ClusterError if it never is.

    Workers never take every CPU: Ray Data would wait forever for one to read with.
    """
    scale, nodes = job.scale, bundles.nodes()
    found = _share(scale, nodes)
    if not bundles.can_grow():
        if found is None:
            raise ClusterError(_too_many(scale, nodes))
        return found
    fixed = 1.0 if scale.cpus_per_worker == "auto" else scale.cpus_per_worker
    asked = found or WorkerResources(fixed, float(scale.accelerator == "gpu"), 1.0)
    bundles.wait(
        [{"CPU": asked.cpus, "GPU": asked.gpus}] * scale.workers + [{"CPU": asked.read_cpus}],
        scale.wait_s,
        listener.note,
        "use fewer workers or scale.cpus_per_worker, or raise scale.wait_s",
    )
    return _share(scale, bundles.nodes()) or asked


def _share(scale: ScaleSpec, nodes: Sequence[Bundle]) -> WorkerResources | None:
    """What each worker owns of nodes that nobody else uses; None if the workers do not fit."""
    if not nodes:
        return None
    workers, cpus = scale.workers, bundles.total(nodes, "CPU")
    enough = bundles.total(nodes, "GPU") >= workers
    gpus = float(scale.accelerator == "gpu" or (scale.accelerator == "auto" and enough))
    most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    shares = (
        [*range(most, 0, -1), *(hundredths / 100 for hundredths in range(99, 0, -1))]
        if scale.cpus_per_worker == "auto"
        else [scale.cpus_per_worker]
    )
    for each in shares:
        read = _left(nodes, each, workers)
        # Half of what is there, up to a CPU, reads; unless the job says otherwise.
        need = min(1.0, cpus / 2 / len(nodes)) if len(shares) > 1 else MIN_READ_CPUS
        if read >= need and bundles.fitting(nodes, {"CPU": each, "GPU": gpus}) >= workers:
            return WorkerResources(float(each), gpus, read)
    return None


def _left(nodes: Sequence[Bundle], each: float, workers: int) -> float:
    """The CPUs, at most 1, that some node has left wherever Ray places the workers."""
    left = bundles.total(nodes, "CPU") - each * workers
    whole = all(float(cpus).is_integer() for cpus in (each, *(n.get("CPU", 0.0) for n in nodes)))
    return min(1.0, left if whole or len(nodes) == 1 else left / len(nodes))


def _too_many(scale: ScaleSpec, nodes: Sequence[Bundle]) -> str:
    """Why the workers do not fit this machine."""
    cpus, gpus = bundles.total(nodes, "CPU"), bundles.total(nodes, "GPU")
    if scale.accelerator == "gpu" and gpus < scale.workers:
        return (
            f"scale.accelerator: gpu needs one for each of {scale.workers} workers, this machine has "
            f"{gpus:g}; use fewer workers, or accelerator: cpu"
        )
    each = scale.cpus_per_worker
    taken = "" if each == "auto" else f" of {each:g} CPUs"
    spare = max(cpus - 1.0, cpus / 2.0) / scale.workers
    return (
        f"{scale.workers} workers{taken} leave none of this machine's {cpus:g} CPUs to read; use fewer "
        f"workers, or scale.cpus_per_worker up to {spare:.2g}"
    )


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
