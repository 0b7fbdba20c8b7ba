"""The record of a stopped trial, on the same rows."""

import json
from pathlib import Path

import pytest

from hourglass.errors import DataError
from hourglass.tuning.space import Point
from hourglass.tuning.store import Stopped, load_stopped

HISTORY = [{"epoch": 1.0, "holdout_mse": 0.5}, {"epoch": 2.0, "holdout_mse": 0.4}]


def test_its_line_is_that_of_the_epoch_it_was_stopped_after(tmp_path: Path) -> None:
    kept = Stopped("abc", HISTORY, 1.5)
    kept.save(str(tmp_path))
    assert load_stopped(str(tmp_path), "abc") == kept
    point = Point({"train.seed": 1}, None)
    for epoch, error in ((1, 0.5), (2, 0.4)):
        line = kept.entry(point, epoch)
        assert (line.status, line.epochs, line.holdout_mse) == ("stopped", epoch, error)
        assert (line.seconds, line.values) == (1.5, {"train.seed": 1})
    assert load_stopped(str(tmp_path / "none"), "abc") is None


def test_other_rows_and_damage_are_named(tmp_path: Path) -> None:
    Stopped("abc", HISTORY, 1.5).save(str(tmp_path))
    with pytest.raises(
        DataError, match="stopped.json: trained on other shards; start the sweep again"
    ):
        load_stopped(str(tmp_path), "other")
    path = tmp_path / "stopped.json"
    record = json.loads(path.read_text())
    for damage in (
        "{",
        "[]",
        json.dumps(record | {"history": []}),
        json.dumps(record | {"seconds": "x"}),
    ):
        path.write_text(damage)
        with pytest.raises(
            DataError, match="not the record of a stopped trial; remove it to train the trial"
        ):
            load_stopped(str(tmp_path), "abc")
