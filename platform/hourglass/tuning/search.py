"""Searches propose the points of a sweep and receive their results.

Points come in batches. The next batch is requested when all points of the previous one have ended, and
their results are passed in its order, so proposals depend on the file and the results, and never on
concurrency; a resumed sweep with the same results proposes the same points.

In population-based training the worst trials take over, after every few epochs, the weights and numbers
of the best ones, with the numbers changed. All trials of a generation end before it is judged. Source:
Jaderberg et al. 2017, "Population Based Training of Neural Networks", section 3 and appendix A.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hourglass.config.search import OptunaSearch, Pbt, Values
from hourglass.config.tune import TuneJob
from hourglass.tuning.space import REPEATS, Point, choose_point, draw, points

if TYPE_CHECKING:
    import optuna

REDRAWN = 0.25
"""Share of numbers that are drawn again instead of being changed a little."""
FACTORS = (0.8, 1.2)


@dataclass(frozen=True)
class Slot:
    """A member of the population: its numbers, and the trial it continues."""

    values: dict[str, Any]
    parent: str = ""

    def value(self, path: str, _: Values) -> Any:
        """Its number at a path of the space."""
        return self.values[path]


class Population:
    """Generations of trials, each from a trial of the generation before."""

    def __init__(self, sweep: TuneJob, spec: Pbt, first: Sequence[Point]) -> None:
        self._sweep, self._spec = sweep, spec
        self._slots = [Slot(point.values) for point in first]
        self._ends = list(ends(sweep.job.train.epochs, spec.every_epochs))
        self._generation = 0
        self._asked: list[Point] = []
        self.most = len(self._slots) * len(self._ends)

    def ask(self) -> list[Point]:
        """The next generation."""
        if self._generation == len(self._ends):
            return []
        until = self._ends[self._generation]
        self._asked = [
            replace(choose_point(self._sweep, slot.value), until=until, parent=slot.parent)
            for slot in self._slots
        ]
        return self._asked

    def tell(self, metrics: Sequence[float | None]) -> None:
        """Rank the generation and choose which trials continue, from which, with which values."""
        self._slots = children(self._sweep, self._spec, self._generation, self._asked, metrics)
        self._generation += 1


def ends(epochs: int, every: int) -> Iterator[int | None]:
    """The last epoch of each generation; None for the end of training."""
    yield from range(every, epochs, every)
    yield None


def children(
    sweep: TuneJob,
    spec: Pbt,
    generation: int,
    parents: Sequence[Point],
    metrics: Sequence[float | None],
) -> list[Slot]:
    """What each slot continues: its own trial or, for the worst and the failed, one of the best.

    Empty when all of them failed.
    """
    sign = 1.0 if sweep.mode == "min" else -1.0
    errors = [math.inf if metric is None else sign * metric for metric in metrics]
    order = sorted(range(len(parents)), key=errors.__getitem__)
    moved = max(1, math.floor(len(parents) * spec.share))
    best = [number for number in order[:moved] if errors[number] < math.inf]
    if not best:
        return []  # none is left to continue
    failed = [number for number in order if errors[number] == math.inf]
    rng = np.random.default_rng([spec.seed, generation])
    slots = [Slot(point.values, point.trial) for point in parents]
    for number in dict.fromkeys([*order[-moved:], *failed]):
        donor = parents[best[rng.integers(len(best))]]
        changed = {
            path: explored(value, sweep.space[path], rng) for path, value in donor.values.items()
        }
        slots[number] = Slot(changed, donor.trial)
    return slots


def explored(value: Any, values: Values, rng: np.random.Generator) -> Any:
    """Another number near `value`, or, now and then, any of the space's."""
    if rng.random() < REDRAWN:
        return draw(values, rng)
    if values.choice is not None:
        return _beside(sorted(set(values.choice)), value, rng)
    low, high = values.bounds
    factor = FACTORS[rng.integers(2)]
    if values.quniform is not None or values.randint is not None:
        step = values.quniform[2] if values.quniform else 1.0
        moved = max(1, round(abs(value * factor - value) / step)) * (1 if factor > 1.0 else -1)
        places, at = math.floor((high - low) / step + 1e-9), round((value - low) / step)
        near = low + step * min(max(at + moved, 0), places)
        return round(near) if values.randint else float(f"{near:.12g}")
    return float(min(max(value * factor, low), high))


def _beside(ladder: list[Any], value: Any, rng: np.random.Generator) -> Any:
    """A neighbour on the ladder; at an end, the only one."""
    at, step = ladder.index(value), 1 if rng.random() < 0.5 else -1
    if len(ladder) == 1:
        return value
    return ladder[at + step if 0 <= at + step < len(ladder) else at - step]


class Searching(Protocol):
    """Proposes points, and receives the metric of each."""

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
