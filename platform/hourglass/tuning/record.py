"""A sweep in MLflow: a run of its own, and a child run for each trial that has ended.

The driver reports events and continues; they wait in its outbox until MLflow has them (see
tracking/tracker.py). A trial is reported whole once it has ended, so a killed driver leaves no partial
run.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hourglass import __version__, storage
from hourglass.config.files import dump
from hourglass.config.tune import TuneJob
from hourglass.settings import Settings
from hourglass.tracking import Registered, Sender
from hourglass.training.state import Record
from hourglass.tuning.leaderboard import JSON, NAME, WRITERS, Entry, Leaderboard
from hourglass.tuning.plots import PAGE
from hourglass.tuning.progress import Listener
from hourglass.tuning.store import artifact_uri
from hourglass.tuning.trial import Resources

FILES = (JSON, *(f"{NAME}.{suffix}" for suffix in WRITERS), PAGE)
PREFIX = "leaderboard"
"""Prefix of a trial's final metrics; the metrics of its epochs have plain names."""
SEPARATE = ("rank", "trial", "status", "values", "run_id")
"""Fields of an entry that are neither metrics nor tags of the trial's run."""


@dataclass(frozen=True)
class Recorded:
    """Where a sweep is recorded: the runs by trial, and the leaderboard that names them.

    `registered` is the version of the best trial's model, `note` a message for the user.
    """

    parent_id: str | None
    run_ids: dict[str, str]
    registered: Registered | None
    note: str
    board: Leaderboard | None

    @property
    def version(self) -> str | None:
        """The registered version."""
        return self.registered.version if self.registered else None


def start(
    settings: Settings, sweep: TuneJob, dataset: dict[str, Any], ended: bool = False
) -> "Recorder":
    """Start or continue recording `sweep`; returns at once and never raises.

    A sweep is identified by its name and its rows: on other shards it is another sweep. One that has
    already `ended` is not shown as running again.
    """
    name = sweep.name or "sweep"
    run = f"{name}@{str(dataset.get('digest') or '')[:8] or 'rows'}"
    begin = {
        "run": run,
        "shown": name,
        "tags": {"hourglass.sweep": name},
        "experiment": sweep.job.track.experiment,
        "job": dump(sweep),
        "hourglass": __version__,
        "dataset": dataset,
        "ended": ended,
    }
    return Recorder(Sender(settings, run, begin))


class Recorder:
    """Reports each trial to MLflow. `ended` returns at once; only `finish` waits, for a bounded time."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._reported: dict[str, dict[str, Any]] = {}

    def ended(
        self, entry: Entry, uri: str | None, history: Sequence[Mapping[str, float]] = ()
    ) -> None:
        """A trial ended just now; `history` is used only if it has no artifact, which records it."""
        epochs = [] if uri else [dict(record) for record in history]
        report = _report(entry, uri or None, epochs, _now_ms())
        self._reported[report["trial"]] = report
        self._sender.put("trials", trials=[report])

    def finish(
        self,
        board: Leaderboard | None,
        status: Literal["finished", "failed"],
        folder: str,
        register: str | None,
    ) -> Recorded:
        """Record the leaderboard and the files in `folder`, register the best trial, end the run.

        Trials that were not reported yet, or have changed, are reported too. The leaderboard is saved
        again with the ids of the runs that MLflow created. Waits for MLflow as long as a training run
        does. `board` is None when the sweep failed.
        Raises: OSError when the leaderboard cannot be written.
        """
        if board is not None:
            self._report_changed(board, folder)
            self._sender.settle()
            board = with_runs(board, self._run_ids(board))
            board.save(folder)
            files = [name for name in FILES if storage.exists(storage.join(folder, name))]
            self._sender.put("board", folder=folder, files=files, **_summary(board))
            best = board.best
            if register is not None and best is not None:
                uri = artifact_uri(folder, best.trial)
                self._sender.put("artifact", uri=uri, register_as=register, trial=run_name(best))
        self._sender.put("end", status=status)
        note = self._sender.close()
        writer = self._sender.writer
        return Recorded(
            writer.run_id if writer else None,
            self._run_ids(board) if board is not None else {},
            writer.registered if writer else None,
            note,
            board,
        )

    def _report_changed(self, board: Leaderboard, folder: str) -> None:
        """Report every trial that `ended` did not report as it is now, as one event.

        Without trials that are not known to have ended: failures of this session were reported.
        """
        changed = []
        for entry in board.entries:
            before = self._reported.get(run_name(entry))
            if before is None and entry.status == "failed" and entry.trial:
                continue
            uri = artifact_uri(folder, entry.trial) if entry.status == "finished" else None
            if before is None:
                report = _report(entry, uri, [], None)
            else:
                uri = uri or before["artifact"]
                report = _report(entry, uri, before["history"], before["ended_ms"])
            if report != before:
                changed.append(report)
        if changed:
            self._sender.put("trials", trials=changed)

    def _run_ids(self, board: Leaderboard) -> dict[str, str]:
        """The runs of the trials of this leaderboard; MLflow may have runs of others."""
        known = self._sender.writer.run_ids if self._sender.writer else {}
        trials = [run_name(entry) for entry in board.entries]
        return {trial: known[trial] for trial in trials if trial in known}


def run_name(entry: Entry) -> str:
    """The name of the entry's run: the trial's, or for a point that makes no job a hash of its values."""
    if entry.trial:
        return entry.trial
    values = json.dumps(entry.values, sort_keys=True, default=str)
    return f"invalid-{hashlib.sha256(values.encode()).hexdigest()[:8]}"


def with_runs(board: Leaderboard, run_ids: Mapping[str, str]) -> Leaderboard:
    """The leaderboard with the ids of the MLflow runs known so far."""
    entries = [
        entry.having(run_id=run_ids.get(run_name(entry), entry.run_id)) for entry in board.entries
    ]
    return Leaderboard.model_validate({**dict(board), "entries": tuple(entries)})


def _report(
    entry: Entry, uri: str | None, history: list[dict[str, float]], ended_ms: int | None
) -> dict[str, Any]:
    """What MLflow records of a trial: numbers as metrics, everything else as tags."""
    fields = {k: v for k, v in entry.model_dump(mode="json").items() if k not in SEPARATE}
    numbers = {k: v for k, v in fields.items() if type(v) in (int, float)}  # bool is an int, too
    others = {k: v for k, v in fields.items() if k not in numbers and v is not None}
    return {
        "trial": run_name(entry),
        "status": entry.status,
        "values": entry.values,
        "metrics": {f"{PREFIX}/{name}": float(value) for name, value in numbers.items()},
        "tags": {f"hourglass.{name}": _text(value) for name, value in others.items()},
        "seconds": entry.seconds,
        "artifact": uri,
        "history": history,
        "ended_ms": ended_ms,
    }


def _summary(board: Leaderboard) -> dict[str, Any]:
    """The metrics of the best trial, and how many trials finished, stopped and failed."""
    best = board.best
    ends = Counter(entry.status for entry in board.entries)
    metrics = {f"trials/{how}": float(ends[how]) for how in ("finished", "stopped", "failed")}
    if best is None:
        return {"metrics": metrics, "tags": {"hourglass.best": "none"}}
    report = _report(best, None, [], None)
    return {"metrics": metrics | report["metrics"], "tags": {"hourglass.best": report["trial"]}}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class RecordingListener:
    """A listener that shows progress and records the sweep in MLflow."""

    def __init__(self, progress: Listener, job: TuneJob, settings: Settings) -> None:
        self._progress, self._job, self._settings = progress, job, settings
        self._recorder: Recorder | None = None
        self._dataset: dict[str, Any] | None = None

    def recorder(self, ended: bool = False) -> Recorder:
        """The recorder of the sweep; `ended` if there was nothing left to train when it began."""
        assert self._dataset is not None
        if self._recorder is None:
            self._recorder = start(self._settings, self._job, self._dataset, ended)
        return self._recorder

    def finish(self, board: Leaderboard, folder: str, register: bool) -> tuple[Recorded, list[str]]:
        """Record the leaderboard, register the best trial if asked to; messages for the user."""
        best, model, none = board.best, self._job.job.track.register_as, "no trial was registered"
        recorder = self.recorder(ended=True)
        recorded = recorder.finish(board, "finished", folder, model if register and best else None)
        if recorded.registered is not None and best is not None:
            message = (
                f"{recorded.registered.summary}: trial {best.trial}, the best by {board.metric}"
            )
        elif not register:
            message = f"{none}: --refit registers the run on all rows"
        elif model is None:
            message = f"{none}: base.track.register names no model"
        elif best is None:
            message = f"{none} as {model}: none finished"
        else:
            message = (
                f"{none} as {model}: the model of trial {best.trial} has not been delivered yet; run the "
                "same command again to register it"
            )
        return recorded, [recorded.note, message]

    def finish_failed(self, folder: str) -> None:
        """The sweep was interrupted or failed; nothing is recorded of one that trained nothing."""
        if self._recorder is not None:
            self._recorder.finish(None, "failed", folder, None)

    def sweeping(self, trials: int, resources: Resources, dataset: dict[str, Any]) -> None:
        self._dataset = dataset
        self._progress.sweeping(trials, resources, dataset)

    def known(self, entry: Entry) -> None:
        self._progress.known(entry)

    def loaded(self, dataset: dict[str, Any]) -> None:
        self.recorder()
        self._progress.loaded(dataset)

    def note(self, text: str) -> None:
        self._progress.note(text)

    def started(self, values: Sequence[dict[str, Any]]) -> None:
        self._progress.started(values)

    def ended(self, entry: Entry, uri: str, history: Sequence[Record]) -> None:
        if entry.status != "stopped" or not self._job.scheduler.population:  # one generation only
            self.recorder().ended(entry, uri or None, history)
        self._progress.ended(entry, uri, history)
