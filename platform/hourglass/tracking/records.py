"""What is written about a job, its rows and its epochs: flat, bounded, without secrets."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hourglass import storage
from hourglass.tracking.backend import MANIFEST
from hourglass.tracking.shown import redact


@dataclass(frozen=True)
class Made:
    """What a trial's artifact says of itself; nothing where there is none."""

    digest: str = ""
    written_ms: int | None = None
    job: dict[str, Any] | None = None
    history: tuple[Mapping[str, float], ...] = ()
    kept: Mapping[str, float] = field(default_factory=dict)
    """The metrics of the kept weights."""


DIGEST_TAG = "hourglass.digest"
PARAM_CHARS = 6000
NAME_CHARS, DIGEST_CHARS, SOURCE_CHARS = 500, 36, 65_535
"""What MLflow takes of a dataset's name, digest and source."""
MAY_CHANGE = {
    "train": ("quantile",),
    "tune": ("concurrency", "gpus_per_worker", "max_time_s", "pack", "promote_if"),
}
"""Fields that decide nothing which is recorded: another sitting may have others."""
APART = {"train": ("name", "track"), "tune": ("name", "base", "kind")}


def describe(job: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """What decides the results, flat (MLflow's params never change), and the rest (tags may).

    Of a sweep the values of each path are one text; its base is in `job.json` alone.
    """
    kind = str(job.get("kind", "train"))
    rest = {key: job[key] for key in MAY_CHANGE[kind] if key in job}
    decisive = {key: value for key, value in job.items() if key not in (*APART[kind], *rest)}
    space = decisive.pop("space", {})
    swept = {f"space.{path}": json.dumps(_said(values)) for path, values in space.items()}
    return {**dict(flat("", decisive)), **_bounded(swept)}, dict(flat("", rest))


def flat(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    """Dotted paths below `prefix` and their values as text, at most `PARAM_CHARS` each."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from flat(f"{prefix}.{key}" if prefix else key, below)
    elif prefix:
        text = value if isinstance(value, str) else json.dumps(value)
        yield prefix, redact(text)[:PARAM_CHARS]


def named(record: dict[str, float]) -> dict[str, float]:
    """A name has one value for an epoch, so every member of an ensemble has names of its own."""
    if "member" not in record:
        return record
    whose = f"member_{record['member']:g}"
    return {f"{whose}/{name}": value for name, value in record.items() if name != "member"}


def over_time(
    history: Sequence[Mapping[str, float]], start_ms: int, end_ms: int
) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Each epoch's step, time and record, evenly over the time.

    An artifact says when its training began and ended, not when each epoch did.
    """
    for index, record in enumerate(history, start=1):
        at = start_ms + (end_ms - start_ms) * index // len(history)
        yield int(record.get("epoch", index)), at, dict(record)


def steps(client: Any, run_id: str, name: str) -> dict[int, float]:
    """The values that MLflow has of a metric, by step; of several at one step the latest."""
    history = client.get_metric_history(run_id, name)
    return {metric.step: metric.value for metric in sorted(history, key=lambda m: m.timestamp)}


def step_to_show(known: Mapping[int, float], value: float, epoch: int) -> int | None:
    """Where to write `value` so that MLflow shows it, which shows what is at a metric's last step.

    That is the epoch itself where nothing is known, else a step after the last; None where it is
    shown already.
    """
    if not known:
        return epoch
    last = max(known)
    return None if same(known[last], value) else last + 1


def same(known: float | None, value: float) -> bool:
    """True when MLflow has this value."""
    return known is not None and (known == value or (math.isnan(known) and math.isnan(value)))


def found_anywhere(dataset: dict[str, Any]) -> dict[str, Any]:
    """The dataset with URIs that mean the same whatever the folder they are read in."""
    uri = dataset.get("uri", ())
    uris = [
        one if "://" in one else os.path.abspath(one)
        for one in ([uri] if isinstance(uri, str) else uri)
    ]
    return {**dataset, "uri": uris[0] if isinstance(uri, str) else uris} if uris else dataset


def dataset_input(dataset: dict[str, Any]) -> Any:
    """The rows as MLflow's dataset input; of very many URIs the source has the first, the profile all."""
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


def artifact_digest(uri: str) -> str | None:
    """The digest of the artifact at `uri`; None when it is gone."""
    try:
        return hashlib.sha256(storage.read(storage.join(uri, MANIFEST))).hexdigest()
    except OSError:
        return None


def made_of(told: dict[str, Any]) -> tuple[Made, str]:
    """What the artifact says, and a sentence when it has gone."""
    uri, given = told["artifact"], tuple(told["history"])
    if uri is None:
        return Made(history=given), ""
    path = storage.join(uri, MANIFEST)
    try:
        text = storage.read(path)
        tree = json.loads(text)
        return Made(
            hashlib.sha256(text).hexdigest(),
            storage.modified_ms(path),
            tree["job"],
            tuple(tree["provenance"].get("history", given)),
            dict(tree["metrics"]),
        ), ""
    except FileNotFoundError:
        return Made(history=given), f"trial {told['trial']}: {redact(uri)} is gone, its epochs too"
    except (ValueError, KeyError, TypeError, AttributeError):
        return Made(history=given), f"trial {told['trial']}: {redact(path)} is not a manifest"


def _said(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a path without what its file left out."""
    return {way: value for way, value in values.items() if value is not None and value != {}}


def _bounded(texts: dict[str, str]) -> dict[str, str]:
    return {key: redact(text)[:PARAM_CHARS] for key, text in texts.items()}
