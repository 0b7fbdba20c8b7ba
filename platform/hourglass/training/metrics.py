"""Gauges of a run for Prometheus, which Ray exports from the node of the launching process.

Ray puts `ray_` before the names. Trials of sweeps have them too if they use several workers.
"""

from typing import Any

from ray.util.metrics import Gauge

from hourglass.config.train import TrainJob
from hourglass.training.events import Listener
from hourglass.training.state import Record

TAGS = ("model", "run", "member")
EPOCH = {
    "epoch": ("hourglass_train_epoch", "Epochs finished."),
    "loss": ("hourglass_train_loss", "Loss of the last epoch, over all its rows."),
    "holdout_mse": ("hourglass_train_holdout_mse", "Held-out error after the last epoch."),
    "rows_per_s": ("hourglass_train_rows_per_second", "Rows per second of the last epoch."),
}
"""Fields of an epoch's record, with the name and description of their gauge."""
RESTARTS = "hourglass_train_restarts"


class Measured:
    """A listener that sets the gauges and passes everything on."""

    def __init__(self, job: TrainJob, listener: Listener) -> None:
        self._listener, self._starts = listener, 0
        model = job.track.register_as or job.name or "none"
        self._tags = {"model": model, "run": job.run_name, "member": "1"}
        self._gauges = {key: Gauge(*about, tag_keys=TAGS) for key, about in EPOCH.items()}
        self._restarts = Gauge(RESTARTS, "Restarts of the run's workers.", tag_keys=TAGS)

    def prepared(self, job: TrainJob, dataset: dict[str, Any]) -> None:
        """Pass it on."""
        self._listener.prepared(job, dataset)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._listener.note(text)

    def epoch(self, record: Record) -> None:
        """Set the gauges of the record's fields, then pass it on."""
        tags = self._tags | {"member": f"{record.get('member', 1):g}"}
        for key in self._gauges.keys() & record.keys():
            self._gauges[key].set(record[key], tags=tags)
        self._listener.epoch(record)

    def started(self) -> None:
        """The workers have reserved their resources, for the first time or again."""
        self._restarts.set(self._starts, tags=self._tags)
        self._starts += 1
