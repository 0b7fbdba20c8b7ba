"""What a sweep's best is compared with: PCA on the same rows, and the champion before.

Challenger and champion are compared on the same held-out rows, in one model space.
Each model's own score is in units of its own scaling, so two of them say nothing about each other.
Here both reconstruct raw rows, and both reconstructions are scaled as the challenger scales rows.
Shapes: B rows, C raw columns, F features of the challenger's model space.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hourglass.config.train import TrainJob
from hourglass.data.loader import Features
from hourglass.data.stats import Stats
from hourglass.errors import DataError
from hourglass.inference.predictor import TILE, Predictor
from hourglass.report.baseline import pca_at
from hourglass.settings import Settings
from hourglass.tracking import registry
from hourglass.tracking.registry import CHALLENGER, CHAMPION, Promoted
from hourglass.training.build import fit_preprocessing
from hourglass.tuning import leaderboard
from hourglass.tuning.leaderboard import Entry
from hourglass.tuning.on_disk import Rows

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
                new, placed.measured.statistics.stats, placed.train, placed.holdout
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


Array = NDArray[Any]
CHUNK = 64 * TILE
"""Rows of which both reconstructions are in memory at a time."""


@dataclass(frozen=True)
class Verdict:
    """Mean squared errors of both on `rows` rows, in the challenger's model space; infinite where a
    reconstruction is not finite. Equal ones leave the champion where it is."""

    challenger: float
    champion: float
    rows: int

    @property
    def better(self) -> bool:
        """True when the challenger's error is the lower one."""
        return self.challenger < self.champion

    @property
    def sentence(self) -> str:
        """Both errors and what follows from them."""
        times = self.challenger / self.champion if self.champion else math.inf
        how = f"{times:.4g} times" if math.isfinite(times) else "against"
        says = "the challenger is better" if self.better else "the champion stays"
        return (
            f"the challenger's error on {self.rows:,} held-out rows is {self.challenger:.4g}, {how} "
            f"the champion's {self.champion:.4g}: {says}"
        )


@dataclass(frozen=True)
class Ruling:
    """What became of a challenger: `promoted` is None when the champion stays, `verdict` when
    nothing was compared; `sentence` says why."""

    promoted: Promoted | None
    verdict: Verdict | None
    sentence: str


def better(challenger: Predictor, champion: Predictor, rows: Array) -> Verdict:
    """Compare both on raw held-out rows (B, C), missing cells left out.

    An ensemble reconstructs by its lead. Raises: DataError when the champion takes other features,
    when there are no rows, or when a model does not take them.
    """
    if difference := _difference(challenger, champion):
        raise DataError(difference)
    rows = np.asarray(rows)
    if not len(rows):
        raise DataError("no held-out rows to compare the models on; set data.holdout above 0")
    sums, cells = np.zeros(2), 0
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        known = np.isfinite(chunk)[:, challenger.module.preprocessing.kept_F.numpy(force=True)]
        truth = _scaled(challenger, chunk)
        cells += int(known.sum())
        for index, model in enumerate((challenger, champion)):
            made = model.reconstruct(chunk)
            if not np.isfinite(made).all():
                sums[index] = math.inf
                continue
            sums[index] += np.square(_scaled(challenger, made) - truth)[known].sum()
    if not cells:
        raise DataError("every cell of the held-out rows is missing: there is nothing to compare")
    return Verdict(float(sums[0] / cells), float(sums[1] / cells), len(rows))


def promote_if_better(settings: Settings, name: str, version: str, rows: Array) -> Ruling:
    """Move `champion` of the registered model `name` to `version` if it is better on `rows` (B, C).

    The first one becomes champion as it is. Where the two cannot be compared the champion stays, and
    the sentence says why. Raises: RegistryError, ArtifactError.
    """
    before = registry.champion(settings, name)
    if before is None:
        return _promoted(settings, name, version, None)
    if before.version == version:
        return Ruling(None, None, f"{name} version {version} is {CHAMPION} already")
    models = [
        Predictor.load(found.path, found.digest)
        for found in (
            registry.resolve(f"models:/{name}/{number}", settings)
            for number in (version, before.version)
        )
    ]
    stays = f"{name} version {before.version} stays {CHAMPION}"
    try:
        verdict = better(models[0], models[1], rows)
    except DataError as error:  # it cannot be told, which is no reason for a sweep to fail
        return Ruling(None, None, f"{stays}: {error}")
    if verdict.better:
        return _promoted(settings, name, version, verdict)
    return Ruling(None, verdict, f"{stays}: {verdict.sentence}")


def _promoted(settings: Settings, name: str, version: str, verdict: Verdict | None) -> Ruling:
    promoted = registry.promote(settings, name, version)
    why = verdict.sentence if verdict else "there was none before"
    return Ruling(promoted, verdict, f"{name} version {version} is {CHAMPION}: {why}")


def _scaled(model: Predictor, rows: Array) -> NDArray[np.float64]:
    """Raw rows (B, C) in the model space (B, F) of `model`."""
    (space_BF,) = model.map_tiles(rows, lambda tile: [model.module.preprocessing(tile)])
    wide: NDArray[np.float64] = space_BF.astype(np.float64)
    return wide


def _difference(challenger: Predictor, champion: Predictor) -> str:
    """What differs in the features, and what to do; empty when both take the same ones.

    The type of the cells may differ: the same numbers mean the same rows.
    """
    ours, theirs = challenger.features, champion.features
    if ours.feature_names == theirs.feature_names:
        return ""
    what = f"the {CHAMPION} takes {_few(theirs.feature_names)}, the {CHALLENGER} {_few(ours.feature_names)}"
    return (
        f"{what}; no rows fit both, so neither can be better: promote by hand, or register the "
        f"{CHALLENGER} under another name"
    )


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} features ({shown}{', ...' if len(names) > 3 else ''})"
