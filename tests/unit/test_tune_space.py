"""Points: the same seed the same points, conditions, bounds, distributions, reasons."""

import math
from typing import Any

import numpy as np
import pytest

from hourglass.config.files import parse
from hourglass.config.search import Values
from hourglass.config.train import Adam
from hourglass.config.tune import TuneJob
from hourglass.model.code import TopK
from hourglass.model.corruption import Ones, Zeros
from hourglass.tuning.space import draw, points

BASE = {
    "kind": "train",
    "name": "small",
    "data": {"uri": "/rows", "features": {"vector": "x"}},
    "model": {"network": {"kind": "dense", "widths": [6, 3], "activation": "tanh"}},
    "scale": {"workers": 2, "accelerator": "cpu"},
}


def sweep(space: dict[str, Any], **fields: Any) -> TuneJob:
    made = parse({"kind": "tune", "base": BASE, "space": space} | fields)
    assert isinstance(made, TuneJob)
    return made


def drawn(space: dict[str, Any], trials: int, seed: int = 0) -> list[dict[str, Any]]:
    made = sweep(space, search={"kind": "random", "seed": seed}, max_trials=trials)
    return [point.values for point in points(made)]


def draws(**way: Any) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([draw(Values(**way), rng) for _ in range(4000)])


def test_a_grid_has_every_combination_in_order_on_one_worker() -> None:
    found = points(sweep({"train.epochs": {"grid": [1, 2]}, "model.trim": {"grid": [0.0, 0.1]}}))
    assert [tuple(point.values.values()) for point in found] == [
        (1, 0.0), (1, 0.1), (2, 0.0), (2, 0.1),
    ]  # fmt: skip
    jobs = [point.job for point in found if point.job]
    assert [(job.train.epochs, job.model.trim) for job in jobs] == [
        (1, 0.0), (1, 0.1), (2, 0.0), (2, 0.1),
    ]  # fmt: skip
    assert {(job.scale.workers, job.scale.accelerator) for job in jobs} == {(1, "cpu")}
    assert len({point.trial for point in found}) == 4
    assert BASE["scale"] == {"workers": 2, "accelerator": "cpu"}  # the base stays as it was


def test_max_trials_takes_the_first_points() -> None:
    space = {"train.epochs": {"grid": [1, 2, 3]}}
    assert points(sweep(space, max_trials=2)) == points(sweep(space))[:2]


def test_the_same_seed_draws_the_same_points_and_more_of_them() -> None:
    space = {
        "train.optimizer.lr": {"loguniform": [1e-4, 1e-1]},
        "model.network.widths.0": {"randint": [4, 64]},
    }
    assert drawn(space, 20) == drawn(space, 20)
    assert drawn(space, 20)[:8] == drawn(space, 8)
    assert drawn(space, 20) != drawn(space, 20, seed=1)


def test_a_point_is_drawn_once_and_a_small_space_ends() -> None:
    found = drawn({"train.epochs": {"choice": [1, 2, 3]}}, 50)
    assert sorted(values["train.epochs"] for values in found) == [1, 2, 3]


def test_a_value_is_set_only_where_its_condition_holds() -> None:
    """The condition sees the values above it; a field that the base does not set is null."""
    space = {
        "model.code": {"grid": [{"kind": "plain"}, {"kind": "top_k", "k": 1}]},
        "model.code.k": {"grid": [1, 2, 3], "when": {"model.code.kind": "top_k"}},
        "train.clip_norm": {"grid": [1.0], "when": {"model.code.k": 3}},
        "train.epochs": {"grid": [2], "when": {"train.clip_norm": None}},
    }
    top_k = {"kind": "top_k", "k": 1}
    assert [point.values for point in points(sweep(space))] == [
        {"model.code": {"kind": "plain"}, "train.epochs": 2},
        {"model.code": top_k, "model.code.k": 1, "train.epochs": 2},
        {"model.code": top_k, "model.code.k": 2, "train.epochs": 2},
        {"model.code": top_k, "model.code.k": 3, "train.clip_norm": 1.0},
    ]


def test_an_invalid_point_has_its_reason_and_the_others_go_on() -> None:
    good, bad, worse = points(
        sweep(
            {
                "model.code": {"grid": [{"kind": "top_k", "k": 2}]},
                "model.code.k": {"grid": [2, 9]},
                "train.epochs": {"grid": [1, 0], "when": {"model.code.k": 9}},
            }
        )
    )
    assert good.job is not None
    assert (bad.job, bad.trial, worse.job) == (None, "", None)
    too_many = "model: code top_k: k is 9, the code has 3 units"
    assert bad.reason == too_many
    assert worse.reason.startswith(f"{too_many}; train.epochs: found 0; input should be")
    widths = {"model.network.widths": {"grid": [[6, 3]]}, "model.network.widths.2": {"grid": [1]}}
    (lost,) = points(sweep(widths))
    assert lost.reason == (
        "space.model.network.widths.2: found '2', allowed are indexes of a list of 2 items, from 0"
    )


def test_a_path_below_a_part_that_the_base_does_not_name_is_a_field_of_the_default() -> None:
    """And is the same trial as where the base names that part."""
    space = {"train.optimizer.lr": {"grid": [0.01, 0.02]}}
    found = points(sweep(space))
    assert [p.job.train.optimizer for p in found if p.job] == [Adam(lr=0.01), Adam(lr=0.02)]
    named = {**BASE, "train": {"optimizer": {"kind": "adam"}}}
    assert [p.trial for p in points(sweep(space, base=named))] == [p.trial for p in found]
    assert [p.trial for p in found] == ["9cb446a3", "3f9076d0"]


def test_a_path_may_be_a_field_of_a_kind_that_the_space_or_a_preset_chooses() -> None:
    noise = {
        "model.corruption.p": {"grid": [0.1]},
        "model.corruption.kind": {"grid": ["zeros", "ones"]},
    }
    found = points(sweep(noise))
    assert [p.job.model.corruption for p in found if p.job] == [Zeros(p=0.1), Ones(p=0.1)]
    units = {"model.code.k": {"grid": [1, 2]}}
    preset = {**BASE, "model": {"network": {"widths": [8]}, "preset": "k_sparse"}}
    codes = [TopK(k=1), TopK(k=2)]
    assert [p.job.model.code for p in points(sweep(units, base=preset)) if p.job] == codes
    chosen = {"model.preset": {"grid": ["k_sparse"]}, **units}
    assert [p.job.model.code for p in points(sweep(chosen)) if p.job] == codes


def test_uniform() -> None:
    found = draws(uniform=(2.0, 4.0))
    assert 2.0 <= found.min() < 2.01 < 3.99 < found.max() <= 4.0
    assert found.mean() == pytest.approx(3.0, abs=0.03)


def test_the_logarithm_of_log_uniform_is_uniform() -> None:
    found = draws(loguniform=(1e-4, 1.0))
    assert found.min() >= 1e-4
    assert found.max() <= 1.0
    decades = np.histogram(np.log10(found), bins=4, range=(-4, 0))[0] / len(found)
    np.testing.assert_allclose(decades, 0.25, atol=0.03)
    assert np.median(found) == pytest.approx(math.sqrt(1e-4), rel=0.2)


def test_int_uniform_has_both_ends() -> None:
    values, counts = np.unique(draws(randint=(3, 6)), return_counts=True)
    assert values.tolist() == [3, 4, 5, 6]
    np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=0.03)


def test_quantised_values_lie_on_their_steps() -> None:
    assert np.unique(draws(quniform=(0.1, 0.5, 0.1))).tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert np.unique(draws(quniform=(64, 200, 64))).tolist() == [64, 128, 192]


def test_choice_takes_all_of_them() -> None:
    assert set(draws(choice=("relu", "tanh"))) == {"relu", "tanh"}


def test_a_grid_goes_on_past_a_thousand_equal_combinations() -> None:
    betas = [0.5 + n / 100 for n in range(33)]
    only_adam = {"grid": betas, "when": {"train.optimizer.kind": "adam"}}
    made = sweep(
        {
            "train.optimizer": {"grid": [{"kind": "sgd"}, {"kind": "adam"}]},
            "train.optimizer.beta1": only_adam,
            "train.optimizer.beta2": only_adam,
        }
    )
    assert len(points(made)) == 1 + 33 * 33


def test_a_preset_that_brings_several_seeds_has_no_scheduler() -> None:
    grid = {"model.preset": {"grid": ["undercomplete", "anomaly"]}}
    space = grid | {"model.network.widths": {"grid": [[3]]}}
    base = BASE | {"model": {"network": {"widths": [3]}}}
    alone, several = points(sweep(space, base=base, scheduler={"kind": "asha"}))
    assert alone.job is not None
    assert several.job is None
    assert several.reason == (
        "scheduler asha compares epochs of single models, found train.seeds: 5; set it to 1"
    )
    assert all(point.job for point in points(sweep(space, base=base)))
