"""ModelSpec: a choice of parts, and the rules about which parts go together.

Presets are famous names for such choices: `preset: NAME` is these fields, and the file's own take
precedence. They leave the widths to you, except for `anomaly`. Adding one is one row here and one in
docs/variants.md.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from hourglass.model.activations import RANGES, Activation
from hourglass.model.adversary import Adversary
from hourglass.model.code import Code, Plain
from hourglass.model.conv import Conv
from hourglass.model.corruption import Corruption, NoCorruption
from hourglass.model.dense import Dense
from hourglass.model.losses import Loss, Mse
from hourglass.model.lstm import Lstm
from hourglass.model.penalties import Penalty
from hourglass.strict import Strict, kind_unless_named, mistake, refuse

Preset = Literal[
    "undercomplete",
    "sparse",
    "k_sparse",
    "denoising",
    "contractive",
    "robust",
    "variational",
    "semantic_hashing",
    "adversarial",
    "anomaly",
]

PRESETS: dict[Preset, dict[str, Any]] = {
    "undercomplete": {},
    "sparse": {
        "network": {"code_activation": "sigmoid"},
        "penalties": [{"kind": "sparsity_kl", "rho": 0.05, "beta": 1e-3}],
    },
    "k_sparse": {
        "network": {"code_activation": "relu"},
        "code": {"kind": "top_k", "k": 8},
        "penalties": [{"kind": "aux_k"}],
    },
    "denoising": {"corruption": {"kind": "gaussian", "sd": 0.1}},
    "contractive": {"penalties": [{"kind": "contractive", "weight": 1e-3}]},
    "robust": {"loss": {"kind": "correntropy"}},
    "variational": {
        "code": {"kind": "gaussian_posterior"},
        "penalties": [{"kind": "kl_prior", "beta": 1e-3}],
    },
    "semantic_hashing": {
        "code": {"kind": "gaussian_noise", "sd": 4.0},
        # Bits as often 1 as 0: a code that is the same for every row escapes the noise as well.
        "penalties": [{"kind": "sparsity_kl", "rho": 0.5, "beta": 0.01}],
    },
    "adversarial": {
        "network": {"code_activation": "linear"},
        "adversary": {"prior": {"kind": "gaussian"}},
    },
    # A code too narrow for rare rows, and a loss that neither looks at the worst fifth of a batch nor
    # squares what is left: rows among the training rows that should be found do not teach. A column that
    # the model cannot know, such as a flag, has large errors in every row, so each column has its own scale.
    "anomaly": {
        "network": {"kind": "dense", "widths": [64, 3]},
        "loss": {"kind": "mae"},
        "trim": 0.2,
        "scaled_score": True,
    },
}
WHOLE = [name for name, parts in PRESETS.items() if "widths" in parts.get("network", {})]
"""Presets that leave nothing to say."""
BESIDE: dict[Preset, dict[str, Any]] = {
    "anomaly": {
        "data": {"scaling": {"kind": "range", "levels": 32}},
        "train": {"epochs": 30, "schedule": {"kind": "cosine"}, "seeds": 5},
    },
}
"""What a preset asks of the job around its model."""


def expand(tree: Any) -> Any:
    """The fields of the preset that `tree` names under those of `tree`; other values as they are."""
    if not isinstance(tree, Mapping) or _named(tree) not in PRESETS:
        return tree
    return _over(PRESETS[tree["preset"]], tree)


def expand_job(tree: Any) -> Any:
    """The fields that the preset of the model in `tree` asks of a job, under those of `tree`."""
    model = tree.get("model") if isinstance(tree, Mapping) else None
    if not isinstance(model, Mapping) or _named(model) not in BESIDE:
        return tree
    return _over(BESIDE[model["preset"]], tree)


def _named(model: Mapping[str, Any]) -> Any:
    """The preset that a model names; None for what can be no name, which validation refuses."""
    name = model.get("preset")
    return name if isinstance(name, str) else None


def _over(below: Any, above: Any) -> Any:
    """`above` over `below`, field by field; a part of another kind replaces the one below."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    if above.get("kind", below.get("kind")) != below.get("kind") and "kind" in below:
        return above
    merged = {**below, **above}
    return {
        name: _over(below[name], above[name]) if name in below and name in above else value
        for name, value in merged.items()
    }


Network = Annotated[Dense | Conv | Lstm, Field(discriminator="kind"), kind_unless_named("dense")]


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
        return self.code.activation[0] if self.code.activation else self.network.last_activation

    def output_activation(self, unit_data: bool) -> Activation:
        """What `output_activation: auto` becomes: sigmoid on [0, 1] data, else linear."""
        chosen = self.network.output_activation
        if chosen != "auto":
            return chosen
        return "sigmoid" if unit_data or self.loss.unit_data else "linear"

    @property
    def nested_widths(self) -> tuple[int, ...]:
        """Widths at which the first units of the code are a code of their own."""
        return next(filter(None, (p.nested_widths for p in self.penalties)), ())

    @model_validator(mode="before")
    @classmethod
    def _preset_is_parts(cls, tree: Any) -> Any:
        return expand(tree)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        refuse(map(mistake, self._contradictions()))
        return self

    def _contradictions(self) -> Iterator[str]:
        """Messages about incompatible parts."""
        yield from self._about_the_activation()
        for part in (self.network, self.corruption, self.code, self.loss):
            yield from part.contradictions(self)
        kinds = [penalty.kind for penalty in self.penalties]
        if len(set(kinds)) < len(kinds):
            yield f"penalties must differ in kind, found {kinds}: add up their weights"
        for penalty in self.penalties:
            yield from penalty.contradictions(self)
        if self.adversary is not None:
            yield from self._about_the_adversary(self.adversary)
        elif self.preset == "adversarial":
            yield "preset adversarial is its adversary, found null; remove one of them"

    def _about_the_activation(self) -> Iterator[str]:
        needed, why = self.code.activation or (self.code_activation, "")
        if self.code_activation != needed:
            yield (
                f"code {self.code.kind} needs a {needed} code, found '{self.code_activation}': "
                f"{why}; remove network.code_activation"
            )

    def _about_the_adversary(self, adversary: Adversary) -> Iterator[str]:
        """The code must be able to become the prior."""
        if self.code.sparse:
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
