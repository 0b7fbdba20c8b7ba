"""What a sweep varies: the values a field may take, and how points of the space are chosen."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from hourglass.strict import Strict

MOST_TRIALS = 10_000

Metric = Literal["holdout_mse", "holdout_fvu", "train_mse", "rank_agreement"]
"""What trials are ranked by: errors, or the rank agreement of an ensemble's members (mode: max)."""
Mode = Literal["min", "max"]


class Values(Strict):
    """The values a field may take, said in exactly one of these ways."""

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


class GridSearch(Strict):
    """Every combination of the grids, in the order of the file: the last one varies fastest."""

    kind: Literal["grid"] = "grid"


class RandomSearch(Strict):
    """Points drawn at random, each at most once."""

    kind: Literal["random"] = "random"
    seed: int = Field(0, ge=0, lt=2**31, description="The same seed draws the same points.")


class OptunaSearch(Strict):
    """Points proposed by Optuna's TPE from the errors of the trials before. Source: Akiba et al. 2019."""

    kind: Literal["optuna"] = "optuna"
    seed: int = Field(0, ge=0, lt=2**31, description="The same seed proposes the same points.")
    startup: PositiveInt = Field(8, description="Points drawn at random before it learns.")
    together: PositiveInt = Field(
        4, description="Points proposed at a time; all of them end before the next are proposed."
    )


Search = Annotated[GridSearch | RandomSearch | OptunaSearch, Field(discriminator="kind")]


class NoScheduler(Strict):
    """Every trial trains to its end."""

    kind: Literal["none"] = "none"


class Asha(Strict):
    """Asynchronous successive halving: at each rung only the best go on. Source: Li et al. 2020."""

    kind: Literal["asha"] = "asha"
    grace_epochs: PositiveInt = Field(2, description="Epochs that every trial gets.")
    reduction_factor: int = Field(
        3, ge=2, le=16, description="One of so many goes on at each rung."
    )


class Median(Strict):
    """Stop a trial that is worse than the median of the others. Source: Golovin et al. 2017."""

    kind: Literal["median"] = "median"
    grace_epochs: PositiveInt = Field(2, description="Epochs that every trial gets.")
    least_trials: PositiveInt = Field(
        3, description="Trials to compare with before one is stopped."
    )


class Pbt(Strict):
    """Population-based training: the worst take the weights of the best and other numbers.

    Source: Jaderberg et al. 2017.
    """

    kind: Literal["pbt"] = "pbt"
    every_epochs: PositiveInt = Field(2, description="Epochs between two comparisons.")
    share: float = Field(
        0.25, gt=0.0, le=0.5, description="Share of the trials that take over, and are taken over."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="The same seed makes the same changes.")


Scheduler = Annotated[NoScheduler | Asha | Median | Pbt, Field(discriminator="kind")]


class Stop(Strict):
    """End the sweep when its best has not improved for a while: h2o's stopping rounds."""

    patience: PositiveInt = Field(
        description="Trials without improvement, in the order of the points."
    )
    tolerance: float = Field(
        0.001, ge=0.0, lt=1.0, description="Least improvement that counts, relative to the best."
    )
