"""Trials on Ray Tune: what each may use, how many run at a time, and what is heard of them."""

import logging
import math
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from hourglass import storage
from hourglass.errors import ClusterError
from hourglass.sweeps import Scheduler
from hourglass.training.complete import Run
from hourglass.training.state import Record
from hourglass.tune_job import TuneJob
from hourglass.tuning.trial import FAILED, Placed, Share, train_trials

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the artifact is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, which resumes when run again
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",  # a trial that is to stop reports once an epoch only
    "RAY_AIR_NEW_OUTPUT": "0",  # it frames the search in boxes; the listener tells
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class News(Protocol):
    """Hears what becomes of trials, in the process that launched the sweep."""

    def started(self, trials: Sequence[str]) -> None:
        """They train, together if they are several."""
        ...

    def finished(self, trial: str, reason: str) -> None:
        """It came to its end, or failed for a reason."""
        ...

    def epoch(self, trial: str, record: Record) -> None:
        """It ended an epoch: heard of trials that somebody may stop."""
        ...

    def stopped(self, trial: str, record: Record) -> None:
        """It ended after the epoch of this record, before the end of its job."""
        ...


@dataclass(frozen=True)
class Crew:
    """What trials may use: the share of each, and how many run at a time."""

    share: Share
    at_once: int


def crew(sweep: TuneJob) -> Crew:
    """What the connected cluster has for trials. Raises ClusterError when not even one fits.

    A trial's CPUs do not depend on how many run beside it: with other threads sums would round
    otherwise, and the leaderboard would depend on the concurrency.
    """
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    scale, workers = sweep.job.scale, sweep.workers_per_trial
    each = 1.0 if scale.cpus_per_worker == "auto" else scale.cpus_per_worker
    gpu = scale.accelerator == "gpu" or (scale.accelerator == "auto" and gpus >= workers)
    part = sweep.gpus_per_worker if gpu else 0.0
    at_once = math.floor(cpus / (each * workers) + 1e-9)
    if gpu:
        at_once = min(at_once, math.floor(gpus / (part * workers) + 1e-9))
    if at_once < 1:
        raise ClusterError(
            f"a trial of {workers} workers with {each:g} CPUs{f' and {part:g} GPUs' if gpu else ''} "
            f"each does not fit the cluster's {cpus:g} CPUs and {gpus:g} GPUs; change "
            "workers_per_trial or base.scale"
        )
    asked = sweep.concurrency
    return Crew(Share(each, part, workers), at_once if asked == "auto" else min(asked, at_once))


def train(
    sweep: TuneJob,
    runs: dict[str, Run],
    groups: Sequence[Sequence[str]],
    placed: Placed,
    crew: Crew,
    folder: str,
    news: News,
    over: Callable[[], bool],
) -> None:
    """Train all groups of trials in processes that are used again, until they ended or it is `over`.

    Ray Tune's own files are gone afterwards.
    """
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # It misses the metrics' files, whose writers we have just switched off.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    watched = sweep.scheduler.kind in ("asha", "median") or sweep.stop or sweep.max_time_s
    trainable = tune.with_parameters(
        train_trials,
        runs=runs,
        placed=placed,
        share=crew.share,
        metric=sweep.metric if watched else None,
    )
    longest = max(run.job.train.epochs for run in runs.values())
    own = storage.join(folder, "ray")
    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources(crew.share)),
        param_space={"trials": tune.grid_search([list(group) for group in groups])},
        tune_config=tune.TuneConfig(
            scheduler=_scheduler(sweep.scheduler, sweep, longest),
            max_concurrent_trials=crew.at_once,
            reuse_actors=crew.share.workers == 1,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{secrets.token_hex(4)}",
            storage_path=own,
            failure_config=tune.FailureConfig(max_failures=sweep.job.scale.max_failures),
            callbacks=[_Heard(news)],
            stop=_Over(over),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        storage.remove(own)


def _resources(share: Share) -> dict[str, float]:
    """What the trial's own process holds.

    Ray Train reserves what several workers need, so that none of it may be held here; but Tune wants
    to hold something, a byte of memory.
    """
    if share.workers > 1:
        return {"cpu": 0.0, "memory": 1.0}
    return {"cpu": share.cpus, **({"gpu": share.gpus} if share.gpus else {})}


def _scheduler(spec: Scheduler, sweep: TuneJob, epochs: int) -> TrialScheduler | None:
    """Ray Tune's scheduler of that kind."""
    common = {"time_attr": "epoch", "metric": sweep.metric, "mode": sweep.mode}
    if spec.kind == "asha":
        # One epoch more than there is: at its last one a trial has still to save its artifact.
        return ASHAScheduler(
            max_t=epochs + 1,
            grace_period=min(spec.grace_epochs, epochs),
            reduction_factor=spec.keep,
            **common,
        )
    if spec.kind == "median":
        return MedianStoppingRule(
            grace_period=spec.grace_epochs, min_samples_required=spec.least_trials, **common
        )
    return None


class _Over(tune.Stopper):  # type: ignore[misc]
    """Ends all trials when asked to."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes it down to restore it, which we never do."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """A trial ends by itself, or by its scheduler."""
        return False

    def stop_all(self) -> bool:
        """True when the sweep is over."""
        return self._over()


class _Heard(tune.Callback):  # type: ignore[misc]
    """Tune's news for whoever is interested."""

    def __init__(self, news: News) -> None:
        self._news = news

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its callbacks down to restore them, which we never do."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial got its process."""
        self._news.started(trial.config["trials"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """A trial reported an epoch, or its last words."""
        if "record" in result and FAILED not in result:
            self._news.epoch(trial.config["trials"][0], result["record"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial came to its end, said why it could not, or was stopped."""
        last = trial.last_result or {}
        for name in trial.config["trials"]:
            reason = last.get(FAILED, {}).get(name, "")
            if "record" in last and not reason:
                self._news.stopped(name, last["record"])
            elif FAILED in last:
                self._news.finished(name, reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial lost its process more often than base.scale.max_failures allows."""
        reason = f"its process was lost {trial.num_failures} times; out of memory?"
        for name in trial.config["trials"]:
            self._news.finished(name, reason)
