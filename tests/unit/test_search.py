"""Searches: what is proposed depends on the file and on what was told, and on nothing else."""

import math
from typing import Any

import numpy as np
import pytest
import ray

from hourglass import bundles
from hourglass.config.files import parse
from hourglass.config.search import Pbt, Stop, Values
from hourglass.config.tune import TuneJob
from hourglass.tuning.search import Searching, Slot, children, empty_places, ends, explored, search
from hourglass.tuning.space import Point, points
from hourglass.tuning.stopping import settled
from hourglass.tuning.trial import Resources, Share, resources

BASE = {
    "kind": "train",
    "name": "small",
    "data": {"uri": "/rows", "features": {"vector": "x"}},
    "model": {"network": {"kind": "dense", "widths": [6, 3], "activation": "tanh"}},
    "train": {"epochs": 8, "optimizer": {"kind": "adam"}},
    "scale": {"accelerator": "cpu"},
}
LR = "train.optimizer.lr"
RATES = {LR: {"loguniform": [1e-5, 1.0]}}


def sweep(space: dict[str, Any], **fields: Any) -> TuneJob:
    made = parse({"kind": "tune", "name": "s", "base": BASE, "space": space, **fields})
    assert isinstance(made, TuneJob)
    return made


def learning(space: dict[str, Any] = RATES, trials: int = 24, **how: Any) -> TuneJob:
    return sweep(space, search={"kind": "optuna", "seed": 1, **how}, max_trials=trials)


def error(point: Point) -> float:
    """Lowest at a rate of 0.01."""
    return abs(math.log10(point.values[LR]) + 2)


def reported(searching: Searching, judge: Any = error) -> list[Point]:
    """All points of a search whose trials have these errors."""
    every = []
    while batch := searching.ask():
        searching.tell([judge(point) for point in batch])
        every += batch
    return every


def test_optuna_finds_the_rate_that_random_draws_miss() -> None:
    learned = reported(search(learning()))
    assert len(learned) == 24
    drawn = points(sweep(RATES, search={"kind": "random", "seed": 1}, max_trials=24))
    late = np.median([error(point) for point in learned[12:]])
    assert late < np.median([error(point) for point in drawn[12:]]) / 2


def test_optuna_proposes_the_same_for_the_same_results() -> None:
    first, again = reported(search(learning())), reported(search(learning()))
    assert first == again
    other = reported(search(learning()), judge=lambda point: -error(point))
    assert first[:8] == other[:8]  # startup draws learn nothing
    assert first[8:] != other[8:]


def test_optuna_maximises_on_demand_and_forgets_failures() -> None:
    most = sweep(
        {"train.seed": {"randint": [0, 100]}, "train.seeds": {"choice": [2]}},
        search={"kind": "optuna", "seed": 1},
        max_trials=20,
        metric="rank_agreement",
        mode="max",
    )
    found = reported(search(most), judge=lambda point: float(point.values["train.seed"]))
    assert np.mean([point.values["train.seed"] for point in found[12:]]) > 70
    failing = reported(search(learning(trials=12)), judge=lambda point: None)
    assert len(failing) == 12


def test_optuna_never_proposes_a_point_twice_and_ends_when_there_are_no_more() -> None:
    space = {"train.epochs": {"choice": [1, 2, 3]}, "model.trim": {"quniform": [0.0, 0.2, 0.1]}}
    found = reported(search(learning(space, trials=50)), judge=lambda point: 1.0)
    assert len(found) == len({point.key for point in found}) == 9


def test_optuna_knows_conditions_and_lists_invalid_points() -> None:
    space = {
        "model.code": {"choice": [{"kind": "plain"}, {"kind": "top_k", "k": 2}]},
        "model.code.k": {"randint": [1, 9], "when": {"model.code.kind": "top_k"}},
    }
    found = reported(search(learning(space, trials=11)), judge=lambda point: 1.0)
    plain = [point for point in found if point.values["model.code"]["kind"] == "plain"]
    assert [set(point.values) for point in plain] == [{"model.code"}]
    wide = [point for point in found if point.values.get("model.code.k", 0) > 3]
    assert wide
    assert all("k" in point.reason for point in wide if point.job is None)


def test_a_planned_search_proposes_all_at_once() -> None:
    grid = search(sweep({"train.epochs": {"grid": [1, 2, 3]}}))
    assert (grid.most, len(grid.ask()), grid.ask()) == (3, 3, [])


def test_places_that_stay_empty_are_told_where_a_larger_batch_would_fill_them() -> None:
    def reported(together: int, at_once: int, trials: int = 24) -> str:
        return empty_places(learning(trials=trials, together=together), at_once)

    assert reported(2, 4) == (
        "search.together is 2: 2 of 4 places for trials stay empty; 4 fills them, and proposes other "
        "points"
    )
    assert reported(2, 8, trials=3) == (
        "search.together is 2: 1 of 3 places for trials stay empty; 3 fills them, and proposes other "
        "points"
    )
    assert reported(4, 4) == reported(5, 4) == reported(3, 8, trials=3) == ""
    assert empty_places(sweep({"train.epochs": {"grid": [1]}}), 8) == ""
    drawn = sweep(RATES, search={"kind": "random"}, max_trials=9)
    assert empty_places(drawn, 8) == ""


POPULATION = {"kind": "pbt", "every_epochs": 3, "share": 0.25}


def population(space: dict[str, Any] = RATES, **scheduler: Any) -> TuneJob:
    return sweep(
        space,
        search={"kind": "random", "seed": 2},
        max_trials=8,
        scheduler=POPULATION | scheduler,
    )


def test_generations_end_with_the_job() -> None:
    assert list(ends(8, 3)) == [3, 6, None]
    assert list(ends(6, 3)) == [3, None]


def test_the_worst_go_on_from_the_best_with_other_numbers() -> None:
    made = population()
    parents = search(made).ask()
    spec = Pbt(every_epochs=3, share=0.25)
    metrics = [0.3, 0.1, None, 0.4, 0.9, 0.5, 0.2, 0.6]
    slots = children(made, spec, 0, parents, metrics)
    kept = [0, 1, 3, 5, 6, 7]
    assert [slots[i] for i in kept] == [Slot(parents[i].values, parents[i].trial) for i in kept]
    for worst in (2, 4):
        assert slots[worst].parent in {parents[1].trial, parents[6].trial}
        assert slots[worst].values not in [point.values for point in parents]
    assert children(made, spec, 0, parents, metrics) == slots
    assert children(made, Pbt(every_epochs=3, seed=1), 0, parents, metrics) != slots


def test_the_failed_go_on_from_others_too_and_nobody_from_them() -> None:
    made = population()
    parents = search(made).ask()
    spec = Pbt(every_epochs=3, share=0.25)
    slots = children(made, spec, 0, parents, [None, 0.2, None, None, None, None, None, None])
    assert {slot.parent for slot in slots} == {parents[1].trial}
    assert children(made, spec, 0, parents, [None] * 8) == []
    assert len(reported(search(made), judge=lambda point: None)) == 8  # the sweep ends there


def test_a_populations_trials_have_names_of_their_own_and_the_last_are_whole_runs() -> None:
    every = reported(search(population()))
    assert len(every) == len({point.trial for point in every}) == 24
    assert [point.until for point in every] == [3] * 8 + [6] * 8 + [None] * 8
    assert {point.parent for point in every[:8]} == {""}
    assert {point.parent for point in every[8:16]} <= {point.trial for point in every[:8]}
    best = [np.mean([error(point) for point in every[i : i + 8]]) for i in (0, 8, 16)]
    assert best[2] < best[0]


def test_numbers_change_a_little_or_are_drawn_anew_and_stay_within_bounds() -> None:
    rng = np.random.default_rng(0)
    rate = Values(loguniform=(1e-5, 1.0))
    near = [explored(0.1, rate, rng) for _ in range(2000)]
    share = np.mean(
        [value == pytest.approx(0.08) or value == pytest.approx(0.12) for value in near]
    )
    assert share == pytest.approx(0.75, abs=0.03)
    assert all(1e-5 <= value <= 1.0 for value in near)
    whole = {explored(10, Values(randint=(1, 12)), rng) for _ in range(500)}
    assert whole == set(range(1, 13))
    steps = {explored(0.3, Values(quniform=(0.1, 0.5, 0.1)), rng) for _ in range(500)}
    assert steps == {0.1, 0.2, 0.3, 0.4, 0.5}
    for value in (1, 2, 4):
        listed = [explored(value, Values(choice=(4, 2, 1)), rng) for _ in range(500)]
        assert listed.count(value) < 100  # only when drawn anew
    one = [explored(1, Values(randint=(0, 9)), rng) for _ in range(500)]
    assert one.count(1) < 50


@pytest.mark.parametrize(
    ("metrics", "mode", "count"),
    [
        ([0.5, 0.4, 0.3, 0.2], "min", None),
        ([0.5, 0.6, 0.7, 0.1], "min", 3),
        ([0.5, 0.4, 0.4999, None, 0.1], "min", 4),
        ([None, None, 0.1], "min", 2),
        ([0.5, 0.49999, 0.49998], "min", 3),  # less than the tolerance is no improvement
        ([0.5, 0.6, 0.7, 0.6, 0.5], "max", 5),
        ([0.5], "min", None),
    ],
)
def test_patience_counts_trials_in_their_order(
    metrics: list[float | None], mode: Any, count: int | None
) -> None:
    assert settled(metrics, Stop(patience=2, tolerance=0.01), mode) == count


def test_what_a_trial_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def available(cpus: float, gpus: float, made: TuneJob, nodes: int = 1) -> Resources:
        one = {"Alive": True, "Resources": {"CPU": cpus, "GPU": gpus}}
        dead = {"Alive": False, "Resources": {"CPU": 99.0}}
        monkeypatch.setattr(ray, "nodes", lambda: [*[one] * nodes, dead])
        monkeypatch.setattr(bundles, "can_grow", lambda: False)
        return resources(made, print)

    def asking(scale: dict[str, Any], **fields: Any) -> TuneJob:
        made = parse(
            {"kind": "tune", "base": BASE | {"scale": scale}, "space": RATES, **fields}
            | {"search": {"kind": "random"}, "max_trials": 2}
        )
        assert isinstance(made, TuneJob)
        return made

    cpu = {"accelerator": "cpu"}
    assert available(8, 0, asking(cpu)) == Resources(Share(1.0, 0.0, 1), 8, 8)
    assert available(8, 0, asking(cpu, workers_per_trial=3)) == Resources(Share(1.0, 0.0, 3), 2, 2)
    assert available(8, 0, asking(cpu, concurrency=4)) == Resources(Share(1.0, 0.0, 1), 8, 4)
    assert available(8, 0, asking(cpu | {"cpus_per_worker": 0.5})).at_once == 16
    auto = {"accelerator": "auto"}
    assert available(16, 2, asking(auto)) == Resources(Share(1.0, 1.0, 1), 2, 2)
    assert available(16, 2, asking(auto, gpus_per_worker=0.25)) == Resources(
        Share(1.0, 0.25, 1), 8, 8
    )
    assert available(16, 2, asking(auto, gpus_per_worker=0.1)).at_once == 16  # CPUs are the limit
    assert available(16, 2, asking(auto, workers_per_trial=2)) == Resources(
        Share(1.0, 1.0, 2), 1, 1
    )
    with pytest.raises(
        Exception, match="a trial needs 3 x {CPU: 1}, which do not fit this machine's"
    ) as e:
        available(2, 0, asking(cpu, workers_per_trial=3))
    assert str(e.value).endswith("2 CPUs and 0 GPUs; change workers_per_trial or base.scale")
