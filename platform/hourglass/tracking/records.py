"""What backends record of a job, its rows and its epochs: flat, bounded, without secrets."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hourglass import storage
from hourglass.errors import redact
from hourglass.tracking.backend import MANIFEST


@dataclass(frozen=True)
class Made:
    """Contents of a trial's artifact that are recorded; empty without an artifact."""

    digest: str = ""
    written_ms: int | None = None
    job: dict[str, Any] | None = None
    history: tuple[Mapping[str, float], ...] = ()
    kept: Mapping[str, float] = field(default_factory=dict)
    """The metrics of the kept weights."""


DIGEST_TAG = "hourglass.digest"
PARAM_CHARS = 6000
MAY_CHANGE = {
    "train": ("quantile",),
    "tune": ("concurrency", "gpus_per_worker", "max_time_s", "pack", "promote_if"),
}
"""Fields that do not affect what is recorded, so that a later session may have others."""
APART = {"train": ("name", "track"), "tune": ("name", "base", "kind")}


def describe(job: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Fields that determine the results, flat (params never change), and the others (tags may change).

    The values of each path of a sweep are one string; its base is only in `job.json`.
    """
    kind = str(job.get("kind", "train"))
    rest = {key: job[key] for key in MAY_CHANGE[kind] if key in job}
    decisive = {key: value for key, value in job.items() if key not in (*APART[kind], *rest)}
    space = decisive.pop("space", {})
    swept = {f"space.{path}": json.dumps(_given(values)) for path, values in space.items()}
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
    """Metrics with a prefix for the member of an ensemble, since a name has one value per epoch."""
    if "member" not in record:
        return record
    whose = f"member_{record['member']:g}"
    return {f"{whose}/{name}": value for name, value in record.items() if name != "member"}


def over_time(
    history: Sequence[Mapping[str, float]], start_ms: int, end_ms: int
) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Step, time and record of each epoch; times are spaced evenly.

    An artifact records when its training began and ended, but not when each epoch did.
    """
    for index, record in enumerate(history, start=1):
        at = start_ms + (end_ms - start_ms) * index // len(history)
        yield int(record.get("epoch", index)), at, dict(record)


def steps(client: Any, run_id: str, name: str) -> dict[int, float]:
    """The values of a metric in MLflow by step; the latest if a step has several."""
    history = client.get_metric_history(run_id, name)
    return {metric.step: metric.value for metric in sorted(history, key=lambda m: m.timestamp)}


def step_to_show(known: Mapping[int, float], value: float, epoch: int) -> int | None:
    """The step at which to log `value` so that MLflow, which displays the last step, displays it.

    That is the epoch if the metric has no values, else the step after the last; None if MLflow displays
    the value already.
    """
    if not known:
        return epoch
    last = max(known)
    return None if same(known[last], value) else last + 1


def same(known: float | None, value: float) -> bool:
    """True when the known value is `value`; NaN equals NaN."""
    return known is not None and (known == value or (math.isnan(known) and math.isnan(value)))


def found_anywhere(dataset: dict[str, Any]) -> dict[str, Any]:
    """The dataset with absolute paths, which mean the same in every folder."""
    uri = dataset.get("uri", ())
    uris = [
        one if "://" in one else os.path.abspath(one)
        for one in ([uri] if isinstance(uri, str) else uri)
    ]
    return {**dataset, "uri": uris[0] if isinstance(uri, str) else uris} if uris else dataset


def artifact_digest(uri: str) -> str | None:
    """The digest of the artifact at `uri`; None when it is gone."""
    try:
        return hashlib.sha256(storage.read(storage.join(uri, MANIFEST))).hexdigest()
    except OSError:
        return None


def made_of(trial: dict[str, Any]) -> tuple[Made, str]:
    """What to record of a trial's artifact, and a message when it is missing."""
    uri, given = trial["artifact"], tuple(trial["history"])
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
        return Made(history=given), f"trial {trial['trial']}: {redact(uri)} is gone, its epochs too"
    except (ValueError, KeyError, TypeError, AttributeError):
        return Made(history=given), f"trial {trial['trial']}: {redact(path)} is not a manifest"


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a path that its file sets."""
    return {name: value for name, value in values.items() if value is not None and value != {}}


def _bounded(texts: dict[str, str]) -> dict[str, str]:
    return {key: redact(text)[:PARAM_CHARS] for key, text in texts.items()}
