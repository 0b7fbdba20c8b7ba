"""Famous names as choices of parts: `preset: NAME` is these fields, and the file's own go over them.

A preset leaves the widths to you, but for `anomaly`. Adding one is one row here and one in
docs/variants.md.
"""

from collections.abc import Mapping
from typing import Any, Literal

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
