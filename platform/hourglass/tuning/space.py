"""The points of a search space, each with a job of its own.

Grids and random draws are a pure function of the sweep's file: they depend on neither concurrency nor
results, and a sweep with more trials begins with those of the shorter one.
"""

import copy
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from hourglass.config import errors, files
from hourglass.config.search import Values
from hourglass.config.train import TrainJob
from hourglass.config.tune import TuneJob
from hourglass.errors import SpecError

MISTAKES = re.compile(r"\d+ mistakes?")
REPEATS = 1000
"""Consecutive draws without a new point after which a space counts as exhausted."""


@dataclass(frozen=True)
class Point:
    """The values of one trial, by path, and its job, or the reason why they make no valid job.

    In a population a trial may train only `until` an epoch, from the checkpoint of the trial `parent`.
    """

    values: dict[str, Any]
    job: TrainJob | None
    reason: str = ""
    until: int | None = None
    parent: str = ""

    @cached_property
    def trial(self) -> str:
        """The trial's name: the hash of everything that decides its weights; empty without a job."""
        if self.job is None:
            return ""
        own = self.job.run_name.rpartition("-")[2]
        if self.until is None and not self.parent:
            return own
        return hashlib.sha256(f"{own} {self.until} {self.parent}".encode()).hexdigest()[:8]

    @cached_property
    def key(self) -> str:
        """An identifier of the point, also without a job."""
        return self.trial or json.dumps(self.values, default=str)


def points(sweep: TuneJob) -> list[Point]:
    """The distinct points of the sweep, in the order in which trials start."""
    found: dict[str, Point] = {}
    repeats = 0
    for chosen in _chosen(sweep):
        point = choose_point(sweep, partial(_chosen_value, chosen))
        repeats = repeats + 1 if point.key in found else 0
        found.setdefault(point.key, point)
        exhausted = not sweep.search.exhaustive and repeats == REPEATS
        if len(found) == sweep.max_trials or exhausted:
            break
    return list(found.values())


def _chosen(sweep: TuneJob) -> Iterator[dict[str, Any]]:
    """Values for every path, whatever the conditions: the whole grid, or draws without end."""
    if sweep.search.exhaustive:
        grids = [values.grid or () for values in sweep.space.values()]
        for combination in itertools.product(*grids):
            yield dict(zip(sweep.space, combination, strict=True))
        return
    rng = sweep.search.rng()
    while True:
        yield {path: draw(values, rng) for path, values in sweep.space.items()}


def draw(values: Values, rng: np.random.Generator) -> Any:
    """Draw one of the values. Raises ValueError for a grid."""
    if values.choice is not None:
        return values.choice[rng.integers(len(values.choice))]
    if values.uniform is not None:
        return float(rng.uniform(*values.uniform))
    if values.loguniform is not None:
        low, high = values.loguniform
        return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)
    if values.randint is not None:
        low, high = values.randint
        return int(rng.integers(low, high, endpoint=True))
    if values.quniform is not None:
        low, high, step = values.quniform
        steps = math.floor((high - low) / step + 1e-9)
        return float(f"{low + step * int(rng.integers(steps, endpoint=True)):.12g}")
    raise ValueError("a grid is not drawn from")


def _chosen_value(chosen: dict[str, Any], path: str, _: Values) -> Any:
    return chosen[path]


def choose_point(sweep: TuneJob, choose: Callable[[str, Values], Any]) -> Point:
    """The base with the value that `choose` returns for each path whose conditions hold."""
    tree = copy.deepcopy(sweep.base)
    tree["scale"] = {**(tree.get("scale") or {}), "workers": sweep.workers_per_trial}
    values: dict[str, Any] = {}
    try:
        for path, candidates in sweep.space.items():
            if all(errors.field_at(tree, field) == want for field, want in candidates.when.items()):
                values[path] = choose(path, candidates)
                errors.put(tree, path, copy.deepcopy(values[path]), f"space.{path}")
        job = files.parse(tree)
    except SpecError as error:
        return Point(values, None, one_line(error))
    assert isinstance(job, TrainJob)  # its kind is the base's
    scheduler, seeds = sweep.scheduler, job.train.seeds
    if scheduler.compares and seeds > 1:  # a preset in the space may set them
        reason = f"scheduler {scheduler.kind} compares epochs of single models, found train.seeds: {seeds}"
        return Point(values, None, f"{reason}; set it to 1")
    return Point(values, job)


def one_line(error: Exception) -> str:
    """The message of an error on one line, without the heading above the mistakes of a job."""
    lines = [line.strip().removeprefix("job: ") for line in str(error).splitlines()]
    return "; ".join(lines[1:] if len(lines) > 1 and MISTAKES.fullmatch(lines[0]) else lines)
