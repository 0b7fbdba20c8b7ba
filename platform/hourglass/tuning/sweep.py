"""A sweep: points are proposed, trained as trials on Ray Tune, and ranked beside PCA.

<runs>/<sweep>/trials/<trial>/artifact       a finished trial; the same command does not run it again
<runs>/<sweep>/trials/<trial>/checkpoints    of one that was cut short; it goes on from there
<runs>/<sweep>/trials/<trial>/stopped.json   of one that a scheduler stopped
<runs>/<sweep>/leaderboard.{json,csv,parquet}
<runs>/.<sweep>.lock                         held by the command that runs it, where runs are local
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hourglass import storage
from hourglass.data.feed import Features
from hourglass.data.manifest import describe, locate
from hourglass.data.prepare import open_dataset
from hourglass.errors import DataError
from hourglass.settings import Settings
from hourglass.tracking.locks import try_locked
from hourglass.training.state import Record
from hourglass.tune_job import TuneJob
from hourglass.tuning import trials
from hourglass.tuning.leaderboard import Leaderboard
from hourglass.tuning.listener import Listener
from hourglass.tuning.rows import Rows
from hourglass.tuning.search import empty_places, search
from hourglass.tuning.sitting import Sitting


@dataclass(frozen=True)
class Swept:
    """An ended sweep: its leaderboard and folder, of its trials code units and epochs, its rows."""

    board: Leaderboard
    folder: str
    widths: dict[str, int]
    histories: dict[str, Sequence[Record]]
    rows: Rows

    def holdout(self) -> Features:
        """The held-out rows (B, C), raw."""
        return self.rows.placed.holdout


def run(sweep: TuneJob, settings: Settings, listener: Listener, fresh: bool = False) -> Swept:
    """Run `sweep` to its end on the connected cluster; finished trials are never run twice.

    Raises: DataError, SpecError, ClusterError, ArtifactError.
    """
    folder, base = folder_of(sweep, settings), sweep.job
    manifest, schema = open_dataset(base.data.uri, base.data.manifest)
    crew = trials.crew(sweep)
    searching = search(sweep)
    if fresh:
        storage.remove(folder)
    dataset = {**locate(base.data.uri), **describe(manifest)}
    listener.sweeping(searching.most, crew, dataset)
    rows = Rows(sweep, manifest, schema)
    sitting = Sitting(sweep, folder, rows, crew, listener, searching)
    if sitting.advance():
        wasted = empty_places(sweep, crew.at_once)
        if wasted:
            listener.note(wasted)
        trials.train(sweep, rows.placed, crew, folder, sitting)
    board = sitting.close()
    board.save(folder)
    return Swept(board, folder, sitting.widths, sitting.histories, rows)


def folder_of(sweep: TuneJob, settings: Settings) -> str:
    """Where a sweep keeps its trials and its leaderboard."""
    return storage.join(settings.runs_uri, sweep.name or "sweep")


@contextmanager
def alone(folder: str) -> Iterator[None]:
    """Run the sweep in `folder`, and no other command beside it; S3 has no locks.

    Raises: DataError when another one runs it.
    """
    if not storage.is_local(folder):
        yield
        return
    own = Path(folder.removeprefix("file://"))
    lock = own.with_name(f".{own.name}.lock")  # beside it: --fresh removes the folder
    storage.make_folder(lock.parent)
    with try_locked(lock) as ours:
        if not ours:
            raise DataError(
                f"{folder}: another command runs this sweep; run this one when that has ended, or under "
                "another name (--set name=NAME)"
            )
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
