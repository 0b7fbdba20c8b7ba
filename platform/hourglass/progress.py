"""Progress of long operations, and tables: rich on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # they bring PyTorch, and looking at shards shows progress too
    from hourglass.config.train import TrainJob
    from hourglass.inference.parts import Tally
    from hourglass.training.state import Record


def console(stderr: bool = False) -> Console:
    """Standard output or error; without a terminal, lines are not wrapped."""
    return Console(soft_wrap=True, highlight=False, stderr=stderr)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under headings; without a terminal, each row is one line of full length."""
    screen = console()
    if not screen.is_terminal:
        screen.width = 10_000
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # text from data is no markup
    screen.print(table)


class _Stream:
    """The current standard output or error; failed writes are ignored."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)

    def _now(self) -> Any:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)  # not rich's replacement

    def write(self, text: str) -> int:
        """Write, if possible."""
        if (stream := self._now()) is not None:
            with suppress(OSError, ValueError):  # closed, full, or a pipe without a reader
                stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if possible."""
        if (stream := self._now()) is not None:
            with suppress(OSError, ValueError):
                stream.flush()


def screen(stderr: bool = False) -> Console:
    """`console` for progress, whose failed writes must not fail the operation."""
    stream: Any = _Stream("stderr" if stderr else "stdout")
    return Console(file=stream, soft_wrap=True, highlight=False)


@contextmanager
def bar(unit: str, stderr: bool = False) -> Iterator["Bar"]:
    """A progress bar for the length of a block, or plain lines without a terminal."""
    where = screen(stderr)
    if not where.is_terminal:
        yield Bar(where, None, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=where) as progress:
        yield Bar(where, progress, unit)


class Bar:
    """Shows how much of a total is done, and a description of the last step."""

    def __init__(self, screen: Console, progress: Progress | None, unit: str) -> None:
        self._screen, self._progress, self._unit = screen, progress, unit
        self._task = progress.add_task("", total=None) if progress else None

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self._screen.print(text, markup=False)
        self._screen.file.flush()

    def to(self, done: float, total: float, text: str) -> None:
        """Move the bar, or print a line without a terminal."""
        if self._progress is None or self._task is None:
            self.print(f"{self._unit} {done:g}/{total:g}  {text}")
        else:
            self._progress.update(self._task, completed=done, total=total, description=text)


class TrainProgress:
    """Shows the progress of training."""

    def __init__(self, shown: Bar) -> None:
        self._bar = shown
        self._epochs = self._seeds = 0

    def prepared(self, job: "TrainJob", dataset: dict[str, Any]) -> None:
        """The rows to train on, and how they were prepared."""
        self._epochs, self._seeds = job.train.epochs, job.train.seeds
        self._bar.print(
            f"{dataset['rows']} rows in {dataset['shards']} shards: {dataset['train_rows']} for"
            f" training, {dataset['holdout_rows']} held out, {dataset['dropped_rows']} dropped,"
            f" {dataset['imputed_cells']} cells imputed"
        )
        if dataset["constant_columns"]:
            verb = "dropped" if job.data.constant == "drop" else "kept"
            self._bar.print(f"{dataset['constant_columns']} constant columns, {verb}")
        where = "cached in memory" if dataset["cached"] else "streamed"
        number = job.scale.workers
        workers = "1 worker" if number == 1 else f"{number} workers"
        self._bar.print(f"rows {where}; starting {workers}, which takes some seconds")

    def note(self, text: str) -> None:
        """A message of the run."""
        self._bar.print(text)

    def epoch(self, record: "Record") -> None:
        """One epoch: its member (of several), loss, holdout error and speed."""
        member = f"member {record['member']:g}/{self._seeds}  " if "member" in record else ""
        held = f"holdout {record['holdout_mse']:.5f}  " if "holdout_mse" in record else ""
        text = f"{member}loss {record['loss']:.5f}  {held}{record['rows_per_s']:,.0f} rows/s"
        self._bar.to(record["epoch"], self._epochs, text)


class ScoreProgress:
    """Shows the progress of scoring."""

    def __init__(self, shown: Bar) -> None:
        self._bar = shown
        self._rows = self._done = self._anomalies = 0
        self._started = time.perf_counter()

    def scoring(self, rows: int, parts: int, done: int) -> None:
        """The rows and parts to score, and the parts that an earlier execution wrote."""
        self._rows = rows
        already = f", {done} of them already written" if done else ""
        self._bar.print(f"{rows} rows in {parts} parts{already}")
        self._started = time.perf_counter()

    def note(self, text: str) -> None:
        """A sentence for the user."""
        self._bar.print(text)

    def scored(self, tally: "Tally") -> None:
        """One part is written."""
        self._done += tally.rows + tally.dropped
        self._anomalies += tally.anomalies
        rate = self._done / max(time.perf_counter() - self._started, 1e-3)
        self._bar.to(self._done, self._rows, f"{self._anomalies} anomalies  {rate:,.0f} rows/s")
