"""One command's part of a sweep: what it hands out to train, and what is known of every trial."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from hourglass import artifact
from hourglass.artifact import Artifact
from hourglass.config.train import TrainJob
from hourglass.config.tune import TuneJob
from hourglass.training.calibrate import other_quantile
from hourglass.training.state import Record
from hourglass.tuning import leaderboard, pack, trials
from hourglass.tuning.champion import Judge
from hourglass.tuning.leaderboard import METRICS, Entry, Leaderboard
from hourglass.tuning.on_disk import OnDisk, Rows, Stopped
from hourglass.tuning.resources import Crew
from hourglass.tuning.search import Searching
from hourglass.tuning.space import Point
from hourglass.tuning.stopping import Deadline, Stopping, settled
from hourglass.tuning.trials import Listener

UNJUDGED = (
    "it ended, and is judged when the trials before it have come as far; the same command goes on"
)
SAVE_S = 5.0
"""Seconds between two saves of the leaderboard of a sweep that runs."""


class Sitting:
    """One command's part of a sweep: the points so far, and what came of each."""

    def __init__(
        self,
        sweep: TuneJob,
        folder: str,
        rows: Rows,
        crew: Crew,
        listener: Listener,
        searching: Searching,
    ) -> None:
        self._sweep, self._folder, self._rows = sweep, folder, rows
        self._disk = OnDisk(folder, rows.manifest.digest, crew.share.workers)
        self._crew, self._listener, self._searching = crew, listener, searching
        self._points: list[Point] = []
        self._batch: Sequence[Point] = ()
        self._queue: list[list[Point]] = []
        self._entries: dict[str, Entry] = {}
        self._losses: Counter[str] = Counter()
        self._stopping = Stopping(sweep.scheduler, sweep.metric)
        self._held: dict[str, tuple[Entry, Callable[[Entry], None]]] = {}  # ended, not judged yet
        self._kept: dict[str, Stopped] = {}  # stopped in an earlier sitting, not judged yet
        self.histories: dict[str, Sequence[Record]] = {}
        self._compared = False
        self._judge = Judge(folder)
        self._deadline = Deadline(sweep.max_time_s, self._progress)
        self._saved = time.monotonic()

    def next(self) -> Sequence[Point] | None:
        """Points to train together; None when others must end before, empty when there are no more."""
        if not self._queue and self._waiting():
            return None
        return self._queue.pop(0) if self.advance() else ()

    def advance(self) -> bool:
        """Ask for batches until one has something to train; False when there are no more.

        What ended before is found, and not trained again.
        """
        while not self._queue:
            if self._waiting():
                return False  # time ran out while they were looked at
            if self._batch:
                self._searching.tell([self.metric(point) for point in self._batch])
                self._forget_parents(self._batch)
            self._batch = () if self.over() else self._searching.ask()
            if not self._batch:
                return False
            self._take(self._batch)
        return True

    def _waiting(self) -> bool:
        return any(point.key not in self._entries for point in self._batch)

    def _take(self, batch: Sequence[Point]) -> None:
        """Find what ended before, and put the others into the queue."""
        self._points += batch
        unique = {point.key: point for point in batch}
        for point in unique.values():
            self._find(point)
        self._decide()
        ended = {*self._entries, *self._held, *self._kept}
        todo = [point for key, point in unique.items() if key not in ended]
        if todo and not self.over():
            self._listener.placed(self._rows.placed.measured.dataset)
            self._queue = self._dealt(todo)

    def _find(self, point: Point) -> None:
        """What came of a point before this sitting. Raises DataError, ArtifactError."""
        if point.job is None:
            entry = Entry(trial="", status="failed", reason=point.reason, values=point.values)
            self._entries[point.key] = entry
            self._listener.known(entry)
            return
        trial = point.trial
        self._stopping.enter(trial, point.job.train.epochs)
        found = self._disk.artifact(trial)
        if found is not None:
            self._disk.forget_checkpoints(trial)  # if it was killed before that
            self._compare(point.job, trial, found)
            self._hold(self._finished(point, found), self._know)
            return
        kept = self._disk.stopped(trial)
        if kept is None:
            return
        self.histories[trial] = kept.history
        if point.until is not None:
            self._know(kept.entry(point, point.until))
        else:
            self._kept[trial] = kept
            self._stopping.heard(trial, kept.history)

    def _compare(self, job: TrainJob, trial: str, found: Artifact) -> None:
        """Say once that trials were finished with another quantile, which is no part of their name."""
        what = f"trial {trial}, maybe others as well,"
        other = other_quantile(what, found.manifest.calibration, job.quantile)
        if other and not self._compared:
            self._compared = True
            self._listener.note(other)

    def _dealt(self, todo: Sequence[Point]) -> list[list[Point]]:
        """The trials in groups that train together; whoever may be stopped trains alone."""
        single = self._crew.share.workers > 1 or self._sweep.scheduler.population
        if single or trials.watched(self._sweep):
            return [[point] for point in todo]
        jobs = {point.trial: point.job for point in todo if point.job}
        device = torch.device("cuda" if self._crew.share.gpus else "cpu")
        features = self._rows.placed.train.shape[1]
        dealt = pack.deal(jobs, self._sweep.pack, features, self._crew.room, device)
        if dealt.note:
            self._listener.note(dealt.note)
        return [[self._point(name) for name in group] for group in dealt.groups]

    def _forget_parents(self, batch: Sequence[Point]) -> None:
        """Once a generation has ended, nobody goes on from the one before it."""
        if any(entry.status == "failed" and entry.trial for entry in self._entries.values()):
            return  # the same command tries it again, and others may then go on from others
        earlier = self._points[-2 * len(batch) : -len(batch)]
        for trial in [point.trial for point in earlier if point.until is not None]:
            self._disk.forget_checkpoints(trial)

    def started(self, names: Sequence[str]) -> None:
        """Trials got their process."""
        self._deadline.started(names)
        self._listener.started([self._point(name).values for name in names])

    def finished(self, trial: str, reason: str) -> None:
        """A trial came to its end, or failed for a reason."""
        point = self._point(trial)
        if reason:
            entry = Entry(trial=trial, status="failed", reason=reason, values=point.values)
        else:
            entry = self._finished(point, artifact.load(self._disk.artifact_uri(trial)))
        self._hold(entry, self._end)
        self._go_on()

    def lost(self, names: Sequence[str]) -> None:
        """Trials lost their process: they go on in another, `base.scale.max_failures` times."""
        self._losses.update(names)
        times = self._losses[names[0]]
        if times <= self._sweep.job.scale.max_failures:
            self._queue.insert(0, [self._point(name) for name in names])
            count = len(names)
            lost = (
                "a trial was lost; it goes" if count == 1 else f"{count} trials was lost; they go"
            )
            self._listener.note(f"the process of {lost} on in another")
            return
        for name in names:
            self.finished(name, f"its process was lost {times} times; out of memory?")

    def epochs(self, trial: str, records: Sequence[Record]) -> None:
        """A trial that may be stopped ended epochs."""
        earlier = self.histories.get(trial, ())
        before = [record for record in earlier if record["epoch"] < records[0]["epoch"]]
        after = [record for record in earlier if record["epoch"] > records[-1]["epoch"]]
        self.histories[trial] = [*before, *records, *after]  # it may have begun again further back
        self._stopping.heard(trial, records)
        self._go_on()

    def to_stop(self, trial: str) -> bool:
        """True of one that the scheduler stopped, maybe after an epoch that it left behind."""
        return self._stopping.last_epoch(trial) is not None

    def stopped(self, trial: str, seconds: float) -> None:
        """A trial was stopped, unless the whole sweep was."""
        if self.over():
            return
        point = self._point(trial)
        last = point.until or self._stopping.last_epoch(trial)
        assert last is not None  # nobody else stops a trial
        kept = self._disk.stop(trial, self.histories[trial], seconds)
        self._end(self._stopped_after(last, point, kept))

    def _stopped_after(self, epoch: int, point: Point, kept: Stopped) -> Entry:
        """The leaderboard's line about a trial that was stopped, which has no later epochs."""
        self.histories[point.trial] = kept.to(epoch)
        return kept.entry(point, epoch)

    def _hold(self, entry: Entry, tell: Callable[[Entry], None]) -> None:
        """A trial has ended, and is told of when it is judged."""
        self._held[entry.trial] = entry, tell
        self._stopping.heard(entry.trial, self.histories.get(entry.trial, ()))
        self._stopping.ended(entry.trial)

    def _decide(self) -> list[Point]:
        """Tell of trials that are judged by now; returns those that were stopped, and are not any more."""
        for trial in [trial for trial in self._held if self._stopping.decided(trial)]:
            entry, tell = self._held.pop(trial)
            last = self._stopping.last_epoch(trial)
            if last is not None:  # it trained on after that, or failed there
                history, seconds = self.histories[trial], entry.seconds or 0.0
                trained = Stopped(self._disk.data_digest, history, seconds)
                if entry.status == "failed":
                    trained = self._disk.stop(trial, history, seconds)
                entry = self._stopped_after(last, self._point(trial), trained)
            tell(entry)
        on = []
        for trial in [trial for trial in self._kept if self._stopping.decided(trial)]:
            point, kept = self._point(trial), self._kept.pop(trial)
            last = self._stopping.last_epoch(trial)
            if last is None:
                on.append(point)
            else:
                self._know(self._stopped_after(last, point, kept))
        return on

    def _go_on(self) -> None:
        self._queue[:0] = [[point] for point in self._decide()]

    def _know(self, entry: Entry) -> None:
        self._entries[entry.trial] = entry
        self._listener.known(entry)

    def _end(self, entry: Entry) -> None:
        self._entries[entry.trial] = entry
        uri = self._disk.artifact_uri(entry.trial) if entry.status == "finished" else ""
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
        return self._deadline.over or self._counted() < len(self._points)

    def _counted(self) -> int:
        """How many of the points count: those after the end of patience do not, trained or not."""
        return self._settled() or len(self._points)

    def _settled(self) -> int | None:
        """At how many points patience ran out; None: it has not."""
        if self._sweep.stop is None:
            return None
        ended = []
        for point in self._points:
            if point.key not in self._entries:
                break
            ended.append(self.metric(point))
        return settled(ended, self._sweep.stop, self._sweep.mode)

    def close(self) -> Leaderboard:
        """The leaderboard of a sitting that comes to its end; the listener hears what ended it."""
        ended, most = sum(p.key in self._entries for p in self._points), self._searching.most
        cut = self._deadline.over and ended < most and not self._settled()
        if cut:
            self._listener.note(self._deadline.note([*self._entries], ended, most))
        elif self._sweep.stop is not None and self._settled() and self._counted() < most:
            self._listener.note(
                f"stop: the best did not improve for {self._sweep.stop.patience} trials, so "
                f"{self._counted()} of at most {most} count"
            )
        return self.board(ended=not cut)

    def board(self, ended: bool) -> Leaderboard:
        """The leaderboard of what is known so far; PCA judges at the end."""
        counted = self._points[: self._counted()]
        # Of a population the last generation; of one that was cut short, the one that it came to.
        points = [point for point in counted if point.until is None] or self._batch or counted
        unique = {point.key: point for point in points}.values()
        entries = [self._entries.get(point.key) or self._cut(point) for point in unique]
        if ended:
            jobs = {point.trial: point.job for point in self._points if point.job}
            entries = self._judge.beside(entries, jobs, self._rows)
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
        held, _ = self._held.get(point.trial, (None, None))
        if held is not None and held.status == "failed":
            return held
        waits = held is not None or point.trial in self._kept
        reason = UNJUDGED if waits else self._deadline.reason(point.trial)
        return Entry(trial=point.trial, status="failed", reason=reason, values=point.values)

    def _progress(self, trial: str) -> tuple[bool, list[list[str]]]:
        job = self._point(trial).job
        assert job is not None  # it trains
        return self._disk.progress(trial, job.train.seeds)

    def _point(self, trial: str) -> Point:
        return next(point for point in reversed(self._points) if point.trial == trial)
