"""The runs of MLflow: writes the events of one run, each safe to deliver a second time.

A run is found again by its tags `hourglass.run` and `hourglass.data`; a metric is written once per
step; an artifact once per digest. A sweep's run has those of its trials below it: see mlflow_trials.py.
"""

import json
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from hourglass.errors import HourglassError, ReadError, RegistryError, WriteError
from hourglass.settings import Settings
from hourglass.tracking import backend, records
from hourglass.tracking.backend import Event, Logged, Registered
from hourglass.tracking.mlflow_trials import BATCH_METRICS, Trials
from hourglass.tracking.records import DIGEST_TAG
from hourglass.tracking.shown import redact

if TYPE_CHECKING:
    from mlflow.entities import Metric

RUN_TAG = "hourglass.run"
DATA_TAG = "hourglass.data"
"""The digest of the rows: on others the same job is another run."""
CHANGED_TAG = "hourglass.changed"
"""Params of an earlier sitting that are not those of the latest; `job.json` has the latest."""
REGISTERED_TAG = "hourglass.registered"
"""`NAME/VERSION`: what the run registered last, once the alias has moved as well; `DIGEST_TAG` has its
digest."""
BATCH_PARAMS = 100
FINAL = {"finished": "FINISHED", "failed": "FAILED"}
LASTING = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "FEATURE_DISABLED")
"""Error codes that another attempt cannot mend."""


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
        """The runs of a sweep's trials, as far as this delivery knows them."""
        return self._trials.run_ids if self._trials else {}

    def deliver(self, event: Event) -> None:
        """Write one event. Raises whatever MLflow raises when another attempt may succeed."""
        kind = event["kind"]
        if kind == "begin":  # of another run, where the same job is trained anew on other rows
            self._who, self.run_id, self._trials = event, None, None
            self._steps.clear()
        if kind == "trials":
            for told in event["trials"]:
                self._take("trial", partial(self._trial, told, event["time_ms"]))
        elif kind in self._ways:
            self._take(kind, partial(self._ways[kind], self, event))

    def forget(self) -> None:
        """What MLflow had: another process has delivered events of this run since."""
        self._trials = None
        self._steps.clear()

    def recall(self, begin: Event, artifact: Event | None, trials: Collection[str] = ()) -> None:
        """Look up what other deliveries made: the run that `begin` is of, those of `trials`, a version.

        Asks MLflow for what this delivery did not make itself, and for nothing else.
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

    def _take(self, kind: str, write: Callable[[], None]) -> None:
        """Write; what MLflow will never take becomes a sentence."""
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

    def _refuse(self, sentence: str) -> None:
        """Once, however many trials it is about."""
        if sentence not in self.refused:
            self.refused.append(sentence)

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
        self._client.log_inputs(run_id, datasets=[records.dataset_input(event["dataset"])])
        self._client.log_dict(run_id, json.loads(redact(json.dumps(event["job"]))), "job.json")
        if not event.get("ended"):
            self._client.update_run(run_id, status="RUNNING")

    def _run(self) -> str:
        """The MLflow run of this delivery: the one with our tag, or a new one."""
        if self.run_id is not None:
            return self.run_id
        if self._who is None:
            raise RegistryError("the spool does not say which run it is of (no `begin` event)")
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
        """The run with our tags that MLflow has."""
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
            # A server knows where its artifacts go; a database does not, and would use ./mlruns.
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

    def _made(self, logged: Logged, time_ms: int) -> None:
        """Epochs that nobody told, and what the run then shows: the metrics of the kept weights."""
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
        """Metrics that MLflow has not."""
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
        from hourglass.tracking import mlflow_model

        of = event.get("trial")
        run_id = self._run() if of is None else self._sweep().run_of(of)
        logged = mlflow_model.log(self._client, run_id, event["uri"])
        if of is None and logged.history:
            self._take("metrics", partial(self._made, logged, event["time_ms"]))
        self._take("metrics", partial(mlflow_model.measure, self._client, run_id, logged))
        if event["register_as"]:
            self._register(event["register_as"], run_id, logged)

    def _register(self, name: str, run_id: str, logged: Logged) -> None:
        """Make it a version, once; the tag says so when all of it is done."""
        whole = self._run()
        tags = self._client.get_run(whole).data.tags
        before, again = tags.get(REGISTERED_TAG), tags.get(DIGEST_TAG) == logged.digest
        made = backend.register(self._tracker, name, run_id, logged, before, again)
        if not again:
            self._client.set_tag(whole, DIGEST_TAG, logged.digest)
        if before != f"{name}/{made.version}":
            self._client.set_tag(whole, REGISTERED_TAG, f"{name}/{made.version}")
        self.registered = made

    def _trial(self, told: dict[str, Any], time_ms: int) -> None:
        note = self._sweep().record(told, time_ms)
        if note:
            self.refused.append(note)

    def _board(self, event: Event) -> None:
        self._sweep().summarise(event)

    def _end(self, event: Event) -> None:
        status = FINAL[event["status"]]
        if self._client.get_run(self._run()).info.status != status:
            self._client.set_terminated(self._run(), status=status, end_time=event["time_ms"])

    def _sweep(self) -> Trials:
        """The trials below this run."""
        if self._trials is None:
            run_id = self._run()
            assert self._who is not None  # else it has no run
            self._trials = Trials(self._client, run_id, self._who["dataset"])
        return self._trials

    _ways: ClassVar[dict[str, Callable[["MlflowWriter", Event], None]]] = {
        "begin": _begin,
        "epoch": _epoch,
        "artifact": _artifact,
        "board": _board,
        "end": _end,
    }


def _data(begin: Event) -> str:
    return str(begin["dataset"].get("digest") or "rows")
