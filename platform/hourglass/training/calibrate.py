"""Calibration on held-out rows: quantiles of the score, its threshold, and those of the hash bits.

Shapes: M members, B rows, C columns, K code units.
"""

from collections.abc import Sequence
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hourglass.artifact import Calibration
from hourglass.data.loader import Loader
from hourglass.model.autoencoder import (
    AutoencoderModule,
    Combine,
    combined,
    scored_error,
    scores,
    squared_error,
)
from hourglass.training.collective import ProcessGroup

MAX_ROWS = 2**20
MAX_CODES = 2**14
REFERENCE_ROWS = 8
FLOOR, TINY = 1e-3, 1e-30
ERROR_WEIGHT = 0.8
"""Weight of the mean squared error, besides that of the variance, in the scale of a scaled score."""
UNKNOWN_LEVEL = 0.25
"""Mean part of a level that is unrelated to other columns, relative to 1 for a measure."""
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0)


@torch.no_grad()
def calibrate(
    members: Sequence[AutoencoderModule],
    combine: Combine,
    loader: Loader,
    group: ProcessGroup,
    quantile: float,
    device: torch.device,
) -> tuple[Calibration, Tensor, dict[str, float]]:
    """Calibration over all workers' held-out rows (training rows without a holdout), reference
    rows, and the agreement of the members. The codes are those of the first, the primary member.

    Each worker contributes its first rows, at most MAX_ROWS scores and MAX_CODES codes.
    """
    for member in members:
        member.eval()
    module = members[0]
    if module.spec.scaled_score:
        _set_typical_errors(members, loader, group, device)
    width = module.spec.network.code_width
    # Filled in place: thousands of small results between large temporaries would fragment the heap, and
    # memory would grow with the rows.
    score_BM = torch.empty((MAX_ROWS, len(members)), dtype=torch.float64, device=device)
    codes = torch.empty((MAX_CODES, width), device=device)
    reference: list[Tensor] = []
    rows = 0
    for part in _rows(loader, group, device):
        part = part[: MAX_ROWS - rows]
        if not len(part):
            continue
        results = [member(part) for member in members]
        errors = [*map(scored_error, members, results)]
        score_BM[rows : rows + len(part)] = scores(errors).T
        if rows < MAX_CODES:
            target = codes[rows : rows + len(part)]
            target[:] = results[0].code_BK[: len(target)]
        reference += [part[:REFERENCE_ROWS].cpu()] if rows < REFERENCE_ROWS else []
        rows += len(part)
        if rows == MAX_ROWS:
            break
    every_MB = torch.cat(group.gather(score_BM[:rows])).cpu().T
    every_score = combined(every_MB, combine).numpy()
    every_code = torch.cat(group.gather(codes[:rows])).cpu().numpy()
    middle = module.default_hash_threshold if module.spec.code.hash_at_middle else None
    bits = np.median(every_code, axis=0) if middle is None else np.full(width, middle)
    calibration = Calibration(
        rows=len(every_score),
        quantile=quantile,
        threshold=float(np.quantile(every_score, quantile)),
        quantiles={f"{q:g}": float(np.quantile(every_score, q)) for q in QUANTILES},
        hash_threshold=tuple(float(bit) for bit in bits),
    )
    return calibration, _first_rows(reference, group), rank_agreement(every_MB.numpy())


def _first_rows(reference: list[Tensor], group: ProcessGroup) -> Tensor:
    """The reference rows on the first worker; the others send it only what it lacks.

    Workers exchange without encryption, also where a cluster has TLS, and rows may be private.
    """
    own = torch.cat(reference)[:REFERENCE_ROWS] if reference else None
    counts = group.share(0 if own is None else len(own))
    lacking = max(0, REFERENCE_ROWS - sum(counts[: max(1, group.rank)]))
    sent = None if group.rank == 0 or own is None or not lacking else own[:lacking]
    parts = [rows for rows in (own, *group.share(sent)) if rows is not None]
    return torch.cat(parts)[:REFERENCE_ROWS] if parts else torch.empty(0)


def _set_typical_errors(
    members: Sequence[AutoencoderModule], loader: Loader, group: ProcessGroup, device: torch.device
) -> None:
    """Set what each member divides the squared error of each column by, from the training rows.

    For a measure, this is the geometric mean of its mean squared error and its variance, weighted 4 to 1,
    times a constant that makes the mean part of all measures 1. Scaled by its error alone, a column that
    the model predicts almost exactly would count as much as any other; scaled by its variance alone, an
    unpredictable column would dominate. For a level, it is the error; an unpredictable level has a quarter
    of the weight, since the errors of a rare level are large in all of its rows.
    The error of a column is at least a thousandth of the mean over all columns, and that of a constant
    column, whose errors are not informative, at least the mean.
    """
    sums = [
        torch.zeros((2, len(m.preprocessing.kept_F)), dtype=torch.float64, device=device)
        for m in members
    ]
    rows = torch.zeros((), dtype=torch.float64, device=device)
    for batch in islice(loader.train(0), loader.steps):
        part = torch.from_numpy(batch.rows).to(device)
        rows += len(part)
        for member, sum_2F in zip(members, sums, strict=True):
            result = member(part)
            away_BF = result.clean_BF - member.preprocessing.mean_F
            sum_2F[0] += squared_error(result).sum(dim=0, dtype=torch.float64)
            sum_2F[1] += away_BF.square().sum(dim=0, dtype=torch.float64)
    total = group.sum(rows)
    for member, sum_2F in zip(members, sums, strict=True):
        error_F, variance_F = group.sum(sum_2F) / total
        constant_F = member.preprocessing.low_F >= member.preprocessing.high_F
        error_F = error_F.maximum(torch.where(constant_F, 1.0, FLOOR) * error_F.mean())
        error_F = error_F.clamp(min=TINY)
        spread_F = torch.where(constant_F, error_F, variance_F).clamp(min=TINY)
        scale_F = error_F**ERROR_WEIGHT * spread_F ** (1.0 - ERROR_WEIGHT)
        level_F = member.preprocessing.level_F
        part = (error_F / scale_F)[~level_F].mean()
        assert member.typical_F is not None
        unknown_F = (error_F / spread_F).clamp(max=1.0)
        weight_F = 1.0 - (1.0 - UNKNOWN_LEVEL) * unknown_F
        member.typical_F.copy_(torch.where(level_F, error_F / weight_F, scale_F * part))


def other_quantile(what: str, kept: Calibration, quantile: float) -> str | None:
    """A warning that `quantile` is not that of the finished model `what`; None if it is."""
    if quantile == kept.quantile:
        return None
    score = next((s for q, s in kept.quantiles.items() if float(q) == quantile), None)
    known = "" if score is None else f", which is {score:.6g} at quantile {quantile:g}"
    return (
        f"{what} was finished with quantile {kept.quantile:g}, found quantile {quantile:g}: the threshold "
        f"stays {kept.threshold:.6g}; retrain with --fresh, or score with your own `threshold`{known}"
    )


def rank_agreement(score_MB: NDArray[np.float64]) -> dict[str, float]:
    """The mean Spearman correlation over all pairs of members, as a metric; between -1 and 1.

    Empty for a single member, and when all scores of a member are equal, so that it has no ranks.
    Source: Spearman 1904, "The proof and measurement of association between two things".
    """
    if len(score_MB) == 1 or not np.ptp(score_MB, axis=1).all():
        return {}
    from scipy.stats import rankdata  # takes half a second, which a single model does not need

    rank_MB = rankdata(score_MB, axis=1)
    pairs = np.atleast_2d(np.corrcoef(rank_MB))[np.triu_indices(len(rank_MB), k=1)]
    return {"rank_agreement": float(pairs.mean())}


def _rows(loader: Loader, group: ProcessGroup, device: torch.device) -> "chain[Tensor]":
    held = (torch.from_numpy(rows).to(device) for rows in loader.holdout())
    first = next(held, None)
    anywhere = group.sum(torch.tensor(0.0 if first is None else float(len(first)), device=device))
    if first is not None:
        return chain([first], held)
    if float(anywhere):
        return chain([])
    trained = (torch.from_numpy(batch.rows).to(device) for batch in loader.train(0))
    return chain(islice(trained, loader.steps))
