"""A trial's process reports the error that ended it as a result, never as its own loss."""

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


@pytest.mark.parametrize(("error", "reason"), ENDS, ids=["own", "other", "without a message"])
def test_any_error_that_ends_a_trial_is_its_reason(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    reported: list[dict[str, Any]] = []

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(trial, "_run", lambda template, described: SimpleNamespace(until=None))
    monkeypatch.setattr(trial, "_complete", fail)
    monkeypatch.setattr(tune, "report", reported.append)
    config = {trial.TRIALS: json.dumps([{"trial": "a"}, {"trial": "b"}])}
    nothing: Any = None
    trial.train_trials(config, template=nothing, rows=nothing, share=nothing, watched=False)
    assert reported == [{trial.FAILED: {"a": reason, "b": reason}}]
