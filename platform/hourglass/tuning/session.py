"""One session of a sweep: the queue of trials, and what is known of every trial."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from hourglass.artifact import Calibration
from hourglass.config.tune import TuneJob
from hourglass.training.calibrate import other_quantile
from hourglass.training.state import Record
from hourglass.tuning import pack
from hourglass.tuning.champion import Baseline
from hourglass.tuning.leaderboard import Entry, Leaderboard, ranked
from hourglass.tuning.progress import Listener
from hourglass.tuning.search import Searching
from hourglass.tuning.space import Point
from hourglass.tuning.stopping import Deadline, Stopping, settled
from hourglass.tuning.store import SharedRows, Stopped, TrialStore
from hourglass.tuning.trial import Resources

UNDECIDED = (
    "ended, but the trials before it must reach the same epoch before it is compared with them; run the "
    "same command to continue"
)
SAVE_S = 5.0
"""Seconds between two saves of the leaderboard while a sweep runs."""


class Session:
    """The part of a sweep that one command runs: it supplies trials and receives their results.

    It holds what belongs together: the job, the sweep's folder, the rows, the store of trials and the
    resources.
    """

    def __init__(
        self,
        job: TuneJob,
        folder: str,
        rows: SharedRows,
        resources: Resources,
        listener: Listener,
        search: Searching,
    ) -> None:
        self.job, self.folder, self.rows, self.resources = job, folder, rows, resources
        self.store = TrialStore(folder, rows.dataset.manifest.digest, resources.share.workers)
        self.histories: dict[str, Sequence[Record]] = {}
        self._listener, self._search = listener, search
        self._points: list[Point] = []
        self._batch: Sequence[Point] = ()
        self._queue: list[list[Point]] = []
        self._entries: dict[str, Entry] = {}
        self._losses: Counter[str] = Counter()
        self._stopping = Stopping(job.scheduler, job.metric)
        # Trials that ended or were stopped before, until it is decided which epoch is their last.
        self._ended: dict[str, tuple[Entry, Callable[[Entry], None]]] = {}
        self._stopped_before: dict[str, Stopped] = {}
        self._noted_quantile = False
        self._baseline = Baseline(folder)
        self._deadline = Deadline(job.max_time_s, self._progress)
        self._saved = time.monotonic()

    @property
    def watched(self) -> bool:
        """True when trials report their epochs, because something may stop them."""
        ends = self.job.stop is not None or self.job.max_time_s is not None
        return ends or self.job.scheduler.stops

    # -- the queue --------------------------------------------------------------------------------

    def next(self) -> Sequence[Point] | None:
        """Points to train together; None while other trials must end first, empty at the end."""
        if not self._queue and self._waiting():
            return None
        return self._queue.pop(0) if self.advance() else ()

    def advance(self) -> bool:
        """Ask the search for batches until one has a trial to train; False when there are no more.

        Trials that ended in earlier sessions are read from the store and not trained again.
        """
        while not self._queue:
            if self._waiting():
                return False  # time ran out while the store was read
            if self._batch:
                self._search.tell([self.metric(point) for point in self._batch])
                self._remove_parents(self._batch)
            self._batch = () if self.over() else self._search.ask()
            if not self._batch:
                return False
            self._enqueue(self._batch)
        return True

    def _waiting(self) -> bool:
        return any(point.key not in self._entries for point in self._batch)

    def _enqueue(self, batch: Sequence[Point]) -> None:
        """Restore the trials that ended before, and put the others into the queue."""
        self._points += batch
        unique = {point.key: point for point in batch}
        for point in unique.values():
            self._restore(point)
        self._decide()
        ended = {*self._entries, *self._ended, *self._stopped_before}
        todo = [point for key, point in unique.items() if key not in ended]
        if todo and not self.over():
            self._listener.loaded(self.rows.loaded.data.record)
            self._queue = self._grouped(todo)

    def _grouped(self, todo: Sequence[Point]) -> list[list[Point]]:
        """The trials in groups that train together; one that may be stopped trains by itself."""
        share = self.resources.share
        if share.workers > 1 or self.job.scheduler.population or self.watched:
            return [[point] for point in todo]
        jobs = {point.trial: point.job for point in todo if point.job}
        device = torch.device("cuda" if share.gpus else "cpu")
        features = self.rows.loaded.train.shape[1]
        dealt = pack.deal(jobs, self.job.pack, features, self.resources.fitting, device)
        if dealt.note:
            self._listener.note(dealt.note)
        return [[self._point(name) for name in group] for group in dealt.groups]

    def _remove_parents(self, batch: Sequence[Point]) -> None:
        """Once a generation has ended, nothing resumes from the one before it."""
        if any(entry.status == "failed" and entry.trial for entry in self._entries.values()):
            return  # the next session tries it again, and its result may choose other parents
        earlier = self._points[-2 * len(batch) : -len(batch)]
        for trial in [point.trial for point in earlier if point.until is not None]:
            self.store.remove_checkpoints(trial)

    # -- results of earlier sessions --------------------------------------------------------------

    def _restore(self, point: Point) -> None:
        """Read the result of a point from the store. Raises: DataError, ArtifactError."""
        if point.job is None:
            entry = Entry(trial="", status="failed", reason=point.reason, values=point.values)
            self._entries[point.key] = entry
            self._listener.known(entry)
            return
        trial = point.trial
        self._stopping.enter(trial, point.job.train.epochs)
        found = self.store.finished(point)
        if found is not None:
            self._note_other_quantile(trial, found.calibration, point.job.quantile)
            self.histories[trial] = found.history
            self._hold(found.entry, self._report_known)
            return
        stopped = self.store.stopped(trial)
        if stopped is None:
            return
        self.histories[trial] = stopped.history
        if point.until is not None:
            self._report_known(stopped.entry(point, point.until))
        else:
            self._stopped_before[trial] = stopped
            self._stopping.observe(trial, stopped.history)

    def _note_other_quantile(self, trial: str, found: Calibration, quantile: float) -> None:
        """Note once that trials were finished with another quantile, which no trial's name contains."""
        note = other_quantile(f"trial {trial}, maybe others as well,", found, quantile)
        if note and not self._noted_quantile:
            self._noted_quantile = True
            self._listener.note(note)

    # -- results of this session ------------------------------------------------------------------

    def started(self, names: Sequence[str]) -> None:
        """Trials got their process."""
        self._deadline.started(names)
        self._listener.started([self._point(name).values for name in names])

    def finished(self, trial: str, reason: str) -> None:
        """A trial ended; it failed if there is a reason."""
        point = self._point(trial)
        if reason:
            entry = Entry(trial=trial, status="failed", reason=reason, values=point.values)
        else:
            found = self.store.load(point)
            entry, self.histories[trial] = found.entry, found.history
        self._hold(entry, self._report_ended)
        self._requeue()

    def lost(self, names: Sequence[str]) -> None:
        """Trials lost their process: another one resumes them, `base.scale.max_failures` times."""
        self._losses.update(names)
        times = self._losses[names[0]]
        if times <= self.job.job.scale.max_failures:
            self._queue.insert(0, [self._point(name) for name in names])
            which = (
                "trial; another resumes it" if len(names) == 1 else "trials; another resumes them"
            )
            self._listener.note(f"lost the process of {len(names)} {which}")
            return
        for name in names:
            self.finished(name, f"its process died {times} times; did it run out of memory?")

    def epochs(self, trial: str, records: Sequence[Record]) -> None:
        """A trial that may be stopped completed epochs."""
        earlier = self.histories.get(trial, ())
        before = [record for record in earlier if record["epoch"] < records[0]["epoch"]]
        after = [record for record in earlier if record["epoch"] > records[-1]["epoch"]]
        self.histories[trial] = [*before, *records, *after]  # it may resume from an earlier epoch
        self._stopping.observe(trial, records)
        self._requeue()

    def should_stop(self, trial: str) -> bool:
        """True for a trial that the scheduler stopped, perhaps after an epoch before its newest."""
        return self._stopping.last_epoch(trial) is not None

    def stopped(self, trial: str, seconds: float) -> None:
        """A trial was stopped, unless all of them were."""
        if self.over():
            return
        point = self._point(trial)
        last = point.until or self._stopping.last_epoch(trial)
        assert last is not None  # only these two stop a single trial
        stopped = self.store.stop(trial, self.histories[trial], seconds)
        self._report_ended(self._stopped_after(last, point, stopped))

    def _stopped_after(self, epoch: int, point: Point, stopped: Stopped) -> Entry:
        """The entry of a stopped trial, whose later epochs are dropped."""
        self.histories[point.trial] = stopped.up_to(epoch)
        return stopped.entry(point, epoch)

    # -- which epoch is the last ------------------------------------------------------------------

    def _hold(self, entry: Entry, report: Callable[[Entry], None]) -> None:
        """Keep the entry of a trial that ended until the scheduler has compared all its epochs."""
        self._ended[entry.trial] = entry, report
        self._stopping.observe(entry.trial, self.histories.get(entry.trial, ()))
        self._stopping.ended(entry.trial)

    def _decide(self) -> list[Point]:
        """Report the trials that are decided by now; returns those stopped before that continue."""
        for trial in [trial for trial in self._ended if self._stopping.decided(trial)]:
            entry, report = self._ended.pop(trial)
            last = self._stopping.last_epoch(trial)
            if last is not None:  # it trained on after that epoch, or failed there
                history, seconds = self.histories[trial], entry.seconds or 0.0
                trained = Stopped(self.store.data_digest, history, seconds)
                if entry.status == "failed":
                    trained = self.store.stop(trial, history, seconds)
                entry = self._stopped_after(last, self._point(trial), trained)
            report(entry)
        resumed = []
        for trial in [trial for trial in self._stopped_before if self._stopping.decided(trial)]:
            point, stopped = self._point(trial), self._stopped_before.pop(trial)
            last = self._stopping.last_epoch(trial)
            if last is None:
                resumed.append(point)
            else:
                self._report_known(self._stopped_after(last, point, stopped))
        return resumed

    def _requeue(self) -> None:
        self._queue[:0] = [[point] for point in self._decide()]

    def _report_known(self, entry: Entry) -> None:
        self._entries[entry.trial] = entry
        self._listener.known(entry)

    def _report_ended(self, entry: Entry) -> None:
        self._entries[entry.trial] = entry
        uri = self.store.artifact_uri(entry.trial) if entry.status == "finished" else ""
        self._listener.ended(entry, uri, self.histories.get(entry.trial, ()))
        if time.monotonic() - self._saved > SAVE_S:
            self.leaderboard(ended=False).save(self.folder)
            self._saved = time.monotonic()

    # -- the end ----------------------------------------------------------------------------------

    def metric(self, point: Point) -> float | None:
        """The metric that the search learns from; None for a failed trial."""
        entry = self._entries.get(point.key)
        value: float | None = getattr(entry, self.job.metric) if entry else None
        return value

    def over(self) -> bool:
        """True when patience or time has run out."""
        return self._deadline.over or self._counted() < len(self._points)

    def _counted(self) -> int:
        """How many points count: those after patience ran out do not, trained or not."""
        return self._settled() or len(self._points)

    def _settled(self) -> int | None:
        """The number of points at which patience ran out; None if it has not."""
        if self.job.stop is None:
            return None
        ended = []
        for point in self._points:
            if point.key not in self._entries:
                break
            ended.append(self.metric(point))
        return settled(ended, self.job.stop, self.job.mode)

    def close(self) -> Leaderboard:
        """The leaderboard at the end of the session; notes what ended it."""
        ended, most = sum(p.key in self._entries for p in self._points), self._search.most
        cut = self._deadline.over and ended < most and not self._settled()
        if cut:
            self._listener.note(self._deadline.note([*self._entries], ended, most))
        elif self.job.stop is not None and self._settled() and self._counted() < most:
            self._listener.note(
                f"stop: no improvement in {self.job.stop.patience} trials; {self._counted()} of at most "
                f"{most} trials count"
            )
        return self.leaderboard(ended=not cut)

    def leaderboard(self, ended: bool) -> Leaderboard:
        """The leaderboard of what is known so far; with the PCA baseline once the sweep has ended."""
        counted = self._points[: self._counted()]
        # Of a population the last generation, or the last one that started.
        points = [point for point in counted if point.until is None] or self._batch or counted
        unique = {point.key: point for point in points}.values()
        entries = [self._entries.get(point.key) or self._unfinished(point) for point in unique]
        if ended:
            jobs = {point.trial: point.job for point in self._points if point.job}
            entries = self._baseline.compared(entries, jobs, self.rows)
        name, metric, mode = self.job.name or "sweep", self.job.metric, self.job.mode
        return ranked(name, metric, entries, mode, ended)

    def _unfinished(self, point: Point) -> Entry:
        """The entry of a trial whose result is not known, with the reason."""
        entry, _ = self._ended.get(point.trial, (None, None))
        if entry is not None and entry.status == "failed":
            return entry
        undecided = entry is not None or point.trial in self._stopped_before
        reason = UNDECIDED if undecided else self._deadline.reason(point.trial)
        return Entry(trial=point.trial, status="failed", reason=reason, values=point.values)

    @property
    def widths(self) -> dict[str, int]:
        """The code width of each trial."""
        return {p.trial: p.job.model.network.code_width for p in self._points if p.job}

    def _progress(self, trial: str) -> tuple[bool, list[list[str]]]:
        job = self._point(trial).job
        assert job is not None  # it trains
        return self.store.progress(trial, job.train.seeds)

    def _point(self, trial: str) -> Point:
        return next(point for point in reversed(self._points) if point.trial == trial)
