"""Calibration on held-out rows: score quantiles, the threshold, where each hash bit flips.

Shapes: B rows, C columns, K code units.
"""

from itertools import chain, islice

import numpy as np
import torch
from torch import Tensor

from hourglass.artifact import Calibration
from hourglass.data.feed import Feed
from hourglass.model.autoencoder import AutoencoderModule
from hourglass.training.collective import Peers

MOST_ROWS = 2**20
MOST_CODES = 2**14
GOLDEN_ROWS = 8
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0)


@torch.no_grad()
def calibrate(
    module: AutoencoderModule, feed: Feed, peers: Peers, quantile: float, device: torch.device
) -> tuple[Calibration, Tensor]:
    """Calibration over all workers' held-out rows (training rows without a holdout), golden rows.

    Each worker contributes its first rows, at most MOST_ROWS scores and MOST_CODES codes.
    """
    module.eval()
    width = module.spec.network.code_width
    # Filled in place: thousands of small results kept between large temporaries would scatter the
    # heap, and memory would grow with the rows.
    scores = torch.empty(MOST_ROWS, dtype=torch.float64, device=device)
    codes = torch.empty((MOST_CODES, width), device=device)
    golden: list[Tensor] = []
    rows = 0
    for part in _rows(feed, peers, device):
        part = part[: MOST_ROWS - rows]
        if not len(part):
            continue
        result = module(part)
        error_BF = (result.output_BF - result.clean_BF).square()
        scores[rows : rows + len(part)] = error_BF.mean(dim=1, dtype=torch.float64)
        if rows < MOST_CODES:
            room = codes[rows : rows + len(part)]
            room[:] = result.code_BK[: len(room)]
        golden += [part[:GOLDEN_ROWS].cpu()] if rows < GOLDEN_ROWS else []
        rows += len(part)
        if rows == MOST_ROWS:
            break
    every_score = torch.cat(peers.gather(scores[:rows])).cpu().numpy()
    every_code = torch.cat(peers.gather(codes[:rows])).cpu().numpy()
    middle = module.default_hash_threshold if module.spec.code.kind != "plain" else None
    bits = np.median(every_code, axis=0) if middle is None else np.full(width, middle)
    calibration = Calibration(
        rows=len(every_score),
        quantile=quantile,
        threshold=float(np.quantile(every_score, quantile)),
        quantiles={f"{q:g}": float(np.quantile(every_score, q)) for q in QUANTILES},
        hash_threshold=tuple(float(bit) for bit in bits),
    )
    kept = [part for worker in peers.share(golden) for part in worker]
    return calibration, torch.cat(kept)[:GOLDEN_ROWS]


def _rows(feed: Feed, peers: Peers, device: torch.device) -> "chain[Tensor]":
    held = (torch.from_numpy(rows).to(device) for rows in feed.holdout())
    first = next(held, None)
    anywhere = peers.sum(torch.tensor(0.0 if first is None else float(len(first)), device=device))
    if first is not None:
        return chain([first], held)
    if float(anywhere):
        return chain([])
    trained = (torch.from_numpy(batch.rows).to(device) for batch in feed.train(0))
    return chain(islice(trained, feed.steps))
