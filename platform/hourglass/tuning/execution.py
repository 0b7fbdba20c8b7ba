"""Runs trials on Ray Tune: takes points from a trial source and reports back what becomes of them."""

import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.search import Searcher

from hourglass import ray_internals, storage
from hourglass.process import deferred
from hourglass.training.launch import free
from hourglass.training.state import Record
from hourglass.tuning.space import Point
from hourglass.tuning.store import SharedRows
from hourglass.tuning.trial import (
    FAILED,
    GROUP,
    RECORDS,
    TRIAL,
    Resources,
    Share,
    describe,
    names,
    train_trials,
)

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the artifact is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command; running it again resumes
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",  # a trial can only be stopped when it reports an epoch
    "RAY_AIR_NEW_OUTPUT": "0",  # the sweep shows its own progress
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class TrialSource(Protocol):
    """Supplies the trials of a sweep and receives what becomes of them, in the driver process."""

    folder: str
    rows: SharedRows
    resources: Resources

    @property
    def watched(self) -> bool:
        """True when trials report their epochs, because something may stop them."""
        ...

    def next(self) -> Sequence[Point] | None:
        """Points to train together; None while other trials must end first, empty at the end."""
        ...

    def over(self) -> bool:
        """True when all trials must stop."""
        ...

    def started(self, trials: Sequence[str]) -> None:
        """Trials began to train, together if there are several."""
        ...

    def finished(self, trial: str, reason: str) -> None:
        """A trial ended; it failed if there is a reason."""
        ...

    def lost(self, trials: Sequence[str]) -> None:
        """The process of these trials died before they ended."""
        ...

    def epochs(self, trial: str, records: Sequence[Record]) -> None:
        """A watched trial completed epochs; some may have been reported before."""
        ...

    def should_stop(self, trial: str) -> bool:
        """True when a trial is to train no further."""
        ...

    def stopped(self, trial: str, seconds: float) -> None:
        """A trial was stopped before the end of its job."""
        ...


def train(source: TrialSource) -> None:
    """Train every trial of the source, in processes that are reused, until there are no more.

    Ray Tune's own files are removed afterwards, including those of a session that was killed.
    """
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # It warns about missing metrics files, whose writers are switched off above.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    for name in ("ray.tune.execution.tune_controller", "ray.tune.tune"):
        logging.getLogger(name).setLevel(
            logging.CRITICAL
        )  # the source receives what they would log
    share, rows = source.resources.share, source.rows.loaded
    trainable = tune.with_parameters(
        train_trials,
        template=rows.data.run(source.rows.sweep.job, source.folder),
        rows=rows,
        share=share,
        watched=source.watched,
    )
    attempt, own = f"attempt-{secrets.token_hex(4)}", storage.join(source.folder, "ray")
    events = _Events(source)
    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources(share)),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # until the source has no more
            search_alg=_SourceSearcher(source),
            max_concurrent_trials=source.resources.at_once,
            # A reused process that waits for its workers would learn too late that it is stopped.
            reuse_actors=share.workers == 1 or not source.watched,
        ),
        run_config=tune.RunConfig(
            name=attempt,
            storage_path=own,
            failure_config=tune.FailureConfig(max_failures=0),  # see `_Events.on_trial_error`
            callbacks=[events],
            stop=_SourceStopper(source, events),
            verbose=0,
        ),
    )
    earlier = ray_internals.placement_groups_of_actors() if share.workers > 1 else set()
    try:
        tuner.fit()
    except BaseException as stop:
        with deferred():
            events.end_trials(share.workers)
            if share.workers > 1 and not isinstance(stop, Exception):
                # A controller that outlived its workers may have reserved again without reporting it.
                free(ray_internals.placement_groups_of_actors() - earlier)
        raise
    finally:
        events.groups.free_all()
        with suppress(OSError):  # the next session removes it, and the error of this one is raised
            storage.remove(own)
    if events.error is not None:
        raise events.error


def _resources(share: Share) -> dict[str, float]:
    """What the trial's own process reserves.

    Ray Train reserves what several workers need, so the process must not; but Ray Tune needs some
    resource to reserve: one byte of memory.
    """
    if share.workers > 1:
        return {"cpu": 0.0, "memory": 1.0}
    return {"cpu": share.cpus, **({"gpu": share.gpus} if share.gpus else {})}


GONE_S = 2.0
"""Seconds after which a trial's processes are gone; workers of the next one wait 30 s for resources."""


class PlacementGroups:
    """The placement groups of trials with several workers, freed where Ray would keep them.

    Ray frees a placement group whose creator was killed only when the whole job ends. A run frees what
    its workers reserved, unless its own process is lost. So the sweep frees the groups of lost trials,
    and all others at its end; after a delay, because a trial's controller would reserve again while it
    lives.
    """

    def __init__(self) -> None:
        self._reserved: dict[str, str] = {}
        self._ended: list[tuple[float, str]] = []

    def reserved(self, trial_id: str, group: str) -> None:
        """Workers of one of Ray Tune's trials started in this group."""
        self._reserved[trial_id] = group

    def ended(self, trial_id: str) -> None:
        """The trial ended, for whatever reason."""
        group = self._reserved.pop(trial_id, None)
        if group is not None:
            self._ended.append((time.monotonic(), group))

    def free_ended(self) -> None:
        """Free the groups of trials whose processes are gone by now."""
        due = time.monotonic() - GONE_S
        free([group for at, group in self._ended if at <= due])
        self._ended = [ended for ended in self._ended if ended[0] > due]

    def free_all(self) -> None:
        """Free every group: Ray Tune does not report trials that it ended together."""
        free([*self._reserved.values(), *(group for _, group in self._ended)])


class _SourceSearcher(Searcher):  # type: ignore[misc]
    """Ray Tune's search algorithm: asks the trial source."""

    def __init__(self, source: TrialSource) -> None:
        super().__init__()
        self._source = source

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune saves it to restore it, which hourglass never does."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trials; None while they are not known yet."""
        points = None if self._source.over() else self._source.next()
        if points is None:
            return Searcher.FINISHED if self._source.over() else None
        return describe(points, self._source.folder) if points else Searcher.FINISHED

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """Nothing: the callback reports it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Ray Tune would restore it from there, which hourglass never does."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""


class _SourceStopper(tune.Stopper):  # type: ignore[misc]
    """Stops a trial, or all of them, when the source asks for it; all when the source failed."""

    def __init__(self, source: TrialSource, events: "_Events") -> None:
        self._source, self._events = source, events

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune saves it to restore it, which hourglass never does."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """True when a trial that reported epochs, or its end, is to stop."""
        if RECORDS not in result:
            return False
        self._events.report(self._source.epochs, result[TRIAL], result[RECORDS])
        return self._source.should_stop(result[TRIAL])

    def stop_all(self) -> bool:
        """True when the sweep is over; Ray Tune asks in every iteration."""
        self._events.groups.free_ended()
        return self._events.error is not None or self._source.over()


class _Events(tune.Callback):  # type: ignore[misc]
    """Reports Ray Tune's events to the source.

    It keeps an error of the source, which ends the sweep: Ray Tune would treat it as one of the trial
    and train the trial again.
    """

    def __init__(self, source: TrialSource) -> None:
        self._source = source
        self._running: dict[str, Any] = {}
        self.groups = PlacementGroups()
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray Tune saves its callbacks to restore them, which hourglass never does."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial got its process."""
        self._running[trial.trial_id] = trial
        self.report(self._source.started, names(trial.config))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """A trial reported what its workers reserved."""
        if GROUP in result:
            self.groups.reserved(trial.trial_id, result[GROUP])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial finished, failed with a reason, or was stopped."""
        self._running.pop(trial.trial_id, None)
        self.groups.ended(trial.trial_id)
        last = trial.last_result or {}
        for name in names(trial.config):
            reason = last.get(FAILED, {}).get(name, "")
            if RECORDS in last and not reason:
                self.report(self._source.stopped, name, last["time_total_s"])
            elif FAILED in last:
                self.report(self._source.finished, name, reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial lost its process; the source may supply it again.

        Ray Tune's own retries would not do: whatever they allow, it gives up a trial whose reused
        process turns out to be dead, as when its machine is gone.
        """
        self._running.pop(trial.trial_id, None)
        self.groups.ended(trial.trial_id)
        self.report(self._source.lost, names(trial.config))

    def end_trials(self, workers: int) -> None:
        """End the processes of running trials and their workers, as when Ctrl-C ends the sweep.

        Ray ends what a command leaves behind in any order, and a run that loses its workers before its
        own process reserves CPUs for new ones, which nothing would free.
        """
        for trial in self._running.values():
            if trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)
        if workers > 1:
            time.sleep(GONE_S)

    def report(self, event: Callable[..., None], *details: Any) -> None:
        """Report an event to the source, unless the source failed before."""
        if self.error is None:
            try:
                event(*details)
            except Exception as error:  # `train` raises it when Ray Tune has ended
                self.error = error
