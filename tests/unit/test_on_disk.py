"""What is kept of stopped trials, of the same rows."""

import json
from pathlib import Path

import pytest

from hourglass.errors import DataError
from hourglass.tuning import on_disk
from hourglass.tuning.on_disk import Stopped
from hourglass.tuning.space import Point

HISTORY = [{"epoch": 1.0, "holdout_mse": 0.5}, {"epoch": 2.0, "holdout_mse": 0.4}]


def test_its_line_is_that_of_the_epoch_it_was_stopped_after(tmp_path: Path) -> None:
    kept = Stopped("abc", HISTORY, 1.5)
    kept.save(str(tmp_path))
    assert on_disk.load_stopped(str(tmp_path), "abc") == kept
    point = Point({"train.seed": 1}, None)
    for epoch, error in ((1, 0.5), (2, 0.4)):
        line = kept.entry(point, epoch)
        assert (line.status, line.epochs, line.holdout_mse) == ("stopped", epoch, error)
        assert (line.seconds, line.values) == (1.5, {"train.seed": 1})
    assert on_disk.load_stopped(str(tmp_path / "none"), "abc") is None


def test_other_rows_and_damage_are_named(tmp_path: Path) -> None:
    Stopped("abc", HISTORY, 1.5).save(str(tmp_path))
    with pytest.raises(
        DataError, match="stopped.json: trained on other shards; begin the sweep anew"
    ):
        on_disk.load_stopped(str(tmp_path), "other")
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
            on_disk.load_stopped(str(tmp_path), "abc")
