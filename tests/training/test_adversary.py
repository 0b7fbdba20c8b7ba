"""The adversary in training: who learns from what, figures by NumPy, codes that come to the prior."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hourglass.errors import TrainingError
from hourglass.model.noise import Noise
from hourglass.training.collective import SingleProcessGroup
from hourglass.training.sensitivity import check_sensitivity
from hourglass.training.state import Discriminator, State, discriminator
from hourglass.training.step import noise_seed

sys.path.insert(0, str(Path(__file__).parent))
from training_kit import (
    CPU,
    STILL,
    Run,
    batches,
    fresh,
    generated,
    held_out,
    job,
    memory_loader,
    ready,
    run,
    same_bits,
    weights,
)

ROWS = generated()
MODEL: dict[str, Any] = {"preset": "adversarial", "adversary": {"weight": 0.3}}
bce = torch.nn.functional.binary_cross_entropy_with_logits


def begun(model: dict[str, Any] = MODEL, **train: Any) -> tuple[State, Discriminator]:
    state = fresh(job(model, **train), ROWS)
    assert state.discriminator is not None
    return state, state.discriminator


def values(module: torch.nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in module.parameters()]


def rng(seed: int = 3) -> Noise:
    return Noise().seed(seed)


def test_the_term_reaches_the_encoder_and_not_the_discriminator() -> None:
    state, rival = begun()
    code = state.module.encode(torch.from_numpy(ROWS))
    term = rival.term(code, torch.mean)
    expected = 0.3 * bce(rival.network(code), torch.ones(len(ROWS), 1))
    assert float(term.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    term.backward()
    encoder = [layer.weight for layer in state.module.network.encoder]
    assert all(float(weight.grad.abs().sum()) > 0 for weight in encoder)
    assert all(weight.grad is None for weight in rival.network.parameters())


def test_without_being_held_the_discriminator_would_be_reached() -> None:
    """The negative control: the same term by the network itself."""
    state, rival = begun()
    code = state.module.encode(torch.from_numpy(ROWS))
    bce(rival.network(code), torch.ones(len(ROWS), 1)).backward()
    assert all(float(weight.grad.abs().sum()) > 0 for weight in rival.network.parameters())


def test_the_discriminators_step_reaches_it_and_not_the_encoder() -> None:
    state, rival = begun()
    encoder, before = values(state.module), values(rival.network)
    code = state.module.encode(torch.from_numpy(ROWS))
    drawn = rival.spec.prior.draw(*code.shape, rng())  # type: ignore[call-arg]
    prior_B1, code_B1 = rival.network(drawn), rival.network(code.detach())
    loss = bce(prior_B1, torch.ones_like(prior_B1)) + bce(code_B1, torch.zeros_like(code_B1))
    expected = torch.autograd.grad(loss, list(rival.network.parameters()))
    sums = rival.learn(code, len(ROWS), rng(), SingleProcessGroup())
    for weight, gradient in zip(rival.network.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-7)
    assert float(sums["discriminator_loss"]) / len(ROWS) == pytest.approx(loss.item(), rel=1e-5)
    right = [float((prior_B1 > 0).float().mean()), float((code_B1 <= 0).float().mean())]
    accuracy = float(sums["discriminator_accuracy"]) / len(ROWS)
    assert accuracy == pytest.approx(np.mean(right), rel=1e-6)
    pairs = zip(values(rival.network), before, strict=True)
    assert all(not torch.equal(after, then) for after, then in pairs)
    assert all(map(torch.equal, values(state.module), encoder))
    assert all(weight.grad is None for weight in state.module.parameters())


def test_without_rows_a_worker_alone_has_a_gradient_of_zero() -> None:
    _, rival = begun()
    sums = rival.learn(torch.zeros(0, 3), 5, rng(), SingleProcessGroup())
    assert all(float(weight.grad.abs().sum()) == 0 for weight in rival.network.parameters())
    assert [float(value) for value in sums.values()] == [0.0, 0.0]


def test_the_first_weights_are_a_function_of_the_seed_alone() -> None:
    first, again, other = (begun(seed=seed)[1] for seed in (5, 5, 6))
    assert all(map(torch.equal, values(first.network), values(again.network)))
    assert not any(map(torch.equal, values(first.network), values(other.network)))
    module = begun()[0].module
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    discriminator(module, 5)
    assert torch.rand(1) == expected  # the caller's random state stays as it was
    assert discriminator(fresh(job(), ROWS).module, 5) is None


def test_figures_are_numpys() -> None:
    """With rates of almost nothing, every step sees the first weights; draws are those of its seed."""
    still = job({"preset": "adversarial", "adversary": {"weight": 0.3, "lr": 1e-30}}, **STILL)
    made = run(still, ROWS)
    record, rival = made.records[0], made.state.discriminator
    assert rival is not None
    layers = [value.double().numpy() for value in rival.network.state_dict().values()]

    def logits(x: np.ndarray) -> np.ndarray:
        for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
            x = np.maximum(x @ weight.T + bias, 0)
        return (x @ layers[-2].T + layers[-1])[:, 0]

    train = ROWS[~held_out(len(ROWS))]
    code = logits(made.state.module.encode(torch.from_numpy(train)).detach().double().numpy())
    drawn = [
        logits(rng(noise_seed(5, i)).normal(len(batch), 3).double().numpy())
        for i, batch in enumerate(batches(still, len(train), 0))
    ]
    prior, near = np.concatenate(drawn), {"rel": 1e-5}
    assert record["loss_adversary"] == pytest.approx(0.3 * np.log1p(np.exp(-code)).mean(), **near)
    reported = np.log1p(np.exp(-prior)).mean() + np.log1p(np.exp(code)).mean()
    assert record["discriminator_loss"] == pytest.approx(reported, **near)
    right = ((prior > 0).mean() + (code <= 0).mean()) / 2
    assert record["discriminator_accuracy"] == pytest.approx(right, **near)
    assert record["loss"] == record["loss_mse"] + record["loss_adversary"]


def test_same_seed_same_bits_and_the_adversary_matters() -> None:
    first, second, without = (run(job(m, epochs=2), ROWS) for m in (MODEL, MODEL, {}))
    assert same_bits(first.state.tensors(), second.state.tensors())
    plain = run(job({"preset": "adversarial"} | {"adversary": {"weight": 0.1}}, epochs=2), ROWS)
    assert not same_bits(weights(first.state), weights(plain.state))
    assert "discriminator_loss" not in without.records[0]


def test_a_gradient_of_the_discriminator_that_is_not_finite_is_named() -> None:
    """Draws so far off that their products overflow, while the model's own gradient is finite."""
    far = {"prior": {"kind": "mixture", "radius": 3e38}}
    made = job({"preset": "adversarial", "adversary": far})
    check_sensitivity(fresh(made, ROWS).module, memory_loader(made, ROWS), CPU)  # does not throw
    message = (
        r"stopped at step 0 \(epoch 1\): worker 0: gradient of discriminator\.\d\.weight is NaN or "
        "infinite. The last checkpoint is kept; lower the learning rate or check the rows"
    )
    with pytest.raises(TrainingError, match=message):
        ready(made, ROWS).fit()


def test_a_broken_discriminator_is_named_by_the_term() -> None:
    state, rival = begun()
    with torch.no_grad():
        rival.network[0].weight.fill_(math.inf)
    made = job(MODEL)
    with pytest.raises(TrainingError, match="worker 0: term adversary is NaN or infinite"):
        Run(made, memory_loader(made, ROWS), state).fit()


def clusters() -> np.ndarray:
    """Rows of two factors, one in two lumps and one skewed: far from any prior of ours."""
    rng = np.random.default_rng(0)
    lumps = rng.choice([-1.0, 1.0], 1200) + 0.2 * rng.normal(size=1200)
    factors = np.stack([lumps, rng.exponential(size=1200)], axis=1)
    made = factors @ rng.normal(size=(2, 12))
    return (made + 0.05 * rng.normal(size=made.shape)).astype(np.float32)


def gap(code: np.ndarray) -> float:
    """The largest distance of a unit's distribution from N(0, 1). Source: Kolmogorov 1933."""
    normal = (1 + torch.erf(torch.from_numpy(np.sort(code, axis=0)) / math.sqrt(2))) / 2
    ranks = (np.arange(len(code)) + 0.5) / len(code)
    return float(np.abs(normal.numpy() - ranks[:, None]).max())


def test_codes_come_to_the_prior_and_without_an_adversary_do_not() -> None:
    rows = clusters()
    network = {"widths": [32, 2], "activation": "relu", "code_activation": "linear"}
    settings = {"epochs": 60, "batch_size": 32, "optimizer": {"kind": "adam", "lr": 1e-3}}
    ends = {}
    for name, model in {"with": {"preset": "adversarial"}, "without": {}}.items():
        made = run(job(model | {"network": network}, **settings), rows)
        code = made.state.module.encode(torch.from_numpy(rows)).detach().numpy()
        ends[name] = gap(code), code, made.records[-1]
    (near, code, record), (far, other, plain) = ends["with"], ends["without"]
    assert near < 0.3 < 0.4 < far
    np.testing.assert_allclose(code.mean(axis=0), 0.0, atol=0.4)
    np.testing.assert_allclose(code.std(axis=0), 1.0, atol=0.3)
    assert other.std(axis=0).max() < 0.7
    assert 0.5 < record["discriminator_accuracy"] < 0.85
    assert max(record["holdout_fvu"], plain["holdout_fvu"]) < 0.02
