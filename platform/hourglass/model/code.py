"""Code parts: from what the encoder ends in, (B, P), to the code (B, K).

Shapes: B rows, K code units, P = K units before the code part (2 K for a posterior).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from hourglass.model.activations import Activation
from hourglass.model.noise import Noise
from hourglass.model.part import CodePart, CodeState, Function

if TYPE_CHECKING:
    from hourglass.model.spec import ModelSpec

LOG_VAR = 20.0
"""Bound of |log variance|, so that neither exp nor its gradient overflows."""
THRESHOLD_SHARE = 0.01
"""Of a step's smallest value that stayed, in the running mean that is the threshold."""


class Plain(CodePart):
    """The activation of the pre-activation, nothing more."""

    kind: Literal["plain"] = "plain"
    unpackable: ClassVar[str] = ""

    def code(self, pre_BP: Tensor, activation: Function, rng: Noise | None) -> Tensor:
        """activation(pre)."""
        return activation(pre_BP)


class TopK(CodePart):
    """k-sparse: the k largest units of each row stay, the others are 0; in training and after.

    Source: Makhzani and Frey 2014, "k-Sparse autoencoders", section 2.1.
    """

    kind: Literal["top_k"] = "top_k"
    unpackable: ClassVar[str] = ""
    sparse: ClassVar[bool] = True
    hash_at_middle: ClassVar[bool] = True
    k: PositiveInt = Field(description="Units of the code that stay.")

    def code(self, pre_BP: Tensor, activation: Function, rng: Noise | None) -> Tensor:
        """activation(pre) where it is among the row's k largest, else 0."""
        code_BK = activation(pre_BP)
        kept = torch.topk(code_BK, self.k, dim=1, sorted=False)
        return torch.zeros_like(code_BK).scatter(1, kept.indices, kept.values)

    def contradictions(self, model: "ModelSpec") -> Iterator[str]:
        """The code has k units."""
        yield from _about_k(self.kind, self.k, model)


class BatchTopK(CodePart):
    """The k largest units for a row on average: in training, the k B largest of the whole batch stay.

    After training a unit stays where it exceeds the mean of the smallest values that stayed. Source:
    Bussmann, Leask and Nanda 2024, "BatchTopK sparse autoencoders", sections 3 and 3.1.
    """

    kind: Literal["batch_top_k"] = "batch_top_k"
    unpackable: ClassVar[str] = "it looks at all rows of a batch"
    sparse: ClassVar[bool] = True
    hash_at_middle: ClassVar[bool] = True
    k: PositiveInt = Field(description="Units of the code that stay, on average over rows.")

    def state(self) -> "BatchThreshold":
        """The threshold, 0 before training."""
        return BatchThreshold()

    def code(self, pre_BP: Tensor, activation: Function, rng: Noise | None) -> Tensor:
        """activation(pre); `BatchThreshold` chooses among the units of all rows."""
        return activation(pre_BP)

    def contradictions(self, model: "ModelSpec") -> Iterator[str]:
        """The code has k units."""
        yield from _about_k(self.kind, self.k, model)


class BatchThreshold(CodeState):
    """The value above which a unit stays after training, learned from the batches of all workers."""

    threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, code_BK: Tensor, part: BatchTopK, learning: bool) -> Tensor:
        """The code (B, K) with all but the chosen units 0; the threshold learns with it."""
        if not learning:
            return torch.where(code_BK > self.threshold, code_BK, 0.0)
        with torch.no_grad():
            every = self.everyone(code_BK.detach().flatten())
            most = max(1, part.k * len(every) // code_BK.shape[1])
            cut = torch.topk(every, min(most, len(every)), sorted=True).values[-1].float()
            share = 1.0 if float(self.threshold) == 0.0 else THRESHOLD_SHARE
            self.threshold += share * (cut - self.threshold)
        return torch.where(code_BK >= cut, code_BK, 0.0)


def _about_k(kind: str, k: int, model: "ModelSpec") -> Iterator[str]:
    if k > model.network.code_width:
        yield f"code {kind}: k is {k}, the code has {model.network.code_width} units"


class NoisyCode(CodePart):
    """Semantic hashing: Gaussian noise before the logistic drives units to 0 or 1.

    Source: Salakhutdinov and Hinton 2009, "Semantic Hashing", section 3.3. Off at inference.
    """

    kind: Literal["gaussian_noise"] = "gaussian_noise"
    unpackable: ClassVar[str] = "it draws noise inside the forward pass"
    activation: ClassVar[tuple[Activation, str]] = ("sigmoid", "its noise acts before the logistic")
    hash_at_middle: ClassVar[bool] = True
    sd: float = Field(gt=0.0, description="Standard deviation of the noise before the logistic.")

    def code(self, pre_BP: Tensor, activation: Function, rng: Noise | None) -> Tensor:
        """activation(pre + sd * N(0, 1)) in training (rng given), activation(pre) otherwise."""
        if rng is not None:
            pre_BP = pre_BP + self.sd * rng.normal(*pre_BP.shape, dtype=pre_BP.dtype)
        return activation(pre_BP)


class GaussianPosterior(CodePart):
    """Variational: the encoder ends in means and log variances; the code is a draw in training.

    Source: Kingma and Welling 2014, "Auto-encoding variational Bayes", section 2.4. At inference
    the code is the mean.
    """

    kind: Literal["gaussian_posterior"] = "gaussian_posterior"
    unpackable: ClassVar[str] = "it draws noise inside the forward pass"
    activation: ClassVar[tuple[Activation, str]] = (
        "linear",
        "it is a draw from a normal distribution",
    )
    posterior: ClassVar[bool] = True

    def pre_units(self, units: int) -> int:
        """P = 2 K."""
        return 2 * units

    def code(self, pre_BP: Tensor, activation: Function, rng: Noise | None) -> Tensor:
        """mean + exp(log variance / 2) * N(0, 1) in training (rng given), the mean otherwise."""
        mean_BK, log_var_BK = posterior(pre_BP)
        if rng is not None:
            mean_BK = mean_BK + (0.5 * log_var_BK).exp() * rng.normal(
                *mean_BK.shape, dtype=mean_BK.dtype
            )
        return activation(mean_BK)

    def contradictions(self, model: "ModelSpec") -> Iterator[str]:
        """It needs a prior, and one only."""
        if not any(penalty.of_prior for penalty in model.penalties):
            yield (
                "code gaussian_posterior needs penalty kl_prior: without it the variances shrink to 0"
                " and the model is a plain one; add {kind: kl_prior, beta: ...} to penalties"
            )
        if model.adversary is not None:
            yield (
                "code gaussian_posterior has its prior from penalty kl_prior, found an adversary as "
                "well; use code plain, or remove the adversary"
            )


def posterior(pre_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Means and log variances, (B, K) each, of what the encoder of a posterior ends in."""
    mean_BK, log_var_BK = pre_BP.chunk(2, dim=1)
    return mean_BK, log_var_BK.clamp(-LOG_VAR, LOG_VAR)


def prefix(code_BK: Tensor, width: int) -> Tensor:
    """The code with all but its first `width` units set to 0."""
    kept_K = torch.arange(code_BK.shape[1], device=code_BK.device) < width
    return code_BK * kept_K


Code = Annotated[
    Plain | TopK | BatchTopK | NoisyCode | GaussianPosterior, Field(discriminator="kind")
]
