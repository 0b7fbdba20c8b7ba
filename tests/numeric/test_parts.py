"""Every part of a model against hand numbers or NumPy, its gradient, and its knobs.

A new part joins with a row in the table of its slot; `test_every_part_has_a_row` asks for it.
"""

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from hourglass.model.activations import FUNCTIONS, Activation
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.model.code import Code, NoisyCode, Plain
from hourglass.model.corruption import Corruption, GaussianNoise, NoCorruption, SaltPepper, Zeros
from hourglass.model.losses import Bce, Loss, Mse
from hourglass.model.networks import Dense, DenseNetwork
from hourglass.model.penalties import Penalty, SparsityKl
from hourglass.model.preprocessing import ColumnStats, Preprocessing, Standard
from hourglass.model.spec import ModelSpec

LN2, LN3 = math.log(2.0), math.log(3.0)


def mean(x: Tensor) -> Tensor:
    return x.mean(dim=0)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Losses: part, output, pre-activation, clean row, value of each row.
LOSSES: list[tuple[Any, Any, Any, Any, list[float]]] = [
    (Mse(), [[1, 2], [3, 5]], [[0, 0], [0, 0]], [[0, 2], [1, 1]], [0.5, 10.0]),
    (Mse(), [[1e4, -1e4]], [[0, 0]], [[0, 0]], [1e8]),
    (Bce(), [[0, 0]], [[0, LN3]], [[1, 0]], [1.5 * LN2]),
    (Bce(), [[0, 0]], [[0, 0]], [[0.5, 0.25]], [LN2]),
    (Bce(), [[0, 0], [0, 0]], [[1e4, -1e4], [1e4, -1e4]], [[1, 0], [0, 1]], [0.0, 1e4]),
]

# Penalties: part, code, lowest value of the code, value.
PENALTIES: list[tuple[Any, Any, float, float]] = [
    (SparsityKl(rho=0.5, beta=2), [[0.25], [0.25]], 0.0, math.log(4 / 3)),
    (SparsityKl(rho=0.5, beta=2), [[0.0, 1.0], [0.5, 0.5]], 0.0, 2 * math.log(4 / 3)),
    (SparsityKl(rho=0.0, beta=2), [[-1.0], [0.0]], -1.0, math.log(4 / 3)),
    (SparsityKl(rho=-0.5, beta=1), [[-0.5, -0.5]], -1.0, 0.0),
    (
        SparsityKl(rho=0.05, beta=3),
        [[0.2], [0.4]],
        0.0,
        3 * (0.05 * math.log(0.05 / 0.3) + 0.95 * math.log(0.95 / 0.7)),
    ),
    # A dead unit: the mean is held at 1e-6, so the penalty is large but finite.
    (
        SparsityKl(rho=0.5, beta=1),
        [[0.0], [0.0]],
        0.0,
        0.5 * math.log(0.5 / 1e-6) + 0.5 * math.log(0.5 / (1 - 1e-6)),
    ),
]

# Corruptions: part, share of cells that change, check of what the changed cells are.
LOW, HIGH = -3.0, 7.0
CORRUPTIONS: list[tuple[Any, float, Callable[[np.ndarray, np.ndarray], None]]] = [
    (NoCorruption(), 0.0, lambda clean, seen: None),
    (Zeros(p=0.3), 0.3, lambda clean, seen: np.testing.assert_array_equal(seen, 0.0)),
    (SaltPepper(p=0.4), 0.4, lambda clean, seen: salt_and_pepper(seen)),
    (GaussianNoise(sd=0.5), 1.0, lambda clean, seen: normal(seen - clean, 0.5)),
]


def salt_and_pepper(seen: np.ndarray) -> None:
    assert set(np.unique(seen)) == {LOW, HIGH}
    assert np.mean(seen == HIGH) == pytest.approx(0.5, abs=0.01)


def normal(noise: np.ndarray, sd: float) -> None:
    assert noise.mean() == pytest.approx(0.0, abs=0.01)
    assert noise.std() == pytest.approx(sd, rel=0.01)
    assert np.mean(np.abs(noise) < sd) == pytest.approx(0.6827, abs=0.01)


# Code parts, and the noise they add before the activation.
CODES: list[tuple[Any, float]] = [(Plain(), 0.0), (NoisyCode(sd=2.0), 2.0)]

# Activations: value by NumPy.
erf = np.vectorize(math.erf)
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
    [(Loss, LOSSES), (Penalty, PENALTIES), (Corruption, CORRUPTIONS), (Code, CODES)],
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


@pytest.mark.parametrize(("part", "code", "low", "expected"), named(PENALTIES))
def test_penalty_value_weight_and_gradient(
    part: Any, code: Any, low: float, expected: float
) -> None:
    code = torch.tensor(code, dtype=torch.float64)
    assert float(part.value(code, low, mean)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    heavier = type(part).model_validate(part.model_dump() | {"beta": 10 * part.beta})
    assert float(heavier.value(code, low, mean)) == pytest.approx(10 * expected, abs=1e-12)
    inside = (0.6 * code + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: part.value(c, low, mean), [inside])


def test_sparsity_pulls_the_mean_activation_to_rho() -> None:
    """rho is alive: descending the penalty alone brings every unit's mean to rho."""
    for low, rho in ((0.0, 0.05), (-1.0, -0.8)):
        part = SparsityKl(rho=rho, beta=1.0)
        pre = torch.randn(64, 5, dtype=torch.float64, generator=seeded(), requires_grad=True)
        squash = torch.sigmoid if low == 0.0 else torch.tanh
        optimizer = torch.optim.Adam([pre], lr=0.1)
        for _ in range(300):
            optimizer.zero_grad()
            part.value(squash(pre), low, mean).backward()
            optimizer.step()
        np.testing.assert_allclose(squash(pre).mean(dim=0).detach(), rho, atol=1e-3)


@pytest.mark.parametrize(("part", "share", "check"), named(CORRUPTIONS))
def test_corruption_share_values_seed_and_gradient(
    part: Any, share: float, check: Callable[[np.ndarray, np.ndarray], None]
) -> None:
    clean = torch.rand((200, 500), generator=seeded(9)) + 1.0  # never LOW, HIGH or 0
    bounds = torch.full((500,), LOW), torch.full((500,), HIGH)
    seen = part.corrupt(clean, *bounds, seeded())
    changed = (seen != clean).numpy()
    assert changed.mean() == pytest.approx(share, abs=0.006)  # 4 standard deviations
    check(clean.numpy()[changed], seen.numpy()[changed])
    assert torch.equal(seen, part.corrupt(clean, *bounds, seeded()))
    assert torch.equal(seen, part.corrupt(clean, *bounds, seeded(2))) == (share == 0.0)
    small = clean[:3, :4].double().requires_grad_()
    few = bounds[0][:4], bounds[1][:4]
    assert part.corrupt(small, *few, seeded()).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: part.corrupt(x, *few, seeded()), [small])


@pytest.mark.parametrize(
    ("weak", "strong", "ratio"),
    [
        (Zeros(p=0.1), Zeros(p=0.4), 4.0),
        (SaltPepper(p=0.1), SaltPepper(p=0.4), 4.0),
        (GaussianNoise(sd=0.1), GaussianNoise(sd=0.4), 16.0),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_corruption_knob_is_alive(weak: Any, strong: Any, ratio: float) -> None:
    """Added energy grows as documented: with p for replaced cells, with sd squared for noise."""
    clean = torch.full((200, 500), 1.0)
    bounds = torch.full((500,), LOW), torch.full((500,), HIGH)
    energy = [
        float((part.corrupt(clean, *bounds, seeded()) - clean).square().mean())
        for part in (weak, strong)
    ]
    assert energy[1] / energy[0] == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize(("part", "sd"), named(CODES))
def test_code_value_noise_and_gradient(part: Any, sd: float) -> None:
    pre = torch.randn((300, 400), generator=seeded(5), dtype=torch.float64)
    quiet = part.code(pre, torch.sigmoid, None)
    np.testing.assert_allclose(quiet, 1 / (1 + np.exp(-pre.numpy())), rtol=1e-12)
    noisy = part.code(pre, torch.sigmoid, seeded())
    noise = np.log(noisy / (1 - noisy)) - pre  # the logistic undone
    if sd:
        normal(noise.numpy(), sd)
    else:
        np.testing.assert_allclose(noise, 0.0, atol=1e-9)
    assert torch.equal(noisy, part.code(pre, torch.sigmoid, seeded()))
    assert torch.equal(noisy, part.code(pre, torch.sigmoid, seeded(2))) == (sd == 0.0)
    small = pre[:3, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: part.code(x, torch.tanh, seeded()), [small])


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
    network = DenseNetwork(dense, features=8).double()
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
    quiet, noisy = module(rows), module(rows, seeded())
    assert torch.equal(quiet.code_BK, module(rows).code_BK)
    assert torch.equal(quiet.code_BK, module.encode(rows))
    assert torch.equal(noisy.code_BK, module(rows, seeded()).code_BK)
    assert not torch.equal(noisy.code_BK, module(rows, seeded(2)).code_BK)
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


def test_penalties_are_named_and_see_the_mean_they_are_given() -> None:
    module = whole({"penalties": [{"kind": "sparsity_kl", "rho": 0.0, "beta": 2.0}]})
    result = module(torch.randn((50, 8), generator=seeded(3)))
    terms = module.penalties(result, lambda code: torch.full((4,), -0.5))
    assert list(terms) == ["sparsity_kl"]
    assert float(terms["sparsity_kl"].detach()) == pytest.approx(4 * math.log(4 / 3), rel=1e-6)
