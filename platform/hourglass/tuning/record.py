"""A sweep in MLflow: its own run, and one below it for each trial that has ended.

The driver says what happened and goes on; what it says waits on its disk until MLflow has it (see
tracking/tracker.py). A trial is said whole when it has ended, so no killed driver leaves a half one.
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
from hourglass.tracking import Outbox, Registered
from hourglass.tuning.leaderboard import JSON, NAME, WRITERS, Entry, Leaderboard
from hourglass.tuning.plots import PAGE
from hourglass.tuning.trial import artifact_of, trial_folder

FILES = (JSON, *(f"{NAME}.{suffix}" for suffix in WRITERS), PAGE)
PLACE = "leaderboard"
"""Before the names of a trial's final figures: those of its epochs have the plain names."""
SAID_APART = ("rank", "trial", "status", "values", "run_id")


@dataclass(frozen=True)
class Recorded:
    """Where a sweep is recorded: runs by trial, and the leaderboard with them in it.

    `registered` is the version of the best trial's model; `note` the sentence for the user.
    """

    parent_id: str | None
    run_ids: dict[str, str]
    registered: Registered | None
    note: str
    board: Leaderboard | None

    @property
    def version(self) -> str | None:
        """The version that was registered."""
        return self.registered.version if self.registered else None


def start(
    settings: Settings, sweep: TuneJob, dataset: dict[str, Any], ended: bool = False
) -> "Recorder":
    """Begin, or go on with, recording `sweep`; returns at once and never raises.

    A sweep is known by its name and its rows: on other shards it is another one. One that has `ended`
    before is not shown as running again.
    """
    name = sweep.name or "sweep"
    known = f"{name}@{str(dataset.get('digest') or '')[:8] or 'rows'}"
    begin = {
        "run": known,
        "shown": name,
        "tags": {"hourglass.sweep": name},
        "experiment": sweep.job.track.experiment,
        "job": dump(sweep),
        "hourglass": __version__,
        "dataset": dataset,
        "ended": ended,
    }
    return Recorder(Outbox(settings, known, begin))


class Recorder:
    """Hears what became of each trial. `ended` returns at once; only `finish` waits, bounded."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._told: dict[str, dict[str, Any]] = {}

    def ended(
        self, entry: Entry, artifact_uri: str | None, history: Sequence[Mapping[str, float]] = ()
    ) -> None:
        """A trial ended just now; `history` are the epochs of one that left no artifact."""
        apart = (
            [] if artifact_uri else [dict(record) for record in history]
        )  # the artifact has them
        told = _told(entry, artifact_uri or None, apart, _now_ms())
        self._told[told["trial"]] = told
        self._outbox.put("trials", trials=[told])

    def finish(
        self,
        board: Leaderboard | None,
        status: Literal["finished", "failed"],
        folder: str,
        register: str | None,
    ) -> Recorded:
        """Record the leaderboard and the files in `folder`, register the best trial's artifact, end.

        Trials that ended while nobody listened, or of which more is known now, are told again. The
        leaderboard is saved anew with the runs in it as soon as MLflow has said them. Waits for
        MLflow as long as a single run does. `board` is None when there is none: the sweep failed.
        Raises: OSError when the leaderboard cannot be written.
        """
        if board is not None:
            self._tell_the_rest(board, folder)
            self._outbox.settle()
            board = with_runs(board, self._run_ids(board))
            board.save(folder)
            files = [name for name in FILES if storage.exists(storage.join(folder, name))]
            self._outbox.put("board", folder=folder, files=files, **_summary(board))
            best = board.best
            if register is not None and best is not None:
                uri = artifact_of(trial_folder(folder, best.trial))
                trial = known_as(best)
                self._outbox.put("artifact", uri=uri, register_as=register, trial=trial)
        self._outbox.put("end", status=status)
        note = self._outbox.close()
        delivery = self._outbox.delivery
        return Recorded(
            delivery.run_id if delivery else None,
            self._run_ids(board) if board is not None else {},
            delivery.registered if delivery else None,
            note,
            board,
        )

    def _tell_the_rest(self, board: Leaderboard, folder: str) -> None:
        """Everything that `ended` did not say, or said otherwise, as one event.

        Not those that ran out of time before they ended: whoever failed in this sitting was heard.
        """
        rest = []
        for entry in board.entries:
            before = self._told.get(known_as(entry))
            if before is None and entry.status == "failed" and entry.trial:
                continue
            uri = (
                artifact_of(trial_folder(folder, entry.trial))
                if entry.status == "finished"
                else None
            )
            if before is not None:
                told = _told(
                    entry, uri or before["artifact"], before["history"], before["ended_ms"]
                )
            else:
                told = _told(entry, uri, [], None)
            if told != before:
                rest.append(told)
        if rest:
            self._outbox.put("trials", trials=rest)

    def _run_ids(self, board: Leaderboard) -> dict[str, str]:
        """The runs of the trials of this leaderboard: MLflow may know of more."""
        known = self._outbox.delivery.run_ids if self._outbox.delivery else {}
        trials = [known_as(entry) for entry in board.entries]
        return {trial: known[trial] for trial in trials if trial in known}


def known_as(entry: Entry) -> str:
    """The trial's name; of a point that makes no job, a hash of its values."""
    if entry.trial:
        return entry.trial
    values = json.dumps(entry.values, sort_keys=True, default=str)
    return f"invalid-{hashlib.sha256(values.encode()).hexdigest()[:8]}"


def with_runs(board: Leaderboard, run_ids: Mapping[str, str]) -> Leaderboard:
    """The same leaderboard with the MLflow runs that are known now."""
    entries = [
        entry.having(run_id=run_ids.get(known_as(entry), entry.run_id)) for entry in board.entries
    ]
    return Leaderboard.model_validate({**dict(board), "entries": tuple(entries)})


def _told(
    entry: Entry, uri: str | None, history: list[dict[str, float]], ended_ms: int | None
) -> dict[str, Any]:
    """What MLflow is to hold of a trial: numbers as metrics, all else as tags."""
    more = {k: v for k, v in entry.model_dump(mode="json").items() if k not in SAID_APART}
    numbers = {k: v for k, v in more.items() if type(v) in (int, float)}  # a truth is an int, too
    words = {k: v for k, v in more.items() if k not in numbers and v is not None}
    return {
        "trial": known_as(entry),
        "status": entry.status,
        "values": entry.values,
        "metrics": {f"{PLACE}/{name}": float(value) for name, value in numbers.items()},
        "tags": {f"hourglass.{name}": _text(word) for name, word in words.items()},
        "seconds": entry.seconds,
        "artifact": uri,
        "history": history,
        "ended_ms": ended_ms,
    }


def _summary(board: Leaderboard) -> dict[str, Any]:
    """The best trial's figures and how the trials ended."""
    best = board.best
    ends = Counter(entry.status for entry in board.entries)
    metrics = {f"trials/{how}": float(ends[how]) for how in ("finished", "stopped", "failed")}
    if best is None:
        return {"metrics": metrics, "tags": {"hourglass.best": "none"}}
    told = _told(best, None, [], None)
    return {"metrics": metrics | told["metrics"], "tags": {"hourglass.best": told["trial"]}}


def _text(word: Any) -> str:
    return word if isinstance(word, str) else json.dumps(word)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
