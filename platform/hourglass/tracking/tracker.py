"""The tracker: the driver says what happened, a thread tells MLflow, training never waits for it.

Each event goes to the spool first (see spool.py). What MLflow does not take now is taken by the
next run's tracker or by `hourglass models sync`; a second delivery changes nothing.
"""

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from hourglass import storage
from hourglass.settings import Settings
from hourglass.tracking.facts import found_anywhere, named
from hourglass.tracking.locks import private_folder, try_locked
from hourglass.tracking.outbox import Spool
from hourglass.tracking.shown import explain, redact
from hourglass.tracking.trials import MANIFEST

if TYPE_CHECKING:
    from hourglass.artifact import Manifest
    from hourglass.config.train import TrainJob
    from hourglass.tracking.mlflow import Delivery
    from hourglass.tracking.registry import Registered

FINISH_S = 60.0
"""Longest that `finish` waits for MLflow."""
ATTEMPTS = 2
"""Failed attempts in a row after which `finish` stops waiting."""
RETRY_S = 15.0
"""Longest pause between two attempts while training runs."""


@dataclass(frozen=True)
class Finished:
    """Where the run is recorded, what it registered; `note` is the sentence for the user."""

    run_id: str | None
    registered: "Registered | None"
    note: str

    @property
    def version(self) -> str | None:
        """The version that was registered."""
        return self.registered.version if self.registered else None


class Tracker(Protocol):
    """Records one run. Neither method raises; only `finish` waits, for a bounded time."""

    def log(self, record: dict[str, float], epoch: int) -> None:
        """Record the metrics of an epoch; those of an ensemble's member 2 as `member_2/NAME`."""

    def finish(self, status: Literal["finished", "failed"], artifact_uri: str | None) -> Finished:
        """Record the artifact and the end, and deliver what MLflow takes."""


def start(settings: Settings, job: "TrainJob", dataset: dict[str, Any]) -> Tracker:
    """Begin (or resume) recording `job`; returns at once and never raises.

    `dataset` holds plain JSON values; `name`, `uri` and `digest` are shown where MLflow has a place
    for them, the rest as its profile.
    """
    return SpooledTracker(settings, job, {**_who(job), "dataset": dataset})


def again(settings: Settings, job: "TrainJob", uri: str, made: "Manifest") -> Tracker:
    """Go on with recording a run of `job` that has ended before, with the artifact at `uri`.

    What MLflow has not comes from that: `made` is its manifest. MLflow is told at `finish`.
    """
    from hourglass.data.manifest import locate

    who, said = _who(job), made.provenance
    end_ms = storage.modified_ms(storage.join(uri, MANIFEST))
    begin = {
        **who,
        "job": {**made.job, "track": who["job"]["track"]},
        "hourglass": said.get("packages", {}).get("hourglass", who["hourglass"]),
        "dataset": {**locate(job.data.uri), **said.get("dataset", {})},
        "ended": True,
        "time_ms": end_ms - round(1000 * said.get("seconds", 0.0)),
    }
    return SpooledTracker(settings, job, begin, time_ms=end_ms)


class SpooledTracker:
    """One run's tracker: an outbox, and what its job says about the artifact's name.

    `time_ms` is when the run ended, where that was before.
    """

    def __init__(
        self, settings: Settings, job: "TrainJob", begin: dict[str, Any], **time_ms: int
    ) -> None:
        self._register_as, self._time_ms = job.track.register_as, time_ms
        self._outbox = Outbox(settings, job.run_name, begin)

    def log(self, record: dict[str, float], epoch: int) -> None:
        """Record the metrics of an epoch."""
        self._outbox.put("epoch", epoch=epoch, metrics=named(record))

    def finish(self, status: Literal["finished", "failed"], artifact_uri: str | None) -> Finished:
        """Record the artifact and the end; wait at most `FINISH_S` while MLflow takes events."""
        if artifact_uri is not None:
            told = {"uri": artifact_uri, "register_as": self._register_as}
            self._outbox.put("artifact", **told, **self._time_ms)
        self._outbox.put("end", status=status, **self._time_ms)
        note = self._outbox.close()
        delivery = self._outbox.delivery
        return Finished(
            delivery.run_id if delivery else None, delivery.registered if delivery else None, note
        )


class Outbox:
    """Appends to a spool; one daemon thread delivers it, and what earlier runs left behind.

    No method raises for what MLflow or the disk does; only `settle` and `close` wait, together at
    most `FINISH_S`.
    """

    def __init__(self, settings: Settings, name: str, begin: dict[str, Any]) -> None:
        self.delivery: Delivery | None = None
        self._settings = settings
        self._spool = Spool(settings.root / "spool", name)
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
                self._trials |= {told["trial"] for told in fields["trials"]}
        try:
            self._spool.append(kind, **fields)
        except OSError as error:  # a full disk must not stop a training run
            with self._changed:
                self._lost += 1
                self._unwritten = error.strerror or explain(error)
            return
        with self._changed:
            self._delivered = False
            self._changed.notify_all()

    def settle(self) -> bool:
        """Wait until MLflow has everything that was put; False when it did not take it in time."""
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
        """`settle`, then stop; the sentence about what MLflow has."""
        self.settle()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            return self._said()

    def _said(self) -> str:
        uri = redact(self._settings.mlflow_uri)
        if self._delivered:
            run_id = self.delivery.run_id if self.delivery else None
            refused = self.delivery.refused if self.delivery else []
            said = [f"recorded in MLflow ({uri}) as run {run_id}", *refused]
        else:
            said = [
                f"MLflow ({uri}) has not taken everything: {self._problem or 'it is too slow'}; "
                f"the rest waits in {self._spool.path}, `hourglass models sync` delivers it"
            ]
        if self._lost:
            events = "1 event is" if self._lost == 1 else f"{self._lost} events are"
            said.append(
                f"{events} lost, {self._spool.path} cannot be written: {self._unwritten}; the same "
                "command tells MLflow what is missing"
            )
        return "; ".join([*said, *self._elsewhere])

    def _work(self) -> None:
        others: list[Spool] | None = None
        while not self._stopping:
            try:
                self._deliver()
                if others is None:
                    others = [s for s in spools(self._settings) if s.path != self._spool.path]
                while others and self._idle():
                    self._deliver_other(others.pop(0))
                with self._changed:
                    self._changed.wait_for(lambda: not self._idle())
            except Delivering as error:  # which is as good
                if self.delivery is not None:
                    self.delivery.forget()
                self._pause(str(error), failures=0)
            except Exception as error:  # whatever MLflow does, training goes on
                self._pause(explain(error), failures=1)

    def _deliver(self) -> None:
        if self.delivery is None:
            self.delivery = _delivery(self._spool, self._settings)
        drain(self._spool, self._settings, self.delivery)
        if delivered := next(self._spool.pending(), None) is None:
            self.delivery.recall(self._begin, self._artifact, self._trials)
        with self._changed:
            self._failures, self._problem = 0, ""
            self._delivered = delivered
            self._changed.notify_all()

    def _deliver_other(self, spool: Spool) -> None:
        """Deliver what an earlier run left; what MLflow refuses of it is said at the end of this one."""
        delivery = _delivery(spool, self._settings)
        try:
            drain(spool, self._settings, delivery)
        finally:
            with self._changed:
                self._elsewhere += [f"{spool.run_name}: {said}" for said in delivery.refused]

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


def spools(settings: Settings) -> list[Spool]:
    """The spools of all runs that have something to deliver, oldest first."""
    waiting = Spool.all(settings.root / "spool")
    return [spool for spool in waiting if next(spool.pending(), None) is not None]


class Delivering(Exception):
    """Another process delivers the same spool just now."""


def drain(spool: Spool, settings: Settings, delivery: "Delivery | None" = None) -> None:
    """Deliver all pending events of `spool`, in order, with the delivery that went on so far.

    Raises whatever MLflow raises, with the position of the last delivered event recorded, and
    Delivering.
    """
    private_folder(spool.path.parent)
    with try_locked(spool.lock) as ours:
        if not ours:
            raise Delivering(f"another process delivers {spool.path}")
        for position, event in spool.pending():
            delivery = delivery or _delivery(spool, settings)
            delivery.deliver(event)
            spool.mark(position)
        spool.clear()


def _delivery(spool: Spool, settings: Settings) -> "Delivery":
    """A delivery that goes on where the spool is; who has it knows what MLflow refused, also when
    another event fails."""
    from hourglass.tracking.mlflow import Delivery

    return Delivery(settings, spool.begin())


@dataclass(frozen=True)
class Synced:
    """One sentence per run, and how many runs still have something to deliver."""

    said: list[str]
    left: int


def sync(settings: Settings) -> Synced:
    """Deliver every spool. Does not raise for what MLflow does."""
    said, left = [], 0
    for spool in spools(settings):
        refused: list[str] = []
        try:
            delivery = _delivery(spool, settings)
            refused = delivery.refused
            drain(spool, settings, delivery)
            what = "delivered"
        except Delivering as error:
            left += 1
            what = str(error)
        except Exception as error:
            left += 1
            what = f"{explain(error)}; the rest stays in {spool.path}"
        said.append("; ".join([f"{spool.run_name}: {what}", *refused]))
    return Synced(said, left)


def _who(job: "TrainJob") -> dict[str, Any]:
    from hourglass import __version__
    from hourglass.config import files

    return {
        "run": job.run_name,
        "experiment": job.track.experiment,
        "job": files.dump(job),
        "hourglass": __version__,
    }
