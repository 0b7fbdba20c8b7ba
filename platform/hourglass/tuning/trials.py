"""Trials on Ray Tune: who hands them out, and who hears what becomes of them."""

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

from hourglass import storage
from hourglass.config.tune import TuneJob
from hourglass.process import deferred
from hourglass.training.state import Record
from hourglass.tuning.leaderboard import Entry
from hourglass.tuning.resources import GONE_S, Crew, Groups
from hourglass.tuning.space import Point
from hourglass.tuning.trial import (
    FAILED,
    GROUP,
    RECORDS,
    TRIAL,
    Placed,
    Share,
    described,
    names,
    train_trials,
)

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the artifact is the record
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command, which resumes when run again
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",  # a trial that is to stop reports once an epoch only
    "RAY_AIR_NEW_OUTPUT": "0",  # it frames the search in boxes; the listener tells
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class Listener(Protocol):
    """Hears how a sweep goes, in the process that launched it."""

    def sweeping(self, trials: int, crew: Crew, dataset: dict[str, Any]) -> None:
        """How many trials there will be at most, what they may use, and of which shards."""
        ...

    def known(self, entry: Entry) -> None:
        """A trial that ended before, or a point that is no job."""
        ...

    def placed(self, dataset: dict[str, Any]) -> None:
        """The rows were read and lie in memory."""
        ...

    def note(self, text: str) -> None:
        """A sentence worth knowing."""
        ...

    def started(self, values: Sequence[dict[str, Any]]) -> None:
        """The trials of these values train, together if they are several."""
        ...

    def ended(self, entry: Entry, uri: str, history: Sequence[Record]) -> None:
        """A trial ended; `uri` is its artifact's, if it is finished, `history` its epochs."""
        ...


class Desk(Protocol):
    """Hands out trials and hears what becomes of them, in the process that launched the sweep."""

    def next(self) -> Sequence[Point] | None:
        """Points to train together; None when others must end before, empty when there are no more."""
        ...

    def over(self) -> bool:
        """True when all trials are to stop."""
        ...

    def started(self, trials: Sequence[str]) -> None:
        """They train, together if they are several."""
        ...

    def finished(self, trial: str, reason: str) -> None:
        """It came to its end, or failed for a reason."""
        ...

    def lost(self, trials: Sequence[str]) -> None:
        """They lost their process before they ended."""
        ...

    def epochs(self, trial: str, records: Sequence[Record]) -> None:
        """It ended epochs, which may have been heard of before: of trials that somebody may stop."""
        ...

    def to_stop(self, trial: str) -> bool:
        """True when it is to train no further."""
        ...

    def stopped(self, trial: str, seconds: float) -> None:
        """It ended before the end of its job."""
        ...


def train(sweep: TuneJob, placed: Placed, crew: Crew, folder: str, desk: Desk) -> None:
    """Train what the desk hands out, in processes that are used again, until nothing is left.

    Ray Tune's own files, and those of a sitting that was killed, are gone afterwards.
    """
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # It misses the metrics' files, whose writers we have just switched off.
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    for name in ("ray.tune.execution.tune_controller", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the desk hears what they print
    trainable = tune.with_parameters(
        train_trials,
        any_run=placed.measured.run(sweep.job, folder),
        placed=placed,
        share=crew.share,
        watched=watched(sweep),
    )
    attempt, own = f"attempt-{secrets.token_hex(4)}", storage.join(folder, "ray")
    heard = _Heard(desk)
    tuner = tune.Tuner(
        tune.with_resources(trainable, _resources(crew.share)),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # until the desk has no more
            search_alg=_Asking(desk, folder),
            max_concurrent_trials=crew.at_once,
            # A trial that waits for its workers hears too late that it is stopped.
            reuse_actors=crew.share.workers == 1 or not watched(sweep),
        ),
        run_config=tune.RunConfig(
            name=attempt,
            storage_path=own,
            failure_config=tune.FailureConfig(max_failures=0),  # see `_Heard.on_trial_error`
            callbacks=[heard],
            stop=_Ends(desk, heard),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except BaseException:
        with deferred():
            heard.end_trials(crew.share.workers)
        raise
    finally:
        heard.groups.give_back_all()
        with suppress(OSError):  # the next sitting removes it, and what ends this one is told
            storage.remove(own)
    if heard.error is not None:
        raise heard.error


def watched(sweep: TuneJob) -> bool:
    """True when somebody may stop a trial, who must hear of its epochs."""
    ends = sweep.stop is not None or sweep.max_time_s is not None
    return ends or sweep.scheduler.stops


def _resources(share: Share) -> dict[str, float]:
    """What the trial's own process holds.

    Ray Train reserves what several workers need, so that none of it may be held here; but Tune wants
    to hold something, a byte of memory.
    """
    if share.workers > 1:
        return {"cpu": 0.0, "memory": 1.0}
    return {"cpu": share.cpus, **({"gpu": share.gpus} if share.gpus else {})}


class _Asking(Searcher):  # type: ignore[misc]
    """Passes on what the desk hands out."""

    def __init__(self, desk: Desk, folder: str) -> None:
        super().__init__()
        self._desk, self._folder = desk, folder

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes it down to restore it, which we never do."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trials, None when they are not known yet."""
        points = None if self._desk.over() else self._desk.next()
        if points is None:
            return Searcher.FINISHED if self._desk.over() else None
        return described(points, self._folder) if points else Searcher.FINISHED

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        """The desk has heard of it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune would restore it from there, which we never do."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""


class _Ends(tune.Stopper):  # type: ignore[misc]
    """Ends a trial when the desk says so, and all of them when it says that or cannot go on."""

    def __init__(self, desk: Desk, heard: "_Heard") -> None:
        self._desk, self._heard = desk, heard

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes it down to restore it, which we never do."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """True when a trial that reported epochs, or its last words, is to stop."""
        if RECORDS not in result:
            return False
        self._heard.tell(self._desk.epochs, result[TRIAL], result[RECORDS])
        return self._desk.to_stop(result[TRIAL])

    def stop_all(self) -> bool:
        """True when the sweep is over; Tune asks at every turn."""
        self._heard.groups.give_back()
        return self._heard.error is not None or self._desk.over()


class _Heard(tune.Callback):  # type: ignore[misc]
    """Tune's news for the desk.

    An error of the desk's is kept, and ends the sweep: Tune would take it for one of the trial, and
    train that again.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._running: dict[str, Any] = {}
        self.groups = Groups()
        self.error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its callbacks down to restore them, which we never do."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial got its process."""
        self._running[trial.trial_id] = trial
        self.tell(self._desk.started, names(trial.config))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        """A trial reported what its workers reserved."""
        if GROUP in result:
            self.groups.reserved(trial.trial_id, result[GROUP])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial came to its end, said why it could not, or was stopped."""
        self._running.pop(trial.trial_id, None)
        self.groups.ended(trial.trial_id)
        last = trial.last_result or {}
        for name in names(trial.config):
            reason = last.get(FAILED, {}).get(name, "")
            if RECORDS in last and not reason:
                self.tell(self._desk.stopped, name, last["time_total_s"])
            elif FAILED in last:
                self.tell(self._desk.finished, name, reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial lost its process, and the desk may hand it out again.

        Tune would give up a trial that is about to use a process again and finds it dead, too, as when
        their machine is gone, whatever it allows otherwise.
        """
        self._running.pop(trial.trial_id, None)
        self.groups.ended(trial.trial_id)
        self.tell(self._desk.lost, names(trial.config))

    def end_trials(self, workers: int) -> None:
        """End the processes of trials and all that they started, as when Ctrl-C ends the sweep.

        Ray ends what a command leaves behind in any order, and a run that loses its workers before its
        own process reserves CPUs for new ones, which nobody would give back.
        """
        for trial in self._running.values():
            if trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)
        if workers > 1:
            time.sleep(GONE_S)

    def tell(self, say: Callable[..., None], *words: Any) -> None:
        """Tell the desk, unless it failed before."""
        if self.error is None:
            try:
                say(*words)
            except Exception as error:  # `train` raises it when Tune has ended
                self.error = error
