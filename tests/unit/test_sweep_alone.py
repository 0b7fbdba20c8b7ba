"""One command at a time runs a sweep; a second one is refused until the first has ended or died."""

import os
import re
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hourglass import artifact, storage
from hourglass.config.files import parse
from hourglass.config.tune import TuneJob
from hourglass.errors import DataError
from hourglass.settings import Settings
from hourglass.tuning import leaderboard, sweep
from hourglass.tuning.leaderboard import Entry, Leaderboard

WHO = rf"pid {os.getpid()} on {re.escape(socket.gethostname())}, since [0-9-]+T[0-9:]+Z"
HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def refusal(folder: str, who: str = "") -> str:
    """The message, as a pattern."""
    return (
        f"^{re.escape(folder)}: another process runs this sweep{who}; run this one when that has ended, "
        r"or under another name \(--set name=NAME\)$"
    )


def named(name: str) -> TuneJob:
    base = {
        "kind": "train",
        "data": {"uri": "/rows", "features": {"vector": "x"}},
        "model": {"network": {"kind": "dense", "widths": [3], "activation": "tanh"}},
    }
    space = {"train.seed": {"grid": [1, 2]}}
    made = parse({"kind": "tune", "name": name, "base": base, "space": space})
    assert isinstance(made, TuneJob)
    return made


class Ended(Exception):
    """A command came to its end."""


def test_a_second_command_is_refused_while_the_first_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path)
    folder = sweep.folder_of(named("grid"), settings)
    ran: list[str] = []

    def run(job: TuneJob, *_: Any) -> None:
        ran.append(job.name or "")
        if len(ran) == 1:
            storage.remove(folder)  # as --fresh does
            with pytest.raises(DataError) as caught:
                sweep.tune(named("grid"), settings)
            assert re.fullmatch(refusal(folder, rf" \({WHO}\)"), str(caught.value))
            assert caught.value.exit_code == 2
            with pytest.raises(Ended):  # another sweep
                sweep.tune(named("other"), settings)
        raise Ended

    monkeypatch.setattr(sweep, "run", run)
    for _ in range(2):  # after the first has ended, the second runs
        with pytest.raises(Ended):
            sweep.tune(named("grid"), settings)
    assert ran == ["grid", "other", "grid"]
    assert storage.names(settings.runs_uri) == []


def test_the_lock_of_a_killed_command_is_free(tmp_path: Path) -> None:
    folder = str(tmp_path / "grid")
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".grid.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataError) as caught, sweep.lock(f"file://{folder}"):
            pass
        assert re.fullmatch(refusal(f"file://{folder}"), str(caught.value))  # the holder is unknown
        holder.kill()
    with sweep.lock(folder):
        assert storage.names(str(tmp_path)) == [".grid.lock"]
    assert storage.names(str(tmp_path)) == []


@pytest.mark.parametrize("finished", [True, False])
def test_a_fresh_sweep_that_finishes_nothing_keeps_the_leaderboard_of_before(
    finished: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trials come back, and with them what was written of them, the plots included."""
    settings, made = Settings(home=tmp_path), named("grid")
    folder = Path(sweep.folder_of(made, settings))

    def ranked(trial: str) -> Leaderboard:
        entry = Entry(trial=trial, status="finished", values={}, holdout_mse=1.0)
        return leaderboard.ranked("grid", "holdout_mse", [entry])

    def train(*_: Any) -> None:
        if finished:
            storage.write(f"{folder}/trials/new/artifact/{artifact.MANIFEST}", b"{}")

    def interrupted(*_: Any) -> None:
        train()
        raise KeyboardInterrupt

    storage.write(f"{folder}/trials/old/artifact/{artifact.MANIFEST}", b"{}")
    ranked("old").save(str(folder))
    (folder / "plots.html").write_text("old")
    session = SimpleNamespace(
        advance=lambda: True, close=lambda: ranked("new"), widths={}, histories={}
    )
    listener = SimpleNamespace(sweeping=lambda *_: None, note=lambda _: None)
    monkeypatch.setattr(sweep, "open_dataset", lambda *_: SimpleNamespace(record={}))
    monkeypatch.setattr(sweep, "SharedRows", lambda *_: SimpleNamespace(loaded=True))
    monkeypatch.setattr(sweep, "Session", lambda *_: session)
    monkeypatch.setattr(sweep, "resources", lambda *_: SimpleNamespace(at_once=1))
    monkeypatch.setattr(sweep.execution, "train", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        sweep.run(made, settings, listener, fresh=True)  # type: ignore[arg-type]
    assert getattr(stop.value, "__notes__", []) == (
        [] if finished else ["no new trial had finished, so the earlier trials were restored"]
    )
    monkeypatch.setattr(sweep.execution, "train", train)
    swept = sweep.run(made, settings, listener, fresh=True)  # type: ignore[arg-type]
    there = "new" if finished else "old"
    assert storage.names(f"{folder}/trials") == [there]
    assert [entry.trial for entry in leaderboard.load(str(folder)).entries] == [there]
    assert swept.stands is finished
    monkeypatch.setattr(sweep, "run", lambda *_: swept)
    monkeypatch.setattr(sweep, "shown", lambda *_: nullcontext())
    monkeypatch.setattr(sweep.plots, "save", lambda *_: (folder / "plots.html").write_text("new"))
    monkeypatch.setattr(sweep, "RecordingListener", Unrecorded)
    sweep.tune(made, settings, register=False)
    assert (folder / "plots.html").read_text() == there


class Unrecorded:
    """Reports nothing to MLflow."""

    def __init__(self, *_: Any) -> None: ...

    def finish(self, *_: Any) -> Any:
        return SimpleNamespace(board=None, version=None), []
