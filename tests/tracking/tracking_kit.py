"""What tests of MLflow share."""

import json
from pathlib import Path
from typing import Any

from hourglass import artifact
from hourglass.config import files
from hourglass.config.train import TrainJob
from hourglass.settings import Settings
from hourglass.tracking import mlflow as store

DATASET = {"name": "digits", "uri": "/data/digits", "digest": "d" * 64, "rows": 300}


def at(home: Path, uri: str | None = None) -> Settings:
    """The settings of a project folder, with its own store or the one at `uri`."""
    return Settings.model_validate({"home": home, "MLFLOW_TRACKING_URI": uri})


def job(name: str, register: str | None = None, **train: Any) -> TrainJob:
    """A job of the experiment `digits`."""
    made = files.parse(
        {
            "kind": "train",
            "name": name,
            "data": {"uri": "/data/digits", "features": {"vector": "image"}},
            "model": {"network": {"widths": [7, 5]}},
            "train": train,
            "track": {"experiment": "digits"} | ({"register": register} if register else {}),
        }
    )
    assert isinstance(made, TrainJob)
    return made


def runs_of(settings: Settings, run_name: str) -> list[Any]:
    """The runs that MLflow has of a job, oldest first."""
    client = store.client(settings)
    experiment = client.get_experiment_by_name("digits")
    if experiment is None:
        return []
    of = f"tags.`hourglass.run` = '{run_name}'"
    found = client.search_runs([experiment.experiment_id], of, order_by=["start_time ASC"])
    return list(found)


def run_of(settings: Settings, run_name: str) -> Any:
    """The one run of a job."""
    found = runs_of(settings, run_name)
    assert len(found) == 1
    return found[0]


def history(settings: Settings, run_id: str, name: str) -> list[tuple[int, float]]:
    """The values of a metric with their steps."""
    found = store.client(settings).get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in found)


def trained(folder: Path, records: list[dict[str, float]], metrics: dict[str, float]) -> None:
    """Make the artifact in `folder` that of a run with these epochs, of which it kept one."""
    manifest = folder / artifact.MANIFEST
    tree = json.loads(manifest.read_text())
    tree["provenance"] |= {"history": records, "seconds": 9.0, "dataset": DATASET}
    manifest.write_text(json.dumps(tree | {"metrics": metrics}))
