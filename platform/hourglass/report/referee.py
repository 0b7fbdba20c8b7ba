"""Referees: what models without hidden layers make of the same rows in model space.

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
"""Most rows that logistic PCA learns from: it goes over all of them in each step."""


@dataclass(frozen=True)
class Verdict:
    """Error of one model on the judged rows: MSE, and FVU, its share of the rows' own spread."""

    name: str
    units: int
    mse: float
    fvu: float


def verdict(name: str, units: int, error: float, judged: Floats, mean: Floats) -> Verdict:
    """The verdict for a mean squared error on `judged` rows (B, F).

    FVU is relative to the spread around `mean` (F,), that of the training rows, as in training; NaN
    where there is no spread.
    """
    spread = float(np.square(judged - mean).mean())
    return Verdict(name, units, error, error / spread if spread else float("nan"))


def pca(fitted: Floats, judged: Floats, mean: Floats, components: int) -> Verdict:
    """PCA with as many components as it may have, up to `components`, learned from `fitted`."""
    return pca_at(fitted, judged, mean, (components,))[0]


def pca_at(fitted: Floats, judged: Floats, mean: Floats, widths: Sequence[int]) -> list[Verdict]:
    """PCA with as many components as it may have up to each of `widths`: one PCA's first ones."""
    most = min(max(widths), *fitted.shape)
    model = PCA(most, random_state=0).fit(fitted)
    code_BK = model.transform(judged)
    verdicts = []
    for width in (min(width, most) for width in widths):
        back = code_BK[:, :width] @ model.components_[:width] + model.mean_
        error = float(np.square(back - judged).mean())
        verdicts.append(verdict("PCA", width, error, judged, mean))
    return verdicts


def logistic_pca(fitted: Floats, judged: Floats, mean: Floats, components: int) -> Verdict:
    """Logistic PCA: sigmoid(U V + b), U for each row, V and b for all, by Bernoulli likelihood.

    V and b are learned from `fitted` and then stay; U is found for each judged row alone.
    Source: Schein, Saul and Ungar 2003, "A Generalized Linear Model for Principal Component
    Analysis of Binary Data", section 2; by Adam here, in place of their alternating updates.
    """
    rng = torch.Generator().manual_seed(0)
    learn = torch.from_numpy(fitted[:: -(-len(fitted) // LOGISTIC_ROWS)].clip(0.0, 1.0)).float()
    judge = torch.from_numpy(judged.clip(0.0, 1.0)).float()
    loadings = 0.1 * torch.randn(components, learn.shape[1], generator=rng)
    bias = learn.mean(dim=0).clamp(1e-3, 1.0 - 1e-3).logit()
    start = 0.1 * torch.randn(len(learn), components, generator=rng)
    _, loadings, bias = _climb(learn, start, [loadings, bias], learn_shared=True)
    start = torch.zeros(len(judge), components)
    rows, *_ = _climb(judge, start, [loadings, bias], learn_shared=False)
    back = torch.sigmoid(rows @ loadings + bias).numpy().astype(np.float64)
    error = float(np.square(back - judged).mean())
    return verdict("logistic PCA", components, error, judged, mean)


def _climb(
    target: Tensor, rows: Tensor, shared: list[Tensor], learn_shared: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """U, V and b after full-batch Adam steps up the likelihood; V and b move only if asked to."""
    rows = rows.requires_grad_()
    loadings, bias = [part.requires_grad_(learn_shared) for part in shared]
    optimizer = torch.optim.Adam([rows, *([loadings, bias] if learn_shared else [])], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        logits = rows @ loadings + bias
        loss = functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return rows.detach(), loadings.detach(), bias.detach()
