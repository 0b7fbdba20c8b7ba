"""A run whose number of workers changes is the run of any constant number, to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

WORKER = Path(__file__).with_name("resize_worker.py")


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """What each run ended with: weights, best weights, optimizer, errors of each epoch, sizes."""
    folder = tmp_path_factory.mktemp("resize")
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest relative distance of two tensors with a name."""
    names = one.keys() - {"sizes"}
    assert names == other.keys() - {"sizes"}
    return max(
        float(np.linalg.norm(one[name] - other[name]) / max(np.linalg.norm(other[name]), 1e-12))
        for name in names
    )


@pytest.mark.parametrize("kind", ["memory", "stream"])
@pytest.mark.parametrize("name", ["constant", "changing"])
def test_the_end_does_not_depend_on_the_number_of_workers(
    ends: dict[str, dict[str, np.ndarray]], kind: str, name: str
) -> None:
    """4, then 2, then 3 workers, or 3 throughout: with dropout, corruption and draws of the code."""
    assert difference(ends[f"{kind}.{name}"], ends[f"{kind}.alone"]) < 1e-10


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_the_same_numbers_of_workers_give_the_same_bits(
    ends: dict[str, dict[str, np.ndarray]], kind: str
) -> None:
    first, second = ends[f"{kind}.changing"], ends[f"{kind}.again"]
    assert {key: value.tobytes() for key, value in first.items()} == {
        key: value.tobytes() for key, value in second.items()
    }


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_the_comparison_sees_noise_that_belongs_to_a_worker(
    ends: dict[str, dict[str, np.ndarray]], kind: str
) -> None:
    """The negative control."""
    assert difference(ends[f"{kind}.by_worker"], ends[f"{kind}.alone"]) > 1e-3


def test_the_numbers_of_workers_are_kept(ends: dict[str, dict[str, np.ndarray]]) -> None:
    assert ends["memory.changing"]["sizes"].tolist() == [[0, 4], [14, 2], [35, 3]]
    assert ends["stream.alone"]["sizes"].tolist() == [[0, 1]]
