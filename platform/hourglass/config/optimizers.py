"""How a step changes the weights: the update rules, and the learning rate over a run."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from hourglass.strict import Strict, kind_unless_named


class Adam(Strict):
    """Adam. Source: Kingma and Ba 2015, algorithm 1."""

    kind: Literal["adam"] = "adam"
    lr: PositiveFloat = Field(1e-3, description="Peak learning rate.")
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0.0, lt=1.0, description="Decay of the second moment.")


class AdamW(Strict):
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019, algorithm 2."""

    kind: Literal["adamw"] = "adamw"
    lr: PositiveFloat = Field(1e-3, description="Peak learning rate.")
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="Decay of the first moment.")
    beta2: float = Field(0.999, ge=0.0, lt=1.0, description="Decay of the second moment.")
    weight_decay: float = Field(1e-2, ge=0.0, description="Decoupled weight decay.")


class Sgd(Strict):
    """Stochastic gradient descent with (Nesterov) momentum."""

    kind: Literal["sgd"] = "sgd"
    lr: PositiveFloat = Field(0.1, description="Peak learning rate.")
    momentum: float = Field(0.0, ge=0.0, lt=1.0, description="Momentum.")
    nesterov: bool = Field(False, description="Nesterov's form of momentum.")
    weight_decay: float = Field(0.0, ge=0.0, description="L2 penalty on the weights.")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs momentum above 0, found 0")
        return self


Optimizer = Annotated[Adam | AdamW | Sgd, Field(discriminator="kind"), kind_unless_named("adam")]


class Constant(Strict):
    """The peak learning rate throughout, after a linear warm-up."""

    kind: Literal["constant"] = "constant"
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at `step` (from 0) of `steps`."""
        return min(1.0, (step + 1) / (self.warmup_steps + 1))


class Cosine(Strict):
    """From the peak to 0 along half a cosine, after a linear warm-up.

    Source: Loshchilov and Hutter 2017, equation 5, without restarts.
    """

    kind: Literal["cosine"] = "cosine"
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at `step` (from 0) of `steps`."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        share = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


class OneCycle(Strict):
    """From 1/25 of the peak up to it, then down to 0, both along half a cosine.

    Source: Smith and Topin 2018, "Super-Convergence", section 3.
    """

    kind: Literal["one_cycle"] = "one_cycle"
    peak_at: float = Field(0.3, gt=0.0, lt=1.0, description="Share of the steps going up.")

    def factor(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at `step` (from 0) of `steps`."""
        share = min(1.0, step / max(1, steps - 1))
        if share < self.peak_at:
            return _half_cosine(0.04, 1.0, share / self.peak_at)
        return _half_cosine(1.0, 0.0, (share - self.peak_at) / (1.0 - self.peak_at))


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))


Schedule = Annotated[
    Constant | Cosine | OneCycle, Field(discriminator="kind"), kind_unless_named("constant")
]
