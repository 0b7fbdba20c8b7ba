"""The state of a run: exactly what it needs to resume bit-identically.

There is no random state: weights come from the seed, row order and noise are functions of
(seed, epoch, step, worker).
Shapes: B rows of this worker, K code units.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import SGD, Adam, AdamW, Optimizer

from hourglass.config.train import TrainSpec
from hourglass.model.adversary import Adversary, fooling, telling
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.noise import Noise
from hourglass.model.part import RowMean
from hourglass.training.collective import ProcessGroup, find_nonfinite, means

Record = dict[str, float]


@dataclass(frozen=True)
class Discriminator:
    """A network from codes (B, K) to logits (B, 1), above 0 for the prior, and its optimizer.

    Model and discriminator read the codes of one forward pass; each is constant in the other's update.
    The discriminator is outside DDP: its gradient is that of the whole batch, added up in one all-reduce,
    so every worker holds the same weights.
    """

    spec: Adversary
    network: nn.Sequential
    optimizer: Optimizer

    def term(self, code_BK: Tensor, row_mean: RowMean) -> Tensor:
        """weight * -log D(code), mean over rows, a scalar; only the encoder receives its gradient."""
        held = {name: weight.detach() for name, weight in self.network.named_parameters()}
        logits_B = functional_call(self.network, held, (code_BK,)).squeeze(1)
        return self.spec.weight * row_mean(fooling(logits_B))

    def learn(
        self, code_BK: Tensor, total: int, rng: Noise, group: ProcessGroup
    ) -> dict[str, Tensor]:
        """One step on these codes, of `total` rows on all workers; returns sums over this worker's rows.

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


@dataclass
class State:
    """Position, weights, optimizer, sums of the current epoch, best weights and history.

    `sums` belong to this worker; everything else is the same on every worker. `idle_K` counts the steps
    since each unit of a k-sparse code was last active; other codes have none. The discriminator of an
    adversary is trained with the model and not part of it. `sizes` has a step and the number of workers
    from it on, for each change.
    """

    module: AutoencoderModule
    optimizer: Optimizer
    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    best_error: float | None = None
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    idle_K: Tensor | None = None
    discriminator: Discriminator | None = None
    stopped: bool = False
    history: list[Record] = field(default_factory=list)
    sizes: list[list[int]] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, best weights and the optimizers' slots under flat names, on the CPU."""
        flat = {f"weights.{name}": value for name, value in self.module.state_dict().items()}
        flat |= {f"best.{name}": value for name, value in self.best_weights.items()}
        flat |= _slots("optimizer", self.optimizer)
        if self.discriminator is not None:
            network = self.discriminator.network.state_dict()
            flat |= {f"discriminator.{name}": value for name, value in network.items()}
            flat |= _slots("discriminator_optimizer", self.discriminator.optimizer)
        flat |= {} if self.idle_K is None else {"idle.steps": self.idle_K}
        return {name: value.detach().cpu().contiguous() for name, value in flat.items()}

    def position(self, group: ProcessGroup) -> dict[str, Any]:
        """Everything that is not a tensor, as JSON values; the sums of all workers in order of rank."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "epoch_step": self.epoch_step,
            "sums": group.share({name: value.item() for name, value in self.sums.items()}),
            "best_error": self.best_error,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "history": self.history,
            "sizes": self.sizes,
        }

    def restore(
        self, tensors: dict[str, Tensor], position: dict[str, Any], rank: int = 0, size: int = 1
    ) -> None:
        """Restore the state that `tensors()` and `position()` describe, on one of `size` workers.

        If there were more or fewer, the first takes the sums of all.
        """
        parts: dict[str, dict[str, Tensor]] = {
            "weights": {},
            "best": {},
            "optimizer": {},
            "discriminator": {},
            "discriminator_optimizer": {},
            "idle": {},
        }
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        self.module.load_state_dict(parts["weights"])
        self.best_weights = parts["best"]
        _load_slots(self.optimizer, parts["optimizer"])
        if self.discriminator is not None:
            self.discriminator.network.load_state_dict(parts["discriminator"])
            _load_slots(self.discriminator.optimizer, parts["discriminator_optimizer"])
        for name, value in position.items():
            setattr(self, name, value)
        device = next(self.module.parameters()).device
        idle_K = parts["idle"].get("steps")
        self.idle_K = None if idle_K is None else idle_K.to(device)
        self.sums = {
            name: torch.tensor(value, dtype=torch.float64, device=device)
            for name, value in _sums_of(position["sums"], rank, size).items()
        }


def _sums_of(every: Sequence[dict[str, float]], rank: int, size: int) -> dict[str, float]:
    """The sums of a worker among `size`, from those of the workers that committed."""
    if len(every) == size:
        return every[rank]
    names = dict.fromkeys(name for sums in every for name in sums)
    share = 0.0 if rank else 1.0
    return {name: share * sum(sums[name] for sums in every if name in sums) for name in names}


def _slots(part: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state of each weight, as `part.index.slot`."""
    weights = optimizer.state_dict()["state"].items()
    return {f"{part}.{i}.{slot}": value for i, slots in weights for slot, value in slots.items()}


def _load_slots(optimizer: Optimizer, flat: dict[str, Tensor]) -> None:
    """The inverse of `_slots`, with names `index.slot`."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        index, _, slot = name.partition(".")
        slots.setdefault(int(index), {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def fresh(module: AutoencoderModule, spec: TrainSpec) -> State:
    """The state before the first step."""
    rival = discriminator(module, spec.seed)
    return State(module, make_optimizer(module, spec), discriminator=rival)


def make_optimizer(module: torch.nn.Module, spec: TrainSpec) -> Optimizer:
    """The fused optimizer that `spec` names, with its peak learning rate."""
    chosen = spec.optimizer
    if chosen.kind == "sgd":
        return SGD(
            module.parameters(),
            lr=chosen.lr,
            momentum=chosen.momentum,
            nesterov=chosen.nesterov,
            weight_decay=chosen.weight_decay,
            fused=True,
        )
    betas = (chosen.beta1, chosen.beta2)
    if chosen.kind == "adamw":
        return AdamW(
            module.parameters(), chosen.lr, betas, weight_decay=chosen.weight_decay, fused=True
        )
    return Adam(module.parameters(), chosen.lr, betas, fused=True)


def discriminator(module: AutoencoderModule, seed: int) -> Discriminator | None:
    """The untrained discriminator of the model's adversary; None without an adversary."""
    spec, like = module.spec.adversary, next(module.parameters())
    if spec is None:
        return None
    with torch.random.fork_rng(devices=[]):  # leaves the caller's random state unchanged
        torch.manual_seed(2**31 + seed)  # beyond every seed of a model, so unlike the encoder's
        network = spec.build(module.spec.network.code_width)
    network.to(like.device, like.dtype)
    return Discriminator(spec, network, Adam(network.parameters(), spec.lr, fused=True))
