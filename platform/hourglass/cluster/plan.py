"""The plan of a submitted job file: a command, the validated job, and environment variables."""

import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from hourglass.cluster.submit import Plan
from hourglass.config import files
from hourglass.errors import ClusterError
from hourglass.settings import Settings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PATHS = ("uri", "manifest", "output", "model")
"""Fields of a score job that may hold a local path."""


def plan(
    file: str | Path,
    overrides: Sequence[str] = (),
    *,
    settings: Settings,
    job: str | None = None,
    cpus: float = 0.0,
    memory_gib: float = 0.0,
) -> Plan:
    """The plan of a job file with overrides, validated. Raises SpecError, ClusterError."""
    loaded = files.load(file, overrides)
    name = job or f"{loaded.kind}-{secrets.token_hex(4)}"
    if not _NAME.fullmatch(name):
        raise ClusterError(
            f"--id {name}: allowed are up to 64 letters, digits, '.', '_' and '-', "
            "starting with a letter or digit"
        )
    content = yaml.safe_dump(_rooted(files.dump(loaded)), sort_keys=False)
    command, environment = f"hourglass {loaded.kind} job.yaml", job_environment(settings)
    kept = {"file": str(file), "name": loaded.name or ""}
    return Plan(name, command, content, environment, **kept, cpus=cpus, memory_gib=memory_gib)


def _rooted(job: dict[str, Any]) -> dict[str, Any]:
    """The job with absolute local paths, since it runs in another folder on the cluster."""
    data = job.get("base", job).get("data", {})  # the data of a sweep is in its base
    for section, names in ((data, _PATHS[:2]), (job, _PATHS)):
        for name in names:
            if isinstance(section.get(name), str | list):
                section[name] = _absolute(section[name])
    return job


def _absolute(uri: Any) -> Any:
    if isinstance(uri, list):
        return [_absolute(each) for each in uri]
    return uri if ":" in uri else os.path.abspath(uri)


def job_environment(settings: Settings) -> dict[str, str]:
    """The settings that a job inherits; never a secret, since the dashboard shows them.

    Raises ClusterError if the MLflow URI contains a password.
    """
    given = settings.model_fields_set
    environment = {}
    if "home" in given:
        environment["HOURGLASS_HOME"] = str(settings.root)
    if settings.runs is not None:
        environment["HOURGLASS_RUNS"] = settings.runs_uri
    if "tracking" in given:
        environment["HOURGLASS_TRACKING"] = settings.tracking
    if settings.tracking_uri is not None:
        if urlsplit(settings.tracking_uri).password:
            raise ClusterError(
                "MLFLOW_TRACKING_URI contains a password, and Ray's dashboard shows the environment of "
                "jobs; set the variable where the cluster starts, and unset it here"
            )
        environment["MLFLOW_TRACKING_URI"] = settings.tracking_uri
    return environment
