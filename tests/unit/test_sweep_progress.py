"""The progress of a sweep: lines in a log, a table on a terminal; and errors of the trial source."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from hourglass.config.files import parse
from hourglass.config.tune import TuneJob
from hourglass.tuning import execution, progress
from hourglass.tuning.execution import GONE_S
from hourglass.tuning.leaderboard import Entry
from hourglass.tuning.progress import SweepProgress
from hourglass.tuning.trial import FAILED, RECORDS, TRIAL, TRIALS, Resources, Share

LR = "train.optimizer.lr"


def sweep() -> TuneJob:
    base = {
        "kind": "train",
        "data": {"uri": "/rows", "features": {"vector": "x"}},
        "model": {"network": {"kind": "dense", "widths": [3], "activation": "tanh"}},
        "train": {"optimizer": {"kind": "adam"}},
    }
    made = parse({"kind": "tune", "name": "rates", "base": base, "space": {LR: {"grid": [1, 2]}}})
    assert isinstance(made, TuneJob)
    return made


def entry(rate: float, mse: float | None, status: str = "finished", reason: str = "") -> Entry:
    return Entry.model_validate(
        {
            "trial": str(rate),
            "status": status,
            "reason": reason,
            "values": {LR: rate},
            "holdout_mse": mse,
            "epochs": 3 if mse else None,
            "seconds": 1.25 if mse else None,
        }
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in `clock[0]`."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def reported(clock: list[float], terminal: bool) -> tuple[SweepProgress, io.StringIO]:
    """A sweep of 6: one known, one failed, two ended in 20 s each, one running."""
    text = io.StringIO()
    screen = Console(file=text, force_terminal=terminal, width=150, highlight=False, soft_wrap=True)
    shown = SweepProgress(sweep(), screen)
    shown.sweeping(6, Resources(Share(1.0, 0.5, 1), 4, 2), {})
    shown.known(entry(0.1, 0.3))
    shown.loaded(
        {"rows": 9, "train_rows": 7, "holdout_rows": 1, "dropped_rows": 1, "imputed_cells": 2}
    )
    shown.started([{LR: 0.2}, {LR: 0.3}])
    clock[0] += 20
    shown.ended(entry(0.2, 0.123456), "", ())
    clock[0] += 20
    shown.ended(entry(0.3, None, "failed", "it diverged"), "", ())
    shown.started([{LR: 0.4}])
    return shown, text


def test_lines_of_a_log(clock: list[float]) -> None:
    _, text = reported(clock, terminal=False)
    assert text.getvalue().splitlines() == [
        "at most 6 trials, 2 at a time, each on 1 worker with 1 CPUs and 0.5 GPUs",
        "optimizer.lr 0.1: 0.300000, from an earlier session",
        "9 rows loaded into memory: 7 for training, 1 held out, 1 dropped, 2 cells imputed",
        "optimizer.lr 0.2: 0.123456  (1 running, 2/6 done, 0 failed, best 0.123456, 01:20 left)",
        "optimizer.lr 0.3: failed: it diverged  "
        "(0 running, 2/6 done, 1 failed, best 0.123456, 01:00 left)",
    ]


def test_the_table_of_a_terminal(clock: list[float]) -> None:
    shown, text = reported(clock, terminal=True)
    clock[0] += 7
    screen = Console(file=io.StringIO(), width=150)
    screen.print(shown.table())
    lines = [" ".join(line.split()) for line in screen.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert lines[0] == "rates"
    assert "│ 1 │ 0.123456 │ 3 │ 1.2 │ optimizer.lr 0.2 │" in lines
    assert "│ 2 │ 0.300000 │ 3 │ 1.2 │ optimizer.lr 0.1 │" in lines
    assert "│ │ running │ │ 7 │ optimizer.lr 0.4 │" in lines
    assert lines[-1].startswith("1 running, 2/6 done, 1 failed, best 0.123456, ")
    assert "(1 running" not in text.getvalue()  # the summary is below the table


def test_a_trial_that_starts_again_runs_once(clock: list[float]) -> None:
    shown, _ = reported(clock, terminal=False)
    shown.started([{LR: 0.4}])
    assert shown.summary().startswith("1 running, ")


class Broken:
    """A source that raises an error."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def over(self) -> bool:
        return False

    def started(self, names: list[str]) -> None:
        self.asked.append(names)
        raise OSError("disk full")

    def finished(self, trial: str, reason: str) -> None:
        self.asked.append(trial)

    def epochs(self, trial: str, records: Any) -> None:
        self.asked.append(trial)

    def should_stop(self, trial: str) -> bool:
        return False


class Trial:
    """As much of Ray Tune's as the source receives."""

    trial_id = "0"
    config = {TRIALS: '[{"trial": "a"}]'}
    last_result = {FAILED: {"a": ""}}


def test_an_error_of_the_source_ends_the_sweep_and_fails_no_trial() -> None:
    source = Broken()
    events = execution._Events(source)  # type: ignore[arg-type]
    stopper = execution._SourceStopper(source, events)  # type: ignore[arg-type]
    assert not stopper.stop_all()
    events.on_trial_start(0, [], Trial())
    assert isinstance(events.error, OSError)
    assert stopper.stop_all()
    events.on_trial_complete(0, [], Trial())
    assert not stopper("0", {TRIAL: "a", RECORDS: [{"epoch": 1.0}]})
    assert source.asked == [["a"]]  # nothing more is reported


class Quiet(Broken):
    """A source that ignores events."""

    def started(self, names: list[str]) -> None: ...

    def lost(self, names: list[str]) -> None: ...


def test_an_interrupted_sweep_ends_the_processes_of_trials_that_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And waits for trials of several workers; not of trials that ended or were lost."""

    def trial(name: str) -> Any:
        made = Trial()
        made.trial_id = name
        made.temporary_state = SimpleNamespace(ray_actor=f"process of {name}")  # type: ignore[attr-defined]
        return made

    killed: list[Any] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    monkeypatch.setattr(execution.time, "sleep", killed.append)
    events = execution._Events(Quiet())  # type: ignore[arg-type]
    for name in "abc":
        events.on_trial_start(0, [], trial(name))
    events.on_trial_complete(0, [], trial("a"))
    events.on_trial_error(0, [], trial("b"))
    events.end_trials(workers=1)
    assert killed == ["process of c"]
    events.end_trials(workers=2)
    assert killed == ["process of c", "process of c", GONE_S]
