"""What travels to a cluster for a job file: a command, the checked job, and plain variables."""

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
) -> Plan:
    """What to send for a job file, checked with its overrides. Raises SpecError, ClusterError."""
    loaded = files.load(file, overrides)
    name = job or f"{loaded.kind}-{secrets.token_hex(4)}"
    if not _NAME.fullmatch(name):
        raise ClusterError(
            f"--id {name}: allowed are up to 64 letters, digits, '.', '_' and '-', "
            "beginning with a letter or digit"
        )
    content = yaml.safe_dump(_rooted(files.dump(loaded)), sort_keys=False)
    command, environment = f"hourglass {loaded.kind} job.yaml", job_environment(settings)
    return Plan(name, command, content, environment, str(file), loaded.name or "")


def _rooted(job: dict[str, Any]) -> dict[str, Any]:
    """The job with its local paths made absolute: on the cluster it runs in another folder."""
    data = job.get("base", job).get("data", {})  # a sweep has its trials' data in its base
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
    """What a job must know of this machine's settings; never a secret, for Ray shows it to all.

    Raises ClusterError when the MLflow URI holds a password.
    """
    given = settings.model_fields_set
    environment = {}
    if "home" in given:
        environment["HOURGLASS_HOME"] = str(settings.root)
    if settings.runs is not None:
        environment["HOURGLASS_RUNS"] = settings.runs_uri
    if settings.tracking_uri is not None:
        if urlsplit(settings.tracking_uri).password:
            raise ClusterError(
                "MLFLOW_TRACKING_URI holds a password, and Ray shows the environment of jobs to "
                "all who see the dashboard; set it where the cluster starts, and unset it here"
            )
        environment["MLFLOW_TRACKING_URI"] = settings.tracking_uri
    return environment
