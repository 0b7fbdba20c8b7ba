"""Sweeps on a real cluster of two CPUs end bit-identical, whatever fails or is killed."""

import shutil
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from hourglass.config.files import load_kind
from hourglass.config.tune import TuneJob
from hourglass.errors import DataError
from hourglass.report.baseline import pca
from hourglass.settings import Settings
from hourglass.tuning import leaderboard
from hourglass.tuning.leaderboard import Leaderboard
from hourglass.tuning.space import points
from hourglass.tuning.trial import Resources, Share

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from cluster_kit import ROWS, in_process, processes, write
from sweep_kit import Events, artifact_of, assert_like_in_process, fitted, job, least, tune, untimed

WIDTHS = {"model.network.widths": {"grid": [[6, 2], [6, 3], [6, 0], [6, 4]]}}


@pytest.fixture(scope="module")
def swept(home: Path, shards: Path) -> tuple[Path, Events, Leaderboard]:
    """Three trials and an invalid point, two at a time."""
    events = Events()
    return home / "swept", events, tune(job(shards, WIDTHS), home / "swept", events)


def test_a_sweep_ends_with_every_point_in_the_leaderboard(
    swept: tuple[Path, Events, Leaderboard], shards: Path
) -> None:
    folder, events, board = swept
    assert (events.most, events.rows, events.resources) == (
        4,
        400,
        Resources(Share(1.0, 0.0, 1), fitting=2, at_once=2),
    )
    assert [e.reason for e in events.before] == [board.entries[3].reason]
    assert [entry.status for entry in board.entries] == ["finished"] * 3 + ["failed"]
    failed = board.entries[-1]
    assert failed.values == {"model.network.widths": [6, 0]}
    assert failed.reason.startswith("model.network.widths.1: found 0; input should be greater")
    errors = [entry.holdout_mse for entry in board.entries[:3]]
    assert errors == sorted(errors)
    assert sorted(entry.holdout_mse for entry in events.endings) == errors
    assert len(events.artifacts) == len(events.begun) == 3
    trial_folder = folder / "runs" / "grid" / "trials"
    assert {path.name for path in trial_folder.iterdir()} == {e.trial for e in board.entries[:3]}
    assert {p.name for path in trial_folder.iterdir() for p in path.iterdir()} == {"artifact"}
    names = {path.name for path in trial_folder.parent.iterdir()}
    assert names == {"trials", *(f"leaderboard.{kind}" for kind in ("json", "csv", "parquet"))}
    assert leaderboard.named("grid", Settings(home=folder)) == board
    for point in points(job(shards, WIDTHS)):
        if point.job:
            assert_like_in_process(folder, point, shards)


def test_the_pca_baseline_uses_the_same_rows(
    swept: tuple[Path, Events, Leaderboard], shards: Path
) -> None:
    """Beside a PCA of the rows as a run without Ray scales and holds them out."""
    _, _, board = swept
    (point, *_) = points(job(shards, WIDTHS))
    assert point.job is not None
    alone = in_process(point.job, shards)
    scale = alone.state.module.preprocessing
    train, held = (
        scale(torch.from_numpy(rows)).double().numpy()
        for rows in (alone.loader._rows, alone.loader._held)
    )
    for entry in board.entries[:3]:
        units = entry.values["model.network.widths"][1]
        expected = pca(train, held, train.mean(0), units).mse
        assert entry.pca_mse == pytest.approx(expected, rel=1e-6)
        assert entry.worse_than_pca == (entry.holdout_mse > expected)


def test_the_same_command_trains_nothing_again(
    swept: tuple[Path, Events, Leaderboard], shards: Path
) -> None:
    folder, _, board = swept
    events, started = Events(), time.monotonic()
    assert tune(job(shards, WIDTHS), folder, events) == board
    assert time.monotonic() - started < 5
    assert {e.trial for e in events.before} == {e.trial for e in board.entries}
    assert (events.endings, events.rows) == ([], 0)


def test_a_wider_space_trains_what_is_new(
    swept: tuple[Path, Events, Leaderboard], shards: Path
) -> None:
    folder, _, board = swept
    events = Events()
    wider = {"model.network.widths": {"grid": [[6, 2], [6, 3], [6, 4], [6, 8]]}}
    found = tune(job(shards, wider), folder, events)
    assert [entry.values for entry in events.endings] == [{"model.network.widths": [6, 8]}]
    assert {e.trial for e in board.entries if e.trial} < {e.trial for e in found.entries}
    (widest,) = [e for e in found.entries if e.values == {"model.network.widths": [6, 8]}]
    assert (widest.pca_mse, widest.worse_than_pca) == (None, False)  # as wide as the rows


def test_results_do_not_depend_on_concurrency(
    swept: tuple[Path, Events, Leaderboard], home: Path, shards: Path
) -> None:
    _, _, board = swept
    events = Events()
    one = tune(job(shards, WIDTHS, concurrency=1), home / "one", events)
    assert events.resources is not None
    assert events.resources.at_once == 1
    assert untimed(one) == untimed(board)


def test_other_shards_need_a_fresh_sweep(home: Path, shards: Path) -> None:
    rows = home / "changing"
    shutil.copytree(shards, rows)
    one = {"model.network.widths": {"grid": [[2]]}}
    tune(job(rows, one, train={"epochs": 1}), home / "changed")
    write(rows / "part-1.parquet", ROWS[:200] + 1)
    with pytest.raises(DataError, match="trained on other shards; start the sweep again with"):
        tune(job(rows, one, train={"epochs": 1}), home / "changed")
    events = Events()
    tune(job(rows, one, train={"epochs": 1}), home / "changed", events, fresh=True)
    assert len(events.endings) == 1


class KillingOnce(threading.Thread):
    """kill -9 of a trial's process once it has committed a checkpoint."""

    def __init__(self, trials: Path) -> None:
        super().__init__(daemon=True)
        self.trials, self.killed = trials, 0

    def run(self) -> None:
        deadline = time.monotonic() + 60
        while not self.killed and time.monotonic() < deadline:
            time.sleep(0.05)
            if len(list(self.trials.glob("*/checkpoints/*/COMMIT.json"))) >= 2:
                for pid in processes("ray::ImplicitFunc"):
                    psutil.Process(pid).kill()
                    self.killed += 1


def test_a_killed_trial_resumes_and_a_diverging_one_fails(home: Path, shards: Path) -> None:
    space = {"train.optimizer": {"grid": [{"kind": "adam"}, {"kind": "sgd", "lr": 1e30}]}}
    made = job(shards, space, train={"epochs": 400})
    killer, events = KillingOnce(home / "killed" / "runs" / "grid" / "trials"), Events()
    killer.start()
    board = tune(made, home / "killed", events)
    killer.join()
    assert killer.killed
    best, diverged = board.entries
    assert best.status == "finished"
    assert diverged.reason.startswith("stopped at step ")
    assert diverged.reason.endswith("lower the learning rate or check the rows")
    (point, _) = points(made)
    assert_like_in_process(home / "killed", point, shards)


def test_trials_that_differ_in_numbers_train_packed(home: Path, shards: Path) -> None:
    """As when each trains by itself, within 1e-5, and no trial twice."""
    rates = {"train.optimizer.lr": {"grid": [0.001 * n for n in range(1, 10)]}}
    events = Events()
    made = job(shards, rates)
    packed = tune(made, home / "packed", events)
    assert events.notes == ["9 trials train packed, as 2 batched models"]
    errors = {}
    for point in points(made):
        found, alone = artifact_of(home / "packed", point), fitted(point, shards)
        weights = alone.state.module.state_dict()
        for name, value in found.module.state_dict().items():
            assert float((value - weights[name]).abs().max()) < 1e-5
        assert found.manifest.provenance["packed"] in (4, 5)
        errors[point.trial] = least(alone)
    assert [entry.trial for entry in packed.entries] == sorted(errors, key=errors.__getitem__)
    for entry in packed.entries:
        assert entry.holdout_mse == pytest.approx(errors[entry.trial], abs=1e-6)
    again = Events()
    assert tune(job(shards, rates), home / "packed", again) == packed
    assert again.endings == []


SPACES = sorted((Path(__file__).parents[2] / "tune_spaces").glob("*.yaml"))
GRIDS = [path for path in SPACES if load_kind(TuneJob, path).search.kind == "grid"]


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_grids_that_are_shipped_run(home: Path, shards: Path, path: Path) -> None:
    """On other rows, for one epoch."""
    small = {"data.uri": shards, "data.features": "{vector: x}", "train.epochs": 1}
    changes = [f"base.{field}={value}" for field, value in small.items()]
    made = load_kind(TuneJob, path, [*changes, "concurrency=1"])  # one process to start
    board = tune(made, home / path.stem)
    assert [entry.status for entry in board.entries] == ["finished"] * made.grid_points
    assert [entry.epochs for entry in board.entries] == [1] * made.grid_points
