"""Searches propose the points of a sweep and receive their results.

Points come in batches. The next batch is requested when all points of the previous one have ended, and
their results are passed in its order, so proposals depend on the file and the results, and never on
concurrency; a resumed sweep with the same results proposes the same points.
"""

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from hourglass.config.search import OptunaSearch, Values
from hourglass.config.tune import TuneJob
from hourglass.tuning.population import Population
from hourglass.tuning.space import REPEATS, Point, choose_point, points

if TYPE_CHECKING:
    import optuna


class Searching(Protocol):
    """Proposes points, and hears of each what its metric is."""

    @property
    def most(self) -> int:
        """How many points there will be, unless they run out."""
        ...

    def ask(self) -> list[Point]:
        """The next points, none of which came before; empty when there are no more."""
        ...

    def tell(self, metrics: Sequence[float | None]) -> None:
        """The metrics of the points asked for last, in their order; None for a failed trial."""
        ...


def search(sweep: TuneJob) -> Searching:
    """The search that the sweep's file names."""
    if isinstance(sweep.search, OptunaSearch):
        return Learning(sweep, sweep.search)
    every = points(sweep)
    if sweep.scheduler.population is not None:
        return Population(sweep, sweep.scheduler.population, every)
    return Planned(every)


def empty_places(sweep: TuneJob, at_once: int) -> str:
    """A note if fewer points are proposed at a time than trials can run at once; empty otherwise."""
    places = min(at_once, sweep.max_trials or at_once)
    if not isinstance(sweep.search, OptunaSearch) or sweep.search.together >= places:
        return ""
    together = sweep.search.together
    return (
        f"search.together is {together}: {places - together} of {places} places for trials stay empty; "
        f"{places} fills them, and proposes other points"
    )


class Planned:
    """All points at once: grids and random draws learn nothing."""

    def __init__(self, every: list[Point]) -> None:
        self._every = every
        self.most = len(every)

    def ask(self) -> list[Point]:
        """Every point, the first time."""
        every, self._every = self._every, []
        return every

    def tell(self, metrics: Sequence[float | None]) -> None:
        """Nothing depends on it."""


class Learning:
    """Optuna's tree-structured Parzen estimator. Source: Bergstra et al. 2011, section 4."""

    def __init__(self, sweep: TuneJob, spec: OptunaSearch) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=spec.seed, n_startup_trials=spec.startup, constant_liar=True
            )
        self._study = optuna.create_study(
            sampler=sampler, direction="minimize" if sweep.mode == "min" else "maximize"
        )
        self._failed = optuna.trial.TrialState.FAIL
        self._sweep, self._together = sweep, spec.together
        self.most = sweep.max_trials or 0
        self._seen: set[str] = set()
        self._asked: list[optuna.Trial] = []

    def ask(self) -> list[Point]:
        """The next `together` points, or as many as `max_trials` leaves."""
        left = self.most - len(self._seen)
        found: list[Point] = []
        repeats = 0
        while len(found) < min(self._together, left) and repeats < REPEATS:
            trial = self._study.ask()
            point = choose_point(self._sweep, partial(suggest, trial))
            if point.key in self._seen:
                self._study.tell(trial, state=self._failed)
                repeats += 1
                continue
            repeats = 0
            self._seen.add(point.key)
            self._asked.append(trial)
            found.append(point)
        return found

    def tell(self, metrics: Sequence[float | None]) -> None:
        """Let the next points depend on these metrics."""
        for trial, metric in zip(self._asked, metrics, strict=True):
            known = metric is not None and math.isfinite(metric)
            self._study.tell(trial, metric if known else None, None if known else self._failed)
        self._asked = []


def suggest(trial: "optuna.Trial", path: str, values: Values) -> Any:
    """One of the values, as Optuna proposes it. Raises ValueError for a grid."""
    if values.choice is not None:  # by index: Optuna's categories are plain values only
        return values.choice[trial.suggest_categorical(path, list(range(len(values.choice))))]
    if values.uniform is not None:
        return trial.suggest_float(path, *values.uniform)
    if values.loguniform is not None:
        return trial.suggest_float(path, *values.loguniform, log=True)
    if values.randint is not None:
        return trial.suggest_int(path, *values.randint)
    if values.quniform is not None:
        low, high, step = values.quniform
        top = math.floor((high - low) / step + 1e-9)
        return float(f"{low + step * trial.suggest_int(path, 0, top):.12g}")
    raise ValueError("a grid is not proposed from")
