"""Boltzmann machines small enough to enumerate: every formula, and contrastive divergence itself."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from hourglass.model.noise import Noise
from hourglass.model.rbm import (
    Machine,
    Units,
    contrastive_divergence,
    drawn,
    energy,
    free_energy,
    hidden_mean,
    visible_mean,
)

V, H = 4, 3
ROWS = 100_000
CLOSE = 5 * 0.5 / math.sqrt(ROWS)
"""Five standard errors of a mean of ROWS values of sd 0.5, the largest that lie in [0, 1]."""


def machine(hidden: Units = "logistic", visible: Units = "logistic", seed: int = 3) -> Machine:
    rng = torch.Generator().manual_seed(seed)
    shapes = ((H, V), (H,), (V,))
    values = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes)
    return Machine(*values, hidden=hidden, visible=visible)


def states(units: int) -> Tensor:
    """All 2^units states."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=units)), dtype=torch.float64)


def joint(made: Machine) -> Tensor:
    """P(v, h) of all states, (2^V, 2^H), from the energy alone."""
    v, h = states(V), states(H)
    minus_e = torch.stack([-energy(made, v, one.expand(len(v), H)) for one in h], dim=1)
    return (minus_e - torch.logsumexp(minus_e.flatten(), 0)).exp()


def log_likelihood(made: Machine, rows: Tensor) -> Tensor:
    """Exact, mean over rows."""
    return -free_energy(made, rows).mean() - torch.logsumexp(-free_energy(made, states(V)), 0)


def close(found: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=atol)


def test_energy_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    v, h = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    made = Machine(weight, torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.4]))
    assert float(energy(made, v, h)) == pytest.approx(-0.3 - 0.2 - 0.5)


def test_free_energy_is_the_sum_over_hidden_states() -> None:
    made = machine()
    v, h = states(V), states(H)
    each = torch.stack([-energy(made, v, one.expand(len(v), H)) for one in h])
    close(free_energy(made, v), -torch.logsumexp(each, 0))


def test_conditionals_are_those_of_the_enumerated_joint() -> None:
    made, p = machine(), joint(machine())
    v, h = states(V), states(H)
    close(hidden_mean(made, v), (p @ h) / p.sum(dim=1, keepdim=True))
    close(visible_mean(made, h), (p.t() @ v) / p.sum(dim=0).unsqueeze(1))


def test_gaussian_visible_units_by_hand() -> None:
    """E = (v - a)^2 / 2 - b h - h w v with a = 0.5, b = -1, w = 2, at v = 1.5."""
    made = Machine(
        torch.tensor([[2.0]]), torch.tensor([-1.0]), torch.tensor([0.5]), visible="gaussian"
    )
    v, off, on = torch.tensor([[1.5]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])
    assert float(energy(made, v, off)) == pytest.approx(0.5)
    assert float(energy(made, v, on)) == pytest.approx(0.5 + 1.0 - 3.0)
    assert float(free_energy(made, v)) == pytest.approx(0.5 - math.log(1.0 + math.exp(2.0)))
    assert float(hidden_mean(made, v)) == pytest.approx(1.0 / (1.0 + math.exp(-2.0)))
    assert float(visible_mean(made, on)) == pytest.approx(2.5)
    assert float(visible_mean(made, off)) == pytest.approx(0.5)


def test_gaussian_hidden_units_are_integrated_out() -> None:
    """The free energy against a sum of exp(-E) over a fine grid of h, one unit."""
    full = machine(hidden="gaussian")
    made = full._replace(weight_HV=full.weight_HV[:1], hidden_H=full.hidden_H[:1])
    grid = torch.linspace(-30.0, 30.0, 60001, dtype=torch.float64).unsqueeze(1)
    for row in states(V):
        minus_e = -energy(made, row.expand(len(grid), V), grid)
        integral = torch.logsumexp(minus_e, 0) + math.log(1e-3)
        mean = (torch.softmax(minus_e, 0) * grid[:, 0]).sum()
        close(free_energy(made, row.unsqueeze(0))[0], -integral, 1e-9)
        close(hidden_mean(made, row.unsqueeze(0))[0, 0], mean, 1e-9)


@pytest.mark.parametrize("units", ["logistic", "gaussian"])
def test_draws_have_their_mean_and_variance(units: Units) -> None:
    mean = torch.tensor([[0.2, 0.9]], dtype=torch.float64).expand(ROWS, 2)
    found = drawn(units, mean, Noise().seed(1))
    close(found.mean(dim=0), mean[0], 2 * CLOSE)
    variance = mean[0] * (1 - mean[0]) if units == "logistic" else torch.ones_like(mean[0])
    close(found.var(dim=0), variance, 4 * CLOSE)


DATA = torch.tensor(
    [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]],
    dtype=torch.float64,
)


def exact_gradient(made: Machine, rows: Tensor) -> list[Tensor]:
    """Of the mean log-likelihood, by enumeration: the rows' expectations minus the machine's."""
    v, h, p = states(V), states(H), joint(made)
    of_rows = hidden_mean(made, rows)
    weight = of_rows.t() @ rows / len(rows) - h.t() @ p.t() @ v
    hidden = of_rows.mean(dim=0) - p.sum(dim=0) @ h
    return [weight, hidden, rows.mean(dim=0) - p.sum(dim=1) @ v]


def test_the_enumerated_gradient_is_autograds() -> None:
    leaves = [part.clone().requires_grad_() for part in machine()[:3]]
    gradients = torch.autograd.grad(log_likelihood(Machine(*leaves), DATA), leaves)
    for found, expected in zip(exact_gradient(machine(), DATA), gradients, strict=True):
        close(found, expected)


def test_the_rows_part_is_exact() -> None:
    """With the chain's end known (huge biases: every draw is 1), rows minus chain leaves the rows."""
    shapes = ((0.0, (H, V)), (0.3, (H,)), (100.0, (V,)))
    made = Machine(*(torch.full(shape, value, dtype=torch.float64) for value, shape in shapes))
    found = contrastive_divergence(made, DATA, 1, Noise().seed(0))
    p, n = 1.0 / (1.0 + math.exp(-0.3)), len(DATA)
    close(found.weight_HV, (p * (DATA.sum(dim=0) - n)).expand(H, V))
    close(found.hidden_H, torch.zeros(H, dtype=torch.float64))
    close(found.visible_V, DATA.sum(dim=0) - n)
    close(found.error_B, (1.0 - DATA).mean(dim=1))


def test_the_rows_part_is_that_of_probabilities() -> None:
    """Two batches that share a chain differ by their rows' expectations and by nothing else."""
    made, first, second = machine(), DATA[:3], DATA[3:]
    # Nothing of the chain depends on the rows when no hidden unit sees them.
    blind = made._replace(weight_HV=torch.zeros_like(made.weight_HV))
    one, other = (
        contrastive_divergence(blind, rows, 3, Noise().seed(4)) for rows in (first, second)
    )
    expected = hidden_mean(blind, first).t() @ first - hidden_mean(blind, second).t() @ second
    close(one.weight_HV - other.weight_HV, expected)


def cd_mean(rows: Tensor, k: int) -> list[Tensor]:
    found = contrastive_divergence(machine(), rows, k, Noise().seed(6))
    return [part / len(rows) for part in found[:3]]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def test_a_long_chain_gives_the_gradient_of_the_likelihood() -> None:
    """CD-60 of ROWS copies is the exact gradient within five standard errors; CD-1 is not."""
    many = DATA.repeat(-(-ROWS // len(DATA)), 1)
    expected = exact_gradient(machine(), DATA)
    assert distance(cd_mean(many, 60), expected) < CLOSE
    assert distance(cd_mean(many, 1), expected) > 2 * CLOSE


@pytest.mark.parametrize("k", [1, 20])
def test_at_the_machines_own_distribution_nothing_moves(k: int) -> None:
    """Rows drawn exactly from the machine: rows and chain agree in expectation, for any k."""
    p_v = joint(machine()).sum(dim=1)
    picked = torch.multinomial(p_v, ROWS, True, generator=torch.Generator().manual_seed(2))
    rows = states(V)[picked]
    zero = [torch.zeros_like(part) for part in machine()[:3]]
    assert distance(cd_mean(rows, k), zero) < 2 * CLOSE  # rows and chain each have their error


def test_training_raises_the_likelihood() -> None:
    """Exact log-likelihood of six rows, from that of fair coins to near its bound."""
    rng = Noise().seed(0)
    made = Machine(*(0.01 * part for part in machine()[:3]))
    curve = [float(log_likelihood(made, DATA))]
    for _ in range(20):
        for _ in range(100):
            found = contrastive_divergence(made, DATA, 1, rng)
            for value, gradient in zip(made[:3], found[:3], strict=True):
                value.add_(gradient / len(DATA), alpha=0.1)
        curve.append(float(log_likelihood(made, DATA)))
    counts = torch.unique(DATA, dim=0, return_counts=True)[1] / len(DATA)
    best = float((counts * counts.log()).sum())
    assert curve[0] == pytest.approx(-V * math.log(2.0), abs=0.02)
    assert best > curve[-1] > curve[0] + 0.8
    assert curve[5] > curve[0] + 0.3
    assert sum(b < a - 0.1 for a, b in itertools.pairwise(curve)) <= 1
