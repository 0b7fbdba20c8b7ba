"""What a sweep varies: the values a field may take, and how points of the space are chosen."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from hourglass.strict import Strict

if TYPE_CHECKING:  # a leaderboard is read without PyTorch
    from hourglass.config.train import TrainSpec

MOST_TRIALS = 10_000
CHANGING = ("train.optimizer.", "train.clip_norm", "model.penalties.", "model.corruption.")
"""What a population changes while a trial trains."""

Metric = Literal["holdout_mse", "holdout_fvu", "train_mse", "rank_agreement"]
"""What trials are ranked by: errors, or the rank agreement of an ensemble's members (mode: max)."""
Mode = Literal["min", "max"]


class Values(Strict):
    """The values that a field may take, given in exactly one of these forms."""

    grid: tuple[Any, ...] | None = Field(
        None, min_length=1, description="Each of these, with every value of the other grids."
    )
    choice: tuple[Any, ...] | None = Field(
        None, min_length=1, description="One of these, drawn at random."
    )
    uniform: tuple[float, float] | None = Field(
        None, description="A number from low to high: [low, high]."
    )
    loguniform: tuple[PositiveFloat, PositiveFloat] | None = Field(
        None, description="A number whose logarithm is uniform: [low, high]."
    )
    randint: tuple[int, int] | None = Field(
        None, description="A whole number, both ends included: [low, high]."
    )
    quniform: tuple[float, float, PositiveFloat] | None = Field(
        None, description="low, low + step, and so on up to high: [low, high, step]."
    )
    when: dict[str, Any] = Field(
        {}, description="Set only where each of these fields has this value."
    )

    @field_validator("uniform", "loguniform", "randint", "quniform")
    @classmethod
    def _low_is_below_high(cls, bounds: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"low {bounds[0]:g} must be below high {bounds[1]:g}")
        return bounds

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        given = [name for name in WAYS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"found {found}; give exactly one of {', '.join(WAYS)}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest number. Raises ValueError for a list of values."""
        found = self.uniform or self.loguniform or self.randint or self.quniform
        if found is None:
            raise ValueError("a list has no bounds")
        return found[0], found[1]

    @property
    def numeric(self) -> bool:
        """True when every value is a number."""
        listed = self.grid or self.choice or ()
        return all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in listed
        )


WAYS = tuple(name for name in Values.model_fields if name != "when")


class SearchSpec(Strict):
    """What a way to choose points declares; nothing else in the package compares kinds of search."""

    exhaustive: ClassVar[bool] = False
    """True where grids alone decide the points; otherwise values are drawn, up to `max_trials`."""
    learns: ClassVar[bool] = False
    """True where points depend on the metrics of the points before them."""

    def rng(self) -> np.random.Generator:
        """What draws the points; a search that draws none has no seed."""
        return np.random.default_rng(getattr(self, "seed", 0))


class GridSearch(SearchSpec):
    """Every combination of the grids, in the order of the file: the last one varies fastest."""

    kind: Literal["grid"] = "grid"
    exhaustive: ClassVar[bool] = True


class RandomSearch(SearchSpec):
    """Points drawn at random, each at most once."""

    kind: Literal["random"] = "random"
    seed: int = Field(0, ge=0, lt=2**31, description="The same seed draws the same points.")


class OptunaSearch(SearchSpec):
    """Points proposed by Optuna's TPE from the errors of the trials before. Source: Akiba et al. 2019."""

    kind: Literal["optuna"] = "optuna"
    learns: ClassVar[bool] = True
    seed: int = Field(0, ge=0, lt=2**31, description="The same seed proposes the same points.")
    startup: PositiveInt = Field(8, description="Points drawn at random before it learns.")
    together: PositiveInt = Field(
        4, description="Points proposed at a time; all of them end before the next are proposed."
    )


Search = Annotated[GridSearch | RandomSearch | OptunaSearch, Field(discriminator="kind")]


class Curve(Protocol):
    """A trial's error after each of its epochs, and the running mean of those after grace."""

    errors: list[float]
    means: list[float]


class SchedulerSpec(Strict):
    """What a scheduler declares and does; nothing else in the package compares kinds of scheduler.

    Each default is that of a scheduler that leaves trials alone.
    """

    compares: ClassVar[bool] = True
    """True where trials are compared epoch by epoch, so each must be a single model of one worker."""
    stops: ClassVar[bool] = False
    """True where `stop` may end a trial, whose epochs must be reported while it trains."""

    @property
    def population(self) -> "Pbt | None":
        """The numbers of a scheduler whose trials train in generations and continue one another."""
        return None

    @property
    def grace(self) -> int:
        """Epochs that every trial gets."""
        return 1

    def stop(self, own: Curve, before: Sequence[Curve], epoch: int) -> bool:
        """True to stop a trial after `epoch` (from 1), given the curves of the trials before it."""
        return False

    def contradictions(
        self, train: "TrainSpec", search: "Search", max_trials: int | None, ends: bool
    ) -> Iterator[str]:
        """Messages about settings of the sweep that do not fit; `ends` is true of one with `stop`."""
        yield from ()

    def space_contradictions(self, space: Mapping[str, Values]) -> Iterator[tuple[str, str]]:
        """Paths of the space that do not fit, each with a message."""
        yield from ()


class NoScheduler(SchedulerSpec):
    """Every trial trains to its end."""

    kind: Literal["none"] = "none"
    compares: ClassVar[bool] = False


class Asha(SchedulerSpec):
    """Asynchronous successive halving: only the best continue past each rung. Source: Li et al. 2020."""

    kind: Literal["asha"] = "asha"
    stops: ClassVar[bool] = True
    grace_epochs: PositiveInt = Field(2, description="Epochs that every trial gets.")
    reduction_factor: int = Field(
        3, ge=2, le=16, description="At each rung one trial in this many continues."
    )

    @property
    def grace(self) -> int:
        """Epochs that every trial gets."""
        return self.grace_epochs

    def stop(self, own: Curve, before: Sequence[Curve], epoch: int) -> bool:
        """True at a rung for a trial that is not among the best of those that reached the rung.

        These are one in `reduction_factor`. Source: Li et al. 2020, "A System for Massively Parallel
        Hyperparameter Tuning", section 3.
        """
        rung = self.grace_epochs
        while rung < epoch:
            rung *= self.reduction_factor
        if rung != epoch:
            return False
        reached = _finite(one.errors[epoch - 1] for one in before if len(one.errors) >= epoch)
        return bool(reached) and own.errors[epoch - 1] > float(
            np.quantile(reached, 1.0 / self.reduction_factor)
        )

    def contradictions(
        self, train: "TrainSpec", search: "Search", max_trials: int | None, ends: bool
    ) -> Iterator[str]:
        """Grace may not cover all epochs."""
        yield from _about_grace(self.kind, self.grace_epochs, train.epochs)


class Median(SchedulerSpec):
    """Stop a trial that is worse than the median of the others. Source: Golovin et al. 2017."""

    kind: Literal["median"] = "median"
    stops: ClassVar[bool] = True
    grace_epochs: PositiveInt = Field(2, description="Epochs that every trial gets.")
    least_trials: PositiveInt = Field(
        3, description="Trials to compare with before one is stopped."
    )

    @property
    def grace(self) -> int:
        """Epochs that every trial gets."""
        return self.grace_epochs

    def stop(self, own: Curve, before: Sequence[Curve], epoch: int) -> bool:
        """True for a trial whose best error is above the median of the others' running means.

        Source: Golovin et al. 2017, "Google Vizier", section 3.2.
        """
        if epoch < self.grace_epochs:
            return False
        means = _finite(one.means[epoch - 1] for one in before if len(one.means) >= epoch)
        if len(means) < self.least_trials:
            return False
        return min(_finite(own.errors[:epoch]), default=math.inf) > float(np.median(means))

    def contradictions(
        self, train: "TrainSpec", search: "Search", max_trials: int | None, ends: bool
    ) -> Iterator[str]:
        """Grace may not cover all epochs."""
        yield from _about_grace(self.kind, self.grace_epochs, train.epochs)


class Pbt(SchedulerSpec):
    """Population-based training: the worst take the weights of the best and other numbers.

    Source: Jaderberg et al. 2017.
    """

    kind: Literal["pbt"] = "pbt"
    every_epochs: PositiveInt = Field(2, description="Epochs between two comparisons.")
    share: float = Field(
        0.25, gt=0.0, le=0.5, description="Share of the trials that take over, and are taken over."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="The same seed makes the same changes.")

    @property
    def population(self) -> "Pbt":
        """Its own."""
        return self

    def contradictions(
        self, train: "TrainSpec", search: "Search", max_trials: int | None, ends: bool
    ) -> Iterator[str]:
        """A population starts at random, and all of it trains to the end."""
        if search.exhaustive or search.learns:
            yield f"scheduler pbt begins with random points, found search {search.kind}"
        if (max_trials or 2) < 2:
            yield "scheduler pbt needs a population, found max_trials: 1; use 4 or more"
        if self.every_epochs >= train.epochs:
            yield (
                f"scheduler pbt compares every {self.every_epochs} epochs, found base.train.epochs: "
                f"{train.epochs}, so it would do nothing"
            )
        if train.early_stop is not None:
            yield (
                "scheduler pbt continues trials, found base.train.early_stop, after which nothing can be "
                "continued; set it to null"
            )
        if ends:
            yield "scheduler pbt trains a population to its end, found stop; remove it"

    def space_contradictions(self, space: Mapping[str, Values]) -> Iterator[tuple[str, str]]:
        """Numbers that change while a trial trains may not decide its shape."""
        for path, values in space.items():
            if not path.startswith(CHANGING) or not values.numeric:
                yield (
                    path,
                    "scheduler pbt changes numbers while a trial trains, which are those of "
                    f"{', '.join(name.rstrip('.') for name in CHANGING)}",
                )
            elif values.when:
                yield path, "scheduler pbt knows no conditions, found when; remove it"


def _about_grace(kind: str, grace: int, epochs: int) -> Iterator[str]:
    if grace >= epochs:
        yield (
            f"scheduler {kind} leaves {grace} epochs to every trial, found base.train.epochs: "
            f"{epochs}, so it would do nothing"
        )


def _finite(errors: Iterable[float]) -> list[float]:
    return [error for error in errors if math.isfinite(error)]


Scheduler = Annotated[NoScheduler | Asha | Median | Pbt, Field(discriminator="kind")]


class Stop(Strict):
    """End the sweep when its best has not improved for a while: h2o's stopping rounds."""

    patience: PositiveInt = Field(
        description="Trials without improvement, in the order of the points."
    )
    tolerance: float = Field(
        0.001, ge=0.0, lt=1.0, description="Least improvement that counts, relative to the best."
    )
