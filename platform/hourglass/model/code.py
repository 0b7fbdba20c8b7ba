"""Code parts: from the code's pre-activation (B, K) to the code (B, K)."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from hourglass.strict import Strict


class Plain(Strict):
    """The activation of the pre-activation, nothing more."""

    kind: Literal["plain"] = "plain"

    def code(
        self, pre_BK: Tensor, activation: Callable[[Tensor], Tensor], rng: torch.Generator | None
    ) -> Tensor:
        """activation(pre)."""
        return activation(pre_BK)


class NoisyCode(Strict):
    """Semantic hashing: Gaussian noise before the logistic drives units to 0 or 1.

    Source: Salakhutdinov and Hinton 2009, "Semantic Hashing", section 3.3. Off at inference.
    """

    kind: Literal["gaussian_noise"] = "gaussian_noise"
    sd: float = Field(gt=0.0, description="Standard deviation of the noise before the logistic.")

    def code(
        self, pre_BK: Tensor, activation: Callable[[Tensor], Tensor], rng: torch.Generator | None
    ) -> Tensor:
        """activation(pre + sd * N(0, 1)) in training (rng given), activation(pre) otherwise."""
        if rng is not None:
            noise_BK = torch.randn(
                pre_BK.shape, generator=rng, device=pre_BK.device, dtype=pre_BK.dtype
            )
            pre_BK = pre_BK + self.sd * noise_BK
        return activation(pre_BK)


Code = Annotated[Plain | NoisyCode, Field(discriminator="kind")]
