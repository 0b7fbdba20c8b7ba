"""What is kept of a trial that a scheduler stopped, so that the same sweep does not train it again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hourglass import storage
from hourglass.errors import DataError
from hourglass.training.state import Record
from hourglass.tune_job import TuneJob
from hourglass.tuning.leaderboard import METRICS, Entry
from hourglass.tuning.space import Point

NAME = "stopped.json"


@dataclass(frozen=True)
class Stopped:
    """The epochs of a trial, the seconds they took, and who stopped it, on which rows."""

    sweep: TuneJob
    data_digest: str
    history: Sequence[Record]
    seconds: float

    def save(self, folder: str) -> None:
        """Write it into the trial's folder."""
        said = {
            "by": _judge(self.sweep),
            "data": self.data_digest,
            "history": list(self.history),
            "seconds": self.seconds,
        }
        storage.write(storage.join(folder, NAME), json.dumps(said, indent=1).encode())

    def entry(self, point: Point) -> Entry:
        """Its line on the leaderboard."""
        last = self.history[-1]
        return Entry(
            trial=point.trial,
            status="stopped",
            values=point.values,
            **{name: last.get(name) for name in METRICS},
            epochs=int(last["epoch"]),
            seconds=self.seconds,
        )


def load(folder: str, sweep: TuneJob, data_digest: str) -> Stopped | None:
    """What was kept of a trial of this sweep; None where another judge stopped it.

    Raises: DataError when it is of other rows, or no such record.
    """
    path = storage.join(folder, NAME)
    try:
        said = json.loads(storage.read(path))
        kept = Stopped(sweep, said["data"], said["history"], float(said["seconds"]))
        by = said["by"]
        kept.history[-1]["epoch"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, IndexError):
        raise DataError(
            f"{path}: not the record of a trial; remove it to train the trial"
        ) from None
    if by != _judge(sweep):
        return None
    if kept.data_digest != data_digest:
        raise DataError(f"{path}: trained on other shards; begin the sweep anew with --fresh")
    return kept


def _judge(sweep: TuneJob) -> dict[str, Any]:
    """Who stops trials, and by what."""
    scheduler = sweep.scheduler.model_dump(mode="json")
    return {"scheduler": scheduler, "metric": sweep.metric, "mode": sweep.mode}
