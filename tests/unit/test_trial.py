"""What a trial's process reports of what ended it: as its last words, and never as its own loss."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune

from hourglass.errors import DataError
from hourglass.tuning import trial

ENDS = [
    (DataError("s.parquet: gone"), "s.parquet: gone"),
    (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
    (MemoryError(), "MemoryError: "),
]


@pytest.mark.parametrize(("error", "reason"), ENDS, ids=["ours", "other", "wordless"])
def test_whatever_ends_a_trial_is_its_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    reported: list[dict[str, Any]] = []

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(trial, "_run", lambda any_run, said: SimpleNamespace(until=None))
    monkeypatch.setattr(trial, "_complete", fail)
    monkeypatch.setattr(tune, "report", reported.append)
    config = {trial.TRIALS: json.dumps([{"trial": "a"}, {"trial": "b"}])}
    any_run: Any = None
    trial.train_trials(config, any_run=any_run, placed=any_run, share=any_run, watched=False)
    assert reported == [{trial.FAILED: {"a": reason, "b": reason}}]
