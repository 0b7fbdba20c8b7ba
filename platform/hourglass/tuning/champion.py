"""Is the challenger better than the champion? Both on the same held-out rows, in one model space.

Each model's own score is in units of its own scaling, so two of them say nothing about each other.
Here both reconstruct raw rows, and both reconstructions are scaled as the challenger scales rows.
Shapes: B rows, C raw columns, F features of the challenger's model space.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hourglass.errors import DataError
from hourglass.inference.predictor import TILE, Predictor
from hourglass.settings import Settings
from hourglass.tracking import registry
from hourglass.tracking.registry import CHALLENGER, CHAMPION, Promoted

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
