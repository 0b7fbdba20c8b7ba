"""Losses: how far each row's output is from its clean row, one value per row.

Shapes: B rows, F features; `pre_BF` is the output before its activation.
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from hourglass.strict import Strict


class Mse(Strict):
    """Squared error, mean over features."""

    kind: Literal["mse"] = "mse"

    def per_row(self, output_BF: Tensor, pre_BF: Tensor, clean_BF: Tensor) -> Tensor:
        """(1/F) sum_f (output - clean)^2, shape (B,)."""
        return (output_BF - clean_BF).square().mean(dim=1)


class Bce(Strict):
    """Cross-entropy of [0,1] features, mean over features; needs a sigmoid output.

    Source: Bishop 2006, equation 4.90, computed from logits so that it never overflows.
    """

    kind: Literal["bce"] = "bce"

    def per_row(self, output_BF: Tensor, pre_BF: Tensor, clean_BF: Tensor) -> Tensor:
        """(1/F) sum_f -(clean log output + (1 - clean) log(1 - output)), shape (B,)."""
        return functional.binary_cross_entropy_with_logits(pre_BF, clean_BF, reduction="none").mean(
            dim=1
        )


Loss = Annotated[Mse | Bce, Field(discriminator="kind")]
