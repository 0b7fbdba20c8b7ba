"""Training and endpoints report their metrics, each with the tags that dashboards select."""

from typing import Any

import pytest
from ray.util import metrics as ray_metrics

from hourglass.config import files
from hourglass.serving.limits import RequestError
from hourglass.serving.metrics import ModelMetrics
from hourglass.training.metrics import Measured

JOB = files.parse(
    {
        "kind": "train",
        "name": "nightly",
        "data": {"uri": "s3://bucket/rows", "features": {"vector": "image"}},
        "model": {"network": {"kind": "dense", "widths": [4]}},
        "track": {"register": "mnist"},
    }
)
Recorded = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """What is recorded, instead of Ray's exporter."""
    found: Recorded = []

    def record(metric: Any, value: float, tags: dict[str, str] | None = None) -> None:
        assert set(tags or {}) == set(metric.info["tag_keys"])
        found.append((metric.info["name"], value, tags or {}))

    monkeypatch.setattr(ray_metrics.Metric, "_record", record)
    return found


class Listener:
    def __init__(self) -> None:
        self.received: list[Any] = []

    def prepared(self, job: Any, dataset: Any) -> None:
        self.received.append(dataset)

    def note(self, text: str) -> None:
        self.received.append(text)

    def epoch(self, record: Any) -> None:
        self.received.append(record)


def test_an_epoch_sets_the_gauges_and_passes_on(recorded: Recorded) -> None:
    listener = Listener()
    measured = Measured(JOB, listener)
    record = {"epoch": 3.0, "loss": 0.5, "holdout_mse": 0.25, "rows_per_s": 900.0, "lr": 0.1}
    measured.prepared(JOB, {"rows": 1})
    measured.note("resumed")
    measured.epoch(record)
    tags = {"model": "mnist", "run": JOB.run_name, "member": "1"}
    assert sorted((name, value) for name, value, _ in recorded) == [
        ("hourglass_train_epoch", 3.0),
        ("hourglass_train_holdout_mse", 0.25),
        ("hourglass_train_loss", 0.5),
        ("hourglass_train_rows_per_second", 900.0),
    ]
    assert all(used == tags for _, _, used in recorded)
    assert listener.received == [{"rows": 1}, "resumed", record]


def test_members_of_an_ensemble_are_apart_and_missing_fields_are_left_out(
    recorded: Recorded,
) -> None:
    Measured(JOB, Listener()).epoch({"epoch": 1.0, "loss": 0.5, "member": 2.0})
    assert {name for name, _, _ in recorded} == {"hourglass_train_epoch", "hourglass_train_loss"}
    assert {tags["member"] for _, _, tags in recorded} == {"2"}


def test_the_first_start_of_the_workers_is_no_restart(recorded: Recorded) -> None:
    measured = Measured(JOB, Listener())
    for _ in range(3):
        measured.started()
    assert [(name, value) for name, value, _ in recorded] == [
        ("hourglass_train_restarts", value) for value in (0, 1, 2)
    ]


def test_an_answer_counts_its_rows_and_its_time(recorded: Recorded) -> None:
    with ModelMetrics().measured("mnist", 7):
        pass
    (latency, spent, _), rows = recorded
    assert latency == "hourglass_serve_latency_ms"
    assert 0 <= spent < 1000
    assert rows == ("hourglass_serve_rows", 7, {"model": "mnist"})


@pytest.mark.parametrize(
    ("error", "kind"),
    [(RequestError("Overloaded", "full"), "Overloaded"), (KeyError("bug"), "KeyError")],
)
def test_an_error_is_counted_by_kind_and_no_row_is(
    recorded: Recorded, error: Exception, kind: str
) -> None:
    with pytest.raises(type(error)), ModelMetrics().measured("mnist", 7):
        raise error
    assert recorded == [("hourglass_serve_errors", 1.0, {"model": "mnist", "kind": kind})]
