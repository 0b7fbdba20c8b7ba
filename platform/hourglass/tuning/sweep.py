"""A sweep from its job to its results: trials, leaderboard, plots, MLflow runs, the registered model.

<runs>/<sweep>/trials                        what its trials leave (see `store`)
<runs>/<sweep>/before                        the trials that --fresh replaces, until one is finished
<runs>/<sweep>/leaderboard.{json,csv,parquet}
<runs>/<sweep>/plots.html
<runs>/.<sweep>.lock                         held by the command that runs it
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from hourglass import artifact, storage
from hourglass.config import errors, files
from hourglass.config.train import TrainJob
from hourglass.config.tune import TuneJob
from hourglass.data.dataset import open_dataset
from hourglass.errors import DataError
from hourglass.settings import Settings
from hourglass.tracking import locks
from hourglass.training.state import Record
from hourglass.tuning import execution, plots
from hourglass.tuning.champion import promote_best
from hourglass.tuning.leaderboard import Leaderboard
from hourglass.tuning.progress import Listener, shown
from hourglass.tuning.record import RecordingListener
from hourglass.tuning.search import empty_places, search
from hourglass.tuning.session import Session
from hourglass.tuning.store import SharedRows, artifact_uri, is_finished, trials_uri
from hourglass.tuning.trial import resources

BEFORE = "before"


@dataclass(frozen=True)
class Tuned:
    """The leaderboard, the folder it was written to, and messages about everything else."""

    board: Leaderboard
    folder: str
    messages: tuple[str, ...]


def tune(
    job: TuneJob,
    settings: Settings,
    fresh: bool = False,
    stderr: bool = False,
    register: bool = True,
) -> Tuned:
    """Run a sweep on the connected cluster, record it and, with `register`, register its best trial.

    Raises: DataError, SpecError, ClusterError, ArtifactError.
    """
    folder = folder_of(job, settings)
    with lock(folder):
        with shown(job, stderr) as progress:
            listener = RecordingListener(progress, job, settings)
            try:
                swept = run(job, settings, listener, fresh)
                if swept.stands:
                    plots.save(folder, swept.board, swept.widths, swept.histories)
            except BaseException:
                listener.finish_failed(folder)
                raise
        recorded, messages = listener.finish(swept.board, folder, register)
        name = job.job.track.register_as
        if name and register and swept.board.best and job.promote_if:
            messages.append(promote_best(settings, name, recorded.version, swept.rows))
        return Tuned(recorded.board or swept.board, folder, tuple(messages))


@dataclass(frozen=True)
class Swept:
    """A sweep whose session has ended: leaderboard and folder, code widths and epochs of trials, rows.

    `stands` is false when the folder has the trials, leaderboard and plots of the sweep before again.
    """

    board: Leaderboard
    folder: str
    widths: dict[str, int]
    histories: dict[str, Sequence[Record]]
    rows: SharedRows
    stands: bool = True


def run(job: TuneJob, settings: Settings, listener: Listener, fresh: bool = False) -> Swept:
    """Train the trials of a sweep on the connected cluster; finished trials are not trained again.

    With `fresh`, earlier trials are set aside once the rows are loaded. They come back when the session
    finishes no trial, and are removed when the sweep has ended.
    Raises: DataError, SpecError, ClusterError, ArtifactError, WriteError.
    """
    folder, data = folder_of(job, settings), job.job.data
    dataset = open_dataset(data.uri, data.manifest)
    rows, searching = SharedRows(job, dataset), search(job)
    available = resources(job, listener.note)
    listener.sweeping(searching.most, available, dataset.record)
    if fresh and rows.loaded:  # an error in the rows is raised before the trials are set aside
        _set_aside(folder)
    session = Session(job, folder, rows, available, listener, searching)
    ended = False
    try:
        if session.advance():
            if empty := empty_places(job, available.at_once):
                listener.note(empty)
            execution.train(session)
        board = session.close()
        ended = board.ended
    except KeyboardInterrupt as stop:
        if not _settle(folder, ended):
            stop.add_note("no new trial had finished, so the earlier trials were restored")
        raise
    finally:
        stands = _settle(folder, ended)
    if stands:
        board.save(folder)
    return Swept(board, folder, session.widths, session.histories, rows, stands)


def folder_of(job: TuneJob, settings: Settings) -> str:
    """Where a sweep keeps its trials and its leaderboard."""
    return storage.join(settings.runs_uri, job.name or "sweep")


def lock(folder: str) -> AbstractContextManager[None]:
    """Lock the sweep in `folder` against other commands.

    Raises: DataError when another command runs it.
    """
    return locks.alone(
        locks.beside(folder),
        f"{folder}: another process runs this sweep",
        "under another name (--set name=NAME)",
    )


def _set_aside(folder: str) -> None:
    """Move the trials out of the way, unless there are older ones there and these have no result."""
    mine, before = trials_uri(folder), storage.join(folder, BEFORE)
    if storage.exists(before) and not _any_finished(folder):
        storage.remove(mine)
    elif storage.exists(mine):
        storage.remove(before)
        storage.move(mine, before)


def _settle(folder: str, ended: bool) -> bool:
    """Remove the trials set aside when the sweep has ended; restore them when no trial is finished.

    False when they were restored.
    """
    mine, before = trials_uri(folder), storage.join(folder, BEFORE)
    if not storage.exists(before):
        return True
    if not _any_finished(folder):
        storage.remove(mine)
        storage.move(before, mine)
        return False
    if ended:
        storage.remove(before)
    return True


def _any_finished(folder: str) -> bool:
    return any(is_finished(folder, trial) for trial in storage.names(trials_uri(folder)))


def refit_job(sweep: TuneJob, board: Leaderboard, settings: Settings) -> TrainJob:
    """The job of the best trial with no rows held out, on `base.scale.workers` workers.

    Without held-out rows nothing can stop it early, so a job with early stopping trains for as many
    epochs as the trial needed for its best metric. Raises: DataError when no trial finished.
    """
    if board.best is None or not board.ended:
        found = "it has not ended" if board.best else "no trial finished"
        raise DataError(
            f"--refit: sweep {board.sweep}: {found}, so its best trial is not known; run the same command "
            "again, or see why trials failed"
        )
    best = artifact.load(artifact_uri(folder_of(sweep, settings), board.best.trial)).manifest
    tree: dict[str, Any] = dict(best.job)
    changes = {
        "name": f"{board.sweep[:94]}-refit",  # a name has at most 100 characters
        "data.holdout": 0.0,
        "scale": sweep.job.scale.model_dump(mode="json"),
    }
    if errors.field_at(tree, "train.early_stop") is not None:
        changes |= {"train.early_stop": None, "train.epochs": round(best.metrics["epoch"])}
    for path, value in changes.items():
        errors.put(tree, path, value, "--refit")
    job = files.parse(tree)
    assert isinstance(job, TrainJob)  # a trial's job is
    return job
