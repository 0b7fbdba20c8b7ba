"""Child runs of a sweep's run in MLflow: one for each trial, written when the trial has ended.

A trial's run is identified by its tags `mlflow.parentRunId` and `hourglass.trial`. All other tags are
written last. One of them, `hourglass.fingerprint`, is a hash of the trial's event, so that the same event
again needs no request, and an interrupted delivery is completed without duplicate values.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hourglass import storage
from hourglass.errors import RegistryError, redact
from hourglass.tracking.backend import Event
from hourglass.tracking.records import (
    DIGEST_TAG,
    Made,
    flat,
    made_of,
    named,
    over_time,
    same,
    step_to_show,
    steps,
)

PARENT_TAG = "mlflow.parentRunId"
TRIAL_TAG = "hourglass.trial"
SWEEP_TAG = "hourglass.sweep"
FINGERPRINT_TAG = "hourglass.fingerprint"
STATUS_TAG = "hourglass.status"
TERMINAL = {"finished": "FINISHED", "failed": "FAILED"}
STOPPED = "KILLED"
"""MLflow's status of a trial that a scheduler stopped."""
BATCH_METRICS, BATCH_PARAMS = 800, 100
"""MLflow accepts 1,000 items per request, of which 100 params and 100 tags."""
TAG_CHARS = 4000
PAGE = 1000
NAME_CHARS, DIGEST_CHARS, SOURCE_CHARS = 500, 36, 65_535
"""Longest name, digest and source of a dataset that MLflow accepts."""


@dataclass
class Child:
    """What MLflow has of one trial."""

    run_id: str
    new: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class Trials:
    """Writes the child runs of `parent`, all on `dataset`; existing ones are requested once."""

    def __init__(self, client: Any, parent: str, dataset: dict[str, Any]) -> None:
        self._client, self._parent, self._dataset = client, parent, dataset
        info = client.get_run(parent)
        self._experiment = info.info.experiment_id
        self._sweep = info.data.tags.get(SWEEP_TAG, "")
        self._known = {child.tags[TRIAL_TAG]: child for child in self._below()}

    @property
    def run_ids(self) -> dict[str, str]:
        """The run of each trial that has one."""
        return {trial: child.run_id for trial, child in list(self._known.items())}

    def run_of(self, trial: str) -> str:
        """The run of a trial. Raises RegistryError when MLflow refused it."""
        if trial not in self._known:
            raise RegistryError(f"trial {trial} has no run, so its model is not logged")
        return self._known[trial].run_id

    def record(self, trial: dict[str, Any], time_ms: int) -> str:
        """Write the run of a trial unless MLflow has it; returns a message if its artifact is missing."""
        child = self._known.get(trial["trial"])
        fingerprint = _fingerprint(trial)
        if child is not None and child.tags.get(FINGERPRINT_TAG) == fingerprint:
            return ""
        made, note = made_of(trial)
        end = trial["ended_ms"] or made.written_ms or time_ms
        start = end - round(1000 * (trial["seconds"] or 0.0))
        if child is None:
            child = self._create(trial["trial"], start)
        # These tags are written last, so everything else of that delivery is there.
        again = child.tags.get(STATUS_TAG) == trial["status"]
        again = again and child.tags.get(DIGEST_TAG, "") == made.digest
        metrics = [] if again else list(self._epochs(child, made, start, end))
        metrics += _final_metrics(child, trial["metrics"], end)
        self._write(child, metrics, dict(flat("", trial["values"])))
        if not again:
            self._client.log_inputs(child.run_id, datasets=[dataset_input(self._dataset)])
            if made.job is not None:
                job = json.loads(redact(json.dumps(made.job)))
                self._client.log_dict(child.run_id, job, "job.json")
            status = TERMINAL.get(trial["status"], STOPPED)
            self._client.set_terminated(child.run_id, status=status, end_time=end)
        last = {
            STATUS_TAG: trial["status"],
            "hourglass.artifact": redact(trial["artifact"] or ""),
            DIGEST_TAG: made.digest,
            FINGERPRINT_TAG: fingerprint,
        }
        self._tag(child, {**trial["tags"], **last})
        return note

    def summarise(self, event: Event) -> None:
        """Log the metrics of the best trial, the counts and the files of the sweep to the parent.

        Raises: RegistryError when a file is gone.
        """
        parent = Child(self._parent, metrics=dict(self._client.get_run(self._parent).data.metrics))
        metrics = _final_metrics(parent, event["metrics"], event["time_ms"])
        self._write(parent, metrics, {})
        self._tag(parent, event["tags"])
        with TemporaryDirectory() as folder:
            for name in event["files"]:
                try:
                    content = storage.read(storage.join(event["folder"], name))
                except FileNotFoundError:
                    raise RegistryError(f"{event['folder']}: {name} is not there") from None
                (Path(folder) / name).write_bytes(content)
            self._client.log_artifacts(self._parent, folder)

    def _below(self) -> Iterator[Child]:
        """The child runs that MLflow has."""
        token, of = None, f"tags.`{PARENT_TAG}` = '{self._parent}'"
        while True:
            page = self._client.search_runs(
                [self._experiment], of, max_results=PAGE, order_by=["start_time DESC"],
                page_token=token,
            )  # fmt: skip
            for run in page:
                if TRIAL_TAG in run.data.tags:
                    data = run.data
                    yield Child(
                        run.info.run_id,
                        False,
                        dict(data.tags),
                        dict(data.params),
                        dict(data.metrics),
                    )
            token = page.token
            if not token:
                return

    def _create(self, trial: str, start_ms: int) -> Child:
        tags = {PARENT_TAG: self._parent, TRIAL_TAG: trial, SWEEP_TAG: self._sweep}
        run = self._client.create_run(self._experiment, start_ms, tags=tags, run_name=trial)
        self._known[trial] = Child(run.info.run_id, new=True, tags=tags)
        return self._known[trial]

    def _epochs(self, child: Child, made: Made, start: int, end: int) -> Iterator[Any]:
        """Metrics of epochs that MLflow lacks or has with other values, then those of the kept weights."""
        from mlflow.entities import Metric

        known: dict[str, dict[int, float]] = {}
        for step, at, record in over_time(made.history, start, end):
            metrics = {name: value for name, value in record.items() if name != "epoch"}
            for name, value in named(metrics).items():
                if name not in known:
                    known[name] = self._steps(child, name)
                if not same(known[name].get(step), value):
                    known[name][step] = value
                    yield Metric(name, float(value), at, step)
        for name, value in made.kept.items():
            shown = known[name] if name in known else self._steps(child, name)
            to_show = step_to_show(shown, value, int(made.kept.get("epoch", 0)))
            if to_show is not None:
                yield Metric(name, float(value), end, to_show)

    def _steps(self, child: Child, name: str) -> dict[int, float]:
        """The values that MLflow has, by step."""
        return {} if child.new else steps(self._client, child.run_id, name)

    def _write(self, child: Child, metrics: list[Any], params: dict[str, str]) -> None:
        """Write metrics, and the params that MLflow lacks; it never changes one."""
        from mlflow.entities import Param

        child.new = False  # even if only a part of it arrives
        new = [Param(key, text) for key, text in params.items() if key not in child.params]
        while metrics or new:
            batch = metrics[:BATCH_METRICS]
            self._client.log_batch(child.run_id, metrics=batch, params=new[:BATCH_PARAMS])
            child.metrics |= {metric.key: metric.value for metric in batch}
            metrics, new = metrics[BATCH_METRICS:], new[BATCH_PARAMS:]
        child.params |= params

    def _tag(self, child: Child, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        short = {key: redact(text)[:TAG_CHARS] for key, text in tags.items()}
        changed = [RunTag(key, text) for key, text in short.items() if child.tags.get(key) != text]
        if changed:
            self._client.log_batch(child.run_id, tags=changed)
        child.tags |= short


def _final_metrics(child: Child, metrics: dict[str, float], time_ms: int) -> list[Any]:
    """Metrics without epochs, at step 0, that MLflow lacks or has with other values."""
    from mlflow.entities import Metric

    return [
        Metric(name, float(value), time_ms, 0)
        for name, value in metrics.items()
        if not same(child.metrics.get(name), value)
    ]


def _fingerprint(trial: dict[str, Any]) -> str:
    """Hash of a trial's event without its time, which a later session does not know, and its epochs."""
    lasting = {key: value for key, value in trial.items() if key not in ("ended_ms", "history")}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16]


def dataset_input(dataset: dict[str, Any]) -> Any:
    """MLflow's dataset input; if there are too many URIs for `source`, it has the first, `profile` all."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    text = redact(json.dumps(dataset, sort_keys=True))
    digest = str(dataset.get("digest") or hashlib.sha256(text.encode()).hexdigest())
    uri = json.loads(text).get("uri")
    while len(source := json.dumps({"uri": uri})) > SOURCE_CHARS and isinstance(uri, list):
        uri = uri[: len(uri) // 2]
    return DatasetInput(
        Dataset(
            name=str(dataset.get("name") or "rows")[:NAME_CHARS],
            digest=digest[:DIGEST_CHARS],
            source_type="parquet",
            source=source,
            profile=text,
        ),
        tags=[InputTag("mlflow.data.context", "training")],
    )
