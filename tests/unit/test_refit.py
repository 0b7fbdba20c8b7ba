"""Refit: the best trial's job on all rows, and when there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hourglass import Autoencoder
from hourglass.config.files import parse
from hourglass.config.tune import TuneJob
from hourglass.errors import DataError
from hourglass.settings import Settings
from hourglass.tuning.leaderboard import Entry, Leaderboard, ranked
from hourglass.tuning.sweep import refit_job

ROWS = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)


def sweep(name: str = "grid") -> TuneJob:
    base = {
        "kind": "train",
        "name": "small",
        "data": {"uri": "/rows", "features": {"vector": "x"}},
        "model": {"network": {"kind": "dense", "widths": [3], "activation": "tanh"}},
        "scale": {"workers": 3, "accelerator": "cpu"},
    }
    made = parse(
        {"kind": "tune", "name": name, "base": base, "space": {"train.epochs": {"grid": [1, 2]}}}
    )
    assert isinstance(made, TuneJob)
    return made


def board(name: str = "grid", ended: bool = True, **fields: Any) -> Leaderboard:
    given = {"trial": "a", "status": "finished", "values": {}, "holdout_mse": 0.1}
    entry = Entry.model_validate(given | fields)
    return ranked(name, "holdout_mse", [entry], ended=ended)


def saved(home: Path, name: str = "grid", **parameters: Any) -> Autoencoder:
    """A trial's artifact below `home`."""
    made = Autoencoder(random_state=1, **parameters).fit(ROWS)
    made.save(str(home / "runs" / name / "trials" / "a" / "artifact"))
    return made


def test_all_rows_on_the_bases_workers(tmp_path: Path) -> None:
    saved(tmp_path, widths=[3], epochs=4, lr=0.01)
    job = refit_job(sweep(), board(), Settings(home=tmp_path))
    assert (job.name, job.data.holdout, job.scale.workers) == ("grid-refit", 0.0, 3)
    assert (job.train.epochs, job.train.optimizer.lr) == (4, 0.01)
    assert job.model.network.code_width == 3


def test_a_job_that_stops_early_trains_to_its_best_epoch(tmp_path: Path) -> None:
    made = saved(tmp_path, widths=[3], epochs=40, lr=0.5, early_stop={"patience": 2})
    best = min(made.history_, key=lambda record: record["holdout_mse"])
    job = refit_job(sweep(), board(), Settings(home=tmp_path))
    assert job.train.early_stop is None
    assert job.train.epochs == best["epoch"] < 40


def test_presets_and_ensembles_are_jobs_again(tmp_path: Path) -> None:
    saved(tmp_path, preset="anomaly", epochs=1, seeds=2)
    job = refit_job(sweep(), board(), Settings(home=tmp_path))
    assert (job.train.seeds, job.model.trim, job.model.loss.kind) == (2, 0.2, "mae")


def test_a_long_name_fits(tmp_path: Path) -> None:
    name = "n" * 100
    saved(tmp_path, name, widths=[3], epochs=1)
    job = refit_job(sweep(name), board(name), Settings(home=tmp_path))
    assert job.name == "n" * 94 + "-refit"


def test_nothing_is_refitted_before_the_best_is_known(tmp_path: Path) -> None:
    none = board(status="failed", holdout_mse=None, reason="no")
    for found, words in ((none, "no trial finished"), (board(ended=False), "it has not ended")):
        with pytest.raises(
            DataError, match=f"--refit: sweep grid: {words}, so its best trial is not known"
        ):
            refit_job(sweep(), found, Settings(home=tmp_path))
