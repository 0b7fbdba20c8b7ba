"""What a trial's process runs: the run of one point, or of several packed, on rows that lie in the object
store."""

import contextlib
import json
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import tune

from hourglass import artifact, storage
from hourglass.config import files
from hourglass.config.train import TrainJob
from hourglass.data.loader import Features, MemoryLoader
from hourglass.errors import HourglassError
from hourglass.training.collective import SingleProcessGroup
from hourglass.training.complete import Run, complete, complete_packed
from hourglass.training.launch import Room, distribute
from hourglass.training.measure import Measured
from hourglass.training.members import Tell
from hourglass.training.state import Record
from hourglass.tuning.space import Point, one_line

TRIALS = "trials"
FAILED = "failed"
"""Where a report has the reasons of the trials that failed: their last words."""
GROUP = "placement_group"
"""Where a report has the id of what the workers of a trial reserved."""
TRIAL, RECORDS = "trial", "records"
"""Where a report has records of a trial's epochs."""


@dataclass(frozen=True)
class Placed:
    """The rows of a sweep: measured, and parted into training and held-out rows."""

    measured: Measured
    train: Features
    holdout: Features


@dataclass(frozen=True)
class Share:
    """What one trial may use of the cluster: workers, and the CPUs and the GPU, or part, of each."""

    cpus: float
    gpus: float
    workers: int

    @property
    def room(self) -> Room:
        """What each worker owns; the rows are in memory, so none of it is left to read."""
        return Room(self.cpus, self.gpus, 0.0)


def train_trials(
    config: dict[str, Any], *, any_run: Run, placed: Placed, share: Share, watched: bool
) -> None:
    """Complete the runs that `config` describes and report the reasons of those that failed.

    Of `watched` trials epochs are reported as well, for whoever may stop the trial. The rows are views of
    the object store, which nobody may write to. What would fail again is a result; only the loss of
    this process is for Tune to mend.
    """
    mine = {said["trial"]: _run(any_run, said) for said in json.loads(config[TRIALS])}
    tell = _Epochs(*next(iter(mine.items()))) if watched else _quiet
    try:
        ended = _complete(list(mine.values()), placed, share, tell)
    except HourglassError as error:
        ended = [error] * len(mine)
    except Exception as error:  # a trial that fails in a way of its own must not end the sweep
        traceback.print_exc()
        ended = [error] * len(mine)
    report: dict[str, Any] = {FAILED: {}}
    for (name, run), end in zip(mine.items(), ended, strict=True):
        report[FAILED][name] = _reason(end) if isinstance(end, Exception) else ""
        if isinstance(end, Exception):
            continue
        if run.until is not None:
            report |= {TRIAL: name, RECORDS: [end]}
        else:
            with contextlib.suppress(OSError):  # nothing resumes from them: the artifact is there
                storage.remove(run.checkpoints.uri)
    tune.report(report)


def _complete(
    runs: list[Run], placed: Placed, share: Share, tell: Tell
) -> Sequence[Record | Exception]:
    """Train them to their end; of each the last record, or the error that ended it."""
    if share.workers > 1:
        (run,) = runs
        distribute(run, placed.measured, share.room, _Quiet(), _reserved)
        return [{}]
    torch.set_num_threads(share.room.threads)
    device = torch.device("cuda" if share.gpus else "cpu")
    train = runs[0].job.train
    loader = MemoryLoader.parted(
        placed.train, placed.holdout.copy(), batch_size=train.batch_size, seed=train.seed
    )
    if len(runs) == 1:
        if storage.exists(storage.join(runs[0].artifact_uri, artifact.MANIFEST)):
            return [{}]  # its process was lost between saving it and saying so
        return [complete(runs[0], loader, SingleProcessGroup(), device, tell)]
    return complete_packed(runs, loader, device, [_quiet] * len(runs))


def _reason(error: Exception) -> str:
    """Why a trial failed; what is no error of ours says what it is."""
    said = one_line(error)
    return said if isinstance(error, HourglassError) else f"{type(error).__name__}: {said}"


class _Epochs:
    """Reports the records of a trial's epochs, once it resumed those of earlier sittings as well."""

    def __init__(self, trial: str, run: Run) -> None:
        self._trial, self._epochs = trial, run.job.train.epochs

    def __call__(self, kind: str, payload: Any) -> None:
        if kind == "resumed" and payload["history"]:
            self._report(payload["history"])
        # After the last one it has still to save its artifact.
        if kind == "epoch" and payload["epoch"] < self._epochs:
            self._report([payload])

    def _report(self, records: list[Record]) -> None:
        tune.report({TRIAL: self._trial, RECORDS: records})


class _Quiet:
    """A listener of a trial's own workers: a trial says nothing before its end."""

    def prepared(self, job: TrainJob, dataset: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def epoch(self, record: Record) -> None: ...


def _reserved(group: str) -> None:
    """Say what is to be given back when this process cannot."""
    tune.report({GROUP: group})


def _quiet(kind: str, payload: Any) -> None:
    """A trial says nothing before its end."""


def described(points: Sequence[Point], folder: str) -> dict[str, Any]:
    """What Tune tells a process of the points to train, all of them jobs: one JSON text.

    As a tree, Tune would look for values to draw in it.
    """
    trials = [
        {
            "trial": point.trial,
            "job": files.dump(point.job),
            "uri": trial_folder(folder, point.trial),
            "until": point.until,
            "parent": trial_folder(folder, point.parent) if point.parent else None,
        }
        for point in points
        if point.job
    ]
    return {TRIALS: json.dumps(trials)}


def names(config: dict[str, Any]) -> list[str]:
    """The trials that `described` named."""
    return [said["trial"] for said in json.loads(config[TRIALS])]


def _run(any_run: Run, said: dict[str, Any]) -> Run:
    """The run of one point, which differs from any other of the sweep in this."""
    job = files.parse(said["job"])
    assert isinstance(job, TrainJob)  # a trial's job is
    run = replace(any_run, job=job, uri=said["uri"], until=said["until"])
    if said["parent"] is None:
        return run
    # The checkpoints that it goes on from are of a run with other numbers.
    parent = replace(run.checkpoints, uri=checkpoints_of(said["parent"]), run=None)
    came = {"goes_on_from": said["parent"].rpartition("/")[2]}
    return replace(run, parent=parent, provenance=run.provenance | came)


def trials_of(folder: str) -> str:
    """Where the sweep in `folder` keeps its trials."""
    return storage.join(folder, "trials")


def trial_folder(folder: str, trial: str) -> str:
    """Where a trial of the sweep in `folder` keeps its checkpoints and its artifact."""
    return storage.join(trials_of(folder), trial)


def artifact_of(trial_uri: str) -> str:
    """Where a trial's artifact is once it is finished."""
    return storage.join(trial_uri, "artifact")


def checkpoints_of(trial_uri: str) -> str:
    """Where a trial keeps what it goes on from."""
    return storage.join(trial_uri, "checkpoints")
