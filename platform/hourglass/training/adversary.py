"""The discriminator of a run: its term in the model's loss, and its own step.

Both read the codes of one forward pass: in the model's update the discriminator is held as it was,
in the discriminator's the codes are. It is outside DDP: every worker has the same one, and its
gradient is that of the whole batch, in one exchange.
Shapes: B rows of this worker, K code units.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer

from hourglass.model.adversary import Adversary, fooling, telling
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.output import RowMean
from hourglass.training.collective import ProcessGroup, find_nonfinite, means


@dataclass(frozen=True)
class Discriminator:
    """A network from codes (B, K) to logits (B, 1), above 0 for the prior, and its optimizer."""

    spec: Adversary
    network: nn.Sequential
    optimizer: Optimizer

    def term(self, code_BK: Tensor, row_mean: RowMean) -> Tensor:
        """weight * -log D(code), mean over rows, a scalar; its gradient is the encoder's alone."""
        held = {name: weight.detach() for name, weight in self.network.named_parameters()}
        logits_B = functional_call(self.network, held, (code_BK,)).squeeze(1)
        return self.spec.weight * row_mean(fooling(logits_B))

    def learn(
        self, code_BK: Tensor, total: int, rng: torch.Generator, group: ProcessGroup
    ) -> dict[str, Tensor]:
        """One step against these codes, of `total` rows on all workers; sums over this worker's rows.

        Raises: TrainingError, on every worker, when a gradient is not finite.
        """
        rows, units = code_BK.shape
        prior_BK = self.spec.prior.draw(rows, units, rng).to(code_BK.dtype)
        prior_B, code_B = self.network(torch.cat([prior_BK, code_BK.detach()])).view(2, rows)
        loss_B = telling(prior_B, code_B)
        names, weights = zip(*self.network.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss_B.sum(), weights)
        for weight, mean in zip(weights, means(gradients, total, group), strict=True):
            weight.grad = mean
        norm = torch.nn.utils.get_total_norm(weight.grad for weight in weights)
        if not math.isfinite(norm.item()):
            named = zip(names, gradients, strict=True)
            raise find_nonfinite(
                {f"gradient of discriminator.{name}": g for name, g in named}, group
            )
        self.optimizer.step()
        right_B = ((prior_B > 0).double() + (code_B <= 0).double()) / 2.0
        return {
            "discriminator_loss": loss_B.detach().double().sum(),
            "discriminator_accuracy": right_B.sum(),
        }


def discriminator(module: AutoencoderModule, seed: int) -> Discriminator | None:
    """The discriminator of the model's adversary before its first step; None without an adversary."""
    spec, like = module.spec.adversary, next(module.parameters())
    if spec is None:
        return None
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.manual_seed(2**31 + seed)  # beyond every seed of a model: not the encoder's numbers
        network = spec.build(module.spec.network.code_width)
    network.to(like.device, like.dtype)
    return Discriminator(spec, network, Adam(network.parameters(), spec.lr, fused=True))
