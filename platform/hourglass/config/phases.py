"""Phases of pretraining, which run before the ordinary training, and the rules about them."""

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, model_validator

from hourglass.model.network import LayerStack
from hourglass.model.preprocessing import ScalingPart
from hourglass.model.spec import ModelSpec
from hourglass.strict import Strict

SLOW_EPOCHS = 5
"""Epochs of a Boltzmann machine before its momentum rises."""


class Greedy(Strict):
    """Stacked autoencoders: from the row inwards, each layer and its mirror learn to reconstruct
    what the frozen layers below make of a clean row, by squared error and Adam.

    Source: Bengio et al. 2007, "Greedy layer-wise training of deep networks"; Vincent et al. 2010,
    "Stacked denoising autoencoders".
    """

    kind: Literal["greedy"] = "greedy"
    unit_rows: ClassVar[bool] = False
    epochs: PositiveInt = Field(5, description="Passes over the training rows, for each layer.")
    lr: PositiveFloat = Field(1e-3, description="Learning rate of Adam.")


class Rbm(Strict):
    """Restricted Boltzmann machines, one on the other, by contrastive divergence; then unrolled.

    Source: Hinton and Salakhutdinov 2006, "Reducing the dimensionality of data with neural
    networks", supporting material; Hinton 2010, "A practical guide to training restricted Boltzmann
    machines".
    """

    kind: Literal["rbm"] = "rbm"
    epochs: PositiveInt = Field(10, description="Passes over the training rows, for each layer.")
    lr: PositiveFloat = Field(0.1, description="Learning rate of layers between logistic units.")
    momentum: float = Field(0.5, ge=0.0, lt=1.0, description="Momentum of the first 5 epochs.")
    final_momentum: float = Field(0.9, ge=0.0, lt=1.0, description="Momentum after epoch 5.")
    weight_decay: float = Field(2e-4, ge=0.0, description="L2 penalty on the weights.")
    k: PositiveInt = Field(1, description="Steps of the chain that starts at the rows.")
    visible: Literal["logistic", "gaussian"] = Field(
        "logistic", description="Units of the row: logistic for [0, 1], gaussian for unit variance."
    )
    visible_lr: PositiveFloat = Field(
        1e-3, description="Learning rate of the layer above gaussian visible units."
    )
    code_lr: PositiveFloat = Field(1e-3, description="Learning rate of a linear code's layer.")

    @property
    def unit_rows(self) -> bool:
        """True where features must lie in [0, 1]."""
        return self.visible == "logistic"

    def momentum_at(self, epoch: int) -> float:
        """Momentum in `epoch` (from 0)."""
        return self.momentum if epoch < SLOW_EPOCHS else self.final_momentum

    @model_validator(mode="after")
    def _final_momentum_is_reached(self) -> Self:
        if self.epochs <= SLOW_EPOCHS and _chosen(self, "final_momentum"):
            raise ValueError(
                f"final_momentum acts after epoch {SLOW_EPOCHS}, found epochs: {self.epochs}; "
                "set momentum"
            )
        return self


Phase = Annotated[Greedy | Rbm, Field(discriminator="kind")]


def contradictions(
    phases: Sequence[Greedy | Rbm], model: ModelSpec, scaling: ScalingPart, unit_data: bool
) -> Iterator[str]:
    """Messages about phases that do not fit the model or its rows."""
    if not phases:
        return
    layers = model.network.layer_stack
    if layers is None:
        yield (
            "train.phases train one layer and its mirror at a time, which network "
            f"{model.network.kind} cannot; use network dense, or remove train.phases"
        )
        return
    yield from layers.obstacles
    if model.code.posterior:
        yield (
            "train.phases train each layer with its mirror, and the layer that ends in the means and "
            f"variances of code {model.code.kind} has none; remove train.phases"
        )
    for number, phase in enumerate(phases):
        if phase.kind == "rbm":
            if number:
                yield (
                    f"train.phases.{number}: rbm starts from weights of its own and would undo the "
                    f"phase before it, '{phases[number - 1].kind}'; keep one rbm, as the first phase"
                )
            yield from _about_the_units(phase, layers, model)
            yield from _about_the_rows(phase, model, scaling, unit_data)


def _about_the_units(phase: Rbm, layers: LayerStack, model: ModelSpec) -> Iterator[str]:
    """What a layer of units is in the machines it must be in the network; each rate has its layer."""
    for activation in layers.activations:
        if activation != "sigmoid":
            yield (
                "phase rbm has logistic hidden units, which needs hidden layers of activation "
                f"sigmoid, found '{activation}'; set network.activation"
            )
            return
    code = model.code_activation
    if code not in ("linear", "sigmoid"):
        yield (
            "phase rbm needs a linear code (gaussian units) or a sigmoid one (logistic units), "
            f"found '{code}'; set network.code_activation"
        )
    gaussian = phase.visible == "gaussian"
    if not gaussian and _chosen(phase, "visible_lr"):
        yield "phase rbm: visible_lr acts on gaussian visible units, found 'logistic'; set lr"
    if code != "linear" and _chosen(phase, "code_lr"):
        yield f"phase rbm: code_lr acts on a linear code, found '{code}'; set lr"
    if len(layers.widths) <= gaussian + (code == "linear") and _chosen(phase, "lr"):
        yield (
            "phase rbm: lr acts on layers between logistic units, and there is none; "
            "set visible_lr or code_lr"
        )
    if gaussian and code == "linear" and len(layers.widths) == 1:
        yield (
            "phase rbm: gaussian visible units below a linear code have no lowest energy once "
            "their weights grow; use a sigmoid code, or put a hidden layer between"
        )


def _about_the_rows(
    phase: Rbm, model: ModelSpec, scaling: ScalingPart, unit_data: bool
) -> Iterator[str]:
    """The output is reported only if the rows are right, since `auto` follows them."""
    logistic = phase.visible == "logistic"
    needed, found = "sigmoid" if logistic else "linear", model.output_activation(unit_data)
    if logistic and not unit_data and scaling.unit_range not in ("always", "chosen"):
        yield (
            f"phase rbm: logistic visible units need features in [0, 1], found scaling '{scaling.kind}'; "
            "set data.scaling to {kind: unit}, or use visible: gaussian with scaling standard"
        )
    elif not logistic and not scaling.unit_variance:
        yield (
            "phase rbm: gaussian visible units have unit variance, which needs scaling standard, "
            f"found '{scaling.kind}'"
        )
    elif found != needed:
        yield (
            f"phase rbm: {phase.visible} visible units unroll into a {needed} output, "
            f"found '{found}'; set network.output_activation: {needed}"
        )


def _chosen(part: BaseModel, name: str) -> bool:
    """True where a field is not at its default."""
    return bool(getattr(part, name) != type(part).model_fields[name].default)
