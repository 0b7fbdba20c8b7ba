"""The networks to choose from: each a spec that builds a module with `encode` and `decode`."""

from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from hourglass.model.conv import Conv
from hourglass.model.dense import Dense
from hourglass.model.lstm import Lstm
from hourglass.strict import kind_unless_named

Network = Annotated[Dense | Conv | Lstm, Field(discriminator="kind"), kind_unless_named("dense")]


class Layers(Protocol):
    """What a network's module does. Shapes: B rows, F features, P = units before the code part."""

    def encode(self, x_BF: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Features (B, F) to the code's pre-activation (B, P); with `rng`, training noise is on."""
        ...

    def encoded(self, x_BF: Tensor, rng: torch.Generator | None = None) -> list[Tensor]:
        """The output of each hidden layer of the encoder, then the code's pre-activation."""
        ...

    def decode(self, code_BK: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Codes (B, K) to the output's pre-activation (B, F)."""
        ...

    def matrices(self) -> list[Tensor]:
        """The weights of all layers, without biases and norms; a tied one once."""
        ...

    def only_layer(self) -> Tensor | None:
        """Weights (P, F) when the encoder is a single linear layer."""
        ...
