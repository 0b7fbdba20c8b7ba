"""What a sweep varies: the values a field may take, and how points of the space are chosen."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from hourglass.strict import Strict

MOST_TRIALS = 10_000

Metric = Literal["holdout_mse", "holdout_fvu", "train_mse"]
"""What trials are ranked by, all of them errors: the lowest is best."""


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
    log_uniform: tuple[PositiveFloat, PositiveFloat] | None = Field(
        None, description="A number whose logarithm is uniform: [low, high]."
    )
    int_uniform: tuple[int, int] | None = Field(
        None, description="A whole number, both ends included: [low, high]."
    )
    quantised: tuple[float, float, PositiveFloat] | None = Field(
        None, description="low, low + step, and so on up to high: [low, high, step]."
    )
    when: dict[str, Any] = Field(
        {}, description="Set only where each of these fields has this value."
    )

    @field_validator("uniform", "log_uniform", "int_uniform", "quantised")
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


WAYS = tuple(name for name in Values.model_fields if name != "when")


class GridSearch(Strict):
    """Every combination of the grids, in the order of the file: the last one varies fastest."""

    kind: Literal["grid"] = "grid"


class RandomSearch(Strict):
    """Points drawn at random, each at most once."""

    kind: Literal["random"] = "random"
    seed: int = Field(0, ge=0, lt=2**31, description="The same seed draws the same points.")


Search = Annotated[GridSearch | RandomSearch, Field(discriminator="kind")]
