"""The element-wise functions a layer may end in, by their usual names."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["linear", "tanh", "relu", "sigmoid", "elu", "selu", "gelu", "silu", "softplus"]


def linear(x: Tensor) -> Tensor:
    """x itself; a named function, so that a fitted estimator can be copied to another process."""
    return x


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
