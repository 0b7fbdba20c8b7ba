"""A sweep: points are proposed, trained as trials on Ray Tune, and ranked beside PCA.

<runs>/<sweep>/trials/<trial>/artifact       a finished trial; the same command does not run it again
<runs>/<sweep>/trials/<trial>/checkpoints    of one that was cut short; it goes on from there
<runs>/<sweep>/trials/<trial>/stopped.json   of one that a scheduler stopped
<runs>/<sweep>/leaderboard.{json,csv,parquet}
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa

from hourglass import artifact, storage
from hourglass.artifact import Artifact
from hourglass.data.feed import Features
from hourglass.data.manifest import Manifest, describe
from hourglass.data.prepare import feature_schema, open_dataset
from hourglass.data.reading import fetch
from hourglass.errors import DataError, SpecError
from hourglass.settings import Settings
from hourglass.spec import TrainJob
from hourglass.sweeps import Mode, Stop
from hourglass.training import launch
from hourglass.training.state import Record
from hourglass.tune_job import TuneJob
from hourglass.tuning import leaderboard, stopped, trials
from hourglass.tuning.judge import pca_errors
from hourglass.tuning.leaderboard import METRICS, Entry, Leaderboard
from hourglass.tuning.search import search
from hourglass.tuning.space import Point
from hourglass.tuning.trial import Placed, runs_of, trial_folder
from hourglass.tuning.trials import Crew

SAVE_S = 5.0
"""Seconds between two saves of the leaderboard of a sweep that runs."""


class Listener(Protocol):
    """Hears how a sweep goes, in the process that launched it."""

    def sweeping(self, trials: int, crew: Crew, dataset: dict[str, Any]) -> None:
        """How many trials there will be at most, what they may use, and of which shards."""
        ...

    def known(self, entry: Entry) -> None:
        """A trial that ended before, or a point that is no job."""
        ...

    def placed(self, dataset: dict[str, Any]) -> None:
        """The rows were read and lie in memory."""
        ...

    def note(self, text: str) -> None:
        """A sentence worth knowing."""
        ...

    def started(self, values: Sequence[dict[str, Any]]) -> None:
        """The trials of these values train, together if they are several."""
        ...

    def ended(self, entry: Entry, uri: str, history: Sequence[Record]) -> None:
        """A trial ended; `uri` is its artifact's, if it is finished, `history` its epochs."""
        ...


@dataclass(frozen=True)
class Swept:
    """An ended sweep: its leaderboard and folder, of its trials code units and epochs, its rows."""

    board: Leaderboard
    folder: str
    widths: dict[str, int]
    histories: dict[str, Sequence[Record]]
    rows: "Rows"

    def holdout(self) -> Features:
        """The held-out rows (B, C), raw."""
        return self.rows.placed.holdout


def run(sweep: TuneJob, settings: Settings, listener: Listener, fresh: bool = False) -> Swept:
    """Run `sweep` to its end on the connected cluster; finished trials are never run twice.

    Raises: DataError, SpecError, ClusterError, ArtifactError.
    """
    folder = folder_of(sweep, settings)
    if fresh:
        storage.remove(folder)
    base = sweep.job
    manifest, schema = open_dataset(base.data.uri, base.data.manifest)
    crew = trials.crew(sweep)
    searching = search(sweep)
    listener.sweeping(searching.most, crew, describe(manifest))
    rows = Rows(base, manifest, schema)
    sitting = Sitting(sweep, folder, rows, crew, listener)
    while batch := searching.ask():
        sitting.take(batch)
        searching.tell([sitting.metric(point) for point in batch])
        if sitting.over():
            break
    board = sitting.board(ended=True)
    board.save(folder)
    return Swept(board, folder, sitting.widths, sitting.histories, rows)


def folder_of(sweep: TuneJob, settings: Settings) -> str:
    """Where a sweep keeps its trials and its leaderboard."""
    return storage.join(settings.runs_uri, sweep.name or "sweep")


@dataclass(frozen=True)
class Rows:
    """The rows of a sweep, read when a trial needs them, and once."""

    base: TrainJob
    manifest: Manifest
    schema: pa.Schema

    @cached_property
    def placed(self) -> Placed:
        """In memory. Raises DataError, SpecError when they may not be kept there."""
        data = self.base.data
        columns = feature_schema(self.manifest, self.schema, data.features, data.missing)
        size = self.manifest.rows * columns.row_bytes
        if size > data.cache_bytes:
            raise SpecError(
                f"base.data.cache_bytes: trials share the rows in memory, which takes {size} bytes, "
                f"found {data.cache_bytes}; raise it, or search on fewer rows"
            )
        measured = launch.measure(self.base, self.manifest, self.schema)
        features, held = fetch(measured.refs, measured.rows.schema)
        return Placed(measured, features[~held], features[held])


class Sitting:
    """One command's part of a sweep: the points so far, and what came of each."""

    def __init__(
        self, sweep: TuneJob, folder: str, rows: Rows, crew: Crew, listener: Listener
    ) -> None:
        self._sweep, self._folder, self._rows = sweep, folder, rows
        self._crew, self._listener = crew, listener
        self._points: list[Point] = []
        self._entries: dict[str, Entry] = {}
        self.histories: dict[str, Sequence[Record]] = {}
        self._judged = _judged(folder)
        self._began: float | None = None
        self._saved = time.monotonic()

    def take(self, batch: Sequence[Point]) -> None:
        """Find what ended before, and train the others."""
        self._points += batch
        todo: list[Point] = []
        for point in batch:
            entry = self._before(point)
            if entry is not None:
                self._entries[point.key] = entry
                self._listener.known(entry)
            else:
                todo.append(point)
        if todo and not self.over():
            self._train(todo)
        if not self.over():
            self._forget_parents(batch)

    def _before(self, point: Point) -> Entry | None:
        """What is known of a point without training it. Raises DataError, ArtifactError."""
        if point.job is None:
            return Entry(trial="", status="failed", reason=point.reason, values=point.values)
        uri = self._artifact(point.trial)
        if storage.exists(storage.join(uri, artifact.MANIFEST)):
            found = artifact.load(uri)
            if (
                found.manifest.provenance.get("dataset", {}).get("digest")
                != self._rows.manifest.digest
            ):
                raise DataError(
                    f"{uri}: trained on other shards; begin the sweep anew with --fresh"
                )
            return self._finished(point, found)
        return stopped.load(trial_folder(self._folder, point.trial), point, self._sweep.scheduler)

    def _train(self, todo: Sequence[Point]) -> None:
        placed = self._rows.placed
        self._listener.placed(placed.measured.dataset)
        self._began = self._began or time.monotonic()
        groups = [[point.trial] for point in todo]
        runs = runs_of(placed, todo, self._sweep.job, self._folder)
        trials.train(self._sweep, runs, groups, placed, self._crew, self._folder, self, self.over)

    def _forget_parents(self, batch: Sequence[Point]) -> None:
        """Once a generation has ended, nobody goes on from the one before it."""
        earlier = self._points[-2 * len(batch) : -len(batch)]
        for trial in [point.trial for point in earlier if point.until is not None]:
            storage.remove(storage.join(trial_folder(self._folder, trial), "checkpoints"))

    def started(self, names: Sequence[str]) -> None:
        """Trials got their process."""
        self._listener.started([self._point(name).values for name in names])

    def finished(self, trial: str, reason: str) -> None:
        """A trial came to its end, or failed for a reason."""
        point = self._point(trial)
        if reason:
            self._end(Entry(trial=trial, status="failed", reason=reason, values=point.values))
        else:
            self._end(self._finished(point, artifact.load(self._artifact(trial))))

    def epoch(self, trial: str, record: Record) -> None:
        """A trial that may be stopped ended an epoch."""
        self.histories[trial] = [*self.histories.get(trial, ()), record]

    def stopped(self, trial: str, record: Record) -> None:
        """A trial was stopped by the scheduler, unless the whole sweep was."""
        if self.over():
            return
        folder = trial_folder(self._folder, trial)
        self._end(stopped.save(folder, self._point(trial), self._sweep.scheduler, record))

    def _end(self, entry: Entry) -> None:
        self._entries[entry.trial] = entry
        uri = self._artifact(entry.trial) if entry.status == "finished" else ""
        self._listener.ended(entry, uri, self.histories.get(entry.trial, ()))
        if time.monotonic() - self._saved > SAVE_S:
            self.board(ended=False).save(self._folder)
            self._saved = time.monotonic()

    def metric(self, point: Point) -> float | None:
        """What the search learns from: of a failed trial, nothing."""
        entry = self._entries.get(point.key)
        value: float | None = getattr(entry, self._sweep.metric) if entry else None
        return value

    def over(self) -> bool:
        """True when patience or time has run out."""
        return self._out_of_time() or self._counted() < len(self._points)

    def _out_of_time(self) -> bool:
        most, began = self._sweep.max_time_s, self._began
        return most is not None and began is not None and time.monotonic() - began > most

    def _counted(self) -> int:
        """How many of the points count: those after the end of patience do not, trained or not."""
        if self._sweep.stop is None:
            return len(self._points)
        ended = []
        for point in self._points:
            if point.key not in self._entries:
                break
            ended.append(self.metric(point))
        return settled(ended, self._sweep.stop, self._sweep.mode) or len(self._points)

    def board(self, ended: bool) -> Leaderboard:
        """The leaderboard of what is known so far; PCA judges at the end."""
        points = [point for point in self._points[: self._counted()] if point.until is None]
        entries = [self._entries.get(point.key) or self._cut(point) for point in points]
        if ended:
            entries = self._beside_pca(entries)
        name, metric, mode = self._sweep.name or "sweep", self._sweep.metric, self._sweep.mode
        return leaderboard.ranked(name, metric, entries, mode, ended)

    def _finished(self, point: Point, found: Artifact) -> Entry:
        """The leaderboard's line about a trial that has an artifact."""
        said = found.manifest
        records = said.provenance["history"]
        self.histories[point.trial] = records
        return Entry(
            trial=point.trial,
            status="finished",
            values=point.values,
            **{name: said.metrics.get(name) for name in METRICS},
            parameters=sum(weight.numel() for weight in found.module.parameters()),
            seconds=said.provenance["seconds"],
            epochs=int(max(record["epoch"] for record in records)),
        )

    @property
    def widths(self) -> dict[str, int]:
        """The code units of each trial."""
        return {p.trial: p.job.model.network.code_width for p in self._points if p.job}

    def _cut(self, point: Point) -> Entry:
        why = "max_time_s was over" if self._out_of_time() else "it has not ended"
        reason = f"{why}; the same command goes on with it"
        return Entry(trial=point.trial, status="failed", reason=reason, values=point.values)

    def _beside_pca(self, entries: Sequence[Entry]) -> list[Entry]:
        """Each finished trial beside PCA with as many units."""
        jobs = {point.trial: point.job for point in self._points if point.job}
        finished = [entry.trial for entry in entries if entry.status == "finished"]
        new = {trial: jobs[trial] for trial in finished if trial not in self._judged}
        if new:
            placed = self._rows.placed
            stats = placed.measured.census.stats
            self._judged |= dict.fromkeys(new)
            self._judged |= pca_errors(new, stats, placed.train, placed.holdout)
        return [
            entry.having(pca_mse=self._judged[entry.trial]) if entry.trial in finished else entry
            for entry in entries
        ]

    def _point(self, trial: str) -> Point:
        return next(point for point in reversed(self._points) if point.trial == trial)

    def _artifact(self, trial: str) -> str:
        return storage.join(trial_folder(self._folder, trial), "artifact")


def settled(metrics: Sequence[float | None], stop: Stop, mode: Mode) -> int | None:
    """How many trials, in their order, it takes until the best no longer improves; None: not yet."""
    best, waited = None, 0
    for number, metric in enumerate(metrics, start=1):
        error = metric if metric is None or mode == "min" else -metric
        waited += 1
        if error is not None and (best is None or error < best - stop.tolerance * abs(best)):
            best, waited = error, 0
        if waited >= stop.patience:
            return number
    return None


def _judged(folder: str) -> dict[str, float | None]:
    """What the leaderboard of an ended sitting says of PCA, for each finished trial."""
    earlier = leaderboard.load(folder)
    entries = earlier.entries if earlier and earlier.ended else ()
    return {entry.trial: entry.pca_mse for entry in entries if entry.status == "finished"}
