"""A sweep with all that comes of it: progress, MLflow runs, plots, the best trial's version, its job on
all rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hourglass import artifact
from hourglass.config import files, paths
from hourglass.config.train import TrainJob
from hourglass.config.tune import TuneJob
from hourglass.errors import DataError, HourglassError
from hourglass.settings import Settings
from hourglass.tracking import Registered
from hourglass.training.state import Record
from hourglass.tuning import plots, record, sweep
from hourglass.tuning.champion import promote_if_better
from hourglass.tuning.leaderboard import Entry, Leaderboard
from hourglass.tuning.progress import SweepProgress, shown
from hourglass.tuning.record import Recorder
from hourglass.tuning.resources import Crew
from hourglass.tuning.sweep import Swept, folder_of
from hourglass.tuning.trial import artifact_of, trial_folder


def on_all_rows(sweep: TuneJob, board: Leaderboard, settings: Settings) -> TrainJob:
    """The job of the best trial with no row held out, on `base.scale.workers` workers.

    Nobody watches held-out rows then, so a job that stops early trains for as many epochs as the
    trial needed to be at its best. Raises: DataError when no trial finished.
    """
    if board.best is None or not board.ended:
        found = "it has not ended" if board.best else "no trial finished"
        raise DataError(
            f"--refit: sweep {board.sweep}: {found}, needed is the best trial; run the same command "
            "again, or look at the reasons of those that failed"
        )
    uri = artifact_of(trial_folder(folder_of(sweep, settings), board.best.trial))
    best = artifact.load(uri).manifest
    tree: dict[str, Any] = dict(best.job)
    changes = {
        "name": f"{board.sweep[:94]}-refit",  # a name has 100 characters
        "data.holdout": 0.0,
        "scale": sweep.job.scale.model_dump(mode="json"),
    }
    if paths.field_at(tree, "train.early_stop") is not None:
        changes |= {"train.early_stop": None, "train.epochs": round(best.metrics["epoch"])}
    for path, value in changes.items():
        paths.put(tree, path, value, "--refit")
    job = files.parse(tree)
    assert isinstance(job, TrainJob)  # a trial's job is
    return job


@dataclass(frozen=True)
class Concluded:
    """The leaderboard, the folder it was written to, and sentences about the rest."""

    board: Leaderboard
    folder: str
    said: tuple[str, ...]


def tune(
    job: TuneJob,
    settings: Settings,
    fresh: bool = False,
    stderr: bool = False,
    register: bool = True,
) -> Concluded:
    """Run the sweep on the connected cluster, record it, and, with `register`, its best trial.

    Raises: DataError, SpecError, ClusterError, ArtifactError.
    """
    with sweep.alone(sweep.folder_of(job, settings)):
        with shown(job, stderr) as progress:
            listener = _Recording(progress, job, settings)
            try:
                swept = sweep.run(job, settings, listener, fresh)
                if swept.stands:
                    plots.save(swept.folder, swept.board, swept.widths, swept.histories)
            except BaseException:
                listener.finish_failed(sweep.folder_of(job, settings))
                raise
        name = job.job.track.register_as if register and swept.board.best else None
        recorder = listener.recorder(ended=True)
        recorded = recorder.finish(swept.board, "finished", swept.folder, name)
        said = [recorded.note, _registered(job, register, swept.board, recorded.registered)]
        if name and job.promote_if:
            said.append(_promoted(job, settings, name, recorded.version, swept))
        return Concluded(recorded.board or swept.board, swept.folder, tuple(said))


def _registered(
    job: TuneJob, register: bool, board: Leaderboard, registered: Registered | None
) -> str:
    """Which version the best trial became, or why none."""
    name, none = job.job.track.register_as, "no trial is registered"
    if registered is not None and board.best is not None:
        return f"{registered.sentence}: trial {board.best.trial}, the best by {board.metric}"
    if not register:
        return f"{none}: --refit registers the run on all rows"
    if name is None:
        return f"{none}: base.track.register names no model"
    if board.best is None:
        return f"{none} as {name}: none finished"
    return (
        f"{none} as {name}: MLflow has not taken the model of trial {board.best.trial}; the same "
        "command registers it once it does"
    )


def _promoted(
    job: TuneJob, settings: Settings, name: str, version: str | None, swept: Swept
) -> str:
    """Move the alias champion where the rule says so; what was decided."""
    if version is None:
        return (
            f"promote_if: MLflow has not said which version of {name} this is; once it has, "
            f"`hourglass models promote {name} VERSION` decides"
        )
    try:
        return promote_if_better(settings, name, version, swept.holdout()).sentence
    except HourglassError as error:
        return (
            f"promote_if: nothing was decided: {error}; decide with "
            f"`hourglass models promote {name} {version}`"
        )


class _Recording:
    """A listener that shows progress and tells MLflow."""

    def __init__(self, progress: SweepProgress, job: TuneJob, settings: Settings) -> None:
        self._progress, self._job, self._settings = progress, job, settings
        self._recorder: Recorder | None = None
        self._dataset: dict[str, Any] | None = None

    def recorder(self, ended: bool = False) -> Recorder:
        """The recorder of a sweep that has begun; of one that `ended` when nothing was left to train."""
        assert self._dataset is not None
        if self._recorder is None:
            self._recorder = record.start(self._settings, self._job, self._dataset, ended)
        return self._recorder

    def sweeping(self, trials: int, crew: Crew, dataset: dict[str, Any]) -> None:
        self._dataset = dataset
        self._progress.sweeping(trials, crew, dataset)

    def known(self, entry: Entry) -> None:
        self._progress.known(entry)

    def placed(self, dataset: dict[str, Any]) -> None:
        self.recorder()
        self._progress.placed(dataset)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def started(self, values: Sequence[dict[str, Any]]) -> None:
        self._progress.started(values)

    def ended(self, entry: Entry, uri: str, history: Sequence[Record]) -> None:
        if entry.status != "stopped" or not self._job.scheduler.population:  # a part of a trial
            self.recorder().ended(entry, uri or None, history)
        self._progress.ended(entry, uri, history)

    def finish_failed(self, folder: str) -> None:
        """The sweep ended before its end; what is known stays recorded, as of one that trained nothing."""
        if self._recorder is not None:
            self._recorder.finish(None, "failed", folder, None)
