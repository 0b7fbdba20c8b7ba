"""What is on disk of a sweep's trials: artifacts, checkpoints, records of those that were stopped.

And the rows that trials share: read, checked and placed in memory once, when a trial needs them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from hourglass import artifact, storage
from hourglass.artifact import Artifact
from hourglass.config.paths import below
from hourglass.config.tune import TuneJob
from hourglass.data.manifest import Manifest
from hourglass.data.prepare import feature_schema
from hourglass.data.reading import fetch
from hourglass.errors import DataError, SpecError
from hourglass.training.build import require_watched
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.measure import measure
from hourglass.training.state import Record
from hourglass.tuning.leaderboard import METRICS, Entry
from hourglass.tuning.space import Point
from hourglass.tuning.trial import Placed, artifact_of, checkpoints_of, trial_folder

STOPPED = "stopped.json"


@dataclass(frozen=True)
class Stopped:
    """The epochs of a trial, the seconds they took, and on which rows.

    It may have trained on until it was known which epoch was its last.
    """

    data_digest: str
    history: Sequence[Record]
    seconds: float

    def save(self, folder: str) -> None:
        """Write it into the trial's folder."""
        said = {
            "data": self.data_digest,
            "history": list(self.history),
            "seconds": self.seconds,
        }
        storage.write(storage.join(folder, STOPPED), json.dumps(said, indent=1).encode())

    def to(self, epoch: int) -> Sequence[Record]:
        """Its records up to an epoch."""
        return [record for record in self.history if record["epoch"] <= epoch]

    def entry(self, point: Point, epoch: int) -> Entry:
        """Its line on the leaderboard when it is stopped after `epoch`."""
        last = self.to(epoch)[-1]
        return Entry(
            trial=point.trial,
            status="stopped",
            values=point.values,
            **{name: last.get(name) for name in METRICS},
            epochs=epoch,
            seconds=self.seconds,
        )


def load_stopped(folder: str, data_digest: str) -> Stopped | None:
    """What was kept of a trial, if it was stopped. Raises DataError for other rows, or no such record."""
    path = storage.join(folder, STOPPED)
    try:
        said = json.loads(storage.read(path))
        kept = Stopped(said["data"], said["history"], float(said["seconds"]))
        kept.history[-1]["epoch"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, IndexError):
        raise DataError(
            f"{path}: not the record of a trial; remove it to train the trial"
        ) from None
    if kept.data_digest != data_digest:
        raise DataError(f"{path}: trained on other shards; begin the sweep anew with --fresh")
    return kept


@dataclass(frozen=True)
class OnDisk:
    """Trials of the sweep in `folder`, on rows of this digest, each of so many workers."""

    folder: str
    data_digest: str
    workers: int

    def artifact_uri(self, trial: str) -> str:
        """Where its artifact is once it is finished."""
        return artifact_of(trial_folder(self.folder, trial))

    def artifact(self, trial: str) -> Artifact | None:
        """That of a finished trial. Raises ArtifactError, and DataError where it is of other rows."""
        if not self._finished(trial):
            return None
        uri = self.artifact_uri(trial)
        found = artifact.load(uri)
        if found.manifest.provenance.get("dataset", {}).get("digest") != self.data_digest:
            raise DataError(f"{uri}: trained on other shards; begin the sweep anew with --fresh")
        return found

    def stopped(self, trial: str) -> Stopped | None:
        """What was kept of a trial that was stopped. Raises DataError."""
        return load_stopped(trial_folder(self.folder, trial), self.data_digest)

    def stop(self, trial: str, history: Sequence[Record], seconds: float) -> Stopped:
        """Write down a trial that has no artifact."""
        # Before it counts as stopped: killed in between, it goes on and comes here again.
        self._checkpoints(trial).keep_newest()
        kept = Stopped(self.data_digest, history, seconds)
        kept.save(trial_folder(self.folder, trial))
        return kept

    def forget_checkpoints(self, trial: str) -> None:
        """Nothing goes on from them any more."""
        storage.remove(checkpoints_of(trial_folder(self.folder, trial)))

    def progress(self, trial: str, members: int) -> tuple[bool, list[list[str]]]:
        """Is there an artifact of a trial, and the checkpoints of each of its members."""
        saved = self._checkpoints(trial)
        committed = [saved.of(number).committed() for number in range(1, members + 1)]
        return self._finished(trial), committed

    def _finished(self, trial: str) -> bool:
        return storage.exists(storage.join(self.artifact_uri(trial), artifact.MANIFEST))

    def _checkpoints(self, trial: str) -> Checkpoints:
        uri = checkpoints_of(trial_folder(self.folder, trial))
        return Checkpoints(uri, None, self.data_digest, self.workers)


@dataclass(frozen=True)
class Rows:
    """The rows of a sweep, read when a trial needs them, and once."""

    sweep: TuneJob
    manifest: Manifest
    schema: pa.Schema

    @cached_property
    def placed(self) -> Placed:
        """In memory. Raises DataError, SpecError when they may not be kept there."""
        base, metric = self.sweep.job, self.sweep.metric
        data = base.data
        columns = feature_schema(self.manifest, self.schema, data.features, data.missing)
        size = self.manifest.rows * columns.row_bytes
        if size > data.cache_bytes:
            raise SpecError(
                f"base.data.cache_bytes: trials share the rows in memory, which takes {size} bytes, "
                f"found {data.cache_bytes}; raise it, or search on fewer rows"
            )
        # A point may ask for levels, or for a preset that does.
        measured = measure(base, self.manifest, self.schema, levels=True)
        features, held = fetch(measured.refs, measured.rows.schema)
        if metric.startswith("holdout") and not held.any():
            raise DataError(
                f"base.data.holdout: {data.holdout:g} holds out none of {len(features)} rows, and "
                f"metric {metric} needs some; raise it"
            )
        for path in self.sweep.space:
            if below(path, "train.early_stop"):
                require_watched(measured.dataset, f"space.{path}")
        return Placed(measured, features[~held], features[held])
