"""The convolutional network: over a signal (channels, length) or a picture (channels, height, width).

Shapes: B rows, F features (the declared shape, flattened in its order), P units before the code part,
K code units; a place is (length,) or (height, width).
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from hourglass.model.activations import FUNCTIONS, Activation
from hourglass.model.network import Layer, Layout, Link, NetworkModule, NetworkPart, Units, count
from hourglass.model.noise import Noise
from hourglass.strict import Strict

Size = Annotated[int, Field(gt=0, le=2**16)]
Place = tuple[int, ...]


class ConvLayer(Strict):
    """One convolution, then pooling; the decoder undoes both in one step up."""

    channels: Size = Field(description="Feature maps.")
    kernel: Size = Field(3, description="Side of the window; padded by half of it.")
    stride: Size = Field(1, description="Step of the window.")
    pool: Size = Field(1, description="Side of the max-pooling window after it; 1: none.")

    def place(self, before: Place) -> Place:
        """Size after the convolution and the pooling."""
        padding = self.kernel // 2
        convolved = ((n + 2 * padding - self.kernel) // self.stride + 1 for n in before)
        return tuple(n // self.pool for n in convolved)


class Conv(NetworkPart):
    """Convolutions over a vector column with a shape, a dense code behind them if wanted."""

    kind: Literal["conv"] = "conv"
    shape: tuple[Size, ...] = Field(
        min_length=2,
        max_length=3,
        description="What a row is: [length, channels] or [height, width, channels]; "
        "see `channels`.",
    )
    channels: Literal["first", "last"] = Field(
        "last", description="Where the channels are in `shape` and in the row."
    )
    layers: tuple[ConvLayer, ...] = Field(
        min_length=1, max_length=32, description="The encoder's layers; the decoder mirrors them."
    )
    code: Units | None = Field(
        None, description="Units of a dense code; without it the last feature maps are the code."
    )
    up: Literal["transposed", "nearest"] = Field(
        "nearest",
        description="How the decoder grows: transposed convolution, or copies, then convolution.",
    )
    activation: Activation = Field("relu", description="Activation of the hidden layers.")
    code_activation: Activation | None = Field(
        None, description="Activation of the code, if another."
    )
    output_activation: Literal["auto"] | Activation = Field(
        "auto", description="auto: sigmoid for [0,1] data (scaling unit, loss bce), else linear."
    )

    @property
    def depth(self) -> int:
        """Channels of a row."""
        return self.shape[0 if self.channels == "first" else -1]

    @property
    def places(self) -> list[Place]:
        """Sizes before each layer and after the last."""
        sizes = [self.shape[1:] if self.channels == "first" else self.shape[:-1]]
        for layer in self.layers:
            sizes.append(layer.place(sizes[-1]))
        return sizes

    @property
    def code_width(self) -> int:
        """K, the units of the code."""
        return self.code or self.layers[-1].channels * math.prod(self.places[-1])

    @property
    def last_activation(self) -> Activation:
        """The code's activation, unless `code_activation` or the code part asks for another."""
        return self.activation

    def build(self, features: int, pre_units: int) -> "ConvNetwork":
        """The module, with fresh weights. Raises ValueError when rows have another width."""
        self.require(features)
        return ConvNetwork(self, pre_units)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """`shape`."""
        return self.shape

    @property
    def layout(self) -> Layout:
        """Places and channels of `shape`."""
        return Layout(self.places[0], self.depth, self.channels == "first")

    @model_validator(mode="after")
    def _layers_fit(self) -> Self:
        places = self.places
        for number, layer in enumerate(self.layers):
            if min(places[number + 1]) < 1:
                raise ValueError(
                    f"layers.{number}: kernel {layer.kernel}, stride {layer.stride}, pool "
                    f"{layer.pool} leave nothing of {_by(places[number])}: it becomes "
                    f"{_by(places[number + 1])}; pool or stride less"
                )
            if self.up == "transposed" and layer.kernel < layer.stride * layer.pool:
                raise ValueError(
                    f"layers.{number}: a transposed convolution of kernel {layer.kernel} leaves "
                    f"gaps when it grows {layer.stride * layer.pool} times, from "
                    f"{_by(places[number + 1])} to {_by(places[number])}; use a larger kernel, "
                    "or `up: nearest`"
                )
        return self


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


class ConvNetwork(NetworkModule):
    """Encoder and decoder of `Conv`; both end before their last activation."""

    def __init__(self, spec: Conv, pre_units: int) -> None:
        super().__init__()
        self._spec = spec
        self._activation = FUNCTIONS[spec.activation]
        flat = spec.layers[-1].channels * math.prod(spec.places[-1])
        # Without a dense code, what the code part takes comes from the last layer itself.
        maps = spec.layers[-1].channels * (1 if spec.code else pre_units // flat)
        depths = [spec.depth, *(layer.channels for layer in spec.layers)]
        two = len(spec.shape) == 3
        convolution: type[nn.Module] = nn.Conv2d if two else nn.Conv1d
        up: type[nn.Module] = nn.ConvTranspose2d if two else nn.ConvTranspose1d
        ends = [*(layer.channels for layer in spec.layers[:-1]), maps]
        self.encoder = nn.ModuleList(
            convolution(before, after, layer.kernel, layer.stride, layer.kernel // 2)
            for layer, before, after in zip(spec.layers, depths, ends, strict=False)
        )
        self.decoder = nn.ModuleList(
            _grow(up, layer, after, before)
            if spec.up == "transposed"
            else convolution(after, before, layer.kernel, 1, "same")
            for layer, before, after in reversed(
                list(zip(spec.layers, depths, depths[1:], strict=False))
            )
        )
        self.to_code = nn.Linear(flat, pre_units) if spec.code else None
        self.from_code = nn.Linear(spec.code, flat) if spec.code else None

    def encode(self, x_BF: Tensor, rng: Noise | None = None) -> Tensor:
        """Features (B, F) to the code's pre-activation (B, P)."""
        return self.encoded(x_BF, rng)[-1]

    def encoded(self, x_BF: Tensor, rng: Noise | None = None) -> list[Tensor]:
        """The output of each hidden layer, flattened, then the code's pre-activation."""
        spec, outputs = self._spec, []
        x = x_BF.reshape(-1, *spec.shape)
        x = x if spec.channels == "first" else x.movedim(-1, 1)
        for number, (layer, convolution) in enumerate(zip(spec.layers, self.encoder, strict=True)):
            x = _pooled(convolution(x), layer.pool)
            if number + 1 < len(spec.layers) or self.to_code is not None:
                x = self._activation(x)
                outputs.append(x.flatten(1))
        flat = x.flatten(1)
        return [*outputs, flat if self.to_code is None else self.to_code(flat)]

    def decode(self, code_BK: Tensor, rng: Noise | None = None) -> Tensor:
        """Codes (B, K) to the output's pre-activation (B, F)."""
        spec = self._spec
        flat = code_BK
        if self.from_code is not None:
            flat = self._activation(self.from_code(code_BK))
        x: Tensor = flat.reshape(-1, spec.layers[-1].channels, *spec.places[-1])
        sizes = list(reversed(spec.places[:-1]))
        for number, (layer, size) in enumerate(zip(self.decoder, sizes, strict=True)):
            x = layer(x, size) if spec.up == "transposed" else layer(_copied(x, size))
            x = self._activation(x) if number + 1 < len(sizes) else x
        x = x if spec.channels == "first" else x.movedim(1, -1)
        return x.flatten(1)

    def layers(self) -> list[Layer]:
        """Convolutions with their pooling, the dense code if there is one, and the way back up."""
        spec = self._spec
        depths = [spec.depth, *(layer.channels for layer in spec.layers)]
        maps = [_maps(depth, place) for depth, place in zip(depths, spec.places, strict=True)]
        made = [Layer("row", *maps[0], role="row")]
        downs = [
            Link(_down(layer, place), count(step))
            for layer, place, step in zip(spec.layers, spec.places, self.encoder, strict=False)
        ]
        for index, link in enumerate(downs if self.to_code is not None else downs[:-1]):
            made.append(self._hidden(f"encoder {index + 1}", maps[index + 1], link))
        if self.to_code is None or self.from_code is None:
            made.append(Layer("code", *maps[-1], links=(downs[-1],), role="code"))
        else:
            into = Link(("dense",), count(self.to_code))
            units = spec.code_width
            made.append(Layer("code", units, f"{units:,}", links=(into,), role="code"))
            made.append(
                self._hidden("decoder 1", maps[-1], Link(("dense",), count(self.from_code)))
            )
        first = 1 if self.from_code is None else 2
        for index, (layer, step) in enumerate(
            zip(reversed(spec.layers), self.decoder, strict=True)
        ):
            sized, place = maps[-2 - index], spec.places[-2 - index]
            link = Link(_up(spec, layer, place, spec.places[-1 - index]), count(step))
            if index + 1 < len(spec.layers):
                made.append(self._hidden(f"decoder {index + first}", sized, link))
            else:
                made.append(Layer("output", *sized, links=(link,), role="output"))
        return made

    def _hidden(self, name: str, sized: tuple[int, str], link: Link) -> Layer:
        return Layer(name, *sized, (self._spec.activation,), (link,))


def _maps(channels: int, place: Place) -> tuple[int, str]:
    """Units of feature maps, and their size in words."""
    return channels * math.prod(place), _by((channels, *place))


def _down(layer: ConvLayer, place: Place) -> tuple[str, ...]:
    stride = (f"stride {layer.stride}",) if layer.stride > 1 else ()
    pool = (f"max-pool {layer.pool}",) if layer.pool > 1 else ()
    return (f"conv {_by((layer.kernel,) * len(place))}", *stride, *pool)


def _up(spec: Conv, layer: ConvLayer, place: Place, before: Place) -> tuple[str, ...]:
    window = _by((layer.kernel,) * len(place))
    if spec.up == "transposed":
        step = layer.stride * layer.pool
        return ("transposed", f"conv {window}", *((f"stride {step}",) if step > 1 else ()))
    return (*((f"copies to {_by(place)}",) if place != before else ()), f"conv {window}")


def _pooled(x: Tensor, pool: int) -> Tensor:
    if pool == 1:
        return x
    return functional.max_pool2d(x, pool) if x.ndim == 4 else functional.max_pool1d(x, pool)


def _copied(x: Tensor, size: Place) -> Tensor:
    return x if x.shape[2:] == size else functional.interpolate(x, size=list(size), mode="nearest")


def _grow(kind: type[nn.Module], layer: ConvLayer, after: int, before: int) -> nn.Module:
    """A transposed convolution that undoes convolution and pooling in one step."""
    return _Grow(kind(after, before, layer.kernel, layer.stride * layer.pool, layer.kernel // 2))


class _Grow(nn.Module):
    """A transposed convolution cut or padded to the size that was lost to rounding."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor, size: Place) -> Tensor:
        grown = torch.as_tensor(self.convolution(x))
        short = [wanted - found for wanted, found in zip(size, grown.shape[2:], strict=True)]
        pads = [pad for lack in reversed(short) for pad in (0, lack)]
        return functional.pad(grown, pads) if any(short) else grown
