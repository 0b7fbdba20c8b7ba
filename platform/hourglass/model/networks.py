"""Networks: from a row of features to the pre-activation of the code, and back.

Shapes: B rows, F features, K code units.
"""

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hourglass.model.activations import FUNCTIONS, Activation
from hourglass.strict import Strict

Units = Annotated[int, Field(gt=0, le=2**30)]


class Dense(Strict):
    """Fully connected layers; the last of `widths` is the code."""

    kind: Literal["dense"] = "dense"
    widths: tuple[Units, ...] = Field(
        min_length=1,
        max_length=64,
        description="Units of each encoder layer; the last is the code.",
    )
    decoder: tuple[Units, ...] | None = Field(
        None,
        max_length=64,
        description="Units of the decoder's hidden layers; default: the encoder mirrored.",
    )
    activation: Activation = Field(
        "tanh", description="Activation of the hidden layers and the code."
    )
    code_activation: Activation | None = Field(
        None, description="Activation of the code, if another."
    )
    output_activation: Literal["auto"] | Activation = Field(
        "auto", description="auto: sigmoid for [0,1] data (scaling unit, loss bce), else linear."
    )

    @property
    def code_width(self) -> int:
        """K, the units of the code."""
        return self.widths[-1]


Network = Dense


class DenseNetwork(nn.Module):
    """Encoder and decoder stacks of `Dense`; both end before their last activation."""

    def __init__(self, spec: Dense, features: int) -> None:
        super().__init__()
        hidden = spec.decoder if spec.decoder is not None else tuple(reversed(spec.widths[:-1]))
        self.encoder = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((features, *spec.widths)))
        self.decoder = nn.ModuleList(
            nn.Linear(a, b) for a, b in pairwise((spec.code_width, *hidden, features))
        )
        self._activation = FUNCTIONS[spec.activation]

    def encode(self, x_BF: Tensor) -> Tensor:
        """Features (B, F) to the code's pre-activation (B, K)."""
        return self._stack(self.encoder, x_BF)

    def decode(self, code_BK: Tensor) -> Tensor:
        """Codes (B, K) to the output's pre-activation (B, F)."""
        return self._stack(self.decoder, code_BK)

    def _stack(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        for layer in layers[:-1]:
            x = self._activation(layer(x))
        return torch.as_tensor(layers[-1](x))
