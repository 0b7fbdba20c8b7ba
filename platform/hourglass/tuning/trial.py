"""One trial: what it may use of the cluster, and what its process runs.

A process trains one point, or several that are packed, on rows that lie in the object store.
"""

import contextlib
import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import tune

from hourglass import artifact, bundles, storage
from hourglass.config import files
from hourglass.config.train import TrainJob
from hourglass.config.tune import TuneJob
from hourglass.data.loader import MemoryLoader
from hourglass.errors import ClusterError, HourglassError
from hourglass.training.collective import SingleProcessGroup
from hourglass.training.complete import Run, complete, complete_packed
from hourglass.training.launch import distribute
from hourglass.training.members import Send
from hourglass.training.resources import WorkerResources
from hourglass.training.state import Record
from hourglass.tuning.space import Point, one_line
from hourglass.tuning.store import LoadedRows, checkpoints_uri, trial_uri

TRIALS = "trials"
FAILED = "failed"
"""Key of the reasons why trials failed, in the last report of their process."""
GROUP = "placement_group"
"""Key of the id of the placement group that the workers of a trial reserved."""
TRIAL, RECORDS = "trial", "records"
"""Keys of a report of a trial's epochs."""


@dataclass(frozen=True)
class Share:
    """What one trial may use of the cluster: its workers, and the CPUs and GPUs of each."""

    cpus: float
    gpus: float
    workers: int

    @property
    def resources(self) -> WorkerResources:
        """What each worker owns; the rows are in memory, so no CPUs are reserved to read them."""
        return WorkerResources(self.cpus, self.gpus, 0.0)


@dataclass(frozen=True)
class Resources:
    """What all trials may use: the share of each, how many fit, and how many run at a time."""

    share: Share
    fitting: int
    at_once: int


def resources(sweep: TuneJob, note: Callable[[str], None]) -> Resources:
    """What the connected cluster has for trials, once one fits. Raises ClusterError if none ever does.

    A trial's CPUs do not depend on how many trials run at a time: with another number of threads, sums
    would round differently and the leaderboard would depend on the concurrency.
    """
    scale, workers = sweep.job.scale, sweep.workers_per_trial
    share, fitting = _fitting(sweep)
    if fitting < 1:
        advice = "change workers_per_trial or base.scale"
        bundle = {"CPU": share.cpus, "GPU": share.gpus}
        if not bundles.can_grow():
            nodes = bundles.nodes()
            cpus, gpus = (bundles.total(nodes, name) for name in bundle)
            raise ClusterError(
                f"a trial needs {bundles.describe([bundle] * workers)}, which do not fit this machine's "
                f"{cpus:g} CPUs and {gpus:g} GPUs; {advice}"
            )
        bundles.wait([bundle] * workers, scale.wait_s, note, advice)
        share, fitting = _fitting(sweep)
    fitting = max(1, fitting)
    at_once = fitting if sweep.concurrency == "auto" else min(sweep.concurrency, fitting)
    return Resources(share, fitting, at_once)


def _fitting(sweep: TuneJob) -> tuple[Share, int]:
    """What a trial uses, and how many such trials fit the nodes that are there."""
    nodes, scale, workers = bundles.nodes(), sweep.job.scale, sweep.workers_per_trial
    cpus = 1.0 if scale.cpus_per_worker == "auto" else scale.cpus_per_worker
    enough = bundles.total(nodes, "GPU") >= workers
    on_gpu = scale.accelerator == "gpu" or (scale.accelerator == "auto" and enough)
    gpus = sweep.gpus_per_worker if on_gpu else 0.0
    return Share(cpus, gpus, workers), bundles.fitting(nodes, {"CPU": cpus, "GPU": gpus}) // workers


def describe(points: Sequence[Point], folder: str) -> dict[str, Any]:
    """The config of a process that trains these points, all of them jobs: one JSON text.

    In a tree, Ray Tune would look for values to sample.
    """
    trials = [
        {
            "trial": point.trial,
            "job": files.dump(point.job),
            "folder": folder,
            "until": point.until,
            "parent": point.parent,
        }
        for point in points
        if point.job
    ]
    return {TRIALS: json.dumps(trials)}


def names(config: dict[str, Any]) -> list[str]:
    """The names of the trials in such a config."""
    return [trial["trial"] for trial in json.loads(config[TRIALS])]


def _run(template: Run, trial: dict[str, Any]) -> Run:
    """The run of one trial: the template with the job, folder and parent of the trial."""
    job = files.parse(trial["job"])
    assert isinstance(job, TrainJob)  # a trial's job is
    folder, parent = trial["folder"], trial["parent"]
    run = replace(template, job=job, uri=trial_uri(folder, trial["trial"]), until=trial["until"])
    if not parent:
        return run
    # The parent's checkpoints belong to a run with other hyperparameters.
    resumed = replace(run.checkpoints, uri=checkpoints_uri(folder, parent), run=None)
    return replace(run, parent=resumed, provenance=run.provenance | {"goes_on_from": parent})


def train_trials(
    config: dict[str, Any], *, template: Run, rows: LoadedRows, share: Share, watched: bool
) -> None:
    """Complete the runs that `config` describes and report why those that failed did.

    `watched` trials report each epoch as well, so that the scheduler can stop them. The rows are
    read-only views of the object store. An error that would occur again is reported as a result; Ray
    Tune only handles the loss of this process.
    """
    runs = {trial["trial"]: _run(template, trial) for trial in json.loads(config[TRIALS])}
    on_event = _EpochReporter(*next(iter(runs.items()))) if watched else _ignore
    try:
        results = _complete(list(runs.values()), rows, share, on_event)
    except HourglassError as error:
        results = [error] * len(runs)
    except Exception as error:  # an unexpected error of one trial must not end the sweep
        traceback.print_exc()
        results = [error] * len(runs)
    report: dict[str, Any] = {FAILED: {}}
    for (name, run), result in zip(runs.items(), results, strict=True):
        report[FAILED][name] = _reason(result) if isinstance(result, Exception) else ""
        if isinstance(result, Exception):
            continue
        if run.until is not None:
            report |= {TRIAL: name, RECORDS: [result]}
        else:
            with contextlib.suppress(OSError):  # nothing resumes from them: the artifact exists
                storage.remove(run.checkpoints.uri)
    tune.report(report)


def _complete(
    runs: list[Run], rows: LoadedRows, share: Share, on_event: Send
) -> Sequence[Record | Exception]:
    """Train the runs to their end; of each the last record, or the error that ended it."""
    if share.workers > 1:
        (run,) = runs
        distribute(run, rows.data, share.resources, _IgnoringListener(), _report_group)
        return [{}]
    torch.set_num_threads(share.resources.threads)
    device = torch.device("cuda" if share.gpus else "cpu")
    train = runs[0].job.train
    loader = MemoryLoader.from_split(
        rows.train, rows.holdout.copy(), batch_size=train.batch_size, seed=train.seed
    )
    if len(runs) == 1:
        if storage.exists(storage.join(runs[0].artifact_uri, artifact.MANIFEST)):
            return [{}]  # an earlier process was lost between saving the artifact and reporting it
        return [complete(runs[0], loader, SingleProcessGroup(), device, on_event)]
    return complete_packed(runs, loader, device, [_ignore] * len(runs))


def _reason(error: Exception) -> str:
    """Why a trial failed; an error that is not hourglass's own is shown with its type."""
    message = one_line(error)
    return message if isinstance(error, HourglassError) else f"{type(error).__name__}: {message}"


class _EpochReporter:
    """Reports the records of a trial's epochs, and after a resume those of earlier sessions too."""

    def __init__(self, trial: str, run: Run) -> None:
        self._trial, self._epochs = trial, run.job.train.epochs

    def __call__(self, kind: str, payload: Any) -> None:
        if kind == "resumed" and payload["history"]:
            self._report(payload["history"])
        # After its last epoch a trial still has to save its artifact.
        if kind == "epoch" and payload["epoch"] < self._epochs:
            self._report([payload])

    def _report(self, records: list[Record]) -> None:
        tune.report({TRIAL: self._trial, RECORDS: records})


def _report_group(group: str) -> None:
    """Report the placement group to free when this process cannot."""
    tune.report({GROUP: group})


class _IgnoringListener:
    """The listener of a trial's own workers: nothing is shown before a trial ends."""

    def prepared(self, job: TrainJob, dataset: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...

    def epoch(self, record: Record) -> None: ...


def _ignore(kind: str, payload: Any) -> None:
    """Drop an event of training."""
