"""The LSTM network: a row is a sequence; the code is read from the encoder's last state.

The decoder emits the steps that the encoder read in reverse order, the latest first, and the steps
that it did not read in their own order.
Source: Srivastava, Mansimov and Salakhutdinov 2015, "Unsupervised learning of video representations
using LSTMs", sections 2.2 to 2.4 (unconditioned decoders).
Shapes: B rows, T steps, D values of a step, F = T D features, P units before the code part, K code
units.
"""

from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from hourglass.model.activations import Activation
from hourglass.model.conv import require_shape
from hourglass.model.dense import Units
from hourglass.strict import Strict

Size = Annotated[int, Field(gt=0, le=2**16)]


class Lstm(Strict):
    """Encoder and decoder LSTMs over a vector column of T steps of D values."""

    kind: Literal["lstm"] = "lstm"
    shape: tuple[Size, Size] = Field(description="What a row is: [steps, values of a step].")
    hidden: Units = Field(64, description="Units of each LSTM layer.")
    layers: PositiveInt = Field(1, le=8, description="LSTM layers on either side.")
    code: Units = Field(description="Units of the code.")
    predict: NonNegativeInt = Field(
        0, description="Last steps that the encoder does not read: the decoder predicts them."
    )
    code_activation: Activation | None = Field(
        None, description="Activation of the code; default: tanh, or what the code part needs."
    )
    output_activation: Literal["auto"] | Activation = Field(
        "auto", description="auto: sigmoid for [0,1] data (scaling unit, loss bce), else linear."
    )

    @property
    def code_width(self) -> int:
        """K, the units of the code."""
        return self.code

    @property
    def last_activation(self) -> Activation:
        """The code's activation, unless `code_activation` or the code part asks for another."""
        return "tanh"

    def build(self, features: int, pre_units: int) -> "LstmNetwork":
        """The module, with fresh weights. Raises ValueError when rows have another width."""
        self.require(features)
        return LstmNetwork(self, pre_units)

    def require(self, features: int) -> None:
        """Raises ValueError when rows of so many features do not have the shape."""
        require_shape(self.kind, self.shape, features)

    @model_validator(mode="after")
    def _something_is_read(self) -> Self:
        if self.predict >= self.shape[0]:
            raise ValueError(
                f"predict: {self.predict} of {self.shape[0]} steps leaves none to read; "
                f"at most {self.shape[0] - 1}"
            )
        return self


class LstmNetwork(nn.Module):
    """Encoder and decoders of `Lstm`; both ends stop before their last activation."""

    def __init__(self, spec: Lstm, pre_units: int) -> None:
        super().__init__()
        self._steps, self._values = spec.shape
        self._ahead = spec.predict
        self.encoder = nn.LSTM(self._values, spec.hidden, spec.layers, batch_first=True)
        self.to_code = nn.Linear(spec.hidden, pre_units)
        self.backwards = _Decoder(spec)
        self.forwards = _Decoder(spec) if spec.predict else None

    def encode(self, x_BF: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Features (B, F) to the code's pre-activation (B, P)."""
        return self.encoded(x_BF, rng)[-1]

    def encoded(self, x_BF: Tensor, rng: torch.Generator | None = None) -> list[Tensor]:
        """The last state of the encoder's last layer, then the code's pre-activation."""
        x_BTD = x_BF.reshape(-1, self._steps, self._values)
        states, _ = self.encoder(x_BTD[:, : self._steps - self._ahead])
        last = states[:, -1]
        return [last, self.to_code(last)]

    def decode(self, code_BK: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """Codes (B, K) to the output's pre-activation (B, F)."""
        read_BTD: Tensor = self.backwards(code_BK, self._steps - self._ahead).flip(1)
        if self.forwards is None:
            return read_BTD.flatten(1)
        return torch.cat([read_BTD, self.forwards(code_BK, self._ahead)], dim=1).flatten(1)

    def matrices(self) -> list[Tensor]:
        """Weights of all layers."""
        return [parameter for parameter in self.parameters() if parameter.ndim > 1]

    def only_layer(self) -> Tensor | None:
        """None: a recurrent layer is not a matrix."""
        return None


class _Decoder(nn.Module):
    """The code at every step, through an LSTM, to the values of the steps."""

    def __init__(self, spec: Lstm) -> None:
        super().__init__()
        self.lstm = nn.LSTM(spec.code, spec.hidden, spec.layers, batch_first=True)
        self.values = nn.Linear(spec.hidden, spec.shape[1])

    def forward(self, code_BK: Tensor, steps: int) -> Tensor:
        states, _ = self.lstm(code_BK.unsqueeze(1).expand(-1, steps, -1))
        return torch.as_tensor(self.values(states))
