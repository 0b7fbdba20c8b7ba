"""Deep features: what a layer inside the encoder makes of rows.

Shapes: B rows, C raw columns, U units of the layer.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hourglass.errors import DataError
from hourglass.inference.predictor import Array, Predictor


def deep_features(predictor: Predictor, rows: Array, layer: int) -> NDArray[np.float32]:
    """Outputs (B, U) of an encoder layer for raw rows (B, C).

    Layers are counted from 1; the last one's output is the code. Raises: DataError for another layer.
    """
    module = predictor.module

    def forward(tile: Tensor) -> Iterable[Tensor]:
        *hidden, pre_BP = module.network.encoded(module.preprocessing(tile))
        outputs = [*hidden, module.code_from(pre_BP)]
        if not 1 <= layer <= len(outputs):
            raise DataError(
                f"layer: found {layer}, allowed are 1 to {len(outputs)}: the encoder has "
                f"{len(outputs)} layers, the last makes the code"
            )
        yield outputs[layer - 1]

    found: NDArray[np.float32]
    (found,) = predictor.map_tiles(rows, forward)
    return found
