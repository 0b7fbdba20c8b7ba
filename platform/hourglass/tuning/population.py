"""Population-based training: trials train side by side, and the worst go on from the best.

After every few epochs the worst trials take over the weights and numbers of the best ones, with the
numbers changed. All trials of a generation end before it is judged, so its children are a pure function
of the file and the results, whatever the concurrency. Source: Jaderberg et al. 2017, "Population Based
Training of Neural Networks", section 3 and appendix A.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hourglass.config.search import Pbt, Values
from hourglass.config.tune import TuneJob
from hourglass.tuning.space import Point, choose_point, draw

REDRAWN = 0.25
"""Share of numbers that are drawn again instead of being changed a little."""
FACTORS = (0.8, 1.2)


@dataclass(frozen=True)
class Slot:
    """A member of the population: its numbers, and the trial it goes on from."""

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
    """What each slot goes on from: its own trial, or of the worst and the failed, one of the best.

    Empty when all of them failed.
    """
    sign = 1.0 if sweep.mode == "min" else -1.0
    errors = [math.inf if metric is None else sign * metric for metric in metrics]
    order = sorted(range(len(parents)), key=errors.__getitem__)
    moved = max(1, math.floor(len(parents) * spec.share))
    best = [number for number in order[:moved] if errors[number] < math.inf]
    if not best:
        return []  # nobody is left to go on from
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
