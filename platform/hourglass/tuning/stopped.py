"""What is kept of a trial that a scheduler stopped: its last record, for the same scheduler."""

import json
from typing import Any

from hourglass import storage
from hourglass.errors import DataError
from hourglass.sweeps import Scheduler
from hourglass.tuning.leaderboard import METRICS, Entry
from hourglass.tuning.space import Point

NAME = "stopped.json"


def save(folder: str, point: Point, scheduler: Scheduler, record: dict[str, float]) -> Entry:
    """Keep the record in the trial's folder; its line on the leaderboard."""
    said = {"scheduler": scheduler.model_dump(mode="json"), "record": record}
    storage.write(storage.join(folder, NAME), json.dumps(said, indent=1).encode())
    return _entry(point, record)


def load(folder: str, point: Point, scheduler: Scheduler) -> Entry | None:
    """The line of a trial that this scheduler stopped before; None for another. Raises DataError."""
    path = storage.join(folder, NAME)
    try:
        said = json.loads(storage.read(path))
        if said["scheduler"] != scheduler.model_dump(mode="json"):
            return None
        return _entry(point, said["record"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path}: not the record of a trial; remove it to train the trial"
        ) from None


def _entry(point: Point, record: dict[str, Any]) -> Entry:
    return Entry(
        trial=point.trial,
        status="stopped",
        values=point.values,
        **{name: record.get(name) for name in METRICS},
        epochs=int(record["epoch"]),
    )
