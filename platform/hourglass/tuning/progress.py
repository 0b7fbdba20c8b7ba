"""Progress of a sweep: who receives it, a live table on a terminal, plain lines in a log."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hourglass.config.search import Metric
from hourglass.config.tune import TuneJob
from hourglass.progress import screen
from hourglass.training.state import Record
from hourglass.tuning.leaderboard import Entry, format_values, ranked
from hourglass.tuning.trial import Resources

SHOWN = 8
"""Trials in the live table: the best so far."""
REFRESH_S = 1.0


class Listener(Protocol):
    """Receives the progress of a sweep, in the driver process."""

    def sweeping(self, trials: int, resources: Resources, dataset: dict[str, Any]) -> None:
        """The maximum number of trials, what they may use, and the dataset they train on."""
        ...

    def known(self, entry: Entry) -> None:
        """A trial that ended in an earlier session, or a point that makes no valid job."""
        ...

    def loaded(self, dataset: dict[str, Any]) -> None:
        """The rows are in memory."""
        ...

    def note(self, text: str) -> None:
        """A message for the user."""
        ...

    def started(self, values: Sequence[dict[str, Any]]) -> None:
        """The trials with these values began to train, together if there are several."""
        ...

    def ended(self, entry: Entry, uri: str, history: Sequence[Record]) -> None:
        """A trial ended; `uri` is that of its artifact if it finished, `history` its epochs."""
        ...


@contextmanager
def shown(sweep: TuneJob, stderr: bool = False) -> Iterator["SweepProgress"]:
    """Show the progress of `sweep` for the length of a block."""
    console = screen(stderr)
    progress = SweepProgress(sweep, console)
    if not console.is_terminal:
        yield progress
        return
    table = Live(
        get_renderable=progress.table,
        console=console,
        refresh_per_second=1 / REFRESH_S,
        transient=True,
    )
    with table:
        yield progress


class SweepProgress:
    """A listener that counts running, finished and failed trials and shows the best so far."""

    def __init__(self, sweep: TuneJob, screen: Console) -> None:
        self._sweep, self._screen = sweep, screen
        self._trials = 0
        self._running: list[tuple[float, dict[str, Any]]] = []
        self._entries: list[Entry] = []
        self._ended_here = 0
        self._began = time.monotonic()

    def sweeping(self, trials: int, resources: Resources, dataset: dict[str, Any]) -> None:
        """The maximum number of trials, and what they may use."""
        self._trials, share = trials, resources.share
        workers = "1 worker" if share.workers == 1 else f"{share.workers} workers"
        gpus = f" and {share.gpus:g} GPUs" if share.gpus else ""
        self.note(
            f"at most {trials} trials, {resources.at_once} at a time, each on {workers} with "
            f"{share.cpus:g} CPUs{gpus}"
        )

    def known(self, entry: Entry) -> None:
        """A trial that ended in an earlier session, or a point that makes no valid job."""
        self._entries.append(entry)
        when = "" if entry.status == "failed" else ", from an earlier session"
        self.note(f"{format_values(entry.values)}: {_outcome(entry, self._sweep.metric)}{when}")

    def loaded(self, dataset: dict[str, Any]) -> None:
        """The rows are in memory; trials begin."""
        if not self._ended_here:
            self._began = time.monotonic()
            self.note(
                f"{dataset['rows']} rows loaded into memory: {dataset['train_rows']} for training, "
                f"{dataset['holdout_rows']} held out, {dataset['dropped_rows']} dropped, "
                f"{dataset['imputed_cells']} cells imputed"
            )

    def note(self, text: str) -> None:
        """Print a message."""
        self._screen.print(text, markup=False)
        self._screen.file.flush()

    def started(self, values: Sequence[dict[str, Any]]) -> None:
        """Trials began to train; one that lost its process starts a second time."""
        running = [values for _, values in self._running]
        self._running += [(time.monotonic(), one) for one in values if one not in running]

    def ended(self, entry: Entry, uri: str, history: Sequence[Record]) -> None:
        """A trial ended."""
        self._running = [(at, one) for at, one in self._running if one != entry.values]
        self._entries.append(entry)
        self._ended_here += 1
        text = f"{format_values(entry.values)}: {_outcome(entry, self._sweep.metric)}"
        self.note(text if self._screen.is_terminal else f"{text}  ({self.summary()})")

    def summary(self) -> str:
        """The number of running, finished and failed trials, the best so far, and the time left."""
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
        """Seconds left at the pace so far; None before the first trial of this session ended."""
        if not self._ended_here:
            return None
        pace = (time.monotonic() - self._began) / self._ended_here
        return round(pace * max(self._trials - len(self._entries), 0))

    def table(self) -> Group:
        """The best trials so far, the running ones, and the summary below."""
        table = Table(title=self._sweep.name, title_justify="left", expand=False)
        for heading in ("", self._sweep.metric, "epochs", "s", "values"):
            table.add_column(heading, justify="left" if heading == "values" else "right")
        for entry in self._ranked()[:SHOWN]:
            seconds = "" if entry.seconds is None else f"{entry.seconds:.1f}"
            table.add_row(
                str(entry.rank or "-"),
                Text(_outcome(entry, self._sweep.metric)),
                str(entry.epochs or ""),
                seconds,
                Text(format_values(entry.values)),
            )
        for began, values in self._running:
            table.add_row(
                "", "running", "", f"{time.monotonic() - began:.0f}", Text(format_values(values))
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
    number = "no metric" if value is None else f"{value:.6f}"
    return number if entry.status == "finished" else f"{number} when stopped"
