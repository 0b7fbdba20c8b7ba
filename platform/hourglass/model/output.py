"""What one forward pass leaves for losses and penalties to read.

Shapes: B rows, F features in model space, K code units, P units before the code part.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

RowMean = Callable[[Tensor], Tensor]
"""(B,) -> (): this worker's part of the mean over all rows of the batch; the parts add up to it."""
BatchMean = Callable[[Tensor], Tensor]
"""(B, K) -> (K,): the mean over all rows of the batch, the same on every worker."""


class ForwardOutput(NamedTuple):
    """Everything a loss may read from one forward pass."""

    clean_BF: Tensor
    pre_BP: Tensor
    code_BK: Tensor
    pre_BF: Tensor
    output_BF: Tensor


class Coder(Protocol):
    """The encoder of a model, as penalties on its derivatives and weights see it."""

    def pre_of(self, x_BF: Tensor) -> Tensor:
        """Rows in model space to what the code part takes, (B, P)."""
        ...

    def code_from(self, pre_BP: Tensor) -> Tensor:
        """Codes (B, K), without noise."""
        ...

    def losses_from(self, code_BK: Tensor, clean_BF: Tensor) -> Tensor:
        """The reconstruction loss (B,) of rows decoded from these codes."""
        ...

    def activated(self, pre_BP: Tensor) -> Tensor:
        """The code's activation of every unit, (B, P)."""
        ...

    def output_with(self, pre_BF: Tensor, extra_BK: Tensor) -> Tensor:
        """The output (B, F) with what the decoder makes of `extra_BK` alone added to `pre_BF`."""
        ...

    def matrices(self) -> list[Tensor]:
        """The weights of all layers, without biases and norms; a tied one once."""
        ...

    def only_layer(self) -> Tensor | None:
        """Weights (P, F) when the encoder is a single linear layer."""
        ...


class PenaltyContext(NamedTuple):
    """What a penalty may read: a pass, the model, the step, and means over the whole batch.

    `idle_K` are the steps since each code unit was last active, on any worker.
    """

    result: ForwardOutput
    coder: Coder
    code_low: float
    step: int
    idle_K: Tensor
    rng: torch.Generator
    row_mean: RowMean
    batch_mean: BatchMean
