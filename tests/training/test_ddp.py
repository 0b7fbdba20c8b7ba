"""NUM-02, NUM-04: workers of a real process group compute what one process does with all the rows."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hourglass.training.collective import SingleProcessGroup

sys.path.insert(0, str(Path(__file__).parent))
from ddp_worker import MODELS, ROWS, gradient, splits

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.fixture(scope="module", params=[2, 4])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """The size of a finished group, and the folder with what its workers found."""
    folder = tmp_path_factory.mktemp(f"group{request.param}")
    workers = subprocess.Popen(
        [sys.executable, str(WORKER), str(request.param), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        assert workers.wait(timeout=240) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(workers.pid, signal.SIGKILL)
    return request.param, folder


def found(group: tuple, model: str, split: str, way: str) -> list[dict[str, np.ndarray]]:
    """The gradient of each worker."""
    size, folder = group
    prefix = f"{model}/{split}/{way}/"
    files = [np.load(folder / f"gradients.{rank}.npz") for rank in range(size)]
    return [
        {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
        for file in files
    ]


def alone(model: str, rows: int) -> dict[str, np.ndarray]:
    """The gradient of one process with all the rows."""
    return gradient(model, ROWS[:rows], rows, SingleProcessGroup())


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Relative distance of two gradients."""
    assert one.keys() == other.keys()
    first, second = (np.concatenate([g[k].ravel() for k in sorted(one)]) for g in (one, other))
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


@pytest.mark.parametrize("split", ["even", "uneven", "one_has_none", "first_has_none", "one_row"])
@pytest.mark.parametrize("model", MODELS)
def test_the_gradient_is_that_of_one_process(group: tuple, model: str, split: str) -> None:
    expected = alone(model, sum(splits(group[0])[split]))
    for gradients in found(group, model, split, "right"):
        assert difference(gradients, expected) <= 1e-12


@pytest.mark.parametrize(
    ("way", "model"),
    [
        ("no_scaling", "plain"),
        ("no_scaling", "bce"),
        ("local_mean", "tanh_kl"),
        ("local_mean", "adversarial"),
        ("local_mean", "trimmed"),
    ],
)
def test_the_comparison_sees_the_usual_mistakes(group: tuple, way: str, model: str) -> None:
    """Negative controls: gradients not rescaled; a mean activation, and a discriminator, of one's own
    rows only."""
    expected = alone(model, sum(splits(group[0])["uneven"]))
    assert difference(found(group, model, "uneven", way)[0], expected) > 1e-3
    assert difference(found(group, model, "uneven", "right")[0], expected) <= 1e-12


def ends(group: tuple, name: str) -> list[tuple[dict[str, bytes], list]]:
    size, folder = group
    files = [np.load(folder / f"{name}.{rank}.npz") for rank in range(size)]
    return [
        (
            {key: file[key].tobytes() for key in file.files},
            json.loads((folder / f"{name}.{rank}.json").read_bytes()),
        )
        for rank, file in enumerate(files)
    ]


def test_all_workers_hold_the_same_bits_after_100_steps(group: tuple) -> None:
    """Weights, best weights, discriminator, optimizers and every figure of every epoch."""
    first, *others = ends(group, "warm_whole")
    assert float(np.load(group[1] / "warm_whole.0.npz")["optimizer.0.step"]) == 100
    assert all(other == first for other in others)


def test_a_resumed_group_ends_with_the_bits_of_one_never_stopped(group: tuple) -> None:
    """Stopped at step 43 of 100, in the middle of an epoch, with each worker's own sums."""
    assert ends(group, "warm_resumed") == ends(group, "warm_whole")


def test_without_the_empty_first_step_a_ring_adds_in_another_order(group: tuple) -> None:
    """The negative control: three workers or more need it; a + b is b + a for two."""
    same = ends(group, "cold_resumed") == ends(group, "cold_whole")
    assert same == (group[0] == 2)
