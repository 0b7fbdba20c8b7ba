"""What each Ray Train worker runs: build, resume, fit, calibrate; the first saves the artifact."""

from collections.abc import Callable
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
from hourglass.spec import TrainJob, TrainSpec, dump
from hourglass.training import loop, state
from hourglass.training.board import Line
from hourglass.training.build import build, feature_record
from hourglass.training.calibrate import calibrate
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.collective import Alone, Peers, Together, parallel
from hourglass.training.knobs import Certificate, certify
from hourglass.training.phases import pretrain

Tell = Callable[[str, Any], None]


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
    module = build(task.job, task.census.stats).to(device)
    now = state.fresh(module, task.job.train)
    feed = _feed(task, rank, size)
    tell = task.line.tell if rank == 0 else _quiet
    certificate = _certify(module, feed, peers, device)
    begin(now, task.job.train, feed, task.checkpoints, peers, tell, device)
    loop.fit(
        now,
        parallel(module, peers),
        feed,
        task.job.train,
        peers,
        report=partial(tell, "epoch"),
        commit=partial(task.checkpoints.save, peers=peers),
        device=device,
    )
    torch.set_float32_matmul_precision("highest")  # scores as every consumer will compute them
    calibration, golden = calibrate(module, feed, peers, task.job.quantile, device)
    if rank == 0:
        best = now.history[now.best_epoch] if now.best_weights else now.history[-1]
        artifact.save(
            storage.join(task.run_uri, "artifact"),
            module=module,
            features=feature_record(task.job, task.rows.schema, module),
            calibration=calibration,
            golden_rows=golden,
            name=task.job.track.register_as or task.job.name or "model",
            metrics=best,
            job=dump(task.job),
            provenance={
                **task.provenance,
                "live_knobs": certificate,
                "history": now.history,
            },
        )


def _feed(task: Task, rank: int, size: int) -> Feed:
    job = task.job
    common = {"batch_rows": job.train.batch_rows, "seed": job.train.seed}
    if task.refs:
        features, held = fetch(task.refs, task.rows.schema)
        return MemoryFeed(features, held, worker=rank, workers=size, **common)
    return StreamFeed(
        task.census.counts,
        partial(stream_features, task.rows),
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


def begin(
    now: state.State,
    spec: TrainSpec,
    feed: Feed,
    saved: Checkpoints,
    peers: Peers,
    tell: Tell,
    device: torch.device,
) -> None:
    """All workers start from the checkpoint that the first one finds, else from the phases.

    What the phases found is committed at once, as step 0: a killed run does not repeat them.
    """
    found = saved.newest(partial(tell, "note")) if peers.rank == 0 else None
    name = peers.share(found)[0]
    if name is not None:
        now.restore(*saved.load(name), rank=peers.rank)
        tell("resumed", {"step": now.step, "epoch": now.epoch, "history": now.history})
    elif spec.phases:
        pretrain(now.module, feed, spec, peers, partial(tell, "note"), device)
        saved.save(now, peers)


def _quiet(kind: str, payload: Any) -> None:
    """Only the first worker speaks."""
