"""Early stopping of trials: a function of the file and of what trials report.

Trials are compared in the order of their points, each epoch with those of the trials before it, as if they
trained one after the other. So neither concurrency nor speed decides which are stopped. No trial waits for
the decision: it trains on, and epochs beyond its last one do not count.
The time limit of a session also ends trials, which continue in the next session.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hourglass.config.search import Metric, Mode, Scheduler, Stop
from hourglass.training.state import Record


class Curve:
    """A trial's error after each of its epochs, and the mean of those from the end of grace on."""

    def __init__(self, grace_epochs: int) -> None:
        self._grace = grace_epochs
        self.errors: list[float] = []
        self.means: list[float] = []

    def add(self, error: float) -> None:
        """One more epoch."""
        self.errors.append(error)
        count = len(self.errors) - self._grace + 1
        before = self.means[-1] if count > 1 else 0.0
        self.means.append(before + (error - before) / count if count > 0 else math.nan)

    def cut(self, epoch: int) -> None:
        """Forget what comes after an epoch."""
        del self.errors[epoch:], self.means[epoch:]


@dataclass
class _Trial:
    """One that is judged epoch by epoch; after the last epoch of its job nobody is stopped."""

    epochs: int
    curve: Curve
    judged: int = 0
    ended: bool = False
    last_epoch: int | None = None

    @property
    def decided(self) -> bool:
        """True when it was stopped, or everything that it reported was judged."""
        return self.last_epoch is not None or self.judged == len(self.curve.errors)

    @property
    def known_to(self) -> float:
        """The epoch up to which others can be judged beside it."""
        over = self.last_epoch is not None or (self.ended and self.decided)
        return math.inf if over else self.judged


class Stopping:
    """Takes reports of trials in any order, and decides after which epoch each is stopped."""

    def __init__(self, scheduler: Scheduler, metric: Metric) -> None:
        self._scheduler, self._metric = scheduler, metric
        self._trials: dict[str, _Trial] = {}
        self._open: list[_Trial] = []  # in the order of their points
        self._closed: list[Curve] = []  # of those before, of which all is known

    def enter(self, trial: str, epochs: int) -> None:
        """Add a trial with this many epochs; it is compared with those added before it."""
        self._trials[trial] = _Trial(epochs, Curve(self._scheduler.grace))
        self._open.append(self._trials[trial])

    def observe(self, trial: str, records: Sequence[Record]) -> None:
        """Records of its epochs, from the first one on; some may have been observed before."""
        mine = self._trials[trial]
        if not self._scheduler.stops or mine.last_epoch is not None:
            return
        for record in records:
            if record["epoch"] > len(mine.curve.errors):
                mine.curve.add(record.get(self._metric, math.nan))
        self._compare()

    def ended(self, trial: str) -> None:
        """The trial has no more epochs."""
        self._trials[trial].ended = True
        if self._scheduler.stops:
            self._compare()

    def decided(self, trial: str) -> bool:
        """True when it was stopped, or could no longer be stopped after any epoch observed so far."""
        return self._trials[trial].decided

    def last_epoch(self, trial: str) -> int | None:
        """The epoch after which it is stopped; None if it is not."""
        return self._trials[trial].last_epoch

    def _compare(self) -> None:
        known_to, before = math.inf, list(self._closed)
        for trial in self._open:
            while not trial.decided and trial.judged < known_to:
                trial.judged += 1
                ended = trial.judged >= trial.epochs
                if not ended and self._scheduler.stop(trial.curve, before, trial.judged):
                    trial.last_epoch = trial.judged
                    trial.curve.cut(trial.judged)
            before.append(trial.curve)
            known_to = min(known_to, trial.known_to)
            if not known_to:
                break
        while self._open and self._open[0].known_to == math.inf:
            self._closed.append(self._open.pop(0).curve)


def settled(metrics: Sequence[float | None], stop: Stop, mode: Mode) -> int | None:
    """How many trials, in their order, it takes until the best no longer improves; None: not yet."""
    best, waited = None, 0
    for number, metric in enumerate(metrics, start=1):
        error = metric if metric is None or mode == "min" else -metric
        waited += 1
        if error is not None and (best is None or error < best - stop.tolerance * abs(best)):
            best, waited = error, 0
        if waited >= stop.patience:
            return number
    return None


UNENDED = "it has not ended; the same command continues it"
OVER = "max_time_s has passed; the same command continues this trial"
NO_FURTHER = (
    "max_time_s passed before the trial completed another epoch; raise it, or the same command may "
    "never get further"
)


class Deadline:
    """Runs from the first trial's start; without `max_time_s` it is never over.

    `kept` says what is on disk of a trial, to tell whether it got further.
    """

    def __init__(self, max_time_s: float | None, kept: Callable[[str], Any]) -> None:
        self._max_time_s, self._kept = max_time_s, kept
        self._began: float | None = None
        self._began_with: dict[str, Any] = {}

    def started(self, trials: Sequence[str]) -> None:
        """Trials got their process; one whose process was lost began before."""
        self._began = self._began or time.monotonic()
        if self._max_time_s is not None:
            for trial in trials:
                self._began_with.setdefault(trial, self._kept(trial))

    @property
    def over(self) -> bool:
        """True when time has run out."""
        most, began = self._max_time_s, self._began
        return most is not None and began is not None and time.monotonic() - began > most

    def reason(self, trial: str) -> str:
        """Why a trial has not ended."""
        if not self.over:
            return UNENDED
        return NO_FURTHER if self._no_further(trial) else OVER

    def note(self, ended: Sequence[str], count: int, most: int) -> str:
        """The message at the end of a session's time; `ended` are trials, `count` is that of all points."""
        goes = "the same command continues"
        if all(trial not in ended and self._no_further(trial) for trial in self._began_with):
            goes = "no trial completed another epoch; raise it"
        return (
            f"max_time_s: {self._max_time_s:g} s passed after {count} of at most {most} trials; "
            f"{goes}"
        )

    def _no_further(self, trial: str) -> bool:
        """True if the trial began in this session and kept nothing more than it had before."""
        return trial in self._began_with and self._kept(trial) == self._began_with[trial]
