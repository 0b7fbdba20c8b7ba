"""PCA as the judge of a sweep: what a linear map with as many units makes of the same rows."""

import json
from collections.abc import Mapping, Sequence

import torch

from hourglass.config.train import TrainJob
from hourglass.data.feed import Features
from hourglass.data.stats import Stats
from hourglass.errors import DataError
from hourglass.report.referee import pca_at
from hourglass.training.build import fit_preprocessing
from hourglass.tuning import leaderboard
from hourglass.tuning.leaderboard import Entry
from hourglass.tuning.rows import Rows

MOST_CELLS = 2**26
"""Most numbers that PCA learns from (half a GiB); of more rows every second, third, ... is taken."""


class Judge:
    """Puts PCA beside the finished trials of the sweep in `folder`, and judges each of them once."""

    def __init__(self, folder: str) -> None:
        self._known = _known(folder)

    def beside(
        self, entries: Sequence[Entry], jobs: Mapping[str, TrainJob], rows: Rows
    ) -> list[Entry]:
        """The entries, each of a finished trial beside PCA with as many units."""
        finished = [entry.trial for entry in entries if entry.status == "finished"]
        new = {trial: jobs[trial] for trial in finished if trial not in self._known}
        if new:
            placed = rows.placed
            self._known |= dict.fromkeys(new)
            self._known |= pca_errors(
                new, placed.measured.census.stats, placed.train, placed.holdout
            )
        return [
            entry.having(pca_mse=self._known[entry.trial]) if entry.trial in finished else entry
            for entry in entries
        ]


def _known(folder: str) -> dict[str, float | None]:
    """What the leaderboard of an ended sitting says of PCA, for each finished trial."""
    try:
        earlier = leaderboard.load(folder)
    except DataError:
        return {}  # it is written anew
    entries = earlier.entries if earlier and earlier.ended else ()
    return {entry.trial: entry.pca_mse for entry in entries if entry.status == "finished"}


def pca_errors(
    jobs: Mapping[str, TrainJob], stats: Stats, train: Features, holdout: Features
) -> dict[str, float]:
    """For each trial, the MSE in model space of PCA with its code's units, on the held-out rows.

    One PCA serves all trials of the same scaling. Left out: a code as wide as a row.
    """
    if not len(holdout):
        return {}
    groups: dict[str, dict[str, TrainJob]] = {}
    for trial, job in jobs.items():
        scaling = json.dumps(job.data.scaling.model_dump(mode="json"))
        groups.setdefault(scaling, {})[trial] = job
    found: dict[str, float] = {}
    for group in groups.values():
        scale = fit_preprocessing(next(iter(group.values())), stats)
        features = len(scale.kept_F)
        units = {t: job.model.network.code_width for t, job in group.items()}
        widths = sorted({width for width in units.values() if width < features})
        if not widths:
            continue
        every = -(-train.size // MOST_CELLS)
        fitted, judged = (
            scale(torch.from_numpy(rows.copy())).double().numpy()
            for rows in (train[::every], holdout)
        )
        mean = scale.mean_F.double().numpy()
        verdicts = pca_at(fitted, judged, mean, widths)
        error = {width: verdict.mse for width, verdict in zip(widths, verdicts, strict=True)}
        found |= {t: error[width] for t, width in units.items() if width in error}
    return found
