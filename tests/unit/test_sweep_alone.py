"""One command at a time runs a sweep: a second is refused, until the first has ended or died."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hourglass import storage
from hourglass.errors import DataError
from hourglass.job_files import parse
from hourglass.settings import Settings
from hourglass.tune_job import TuneJob
from hourglass.tuning import conclude, sweep

WHO = rf"pid {os.getpid()} on {re.escape(socket.gethostname())}, since [0-9-]+T[0-9:]+Z"
HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def refusal(folder: str, who: str = "") -> str:
    """The sentence, as a pattern."""
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
                conclude.tune(named("grid"), settings)
            assert re.fullmatch(refusal(folder, rf" \({WHO}\)"), str(caught.value))
            assert caught.value.exit_code == 2
            with pytest.raises(Ended):  # another sweep
                conclude.tune(named("other"), settings)
        raise Ended

    monkeypatch.setattr(sweep, "run", run)
    for _ in range(2):  # after the first has ended, the second runs
        with pytest.raises(Ended):
            conclude.tune(named("grid"), settings)
    assert ran == ["grid", "other", "grid"]
    assert storage.names(settings.runs_uri) == []


def test_the_lock_of_a_killed_command_is_free(tmp_path: Path) -> None:
    folder = str(tmp_path / "grid")
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".grid.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataError) as caught, sweep.alone(f"file://{folder}"):
            pass
        assert re.fullmatch(refusal(f"file://{folder}"), str(caught.value))  # it does not say who
        holder.kill()
    with sweep.alone(folder):
        assert storage.names(str(tmp_path)) == [".grid.lock"]
    assert storage.names(str(tmp_path)) == []
