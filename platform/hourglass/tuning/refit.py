"""The best trial's job on all rows: what a sweep was for."""

from typing import Any

from hourglass import artifact
from hourglass.config import files, paths
from hourglass.config.train import TrainJob
from hourglass.config.tune import TuneJob
from hourglass.errors import DataError
from hourglass.settings import Settings
from hourglass.tuning.leaderboard import Leaderboard
from hourglass.tuning.sweep import folder_of
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
