"""Writes the events of one run to MLflow; delivering an event twice changes nothing.

A run is identified by its tags `hourglass.run` and `hourglass.data`. A metric is written once per step, an
artifact once per digest. The trials of a sweep have child runs: see mlflow_trials.py.
"""

import json
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from hourglass.errors import HourglassError, ReadError, RegistryError, WriteError, redact
from hourglass.settings import Settings
from hourglass.tracking import backend, records
from hourglass.tracking.backend import Event, Logged, Registered
from hourglass.tracking.mlflow_trials import BATCH_METRICS, Trials, dataset_input
from hourglass.tracking.records import DIGEST_TAG

if TYPE_CHECKING:
    from mlflow.entities import Metric

RUN_TAG = "hourglass.run"
DATA_TAG = "hourglass.data"
"""Digest of the rows; the same job on other rows is another run."""
CHANGED_TAG = "hourglass.changed"
"""Params that differ from those of the latest session, which are in `job.json`."""
REGISTERED_TAG = "hourglass.registered"
"""`NAME/VERSION` that the run registered last, written after the alias; `DIGEST_TAG` has its digest."""
BATCH_PARAMS = 100
FINAL = {"finished": "FINISHED", "failed": "FAILED"}
LASTING = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "FEATURE_DISABLED")
"""Error codes that make another attempt pointless."""


class MlflowWriter:
    """Writes the events of one run; `refused` has a message for each that MLflow never accepts."""

    def __init__(
        self, settings: Settings, tracker: backend.Tracker, client: Any, begin: Event | None
    ) -> None:
        self.run_id: str | None = None
        self.registered: Registered | None = None
        self.refused: list[str] = []
        self._settings = settings
        self._tracker, self._client = tracker, client
        self._who = begin
        self._steps: dict[str, dict[int, float]] = {}
        self._trials: Trials | None = None

    @property
    def run_ids(self) -> dict[str, str]:
        """The runs of a sweep's trials, as far as this writer knows them."""
        return self._trials.run_ids if self._trials else {}

    def deliver(self, event: Event) -> None:
        """Write one event. Raises errors of MLflow when another attempt may succeed."""
        kind = event["kind"]
        if kind == "begin":  # of another run, where the same job is trained on other rows
            self._who, self.run_id, self._trials = event, None, None
            self._steps.clear()
        if kind == "trials":
            for trial in event["trials"]:
                self._try("trial", partial(self._trial, trial, event["time_ms"]))
        elif kind in self._methods:
            self._try(kind, partial(self._methods[kind], self, event))

    def forget(self) -> None:
        """Drop what is cached: another process has delivered events of this run since."""
        self._trials = None
        self._steps.clear()

    def recall(self, begin: Event, artifact: Event | None, trials: Collection[str] = ()) -> None:
        """Look up what other writers made: the run of `begin`, those of `trials`, a version.

        Requests from MLflow only what this writer did not make itself.
        """
        if self.run_id is None or self._who is None or _data(self._who) != _data(begin):
            self._who, self._trials = begin, None
            self.run_id = self._known_run()
        if self.run_id is None:
            return
        if not self.run_ids.keys() >= {*trials}:
            self._trials = None
            self._sweep()
        name = artifact and artifact["register_as"]
        if artifact and name and self.registered is None:
            digest = records.artifact_digest(artifact["uri"])
            self.registered = backend.registered(self._tracker, name, digest) if digest else None

    def _try(self, kind: str, write: Callable[[], None]) -> None:
        """Write; an error that another attempt cannot resolve becomes a message."""
        from mlflow.exceptions import MlflowException

        try:
            write()
        except (ReadError, WriteError):
            raise
        except HourglassError as error:
            self._refuse(redact(f"{kind} refused: {error}"))
        except MlflowException as error:
            if error.error_code not in LASTING:
                raise
            self._refuse(redact(f"{kind} refused by MLflow: {error.message}"))

    def _refuse(self, message: str) -> None:
        """Add a message, once even if it is about several trials."""
        if message not in self.refused:
            self.refused.append(message)

    def _begin(self, event: Event) -> None:
        from mlflow.entities import Param, RunTag

        run_id = self._run()
        decisive, other = records.describe(event["job"])
        recorded = self._client.get_run(run_id).data
        known = recorded.params
        params = [Param(key, value) for key, value in decisive.items() if key not in known]
        tags = [RunTag(f"hourglass.{key}", value) for key, value in other.items()]
        tags.append(RunTag("hourglass.package", str(event["hourglass"])))
        tags.append(RunTag(DATA_TAG, _data(event)))
        changed = [key for key, value in known.items() if decisive.get(key) != value]
        if changed or CHANGED_TAG in recorded.tags:
            tags.append(RunTag(CHANGED_TAG, ", ".join(sorted(changed))))
        for first in range(0, len(params), BATCH_PARAMS):
            self._client.log_batch(run_id, params=params[first : first + BATCH_PARAMS])
        self._client.log_batch(run_id, tags=tags)
        self._client.log_inputs(run_id, datasets=[dataset_input(event["dataset"])])
        self._client.log_dict(run_id, json.loads(redact(json.dumps(event["job"]))), "job.json")
        if not event.get("ended"):
            self._client.update_run(run_id, status="RUNNING")

    def _run(self) -> str:
        """The run with our tags, or a new one."""
        if self.run_id is not None:
            return self.run_id
        if self._who is None:
            raise RegistryError("the outbox does not name its run (no `begin` event)")
        self.run_id = self._known_run()
        if self.run_id is None:
            name = self._who["run"]
            run = self._client.create_run(
                self._experiment(self._who["experiment"]),
                self._who["time_ms"],
                tags={RUN_TAG: name, DATA_TAG: _data(self._who), **self._who.get("tags", {})},
                run_name=self._who.get("shown", name),
            )
            self.run_id = str(run.info.run_id)
        return self.run_id

    def _known_run(self) -> str | None:
        """The existing run with our tags."""
        assert self._who is not None
        experiment = self._client.get_experiment_by_name(self._who["experiment"])
        if experiment is None or experiment.lifecycle_stage != "active":
            return None
        name, data = self._who["run"], _data(self._who)
        named = self._client.search_runs(
            [experiment.experiment_id], f"tags.`{RUN_TAG}` = '{name}'", order_by=["start_time ASC"]
        )
        found = [run for run in named if run.data.tags.get(DATA_TAG, data) == data]
        return str(found[0].info.run_id) if found else None

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            # A server has a place for artifacts; with a database, MLflow would use ./mlruns.
            remote = self._settings.mlflow_uri.startswith(("http://", "https://", "databricks"))
            location = None if remote else (self._settings.root / "mlartifacts").as_uri()
            return str(self._client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage != "active":
            raise RegistryError(
                f"experiment '{name}' is deleted in MLflow; restore it there, "
                "or name another one in track.experiment"
            )
        return str(found.experiment_id)

    def _epoch(self, event: Event) -> None:
        from mlflow.entities import Metric

        step, time_ms = int(event["epoch"]), event["time_ms"]
        self._write(
            [
                Metric(name, float(value), time_ms, step)
                for name, value in event["metrics"].items()
                if step not in self._known_steps(self._run(), name)
            ]
        )

    def _add_history(self, logged: Logged, time_ms: int) -> None:
        """Add epochs that no event reported, then the metrics of the kept weights, for MLflow to display."""
        from mlflow.entities import Metric

        run_id = self._run()
        start_ms = self._client.get_run(run_id).info.start_time
        self._write(
            [
                Metric(name, float(value), at, step)
                for step, at, record in records.over_time(logged.history, start_ms, time_ms)
                for name, value in records.named(record).items()
                if step not in self._known_steps(run_id, name)
            ]
        )
        kept = int(logged.metrics.get("epoch", 0))
        steps = {
            name: records.step_to_show(self._known_steps(run_id, name), value, kept)
            for name, value in logged.metrics.items()
        }
        self._write(
            [
                Metric(name, logged.metrics[name], time_ms, step)
                for name, step in steps.items()
                if step is not None
            ]
        )

    def _write(self, metrics: list["Metric"]) -> None:
        """Log metrics in batches."""
        for first in range(0, len(metrics), BATCH_METRICS):
            batch = metrics[first : first + BATCH_METRICS]
            self._client.log_batch(self._run(), batch)
            self._remember(batch)

    def _known_steps(self, run_id: str, name: str) -> dict[int, float]:
        if name not in self._steps:
            self._steps[name] = records.steps(self._client, run_id, name)
        return self._steps[name]

    def _remember(self, metrics: Iterable["Metric"]) -> None:
        for metric in metrics:
            self._steps[metric.key][metric.step] = metric.value

    def _artifact(self, event: Event) -> None:
        """Log the model of this run, or of the trial that the event names, and register it."""
        from hourglass.tracking import mlflow

        of = event.get("trial")
        run_id = self._run() if of is None else self._sweep().run_of(of)
        logged = mlflow.log(self._client, run_id, event["uri"])
        if of is None and logged.history:
            self._try("metrics", partial(self._add_history, logged, event["time_ms"]))
        self._try("metrics", partial(mlflow.measure, self._client, run_id, logged))
        if event["register_as"]:
            self._register(event["register_as"], run_id, logged)

    def _register(self, name: str, run_id: str, logged: Logged) -> None:
        """Register the model, once; the tag is written when all of it is done."""
        whole = self._run()
        tags = self._client.get_run(whole).data.tags
        before, again = tags.get(REGISTERED_TAG), tags.get(DIGEST_TAG) == logged.digest
        made = backend.register(self._tracker, name, run_id, logged, before, again)
        if not again:
            self._client.set_tag(whole, DIGEST_TAG, logged.digest)
        if before != f"{name}/{made.version}":
            self._client.set_tag(whole, REGISTERED_TAG, f"{name}/{made.version}")
        self.registered = made

    def _trial(self, trial: dict[str, Any], time_ms: int) -> None:
        note = self._sweep().record(trial, time_ms)
        if note:
            self.refused.append(note)

    def _board(self, event: Event) -> None:
        self._sweep().summarise(event)

    def _end(self, event: Event) -> None:
        status = FINAL[event["status"]]
        if self._client.get_run(self._run()).info.status != status:
            self._client.set_terminated(self._run(), status=status, end_time=event["time_ms"])

    def _sweep(self) -> Trials:
        """The writer of the trials' runs."""
        if self._trials is None:
            run_id = self._run()
            assert self._who is not None  # else it has no run
            self._trials = Trials(self._client, run_id, self._who["dataset"])
        return self._trials

    _methods: ClassVar[dict[str, Callable[["MlflowWriter", Event], None]]] = {
        "begin": _begin,
        "epoch": _epoch,
        "artifact": _artifact,
        "board": _board,
        "end": _end,
    }


def _data(begin: Event) -> str:
    return str(begin["dataset"].get("digest") or "rows")
