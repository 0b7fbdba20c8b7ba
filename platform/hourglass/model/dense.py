"""The dense network: fully connected layers from features to the code's pre-activation, and back.

Shapes: B rows, F features, P units before the code part, K code units.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from hourglass.model.activations import FUNCTIONS, Activation
from hourglass.model.network import (
    Layer,
    LayerStack,
    Link,
    NetworkModule,
    NetworkPart,
    Units,
    count,
)
from hourglass.model.noise import Noise

Norm = Literal["none", "layer", "batch"]


class Dense(NetworkPart):
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
    activation: Activation | tuple[Activation, ...] = Field(
        "tanh",
        description="Activation of the hidden layers and the code, or one for each of `widths`, "
        "which the decoder mirrors.",
    )
    code_activation: Activation | None = Field(
        None, description="Activation of the code, if another."
    )
    output_activation: Literal["auto"] | Activation = Field(
        "auto", description="auto: sigmoid for [0,1] data (scaling unit, loss bce), else linear."
    )
    tied: bool = Field(
        False, description="The decoder's weights are the encoder's, transposed (a view)."
    )
    norm: Norm = Field(
        "none", description="Before each hidden activation; batch: with one worker only."
    )
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="Share of hidden units zeroed in training."
    )

    @property
    def code_width(self) -> int:
        """K, the units of the code."""
        return self.widths[-1]

    @property
    def last_activation(self) -> Activation:
        """The code's activation, unless `code_activation` or the code part asks for another."""
        return self.activation if isinstance(self.activation, str) else self.activation[-1]

    @property
    def hidden(self) -> tuple[int, ...]:
        """Units of the decoder's hidden layers."""
        return self.decoder if self.decoder is not None else tuple(reversed(self.widths[:-1]))

    @property
    def mirrored(self) -> bool:
        """True when the decoder's layers are the encoder's, in reverse."""
        return self.hidden == tuple(reversed(self.widths[:-1]))

    @property
    def activations(self) -> tuple[tuple[Activation, ...], tuple[Activation, ...]]:
        """Of the encoder's and of the decoder's hidden layers."""
        if isinstance(self.activation, str):
            return (self.activation,) * (len(self.widths) - 1), (self.activation,) * len(
                self.hidden
            )
        return self.activation[:-1], tuple(reversed(self.activation[:-1]))

    @property
    def unpackable(self) -> str:
        """Norms and dropout with which a member of a pack would not be the run by itself."""
        if self.norm == "batch":
            return "norm batch keeps statistics of the batches"
        if self.norm == "layer":
            return "norm layer magnifies rounding where the units of a row are nearly equal"
        return "dropout draws inside the forward pass" if self.dropout else ""

    @property
    def single_worker(self) -> tuple[str, str] | None:
        """Batch norm does not exchange its statistics."""
        if self.norm != "batch":
            return None
        return "norm: batch takes the statistics of one worker's rows", "norm: layer"

    @property
    def layer_stack(self) -> LayerStack:
        """Its layers, each pretrained with its mirror."""
        return LayerStack(self.widths, self.activations[0], tuple(self._about_pretraining()))

    def hyperparameters(self) -> dict[str, float]:
        """Dropout, where there is any."""
        return {"dropout": self.dropout} if self.dropout else {}

    def build(self, features: int, pre_units: int) -> "DenseNetwork":
        """The module, with fresh weights."""
        return DenseNetwork(self, features, pre_units)

    def summary(self, features: int) -> str:
        """The widths of all layers, the code's in brackets."""
        widths = (features, *self.widths[:-1], f"[{self.code_width}]", *self.hidden, features)
        return f"dense {'-'.join(map(str, widths))}"

    def multiplications(self, features: int, pre_units: int) -> int:
        """Those of all layers; a tied one is used twice."""
        sizes = (features, *self.widths, *self.hidden, features)
        return sum(a * b for a, b in pairwise(sizes))

    def _about_pretraining(self) -> Iterator[str]:
        if not self.mirrored:
            yield (
                "train.phases train each layer with its mirror, found decoder layers "
                f"{list(self.hidden)} after {list(self.widths)}: remove `decoder`"
            )
        if self.norm != "none":
            yield (
                "train.phases train each layer by itself, without the norm that would follow it, "
                f"found norm: {self.norm}; use norm: none"
            )
        if self.dropout:
            yield (
                "train.phases train each layer on the whole output of the layers below, found "
                f"dropout: {self.dropout:g}; use dropout: 0"
            )

    @model_validator(mode="after")
    def _layers_fit(self) -> Self:
        if self.tied and not self.mirrored:
            raise ValueError(
                f"tied needs a decoder that mirrors the encoder, found hidden layers "
                f"{list(self.hidden)} after {list(self.widths)}: remove `decoder`"
            )
        if isinstance(self.activation, tuple):
            if len(self.activation) != len(self.widths):
                raise ValueError(
                    f"activation: {len(self.activation)} names for {len(self.widths)} widths; "
                    "give one, or one for each"
                )
            if len(self.hidden) != len(self.widths) - 1:
                raise ValueError(
                    f"activation: one for each of {len(self.widths)} widths is mirrored by the "
                    f"decoder, which has {len(self.hidden)} hidden layers; give one name for all"
                )
        if (self.dropout or self.norm != "none") and len(self.widths) == 1 and not self.hidden:
            raise ValueError("norm and dropout act on hidden layers, and there is none")
        return self


class DenseNetwork(NetworkModule):
    """Encoder and decoder stacks of `Dense`; both end before their last activation."""

    def __init__(self, spec: Dense, features: int, pre_units: int) -> None:
        super().__init__()
        self.encoder = _layers((features, *spec.widths[:-1], pre_units))
        sizes = (spec.code_width, *spec.hidden, features)
        self.decoder = nn.ModuleList(
            _Biases(wide) if spec.tied else nn.Linear(narrow, wide)
            for narrow, wide in pairwise(sizes)
        )
        self.encoder_norms = _norms(spec.norm, spec.widths[:-1])
        self.decoder_norms = _norms(spec.norm, spec.hidden)
        self.dropout = spec.dropout
        self._spec = spec
        self._activations = spec.activations

    def encode(self, x_BF: Tensor, rng: Noise | None = None) -> Tensor:
        """Features (B, F) to the code's pre-activation (B, P); with `rng`, dropout is on."""
        return self.encoded(x_BF, rng)[-1]

    def encoded(self, x_BF: Tensor, rng: Noise | None = None) -> list[Tensor]:
        """The output of each hidden layer of the encoder, then the code's pre-activation."""
        outputs, x = [], x_BF
        hidden = zip(self.encoder[:-1], self.encoder_norms, self._activations[0], strict=True)
        for layer, norm, activation in hidden:
            x = self._dropped(FUNCTIONS[activation](norm(layer(x))), rng)
            outputs.append(x)
        return [*outputs, self.encoder[-1](x)]

    def decode(self, code_BK: Tensor, rng: Noise | None = None) -> Tensor:
        """Codes (B, K) to the output's pre-activation (B, F)."""
        x = code_BK
        mirrored = list(reversed(self.encoder))
        for index, norm in enumerate(self.decoder_norms):
            activation = FUNCTIONS[self._activations[1][index]]
            x = self._dropped(activation(norm(self._up(index, mirrored, x))), rng)
        return self._up(len(self.decoder) - 1, mirrored, x)

    def _up(self, index: int, mirrored: Sequence[nn.Module], x: Tensor) -> Tensor:
        layer = self.decoder[index]
        if isinstance(layer, _Biases):
            encoder = mirrored[index]
            assert isinstance(encoder, nn.Linear)
            return functional.linear(x, encoder.weight.t(), layer.bias)
        return torch.as_tensor(layer(x))

    def _dropped(self, x: Tensor, rng: Noise | None) -> Tensor:
        """Inverted dropout from the step's own generator: a resumed run draws the same."""
        if rng is None or self.dropout == 0.0:
            return x
        kept = rng.uniform(*x.shape) >= self.dropout
        return x * kept / (1.0 - self.dropout)

    def layers(self) -> list[Layer]:
        """Dense layers, with the norm and dropout that follow each."""
        spec, features = self._spec, self.encoder[0].in_features
        assert isinstance(features, int)
        row = Layer("row", features, f"{features:,}", role="row")
        code = Layer(
            "code",
            spec.code_width,
            f"{spec.code_width:,}",
            links=(Link(("dense",), count(self.encoder[-1])),),
            role="code",
        )
        out = Link(("dense",), count(self.decoder[-1]), spec.tied)
        output = Layer("output", features, f"{features:,}", links=(out,), role="output")
        return [row, *self._hidden(0), code, *self._hidden(1), output]

    def _hidden(self, half: int) -> Iterator[Layer]:
        """The hidden layers of one half (0: encoder)."""
        spec = self._spec
        name, steps, norms, widths = (
            ("encoder", self.encoder, self.encoder_norms, spec.widths),
            ("decoder", self.decoder, self.decoder_norms, spec.hidden),
        )[half]
        kind = ["dense"]
        kind += [f"{spec.norm} norm"] if spec.norm != "none" else []
        kind += [f"dropout {spec.dropout:g}"] if spec.dropout else []
        for index, (step, norm, units, activation) in enumerate(
            zip(steps, norms, widths, self._activations[half], strict=False)
        ):
            link = Link(tuple(kind), count(step, norm), tied=half == 1 and spec.tied)
            yield Layer(f"{name} {index + 1}", units, f"{units:,}", (activation,), (link,))

    def matrices(self) -> list[Tensor]:
        """Weights of all layers; a tied one once."""
        layers = [*self.encoder, *([] if self._spec.tied else self.decoder)]
        return [layer.weight for layer in layers if isinstance(layer, nn.Linear)]

    def only_layer(self) -> Tensor | None:
        """Weights (P, F) when the encoder is a single linear layer."""
        return self.unit_weights() if len(self.encoder) == 1 else None

    def unit_weights(self) -> Tensor | None:
        """Weights (U, F) of the encoder's first layer."""
        first = self.encoder[0]
        return first.weight if isinstance(first, nn.Linear) else None

    def mirrored_pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """Layers from the row inwards."""
        return zip(self.encoder, reversed(list(self.decoder)), strict=True)


class _Biases(nn.Module):
    """What a tied layer has of its own."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(units))


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that uses its running statistics for a batch of one row or none."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > 1:
            return super().forward(x)
        mean, var, eps = self.running_mean, self.running_var, self.eps
        return functional.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, eps)


def _layers(sizes: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))


def _norms(norm: Norm, widths: Sequence[int]) -> nn.ModuleList:
    kind = {"none": nn.Identity, "layer": nn.LayerNorm, "batch": _BatchNorm}[norm]
    return nn.ModuleList(kind(width) for width in widths)
