"""Penalties: one scalar each, already weighted, added to the loss by name.

Several workers see their own rows only. A mean over rows is taken with `row_mean` (each worker its
part), a statistic that is used as a whole with `batch_mean`, and what does not depend on rows is
the same on every worker: so that N workers have the gradient of one.
Shapes: B rows, F features, K code units.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from hourglass.model.activations import CODE_LOW
from hourglass.model.code import posterior, prefix
from hourglass.model.part import PenaltyContext, PenaltyPart

if TYPE_CHECKING:
    from hourglass.model.spec import ModelSpec

Weight = Annotated[float, Field(gt=0.0, description="Weight of the penalty.")]


class SparsityKl(PenaltyPart):
    """beta * sum_k KL(rho || mean activation of unit k).

    A tanh code in [-1, 1] is mapped to [0, 1] by (a + 1) / 2, rho with it.
    Source: Ng 2011, "Sparse autoencoder" (CS294A notes), section 3.
    """

    kind: Literal["sparsity_kl"] = "sparsity_kl"
    unpackable: ClassVar[str] = ""
    rho: float = Field(gt=-1.0, lt=1.0, description="Target mean activation of every code unit.")
    beta: Weight

    def value(self, context: PenaltyContext) -> Tensor:
        """The weighted penalty, a scalar."""
        span = 1.0 - context.code_low
        rho = (self.rho - context.code_low) / span
        mean_K = (context.batch_mean(context.result.code_BK) - context.code_low) / span
        mean_K = mean_K.clamp(1e-6, 1.0 - 1e-6)
        kl_K = rho * (rho / mean_K).log() + (1.0 - rho) * ((1.0 - rho) / (1.0 - mean_K)).log()
        return self.beta * kl_K.sum()

    @property
    def target(self) -> float:
        """rho."""
        return self.rho

    def contradictions(self, model: "ModelSpec") -> Iterator[str]:
        """The code is bounded, and rho inside its bounds."""
        low = CODE_LOW.get(model.code_activation)
        if low is None:
            yield (
                f"penalty sparsity_kl needs a bounded code (sigmoid or tanh), "
                f"found '{model.code_activation}': set network.code_activation"
            )
        elif not low < self.rho:
            yield (
                f"penalty sparsity_kl: rho must lie inside the code's range "
                f"({low:g}, 1) of '{model.code_activation}', found {self.rho:g}"
            )


class CodeL1(PenaltyPart):
    """weight * sum_k |code_k|, mean over rows."""

    kind: Literal["code_l1"] = "code_l1"
    unpackable: ClassVar[str] = ""
    weight: Weight

    def value(self, context: PenaltyContext) -> Tensor:
        """The weighted penalty, a scalar."""
        return self.weight * context.row_mean(context.result.code_BK.abs().sum(dim=1))


class CodeL2(PenaltyPart):
    """weight * sum_k code_k^2, mean over rows."""

    kind: Literal["code_l2"] = "code_l2"
    unpackable: ClassVar[str] = ""
    weight: Weight

    def value(self, context: PenaltyContext) -> Tensor:
        """The weighted penalty, a scalar."""
        return self.weight * context.row_mean(context.result.code_BK.square().sum(dim=1))


class WeightsL1(PenaltyPart):
    """weight * sum of |w| over the weights of all layers (biases not)."""

    kind: Literal["weights_l1"] = "weights_l1"
    unpackable: ClassVar[str] = ""
    weight: Weight

    def value(self, context: PenaltyContext) -> Tensor:
        """The weighted penalty, a scalar."""
        return self.weight * torch.stack([w.abs().sum() for w in context.coder.matrices()]).sum()


class WeightsL2(PenaltyPart):
    """weight * sum of w^2 over the weights of all layers (biases not)."""

    kind: Literal["weights_l2"] = "weights_l2"
    unpackable: ClassVar[str] = ""
    weight: Weight

    def value(self, context: PenaltyContext) -> Tensor:
        """The weighted penalty, a scalar."""
        return self.weight * torch.stack([w.square().sum() for w in context.coder.matrices()]).sum()


class Contractive(PenaltyPart):
    """weight * ||d code / d row||_F^2 at the clean row in model space, mean over rows.

    Exact: in closed form where the encoder is one layer, else by one backward pass for each code
    unit. With `probes` it is Hutchinson's estimate, unbiased, from that many random directions.
    Source: Rifai et al. 2011, "Contractive auto-encoders", equations 3 and 6.
    """

    kind: Literal["contractive"] = "contractive"
    unpackable: ClassVar[str] = "it takes a derivative of its own"
    weight: Weight
    probes: PositiveInt | None = Field(
        None, description="Random directions in place of all code units; for deep, wide codes."
    )

    def value(self, context: PenaltyContext) -> Tensor:
        """The weighted penalty, a scalar."""
        layer_KF = context.coder.only_layer()
        x_BF = context.result.clean_BF.detach()
        if layer_KF is not None:
            norms_B = _one_layer(context, x_BF, layer_KF)
        else:
            x_BF = x_BF.requires_grad_()
            code_BK = context.coder.code_from(context.coder.pre_of(x_BF))
            norms_B = torch.stack(
                [_pulled(code_BK, x_BF, v) for v in self._along(code_BK, context)]
            )
            norms_B = norms_B.sum(dim=0) / (self.probes or 1)
        return self.weight * context.row_mean(norms_B)

    def _along(self, code_BK: Tensor, context: PenaltyContext) -> list[Tensor]:
        """Directions in code space, each (B, K): every unit's own, or random signs."""
        if self.probes is None:
            units = torch.eye(code_BK.shape[1], dtype=code_BK.dtype, device=code_BK.device)
            return [unit_K.expand_as(code_BK) for unit_K in units]
        draws = [context.rng.integers(2, *code_BK.shape) for _ in range(self.probes)]
        return [(2 * draw - 1).to(code_BK.dtype) for draw in draws]

    def contradictions(self, model: "ModelSpec") -> Iterator[str]:
        """The encoder can be derived twice."""
        reason = model.network.no_second_derivatives
        if reason:
            yield f"penalty contractive needs second derivatives, which {reason}"


def _one_layer(context: PenaltyContext, x_BF: Tensor, layer_KF: Tensor) -> Tensor:
    """sum_k slope_k^2 ||w_k||^2 for each row: the code's slope at each unit, its weights' norm."""
    pre_BK = context.coder.pre_of(x_BF)
    code_BK = context.coder.code_from(pre_BK)
    (slope_BK,) = torch.autograd.grad(code_BK.sum(), pre_BK, create_graph=True)
    return slope_BK.square() @ layer_KF.square().sum(dim=1)


def _pulled(code_BK: Tensor, x_BF: Tensor, along_BK: Tensor) -> Tensor:
    """||J^T v||^2 of each row, (B,)."""
    (back_BF,) = torch.autograd.grad(code_BK, x_BF, along_BK, create_graph=True)
    return back_BF.square().sum(dim=1)


class AuxK(PenaltyPart):
    """Revives dead units of a k-sparse code: they learn what the living ones missed.

    weight * squared error of the output with their share added, mean over features and rows; the
    output of the living units is taken as given. A unit is dead after `dead_after_steps` steps in
    which no row used it. Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders",
    appendix A.2, with the error of the completed output in place of the error of the error: the same
    for a linear output.
    """

    kind: Literal["aux_k"] = "aux_k"
    unpackable: ClassVar[str] = "it counts units that are dead, so its work depends on the values"
    weight: float = Field(1 / 32, gt=0.0, description="Weight of the penalty.")
    k: PositiveInt | None = Field(
        None, description="Dead units that take part for a row, the strongest; default: all."
    )
    dead_after_steps: PositiveInt = Field(
        100, description="Steps without use that make a unit dead."
    )

    def value(self, context: PenaltyContext) -> Tensor:
        """The weighted penalty, a scalar; 0 while no unit is dead."""
        dead_K = context.idle_K >= self.dead_after_steps
        count = int(dead_K.sum())
        if count == 0:
            return context.result.code_BK.sum() * 0.0
        full_BK = context.coder.activated(context.result.pre_BP)
        of_dead_BK = torch.where(dead_K, full_BK, -torch.inf)
        kept = torch.topk(of_dead_BK, min(self.k or count, count), dim=1, sorted=False)
        extra_BK = torch.zeros_like(full_BK).scatter(1, kept.indices, kept.values)
        output_BF = context.coder.output_with(context.result.pre_BF.detach(), extra_BK)
        error_B = (output_BF - context.result.clean_BF).square().mean(dim=1)
        return self.weight * context.row_mean(error_B)

    @property
    def dead_after(self) -> int:
        """Steps without use."""
        return self.dead_after_steps

    def contradictions(self, model: "ModelSpec") -> Iterator[str]:
        """Units can die."""
        if not model.code.sparse:
            yield (
                "penalty aux_k needs code top_k or batch_top_k, whose unused units it revives; "
                f"found code '{model.code.kind}'"
            )


class Nested(PenaltyPart):
    """weight * reconstruction loss from the first units of the code alone, mean over `widths`.

    One run then has a usable code of every listed width: its first units. Source: Rippel, Gelbart and
    Adams 2014, "Learning ordered representations with nested dropout"; all widths at once as in
    Kusupati et al. 2022, "Matryoshka representation learning", equation 1.
    """

    kind: Literal["nested"] = "nested"
    unpackable: ClassVar[str] = ""
    widths: tuple[PositiveInt, ...] = Field(
        min_length=1, max_length=64, description="Units of the shorter codes, increasing."
    )
    weight: float = Field(1.0, gt=0.0, description="Weight of the penalty.")

    def value(self, context: PenaltyContext) -> Tensor:
        """The weighted penalty, a scalar."""
        code_BK, clean_BF = context.result.code_BK, context.result.clean_BF
        losses = [context.coder.losses_from(prefix(code_BK, w), clean_BF) for w in self.widths]
        return self.weight * context.row_mean(torch.stack(losses).mean(dim=0))

    @property
    def nested_widths(self) -> tuple[int, ...]:
        """The shorter codes."""
        return self.widths

    def contradictions(self, model: "ModelSpec") -> Iterator[str]:
        """Each width is shorter than the next, the last than the code."""
        widths = (*self.widths, model.network.code_width)
        if list(widths) != sorted(set(widths)):
            yield (
                f"penalty nested: widths {list(self.widths)} must increase and stay below the "
                f"code's {model.network.code_width} units"
            )


class KlPrior(PenaltyPart):
    """beta * KL(posterior || N(0, 1)), summed over units, mean over rows; beta grows from 0.

    Source: Kingma and Welling 2014, "Auto-encoding variational Bayes", appendix B; the weight is
    Higgins et al. 2017, "beta-VAE", equation 4.
    """

    kind: Literal["kl_prior"] = "kl_prior"
    unpackable: ClassVar[str] = ""
    of_prior: ClassVar[bool] = True
    beta: Weight
    warmup_steps: NonNegativeInt = Field(0, description="Steps over which beta grows linearly.")

    def value(self, context: PenaltyContext) -> Tensor:
        """The weighted penalty, a scalar."""
        mean_BK, log_var_BK = posterior(context.result.pre_BP)
        kl_BK = 0.5 * (mean_BK.square() + log_var_BK.exp() - 1.0 - log_var_BK)
        share = min(1.0, (context.step + 1) / (self.warmup_steps + 1))
        return self.beta * share * context.row_mean(kl_BK.sum(dim=1))

    def hyperparameters(self) -> dict[str, float]:
        """Without a warm-up, its length has no effect."""
        found = super().hyperparameters()
        return {name: value for name, value in found.items() if name != "warmup_steps" or value}

    def contradictions(self, model: "ModelSpec") -> Iterator[str]:
        """The code is a posterior."""
        if not model.code.posterior:
            yield (
                "penalty kl_prior needs code gaussian_posterior, whose means and variances it "
                f"compares with the prior; found code '{model.code.kind}'"
            )


Penalty = Annotated[
    SparsityKl | CodeL1 | CodeL2 | WeightsL1 | WeightsL2 | Contractive | AuxK | Nested | KlPrior,
    Field(discriminator="kind"),
]
