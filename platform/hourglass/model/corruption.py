"""Corruption: the row the encoder sees, while the loss compares with the clean row.

Source: Vincent et al. 2010, "Stacked Denoising Autoencoders", section 3.3. Off at inference.
Shapes: B rows, F features; `low_F`, `high_F` bound each feature in model space.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hourglass.model.noise import Noise
from hourglass.model.part import CorruptionPart

Probability = Annotated[float, Field(gt=0.0, lt=1.0)]


class NoCorruption(CorruptionPart):
    """The encoder sees the clean row."""

    kind: Literal["none"] = "none"
    removes_noise: ClassVar[bool] = False

    def corrupt(self, x_BF: Tensor, low_F: Tensor, high_F: Tensor, rng: Noise) -> Tensor:
        """The row itself."""
        return x_BF


class GaussianNoise(CorruptionPart):
    """Adds N(0, sd^2) to every feature, in model space."""

    kind: Literal["gaussian"] = "gaussian"
    sd: float = Field(gt=0.0, description="Standard deviation of the noise, in model space.")

    def corrupt(self, x_BF: Tensor, low_F: Tensor, high_F: Tensor, rng: Noise) -> Tensor:
        """x + sd * N(0, 1)."""
        noise_BF = rng.normal(*x_BF.shape, dtype=x_BF.dtype)
        return x_BF + self.sd * noise_BF


class Zeros(CorruptionPart):
    """Masking: each feature becomes 0 (in model space) with probability p."""

    kind: Literal["zeros"] = "zeros"
    p: Probability = Field(description="Share of features masked.")

    def corrupt(self, x_BF: Tensor, low_F: Tensor, high_F: Tensor, rng: Noise) -> Tensor:
        """x where a uniform draw is >= p, else 0."""
        draw_BF = rng.uniform(*x_BF.shape)
        return torch.where(draw_BF < self.p, torch.zeros_like(x_BF), x_BF)


class Ones(CorruptionPart):
    """Each feature becomes its largest value with probability p."""

    kind: Literal["ones"] = "ones"
    p: Probability = Field(description="Share of features replaced.")

    def corrupt(self, x_BF: Tensor, low_F: Tensor, high_F: Tensor, rng: Noise) -> Tensor:
        """x where a uniform draw is >= p, else high."""
        draw_BF = rng.uniform(*x_BF.shape)
        return torch.where(draw_BF < self.p, high_F.to(x_BF.dtype), x_BF)


class SaltPepper(CorruptionPart):
    """Each feature becomes its smallest or its largest value, p/2 each."""

    kind: Literal["salt_pepper"] = "salt_pepper"
    p: Probability = Field(description="Share of features replaced.")

    def corrupt(self, x_BF: Tensor, low_F: Tensor, high_F: Tensor, rng: Noise) -> Tensor:
        """low where a uniform draw is < p/2, high where it is < p, else x."""
        draw_BF = rng.uniform(*x_BF.shape)
        salted_BF = torch.where(draw_BF < self.p, high_F.to(x_BF.dtype), x_BF)
        return torch.where(draw_BF < self.p / 2, low_F.to(x_BF.dtype), salted_BF)


class CauchyNoise(CorruptionPart):
    """Adds Cauchy noise to every feature, in model space: now and then a value far off."""

    kind: Literal["cauchy"] = "cauchy"
    scale: float = Field(gt=0.0, description="Half the width at half the height, in model space.")

    def corrupt(self, x_BF: Tensor, low_F: Tensor, high_F: Tensor, rng: Noise) -> Tensor:
        """x + scale * tan(pi (u - 1/2)), u uniform: the quantile function of the distribution."""
        # In float64 and away from 0 and 1, where the tangent is infinite.
        draw_BF = rng.uniform(*x_BF.shape, dtype=torch.float64)
        noise_BF = torch.tan(torch.pi * (draw_BF.clamp(1e-9, 1.0 - 1e-9) - 0.5))
        return x_BF + (self.scale * noise_BF).to(x_BF.dtype)


Corruption = Annotated[
    NoCorruption | GaussianNoise | CauchyNoise | Zeros | Ones | SaltPepper,
    Field(discriminator="kind"),
]
