"""What a report knows: the model, the rows, and what the model makes of them, computed once.

Shapes: B rows, C raw columns, F features in model space, K code units.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hourglass.artifact import Manifest
from hourglass.inference.predictor import Predictor, Scores
from hourglass.report.pictures import Shape, shape_of
from hourglass.report.rows import Sight

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """The model on the rows: `space_BF` in model space, `bits_BK` of the hashes."""

    predictor: Predictor
    version: str | None
    digest: str
    sight: Sight
    label: str | None
    shape: Shape | None
    scores: Scores
    space_BF: Floats
    bits_BK: NDArray[np.uint8]

    @property
    def model(self) -> Manifest:
        """The artifact's manifest."""
        return self.predictor.artifact.manifest

    @property
    def rows_BC(self) -> Array:
        """The rows judged, raw."""
        return self.sight.judged.features


def look(
    predictor: Predictor, version: str | None, digest: str, sight: Sight, label: str | None
) -> Look:
    """One pass of the model over the rows of `sight`."""
    scores = predictor.score(sight.judged.features)
    return Look(
        predictor=predictor,
        version=version,
        digest=digest,
        sight=sight,
        label=label,
        shape=shape_of(predictor.artifact.manifest),
        scores=scores,
        space_BF=model_space(predictor, sight.judged.features),
        bits_BK=np.unpackbits(scores.hash, axis=1, count=predictor.code_width),
    )


def model_space(predictor: Predictor, rows_BC: Array) -> Floats:
    """Raw rows (B, C) in model space (B, F)."""
    (space_BF,) = predictor.map_tiles(rows_BC, lambda tile: [predictor.module.preprocessing(tile)])
    return space_BF.astype(np.float64)
