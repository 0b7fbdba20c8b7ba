"""ModelSpec: a choice of parts, and the rules about which parts go together."""

from typing import Self

from pydantic import Field, model_validator

from hourglass.model.activations import Activation
from hourglass.model.code import Code, Plain
from hourglass.model.corruption import Corruption, NoCorruption
from hourglass.model.losses import Loss, Mse
from hourglass.model.networks import Network
from hourglass.model.penalties import Penalty
from hourglass.strict import Strict

CODE_LOW: dict[Activation, float] = {"sigmoid": 0.0, "tanh": -1.0}
"""Lowest value of a bounded code activation (the highest is 1)."""


class ModelSpec(Strict):
    """network x corruption x code x loss x penalties."""

    network: Network = Field(description="Layers from features to code and back.")
    corruption: Corruption = Field(NoCorruption(), description="What the encoder sees in training.")
    code: Code = Field(Plain(), description="How the code is made from its pre-activation.")
    loss: Loss = Field(Mse(), description="Reconstruction loss, per row.")
    penalties: tuple[Penalty, ...] = Field((), description="Terms added to the loss, by name.")

    @property
    def code_activation(self) -> Activation:
        """The code's activation: the hashing code is logistic, others follow the network."""
        if self.network.code_activation is not None:
            return self.network.code_activation
        return "sigmoid" if self.code.kind == "gaussian_noise" else self.network.activation

    def output_activation(self, unit_data: bool) -> Activation:
        """What `output_activation: auto` becomes: sigmoid on [0, 1] data, else linear."""
        chosen = self.network.output_activation
        if chosen != "auto":
            return chosen
        return "sigmoid" if unit_data or self.loss.kind == "bce" else "linear"

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.code.kind == "gaussian_noise" and self.code_activation != "sigmoid":
            raise ValueError(
                f"code gaussian_noise needs a sigmoid code, found '{self.code_activation}': "
                "its noise acts before the logistic; remove network.code_activation"
            )
        if self.loss.kind == "bce" and self.network.output_activation not in ("auto", "sigmoid"):
            raise ValueError(
                f"loss bce needs output_activation sigmoid or auto, "
                f"found '{self.network.output_activation}'"
            )
        kinds = [penalty.kind for penalty in self.penalties]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"penalties must differ in kind, found {kinds}: add up their weights")
        for penalty in self.penalties:
            low = CODE_LOW.get(self.code_activation)
            if low is None:
                raise ValueError(
                    f"penalty sparsity_kl needs a bounded code (sigmoid or tanh), "
                    f"found '{self.code_activation}': set network.code_activation"
                )
            if not low < penalty.rho:
                raise ValueError(
                    f"penalty sparsity_kl: rho must lie inside the code's range "
                    f"({low:g}, 1) of '{self.code_activation}', found {penalty.rho:g}"
                )
        return self
