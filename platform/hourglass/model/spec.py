"""ModelSpec: a choice of parts, and the rules about which parts go together."""

import math
from collections.abc import Iterator
from typing import Any, Self

from pydantic import ConfigDict, Field, model_validator

from hourglass.model.activations import RANGES, Activation
from hourglass.model.adversary import Adversary
from hourglass.model.code import Code, Plain
from hourglass.model.corruption import Corruption, NoCorruption
from hourglass.model.losses import Loss, Mse
from hourglass.model.networks import Network
from hourglass.model.penalties import Penalty
from hourglass.model.presets import WHOLE, Preset, expand
from hourglass.strict import Strict, mistake, refuse

CODE_LOW: dict[Activation, float] = {n: low for n, (low, high) in RANGES.items() if high < math.inf}
"""Lowest value of a bounded code activation (the highest is 1)."""
SPARSE = ("top_k", "batch_top_k")
"""Codes in which most units are 0, and some may die."""
CODE_ACTIVATION: dict[str, tuple[Activation, str]] = {
    "gaussian_noise": ("sigmoid", "its noise acts before the logistic"),
    "gaussian_posterior": ("linear", "it is a draw from a normal distribution"),
}
"""The activation that a code part is defined with, and why."""


def _network_or_whole_preset(schema: dict[str, Any]) -> None:
    """In a file, a preset may bring the network: validation sees its fields only after that."""
    schema["required"].remove("network")
    schema["if"] = {"properties": {"preset": {"enum": WHOLE}}, "required": ["preset"]}
    schema["else"] = {"required": ["network"]}


class ModelSpec(Strict):
    """network x corruption x code x loss x penalties, and an adversary."""

    model_config = ConfigDict(json_schema_extra=_network_or_whole_preset)

    preset: Preset | None = Field(
        None, description="A famous name: its parts, where this file names no others."
    )
    network: Network = Field(description="Layers from features to code and back.")
    corruption: Corruption = Field(NoCorruption(), description="What the encoder sees in training.")
    code: Code = Field(Plain(), description="How the code is made from its pre-activation.")
    loss: Loss = Field(Mse(), description="Reconstruction loss, per row.")
    trim: float = Field(
        0.0,
        ge=0.0,
        le=0.5,
        description="Share of a batch's rows, those of the largest loss, that it leaves out.",
    )
    scaled_score: bool = Field(
        False,
        description="The score divides each column's squared error by a scale of the column's own, "
        "so that one that is hard to reconstruct does not outweigh the others.",
    )
    penalties: tuple[Penalty, ...] = Field((), description="Terms added to the loss, by name.")
    adversary: Adversary | None = Field(
        None, description="A second network that makes codes look like draws of a prior."
    )

    @property
    def code_activation(self) -> Activation:
        """The code's activation: the network's, unless it names one or the code part needs one."""
        if self.network.code_activation is not None:
            return self.network.code_activation
        needed, _ = CODE_ACTIVATION.get(self.code.kind, (self.network.last_activation, ""))
        return needed

    def output_activation(self, unit_data: bool) -> Activation:
        """What `output_activation: auto` becomes: sigmoid on [0, 1] data, else linear."""
        chosen = self.network.output_activation
        if chosen != "auto":
            return chosen
        return "sigmoid" if unit_data or self.loss.kind == "bce" else "linear"

    @property
    def nested_widths(self) -> tuple[int, ...]:
        """Widths at which the first units of the code are a code of their own."""
        return next((p.widths for p in self.penalties if p.kind == "nested"), ())

    @model_validator(mode="before")
    @classmethod
    def _preset_is_parts(cls, tree: Any) -> Any:
        return expand(tree)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        refuse(map(mistake, self._contradictions()))
        return self

    def _contradictions(self) -> Iterator[str]:
        """Sentences about parts that do not go together."""
        yield from self._about_the_code()
        if self.loss.kind == "bce" and self.network.output_activation not in ("auto", "sigmoid"):
            yield (
                f"loss bce needs output_activation sigmoid or auto, "
                f"found '{self.network.output_activation}'"
            )
        kinds = [penalty.kind for penalty in self.penalties]
        if len(set(kinds)) < len(kinds):
            yield f"penalties must differ in kind, found {kinds}: add up their weights"
        for penalty in self.penalties:
            yield from self._about(penalty)
        if self.adversary is not None:
            yield from self._about_the_adversary(self.adversary)
        elif self.preset == "adversarial":
            yield "preset adversarial is its adversary, found null; remove one of them"

    def _about_the_code(self) -> Iterator[str]:
        needed, why = CODE_ACTIVATION.get(self.code.kind, (self.code_activation, ""))
        if self.code_activation != needed:
            yield (
                f"code {self.code.kind} needs a {needed} code, found '{self.code_activation}': "
                f"{why}; remove network.code_activation"
            )
        if self.code.kind in ("top_k", "batch_top_k") and self.code.k > self.network.code_width:
            yield f"code {self.code.kind}: k is {self.code.k}, the code has {self.network.code_width} units"
        variational = self.code.kind == "gaussian_posterior"
        prior = any(penalty.kind == "kl_prior" for penalty in self.penalties)
        if variational and not prior:
            yield (
                "code gaussian_posterior needs penalty kl_prior: without it the variances shrink to 0"
                " and the model is a plain one; add {kind: kl_prior, beta: ...} to penalties"
            )
        if prior and not variational:
            yield (
                "penalty kl_prior needs code gaussian_posterior, whose means and variances it "
                f"compares with the prior; found code '{self.code.kind}'"
            )

    def _about_the_adversary(self, adversary: Adversary) -> Iterator[str]:
        """The code must be able to become the prior, and have no other."""
        if self.code.kind == "gaussian_posterior":
            yield (
                "code gaussian_posterior has its prior from penalty kl_prior, found an adversary as "
                "well; use code plain, or remove the adversary"
            )
        if self.code.kind in SPARSE:
            yield (
                f"adversary: a code {self.code.kind} has units at exactly 0, which no draw of prior "
                f"{adversary.prior.kind} has, so it can never pass for one; use code plain"
            )
        (low, high), (lowest, highest) = adversary.prior.bounds, RANGES[self.code_activation]
        if not lowest <= low < high <= highest:
            yield (
                f"adversary: draws of prior {adversary.prior.kind} lie in ({low:g}, {high:g}), a "
                f"'{self.code_activation}' code in ({lowest:g}, {highest:g}), so it can never pass for "
                "one; use network.code_activation: linear, or a prior uniform inside the code's range"
            )

    def _about(self, penalty: Penalty) -> Iterator[str]:
        if penalty.kind == "contractive" and self.network.kind == "lstm":
            yield (
                "penalty contractive needs second derivatives, which the LSTM of a GPU has not; "
                "use network dense or conv"
            )
        if penalty.kind == "nested":
            widths = (*penalty.widths, self.network.code_width)
            if list(widths) != sorted(set(widths)):
                yield (
                    f"penalty nested: widths {list(penalty.widths)} must increase and stay below the "
                    f"code's {self.network.code_width} units"
                )
        if penalty.kind == "aux_k" and self.code.kind not in SPARSE:
            yield (
                "penalty aux_k needs code top_k or batch_top_k, whose unused units it revives; "
                f"found code '{self.code.kind}'"
            )
        if penalty.kind != "sparsity_kl":
            return
        low = CODE_LOW.get(self.code_activation)
        if low is None:
            yield (
                f"penalty sparsity_kl needs a bounded code (sigmoid or tanh), "
                f"found '{self.code_activation}': set network.code_activation"
            )
        elif not low < penalty.rho:
            yield (
                f"penalty sparsity_kl: rho must lie inside the code's range "
                f"({low:g}, 1) of '{self.code_activation}', found {penalty.rho:g}"
            )
