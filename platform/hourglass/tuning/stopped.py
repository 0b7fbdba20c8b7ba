"""What is kept of a trial that was stopped, so that the same sweep does not train it again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from hourglass import storage
from hourglass.errors import DataError
from hourglass.training.state import Record
from hourglass.tuning.leaderboard import METRICS, Entry
from hourglass.tuning.space import Point

NAME = "stopped.json"


@dataclass(frozen=True)
class Stopped:
    """The epochs of a trial, the seconds they took, and on which rows.

    It may have trained on until it was known which epoch was its last.
    """

    data_digest: str
    history: Sequence[Record]
    seconds: float

    def save(self, folder: str) -> None:
        """Write it into the trial's folder."""
        said = {
            "data": self.data_digest,
            "history": list(self.history),
            "seconds": self.seconds,
        }
        storage.write(storage.join(folder, NAME), json.dumps(said, indent=1).encode())

    def to(self, epoch: int) -> Sequence[Record]:
        """Its records up to an epoch."""
        return [record for record in self.history if record["epoch"] <= epoch]

    def entry(self, point: Point, epoch: int) -> Entry:
        """Its line on the leaderboard when it is stopped after `epoch`."""
        last = self.to(epoch)[-1]
        return Entry(
            trial=point.trial,
            status="stopped",
            values=point.values,
            **{name: last.get(name) for name in METRICS},
            epochs=epoch,
            seconds=self.seconds,
        )


def load(folder: str, data_digest: str) -> Stopped | None:
    """What was kept of a trial, if it was stopped. Raises DataError for other rows, or no such record."""
    path = storage.join(folder, NAME)
    try:
        said = json.loads(storage.read(path))
        kept = Stopped(said["data"], said["history"], float(said["seconds"]))
        kept.history[-1]["epoch"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, IndexError):
        raise DataError(
            f"{path}: not the record of a trial; remove it to train the trial"
        ) from None
    if kept.data_digest != data_digest:
        raise DataError(f"{path}: trained on other shards; begin the sweep anew with --fresh")
    return kept
