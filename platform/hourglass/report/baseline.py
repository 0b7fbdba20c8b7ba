"""Baselines: linear models of the same rows, evaluated in model space.

Shapes: B rows, F features, K components.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional

Floats = NDArray[np.float64]
STEPS, RATE = 200, 0.1
LOGISTIC_ROWS = 2000
"""Maximum rows that logistic PCA is fitted on: each step uses all of them."""


@dataclass(frozen=True)
class Evaluation:
    """Reconstruction error of one model on the evaluated rows: MSE, and FVU."""

    name: str
    units: int
    mse: float
    fvu: float


def evaluation(name: str, units: int, mse: float, rows: Floats, mean: Floats) -> Evaluation:
    """The evaluation of a model with error `mse` on `rows` (B, F).

    FVU, the fraction of variance unexplained, is relative to the squared distance from `mean` (F,)
    of the training rows, as in training; NaN where that is 0.
    """
    spread = float(np.square(rows - mean).mean())
    return Evaluation(name, units, mse, mse / spread if spread else float("nan"))


def pca(fitted: Floats, rows: Floats, mean: Floats, components: int) -> Evaluation:
    """PCA with up to `components` components, fitted on `fitted`."""
    return pca_at(fitted, rows, mean, (components,))[0]


def pca_at(fitted: Floats, rows: Floats, mean: Floats, widths: Sequence[int]) -> list[Evaluation]:
    """One PCA, truncated to each of `widths`, as far as `fitted` allows."""
    most = min(max(widths), *fitted.shape)
    model = PCA(most, random_state=0).fit(fitted)
    code_BK = model.transform(rows)
    found = []
    for width in (min(width, most) for width in widths):
        back = code_BK[:, :width] @ model.components_[:width] + model.mean_
        error = float(np.square(back - rows).mean())
        found.append(evaluation("PCA", width, error, rows, mean))
    return found


def logistic_pca(fitted: Floats, rows: Floats, mean: Floats, components: int) -> Evaluation:
    """Logistic PCA: sigmoid(U V + b), U per row, V and b shared, by Bernoulli likelihood.

    V and b are fitted on `fitted` and then fixed; U is optimized for each row of `rows`.
    Source: Schein, Saul and Ungar 2003, "A Generalized Linear Model for Principal Component
    Analysis of Binary Data", section 2; with Adam in place of their alternating updates.
    """
    rng = torch.Generator().manual_seed(0)
    learn = torch.from_numpy(fitted[:: -(-len(fitted) // LOGISTIC_ROWS)].clip(0.0, 1.0)).float()
    target = torch.from_numpy(rows.clip(0.0, 1.0)).float()
    loadings = 0.1 * torch.randn(components, learn.shape[1], generator=rng)
    bias = learn.mean(dim=0).clamp(1e-3, 1.0 - 1e-3).logit()
    start = 0.1 * torch.randn(len(learn), components, generator=rng)
    _, loadings, bias = _fit(learn, start, [loadings, bias], fit_shared=True)
    start = torch.zeros(len(target), components)
    scores, *_ = _fit(target, start, [loadings, bias], fit_shared=False)
    back = torch.sigmoid(scores @ loadings + bias).numpy().astype(np.float64)
    error = float(np.square(back - rows).mean())
    return evaluation("logistic PCA", components, error, rows, mean)


def _fit(
    target: Tensor, scores: Tensor, shared: list[Tensor], fit_shared: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """U, V and b after full-batch Adam steps; V and b stay fixed unless `fit_shared`."""
    scores = scores.requires_grad_()
    loadings, bias = [part.requires_grad_(fit_shared) for part in shared]
    optimizer = torch.optim.Adam([scores, *([loadings, bias] if fit_shared else [])], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = scores @ loadings + bias
        loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return scores.detach(), loadings.detach(), bias.detach()
