"""What a run says of its rows and workers before its first epoch."""

import io
import sys
from typing import Any, cast

import pytest
from rich.console import Console

from hourglass.config.files import parse
from hourglass.config.train import TrainJob
from hourglass.config.tune import TuneJob
from hourglass.progress import Bar, TrainProgress, bar, console
from hourglass.tuning import progress

NETWORK = {"network": {"kind": "dense", "widths": [3]}}

DATASET = {
    "rows": 10,
    "shards": 2,
    "train_rows": 7,
    "holdout_rows": 2,
    "dropped_rows": 1,
    "imputed_cells": 0,
    "constant_columns": 0,
}


@pytest.mark.parametrize(
    ("workers", "cached", "printed"),
    [
        (1, True, "rows cached in memory; starting 1 worker, which takes some seconds"),
        (2, False, "rows streamed; starting 2 workers, which takes some seconds"),
    ],
)
def test_a_run_tells_its_rows_and_workers(workers: int, cached: bool, printed: str) -> None:
    job = parse(
        {
            "kind": "train",
            "data": {"uri": "/rows", "features": {"vector": "x"}},
            "model": {"network": {"kind": "dense", "widths": [3]}},
            "scale": {"workers": workers},
        }
    )
    assert isinstance(job, TrainJob)
    text = io.StringIO()
    TrainProgress(Bar(Console(file=text, soft_wrap=True), None, "epoch")).prepared(
        job, {**DATASET, "cached": cached}
    )
    assert text.getvalue().splitlines() == [
        "10 rows in 2 shards: 7 for training, 2 held out, 1 dropped, 0 cells imputed",
        printed,
    ]


class Broken(io.StringIO):
    """A terminal, or a file, that takes nothing more."""

    def __init__(self, error: Exception, terminal: bool) -> None:
        super().__init__()
        self._error, self._terminal = error, terminal

    def isatty(self) -> bool:
        return self._terminal

    def write(self, text: str) -> int:
        raise self._error


ERRORS = [
    BrokenPipeError(32, "Broken pipe"),
    OSError(28, "No space left on device"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("terminal", [False, True], ids=["file", "terminal"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("stderr", [False, True])
def test_no_work_fails_because_nobody_can_be_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, terminal: bool, stderr: bool
) -> None:
    monkeypatch.setattr(sys, "stderr" if stderr else "stdout", Broken(error, terminal))
    with bar("epoch", stderr) as shown:
        shown.print("a note")
        shown.to(1, 2, "half")
    base = {
        "kind": "train",
        "data": {"uri": "/rows", "features": {"vector": "x"}},
        "model": NETWORK,
    }
    made = {"kind": "tune", "name": "s", "base": base, "space": {"train.seed": {"grid": [1, 2]}}}
    with progress.shown(cast(TuneJob, parse(made)), stderr) as reported:
        reported.note("a note")
    monkeypatch.setattr(sys, "stderr" if stderr else "stdout", None)  # closed from the start
    with bar("epoch", stderr) as shown:
        shown.print("a note")


def test_other_words_have_to_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a table that was asked for."""
    monkeypatch.setattr(sys, "stdout", Broken(ERRORS[1], False))
    with pytest.raises(OSError, match="No space left"):
        console().print("a table")


def test_what_can_be_told_is(capsys: Any) -> None:
    with bar("epoch") as shown:
        shown.to(1, 2, "half")
    assert capsys.readouterr().out == "epoch 1/2  half\n"
