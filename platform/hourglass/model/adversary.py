"""The adversary: a second network, which must tell codes of rows from draws of a prior.

The encoder learns to pass for the prior; afterwards the prior says which codes there are.
Source: Makhzani et al. 2015, "Adversarial autoencoders", section 2.
Shapes: B rows, K code units, M components.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn
from torch.nn import functional

from hourglass.model.network import Units
from hourglass.model.noise import Noise
from hourglass.strict import Strict, kind_unless_named


class Gaussian(Strict):
    """N(0, sd^2) in every unit."""

    kind: Literal["gaussian"] = "gaussian"
    sd: PositiveFloat = Field(1.0, description="Standard deviation of every unit.")

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of a unit."""
        return -math.inf, math.inf

    def draw(self, rows: int, units: int, rng: Noise) -> Tensor:
        """Codes (B, K)."""
        return self.sd * rng.normal(rows, units)


class Mixture(Strict):
    """Gaussians of equal weight, N(centre, sd^2), in every unit."""

    kind: Literal["mixture"] = "mixture"
    components: int = Field(10, ge=2, le=2**20, description="Gaussians.")
    radius: PositiveFloat = Field(
        4.0, description="Distance of the centres from 0; in one unit, of the outer ones."
    )
    sd: PositiveFloat = Field(0.5, description="Standard deviation of a Gaussian in every unit.")

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of a unit."""
        return -math.inf, math.inf

    def centres(self, units: int) -> Tensor:
        """(M, K): evenly on a circle in the first two units, 0 in the others; in one unit, on a line."""
        if units == 1:
            return torch.linspace(-self.radius, self.radius, self.components)[:, None]
        angle_M = 2.0 * torch.pi * torch.arange(self.components) / self.components
        circle_M2 = self.radius * torch.stack([angle_M.cos(), angle_M.sin()], dim=1)
        return functional.pad(circle_M2, (0, units - 2))

    def draw(self, rows: int, units: int, rng: Noise) -> Tensor:
        """Codes (B, K)."""
        chosen_B = rng.integers(self.components, rows)
        return self.centres(units).to(rng.device)[chosen_B] + self.sd * rng.normal(rows, units)


class Uniform(Strict):
    """Evenly between `low` and `high` in every unit: the prior of a bounded code."""

    kind: Literal["uniform"] = "uniform"
    low: float = Field(-1.0, description="Lowest value of a unit.")
    high: float = Field(1.0, description="Highest value of a unit.")

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of a unit."""
        return self.low, self.high

    def draw(self, rows: int, units: int, rng: Noise) -> Tensor:
        """Codes (B, K)."""
        share_BK = rng.uniform(rows, units)
        return self.low + (self.high - self.low) * share_BK

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, found {self.low:g} and {self.high:g}")
        return self


Prior = Annotated[
    Gaussian | Mixture | Uniform, Field(discriminator="kind"), kind_unless_named("gaussian")
]


class Adversary(Strict):
    """A discriminator, and the weight of what it thinks of the codes."""

    prior: Prior = Field(Gaussian(), description="What codes of rows should look like.")
    weight: PositiveFloat = Field(0.01, description="Weight of the term in the model's loss.")
    widths: tuple[Units, ...] = Field(
        (64, 64), max_length=64, description="Hidden units of the discriminator, ReLU."
    )
    lr: PositiveFloat = Field(
        5e-3, description="Learning rate of its own Adam: steady when it is faster than the model."
    )

    def build(self, units: int) -> nn.Sequential:
        """The discriminator, with fresh weights: codes (B, K) to logits (B, 1), high for the prior."""
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((units, *self.widths)):
            layers += [nn.Linear(narrow, wide), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear((units, *self.widths)[-1], 1))


def fooling(code_B: Tensor) -> Tensor:
    """-log D(code) from logits, shape (B,): the encoder's penalty for codes unlike draws of the prior.

    Source: Goodfellow et al. 2014, "Generative adversarial nets", section 3, the form whose gradient
    does not vanish while the discriminator is right.
    """
    return functional.softplus(-code_B)


def telling(prior_B: Tensor, code_B: Tensor) -> Tensor:
    """-log D(draw) - log(1 - D(code)) from logits, shape (B,); 2 ln 2 where they are indistinguishable.

    Source: Goodfellow et al. 2014, "Generative adversarial nets", equation 1.
    """
    return functional.softplus(-prior_B) + functional.softplus(code_B)
