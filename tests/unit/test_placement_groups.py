"""Placement groups of trials whose processes are gone are freed, each once, and not before."""

import pytest
import ray
from ray.util.placement_group import PlacementGroup

from hourglass.training import launch
from hourglass.tuning import execution
from hourglass.tuning.execution import GONE_S, PlacementGroups


def test_the_groups_of_lost_trials_are_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    now, freed = [100.0], []
    monkeypatch.setattr(execution.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(execution, "free", freed.extend)
    ids = [character * 36 for character in "abc"]
    held = PlacementGroups()
    for trial, group in zip("123", ids, strict=True):
        held.reserved(trial, group)
    held.ended("1")
    held.ended("none")
    held.free_ended()
    assert freed == []  # its controller may still be alive
    now[0] += GONE_S
    held.ended("2")
    held.free_ended()
    held.free_ended()
    assert freed == ids[:1]
    held.free_all()
    assert sorted(freed) == ids


def test_the_groups_of_a_lost_cluster_raise_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group is tried; an error that is not Ray's is raised."""
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
