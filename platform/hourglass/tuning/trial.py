"""What a trial's process runs: the run of one point, or of several packed, on rows that lie in the object
store."""

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import tune

from hourglass import storage
from hourglass.data.feed import Features, MemoryFeed
from hourglass.errors import HourglassError
from hourglass.spec import TrainJob
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.collective import Alone
from hourglass.training.complete import Run, complete, complete_packed
from hourglass.training.launch import Measured, Room, distribute
from hourglass.training.members import Tell
from hourglass.training.state import Record
from hourglass.tuning.space import Point, one_line

FAILED = "failed"
"""Where a report has the reasons of the trials that failed; one without it is an epoch's."""


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
    config: dict[str, Any],
    *,
    runs: dict[str, Run],
    placed: Placed,
    share: Share,
    metric: str | None,
) -> None:
    """Complete the runs that `config` names and report the reasons of those that failed.

    With a `metric`, it is also reported after each epoch, for whoever may stop the trial. The rows
    are views of the object store, which nobody may write to. What would fail again is a result; only
    the loss of this process is for Tune to mend.
    """
    mine = {name: runs[name] for name in config["trials"]}
    epochs = _Epochs(metric) if metric else None
    try:
        ended = _complete(list(mine.values()), placed, share, epochs or _quiet)
    except HourglassError as error:
        ended = [error] * len(mine)
    except Exception as error:  # a trial that fails in a way of its own must not end the sweep
        traceback.print_exc()
        ended = [error] * len(mine)
    report: dict[str, Any] = {**(epochs.last if epochs else {}), FAILED: {}}
    for (name, run), end in zip(mine.items(), ended, strict=True):
        report[FAILED][name] = _reason(end) if isinstance(end, Exception) else ""
        if isinstance(end, Exception):
            continue
        if run.until is not None:
            report["record"] = end
        else:
            storage.remove(run.checkpoints.uri)  # the artifact is there, nothing resumes from them
    tune.report(report)


def _complete(
    runs: list[Run], placed: Placed, share: Share, tell: Tell
) -> Sequence[Record | Exception]:
    """Train them to their end; of each the last record, or the error that ended it."""
    if share.workers > 1:
        (run,) = runs
        distribute(run, placed.measured, share.room, _Quiet())
        return [{}]
    torch.set_num_threads(share.room.threads)
    device = torch.device("cuda" if share.gpus else "cpu")
    train = runs[0].job.train
    feed = MemoryFeed.parted(
        placed.train, placed.holdout.copy(), batch_rows=train.batch_rows, seed=train.seed
    )
    if len(runs) == 1:
        return [complete(runs[0], feed, Alone(), device, tell)]
    return complete_packed(runs, feed, device, [_quiet] * len(runs))


def _reason(error: Exception) -> str:
    """Why a trial failed; what is no error of ours says what it is."""
    said = one_line(error)
    return said if isinstance(error, HourglassError) else f"{type(error).__name__}: {said}"


class _Epochs:
    """Reports the metric after each epoch; schedulers want it in the trial's last words as well."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self.last: dict[str, Any] = {"epoch": 0, metric: float("nan")}

    def __call__(self, kind: str, payload: Any) -> None:
        if kind == "epoch":
            self.last = {"epoch": int(payload["epoch"]), self._metric: payload[self._metric]}
            tune.report({**self.last, "record": payload})


class _Quiet:
    """A listener of a trial's own workers: a trial says nothing before its end."""

    def prepared(self, job: TrainJob, dataset: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def epoch(self, record: Record) -> None: ...


def _quiet(kind: str, payload: Any) -> None:
    """A trial says nothing before its end."""


def runs_of(placed: Placed, points: Sequence[Point], base: TrainJob, folder: str) -> dict[str, Run]:
    """The run of each point that is a job, in a folder of its own."""
    any_run = placed.measured.run(base, folder)
    made = {}
    for point in points:
        if point.job is None:
            continue
        run = replace(
            any_run, job=point.job, uri=trial_folder(folder, point.trial), until=point.until
        )
        made[point.trial] = replace(run, parent=_parent(run, folder, point.parent))
    return made


def _parent(run: Run, folder: str, parent: str) -> Checkpoints | None:
    """The checkpoints that a run goes on from; they are of a run with other numbers."""
    if not parent:
        return None
    uri = storage.join(trial_folder(folder, parent), "checkpoints")
    return replace(run.checkpoints, uri=uri, run=None)


def trial_folder(folder: str, trial: str) -> str:
    """Where a trial of the sweep in `folder` keeps its checkpoints and its artifact."""
    return storage.join(folder, "trials", trial)
