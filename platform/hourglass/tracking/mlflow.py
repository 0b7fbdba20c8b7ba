"""MLflow as the store of runs: one run's events, each safe to deliver a second time.

A run is found again by its tag `hourglass.run`; a metric is written once per step; an artifact
once per digest. A sweep's run has those of its trials below it: see trials.py.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from hourglass.errors import HourglassError, RegistryError
from hourglass.settings import Settings
from hourglass.tracking import facts
from hourglass.tracking.shown import explain, redact
from hourglass.tracking.spool import Event
from hourglass.tracking.trials import Trials

RUN_TAG = "hourglass.run"
CHANGED_TAG = "hourglass.changed"
"""Params of an earlier sitting that are not those of the latest; `job.json` has the latest."""
BATCH_PARAMS = 100
FINAL = {"finished": "FINISHED", "failed": "FAILED"}
LASTING = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "FEATURE_DISABLED")
"""Error codes that another attempt cannot mend."""

DEFAULTS = {
    # A dead server must be noticed in seconds; MLflow's own defaults try for four minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # The progress line is ours; an upload bar, a link or a schema migration in it is noise.
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Otherwise the lock file of whatever project is the current folder goes into the model.
    "MLFLOW_UV_AUTO_DETECT": "false",
}


def client(settings: Settings) -> Any:
    """An MLflow client of the store that `settings` names; MLflow's globals stay untouched."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    if settings.tracking_uri is None:
        settings.root.mkdir(parents=True, exist_ok=True)
    return mlflow.MlflowClient(tracking_uri=settings.mlflow_uri)


@contextmanager
def answering(settings: Settings) -> Iterator[None]:
    """Turn whatever MLflow raises into a RegistryError that names the store."""
    try:
        yield
    except HourglassError:
        raise
    except Exception as error:
        raise RegistryError(
            f"MLflow ({redact(settings.mlflow_uri)}): {explain(error)}; "
            "check that it is up and that MLFLOW_TRACKING_URI names it"
        ) from None


class Delivery:
    """Writes one run's events; `refused` has a sentence for each that MLflow will never take."""

    def __init__(self, settings: Settings, begin: Event | None) -> None:
        self.run_id: str | None = None
        self.version: str | None = None
        self.refused: list[str] = []
        self._settings = settings
        self._client = client(settings)
        self._who = begin
        self._steps: dict[str, set[int]] = {}
        self._trials: Trials | None = None

    @property
    def run_ids(self) -> dict[str, str]:
        """The runs of a sweep's trials, as far as this delivery knows them."""
        return self._trials.run_ids if self._trials else {}

    def deliver(self, event: Event) -> None:
        """Write one event. Raises whatever MLflow raises when another attempt may succeed."""
        kind = event["kind"]
        if kind == "begin":
            self._who = event
        if kind == "trials":
            for told in event["trials"]:
                self._take("trial", partial(self._trial, told, event["time_ms"]))
        elif kind in self._ways:
            self._take(kind, partial(self._ways[kind], self, event))

    def _take(self, kind: str, write: Callable[[], None]) -> None:
        """Write; what MLflow will never take becomes a sentence."""
        from mlflow.exceptions import MlflowException

        try:
            write()
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
        decisive, other = facts.describe(event["job"])
        recorded = self._client.get_run(run_id).data
        known = recorded.params
        params = [Param(key, value) for key, value in decisive.items() if key not in known]
        tags = [RunTag(f"hourglass.{key}", value) for key, value in other.items()]
        tags.append(RunTag("hourglass.package", str(event["hourglass"])))
        changed = [key for key, value in known.items() if decisive.get(key) != value]
        if changed or CHANGED_TAG in recorded.tags:
            tags.append(RunTag(CHANGED_TAG, ", ".join(sorted(changed))))
        for first in range(0, len(params), BATCH_PARAMS):
            self._client.log_batch(run_id, params=params[first : first + BATCH_PARAMS])
        self._client.log_batch(run_id, tags=tags)
        self._client.log_inputs(run_id, datasets=[facts.dataset_input(event["dataset"])])
        self._client.log_dict(run_id, json.loads(redact(json.dumps(event["job"]))), "job.json")
        self._client.update_run(run_id, status="RUNNING")

    def _run(self) -> str:
        """The MLflow run of this delivery: the one with our tag, or a new one."""
        if self.run_id is not None:
            return self.run_id
        if self._who is None:
            raise RegistryError("the spool does not say which run it is of (no `begin` event)")
        name, experiment = self._who["run"], self._experiment(self._who["experiment"])
        found = self._client.search_runs(
            [experiment], f"tags.`{RUN_TAG}` = '{name}'", max_results=1, order_by=["start_time ASC"]
        )
        if found:
            self.run_id = str(found[0].info.run_id)
        else:
            run = self._client.create_run(
                experiment,
                self._who["time_ms"],
                tags={RUN_TAG: name, **self._who.get("tags", {})},
                run_name=self._who.get("shown", name),
            )
            self.run_id = str(run.info.run_id)
        return self.run_id

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

        run_id, step, time_ms = self._run(), int(event["epoch"]), event["time_ms"]
        new = {
            name: float(value)
            for name, value in event["metrics"].items()
            if step not in self._known_steps(run_id, name)
        }
        self._client.log_batch(run_id, [Metric(k, v, time_ms, step) for k, v in new.items()])
        self._remember(new, step)

    def _known_steps(self, run_id: str, name: str) -> set[int]:
        if name not in self._steps:
            history = self._client.get_metric_history(run_id, name)
            self._steps[name] = {metric.step for metric in history}
        return self._steps[name]

    def _remember(self, names: Iterable[str], step: int) -> None:
        for name in names:
            self._steps[name].add(step)

    def _artifact(self, event: Event) -> None:
        """Log the model of this run, or of the trial that the event names, and register it."""
        from hourglass.tracking import model, registry

        of = event.get("trial")
        run_id = self._run() if of is None else self._sweep().run_of(of)
        logged = model.log(self._client, run_id, event["uri"])
        if event["register_as"]:
            self.version = registry.register(self._client, event["register_as"], run_id, logged)

    def _trial(self, told: dict[str, Any], time_ms: int) -> None:
        note = self._sweep().record(told, time_ms)
        if note:
            self.refused.append(note)

    def _board(self, event: Event) -> None:
        self._sweep().summarise(event)

    def _end(self, event: Event) -> None:
        status = FINAL[event["status"]]
        self._client.set_terminated(self._run(), status=status, end_time=event["time_ms"])

    def _sweep(self) -> Trials:
        """The trials below this run."""
        if self._trials is None:
            self._trials = Trials(self._client, self._run())
        return self._trials

    _ways: ClassVar[dict[str, Callable[["Delivery", Event], None]]] = {
        "begin": _begin,
        "epoch": _epoch,
        "artifact": _artifact,
        "board": _board,
        "end": _end,
    }
