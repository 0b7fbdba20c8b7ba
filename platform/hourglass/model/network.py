"""What a network declares and does: a spec that builds a module with `encode`, `decode` and `layers`.

A new network is a spec and its module in a file of their own, and one name in `Network` in `model.spec`.
Shapes: B rows, F features, P units before the code part, K code units.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from hourglass.model.activations import Activation
from hourglass.model.noise import Noise
from hourglass.model.part import Part

Units = Annotated[int, Field(gt=0, le=2**30)]


class Layout(NamedTuple):
    """How the features of a row lie: (length,) or (height, width) places, with channels at each."""

    place: tuple[int, ...]
    channels: int
    channels_first: bool


class LayerStack(NamedTuple):
    """Layers that can be pretrained one at a time, each with its mirror in the decoder.

    `widths` are the units of the encoder's layers, `activations` those of its hidden ones, `obstacles`
    messages about settings that prevent it.
    """

    widths: tuple[int, ...]
    activations: tuple[Activation, ...]
    obstacles: tuple[str, ...]


class NetworkPart(Part):
    """Layers from features to code and back; has the fields `code_activation` and `output_activation`."""

    no_second_derivatives: ClassVar[str] = ""
    """Why, after 'which', penalties on derivatives of the encoder do not work; empty where they do."""

    @property
    def code_width(self) -> int:
        """K, the units of the code."""
        raise NotImplementedError

    @property
    def last_activation(self) -> Activation:
        """The code's activation, unless `code_activation` or the code part asks for another."""
        return "linear"

    @property
    def row_shape(self) -> tuple[int, ...] | None:
        """The shape that a row must have; None: any number of features."""
        return None

    @property
    def layout(self) -> Layout | None:
        """How the features of a row lie, where the network knows."""
        return None

    @property
    def single_worker(self) -> tuple[str, str] | None:
        """Why several workers would not train the model of one, and what to use; None where they do."""
        return None

    @property
    def layer_stack(self) -> LayerStack | None:
        """Its layers, where phases of pretraining can train them one at a time."""
        return None

    def hyperparameters(self) -> dict[str, float]:
        """By dotted path, the numbers that must have an effect in training: sizes are left out."""
        return {}

    def build(self, features: int, pre_units: int) -> "NetworkModule":
        """The module, with fresh weights. Raises ValueError when rows have another width."""
        raise NotImplementedError

    def summary(self, features: int) -> str:
        """The network in a few words."""
        return f"{self.kind}, {self.code_width:,} code units"

    def multiplications(self, features: int, pre_units: int) -> int:
        """How many a row costs, about: one for each weight."""
        with torch.device("meta"):
            return sum(weight.numel() for weight in self.build(features, pre_units).matrices())

    def require(self, features: int) -> None:
        """Raises ValueError when rows of so many features do not have the shape."""
        shape = self.row_shape
        if shape is not None and features != math.prod(shape):
            raise ValueError(
                f"network {self.kind}: shape {list(shape)} has {math.prod(shape)} features, "
                f"the rows have {features}"
            )


@dataclass(frozen=True)
class Link:
    """One connection into a layer: its kind in a few short lines, and its own parameters.

    A tied one uses the weights of another; they are that one's parameters, not its own.
    """

    kind: tuple[str, ...]
    parameters: int
    tied: bool = False

    @property
    def lines(self) -> tuple[str, ...]:
        """What stands below its arrow."""
        count = f"{self.parameters:,} parameter" + ("" if self.parameters == 1 else "s")
        return (count, "tied") if self.tied else (count,)


@dataclass(frozen=True)
class Layer:
    """One layer to draw: its width in units and in words, notes, and the connections into it."""

    name: str
    units: int
    size: str
    notes: tuple[str, ...] = ()
    links: tuple[Link, ...] = ()
    role: Literal["row", "hidden", "code", "output"] = "hidden"

    @property
    def lines(self) -> tuple[str, ...]:
        """What stands below its block."""
        return (self.name, self.size, *self.notes)


class NetworkModule(nn.Module):
    """What a network's module does; both halves end before their last activation."""

    def encode(self, x_BF: Tensor, rng: Noise | None = None) -> Tensor:
        """Features (B, F) to the code's pre-activation (B, P); with `rng`, training noise is on."""
        raise NotImplementedError

    def decode(self, code_BK: Tensor, rng: Noise | None = None) -> Tensor:
        """Codes (B, K) to the output's pre-activation (B, F)."""
        raise NotImplementedError

    def layers(self) -> list[Layer]:
        """The layers to draw, from `row` to `output`, with one `code`; each parameter in one link.

        The code part and the last activations are added by the drawing.
        """
        raise NotImplementedError

    def encoded(self, x_BF: Tensor, rng: Noise | None = None) -> list[Tensor]:
        """The output of each hidden layer of the encoder, then the code's pre-activation."""
        return [self.encode(x_BF, rng)]

    def matrices(self) -> list[Tensor]:
        """The weights of all layers, without biases and norms; a tied one once."""
        return [parameter for parameter in self.parameters() if parameter.ndim > 1]

    def only_layer(self) -> Tensor | None:
        """Weights (P, F) when the encoder is a single linear layer."""
        return None

    def unit_weights(self) -> Tensor | None:
        """Weights (U, F) of the first layer's units, where each unit sees the whole row."""
        return None

    def mirrored_pairs(self) -> Iterable[tuple[nn.Module, nn.Module]]:
        """Each layer of the encoder and its mirror in the decoder (see `LayerStack`)."""
        return ()


def count(*modules: nn.Module) -> int:
    """Parameters of modules."""
    return sum(weight.numel() for module in modules for weight in module.parameters())
