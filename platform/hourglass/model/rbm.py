"""Restricted Boltzmann machines: energies, conditionals, and the statistics of contrastive divergence.

Two layers of units, each logistic (0 or 1) or gaussian (real, variance 1), and no weights inside a
layer. Source: Hinton 2002, "Training products of experts by minimizing contrastive divergence";
Hinton 2010, "A practical guide to training restricted Boltzmann machines".
Shapes: B rows, V visible units, H hidden units.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hourglass.model.noise import Noise

Units = Literal["logistic", "gaussian"]


class Machine(NamedTuple):
    """Weights (H, V) and biases, as an encoder's layer has them, and what the units are."""

    weight_HV: Tensor
    hidden_H: Tensor
    visible_V: Tensor
    hidden: Units = "logistic"
    visible: Units = "logistic"


class Statistics(NamedTuple):
    """Rows minus chain, summed over rows: the gradient of each parameter; and each row's error."""

    weight_HV: Tensor
    hidden_H: Tensor
    visible_V: Tensor
    error_B: Tensor


def energy(machine: Machine, visible_BV: Tensor, hidden_BH: Tensor) -> Tensor:
    """E(v, h) = v's own + h's own - h W v, shape (B,); for a unit's own see `_own`.

    Source: Hinton 2010, sections 2, 13.2 and 13.3.
    """
    own_B = _own(machine.visible, visible_BV, machine.visible_V)
    own_B = own_B + _own(machine.hidden, hidden_BH, machine.hidden_H)
    return own_B - (hidden_BH * (visible_BV @ machine.weight_HV.t())).sum(dim=1)


def free_energy(machine: Machine, visible_BV: Tensor) -> Tensor:
    """-log of the sum (integral) over h of exp(-E(v, h)), shape (B,).

    Source: Hinton 2010, section 16.1; for gaussian hidden units the integral of a normal density.
    """
    field_BH = visible_BV @ machine.weight_HV.t()
    own_B = _own(machine.visible, visible_BV, machine.visible_V)
    if machine.hidden == "logistic":
        return own_B - functional.softplus(field_BH + machine.hidden_H).sum(dim=1)
    log_BH = field_BH * (0.5 * field_BH + machine.hidden_H) + 0.5 * math.log(2.0 * math.pi)
    return own_B - log_BH.sum(dim=1)


def hidden_mean(machine: Machine, visible_BV: Tensor) -> Tensor:
    """E(h | v), (B, H): the probability of 1 where logistic. Source: Hinton 2010, section 2."""
    return _mean(machine.hidden, functional.linear(visible_BV, machine.weight_HV, machine.hidden_H))


def visible_mean(machine: Machine, hidden_BH: Tensor) -> Tensor:
    """E(v | h), (B, V): the probability of 1 where logistic. Source: Hinton 2010, section 2."""
    field_BV = functional.linear(hidden_BH, machine.weight_HV.t(), machine.visible_V)
    return _mean(machine.visible, field_BV)


def contrastive_divergence(machine: Machine, visible_BV: Tensor, k: int, rng: Noise) -> Statistics:
    """CD-k: the rows' statistics minus those after `k` steps of a Gibbs chain that starts there.

    Means stand for hidden states on both sides, which has the same expectation and less noise; the
    chain itself moves by draws of both layers, so that with `k` it comes to the likelihood's own
    gradient. The error is the squared distance of the row from the mean of its first
    reconstruction, mean over units. Source: Hinton 2010, sections 3.1 to 3.3.
    """
    rows_BH = hidden_mean(machine, visible_BV)
    mean_BV = visible_mean(machine, drawn(machine.hidden, rows_BH, rng))
    error_B = (visible_BV - mean_BV).square().mean(dim=1)
    for _ in range(k - 1):
        hidden_BH = hidden_mean(machine, drawn(machine.visible, mean_BV, rng))
        mean_BV = visible_mean(machine, drawn(machine.hidden, hidden_BH, rng))
    chain_BV = drawn(machine.visible, mean_BV, rng)
    chain_BH = hidden_mean(machine, chain_BV)
    return Statistics(
        rows_BH.t() @ visible_BV - chain_BH.t() @ chain_BV,
        (rows_BH - chain_BH).sum(dim=0),
        (visible_BV - chain_BV).sum(dim=0),
        error_B,
    )


def drawn(units: Units, mean: Tensor, rng: Noise) -> Tensor:
    """States of units with these means: 0 or 1, or the mean with noise of variance 1."""
    if units == "logistic":  # not torch.bernoulli, which throws at a NaN on one worker alone
        return (rng.uniform(*mean.shape, dtype=mean.dtype) < mean).to(mean.dtype)
    return mean + rng.normal(*mean.shape, dtype=mean.dtype)


def _own(units: Units, states: Tensor, bias: Tensor) -> Tensor:
    """The energy of units without the others, (B,): -b s, or (s - b)^2 / 2."""
    return -(states @ bias) if units == "logistic" else 0.5 * (states - bias).square().sum(dim=1)


def _mean(units: Units, field: Tensor) -> Tensor:
    return torch.sigmoid(field) if units == "logistic" else field
