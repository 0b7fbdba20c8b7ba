"""What each Ray Train worker runs: build, resume, fit, calibrate; the first saves the artifact."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from hourglass import artifact, storage
from hourglass.data.feed import Feed, MemoryFeed, StreamFeed
from hourglass.data.reading import Census, Rows, fetch, stream_features
from hourglass.errors import HourglassError, SpecError, TrainingError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.spec import TrainJob, dump
from hourglass.training import members
from hourglass.training.board import Line
from hourglass.training.build import build, feature_record
from hourglass.training.calibrate import calibrate
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.collective import Alone, Peers, Together
from hourglass.training.knobs import Certificate, certify


@dataclass(frozen=True)
class Task:
    """Everything a worker is told; `refs` are the cached chunks, empty when rows are streamed."""

    job: TrainJob
    rows: Rows
    census: Census
    refs: list[Any]
    run_uri: str
    data_digest: str
    provenance: dict[str, Any]
    threads: int
    read_cpus: float
    line: Line

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        uri = storage.join(self.run_uri, "checkpoints")
        return Checkpoints(uri, self.job.run_name, self.data_digest, self.job.scale.workers)


def train_worker(config: dict[str, Task]) -> None:
    """Train as one of the workers.

    An error of ours goes to the board, and a restart that finds one there ends at once. A
    TrainingError comes to all workers at the same step, so all return; another error may be this
    worker's alone while the others wait for it, so it is raised and Ray ends them.
    """
    task = config["task"]
    if task.line.failure():
        return
    try:
        _run(task)
    except TrainingError as error:
        task.line.fail(error)
    except HourglassError as error:
        task.line.fail(error)
        if task.job.scale.workers > 1:
            raise
    task.line.failure()


def _run(task: Task) -> None:
    torch.set_num_threads(task.threads)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.set_float32_matmul_precision("high")  # TF32 on a GPU, nothing on a CPU
    peers: Peers = Together() if size > 1 else Alone()
    job, stats, feed = task.job, task.census.stats, _feed(task, rank, size)
    tell = task.line.tell if rank == 0 else _quiet
    certificate = _certify(build(job, stats).to(device), feed, peers, device)
    trained = members.train(job, stats, feed, peers, device, tell, task.checkpoints)
    torch.set_float32_matmul_precision("highest")  # scores as every consumer will compute them
    lead, *others = trained.modules
    calibration, golden, agreement = calibrate(
        [lead, *others], job.train.combine, feed, peers, job.quantile, device
    )
    if rank == 0:
        artifact.save(
            storage.join(task.run_uri, "artifact"),
            module=lead,
            features=feature_record(job, task.rows.schema, lead),
            calibration=calibration,
            golden_rows=golden,
            name=job.track.register_as or job.name or "model",
            metrics=trained.best | agreement,
            job=dump(job),
            provenance={
                **task.provenance,
                "live_knobs": certificate,
                "history": trained.history,
            },
            ensemble=trained.ensemble,
            others=others,
        )


def _feed(task: Task, rank: int, size: int) -> Feed:
    job = task.job
    common = {"batch_rows": job.train.batch_rows, "seed": job.train.seed}
    if task.refs:
        features, held = fetch(task.refs, task.rows.schema)
        return MemoryFeed(features, held, worker=rank, workers=size, **common)
    return StreamFeed(
        task.census.counts,
        partial(stream_features, task.rows, cpus=task.read_cpus),
        columns=task.rows.schema.width,
        window_rows=job.data.shuffle_rows,
        epochs=job.train.epochs,
        keep_bytes=job.data.cache_bytes,
        worker=rank,
        workers=size,
        **common,
    )


def _certify(
    module: AutoencoderModule, feed: Feed, peers: Peers, device: torch.device
) -> Certificate:
    """The first worker tries the knobs on its rows; all of them hear of one that does nothing."""
    found: Certificate | str | None = None
    if peers.rank == 0:
        try:
            found = certify(module, feed, device)
        except SpecError as error:
            found = str(error)
    first = peers.share(found)[0]
    if isinstance(first, str):
        raise SpecError(first)
    return list(first)


def _quiet(kind: str, payload: Any) -> None:
    """Only the first worker speaks."""
