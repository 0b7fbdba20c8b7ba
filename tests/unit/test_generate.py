"""New rows from codes, layers inside the encoder, and denoising: numbers, not shapes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hourglass import Autoencoder, Predictor
from hourglass.errors import DataError
from hourglass.inference.generate import (
    denoise,
    interpolate,
    prior,
    prior_codes,
    psnr,
    traverse,
)

Make = Callable[..., Predictor]


@pytest.fixture(scope="module", params=["variational", "adversarial"])
def with_prior(request: pytest.FixtureRequest, rows: np.ndarray) -> Predictor:
    made = Autoencoder([16, 2], preset=request.param, epochs=2, random_state=1)
    predictor: Predictor = made.fit(rows).predictor_
    return predictor


@pytest.fixture
def make(tmp_path: Path, save_artifact: Callable[..., str]) -> Make:
    """`make(corruption=..., drop_constant=...)` is the predictor of an untrained model."""

    def made(corruption: dict[str, Any] | None = None, **options: Any) -> Predictor:
        model: dict[str, Any] = {"network": {"widths": [7, 5], "activation": "tanh"}}
        if corruption is not None:
            model["corruption"] = corruption
        save_artifact(tmp_path / "model", model=model, **options)
        return Predictor.load(str(tmp_path / "model"))

    return made


def test_codes_of_the_prior_are_standard_normal(with_prior: Predictor) -> None:
    codes = prior_codes(with_prior, 20_000, seed=3)
    assert codes.shape == (20_000, 2)
    np.testing.assert_allclose(codes.mean(axis=0), 0, atol=0.03)  # 4 standard errors
    np.testing.assert_allclose(codes.std(axis=0), 1, atol=0.02)
    assert abs(np.corrcoef(codes.T)[0, 1]) < 0.03


def test_rows_of_the_prior_are_its_codes_decoded_and_repeat_with_the_seed(
    with_prior: Predictor,
) -> None:
    made = prior(with_prior, 100, seed=3)
    np.testing.assert_array_equal(made, with_prior.decode(prior_codes(with_prior, 100, seed=3)))
    np.testing.assert_array_equal(made, prior(with_prior, 100, seed=3))
    assert (made != prior(with_prior, 100, seed=4)).any(axis=1).all()


def test_an_adversarial_model_draws_from_the_prior_of_its_artifact(
    rows: np.ndarray, tmp_path: Path
) -> None:
    """And the artifact has the prior's numbers, but nothing of the discriminator."""
    adversary = {"prior": {"kind": "mixture", "components": 3, "radius": 5, "sd": 0.1}}
    made = Autoencoder([7, 4], preset="adversarial", adversary=adversary, epochs=1, random_state=1)
    made.fit(rows).save(tmp_path / "model")
    model = Predictor.load(str(tmp_path / "model"))
    assert {name.partition(".")[0] for name in model.module.state_dict()} == {
        "network",
        "preprocessing",
    }
    np.testing.assert_array_equal(model.encode(rows), made.encode(rows))
    np.testing.assert_array_equal(prior(model, 50, seed=2), made.generate(50, seed=2))
    codes = prior_codes(model, 3000, seed=2)
    assert (codes.shape, codes.dtype) == ((3000, 4), np.float32)
    centres = 5 * np.array([[1, 0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
    nearest = np.linalg.norm(codes[:, None, :2] - centres, axis=2)
    assert nearest.min(axis=1).max() < 0.1 * 5
    np.testing.assert_allclose(np.bincount(nearest.argmin(axis=1)) / 3000, 1 / 3, atol=0.035)
    np.testing.assert_allclose(codes[:, 2:].std(axis=0), 0.1, rtol=0.06)


def test_the_ways_ends_are_the_reconstructions_of_the_rows(make: Make, rows: np.ndarray) -> None:
    model = make()
    way = interpolate(model, rows[3], rows[8], steps=5)
    assert way.shape == (5, 12)
    np.testing.assert_array_equal(way[[0, -1]], model.reconstruct(rows[[3, 8]]))
    middle = model.encode(rows[[3, 8]]).mean(axis=0, keepdims=True)
    np.testing.assert_allclose(way[2], model.decode(middle)[0], rtol=1e-6)


def test_a_traverse_sets_one_unit_and_leaves_the_others(make: Make, rows: np.ndarray) -> None:
    model = make()
    code = model.encode(rows[4:5])
    values = np.array([-1, 0, code[0, 2], 1], np.float32)
    expected = np.repeat(code, 4, axis=0)
    expected[:, 2] = values
    made = traverse(model, rows[4], 2, values)
    np.testing.assert_array_equal(made, model.decode(expected))
    np.testing.assert_array_equal(made[2], model.reconstruct(rows[4:5])[0])


def test_a_traverse_acts_through_its_unit_alone(make: Make, rows: np.ndarray) -> None:
    model = make()
    decoder: Any = model.module.network
    with torch.no_grad():
        decoder.decoder[0].weight[:, 2] = 0.0  # the decoder no longer sees unit 2
    values = np.linspace(-1, 1, 6, dtype=np.float32)
    deaf, received = (traverse(model, rows[4], unit, values) for unit in (2, 3))
    np.testing.assert_array_equal(deaf, np.repeat(deaf[:1], 6, axis=0))
    np.testing.assert_array_equal(deaf[:1], model.reconstruct(rows[4:5]))
    assert (np.diff(received, axis=0) != 0).any(axis=1).all()


@pytest.mark.parametrize("drop_constant", [False, True])
def test_gaussian_noise_has_the_sd_of_training_in_model_space(
    make: Make, rows: np.ndarray, drop_constant: bool
) -> None:
    model = make({"kind": "gaussian", "sd": 0.1}, drop_constant=drop_constant)
    noisy, denoised = denoise(model, rows, seed=5)
    spread = np.ptp(rows, axis=0)
    spread[5] = 1.0
    noise = (noisy - rows) / spread
    if drop_constant:
        np.testing.assert_array_equal(noisy[:, 5], rows[:, 5])
        noise = np.delete(noise, 5, axis=1)
    assert noise.std() == pytest.approx(0.1, abs=0.004)  # 4.6 standard errors
    assert noise.mean() == pytest.approx(0.0, abs=0.007)
    np.testing.assert_array_equal(denoised, model.reconstruct(noisy))
    np.testing.assert_array_equal(noisy, denoise(model, rows, seed=5)[0])
    assert (noisy != denoise(model, rows, seed=6)[0]).any()


def test_masking_noise_puts_the_share_p_to_0_in_model_space(make: Make, rows: np.ndarray) -> None:
    noisy, _ = denoise(make({"kind": "zeros", "p": 0.3}), rows, seed=5)
    changed = np.delete(np.abs(noisy - rows) > 1e-5, 5, axis=1)
    assert changed.mean() == pytest.approx(0.3, abs=0.032)  # 4 standard errors
    means = np.broadcast_to(rows.mean(axis=0, dtype=np.float64), rows.shape)
    columns = np.delete(np.arange(12), 5)
    np.testing.assert_allclose(
        noisy[:, columns][changed], means[:, columns][changed], rtol=1e-5
    )  # 0 is the mean: scaling range


def test_a_trained_model_removes_noise() -> None:
    rng = np.random.default_rng(2)
    clean = (rng.normal(size=(1000, 2)) @ rng.normal(size=(2, 12))).astype(np.float32)
    trained = Autoencoder(
        [2],
        activation="linear",
        corruption={"kind": "gaussian", "sd": 0.1},
        epochs=60,
        batch_size=64,
        lr=0.01,
        random_state=0,
    ).fit(clean)
    noisy, denoised = denoise(trained.predictor_, clean, seed=1)
    peak = float(np.ptp(clean))
    # 12 features on a plane of 2: projecting removes 5/6 of the noise power, 7.8 dB, at best.
    gain = psnr(clean, denoised, peak) - psnr(clean, noisy, peak)
    assert 5.0 < gain < 8.5


def test_psnr_by_hand() -> None:
    clean = np.zeros((2, 2), np.uint8)
    assert psnr(clean, np.full((2, 2), 25.5), peak=255) == pytest.approx(20.0)
    assert psnr(clean, np.array([[2, 0], [0, 0]]), peak=10) == pytest.approx(20.0)
    assert psnr(clean, clean, peak=255) == np.inf


def test_outputs_of_a_layer_by_numpy(make: Make, rows: np.ndarray) -> None:
    model = make()
    state = {name: value.numpy() for name, value in model.module.state_dict().items()}
    seen = (rows - state["preprocessing.shift_F"]) / state["preprocessing.scale_F"]
    weight, bias = (state[f"network.encoder.0.{name}"] for name in ("weight", "bias"))
    np.testing.assert_allclose(
        model.encode(rows, layer=1), np.tanh(seen @ weight.T + bias), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(model.encode(rows, layer=2), model.encode(rows))


REFUSED: list[tuple[Callable[[Predictor, np.ndarray], Any], str]] = [
    (
        lambda model, rows: prior(model, 3, seed=0),
        "code 'plain' has no prior: its codes have no known distribution to draw from; generate needs "
        "a model with code gaussian_posterior, or an adversary",
    ),
    (
        lambda model, rows: interpolate(model, rows[0], rows[1], 1),
        "steps: found 1, needed are 2 or more: both ends are included",
    ),
    (
        lambda model, rows: interpolate(model, rows[0], rows[1, :3], 5),
        "rows of shape (1, 3), the model needs (rows, 12)",
    ),
    (
        lambda model, rows: traverse(model, rows[0], 5, rows[0]),
        "unit: found 5, allowed are 0 to 4: the code has 5 units",
    ),
    (
        lambda model, rows: denoise(model, rows, seed=0),
        "the model was trained without corruption, so there is no noise that it removes; train one "
        "with `corruption` set",
    ),
    (
        lambda model, rows: psnr(rows, rows[:4], 1.0),
        "rows of shape (300, 12) beside rows of (4, 12)",
    ),
    *(
        (
            lambda model, rows, layer=layer: model.encode(rows, layer),
            f"layer: found {layer}, allowed are 1 to 2: the encoder has 2 layers, the last makes the "
            "code",
        )
        for layer in (0, 3)
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(make: Make, rows: np.ndarray, call: Any, message: str) -> None:
    model = make()
    with pytest.raises(DataError) as refused:
        call(model, rows)
    assert str(refused.value) == message
