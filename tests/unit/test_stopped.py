"""What is kept of stopped trials: for the same judge and the same rows, and nobody else."""

import json
from pathlib import Path
from typing import Any

import pytest

from hourglass.errors import DataError
from hourglass.job_files import parse
from hourglass.tune_job import TuneJob
from hourglass.tuning import stopped
from hourglass.tuning.space import points
from hourglass.tuning.stopped import Stopped

HISTORY = [{"epoch": 1.0, "holdout_mse": 0.5}, {"epoch": 2.0, "holdout_mse": 0.4}]


def sweep(**fields: Any) -> TuneJob:
    base = {
        "kind": "train",
        "data": {"uri": "/rows", "features": {"vector": "x"}},
        "model": {"network": {"kind": "dense", "widths": [3], "activation": "tanh"}},
        "train": {"optimizer": {"kind": "adam"}},
    }
    space = {"train.optimizer.lr": {"grid": [0.1]}}
    asha = {"scheduler": {"kind": "asha"}}
    made = parse({"kind": "tune", "base": base, "space": space, **asha, **fields})
    assert isinstance(made, TuneJob)
    return made


def test_it_is_found_by_the_judge_that_stopped_it(tmp_path: Path) -> None:
    made = sweep()
    kept = Stopped(made, "abc", HISTORY, 1.5)
    kept.save(str(tmp_path))
    assert stopped.load(str(tmp_path), made, "abc") == kept
    (point,) = points(made)
    line = kept.entry(point)
    assert (line.status, line.epochs, line.holdout_mse, line.seconds) == ("stopped", 2, 0.4, 1.5)
    for other in (
        sweep(scheduler={"kind": "median"}),
        sweep(scheduler={"kind": "asha", "keep": 4}),
        sweep(metric="train_mse"),
    ):
        assert stopped.load(str(tmp_path), other, "abc") is None
    assert stopped.load(str(tmp_path / "none"), made, "abc") is None


def test_other_rows_and_damage_are_named(tmp_path: Path) -> None:
    made = sweep()
    Stopped(made, "abc", HISTORY, 1.5).save(str(tmp_path))
    with pytest.raises(
        DataError, match="stopped.json: trained on other shards; begin the sweep anew"
    ):
        stopped.load(str(tmp_path), made, "other")
    path = tmp_path / "stopped.json"
    said = json.loads(path.read_text())
    for damage in (
        "{",
        "[]",
        json.dumps(said | {"history": []}),
        json.dumps(said | {"seconds": "x"}),
    ):
        path.write_text(damage)
        with pytest.raises(
            DataError, match="not the record of a trial; remove it to train the trial"
        ):
            stopped.load(str(tmp_path), made, "abc")
