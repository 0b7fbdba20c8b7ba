"""What the trials of a sweep are compared with: PCA on the same rows, and the current champion.

Challenger and champion are compared on the same held-out rows, in one model space. The scores of two
models are in units of their own scalings and cannot be compared. So both reconstruct raw rows, and both
reconstructions are scaled as the challenger scales rows.
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
from hourglass.errors import DataError, HourglassError
from hourglass.inference.predictor import TILE, Predictor
from hourglass.report.baseline import pca_at
from hourglass.settings import Settings
from hourglass.tracking import registry
from hourglass.tracking.backend import CHALLENGER, CHAMPION
from hourglass.tracking.registry import Promoted
from hourglass.training.build import fit_preprocessing
from hourglass.tuning import leaderboard
from hourglass.tuning.leaderboard import Entry
from hourglass.tuning.store import SharedRows

MAX_CELLS = 2**26
"""Maximum numbers to fit PCA on (half a GiB); with more rows, every second, third, ... is used."""


class Baseline:
    """The PCA baseline of the finished trials of the sweep in `folder`, computed once per trial."""

    def __init__(self, folder: str) -> None:
        self._known = _known(folder)

    def compared(
        self, entries: Sequence[Entry], jobs: Mapping[str, TrainJob], rows: SharedRows
    ) -> list[Entry]:
        """The entries, those of finished trials with the error of PCA with as many units."""
        finished = [entry.trial for entry in entries if entry.status == "finished"]
        new = {trial: jobs[trial] for trial in finished if trial not in self._known}
        if new:
            loaded = rows.loaded
            self._known |= dict.fromkeys(new)
            self._known |= pca_errors(
                new, loaded.data.statistics.stats, loaded.train, loaded.holdout
            )
        return [
            entry.having(pca_mse=self._known[entry.trial]) if entry.trial in finished else entry
            for entry in entries
        ]


def _known(folder: str) -> dict[str, float | None]:
    """The PCA errors of finished trials in the leaderboard of an ended session."""
    try:
        earlier = leaderboard.load(folder)
    except DataError:
        return {}  # a new one will replace it
    entries = earlier.entries if earlier and earlier.ended else ()
    return {entry.trial: entry.pca_mse for entry in entries if entry.status == "finished"}


def pca_errors(
    jobs: Mapping[str, TrainJob], stats: Stats, train: Features, holdout: Features
) -> dict[str, float]:
    """For each trial, the MSE in model space of PCA with as many units, on the held-out rows.

    One PCA serves all trials with the same scaling. Trials whose code is as wide as a row are left out.
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
        every = -(-train.size // MAX_CELLS)
        fitted, heldout = (
            scale(torch.from_numpy(rows.copy())).double().numpy()
            for rows in (train[::every], holdout)
        )
        mean = scale.mean_F.double().numpy()
        results = pca_at(fitted, heldout, mean, widths)
        error = {width: result.mse for width, result in zip(widths, results, strict=True)}
        found |= {t: error[width] for t, width in units.items() if width in error}
    return found


Array = NDArray[Any]
CHUNK = 64 * TILE
"""Rows whose two reconstructions are in memory at a time."""


@dataclass(frozen=True)
class Comparison:
    """Mean squared errors of both models on `rows` rows, in the challenger's model space; infinite
    where a reconstruction is not finite. Equal errors leave the champion in place."""

    challenger: float
    champion: float
    rows: int

    @property
    def better(self) -> bool:
        """True when the challenger's error is lower."""
        return self.challenger < self.champion

    @property
    def message(self) -> str:
        """Both errors and the result."""
        times = self.challenger / self.champion if self.champion else math.inf
        ratio = f"{times:.4g} times" if math.isfinite(times) else "against"
        result = "the challenger is better" if self.better else "the champion stays"
        return (
            f"the challenger's error on {self.rows:,} held-out rows is {self.challenger:.4g}, {ratio} "
            f"the champion's {self.champion:.4g}: {result}"
        )


@dataclass(frozen=True)
class Decision:
    """What became of a challenger: `promoted` is None when the champion stays, `comparison` when
    nothing was compared; `message` gives the reason."""

    promoted: Promoted | None
    comparison: Comparison | None
    message: str


def compare(challenger: Predictor, champion: Predictor, rows: Array) -> Comparison:
    """Compare both models on raw held-out rows (B, C), without missing cells.

    An ensemble reconstructs with its primary member. Raises: DataError when the champion takes other
    features, when there are no rows, or when a model rejects them.
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
    return Comparison(float(sums[0] / cells), float(sums[1] / cells), len(rows))


def promote_if_better(settings: Settings, name: str, version: str, rows: Array) -> Decision:
    """Move `champion` of the registered model `name` to `version` if it is better on `rows` (B, C).

    The first version becomes champion without a comparison. Where two versions cannot be compared, the
    champion stays, and the message gives the reason. Raises: RegistryError, ArtifactError.
    """
    before = registry.champion(settings, name)
    comparison = None
    if before is not None:
        if before.version == version:
            return Decision(None, None, f"{name} version {version} is already {CHAMPION}")
        stays = f"{name} version {before.version} stays {CHAMPION}"
        models = [
            registry.resolve(f"models:/{name}/{v}", settings) for v in (version, before.version)
        ]
        challenger, champion = (Predictor.load(found.path, found.digest) for found in models)
        try:
            comparison = compare(challenger, champion, rows)
        except DataError as error:  # not comparable, which must not fail the sweep
            return Decision(None, None, f"{stays}: {error}")
        if not comparison.better:
            return Decision(None, comparison, f"{stays}: {comparison.message}")
    promoted = registry.promote(settings, name, version)
    why = comparison.message if comparison else "there was none before"
    return Decision(promoted, comparison, f"{name} version {version} is {CHAMPION}: {why}")


def promote_best(settings: Settings, name: str, version: str | None, rows: SharedRows) -> str:
    """Promote the registered version of a sweep's best trial if it is better; the message about it."""
    if version is None:
        return (
            f"promote_if: no version of {name} was registered yet; once there is one, decide with "
            f"`hourglass models promote {name} VERSION`"
        )
    try:
        return promote_if_better(settings, name, version, rows.loaded.holdout).message
    except HourglassError as error:
        return (
            f"promote_if: nothing was decided: {error}; decide with "
            f"`hourglass models promote {name} {version}`"
        )


def _scaled(model: Predictor, rows: Array) -> NDArray[np.float64]:
    """Raw rows (B, C) in the model space (B, F) of `model`."""
    (space_BF,) = model.map_tiles(rows, lambda tile: [model.module.preprocessing(tile)])
    wide: NDArray[np.float64] = space_BF.astype(np.float64)
    return wide


def _difference(challenger: Predictor, champion: Predictor) -> str:
    """How the features differ, and what to do; empty when both take the same.

    The data types of the cells may differ: equal numbers are equal rows.
    """
    ours, theirs = challenger.features, champion.features
    if ours.feature_names == theirs.feature_names:
        return ""
    what = f"the {CHAMPION} takes {_few(theirs.feature_names)}, the {CHALLENGER} {_few(ours.feature_names)}"
    return (
        f"{what}; no rows fit both, so they cannot be compared: promote a version yourself, or register "
        f"the {CHALLENGER} under another name"
    )


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} features ({shown}{', ...' if len(names) > 3 else ''})"
