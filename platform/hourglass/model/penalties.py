"""Penalties: one scalar each, already weighted, added to the loss by name.

A penalty that needs a batch statistic asks for it through `batch_mean`, so that several workers
see the statistic of the whole batch, not of their share of it.
"""

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Tensor

from hourglass.strict import Strict

BatchMean = Callable[[Tensor], Tensor]
"""(B, K) -> (K,): the mean over all rows of the batch, on every worker."""


class SparsityKl(Strict):
    """beta * sum_k KL(rho || mean activation of unit k).

    A tanh code in [-1, 1] is mapped to [0, 1] by (a + 1) / 2, rho with it.
    Source: Ng 2011, "Sparse autoencoder" (CS294A notes), section 3.
    """

    kind: Literal["sparsity_kl"] = "sparsity_kl"
    rho: float = Field(gt=-1.0, lt=1.0, description="Target mean activation of every code unit.")
    beta: float = Field(gt=0.0, description="Weight of the penalty.")

    def value(self, code_BK: Tensor, code_low: float, batch_mean: BatchMean) -> Tensor:
        """The weighted penalty, a scalar; `code_low` is 0 for a logistic code, -1 for tanh."""
        span = 1.0 - code_low
        rho = (self.rho - code_low) / span
        mean_K = ((batch_mean(code_BK) - code_low) / span).clamp(1e-6, 1.0 - 1e-6)
        kl_K = rho * (rho / mean_K).log() + (1.0 - rho) * ((1.0 - rho) / (1.0 - mean_K)).log()
        return self.beta * kl_K.sum()


Penalty = SparsityKl
