"""Who is stopped, and when: Ray's own rules, in the order of the points and not of the reports."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

from hourglass.config.search import Asha, Median, NoScheduler, Scheduler
from hourglass.tuning.stopping import Stopping

EPOCHS = 12
ASHA, MEDIAN = Asha(grace_epochs=2, reduction_factor=2), Median(grace_epochs=2, least_trials=3)
Curves = list[list[float]]
RULES = pytest.mark.parametrize("spec", [ASHA, MEDIAN], ids=lambda spec: spec.kind)


def curves(seed: int, trials: int = 12) -> Curves:
    """Errors of trials after each of their epochs: falling, and crossing each other."""
    rng = np.random.default_rng(seed)
    start, rate = rng.uniform(0.5, 1.5, trials), rng.uniform(0.0, 0.5, trials)
    fall = np.exp(-rate[:, None] * np.arange(EPOCHS))
    return (start[:, None] * fall + rng.normal(0, 0.02, (trials, EPOCHS))).tolist()


def record(epoch: int, error: float) -> dict[str, float]:
    return {"epoch": float(epoch), "holdout_mse": error}


def entered(spec: Scheduler, errors: Curves) -> Stopping:
    stopping = Stopping(spec, "holdout_mse")
    for number in range(len(errors)):
        stopping.enter(str(number), EPOCHS)
    return stopping


def last_epochs(stopping: Stopping, trials: int) -> list[int | None]:
    return [stopping.last_epoch(str(number)) for number in range(trials)]


def trained(spec: Scheduler, errors: Curves, at_once: int, seed: int = 0) -> list[int | None]:
    """Trials that start in their order, so many at a time, and of which any may be the next to report.

    The last epoch is not reported: a trial then saves its artifact.
    """
    stopping, rng = entered(spec, errors), np.random.default_rng(seed)
    waiting, running = list(range(len(errors))), {}
    while waiting or running:
        while waiting and len(running) < at_once:
            running[waiting.pop(0)] = 0
        number = int(rng.choice(list(running)))
        running[number] += 1
        epoch = running[number]
        if epoch < EPOCHS:
            stopping.observe(str(number), [record(epoch, errors[number][epoch - 1])])
            if stopping.last_epoch(str(number)) is not None:
                del running[number]
        else:
            stopping.observe(str(number), [record(n, e) for n, e in enumerate(errors[number], 1)])
            stopping.ended(str(number))
            del running[number]
    assert all(stopping.decided(str(number)) for number in range(len(errors)))
    return last_epochs(stopping, len(errors))


def by_ray(spec: Scheduler, errors: Curves, at_once: int, seed: int = 0) -> list[int | None]:
    """The same with Ray's schedulers."""
    common = {"time_attr": "epoch", "metric": "holdout_mse", "mode": "min"}
    rule: Any
    if isinstance(spec, Asha):
        rule = ASHAScheduler(
            max_t=10**6,
            grace_period=spec.grace_epochs,
            reduction_factor=spec.reduction_factor,
            **common,
        )
    else:
        assert isinstance(spec, Median)
        rule = MedianStoppingRule(
            grace_period=spec.grace_epochs,
            min_samples_required=spec.least_trials,
            min_time_slice=math.inf,
            **common,
        )

    class Trial(SimpleNamespace):
        __hash__ = object.__hash__

    trials = [Trial(trial_id=str(number)) for number in range(len(errors))]
    controller: Any = SimpleNamespace(get_live_trials=list)
    rng, ends = np.random.default_rng(seed), dict[int, int]()
    waiting, running = list(range(len(errors))), {}
    while waiting or running:
        while waiting and len(running) < at_once:
            running[waiting.pop(0)] = 0
            rule.on_trial_add(controller, trials[max(running)])
        number = int(rng.choice(list(running)))
        running[number] += 1
        epoch = running[number]
        printed = record(epoch, errors[number][epoch - 1])
        if epoch == EPOCHS:
            rule.on_trial_complete(controller, trials[number], printed)
            del running[number]
        elif rule.on_trial_result(controller, trials[number], printed) == "STOP":
            ends[number] = epoch
            del running[number]
    return [ends.get(number) for number in range(len(errors))]


@RULES
def test_one_after_the_other_it_is_rays_rule(spec: Scheduler) -> None:
    for seed in range(50):
        assert trained(spec, curves(seed), at_once=1) == by_ray(spec, curves(seed), at_once=1)


@RULES
def test_neither_concurrency_nor_speed_decides(spec: Scheduler) -> None:
    """As it does when whoever reports is judged at once, which is the control."""
    differ = 0
    for seed in range(50):
        errors = curves(seed)
        alone = trained(spec, errors, at_once=1)
        assert 2 <= sum(last is not None for last in alone) < len(errors)
        for at_once in (2, 5, 12):
            assert trained(spec, errors, at_once, seed) == alone
            differ += by_ray(spec, errors, at_once, seed) != alone
    assert differ > 75


def test_a_trial_that_was_ahead_is_stopped_where_it_would_have_been() -> None:
    """Trial 1 comes to its end before trial 0 comes to the rung."""
    stopping = entered(ASHA, [[], [], []])
    stopping.observe("1", [record(epoch, 0.9) for epoch in range(1, EPOCHS + 1)])
    stopping.ended("1")
    assert (stopping.decided("1"), stopping.last_epoch("1")) == (False, None)
    stopping.observe("0", [record(1, 0.7)])
    assert not stopping.decided("1")
    stopping.observe("0", [record(2, 0.5)])
    assert (stopping.decided("1"), stopping.last_epoch("1")) == (True, 2)
    stopping.observe("2", [record(1, 0.2), record(2, 0.1), record(3, 0.1)])
    assert (stopping.decided("2"), stopping.last_epoch("2")) == (False, None)  # trial 0 is at 2
    stopping.observe("0", [record(epoch, 0.05) for epoch in (1, 2, 3, 4)])  # resumed
    assert stopping.decided("2")
    stopping.observe("2", [record(4, 0.1)])
    assert stopping.last_epoch("2") == 4  # trial 1, stopped at 2, is not compared with there


def test_a_trial_that_failed_holds_nobody_up_and_its_last_epoch_stops_nobody() -> None:
    stopping = entered(ASHA, [[], []])
    stopping.observe("1", [record(1, 0.9), record(2, 0.9)])
    assert not stopping.decided("1")
    stopping.ended("0")
    assert (stopping.decided("1"), stopping.last_epoch("1")) == (True, None)
    short = Stopping(ASHA, "holdout_mse")
    for name, error in (("a", 0.1), ("b", 0.9)):
        short.enter(name, 2)
        short.observe(name, [record(1, error), record(2, error)])
        short.ended(name)
    assert short.last_epoch("b") is None
    short.enter("c", 3)
    short.observe("c", [record(1, 0.6), record(2, 0.6)])
    assert short.last_epoch("c") == 2  # worse than the middle of 0.1 and 0.9


def test_what_is_no_number_is_not_compared() -> None:
    stopping = entered(ASHA, [[], [], []])
    stopping.observe("0", [record(1, 1.0), record(2, math.nan)])
    stopping.observe("1", [{"epoch": 1.0}, {"epoch": 2.0}])
    stopping.observe("2", [record(1, 1.0), record(2, 5.0)])
    assert last_epochs(stopping, 3) == [None] * 3
    assert stopping.decided("2")


def test_without_a_rule_nobody_waits_for_anybody() -> None:
    stopping = entered(NoScheduler(), [[], []])
    stopping.observe("1", [record(5, 0.9)])
    stopping.ended("1")
    assert stopping.decided("1")
    assert stopping.last_epoch("1") is None
