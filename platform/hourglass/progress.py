"""Progress of long work: a bar on a terminal, plain lines in a log."""

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
    """Standard output or error; without a terminal, lines are as long as they are."""
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
    """Standard output or error, whichever it is now; what it does not take is left unsaid."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)

    def _now(self) -> Any:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)  # not what Rich puts in its place

    def write(self, text: str) -> int:
        """Write, if it can be done."""
        if (stream := self._now()) is not None:
            with suppress(OSError, ValueError):  # closed, full, or nobody reads it any more
                stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if it can be done."""
        if (stream := self._now()) is not None:
            with suppress(OSError, ValueError):
                stream.flush()


def screen(stderr: bool = False) -> Console:
    """As `console`, for what tells how work goes: no work fails because nobody can be told."""
    stream: Any = _Stream("stderr" if stderr else "stdout")
    return Console(file=stream, soft_wrap=True, highlight=False)


@contextmanager
def bar(unit: str, stderr: bool = False) -> Iterator["Bar"]:
    """A bar for the length of a block, or plain lines where there is no terminal."""
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
    """Counts done of total, with a line about the last step."""

    def __init__(self, screen: Console, progress: Progress | None, unit: str) -> None:
        self._screen, self._progress, self._unit = screen, progress, unit
        self._task = progress.add_task("", total=None) if progress else None

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._screen.print(text, markup=False)
        self._screen.file.flush()

    def to(self, done: float, total: float, text: str) -> None:
        """Move the bar; a log gets a line instead."""
        if self._progress is None or self._task is None:
            self.say(f"{self._unit} {done:g}/{total:g}  {text}")
        else:
            self._progress.update(self._task, completed=done, total=total, description=text)


class TrainProgress:
    """Tells how training goes."""

    def __init__(self, shown: Bar) -> None:
        self._bar = shown
        self._epochs = self._seeds = 0

    def prepared(self, job: "TrainJob", dataset: dict[str, Any]) -> None:
        """The rows that will be trained on, and what was done to them."""
        self._epochs, self._seeds = job.train.epochs, job.train.seeds
        self._bar.say(
            f"{dataset['rows']} rows in {dataset['shards']} shards: {dataset['train_rows']} to"
            f" train on, {dataset['holdout_rows']} held out, {dataset['dropped_rows']} dropped,"
            f" {dataset['imputed_cells']} cells imputed"
        )
        if dataset["constant_columns"]:
            verb = "dropped" if job.data.constant == "drop" else "kept"
            self._bar.say(f"{dataset['constant_columns']} constant columns, {verb}")
        where = "cached in memory" if dataset["cached"] else "streamed"
        number = job.scale.workers
        workers = "1 worker takes" if number == 1 else f"{number} workers take"
        self._bar.say(f"rows {where}; {workers} some seconds to start")

    def note(self, text: str) -> None:
        """A sentence worth knowing."""
        self._bar.say(text)

    def epoch(self, record: "Record") -> None:
        """One epoch: whose it is among several members, loss, holdout error, speed."""
        whose = f"member {record['member']:g}/{self._seeds}  " if "member" in record else ""
        held = f"holdout {record['holdout_mse']:.5f}  " if "holdout_mse" in record else ""
        text = f"{whose}loss {record['loss']:.5f}  {held}{record['rows_per_s']:,.0f} rows/s"
        self._bar.to(record["epoch"], self._epochs, text)


class ScoreProgress:
    """Tells how scoring goes."""

    def __init__(self, shown: Bar) -> None:
        self._bar = shown
        self._rows = self._done = self._anomalies = 0
        self._started = time.perf_counter()

    def scoring(self, rows: int, parts: int, done: int) -> None:
        """What there is to do, and what an earlier run did already."""
        self._rows = rows
        already = f", {done} of them done already" if done else ""
        self._bar.say(f"{rows} rows in {parts} parts{already}")
        self._started = time.perf_counter()

    def scored(self, tally: "Tally") -> None:
        """A part was written."""
        self._done += tally.rows + tally.dropped
        self._anomalies += tally.anomalies
        rate = self._done / max(time.perf_counter() - self._started, 1e-3)
        self._bar.to(self._done, self._rows, f"{self._anomalies} anomalies  {rate:,.0f} rows/s")
