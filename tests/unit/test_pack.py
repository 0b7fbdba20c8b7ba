"""Packs: what trains together, what does not and why, and that grouping is stable."""

import copy
from typing import Any

import pytest
import torch

from hourglass.config import errors
from hourglass.config.files import parse
from hourglass.config.train import TrainJob
from hourglass.tuning.pack import Dealt, deal, obstacle, packs, pays

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SPARSE = {"kind": "sparsity_kl", "rho": 0.2, "beta": 0.1}
BASE: dict[str, Any] = {
    "kind": "train",
    "name": "small",
    "data": {"uri": "/rows", "features": {"vector": "x"}},
    "model": {
        "network": {"kind": "dense", "widths": [8, 3], "activation": "tanh"},
        "corruption": {"kind": "gaussian", "sd": 0.1},
        "penalties": [SPARSE, {"kind": "weights_l2", "weight": 0.01}],
    },
    "train": {"optimizer": {"kind": "adam", "lr": 0.01}, "early_stop": {"patience": 2}},
}
TOP_K = {"kind": "top_k", "k": 1}


def job(values: dict[str, Any]) -> TrainJob:
    tree = copy.deepcopy(BASE)
    for path, value in values.items():
        errors.put(tree, path, value, path)
    made = parse(tree)
    assert isinstance(made, TrainJob)
    return made


TOGETHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "learning rate": ({}, {"train.optimizer.lr": 0.1}),
    "optimizer": ({}, {"train.optimizer": {"kind": "sgd", "momentum": 0.5}}),
    "decay": ({}, {"train.optimizer": {"kind": "adamw", "weight_decay": 0.1}}),
    "schedule": ({}, {"train.schedule": {"kind": "cosine"}}),
    "epochs": ({}, {"train.epochs": 3}),
    "clipping": ({}, {"train.clip_norm": 1.0}),
    "seed": ({}, {"train.seed": 3}),
    "patience": ({}, {"train.early_stop.patience": 4}),
    "no early stop": ({}, {"train.early_stop": None}),
    "sd": ({}, {"model.corruption.sd": 0.3}),
    "penalties": (
        {},
        {"model.penalties": [{**SPARSE, "rho": 0.1}, {"kind": "weights_l2", "weight": 0.1}]},
    ),
    "code of k": ({"model.code": TOP_K}, {"model.code": TOP_K, "train.optimizer.lr": 0.1}),
    "name and threshold": ({}, {"name": "other", "quantile": 0.5}),
}
APART: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "widths": ({}, {"model.network.widths": [8, 2]}),
    "activation": ({}, {"model.network.activation": "sigmoid"}),
    "kind of corruption": ({}, {"model.corruption": {"kind": "zeros", "p": 0.1}}),
    "order of penalties": ({}, {"model.penalties": BASE["model"]["penalties"][::-1]}),
    "a penalty less": ({}, {"model.penalties": [SPARSE]}),
    "kind of code": ({}, {"model.code": TOP_K}),
    "k": ({"model.code": TOP_K}, {"model.code": {**TOP_K, "k": 2}}),
    "loss": ({}, {"model.loss": {"kind": "huber"}}),
    "number of a loss": (
        {"model.loss": {"kind": "huber"}},
        {"model.loss": {"kind": "huber", "delta": 0.5}},
    ),
    "batches": ({}, {"train.batch_size": 32}),
    "scaling": ({}, {"data.scaling": {"kind": "standard"}}),
    "rows": ({}, {"data.uri": "/other"}),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_jobs_that_differ_in_numbers_train_together(case: str) -> None:
    first, second = (job(values) for values in TOGETHER[case])
    assert first != second
    assert packs({"a": first, "b": second}) == [["a", "b"]]


@pytest.mark.parametrize("case", APART)
def test_jobs_that_differ_in_more_train_apart(case: str) -> None:
    first, second = (job(values) for values in APART[case])
    assert obstacle(first) == obstacle(second) == ""
    assert packs({"a": first, "b": second}) == [["a"], ["b"]]


OBSTACLES: dict[str, dict[str, Any]] = {
    "scale.workers: 2": {"scale": {"workers": 2}},
    "train.phases": {"train.phases": [{"kind": "greedy"}]},
    "train.seeds: 3": {"train.seeds": 3},
    "network lstm: it does not declare that it can be packed": {
        "model.network": {"kind": "lstm", "shape": [4, 3], "hidden": 3, "code": 2},
        "model.penalties": [],
    },
    "network dense: norm batch keeps statistics of the batches": {"model.network.norm": "batch"},
    "network dense: norm layer magnifies rounding where the units of a row are nearly equal": {
        "model.network.norm": "layer"
    },
    "network dense: dropout draws inside the forward pass": {"model.network.dropout": 0.1},
    "code gaussian_noise: it draws noise inside the forward pass": {
        "model.code": {"kind": "gaussian_noise", "sd": 1.0}
    },
    "code batch_top_k: it looks at all rows of a batch": {
        "model.code": {"kind": "batch_top_k", "k": 1}
    },
    "loss mae: where an error is near 0 its slope jumps, so rounding would decide": {
        "model.loss": {"kind": "mae"}
    },
    "trim: what is left out depends on the values": {"model.trim": 0.1},
    "adversary": {
        "model.network.code_activation": "linear",
        "model.penalties": [],
        "model.adversary": {},
    },
    "penalty contractive: it takes a derivative of its own": {
        "model.penalties": [{"kind": "contractive", "weight": 0.1}]
    },
    "penalty aux_k: it counts units that are dead, so its work depends on the values": {
        "model.code": TOP_K,
        "model.penalties": [{"kind": "aux_k"}],
    },
}


@pytest.mark.parametrize("printed", OBSTACLES)
def test_what_cannot_be_packed_is_alone_and_says_why(printed: str) -> None:
    made = job(OBSTACLES[printed])
    assert obstacle(made) == printed
    assert packs({"a": made, "b": made}) == [["a"], ["b"]]


def test_groups_and_names_keep_their_order() -> None:
    wide = {"model.network.widths": [8, 2]}
    jobs = {
        "d": job({}),
        "b": job(wide),
        "c": job({"train.seeds": 2}),
        "a": job({"train.optimizer.lr": 0.1}),
        "e": job({**wide, "train.seed": 1}),
    }
    assert packs(jobs) == [["d", "a"], ["b", "e"], ["c"]]
    assert packs(dict(reversed(jobs.items()))) == [["e", "b"], ["a", "d"], ["c"]]
    assert packs({}) == []


@pytest.mark.parametrize(
    ("widths", "features", "members", "on_cpu", "on_gpu"),
    [
        ([12, 2], 36, 3, False, False),
        ([12, 2], 36, 4, True, True),
        ([100], 784, 8, True, True),
        ([100], 1310, 8, True, True),
        ([100], 1311, 8, False, True),
        ([512, 64], 784, 64, False, True),
    ],
)
def test_a_pack_pays_with_several_small_models(
    widths: list[int], features: int, members: int, on_cpu: bool, on_gpu: bool
) -> None:
    """2 * 1310 * 100 weights are just below 2**18, 2 * 1311 * 100 just above."""
    made = job({"model.network.widths": widths})
    assert pays(made, features, members, CPU) is on_cpu
    assert pays(made, features, members, GPU) is on_gpu


def test_what_trains_by_itself_never_pays() -> None:
    made = job(OBSTACLES["network lstm: it does not declare that it can be packed"])
    assert not pays(made, 12, 64, CPU)
    assert not pays(made, 12, 64, GPU)


def jobs(count: int, **values: Any) -> dict[str, TrainJob]:
    """Trials that differ in a rate, named a, b, ..."""
    return {
        chr(97 + i): job({**values, "train.optimizer.lr": 0.01 * (i + 1)}) for i in range(count)
    }


def test_trials_are_dealt_to_all_processes_and_packed_where_it_pays() -> None:
    dealt = deal(jobs(9), "auto", 36, 2, CPU)
    assert dealt.groups == [list("abcde"), list("fghi")]
    assert dealt.note == "9 trials train packed, as 2 batched models"
    assert deal(jobs(9), "auto", 36, 9, CPU).groups == [[name] for name in "abcdefghi"]


def test_auto_says_why_it_does_not_pack() -> None:
    few = deal(jobs(3), "auto", 36, 1, CPU)
    assert few.groups == [["a"], ["b"], ["c"]]
    assert few.note == (
        "up to 3 trials differ in numbers only; packed they would take longer here, so each trains "
        "alone (pack: always packs them)"
    )
    large = jobs(8, **{"model.network.widths": [1024, 64]})
    assert deal(large, "auto", 784, 1, CPU).note.startswith("up to 8 trials differ in numbers only")
    assert len(deal(large, "always", 784, 2, CPU).groups) == 2


def test_never_packs_nothing_and_always_says_when_it_cannot() -> None:
    assert deal(jobs(9), "never", 36, 2, CPU) == Dealt([[name] for name in "abcdefghi"])
    lone = jobs(4, **{"model.trim": 0.1})
    assert deal(lone, "always", 36, 2, CPU).note == (
        "pack: always finds nothing to pack: trim: what is left out depends on the values"
    )
    assert deal(lone, "auto", 36, 2, CPU).note == ""
    shapes = {str(w): job({"model.network.widths": [8, w]}) for w in (2, 3)}
    assert deal(shapes, "always", 36, 2, CPU).note == (
        "pack: always finds nothing to pack: they differ in more than numbers"
    )
