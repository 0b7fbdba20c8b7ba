"""What launching a run makes of what it finds around it."""

import subprocess
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from hourglass import ray_internals, storage
from hourglass.errors import DataError, TrainingError, WriteError
from hourglass.training import launch, prepare
from hourglass.tuning import execution
from hourglass.tuning.trial import Resources, Share

TRACE = "Traceback (most recent call last):\n  File ...\n"


class Lost(Exception):
    """As Ray Train raises it: of each worker that failed, the traceback in words."""

    def __init__(self, **failures: str) -> None:
        self.worker_failures = {rank: Exception(TRACE + words) for rank, words in failures.items()}


def test_an_error_of_ours_that_a_worker_raised_is_the_error_of_the_run() -> None:
    found = launch._raised(
        Lost(a="ValueError: other", b="hourglass.errors.DataError: s.parquet: gone")
    )
    assert (type(found), str(found)) == (DataError, "s.parquet: gone")
    found = launch._raised(Lost(a="hourglass.errors.WriteError: /f: cannot be written (full)"))
    assert (type(found), str(found)) == (WriteError, "/f: cannot be written (full)")
    found = launch._raised(Lost(a="hourglass.errors.TrainingError: stopped at step 7: x is NaN"))
    assert (type(found), str(found)) == (TrainingError, "stopped at step 7: x is NaN")


@pytest.mark.parametrize("words", ["ValueError: no", "other.errors.DataError: no", "killed"])
def test_other_errors_are_told_with_their_worker(words: str) -> None:
    lost = Lost(a=words)
    assert launch._raised(lost) is None
    assert launch._cause(lost) == f"worker a: {words}."
    assert launch._raised(RuntimeError("no workers")) is None


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 5)])
def test_a_run_without_an_answer_of_git_has_no_commit(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(subprocess, "run", fails)
    assert prepare._git_commit() is None


def test_a_folder_that_cannot_be_removed_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an interruption of a run or a sweep, nor that it is finished."""

    def refuse(uri: str) -> None:
        raise WriteError(13, "Permission denied", uri)

    trainer, tune = MagicMock(), MagicMock()
    monkeypatch.setattr(storage, "remove", refuse)
    monkeypatch.setattr(ray_internals, "trainer_class", lambda: trainer)
    monkeypatch.setattr(execution, "tune", tune)
    subscription = MagicMock(failure=None)
    task = MagicMock(resources=launch.WorkerResources(1.0, 0.0, 1.0))
    task.run.uri, task.run.job.scale = "/r", SimpleNamespace(workers=1, max_failures=0)
    source = MagicMock(folder="/r", resources=Resources(Share(1.0, 0.0, 1), 1, 1), watched=False)
    launch._fit(task, subscription)
    execution.train(source)
    trainer.return_value.fit.side_effect = tune.Tuner.return_value.fit.side_effect = (
        KeyboardInterrupt
    )
    with pytest.raises(KeyboardInterrupt):
        launch._fit(task, subscription)
    with pytest.raises(KeyboardInterrupt):
        execution.train(source)
