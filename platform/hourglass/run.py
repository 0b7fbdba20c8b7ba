"""One spec, one function call: what the command line, a submitted job and a script all make."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hourglass import tracking
from hourglass.inference import batch
from hourglass.inference.batch import Scored
from hourglass.progress import ScoreProgress, TrainProgress, bar
from hourglass.settings import Settings
from hourglass.spec import ScoreJob, TrainJob
from hourglass.tracking import Finished, Tracker
from hourglass.tracking.registry import Resolved, resolve
from hourglass.training import launch
from hourglass.training.launch import Outcome
from hourglass.training.state import Record
from hourglass.tune_job import TuneJob

if TYPE_CHECKING:
    from hourglass.tuning.conclude import Concluded


@dataclass(frozen=True)
class Trained:
    """A finished run: its artifact, and where it is recorded (None when it had finished before)."""

    outcome: Outcome
    record: Finished | None


def train(job: TrainJob, settings: Settings, fresh: bool = False, stderr: bool = False) -> Trained:
    """Train, record and register `job` on the connected cluster; shows progress.

    Raises: DataError, SpecError, ClusterError, TrainingError.
    """
    with bar("epoch", stderr) as shown:
        listener = _Recording(TrainProgress(shown), settings)
        try:
            outcome = launch.train(job, settings, listener, fresh)
        except BaseException:
            listener.finish("failed", None)
            raise
        listener.concluded(outcome)
    return Trained(outcome, listener.finish("finished", outcome.uri))


def score(job: ScoreJob, settings: Settings, fresh: bool = False) -> tuple[Resolved, Scored]:
    """Score `job` on the connected cluster; shows progress.

    Raises: DataError, RegistryError, ArtifactError, ClusterError.
    """
    model = resolve(job.model, settings)
    with bar("rows") as shown:
        return model, batch.score(job, model, ScoreProgress(shown), fresh)


def tune(
    sweep: TuneJob,
    settings: Settings,
    fresh: bool = False,
    stderr: bool = False,
    register: bool = True,
) -> "Concluded":
    """Run the trials of `sweep` on the connected cluster, rank and record them; shows progress.

    With `register`, the best one becomes a version of the model that the base registers.

    Raises: DataError, SpecError, ClusterError, ArtifactError.
    """
    from hourglass.tuning import conclude  # Ray Tune takes a second, which no other run needs

    return conclude.tune(sweep, settings, fresh, stderr, register)


class _Recording:
    """A listener that shows progress and tells the tracker."""

    def __init__(self, progress: TrainProgress, settings: Settings) -> None:
        self._progress, self._settings = progress, settings
        self._tracker: Tracker | None = None

    def prepared(self, job: TrainJob, dataset: dict[str, Any]) -> None:
        self._tracker = tracking.start(self._settings, job, dataset)
        self._progress.prepared(job, dataset)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def epoch(self, record: Record) -> None:
        if self._tracker is not None:
            self._tracker.log(record, int(record["epoch"]))
        self._progress.epoch(record)

    def concluded(self, outcome: Outcome) -> None:
        """An ensemble as a whole has the lead's best record and the agreement of all members."""
        metrics = outcome.manifest.metrics
        if self._tracker is not None and outcome.manifest.ensemble is not None:
            self._tracker.log(metrics, int(metrics["epoch"]))

    def finish(self, status: Any, uri: str | None) -> Finished | None:
        return self._tracker.finish(status, uri) if self._tracker is not None else None
