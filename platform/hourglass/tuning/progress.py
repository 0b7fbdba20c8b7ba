"""Progress of a sweep: a live table on a terminal, plain lines in a log."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hourglass.config.search import Metric
from hourglass.config.tune import TuneJob
from hourglass.progress import screen
from hourglass.training.state import Record
from hourglass.tuning.axes import point_in_words
from hourglass.tuning.leaderboard import Entry, ranked
from hourglass.tuning.resources import Crew

SHOWN = 8
"""Trials in the live table: the best so far."""
REFRESH_S = 1.0


@contextmanager
def shown(sweep: TuneJob, stderr: bool = False) -> Iterator["SweepProgress"]:
    """What tells how `sweep` goes, for the length of a block."""
    where = screen(stderr)
    progress = SweepProgress(sweep, where)
    if not where.is_terminal:
        yield progress
        return
    table = Live(
        get_renderable=progress.table,
        console=where,
        refresh_per_second=1 / REFRESH_S,
        transient=True,
    )
    with table:
        yield progress


class SweepProgress:
    """Counts trials that run, are done and failed, and knows the best so far."""

    def __init__(self, sweep: TuneJob, screen: Console) -> None:
        self._sweep, self._screen = sweep, screen
        self._trials, self._at_once = 0, 1
        self._running: list[tuple[float, dict[str, Any]]] = []
        self._entries: list[Entry] = []
        self._ended_here = 0
        self._began = time.monotonic()

    def sweeping(self, trials: int, crew: Crew, dataset: dict[str, Any]) -> None:
        """How many trials there will be at most, and what they may use."""
        self._trials, self._at_once = trials, crew.at_once
        share = crew.share
        workers = "1 worker" if share.workers == 1 else f"{share.workers} workers"
        gpus = f" and {share.gpus:g} GPUs" if share.gpus else ""
        self.note(
            f"at most {trials} trials, {crew.at_once} at a time, each on {workers} of "
            f"{share.cpus:g} CPUs{gpus}"
        )

    def known(self, entry: Entry) -> None:
        """A trial that ended before, or a point that is no job."""
        self._entries.append(entry)
        since = "" if entry.status == "failed" else ", before this sitting"
        self.note(f"{point_in_words(entry.values)}: {_outcome(entry, self._sweep.metric)}{since}")

    def placed(self, dataset: dict[str, Any]) -> None:
        """The rows were read and lie in memory."""
        if not self._ended_here:
            self._began = time.monotonic()
            self.note(
                f"{dataset['rows']} rows placed in memory: {dataset['train_rows']} to train on, "
                f"{dataset['holdout_rows']} held out, {dataset['dropped_rows']} dropped, "
                f"{dataset['imputed_cells']} cells imputed"
            )

    def note(self, text: str) -> None:
        """A sentence worth knowing."""
        self._screen.print(text, markup=False)
        self._screen.file.flush()

    def started(self, values: Sequence[dict[str, Any]]) -> None:
        """These trials train; one that lost its process starts again."""
        begun = [running for _, running in self._running]
        self._running += [(time.monotonic(), one) for one in values if one not in begun]

    def ended(self, entry: Entry, uri: str, history: Sequence[Record]) -> None:
        """A trial ended."""
        self._running = [(at, one) for at, one in self._running if one != entry.values]
        self._entries.append(entry)
        self._ended_here += 1
        text = f"{point_in_words(entry.values)}: {_outcome(entry, self._sweep.metric)}"
        self.note(text if self._screen.is_terminal else f"{text}  ({self.summary()})")

    def summary(self) -> str:
        """Trials running, done, failed, the best so far, and the time left."""
        failed = sum(entry.status == "failed" for entry in self._entries)
        parts = [
            f"{len(self._running)} running",
            f"{len(self._entries) - failed}/{self._trials} done",
            f"{failed} failed",
        ]
        best = next(iter(self._ranked()), None)
        if best is not None and best.status == "finished":
            parts.append(f"best {_outcome(best, self._sweep.metric)}")
        left = self.left_s()
        if left is not None:
            parts.append(f"{left // 60:02d}:{left % 60:02d} left")
        return ", ".join(parts)

    def left_s(self) -> int | None:
        """Seconds left at the pace so far; None before the first trial of this sitting ended."""
        if not self._ended_here:
            return None
        pace = (time.monotonic() - self._began) / self._ended_here
        return round(pace * max(self._trials - len(self._entries), 0))

    def table(self) -> Group:
        """The best trials so far, those that run, and the summary below."""
        table = Table(title=self._sweep.name, title_justify="left", expand=False)
        for heading in ("", self._sweep.metric, "epochs", "s", "values"):
            table.add_column(heading, justify="left" if heading == "values" else "right")
        for entry in self._ranked()[:SHOWN]:
            figures = [Text(str(entry.rank or "-")), Text(_outcome(entry, self._sweep.metric))]
            seconds = "" if entry.seconds is None else f"{entry.seconds:.1f}"
            table.add_row(
                *figures, str(entry.epochs or ""), seconds, Text(point_in_words(entry.values))
            )
        for began, values in self._running:
            table.add_row(
                "", "running", "", f"{time.monotonic() - began:.0f}", Text(point_in_words(values))
            )
        return Group(table, Text(self.summary()))

    def _ranked(self) -> Sequence[Entry]:
        sweep = self._sweep
        return ranked(sweep.name or "sweep", sweep.metric, self._entries, sweep.mode).entries


def _outcome(entry: Entry, metric: Metric) -> str:
    """The metric of a trial, or why it has none."""
    value = getattr(entry, metric)
    if entry.status == "failed":
        return f"failed: {entry.reason}"
    figure = "no metric" if value is None else f"{value:.6f}"
    return figure if entry.status == "finished" else f"{figure} when stopped"
