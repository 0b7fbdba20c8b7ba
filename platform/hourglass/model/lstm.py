"""The LSTM network: a row is a sequence; the code is read from the encoder's last state.

The decoder emits the steps that the encoder read in reverse order, the latest first, and the steps
that it did not read in their own order.
Source: Srivastava, Mansimov and Salakhutdinov 2015, "Unsupervised learning of video representations
using LSTMs", sections 2.2 to 2.4 (unconditioned decoders).
Shapes: B rows, T steps, D values of a step, F = T D features, P units before the code part, K code
units.
"""

from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from hourglass.model.activations import Activation
from hourglass.model.network import Layer, Link, NetworkModule, NetworkPart, Units, count
from hourglass.model.noise import Noise

Size = Annotated[int, Field(gt=0, le=2**16)]


class Lstm(NetworkPart):
    """Encoder and decoder LSTMs over a vector column of T steps of D values."""

    kind: Literal["lstm"] = "lstm"
    no_second_derivatives: ClassVar[str] = (
        "the LSTM of a GPU does not have; use network dense or conv"
    )
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

    @property
    def row_shape(self) -> tuple[int, ...]:
        """`shape`."""
        return self.shape

    @model_validator(mode="after")
    def _something_is_read(self) -> Self:
        if self.predict >= self.shape[0]:
            raise ValueError(
                f"predict: {self.predict} of {self.shape[0]} steps leaves none to read; "
                f"at most {self.shape[0] - 1}"
            )
        return self


class LstmNetwork(NetworkModule):
    """Encoder and decoders of `Lstm`; both ends stop before their last activation."""

    def __init__(self, spec: Lstm, pre_units: int) -> None:
        super().__init__()
        self._spec = spec
        self._steps, self._values = spec.shape
        self._ahead = spec.predict
        self.encoder = nn.LSTM(self._values, spec.hidden, spec.layers, batch_first=True)
        self.to_code = nn.Linear(spec.hidden, pre_units)
        self.backwards = _Decoder(spec)
        self.forwards = _Decoder(spec) if spec.predict else None

    def encode(self, x_BF: Tensor, rng: Noise | None = None) -> Tensor:
        """Features (B, F) to the code's pre-activation (B, P)."""
        return self.encoded(x_BF, rng)[-1]

    def encoded(self, x_BF: Tensor, rng: Noise | None = None) -> list[Tensor]:
        """The last state of the encoder's last layer, then the code's pre-activation."""
        x_BTD = x_BF.reshape(-1, self._steps, self._values)
        states, _ = self.encoder(x_BTD[:, : self._steps - self._ahead])
        last = states[:, -1]
        return [last, self.to_code(last)]

    def decode(self, code_BK: Tensor, rng: Noise | None = None) -> Tensor:
        """Codes (B, K) to the output's pre-activation (B, F)."""
        read_BTD: Tensor = self.backwards(code_BK, self._steps - self._ahead).flip(1)
        if self.forwards is None:
            return read_BTD.flatten(1)
        return torch.cat([read_BTD, self.forwards(code_BK, self._ahead)], dim=1).flatten(1)

    def layers(self) -> list[Layer]:
        """LSTM layers over the steps, with the encoder's last state into the code."""
        spec = self._spec
        steps, values = spec.shape
        read, sized = steps - spec.predict, (steps * values, f"{steps} x {values}")
        made = [Layer("row", *sized, role="row")]
        for index in range(spec.layers):
            reads = (f"reads {read} of {steps} steps",) if spec.predict and index == 0 else ()
            link = Link(("LSTM", *reads), _of_layer(self.encoder, index))
            made.append(_states(f"encoder {index + 1}", read, spec.hidden, (link,)))
        last = Link(("dense", "last step only"), count(self.to_code))
        made.append(Layer("code", spec.code, f"{spec.code:,}", links=(last,), role="code"))
        decoders = [(f"{read} steps, back", self.backwards)]
        if self.forwards is not None:
            decoders.append((f"{spec.predict} steps ahead", self.forwards))
        for index in range(spec.layers):
            links = tuple(
                Link((f"LSTM, {name}",), _of_layer(part.lstm, index)) for name, part in decoders
            )
            made.append(_states(f"decoder {index + 1}", steps, spec.hidden, links))
        links = tuple(Link((f"dense, {name}",), count(part.values)) for name, part in decoders)
        return [*made, Layer("output", *sized, links=links, role="output")]


def _states(name: str, steps: int, hidden: int, links: tuple[Link, ...]) -> Layer:
    return Layer(name, steps * hidden, f"{steps} x {hidden}", ("tanh, gated",), links)


def _of_layer(lstm: nn.LSTM, index: int) -> int:
    """Parameters of one of its layers, which torch names `..._l0`, `..._l1`, ..."""
    named = lstm.named_parameters()
    return sum(weight.numel() for name, weight in named if name.endswith(f"_l{index}"))


class _Decoder(nn.Module):
    """The code at every step, through an LSTM, to the values of the steps."""

    def __init__(self, spec: Lstm) -> None:
        super().__init__()
        self.lstm = nn.LSTM(spec.code, spec.hidden, spec.layers, batch_first=True)
        self.values = nn.Linear(spec.hidden, spec.shape[1])

    def forward(self, code_BK: Tensor, steps: int) -> Tensor:
        states, _ = self.lstm(code_BK.unsqueeze(1).expand(-1, steps, -1))
        return torch.as_tensor(self.values(states))
