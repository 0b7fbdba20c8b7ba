"""Rows from codes: draws from the prior, ways between two rows, one code unit moved; and denoising.

Shapes: B rows, C raw columns, K code units.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from hourglass.data.arrays import unmasked
from hourglass.errors import DataError
from hourglass.inference.predictor import Array, Predictor
from hourglass.model.noise import Noise

Codes = NDArray[np.float32]


def prior(predictor: Predictor, count: int, seed: int) -> Array:
    """`count` new rows (B, C): codes drawn from the prior, decoded; the same seed, the same rows.

    Raises: DataError for a model without a prior. Source: Kingma and Welling 2014, "Auto-encoding
    variational Bayes", section 2.1; Makhzani et al. 2015, "Adversarial autoencoders", section 2.
    """
    return predictor.decode(prior_codes(predictor, count, seed))


def prior_codes(predictor: Predictor, count: int, seed: int) -> Codes:
    """`count` codes (B, K) from the adversary's prior or N(0, 1); the same on every machine.

    Raises: DataError for a model without a prior.
    """
    adversary, code = predictor.module.spec.adversary, predictor.module.spec.code
    if adversary is not None:
        draws = Noise().seed(seed)
        return np.asarray(adversary.prior.draw(count, predictor.code_width, draws))
    if not code.posterior:
        raise DataError(
            f"code '{code.kind}' has no prior: its codes have no known distribution to draw from; "
            "generate needs a model with code gaussian_posterior, or an adversary"
        )
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, predictor.code_width), dtype=np.float32)


def interpolate(predictor: Predictor, first: Array, second: Array, steps: int) -> Array:
    """Rows (steps, C) decoded from the straight line between the codes of two rows (C,), ends included.

    Raises: DataError for fewer than 2 steps.
    """
    if steps < 2:
        raise DataError(f"steps: found {steps}, needed are 2 or more: both ends are included")
    one_K, two_K = _code(predictor, first), _code(predictor, second)
    share_B1 = np.linspace(0.0, 1.0, steps, dtype=np.float32)[:, None]
    return predictor.decode((1 - share_B1) * one_K + share_B1 * two_K)


def traverse(predictor: Predictor, row: Array, unit: int, values: Array) -> Array:
    """Rows (B, C) decoded from one row's code with `unit`, counted from 0, set to each of `values`.

    Raises: DataError for a unit the code has not.
    """
    require_unit(predictor, unit)
    codes_BK = np.repeat(_code(predictor, row)[None], len(values), axis=0)
    codes_BK[:, unit] = values
    return predictor.decode(codes_BK)


def require_unit(predictor: Predictor, unit: int) -> None:
    """Raise DataError for a unit the code has not."""
    if not 0 <= unit < predictor.code_width:
        raise DataError(
            f"unit: found {unit}, allowed are 0 to {predictor.code_width - 1}: the code has "
            f"{predictor.code_width} units"
        )


def _code(predictor: Predictor, row: Array) -> Codes:
    """The code (K,) of one raw row (C,)."""
    code_K: Codes = predictor.encode(unmasked(row)[None])[0]
    return code_K


@torch.inference_mode()
def denoise(predictor: Predictor, rows: Array, seed: int) -> tuple[Array, Array]:
    """Noisy rows (B, C), made by the corruption of training in model space, and their reconstructions.

    Both in the units of the rows. The noise is drawn on the CPU: a seed means the same anywhere.
    Raises: DataError for a model trained without corruption.
    """
    require_corruption(predictor)
    spec, preprocessing = predictor.module.spec, predictor.module.preprocessing
    clean_BF = torch.from_numpy(predictor.map_tiles(rows, lambda tile: [preprocessing(tile)])[0])
    low_F, high_F = preprocessing.low_F.cpu(), preprocessing.high_F.cpu()
    rng = Noise().seed(seed)
    seen_BF = spec.corruption.corrupt(clean_BF, low_F, high_F, rng)
    noisy = predictor.raw(seen_BF.to(predictor.device)).cpu().numpy()
    return noisy, predictor.reconstruct(noisy)


def require_corruption(predictor: Predictor) -> None:
    """Raise DataError for a model trained without corruption."""
    if not predictor.module.spec.corruption.removes_noise:
        raise DataError(
            "the model was trained without corruption, so there is no noise that it removes; "
            "train one with `corruption` set"
        )


def gain(clean: Array, noisy: Array, denoised: Array) -> float:
    """PSNR won over the noisy rows, in dB, over the cells that `clean` has; the peak cancels out."""
    known = np.isfinite(clean)
    after, before = (psnr(clean[known], rows[known], peak=1.0) for rows in (denoised, noisy))
    return after - before


def psnr(clean: Array, other: Array, peak: float) -> float:
    """Peak signal-to-noise ratio in dB over all cells; `peak` is the largest value a cell may have.

    Infinite for equal rows. Raises: DataError for shapes that differ.
    Source: Huynh-Thu and Ghanbari 2008, "Scope of validity of PSNR in image/video quality
    assessment".
    """
    if np.shape(clean) != np.shape(other):
        raise DataError(f"rows of shape {np.shape(clean)} beside rows of {np.shape(other)}")
    mse = float(np.square(np.subtract(clean, other, dtype=np.float64)).mean())
    return 10.0 * math.log10(peak**2 / mse) if mse else math.inf
