"""A sweep: points are proposed, trained as trials on Ray Tune, and ranked beside PCA.

<runs>/<sweep>/trials/<trial>/artifact       a finished trial; the same command does not run it again
<runs>/<sweep>/trials/<trial>/checkpoints    of one that was cut short; it goes on from there
<runs>/<sweep>/trials/<trial>/stopped.json   of one that a scheduler stopped
<runs>/<sweep>/before                        the trials that --fresh replaces, until one is finished
<runs>/<sweep>/leaderboard.{json,csv,parquet}
<runs>/.<sweep>.lock                         held by the command that runs it
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from hourglass import storage
from hourglass.artifact import MANIFEST
from hourglass.config.tune import TuneJob
from hourglass.data.loader import Features
from hourglass.data.manifest import describe, locate
from hourglass.data.prepare import open_dataset
from hourglass.settings import Settings
from hourglass.tracking import locks
from hourglass.training.state import Record
from hourglass.tuning import resources, trials
from hourglass.tuning.leaderboard import Leaderboard
from hourglass.tuning.on_disk import Rows
from hourglass.tuning.search import empty_places, search
from hourglass.tuning.session import Sitting
from hourglass.tuning.trial import artifact_of, trials_of
from hourglass.tuning.trials import Listener

BEFORE = "before"


@dataclass(frozen=True)
class Swept:
    """An ended sweep: its leaderboard and folder, of its trials code units and epochs, its rows.

    `stands` unless the folder has the trials of before again, and what was written of them.
    """

    board: Leaderboard
    folder: str
    widths: dict[str, int]
    histories: dict[str, Sequence[Record]]
    rows: Rows
    stands: bool = True

    def holdout(self) -> Features:
        """The held-out rows (B, C), raw."""
        return self.rows.placed.holdout


def run(sweep: TuneJob, settings: Settings, listener: Listener, fresh: bool = False) -> Swept:
    """Run `sweep` to its end on the connected cluster; finished trials are never run twice.

    With `fresh`, it forgets the trials of before: they are set aside once the rows are read, come back
    when it finishes none, and go when it has ended.
    Raises: DataError, SpecError, ClusterError, ArtifactError, WriteError.
    """
    folder, base = folder_of(sweep, settings), sweep.job
    manifest, schema = open_dataset(base.data.uri, base.data.manifest)
    crew = resources.crew(sweep)
    searching = search(sweep)
    dataset = {**locate(base.data.uri), **describe(manifest)}
    listener.sweeping(searching.most, crew, dataset)
    rows = Rows(sweep, manifest, schema)
    if fresh and rows.placed:  # whatever is wrong with them was told by then
        _set_aside(folder)
    sitting = Sitting(sweep, folder, rows, crew, listener, searching)
    ended = False
    try:
        if sitting.advance():
            wasted = empty_places(sweep, crew.at_once)
            if wasted:
                listener.note(wasted)
            trials.train(sweep, rows.placed, crew, folder, sitting)
        board = sitting.close()
        ended = board.ended
    except KeyboardInterrupt as stop:
        if not _settle(folder, ended):
            stop.add_note("no new trial had finished, and those of before are back")
        raise
    finally:
        stands = _settle(folder, ended)
    if stands:
        board.save(folder)
    return Swept(board, folder, sitting.widths, sitting.histories, rows, stands)


def _set_aside(folder: str) -> None:
    """Put the trials of before out of the way, unless better ones are there and these have nothing."""
    mine, before = trials_of(folder), storage.join(folder, BEFORE)
    if storage.exists(before) and not _any_finished(mine):
        storage.remove(mine)
    elif storage.exists(mine):
        storage.remove(before)
        storage.move(mine, before)


def _settle(folder: str, ended: bool) -> bool:
    """Let trials that were set aside go when the sweep has ended; without a finished one they come back.

    False when they did.
    """
    mine, before = trials_of(folder), storage.join(folder, BEFORE)
    if not storage.exists(before):
        return True
    if not _any_finished(mine):
        storage.remove(mine)
        storage.move(before, mine)
        return False
    if ended:
        storage.remove(before)
    return True


def _any_finished(trials_uri: str) -> bool:
    artifacts = [artifact_of(storage.join(trials_uri, name)) for name in storage.names(trials_uri)]
    return any(storage.exists(storage.join(uri, MANIFEST)) for uri in artifacts)


def folder_of(sweep: TuneJob, settings: Settings) -> str:
    """Where a sweep keeps its trials and its leaderboard."""
    return storage.join(settings.runs_uri, sweep.name or "sweep")


def alone(folder: str) -> AbstractContextManager[None]:
    """Run the sweep in `folder`, and no other command beside it.

    Raises: DataError when another one runs it.
    """
    return locks.alone(
        locks.beside(folder),
        f"{folder}: another process runs this sweep",
        "under another name (--set name=NAME)",
    )
