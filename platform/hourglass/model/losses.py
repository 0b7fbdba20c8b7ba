"""Losses: how far each row's output is from its clean row, one value per row.

Shapes: B rows, F features; `pre_BF` is the output before its activation.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from hourglass.model.part import LossPart

if TYPE_CHECKING:
    from hourglass.model.spec import ModelSpec


class Mse(LossPart):
    """Squared error, mean over features."""

    kind: Literal["mse"] = "mse"
    unpackable: ClassVar[str] = ""
    squared_error: ClassVar[bool] = True

    def per_row(self, output_BF: Tensor, pre_BF: Tensor, clean_BF: Tensor) -> Tensor:
        """(1/F) sum_f (output - clean)^2, shape (B,)."""
        return functional.mse_loss(output_BF, clean_BF, reduction="none").mean(dim=1)


class Mae(LossPart):
    """Absolute error, mean over features: large errors count less than with mse."""

    kind: Literal["mae"] = "mae"
    unpackable: ClassVar[str] = "where an error is near 0 its slope jumps, so rounding would decide"

    def per_row(self, output_BF: Tensor, pre_BF: Tensor, clean_BF: Tensor) -> Tensor:
        """(1/F) sum_f |output - clean|, shape (B,)."""
        return (output_BF - clean_BF).abs().mean(dim=1)


class Huber(LossPart):
    """Squared error up to `delta`, absolute error beyond it, mean over features.

    Source: Huber 1964, "Robust estimation of a location parameter", section 4.
    """

    kind: Literal["huber"] = "huber"
    unpackable: ClassVar[str] = ""
    delta: float = Field(1.0, gt=0.0, description="Error, in model space, where growth is linear.")

    def per_row(self, output_BF: Tensor, pre_BF: Tensor, clean_BF: Tensor) -> Tensor:
        """(1/F) sum_f e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), shape (B,)."""
        return functional.huber_loss(output_BF, clean_BF, reduction="none", delta=self.delta).mean(
            dim=1
        )


class Bce(LossPart):
    """Cross-entropy of [0,1] features, mean over features; needs a sigmoid output.

    Source: Bishop 2006, equation 4.90, computed from logits so that it never overflows.
    """

    kind: Literal["bce"] = "bce"
    unpackable: ClassVar[str] = ""
    unit_data: ClassVar[bool] = True

    def per_row(self, output_BF: Tensor, pre_BF: Tensor, clean_BF: Tensor) -> Tensor:
        """(1/F) sum_f -(clean log output + (1 - clean) log(1 - output)), shape (B,)."""
        return functional.binary_cross_entropy_with_logits(pre_BF, clean_BF, reduction="none").mean(
            dim=1
        )

    def contradictions(self, model: "ModelSpec") -> Iterator[str]:
        """The output is a probability."""
        chosen = model.network.output_activation
        if chosen not in ("auto", "sigmoid"):
            yield f"loss bce needs output_activation sigmoid or auto, found '{chosen}'"


class Correntropy(LossPart):
    """One minus a Gaussian kernel of the error, mean over features: an outlier costs at most 1.

    Near zero it is mse / (2 sigma^2). Source: Qi et al. 2014, "Robust feature learning by stacked
    autoencoder with maximum correntropy criterion", equation 5, with its kernel's height set to 1.
    """

    kind: Literal["correntropy"] = "correntropy"
    unpackable: ClassVar[str] = ""
    sigma: float = Field(0.2, gt=0.0, description="Width of the kernel, in model space.")

    def per_row(self, output_BF: Tensor, pre_BF: Tensor, clean_BF: Tensor) -> Tensor:
        """(1/F) sum_f 1 - exp(-(output - clean)^2 / (2 sigma^2)), shape (B,)."""
        exponent_BF = (output_BF - clean_BF).square() / (2.0 * self.sigma**2)
        return -torch.expm1(-exponent_BF).mean(dim=1)


Loss = Annotated[Mse | Mae | Huber | Bce | Correntropy, Field(discriminator="kind")]
