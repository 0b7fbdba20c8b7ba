"""Recording a run: the driver appends events to an outbox, a thread delivers them to the backend.

Training never waits for the backend. What it does not accept now is delivered by the next run or by
`hourglass models sync`; delivering an event twice changes nothing.
"""

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hourglass import storage
from hourglass.errors import explain
from hourglass.settings import Settings
from hourglass.tracking.backend import MANIFEST, Registered, RunWriter
from hourglass.tracking.locks import private_folder, try_locked
from hourglass.tracking.outbox import FOLDER, Outbox
from hourglass.tracking.records import found_anywhere, named
from hourglass.tracking.registry import open_tracker

if TYPE_CHECKING:
    from hourglass.artifact import Manifest
    from hourglass.config.train import TrainJob

FINISH_S = 60.0
"""Longest that `finish` waits for the backend."""
ATTEMPTS = 2
"""Failed attempts in a row after which `finish` stops waiting."""
RETRY_S = 15.0
"""Longest pause between two attempts while training runs."""


@dataclass(frozen=True)
class Finished:
    """Where the run is recorded, and what it registered; `note` is the message for the user."""

    run_id: str | None
    registered: Registered | None
    note: str

    @property
    def version(self) -> str | None:
        """The version that was registered."""
        return self.registered.version if self.registered else None


def start(settings: Settings, job: "TrainJob", dataset: dict[str, Any]) -> "RunRecorder":
    """Begin (or resume) recording `job`; returns at once and never raises.

    `dataset` holds plain JSON values; MLflow shows `name`, `uri` and `digest` in fields of their own
    and the rest as the profile.
    """
    return RunRecorder(settings, job, {**_who(job), "dataset": dataset})


def again(settings: Settings, job: "TrainJob", uri: str, made: "Manifest") -> "RunRecorder":
    """Continue recording a run of `job` that has ended, from its artifact at `uri`.

    `made` is the artifact's manifest. Everything is delivered at `finish`.
    """
    from hourglass.data.manifest import locate

    who, known = _who(job), made.provenance
    end_ms = storage.modified_ms(storage.join(uri, MANIFEST))
    begin = {
        **who,
        "job": {**made.job, "track": who["job"]["track"]},
        "hourglass": known.get("packages", {}).get("hourglass", who["hourglass"]),
        "dataset": {**locate(job.data.uri), **known.get("dataset", {})},
        "ended": True,
        "time_ms": end_ms - round(1000 * known.get("seconds", 0.0)),
    }
    return RunRecorder(settings, job, begin, time_ms=end_ms)


class RunRecorder:
    """Records one run. No method raises for the backend; only `finish` waits, for a bounded time.

    `time_ms` is when the run ended, if it has ended before.
    """

    def __init__(
        self, settings: Settings, job: "TrainJob", begin: dict[str, Any], **time_ms: int
    ) -> None:
        self._register_as, self._time_ms = job.track.register_as, time_ms
        self._sender = Sender(settings, job.run_name, begin)

    def log(self, record: dict[str, float], epoch: int) -> None:
        """Record the metrics of an epoch; those of an ensemble's member 2 as `member_2/NAME`."""
        self._sender.put("epoch", epoch=epoch, metrics=named(record))

    def finish(self, status: Literal["finished", "failed"], artifact_uri: str | None) -> Finished:
        """Record the artifact and the end; wait at most `FINISH_S` while events are delivered."""
        if artifact_uri is not None:
            made = {"uri": artifact_uri, "register_as": self._register_as}
            self._sender.put("artifact", **made, **self._time_ms)
        self._sender.put("end", status=status, **self._time_ms)
        note = self._sender.close()
        writer = self._sender.writer
        return Finished(
            writer.run_id if writer else None, writer.registered if writer else None, note
        )


class Sender:
    """Appends to an outbox; a daemon thread delivers it, and what earlier runs left behind.

    No method raises for errors of the backend or the disk; only `settle` and `close` wait, together at
    most `FINISH_S`.
    """

    def __init__(self, settings: Settings, name: str, begin: dict[str, Any]) -> None:
        self.writer: RunWriter | None = None
        self._settings = settings
        self._tracker = open_tracker(settings)
        self._outbox = Outbox(settings.root / FOLDER, name)
        self._changed = threading.Condition()  # guards everything below
        self._lost = 0
        self._unwritten = ""
        self._problem = ""
        self._elsewhere: list[str] = []
        self._begin = begin
        self._artifact: dict[str, Any] | None = None
        self._trials: set[str] = set()
        self._failures = 0
        self._delivered = False
        self._until: float | None = None
        self._stopping = False
        self.put("begin", **{**begin, "dataset": found_anywhere(begin["dataset"])})
        self._thread = threading.Thread(target=self._work, name="hourglass-tracking", daemon=True)
        self._thread.start()

    def put(self, kind: str, **fields: Any) -> None:
        """Append an event; returns at once."""
        with self._changed:
            if kind == "artifact":
                self._artifact = fields
            if kind == "trials":
                self._trials |= {record["trial"] for record in fields["trials"]}
        try:
            self._outbox.append(kind, **fields)
        except OSError as error:  # a full disk must not stop a training run
            with self._changed:
                self._lost += 1
                self._unwritten = error.strerror or explain(error)
            return
        with self._changed:
            self._delivered = False
            self._changed.notify_all()

    def settle(self) -> bool:
        """Wait until everything that was put is delivered; False when that takes too long."""
        with self._changed:
            if self._until is None:
                self._failures, self._until = 0, time.monotonic() + FINISH_S
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._delivered or self._failures >= ATTEMPTS,
                max(0.0, self._until - time.monotonic()),
            )
            return self._delivered

    def close(self) -> str:
        """`settle`, then stop; the message about what is recorded."""
        self.settle()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            return self._summary()

    def _summary(self) -> str:
        if self._delivered:
            run_id = self.writer.run_id if self.writer else None
            refused = self.writer.refused if self.writer else []
            parts = [f"recorded in {self._tracker.title} as run {run_id}", *refused]
        else:
            parts = [
                f"{self._tracker.title} has not taken everything: {self._problem or 'it is too slow'}; "
                f"the rest waits in {self._outbox.path}, `hourglass models sync` delivers it"
            ]
        if self._lost:
            events = "1 event is" if self._lost == 1 else f"{self._lost} events are"
            parts.append(
                f"{events} lost, {self._outbox.path} cannot be written: {self._unwritten}; the same "
                "command records what is missing"
            )
        return "; ".join([*parts, *self._elsewhere])

    def _work(self) -> None:
        others: list[Outbox] | None = None
        while not self._stopping:
            try:
                self._deliver()
                if others is None:
                    every = outboxes(self._settings)
                    others = [other for other in every if other.path != self._outbox.path]
                while others and self._idle():
                    self._deliver_other(others.pop(0))
                with self._changed:
                    self._changed.wait_for(lambda: not self._idle())
            except AlreadyDelivering as error:  # which serves as well
                if self.writer is not None:
                    self.writer.forget()
                self._pause(str(error), failures=0)
            except Exception as error:  # training continues whatever the backend raises
                self._pause(explain(error), failures=1)

    def _deliver(self) -> None:
        if self.writer is None:
            self.writer = self._tracker.writer(self._outbox.begin())
        drain(self._outbox, self._settings, self.writer)
        if delivered := next(self._outbox.pending(), None) is None:
            self.writer.recall(self._begin, self._artifact, self._trials)
        with self._changed:
            self._failures, self._problem = 0, ""
            self._delivered = delivered
            self._changed.notify_all()

    def _deliver_other(self, outbox: Outbox) -> None:
        """Deliver what an earlier run left; what is refused of it is reported with this one."""
        writer = self._tracker.writer(outbox.begin())
        try:
            drain(outbox, self._settings, writer)
        finally:
            with self._changed:
                self._elsewhere += [f"{outbox.run_name}: {message}" for message in writer.refused]

    def _idle(self) -> bool:
        return self._delivered and not self._stopping

    def _pause(self, problem: str, failures: int) -> None:
        with self._changed:
            self._problem = problem
            self._failures += failures
            self._changed.notify_all()
            until = self._until
            seconds = 0.5 if until else min(RETRY_S, 2.0 ** min(self._failures, 9))
            self._changed.wait_for(lambda: self._stopping or self._until is not until, seconds)


def outboxes(settings: Settings) -> list[Outbox]:
    """The outboxes of all runs that have something to deliver, oldest first."""
    waiting = Outbox.all(settings.root / FOLDER)
    return [outbox for outbox in waiting if next(outbox.pending(), None) is not None]


class AlreadyDelivering(Exception):
    """Another process is delivering the same outbox."""


def drain(outbox: Outbox, settings: Settings, writer: RunWriter | None = None) -> None:
    """Deliver all pending events of `outbox`, in order, with the writer of those before, if any.

    Raises errors of the backend, with the position of the last delivered event recorded, and
    AlreadyDelivering.
    """
    private_folder(outbox.path.parent)
    with try_locked(outbox.lock) as ours:
        if not ours:
            raise AlreadyDelivering(f"another process delivers {outbox.path}")
        for position, event in outbox.pending():
            writer = writer or open_tracker(settings).writer(outbox.begin())
            writer.deliver(event)
            outbox.mark(position)
        outbox.clear()


@dataclass(frozen=True)
class Synced:
    """A message per run, and how many runs still have something to deliver."""

    messages: list[str]
    left: int


def sync(settings: Settings) -> Synced:
    """Deliver every outbox; does not raise errors of the backend."""
    messages, left = [], 0
    for outbox in outboxes(settings):
        refused: list[str] = []
        try:
            writer = open_tracker(settings).writer(outbox.begin())
            refused = writer.refused
            drain(outbox, settings, writer)
            what = "delivered"
        except AlreadyDelivering as error:
            left += 1
            what = str(error)
        except Exception as error:
            left += 1
            what = f"{explain(error)}; the rest stays in {outbox.path}"
        messages.append("; ".join([f"{outbox.run_name}: {what}", *refused]))
    return Synced(messages, left)


def _who(job: "TrainJob") -> dict[str, Any]:
    from hourglass import __version__
    from hourglass.config import files

    return {
        "run": job.run_name,
        "experiment": job.track.experiment,
        "job": files.dump(job),
        "hourglass": __version__,
    }
