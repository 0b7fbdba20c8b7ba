"""The sensitivity check: before a run starts, every hyperparameter of its model is changed once.

These are the numbers of the corruption, code, loss, penalties and adversary, the trim and the dropout. One
has an effect when another value of it changes a loss term or a gradient on two batches of the run's own
rows; a run with one that has none is refused.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from hourglass.data.loader import Batch, Loader
from hourglass.errors import SpecError, TrainingError
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.noise import Noise
from hourglass.model.part import numbers
from hourglass.model.spec import ModelSpec
from hourglass.training.collective import SingleProcessGroup
from hourglass.training.state import Discriminator, discriminator
from hourglass.training.step import loss_terms

BATCHES = 2
Sensitivity = list[dict[str, Any]]


def check_sensitivity(
    module: AutoencoderModule, loader: Loader, device: torch.device
) -> Sensitivity:
    """For each hyperparameter: its value, the one tried, and how far loss terms and gradients moved.

    `module` is left unchanged. Raises: SpecError naming every hyperparameter without effect.
    """
    chosen = list(_hyperparameters(module.spec))
    if not chosen:
        return []
    batches = list(islice(loader.train(0), BATCHES))
    idle_K = _idle(module.spec, device)
    usual = _response(module, module.spec, batches, idle_K)
    found: Sensitivity = []
    for path, value in chosen:
        tried, moved = None, 0.0
        for other, spec in _changed(module.spec, path, value):
            response = _response(module, spec, batches, idle_K)
            tried, moved = other, float((response - usual).norm() / usual.norm().clamp_min(1e-30))
            if moved:
                break
        name = f"model.{path}"
        found.append({"hyperparameter": name, "value": value, "tried": tried, "moved": moved})
    dead = [one for one in found if one["tried"] is not None and one["moved"] == 0.0]
    if dead:
        raise SpecError(
            "\n".join(
                f"{one['hyperparameter']}: {one['value']} does nothing: with {one['tried']} two "
                "batches of rows give the same losses and gradients; remove the part, or choose a "
                "value that acts on these rows"
                for one in dead
            )
        )
    return found


def _hyperparameters(spec: ModelSpec) -> Iterator[tuple[str, float]]:
    """Dotted path and value of every number that acts in training."""
    adversary = numbers(spec.adversary) if spec.adversary is not None else {}
    for place, found in (
        ("corruption", spec.corruption.hyperparameters()),
        ("code", spec.code.hyperparameters()),
        ("loss", spec.loss.hyperparameters()),
        *((f"penalties.{at}", one.hyperparameters()) for at, one in enumerate(spec.penalties)),
        ("adversary", adversary),
        ("network", spec.network.hyperparameters()),
    ):
        yield from ((f"{place}.{path}", value) for path, value in found.items())
    if spec.trim:
        yield "trim", spec.trim


def _changed(spec: ModelSpec, path: str, value: float) -> Iterator[tuple[float, ModelSpec]]:
    """Other valid values of the hyperparameter, up and down, each with the spec that has it."""
    whole = isinstance(value, int)
    nearby = (value + 1, value - 1) if whole else (value + 0.5, value * 2.0, value / 2.0)
    for other in nearby:
        tree = spec.model_dump(mode="json")
        *steps, last = path.split(".")
        place: Any = tree
        for step in steps:
            place = place[int(step)] if isinstance(place, list) else place[step]
        place[int(last) if isinstance(place, list) else last] = other
        with suppress(ValidationError):  # not a valid value
            yield other, ModelSpec.model_validate(tree)


def _idle(spec: ModelSpec, device: torch.device) -> Tensor:
    """Every second unit is taken as dead: what revives dead units would have nothing to do yet."""
    idle_K = torch.zeros(spec.network.code_width, device=device)
    idle_K[::2] = max((penalty.dead_after for penalty in spec.penalties), default=0)
    return idle_K


def _response(
    module: AutoencoderModule, spec: ModelSpec, batches: Sequence[Batch], idle_K: Tensor
) -> Tensor:
    """Every loss term and gradient of the batches, in one vector, with the noise of one seed.

    A discriminator learns from each batch and is evaluated again: its learning rate acts there.
    """
    twin = copy.deepcopy(module).train()  # batch norm updates its statistics
    twin.spec = spec
    if spec.network != module.spec.network:  # a module reads its numbers once
        units = spec.code.pre_units(spec.network.code_width)
        twin.network = spec.network.build(len(module.preprocessing.kept_F), units).to(idle_K.device)
        twin.network.load_state_dict(module.network.state_dict())
    parts: list[Tensor] = []
    rival = discriminator(twin, 0)
    for step, batch in enumerate(batches):
        rng = Noise(idle_K.device).seed(step)
        alone = Batch(batch.rows, len(batch.rows))
        terms, result = loss_terms(
            twin, twin, alone, step, rng, SingleProcessGroup(), idle_K, rival
        )
        values = torch.stack(list(terms.values()))
        gradients = torch.autograd.grad(values.sum(), list(twin.parameters()), allow_unused=True)
        parts += [values.detach(), *(g.flatten() for g in gradients if g is not None)]
        if rival is not None:
            parts.append(_adversarial(rival, result.code_BK.detach(), rng))
    return torch.cat([part.double() for part in parts])


def _adversarial(rival: Discriminator, code_BK: Tensor, rng: Noise) -> Tensor:
    """Loss and accuracy of a discriminator that learns from these codes, and its term after that."""
    try:
        sums = rival.learn(code_BK, len(code_BK), rng, SingleProcessGroup())
    except TrainingError:  # raised again by the run itself, on every worker
        return torch.full((3,), torch.nan, device=code_BK.device)
    return torch.stack([*sums.values(), rival.term(code_BK, torch.mean)])
