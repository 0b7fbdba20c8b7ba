"""What fits on the nodes of a cluster, and what workers leave to read with."""

import itertools
import math
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from hourglass import bundles
from hourglass.config.train import ScaleSpec
from hourglass.errors import ClusterError
from hourglass.training import resources
from hourglass.training.resources import WorkerResources


def test_bundles_fit_node_by_node() -> None:
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 3.0}]
    assert bundles.fitting(nodes, {"CPU": 2.0}) == 2  # 6 CPUs in all, but no node with 4
    assert bundles.fitting(nodes, {"CPU": 1.0, "GPU": 1.0}) == 1
    assert bundles.fitting(nodes, {"CPU": 4.0}) == 0
    assert bundles.fitting([{"CPU": 0.3}], {"CPU": 0.1}) == 3  # 0.3 / 0.1 is 2.9999999999999996
    assert bundles.describe([{"CPU": 4.0, "GPU": 0.0}] * 4 + [{"CPU": 0.5}]) == (
        "4 x {CPU: 4} and 1 x {CPU: 0.5}"
    )


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 7, 16, 64])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_on_one_node_all_but_one_cpu_is_shared(cpus: int, workers: int) -> None:
    share = max(cpus - 1.0, cpus / 2.0) / workers
    each = float(math.floor(share)) if share >= 1 else math.floor(share * 100) / 100
    found = resources.share(ScaleSpec(workers=workers), [{"CPU": float(cpus)}])
    assert found == WorkerResources(each, 0.0, min(1.0, cpus - each * workers))


def test_auto_asks_for_no_more_than_a_node_has() -> None:
    """Two nodes of 4 CPUs: seven CPUs for one worker exist, and not in one place."""
    nodes = [{"CPU": 4.0}, {"CPU": 4.0}]
    assert resources.share(ScaleSpec(workers=1), nodes) == WorkerResources(4.0, 0.0, 1.0)
    assert resources.share(ScaleSpec(workers=2), nodes) == WorkerResources(3.0, 0.0, 1.0)
    assert resources.share(ScaleSpec(workers=1, cpus_per_worker=7), nodes) is None
    assert resources.share(ScaleSpec(workers=1), []) is None
    one = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0}]
    assert resources.share(ScaleSpec(workers=1), one) == WorkerResources(4.0, 1.0, 1.0)
    assert resources.share(ScaleSpec(workers=2, accelerator="gpu"), one) is None


def _placements(nodes: list[float], each: float, workers: int) -> list[list[float]]:
    """What each node has left, for every way to place the workers."""
    most = [range(math.floor(cpus / each + 1e-9) + 1) for cpus in nodes]
    return [
        [cpus - each * count for cpus, count in zip(nodes, counts, strict=True)]
        for counts in itertools.product(*most)
        if sum(counts) == workers
    ]


@given(
    nodes=st.lists(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 4.0]), min_size=1, max_size=4),
    workers=st.integers(1, 6),
    cpus=st.sampled_from(["auto", 0.25, 0.5, 1.0, 1.5, 2.0]),
)
def test_a_read_task_fits_wherever_workers_are_placed(
    nodes: list[float], workers: int, cpus: Any
) -> None:
    """Otherwise the run would wait forever, with workers that own every CPU."""
    scale = ScaleSpec(workers=workers, cpus_per_worker=cpus)
    found = resources.share(scale, [{"CPU": each} for each in nodes])
    if found is None:
        return
    ways = _placements(nodes, found.cpus, workers)
    assert ways
    assert all(max(left) >= found.read_cpus - 1e-9 for left in ways)
    assert found.read_cpus > 0


def test_what_all_nodes_have_together_is_no_measure() -> None:
    """The control: two workers of 1.5 CPUs leave one of four CPUs, in two halves."""
    nodes = [2.0, 2.0]
    found = resources.share(ScaleSpec(workers=2, cpus_per_worker=1.5), [{"CPU": c} for c in nodes])
    assert found == WorkerResources(1.5, 0.0, 0.5)
    assert all(max(left) < sum(nodes) - 3.0 for left in _placements(nodes, 1.5, 2))


class _Group:
    """A placement group that is placed at the given look."""

    def __init__(self, looks: float) -> None:
        self.looks = looks

    def wait(self, seconds: float) -> bool:
        self.looks -= 1
        return self.looks <= 0


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A cluster of two CPUs with one free; keeps what is asked, and what is removed."""
    seen: dict[str, Any] = {"removed": [], "looks": 1}

    def ask(wanted: list[dict[str, float]]) -> _Group:
        seen["wanted"] = wanted
        return _Group(seen["looks"])

    monkeypatch.setattr(ray.util, "placement_group", ask)
    monkeypatch.setattr(ray.util, "remove_placement_group", seen["removed"].append)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(bundles, "GRACE_S", -1.0)
    return seen


def test_waiting_is_said_once_a_minute_and_leaves_nothing(cluster: dict[str, Any]) -> None:
    cluster["looks"] = 50
    notes: list[str] = []
    bundles.wait([{"CPU": 2.0, "GPU": 0.0}] * 2, 600.0, notes.append, "use fewer")
    assert cluster["wanted"] == [{"CPU": 2.0}] * 2
    assert notes == [
        "waiting for 2 x {CPU: 2}; the cluster has 1 node, 1 of 2 CPUs free; an autoscaler is asked "
        "for more"
    ]
    assert len(cluster["removed"]) == 1


def test_waiting_has_an_end(cluster: dict[str, Any]) -> None:
    cluster["looks"] = math.inf
    with pytest.raises(ClusterError) as caught:
        bundles.wait([{"CPU": 2.0}] * 2, 0.0, print, "use fewer")
    assert str(caught.value) == (
        "waited 0 s for 2 x {CPU: 2}; the cluster has 1 node, 1 of 2 CPUs free; use fewer"
    )
    assert len(cluster["removed"]) == 1
