"""What members of a pack differ in: the numbers of their penalties, and the optimizers of their weights.

An update rule acts on each weight by itself, so a stack of members with one rule moves as each of them
would alone, in one pass.
Shapes: M members.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hourglass.config.train import TrainSpec
from hourglass.model.spec import ModelSpec
from hourglass.strict import Strict
from hourglass.training import loop, state
from hourglass.training.state import State

Numbers = list[dict[str, Tensor]]
"""The numbers of each penalty, by field: (M,) of all members, () of one."""
Memory = dict[int, dict[str, Tensor]]
"""The slots of an optimizer, by weight and name; one without dimensions counts steps."""


def numbers(part: Strict) -> dict[str, float]:
    """The fields of a part in which members of a pack may differ: those that are not whole."""
    return {name: value for name, value in part if isinstance(value, float)}


def stacked_numbers(specs: Sequence[ModelSpec], device: torch.device) -> Numbers:
    """The numbers of all members' penalties.

    In float64, as Python has them: rounded only where they meet the code, as in a single run.
    """
    each = [[numbers(penalty) for penalty in spec.penalties] for spec in specs]
    return [
        {
            name: torch.tensor([v[name] for v in values], dtype=torch.float64, device=device)
            for name in values[0]
        }
        for values in zip(*each, strict=True)
    ]


def with_numbers(spec: ModelSpec, values: Numbers) -> ModelSpec:
    """The spec with tensors for numbers, which only a copy that is not validated can have."""
    pairs = zip(spec.penalties, values, strict=True)
    penalties = tuple(penalty.model_copy(update=value) for penalty, value in pairs)
    return spec.model_copy(update={"penalties": penalties})


class Group:
    """Neighbours in a stack that have the update rule of `spec`, and the optimizer that moves them.

    `members` is their part of the stack, whose weights it changes in place; it continues from what the
    optimizers of `states` remember, and takes their place.
    """

    def __init__(
        self, members: slice, states: Sequence[State], spec: TrainSpec, weights: Iterable[Tensor]
    ) -> None:
        self.members = members
        self._spec = spec
        self._weights = nn.ParameterList(weight.detach()[members] for weight in weights)
        self._optimizer = state.make_optimizer(self._weights, spec)
        _remember(self._optimizer, _stacked([one.optimizer for one in states]))
        for one in states:
            one.optimizer = self._optimizer  # whose learning rate goes into the record
        self._clock = State(states[0].module, self._optimizer)

    def move(self, gradients: Sequence[Tensor], step: int, epoch_steps: int) -> None:
        """Take the step `step`, from 0; `gradients` are those of the whole stack."""
        self._clock.step = step
        loop.set_rate(self._clock, self._spec, epoch_steps * self._spec.epochs)
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient[self.members]
        self._optimizer.step()

    def release(self, index: int, member: State, spec: TrainSpec) -> None:
        """Give a member an optimizer of its own, with all that the common one remembers of it."""
        place = index - self.members.start
        every: Memory = self._optimizer.state_dict()["state"]
        memory = {
            weight: {n: (slot[place] if slot.dim() else slot).clone() for n, slot in slots.items()}
            for weight, slots in every.items()
        }
        member.optimizer = state.make_optimizer(member.module, spec)
        _remember(member.optimizer, memory)


def _stacked(optimizers: Sequence[Optimizer]) -> Memory:
    every = [optimizer.state_dict()["state"] for optimizer in optimizers]
    return {
        weight: {
            name: torch.stack([one[weight][name] for one in every]) if slot.dim() else slot.clone()
            for name, slot in slots.items()
        }
        for weight, slots in every[0].items()
    }


def _remember(optimizer: Optimizer, memory: Memory) -> None:
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": memory, "param_groups": groups})
