"""One spec, one function call: what the command line, a submitted job and a script all make."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hourglass import tracking
from hourglass.cluster.shared import require_shared
from hourglass.config.train import ScoreJob, TrainJob
from hourglass.config.tune import TuneJob
from hourglass.inference import batch
from hourglass.inference.output import Scored
from hourglass.progress import ScoreProgress, TrainProgress, bar
from hourglass.settings import Settings
from hourglass.tracking import Finished, RunRecorder
from hourglass.tracking.registry import Resolved, resolve
from hourglass.training import launch
from hourglass.training.complete import locked
from hourglass.training.launch import Outcome
from hourglass.training.state import Record

if TYPE_CHECKING:
    from hourglass.tuning.sweep import Tuned


@dataclass(frozen=True)
class Trained:
    """A finished run: its artifact, and where it is recorded."""

    outcome: Outcome
    record: Finished


def train(job: TrainJob, settings: Settings, fresh: bool = False, stderr: bool = False) -> Trained:
    """Train, record and register `job` on the connected cluster; shows progress.

    Of a run that finished before, what is not recorded or registered yet is.
    Raises: DataError, SpecError, ClusterError, TrainingError, WriteError.
    """
    require_shared(settings.runs_uri, job.data.uri)
    # Until all is recorded, so that nobody else does it as well.
    with locked(job, settings, fresh):
        with bar("epoch", stderr) as shown:
            listener = _Recording(TrainProgress(shown), settings)
            try:
                outcome = launch.train(job, settings, listener, fresh)
            except BaseException:
                if listener.tracker is not None:
                    listener.tracker.finish("failed", None)
                raise
        tracker = listener.tracker or tracking.again(settings, job, outcome.uri, outcome.manifest)
        return Trained(outcome, tracker.finish("finished", outcome.uri))


def score(job: ScoreJob, settings: Settings, fresh: bool = False) -> tuple[Resolved, Scored]:
    """Score `job` on the connected cluster; shows progress.

    Raises: DataError, RegistryError, ArtifactError, ClusterError.
    """
    model = resolve(job.model, settings)
    require_shared(job.output, job.uri)
    with bar("rows") as shown:
        return model, batch.score(job, model, ScoreProgress(shown), fresh)


def tune(
    sweep: TuneJob,
    settings: Settings,
    fresh: bool = False,
    stderr: bool = False,
    register: bool = True,
) -> "Tuned":
    """Run the trials of `sweep` on the connected cluster, rank and record them; shows progress.

    With `register`, the best one becomes a version of the model that the base registers.

    Raises: DataError, SpecError, ClusterError, ArtifactError.
    """
    from hourglass.tuning import sweep as tuning  # Ray Tune takes a second to import

    require_shared(settings.runs_uri, sweep.job.data.uri)
    return tuning.tune(sweep, settings, fresh, stderr, register)


class _Recording:
    """A listener that shows progress and tells the tracker, which there is once a run begins."""

    def __init__(self, progress: TrainProgress, settings: Settings) -> None:
        self._progress, self._settings = progress, settings
        self.tracker: RunRecorder | None = None

    def prepared(self, job: TrainJob, dataset: dict[str, Any]) -> None:
        self.tracker = tracking.start(self._settings, job, dataset)
        self._progress.prepared(job, dataset)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def epoch(self, record: Record) -> None:
        if self.tracker is not None:
            self.tracker.log(record, int(record["epoch"]))
        self._progress.epoch(record)
