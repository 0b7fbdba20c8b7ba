"""What is on disk of a sweep's trials: artifacts, checkpoints, records of those that were stopped."""

from collections.abc import Sequence
from dataclasses import dataclass

from hourglass import artifact, storage
from hourglass.artifact import Artifact
from hourglass.errors import DataError
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.state import Record
from hourglass.tuning import stopped
from hourglass.tuning.stopped import Stopped
from hourglass.tuning.trial import artifact_of, checkpoints_of, trial_folder


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
        return stopped.load(trial_folder(self.folder, trial), self.data_digest)

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
