"""The runs of a sweep's trials, below its own: one for each trial, written when the trial has ended.

A trial's run is found again by its tags `mlflow.parentRunId` and `hourglass.trial`. All other tags
are written after everything else, one of them, `hourglass.said`, the hash of what was told: the same
words again cost no question, and a death in the middle costs a comparison, not a second value.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hourglass import storage
from hourglass.errors import RegistryError
from hourglass.tracking.backend import Event
from hourglass.tracking.records import (
    DIGEST_TAG,
    Made,
    dataset_input,
    flat,
    made_of,
    named,
    over_time,
    same,
    step_to_show,
    steps,
)
from hourglass.tracking.shown import redact

PARENT_TAG = "mlflow.parentRunId"
TRIAL_TAG = "hourglass.trial"
SWEEP_TAG = "hourglass.sweep"
SAID_TAG = "hourglass.said"
STATUS_TAG = "hourglass.status"
TERMINAL = {"finished": "FINISHED", "failed": "FAILED"}
ELSE = "KILLED"
"""MLflow's word for a trial that neither finished nor failed: a scheduler stopped it."""
BATCH_METRICS, BATCH_PARAMS = 800, 100
"""MLflow takes 1,000 things at a time, of which 100 params and 100 tags."""
TAG_CHARS = 4000
PAGE = 1000


@dataclass
class Child:
    """What MLflow has of one trial."""

    run_id: str
    new: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class Trials:
    """Writes the runs below `parent`, all of them on `dataset`; asks for those that exist once."""

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

    def record(self, told: dict[str, Any], time_ms: int) -> str:
        """Write what is told of a trial, unless MLflow has it; a sentence about what is missing."""
        child = self._known.get(told["trial"])
        said = _fingerprint(told)
        if child is not None and child.tags.get(SAID_TAG) == said:
            return ""
        made, note = made_of(told)
        end = told["ended_ms"] or made.written_ms or time_ms
        start = end - round(1000 * (told["seconds"] or 0.0))
        if child is None:
            child = self._create(told["trial"], start)
        # These tags are the last words of an earlier telling, so all of that one is there.
        again = child.tags.get(STATUS_TAG) == told["status"]
        again = again and child.tags.get(DIGEST_TAG, "") == made.digest
        metrics = [] if again else list(self._epochs(child, made, start, end))
        metrics += _figures(child, told["metrics"], end)
        self._write(child, metrics, dict(flat("", told["values"])))
        if not again:
            self._client.log_inputs(child.run_id, datasets=[dataset_input(self._dataset)])
            if made.job is not None:
                job = json.loads(redact(json.dumps(made.job)))
                self._client.log_dict(child.run_id, job, "job.json")
            status = TERMINAL.get(told["status"], ELSE)
            self._client.set_terminated(child.run_id, status=status, end_time=end)
        last = {
            STATUS_TAG: told["status"],
            "hourglass.artifact": redact(told["artifact"] or ""),
            DIGEST_TAG: made.digest,
            SAID_TAG: said,
        }
        self._tag(child, {**told["tags"], **last})
        return note

    def summarise(self, event: Event) -> None:
        """The figures of the best and the counts as metrics of the parent; the files of the sweep.

        Raises: RegistryError when a file is gone.
        """
        parent = Child(self._parent, metrics=dict(self._client.get_run(self._parent).data.metrics))
        metrics = _figures(parent, event["metrics"], event["time_ms"])
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
        """The runs that MLflow has below the parent."""
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
        """The metrics of all epochs that MLflow has not or has otherwise, then the kept ones."""
        from mlflow.entities import Metric

        known: dict[str, dict[int, float]] = {}
        for step, at, record in over_time(made.history, start, end):
            figures = {name: value for name, value in record.items() if name != "epoch"}
            for name, value in named(figures).items():
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
        """Metrics, and the params that MLflow has not: it never changes one."""
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


def _figures(child: Child, metrics: dict[str, float], time_ms: int) -> list[Any]:
    """Figures without epochs, at step 0, where MLflow has others or none."""
    from mlflow.entities import Metric

    return [
        Metric(name, float(value), time_ms, 0)
        for name, value in metrics.items()
        if not same(child.metrics.get(name), value)
    ]


def _fingerprint(told: dict[str, Any]) -> str:
    """Of everything that is told but the time, which a later sitting does not know, and the epochs,
    which the artifact has."""
    lasting = {key: value for key, value in told.items() if key not in ("ended_ms", "history")}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16]
