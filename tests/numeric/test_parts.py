"""Every part of a model against hand numbers or NumPy, its gradient, and its hyperparameters.

A new part joins with a row in the table of its slot; `test_every_part_has_a_row` asks for it.
"""

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from hourglass.model.activations import FUNCTIONS, RANGES, Activation
from hourglass.model.adversary import Gaussian, Mixture, Prior, Uniform, fooling, telling
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.code import BatchTopK, Code, GaussianPosterior, NoisyCode, Plain, TopK
from hourglass.model.corruption import (
    CauchyNoise,
    Corruption,
    GaussianNoise,
    NoCorruption,
    Ones,
    SaltPepper,
    Zeros,
)
from hourglass.model.dense import Dense
from hourglass.model.losses import Bce, Correntropy, Huber, Loss, Mae, Mse
from hourglass.model.noise import Noise
from hourglass.model.part import ForwardOutput, PenaltyContext
from hourglass.model.penalties import (
    AuxK,
    CodeL1,
    CodeL2,
    Contractive,
    KlPrior,
    Nested,
    Penalty,
    SparsityKl,
    WeightsL1,
    WeightsL2,
)
from hourglass.model.preprocessing import ColumnStats, Preprocessing, Standard
from hourglass.model.spec import ModelSpec

LN2, LN3 = math.log(2.0), math.log(3.0)


def mean(x: Tensor) -> Tensor:
    return x.mean(dim=0)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(seed: int = 1) -> Noise:
    return Noise().seed(seed)


# Losses: part, output, pre-activation, clean row, value of each row.
LOSSES: list[tuple[Any, Any, Any, Any, list[float]]] = [
    (Mse(), [[1, 2], [3, 5]], [[0, 0], [0, 0]], [[0, 2], [1, 1]], [0.5, 10.0]),
    (Mse(), [[1e4, -1e4]], [[0, 0]], [[0, 0]], [1e8]),
    (Bce(), [[0, 0]], [[0, LN3]], [[1, 0]], [1.5 * LN2]),
    (Bce(), [[0, 0]], [[0, 0]], [[0.5, 0.25]], [LN2]),
    (Bce(), [[0, 0], [0, 0]], [[1e4, -1e4], [1e4, -1e4]], [[1, 0], [0, 1]], [0.0, 1e4]),
    (Mae(), [[1, 2], [3, 5]], [[0, 0], [0, 0]], [[0, 4], [1, 1]], [1.5, 3.0]),
    (Mae(), [[1e30, -1e30]], [[0, 0]], [[0, 0]], [1e30]),
    (Huber(delta=1), [[0.5, 3.0]], [[0, 0]], [[0, 0]], [(0.125 + 2.5) / 2]),
    (Huber(delta=2), [[0.5, 3.0]], [[0, 0]], [[0, 0]], [(0.125 + 4.0) / 2]),
    (Huber(delta=2), [[1e30, 0.0]], [[0, 0]], [[0, 0]], [1e30]),
    (Correntropy(sigma=1), [[math.sqrt(2 * LN2), 0.0]], [[0, 0]], [[0, 0]], [0.25]),
    (Correntropy(sigma=2), [[math.sqrt(8 * LN3), 0.0]], [[0, 0]], [[0, 0]], [1 / 3]),
    (Correntropy(sigma=0.2), [[1e4, -1e4]], [[0, 0]], [[0, 0]], [1.0]),
]


class Encoder:
    """An encoder of given weights, as a penalty sees one."""

    def __init__(self, *layers: Any) -> None:
        weights = [torch.as_tensor(layer, dtype=torch.float64) for layer in layers]
        self.layers = [w if w.requires_grad else w.requires_grad_() for w in weights]

    def pre_of(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.tanh(x @ layer.t())
        return x @ self.layers[-1].t()

    def code_from(self, pre: Tensor) -> Tensor:
        return torch.tanh(pre)

    def losses_from(self, code: Tensor, clean: Tensor) -> Tensor:
        """As a decoder that adds the units up would have them."""
        return (code.sum(dim=1, keepdim=True) - clean).square().mean(dim=1)

    def activated(self, pre: Tensor) -> Tensor:
        return torch.tanh(pre)

    def output_with(self, pre: Tensor, extra: Tensor) -> Tensor:
        return pre + extra @ torch.tensor([[2.0], [4.0]], dtype=torch.float64)

    def matrices(self) -> list[Tensor]:
        return self.layers

    def only_layer(self) -> Tensor | None:
        return self.layers[0] if len(self.layers) == 1 else None


HALVES = [[math.atanh(0.5), math.atanh(0.75)]]
WEIGHTS = [[0.5, -1.0, 2.0], [1.5, 0.0, -0.5]]


def context_of(
    code: Any = ((0.0,),),
    low: float = 0.0,
    *,
    pre: Any = ((0.0, 0.0),),
    rows: Any = ((0.0,),),
    coder: Any = None,
    step: int = 0,
    idle: Any = (0.0, 0.0),
) -> PenaltyContext:
    """What one worker alone shows a penalty."""
    clean, pre, code = (torch.as_tensor(x, dtype=torch.float64) for x in (rows, pre, code))
    result = ForwardOutput(clean, pre, code, clean, clean)
    coder = coder or Encoder(WEIGHTS)
    return PenaltyContext(
        result, coder, low, step, torch.tensor(idle), noise(), lambda values: values.mean(), mean
    )


# Penalties: part, what it sees, value. The first field after `kind` that is a weight scales it.
PENALTIES: list[tuple[Any, PenaltyContext, float]] = [
    (SparsityKl(rho=0.5, beta=2), context_of([[0.25], [0.25]]), math.log(4 / 3)),
    (SparsityKl(rho=0.5, beta=2), context_of([[0.0, 1.0], [0.5, 0.5]]), 2 * math.log(4 / 3)),
    (SparsityKl(rho=0.0, beta=2), context_of([[-1.0], [0.0]], -1.0), math.log(4 / 3)),
    (SparsityKl(rho=-0.5, beta=1), context_of([[-0.5, -0.5]], -1.0), 0.0),
    (
        SparsityKl(rho=0.05, beta=3),
        context_of([[0.2], [0.4]]),
        3 * (0.05 * math.log(0.05 / 0.3) + 0.95 * math.log(0.95 / 0.7)),
    ),
    # A dead unit: the mean is held at 1e-6, so the penalty is large but finite.
    (
        SparsityKl(rho=0.5, beta=1),
        context_of([[0.0], [0.0]]),
        0.5 * math.log(0.5 / 1e-6) + 0.5 * math.log(0.5 / (1 - 1e-6)),
    ),
    (CodeL1(weight=0.1), context_of([[1.0, -2.0], [0.5, 0.0]]), 0.1 * (3.0 + 0.5) / 2),
    (CodeL2(weight=0.1), context_of([[1.0, -2.0], [0.5, 0.0]]), 0.1 * (5.0 + 0.25) / 2),
    (WeightsL1(weight=0.1), context_of(), 0.1 * 5.5),
    (WeightsL2(weight=0.1), context_of(), 0.1 * (0.25 + 1 + 4 + 2.25 + 0.25)),
    # At 0 the slope of tanh is 1: the squared weights themselves.
    (Contractive(weight=0.1), context_of(rows=[[0.0, 0.0, 0.0]]), 0.1 * 7.75),
    # One pre-activation is atanh(0.5), where the slope is 1 - 0.25; the other is 0.
    (
        Contractive(weight=2),
        context_of(rows=[[2 * math.atanh(0.5)]], coder=Encoder([[0.5], [0.0]])),
        2 * 0.75**2 * 0.25,
    ),
    (Nested(widths=(1,), weight=0.5), context_of([[1.0, 5.0]], rows=[[3.0]]), 0.5 * 4.0),
    (Nested(widths=(1, 2)), context_of([[1.0, 5.0, 9.0]], rows=[[3.0]]), (4.0 + 9.0) / 2),
    # tanh of the pre-activations is 1/2 and 3/4; the decoder makes 1 and 3 of them.
    (AuxK(weight=0.5), context_of(pre=HALVES, rows=[[3.0]]), 0.0),
    (AuxK(weight=0.5), context_of(pre=HALVES, rows=[[3.0]], idle=[100.0, 99.0]), 0.5 * 1.0),
    (AuxK(weight=0.5), context_of(pre=HALVES, rows=[[3.0]], idle=[99.0, 100.0]), 0.5 * 9.0),
    (AuxK(weight=0.5), context_of(pre=HALVES, rows=[[3.0]], idle=[100.0, 500.0]), 0.5 * 16.0),
    (AuxK(weight=0.5, k=1), context_of(pre=HALVES, rows=[[3.0]], idle=[100.0, 500.0]), 0.5 * 9.0),
    (
        KlPrior(beta=3),
        context_of(pre=[[0.0, 2.0, 0.0, math.log(4.0)]]),
        1.5 * (4 + 4 - 1 - 2 * LN2),
    ),
    (KlPrior(beta=3), context_of(pre=[[0.0, 0.0], [1.0, 0.0]]), 3 * 0.5 * 0.5),
    (KlPrior(beta=3, warmup_steps=4), context_of(pre=[[1.0, 0.0]], step=1), 2 / 5 * 3 * 0.5),
    (KlPrior(beta=1), context_of(pre=[[0.0, 1e6]]), 0.5 * (math.exp(20.0) - 1 - 20)),
]

# Corruptions: part, share of cells that change, check of what the changed cells are.
LOW, HIGH = -3.0, 7.0
CORRUPTIONS: list[tuple[Any, float, Callable[[np.ndarray, np.ndarray], None]]] = [
    (NoCorruption(), 0.0, lambda clean, corrupted: None),
    (Zeros(p=0.3), 0.3, lambda clean, corrupted: np.testing.assert_array_equal(corrupted, 0.0)),
    (SaltPepper(p=0.4), 0.4, lambda clean, corrupted: salt_and_pepper(corrupted)),
    (GaussianNoise(sd=0.5), 1.0, lambda clean, corrupted: normal(corrupted - clean, 0.5)),
    (Ones(p=0.3), 0.3, lambda clean, corrupted: np.testing.assert_array_equal(corrupted, HIGH)),
    (CauchyNoise(scale=0.5), 1.0, lambda clean, corrupted: cauchy(corrupted - clean, 0.5)),
]


def cauchy(noise: np.ndarray, scale: float) -> None:
    """Half of the draws within the scale, and the share beyond any bound as the quantiles say."""
    assert np.mean(np.abs(noise) < scale) == pytest.approx(0.5, abs=0.01)
    assert np.mean(np.abs(noise) > 10 * scale) == pytest.approx(0.0635, abs=0.005)
    assert np.isfinite(noise).all()


def salt_and_pepper(corrupted: np.ndarray) -> None:
    assert set(np.unique(corrupted)) == {LOW, HIGH}
    assert np.mean(corrupted == HIGH) == pytest.approx(0.5, abs=0.01)


def normal(noise: np.ndarray, sd: float) -> None:
    assert noise.mean() == pytest.approx(0.0, abs=0.01)
    assert noise.std() == pytest.approx(sd, rel=0.01)
    assert np.mean(np.abs(noise) < sd) == pytest.approx(0.6827, abs=0.01)


# Code parts, and the noise they add before the activation.
CODES: list[tuple[Any, float]] = [
    (Plain(), 0.0),
    (TopK(k=400), 0.0),
    (BatchTopK(k=400), 0.0),
    (NoisyCode(sd=2.0), 2.0),
    (GaussianPosterior(), 0.5),
]

erf = np.vectorize(math.erf)


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return (1 + erf(x / math.sqrt(2))) / 2


def at(centres: list[float], sd: float) -> Callable[[np.ndarray], np.ndarray]:
    """The distribution function of one unit of a mixture."""
    return lambda x: np.mean([normal_cdf((x - c) / sd) for c in centres], axis=0)


# Priors: part, and for each unit its mean, its standard deviation, its distribution function.
PRIORS: list[tuple[Any, list[tuple[float, float, Any]]]] = [
    (Gaussian(), [(0.0, 1.0, normal_cdf)] * 3),
    (Gaussian(sd=2.5), [(0.0, 2.5, lambda x: normal_cdf(x / 2.5))]),
    (Uniform(), [(0.0, 2 / math.sqrt(12), lambda x: (x.clip(-1, 1) + 1) / 2)] * 2),
    (Uniform(low=1, high=4), [(2.5, 3 / math.sqrt(12), lambda x: (x.clip(1, 4) - 1) / 3)]),
    (
        Mixture(components=3, radius=2, sd=0.5),
        [(0.0, math.sqrt(8 / 3 + 0.25), at([-2, 0, 2], 0.5))],
    ),
    (
        Mixture(components=4, radius=2, sd=0.5),
        [(0.0, math.sqrt(2 + 0.25), at([2, 0, -2, 0], 0.5))] * 2 + [(0.0, 0.5, at([0], 0.5))] * 2,
    ),
]

# Activations: value by NumPy.
ACTIVATIONS: dict[Activation, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
    "gelu": lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
}


def named(table: list[Any]) -> list[Any]:
    return [pytest.param(*row, id=f"{row[0].kind}-{i}") for i, row in enumerate(table)]


def kinds(slot: Any) -> set[str]:
    """The kinds of a slot: of an annotated union, or of its only part."""
    arms = get_args(get_args(slot)[0]) if get_args(slot) else (slot,)
    return {arm.model_fields["kind"].default for arm in arms}


@pytest.mark.parametrize(
    ("slot", "table"),
    [
        (Loss, LOSSES),
        (Penalty, PENALTIES),
        (Corruption, CORRUPTIONS),
        (Code, CODES),
        (Prior, PRIORS),
    ],
)
def test_every_part_has_a_row(slot: Any, table: list[Any]) -> None:
    assert {row[0].kind for row in table} == kinds(slot)


def test_every_activation_has_a_row() -> None:
    assert set(ACTIVATIONS) == set(FUNCTIONS) == set(get_args(Activation))


@pytest.mark.parametrize(("part", "output", "pre", "clean", "expected"), named(LOSSES))
def test_loss_value_and_gradient(
    part: Any, output: Any, pre: Any, clean: Any, expected: list[float]
) -> None:
    output, pre, clean = (torch.tensor(x, dtype=torch.float64) for x in (output, pre, clean))
    np.testing.assert_allclose(part.per_row(output, pre, clean), expected, rtol=1e-12, atol=1e-12)
    single = part.per_row(output.float(), pre.float(), clean.float())
    np.testing.assert_allclose(single, expected, rtol=1e-6)
    inputs = [(x / max(1.0, float(x.abs().max()))).requires_grad_() for x in (output, pre)]
    assert torch.autograd.gradcheck(lambda o, p: part.per_row(o, p, clean), inputs)


def test_bce_is_the_cross_entropy_of_the_logistic() -> None:
    rng = np.random.default_rng(0)
    pre, clean = rng.normal(0, 3, (20, 9)), rng.random((20, 9))
    p = 1 / (1 + np.exp(-pre))
    expected = -(clean * np.log(p) + (1 - clean) * np.log(1 - p)).mean(axis=1)
    found = Bce().per_row(torch.zeros(20, 9), torch.from_numpy(pre), torch.from_numpy(clean))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize(("part", "context", "expected"), named(PENALTIES))
def test_penalty_value_and_weight(part: Any, context: PenaltyContext, expected: float) -> None:
    assert part.value(context).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    name = "beta" if "beta" in type(part).model_fields else "weight"
    heavier = type(part).model_validate(part.model_dump() | {name: 10 * getattr(part, name)})
    assert heavier.value(context).item() == pytest.approx(10 * expected, abs=1e-12)


@pytest.mark.parametrize(("part", "context", "expected"), named(PENALTIES))
def test_penalty_gradient(part: Any, context: PenaltyContext, expected: float) -> None:
    """By finite differences: of the code, of the posterior, of the encoder's weights."""

    def value(code: Tensor, pre: Tensor, *layers: Tensor) -> Tensor:
        result = context.result._replace(code_BK=code, pre_BP=pre)
        return part.value(context._replace(result=result, coder=Encoder(*layers)))

    inside = 0.6 * context.result.code_BK + 0.1
    pre = context.result.pre_BP.clamp(-3, 3)
    inputs = [
        torch.where(x == 0, 0.01, x).detach().requires_grad_()
        for x in (inside, pre, *context.coder.layers)
    ]
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("coder", [Encoder(WEIGHTS), Encoder(WEIGHTS, [[1.0, -2.0], [0.5, 0.3]])])
def test_contractive_is_the_norm_of_autograds_jacobian(coder: Encoder) -> None:
    """Closed form for one layer, unit by unit for two, and the mean of many random probes."""
    rows = torch.randn((4, 3), generator=seeded(3), dtype=torch.float64)
    context = context_of(rows=rows, coder=coder)

    def code(row: Tensor) -> Tensor:
        return coder.code_from(coder.pre_of(row[None]))[0]

    jacobians = [torch.autograd.functional.jacobian(code, row) for row in rows]
    expected = float(torch.stack([j.square().sum() for j in jacobians]).mean())
    assert Contractive(weight=1).value(context).item() == pytest.approx(expected, rel=1e-12)
    if coder.only_layer() is None:
        probed = Contractive(weight=1, probes=4000).value(context).item()
        assert probed == pytest.approx(expected, rel=0.05)
        assert probed != expected


def test_kl_prior_is_torch_distributions() -> None:
    pre = torch.randn((6, 10), generator=seeded(2), dtype=torch.float64)
    ours = torch.distributions.Normal(pre[:, :5], (0.5 * pre[:, 5:]).exp())
    prior = torch.distributions.Normal(torch.tensor(0.0).double(), 1.0)
    expected = torch.distributions.kl_divergence(ours, prior).sum(dim=1).mean()
    found = KlPrior(beta=1).value(context_of(pre=pre))
    assert float(found) == pytest.approx(float(expected), rel=1e-12)


def test_sparsity_pulls_the_mean_activation_to_rho() -> None:
    """rho is alive: descending the penalty alone brings every unit's mean to rho."""
    for low, rho in ((0.0, 0.05), (-1.0, -0.8)):
        part = SparsityKl(rho=rho, beta=1.0)
        pre = torch.randn(64, 5, dtype=torch.float64, generator=seeded(), requires_grad=True)
        squash = torch.sigmoid if low == 0.0 else torch.tanh
        optimizer = torch.optim.Adam([pre], lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            part.value(context_of(squash(pre), low)).backward()
            optimizer.step()
        np.testing.assert_allclose(squash(pre).mean(dim=0).detach(), rho, atol=1e-3)


@pytest.mark.parametrize(("part", "share", "check"), named(CORRUPTIONS))
def test_corruption_share_values_seed_and_gradient(
    part: Any, share: float, check: Callable[[np.ndarray, np.ndarray], None]
) -> None:
    clean = torch.rand((200, 500), generator=seeded(9)) + 1.0  # never LOW, HIGH or 0
    bounds = torch.full((500,), LOW), torch.full((500,), HIGH)
    corrupted = part.corrupt(clean, *bounds, noise())
    changed = (corrupted != clean).numpy()
    assert changed.mean() == pytest.approx(share, abs=0.006)  # 4 standard deviations
    check(clean.numpy()[changed], corrupted.numpy()[changed])
    assert torch.equal(corrupted, part.corrupt(clean, *bounds, noise()))
    assert torch.equal(corrupted, part.corrupt(clean, *bounds, noise(2))) == (share == 0.0)
    small = clean[:3, :4].double().requires_grad_()
    few = bounds[0][:4], bounds[1][:4]
    assert part.corrupt(small, *few, noise()).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: part.corrupt(x, *few, noise()), [small])


@pytest.mark.parametrize(
    ("weak", "strong", "ratio"),
    [
        (Zeros(p=0.1), Zeros(p=0.4), 4.0),
        (SaltPepper(p=0.1), SaltPepper(p=0.4), 4.0),
        (GaussianNoise(sd=0.1), GaussianNoise(sd=0.4), 16.0),
        (Ones(p=0.1), Ones(p=0.4), 4.0),
        (CauchyNoise(scale=0.1), CauchyNoise(scale=0.4), 16.0),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_the_number_of_a_corruption_has_its_effect(weak: Any, strong: Any, ratio: float) -> None:
    """Added energy grows as documented: with p for replaced cells, with sd squared for noise."""
    clean = torch.full((200, 500), 1.0)
    bounds = torch.full((500,), LOW), torch.full((500,), HIGH)
    energy = [
        float((part.corrupt(clean, *bounds, noise()) - clean).square().mean())
        for part in (weak, strong)
    ]
    assert energy[1] / energy[0] == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize(("part", "sd"), named(CODES))
def test_code_value_noise_and_gradient(part: Any, sd: float) -> None:
    width = part.pre_units(400)
    pre = torch.randn((300, width), generator=seeded(5), dtype=torch.float64)
    if part.kind == "gaussian_posterior":
        pre[:, 400:] = 2 * math.log(sd)
    quiet = part.code(pre, torch.sigmoid, None)
    np.testing.assert_allclose(quiet, 1 / (1 + np.exp(-pre[:, :400].numpy())), rtol=1e-12)
    noisy = part.code(pre, torch.sigmoid, noise())
    added = np.log(noisy / (1 - noisy)) - pre[:, :400]  # the logistic undone
    if sd:
        normal(added.numpy(), sd)
    else:
        np.testing.assert_allclose(added, 0.0, atol=1e-9)
    assert torch.equal(noisy, part.code(pre, torch.sigmoid, noise()))
    assert torch.equal(noisy, part.code(pre, torch.sigmoid, noise(2))) == (sd == 0.0)
    small = type(part).model_validate(
        part.model_dump() | ({"k": 2} if "k" in type(part).model_fields else {})
    )
    few = pre[:3, : part.pre_units(4)].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: small.code(x, torch.tanh, noise()), [few])


@pytest.mark.parametrize(("part", "units"), named(PRIORS))
def test_prior_moments_distribution_and_seed(part: Any, units: list) -> None:
    rows = 20_000
    drawn = part.draw(rows, len(units), noise())
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, part.draw(rows, len(units), noise()))
    assert not torch.equal(drawn, part.draw(rows, len(units), noise(2)))
    low, high = part.bounds
    assert low <= float(drawn.min()) < float(drawn.max()) <= high
    found = drawn.double().numpy()
    for x, (centre, sd, cdf) in zip(found.T, units, strict=True):
        assert x.mean() == pytest.approx(centre, abs=4 * sd / math.sqrt(rows))
        assert x.std() == pytest.approx(sd, rel=0.02)
        gap = np.abs(cdf(np.sort(x)) - (np.arange(rows) + 0.5) / rows).max()
        assert gap < 1.63 / math.sqrt(rows)  # Kolmogorov and Smirnov, 1 %
    apart = np.corrcoef(found.T) if len(units) > 1 else np.eye(1)
    np.testing.assert_allclose(apart, np.eye(len(units)), atol=4 / math.sqrt(rows))
    assert part.draw(0, len(units), noise()).shape == (0, len(units))


def test_centres_of_a_mixture_are_on_a_circle_or_a_line() -> None:
    four = Mixture(components=4, radius=2)
    np.testing.assert_allclose(
        four.centres(3), [[2, 0, 0], [0, 2, 0], [-2, 0, 0], [0, -2, 0]], atol=1e-6
    )
    np.testing.assert_allclose(four.centres(2), four.centres(3)[:, :2])
    np.testing.assert_allclose(Mixture(components=5, radius=2).centres(1)[:, 0], [-2, -1, 0, 1, 2])
    ten = Mixture().centres(16)
    np.testing.assert_allclose(ten.norm(dim=1), 4.0, rtol=1e-6)
    beside = (ten - ten.roll(1, 0)).norm(dim=1)
    np.testing.assert_allclose(beside, 8 * math.sin(math.pi / 10), rtol=1e-5)


def test_losses_of_an_adversary_are_torchs_cross_entropies() -> None:
    prior, code = 3 * torch.randn((2, 50), generator=seeded(4), dtype=torch.float64)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    yes, no = torch.ones_like(code), torch.zeros_like(code)
    expected = bce(code, yes, reduction="none")
    np.testing.assert_allclose(fooling(code), expected, rtol=1e-12)
    expected = bce(prior, yes, reduction="none") + bce(code, no, reduction="none")
    np.testing.assert_allclose(telling(prior, code), expected, rtol=1e-12)
    np.testing.assert_allclose(telling(no, no), 2 * LN2, rtol=1e-12)  # not to be told apart
    inputs = [prior.requires_grad_(), code.requires_grad_()]
    assert torch.autograd.gradcheck(fooling, inputs[1:])
    assert torch.autograd.gradcheck(telling, inputs)
    far = torch.tensor([1e4, -1e4])
    assert fooling(far).tolist() == [0.0, 1e4]
    assert telling(far, far).tolist() == [1e4, 1e4]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_range_of_an_activation(name: Activation) -> None:
    x = torch.linspace(-50.0, 50.0, 1_000_001, dtype=torch.float64)
    y, (low, high) = FUNCTIONS[name](x), RANGES[name]
    assert low <= float(y.min()) + 1e-9
    assert float(y.max()) <= high
    assert (float(y.min()) < -40) == (low == -math.inf)
    assert (float(y.max()) > 40) == (high == math.inf)
    if low > -math.inf:
        assert float(y.min()) == pytest.approx(low, abs=1e-8)


def test_top_k_keeps_the_k_largest_of_each_row() -> None:
    pre = torch.randn((50, 20), generator=seeded(5), dtype=torch.float64)
    for k in (1, 3, 20):
        code = TopK(k=k).code(pre, torch.tanh, None).numpy()
        expected = np.tanh(pre.numpy())
        expected[expected < np.sort(expected, axis=1)[:, -k, None]] = 0.0
        np.testing.assert_allclose(code, expected, rtol=1e-12)
        assert ((code != 0).sum(axis=1) == k).all()


def test_batch_top_k_keeps_the_largest_of_the_batch_then_those_above_a_threshold() -> None:
    module = whole({"network": {"widths": [6], "activation": "relu"},
                    "code": {"kind": "batch_top_k", "k": 2}})  # fmt: skip
    rows = torch.randn((50, 8), generator=seeded(3))
    every = torch.relu(module.network.encode(rows)).detach()
    code = module(rows, noise()).code_BK.detach()
    cut = every.flatten().sort(descending=True).values[99]
    torch.testing.assert_close(code, torch.where(every >= cut, every, 0.0), rtol=0, atol=0)
    assert int((code != 0).sum()) == 100
    assert len(set((code != 0).sum(dim=1).tolist())) > 2  # rows differ: that is the point of it
    assert module.batch_threshold is not None
    assert module.batch_threshold.threshold == cut
    torch.testing.assert_close(module.encode(rows), torch.where(every > cut, every, 0.0))
    module(2 * rows, noise())
    twice = torch.relu(module.network.encode(2 * rows)).flatten().sort(descending=True).values[99]
    expected = cut + 0.01 * (twice.detach() - cut)
    torch.testing.assert_close(module.batch_threshold.threshold, expected)
    assert "batch_threshold.threshold" in module.state_dict()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_value_and_gradient(name: Activation) -> None:
    x = torch.linspace(-4.0, 4.0, 34, dtype=torch.float64)  # an even count leaves out the kink at 0
    np.testing.assert_allclose(FUNCTIONS[name](x), ACTIVATIONS[name](x.numpy()), atol=1e-12)
    assert torch.autograd.gradcheck(FUNCTIONS[name], [x.requires_grad_()])


@pytest.mark.parametrize(
    ("spec", "hidden"),
    [
        ({"widths": [4]}, []),
        ({"widths": [6, 4, 2]}, [4, 6]),
        ({"widths": [6, 2], "decoder": [3, 5]}, [3, 5]),
        ({"widths": [6, 2], "decoder": []}, []),
    ],
    ids=["shallow", "mirrored", "given", "given-empty"],
)
def test_dense_network_is_matrix_products(spec: dict[str, Any], hidden: list[int]) -> None:
    dense = Dense.model_validate(spec)
    network = dense.build(8, dense.code_width).double()
    assert [layer.out_features for layer in network.decoder] == [*hidden, 8]

    def by_numpy(layers: Any, x: np.ndarray) -> np.ndarray:
        for i, layer in enumerate(layers):
            x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
            x = np.tanh(x) if i < len(layers) - 1 else x
        return x

    rows = np.random.default_rng(0).normal(size=(5, 8))
    codes = np.random.default_rng(1).normal(size=(5, dense.code_width))
    for function, layers, x in (
        (network.encode, network.encoder, rows),
        (network.decode, network.decoder, codes),
    ):
        found = function(torch.from_numpy(x)).detach()
        np.testing.assert_allclose(found, by_numpy(layers, x), rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(network.encode, [torch.from_numpy(rows).requires_grad_()])


def whole(model: dict[str, Any], unit_data: bool = False) -> AutoencoderModule:
    one = np.ones(8)
    stats = ColumnStats(mean=0 * one, sd=one, low=LOW * one, high=HIGH * one)
    torch.manual_seed(0)
    spec = ModelSpec.model_validate({"network": {"widths": [4]}} | model)
    return AutoencoderModule(spec, Preprocessing.fit(Standard(), stats, False), unit_data)


NOISE = [{"corruption": part.model_dump()} for part, _, _ in CORRUPTIONS if part.kind != "none"] + [
    {"code": NoisyCode(sd=2.0).model_dump()}
]


@pytest.mark.parametrize("model", NOISE, ids=lambda model: next(iter(model.values()))["kind"])
def test_noise_is_on_with_a_generator_only_and_the_clean_row_stays_clean(
    model: dict[str, Any],
) -> None:
    module = whole(model)
    rows = torch.randn((50, 8), generator=seeded(3))
    quiet, noisy = module(rows), module(rows, noise())
    assert torch.equal(quiet.code_BK, module(rows).code_BK)
    assert torch.equal(quiet.code_BK, module.encode(rows))
    assert torch.equal(noisy.code_BK, module(rows, noise()).code_BK)
    assert not torch.equal(noisy.code_BK, module(rows, noise(2)).code_BK)
    assert not torch.equal(quiet.code_BK, noisy.code_BK)
    assert torch.equal(noisy.clean_BF, rows)
    torch.testing.assert_close(module.row_losses(noisy), (noisy.output_BF - rows).square().mean(1))


@pytest.mark.parametrize(
    ("model", "unit_data", "code", "output", "threshold"),
    [
        ({}, False, "tanh", "linear", 0.0),
        ({}, True, "tanh", "sigmoid", 0.0),
        ({"loss": {"kind": "bce"}}, False, "tanh", "sigmoid", 0.0),
        ({"code": {"kind": "gaussian_noise", "sd": 1.0}}, False, "sigmoid", "linear", 0.5),
        ({"network": {"widths": [4], "activation": "relu"}}, True, "relu", "sigmoid", None),
        (
            {"network": {"widths": [4], "code_activation": "relu", "output_activation": "tanh"}},
            True,
            "relu",
            "tanh",
            None,
        ),
    ],
)
def test_activations_of_code_and_output(
    model: dict[str, Any], unit_data: bool, code: Activation, output: Activation, threshold: Any
) -> None:
    module = whole(model, unit_data)
    rows = torch.randn((50, 8), generator=seeded(3))
    result = module(rows)
    assert torch.equal(result.code_BK, FUNCTIONS[code](module.network.encode(rows)))
    assert torch.equal(result.output_BF, FUNCTIONS[output](result.pre_BF))
    assert module.default_hash_threshold == threshold


def test_penalties_are_named_and_see_the_means_they_are_given() -> None:
    chosen = [{"kind": "sparsity_kl", "rho": 0.0, "beta": 2.0}, {"kind": "code_l2", "weight": 3.0}]
    module = whole({"penalties": chosen})
    result = module(torch.randn((50, 8), generator=seeded(3)))
    terms = module.penalties(
        result,
        0,
        torch.zeros(4),
        noise(),
        lambda _: torch.tensor(0.5),
        lambda _: torch.full((4,), -0.5),
    )
    assert list(terms) == ["sparsity_kl", "code_l2"]
    assert float(terms["sparsity_kl"].detach()) == pytest.approx(4 * math.log(4 / 3), rel=1e-6)
    assert float(terms["code_l2"]) == 1.5
