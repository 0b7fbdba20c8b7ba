"""What each Ray Train worker runs: it loads its rows, joins its process group, and completes the run."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.util
import torch

from hourglass.data.loader import Loader, MemoryLoader, StreamLoader
from hourglass.data.reading import DatasetStatistics, Rows, fetch, settle, stream_features
from hourglass.errors import HourglassError, TrainingError
from hourglass.training.collective import DistributedProcessGroup, ProcessGroup, SingleProcessGroup
from hourglass.training.complete import Run, complete
from hourglass.training.events import RESERVED, Event, Publisher


@dataclass(frozen=True)
class Task:
    """Everything a worker is told; `refs` are the cached chunks, empty when rows are streamed."""

    run: Run
    rows: Rows
    statistics: DatasetStatistics
    refs: list[Any]
    threads: int
    read_cpus: float
    publisher: Publisher


def train_worker(config: dict[str, Task]) -> list[Event]:
    """Train as one of the workers; returns the events that were not delivered.

    An error of ours goes to the event channel, and a restart that receives one ends at once. A
    TrainingError comes to all workers at the same step, so all return; another error may be this
    worker's alone while the others wait for it, so it is raised and Ray ends them.
    """
    task = config["task"]
    if task.publisher.failure():
        return []
    try:
        _run(task)
    except TrainingError as error:
        task.publisher.fail(error)
    except HourglassError as error:
        task.publisher.fail(error)
        if task.run.job.scale.workers > 1:
            raise
    return task.publisher.undelivered()


def _run(task: Task) -> None:
    torch.set_num_threads(task.threads)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    group: ProcessGroup = DistributedProcessGroup() if size > 1 else SingleProcessGroup()
    tell = task.publisher.send if rank == 0 else _quiet
    placement = ray.util.get_current_placement_group()
    if placement is not None:
        tell(RESERVED, placement.id.hex())
    complete(task.run, _loader(task, rank, size), group, ray.train.torch.get_device(), tell)


def _loader(task: Task, rank: int, size: int) -> Loader:
    job = task.run.job
    common = {"batch_size": job.train.batch_size, "seed": job.train.seed}
    if task.refs:
        features, held = fetch(task.refs, task.rows.schema)
        return MemoryLoader(features, held, worker=rank, workers=size, **common)
    settle()
    return StreamLoader(
        task.statistics.counts,
        partial(stream_features, task.rows, cpus=task.read_cpus),
        columns=task.rows.schema.width,
        window_rows=job.data.shuffle_rows,
        epochs=job.train.epochs,
        keep_bytes=job.data.cache_bytes,
        worker=rank,
        workers=size,
        **common,
    )


def _quiet(kind: str, payload: Any) -> None:
    """Only the first worker speaks."""
