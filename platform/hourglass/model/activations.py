"""The element-wise functions a layer may end in, by their usual names."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["linear", "tanh", "relu", "sigmoid", "elu", "selu", "gelu", "silu", "softplus"]


def linear(x: Tensor) -> Tensor:
    """x itself; a named function, so that a fitted estimator can be copied to another process."""
    return x


RANGES: dict[Activation, tuple[float, float]] = {
    "linear": (-math.inf, math.inf),
    "tanh": (-1.0, 1.0),
    "relu": (0.0, math.inf),
    "sigmoid": (0.0, 1.0),
    "elu": (-1.0, math.inf),
    "selu": (-1.7580993408473766, math.inf),
    "gelu": (-0.16997120747990369, math.inf),
    "silu": (-0.27846454276107380, math.inf),
    "softplus": (0.0, math.inf),
}
"""Lowest and highest value of each function."""

CODE_LOW: dict[Activation, float] = {n: low for n, (low, high) in RANGES.items() if high < math.inf}
"""Lowest value of a bounded code activation (the highest is 1)."""

FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "linear": linear,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "elu": functional.elu,
    "selu": functional.selu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "softplus": functional.softplus,
}
