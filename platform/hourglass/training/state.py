"""Everything a run needs to go on as if it had never stopped, and nothing else.

There is no random state: weights come from the seed, row order and noise are functions of
(seed, epoch, step, worker).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from hourglass.config.train import TrainSpec
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.training.adversary import Discriminator, discriminator
from hourglass.training.collective import ProcessGroup

Record = dict[str, float]


@dataclass
class State:
    """Position, weights, optimizer, sums of the epoch so far, best weights and history.

    `sums` are this worker's own; everything else is the same on every worker. `idle_K` are the steps
    since each unit of a k-sparse code was active; other codes have none. A model with an adversary
    has a discriminator, which is trained beside it and not part of it.
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
        """All the rest as JSON values; the sums of every worker, in order of rank."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "epoch_step": self.epoch_step,
            "sums": group.share({name: value.item() for name, value in self.sums.items()}),
            "best_error": self.best_error,
            "best_epoch": self.best_epoch,
            "stopped": self.stopped,
            "history": self.history,
        }

    def restore(self, tensors: dict[str, Tensor], position: dict[str, Any], rank: int = 0) -> None:
        """Become the state that `tensors()` and `position()` describe, on the worker `rank`."""
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
            for name, value in position["sums"][rank].items()
        }


def _slots(part: str, optimizer: Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers of each weight, as `part.index.slot`."""
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
    """The optimizer that `spec` names, at its peak rate; one fused pass over the weights."""
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
