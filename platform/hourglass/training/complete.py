"""A run: its folder and its lock, and its workers' way from rows to an artifact, with Ray or without."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from hourglass import artifact, storage
from hourglass.config.files import dump
from hourglass.config.train import TrainJob
from hourglass.data.loader import Loader
from hourglass.data.schema import FeatureSchema
from hourglass.data.stats import Stats
from hourglass.errors import ArtifactError, HourglassError, SpecError, TrainingError, WriteError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.settings import Settings
from hourglass.tracking import locks
from hourglass.training import members, packed
from hourglass.training.build import build, feature_record
from hourglass.training.calibrate import calibrate
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.collective import ProcessGroup, SingleProcessGroup
from hourglass.training.members import Send, Trained
from hourglass.training.sensitivity import Sensitivity, check_sensitivity
from hourglass.training.state import Record

CHECKPOINTS, FRESH = "checkpoints", "fresh"
"""Folders of checkpoints: of a run, and of a `fresh` run until it has replaced an earlier one."""


@dataclass(frozen=True)
class Run:
    """A run: its job, the statistics of its rows, its folder, and its provenance.

    With `until`, it ends after that epoch and has no artifact; another run, with its checkpoints as
    `parent`, continues from there. A `fresh` run keeps its checkpoints apart from those of the run that it
    replaces. `again` is the command that resumes it.
    """

    job: TrainJob
    schema: FeatureSchema
    stats: Stats
    uri: str
    data_digest: str
    provenance: dict[str, Any]
    until: int | None = None
    parent: Checkpoints | None = None
    fresh: bool = False
    again: str = "the same command"

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        uri = storage.join(self.uri, FRESH if self.fresh else CHECKPOINTS)
        job = self.job
        workers = job.scale.workers
        return Checkpoints(uri, job.run_name, self.data_digest, workers, self.parent, self.again)

    @property
    def artifact_uri(self) -> str:
        """Where the artifact is once the run is finished."""
        return storage.join(self.uri, "artifact")


def run_uri(job: TrainJob, settings: Settings) -> str:
    """The folder of the run, with its checkpoints and artifact."""
    return storage.join(settings.runs_uri, job.run_name)


@contextmanager
def locked(job: TrainJob, settings: Settings, fresh: bool = False) -> Iterator[None]:
    """A context that holds the lock of the run of `job`, so that no other process trains it.

    A finished run needs no lock, so its folder may be read-only. Raises: DataError when another process
    holds the lock, WriteError.
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


def fresh_checkpoints(uri: str) -> Checkpoints:
    """The checkpoints of a `fresh` run, kept apart from those of the run that it replaces."""
    return Checkpoints(storage.join(uri, FRESH), None, "", 1)


def is_replacing(uri: str, found: str) -> bool:
    """True when a `fresh` run has a checkpoint and is not the run of the artifact `found`.

    Its checkpoints outlast it when they could not be removed.
    """
    committed = fresh_checkpoints(uri).committed()
    if not committed:
        return False
    try:
        ended = artifact.load(found).manifest.provenance.get(FRESH, ())
    except ArtifactError:
        return True
    return not set(committed) <= set(ended)


def remove_checkpoints(uri: str) -> None:
    """Remove the checkpoints of a finished `fresh` run and of the run it replaced, if possible."""
    with suppress(OSError):
        storage.remove(storage.join(uri, CHECKPOINTS))
        fresh_checkpoints(uri).remove()


def _is_finished(uri: str) -> bool:
    found = storage.join(uri, "artifact")
    return storage.exists(storage.join(found, artifact.MANIFEST)) and not is_replacing(uri, found)


@contextmanager
def _tf32() -> Iterator[None]:
    """A context with TF32 on a GPU, for training; scores need the full precision of every consumer.

    `torch.set_float32_matmul_precision` would also move matrix products on a CPU to a slower path.
    """
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = "ieee"


def complete(
    run: Run, loader: Loader, group: ProcessGroup, device: torch.device, send: Send
) -> Record:
    """Check sensitivity, train from the newest checkpoint, calibrate; the first worker saves the artifact.

    Returns its metrics. Raises: SpecError, DataError, TrainingError.
    """
    job, stats = run.job, run.stats
    began = time.perf_counter()
    with _tf32():
        sensitivity = _check_sensitivity(build(job, stats).to(device), loader, group, device)
        trained = members.train(job, stats, loader, group, device, send, run.checkpoints, run.until)
    if run.until is not None:
        return trained.history[-1]
    seconds = time.perf_counter() - began
    so_far = {"sensitivity": sensitivity, "seconds": seconds, "workers": trained.sizes}
    return _finish(run, trained, loader, group, device, so_far)


def complete_packed(
    runs: Sequence[Run], loader: Loader, device: torch.device, sends: Sequence[Send]
) -> list[Record | Exception]:
    """Complete runs on the same rows that `tuning.pack` put together, trained as one batched model.

    The runs have no `until` and no `parent`, and no checkpoints are written. Returns the metrics of each
    run, or its error, which does not affect the others. The seconds of a run are its share of those of
    the pack, plus its own calibration.
    """
    began = time.perf_counter()
    ended: dict[int, Record | Exception] = {}
    checked: dict[int, Sensitivity] = {}
    orders = [loader.seeded(run.job.train.seed) for run in runs]
    with _tf32():
        for number, (run, order) in enumerate(zip(runs, orders, strict=True)):
            try:
                module = build(run.job, run.stats).to(device)
                checked[number] = check_sensitivity(module, order, device)
            except HourglassError as error:
                ended[number] = error
        jobs, own = [runs[n].job for n in checked], [sends[n] for n in checked]
        trained = packed.train(jobs, runs[0].stats, loader, device, own)
    share = (time.perf_counter() - began) / len(runs)
    for (number, sensitivity), member in zip(checked.items(), trained, strict=True):
        if isinstance(member, HourglassError):
            ended[number] = member
            continue
        so_far = {"sensitivity": sensitivity, "seconds": share, "packed": len(runs)}
        run, order = runs[number], orders[number]
        try:
            single = Trained([member], run.job)
            ended[number] = _finish(run, single, order, SingleProcessGroup(), device, so_far)
        except Exception as error:  # an error of one run must not cost the others their training
            ended[number] = error
    return [ended[number] for number in range(len(runs))]


def _finish(
    run: Run,
    trained: Trained,
    loader: Loader,
    group: ProcessGroup,
    device: torch.device,
    so_far: dict[str, Any],
) -> Record:
    """Calibrate; the first worker saves the artifact. Returns its metrics.

    `so_far` becomes part of its provenance; calibrating and saving are added to its `seconds`.
    """
    began = time.perf_counter()
    job = run.job
    primary, *others = trained.modules
    calibration, reference_rows, agreement = calibrate(
        trained.modules, job.train.combine, loader, group, job.quantile, device
    )
    metrics = trained.best | agreement
    if group.rank > 0:
        return metrics
    try:
        artifact.save(
            run.artifact_uri,
            module=primary,
            features=feature_record(job, run.schema, primary),
            calibration=calibration,
            reference_rows=reference_rows,
            name=job.track.register_as or job.name or "model",
            metrics=metrics,
            job=dump(job),
            provenance={
                **run.provenance,
                **so_far,
                **({FRESH: run.checkpoints.committed()} if run.fresh else {}),
                "history": trained.history,
                "seconds": round(so_far["seconds"] + time.perf_counter() - began, 3),
            },
            ensemble=trained.ensemble,
            others=others,
        )
    except WriteError as error:
        raise TrainingError(
            f"trained to the end, but {error}; free some space and run {run.again} to save the model"
        ) from error
    return metrics


def _check_sensitivity(
    module: AutoencoderModule, loader: Loader, group: ProcessGroup, device: torch.device
) -> Sensitivity:
    """The first worker checks on its rows; all of them fail where a hyperparameter has no effect."""
    found: Sensitivity | str | None = None
    if group.rank == 0:
        try:
            found = check_sensitivity(module, loader, device)
        except SpecError as error:
            found = str(error)
    first = group.share(found)[0]
    if isinstance(first, str):
        raise SpecError(first)
    return list(first)
