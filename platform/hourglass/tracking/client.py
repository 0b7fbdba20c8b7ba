"""The MLflow client of a store, and what it raises as errors of ours."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hourglass.errors import HourglassError, RegistryError, WriteError
from hourglass.settings import Settings
from hourglass.tracking.shown import explain, redact

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""What a disk of this machine says, and no server."""

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
    """Turn whatever MLflow raises into a RegistryError that names the store, or a WriteError."""
    try:
        yield
    except HourglassError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK:
            where = error.filename or str(settings.root)
            raise WriteError(error.errno, error.strerror, where) from error
        raise RegistryError(
            f"MLflow ({redact(settings.mlflow_uri)}): {explain(error)}; "
            "check that it is up and that MLFLOW_TRACKING_URI names it"
        ) from None
