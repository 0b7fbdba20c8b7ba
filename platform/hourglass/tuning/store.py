"""What a sweep reads and keeps: the rows that its trials share, and the results of each trial.

<folder>/trials/<trial>/artifact       of a finished trial; the same command does not train it again
<folder>/trials/<trial>/checkpoints    of a trial that was interrupted; it resumes from there
<folder>/trials/<trial>/stopped.json   of a trial that the scheduler stopped
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from hourglass import artifact, storage
from hourglass.artifact import Calibration
from hourglass.config.errors import below
from hourglass.config.tune import TuneJob
from hourglass.data.dataset import Dataset
from hourglass.data.loader import Features
from hourglass.data.reading import fetch
from hourglass.errors import DataError, SpecError
from hourglass.training.build import require_holdout
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.prepare import TrainingData, prepare
from hourglass.training.state import Record
from hourglass.tuning.leaderboard import METRICS, Entry
from hourglass.tuning.space import Point

STOPPED = "stopped.json"


def trials_uri(folder: str) -> str:
    """Where the sweep in `folder` keeps its trials."""
    return storage.join(folder, "trials")


def trial_uri(folder: str, trial: str) -> str:
    """Where a trial of the sweep in `folder` keeps its checkpoints and its artifact."""
    return storage.join(trials_uri(folder), trial)


def artifact_uri(folder: str, trial: str) -> str:
    """Where the artifact of a trial is once it is finished."""
    return storage.join(trial_uri(folder, trial), "artifact")


def checkpoints_uri(folder: str, trial: str) -> str:
    """Where a trial keeps the checkpoints that it resumes from."""
    return storage.join(trial_uri(folder, trial), "checkpoints")


def is_finished(folder: str, trial: str) -> bool:
    """True when the trial has an artifact."""
    return storage.exists(storage.join(artifact_uri(folder, trial), artifact.MANIFEST))


@dataclass(frozen=True)
class LoadedRows:
    """The data of a sweep, with its training and held-out rows in memory."""

    data: TrainingData
    train: Features
    holdout: Features


@dataclass(frozen=True)
class SharedRows:
    """The rows that all trials of a sweep share, loaded once and only when a trial needs them."""

    sweep: TuneJob
    dataset: Dataset

    @cached_property
    def loaded(self) -> LoadedRows:
        """The rows. Raises: DataError, SpecError when they do not fit the job or its memory limit."""
        base, metric = self.sweep.job, self.sweep.metric
        data = base.data
        schema = self.dataset.features(data.features, data.missing)
        size = self.dataset.manifest.rows * schema.row_bytes
        if size > data.cache_bytes:
            raise SpecError(
                f"base.data.cache_bytes: all trials share the rows in memory, which takes {size} bytes, "
                f"found a limit of {data.cache_bytes}; raise it, or use fewer rows"
            )
        # A point may need quantile levels itself or through its preset.
        prepared = prepare(base, self.dataset, levels=True)
        features, held = fetch(prepared.chunks, schema)
        if metric.startswith("holdout") and not held.any():
            raise DataError(
                f"base.data.holdout: {data.holdout:g} holds out none of {len(features)} rows, but "
                f"metric {metric} needs held-out rows; raise it"
            )
        for path in self.sweep.space:
            if below(path, "train.early_stop"):
                require_holdout(prepared.record, f"space.{path}")
        return LoadedRows(prepared, features[~held], features[held])


@dataclass(frozen=True)
class Finished:
    """What the artifact of a finished trial records."""

    entry: Entry
    history: Sequence[Record]
    calibration: Calibration


@dataclass(frozen=True)
class Stopped:
    """The epochs of a stopped trial, the seconds they took, and the digest of their rows.

    The trial may have trained beyond its last epoch until the scheduler decided which one that was.
    """

    data_digest: str
    history: Sequence[Record]
    seconds: float

    def save(self, folder: str) -> None:
        """Write it into the trial's folder."""
        record = {
            "data": self.data_digest,
            "history": list(self.history),
            "seconds": self.seconds,
        }
        storage.write(storage.join(folder, STOPPED), json.dumps(record, indent=1).encode())

    def up_to(self, epoch: int) -> Sequence[Record]:
        """The records up to and including an epoch."""
        return [record for record in self.history if record["epoch"] <= epoch]

    def entry(self, point: Point, epoch: int) -> Entry:
        """The leaderboard entry of the trial when it is stopped after `epoch`."""
        last = self.up_to(epoch)[-1]
        return Entry(
            trial=point.trial,
            status="stopped",
            values=point.values,
            **{name: last.get(name) for name in METRICS},
            epochs=epoch,
            seconds=self.seconds,
        )


def load_stopped(folder: str, data_digest: str) -> Stopped | None:
    """The record of a stopped trial in its folder; None without one.

    Raises: DataError when it is damaged or from other rows.
    """
    path = storage.join(folder, STOPPED)
    try:
        record = json.loads(storage.read(path))
        stopped = Stopped(record["data"], record["history"], float(record["seconds"]))
        stopped.history[-1]["epoch"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, IndexError):
        raise DataError(
            f"{path}: not the record of a stopped trial; remove it to train the trial"
        ) from None
    _require_same_rows(path, stopped.data_digest, data_digest)
    return stopped


@dataclass(frozen=True)
class TrialStore:
    """The trials of the sweep in `folder`, on rows with this digest, each with so many workers."""

    folder: str
    data_digest: str
    workers: int

    def artifact_uri(self, trial: str) -> str:
        """Where the artifact of a trial is once it is finished."""
        return artifact_uri(self.folder, trial)

    def finished(self, point: Point) -> Finished | None:
        """What a finished trial left, without its checkpoints; None when it has no artifact.

        Raises: ArtifactError, and DataError when it was trained on other rows.
        """
        if not is_finished(self.folder, point.trial):
            return None
        found = self.load(point)
        self.remove_checkpoints(point.trial)  # left by a trial killed after it saved its artifact
        return found

    def load(self, point: Point) -> Finished:
        """What the artifact of a trial records. Raises: ArtifactError, DataError."""
        uri = artifact_uri(self.folder, point.trial)
        found = artifact.load(uri)
        manifest, provenance = found.manifest, found.manifest.provenance
        _require_same_rows(uri, provenance.get("dataset", {}).get("digest"), self.data_digest)
        history = provenance["history"]
        entry = Entry(
            trial=point.trial,
            status="finished",
            values=point.values,
            **{name: manifest.metrics.get(name) for name in METRICS},
            parameters=sum(weight.numel() for weight in found.module.parameters()),
            seconds=provenance["seconds"],
            epochs=int(max(record["epoch"] for record in history)),
        )
        return Finished(entry, history, manifest.calibration)

    def stopped(self, trial: str) -> Stopped | None:
        """The record of a trial that was stopped. Raises DataError."""
        return load_stopped(trial_uri(self.folder, trial), self.data_digest)

    def stop(self, trial: str, history: Sequence[Record], seconds: float) -> Stopped:
        """Record a trial that has no artifact as stopped."""
        # Before it counts as stopped: a command killed in between resumes the trial and returns here.
        self._checkpoints(trial).keep_newest()
        stopped = Stopped(self.data_digest, history, seconds)
        stopped.save(trial_uri(self.folder, trial))
        return stopped

    def remove_checkpoints(self, trial: str) -> None:
        """Remove the checkpoints of a trial that nothing resumes from any more."""
        storage.remove(checkpoints_uri(self.folder, trial))

    def progress(self, trial: str, members: int) -> tuple[bool, list[list[str]]]:
        """Whether a trial has an artifact, and the checkpoints of each of its members."""
        saved = self._checkpoints(trial)
        committed = [saved.of(number).committed() for number in range(1, members + 1)]
        return is_finished(self.folder, trial), committed

    def _checkpoints(self, trial: str) -> Checkpoints:
        uri = checkpoints_uri(self.folder, trial)
        return Checkpoints(uri, None, self.data_digest, self.workers)


def _require_same_rows(where: str, found: str | None, data_digest: str) -> None:
    if found != data_digest:
        raise DataError(f"{where}: trained on other shards; start the sweep again with --fresh")
