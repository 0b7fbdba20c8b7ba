"""Placement groups of trials that are gone are given back, each once, and not before."""

import pytest
import ray
from ray.util.placement_group import PlacementGroup

from hourglass.training import launch
from hourglass.tuning import resources
from hourglass.tuning.resources import GONE_S, Groups


def test_what_lost_trials_held_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now, freed = [100.0], []
    monkeypatch.setattr(resources.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(resources, "free", freed.extend)
    ids = [character * 36 for character in "abc"]
    held = Groups()
    for trial, group in zip("123", ids, strict=True):
        held.reserved(trial, group)
    held.ended("1")
    held.ended("none")
    held.give_back()
    assert freed == []  # its controller may still live
    now[0] += GONE_S
    held.ended("2")
    held.give_back()
    held.give_back()
    assert freed == ids[:1]
    held.give_back_all()
    assert sorted(freed) == ids


def test_what_a_lost_cluster_held_is_not_asked_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group is tried; an error that is not Ray's is told."""
    asked: list[str] = []
    failure: Exception = ray.exceptions.RaySystemError("the cluster is gone")

    def remove(group: PlacementGroup) -> None:
        asked.append(group.id.hex())
        raise failure

    monkeypatch.setattr(launch, "remove_placement_group", remove)
    held = ["0a" * 18, "0b" * 18]
    launch.free(held)
    assert asked == held
    failure = TypeError("a mistake of ours")
    with pytest.raises(TypeError):
        launch.free(held)
