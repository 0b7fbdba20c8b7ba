"""Errors: where, what was found and what is allowed, and what to do; and text that is safe to show."""

import difflib
import re
from collections.abc import Iterable, Sequence


class HourglassError(Exception):
    """Base class of all errors; the command line prints them and exits with `exit_code`."""

    exit_code = 2


class SpecError(HourglassError):
    """A job file or an override is invalid; the message lists all mistakes."""


class DataError(HourglassError):
    """Shards, columns or values do not match the job; names file, column and row group."""


class ArtifactError(HourglassError):
    """An artifact is missing, damaged, malicious or incompatible with this version."""


class RegistryError(HourglassError):
    """A registered model, version or alias does not exist or cannot be changed."""


class ClusterError(HourglassError):
    """A cluster is unreachable, too small or not secured by a token, or a job on it failed."""


class TrainingError(HourglassError):
    """Training failed: a value is not finite, or the workers failed more often than allowed."""

    exit_code = 1


class ReadError(HourglassError, OSError):
    """A read failed, and the file may exist: no permission, a broken disk, S3 does not respond.

    Constructed as an OSError: errno, strerror and filename.
    """

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}" if self.filename else super().__str__()


class WriteError(HourglassError, OSError):
    """A write or removal failed: a full disk, no permission, S3 denies it.

    Constructed as an OSError: errno, strerror and filename.
    """

    exit_code = 1

    def __str__(self) -> str:
        if not self.filename:  # from another process, already formatted
            return super().__str__()
        return f"{self.filename}: cannot be written ({self.strerror}); existing content is kept"


class NotDurableError(WriteError):
    """A file or folder was written, but the disk cannot guarantee that it survives a power cut."""

    def __str__(self) -> str:
        if not self.filename:
            return super().__str__()
        return (
            f"{self.filename}: written, but may not survive a power cut "
            f"({self.strerror}); check the disk, and run the command again"
        )


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or its type without one."""
    return _lines(error)[0][:1000]


def last_line(error: BaseException) -> str:
    """The last line of the error's message, which is the cause in a traceback, or its type."""
    return _lines(error)[-1][:1000]


def _lines(error: BaseException) -> list[str]:
    lines = [line.strip() for line in str(error).splitlines()]
    return [line for line in lines if line] or [type(error).__name__]


def few(names: Sequence[str], most: int = 12) -> str:
    """The first `most` names, and the number of the others."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, and {len(names) - most} more"


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the closest allowed word, or a full stop if none is close."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else "."


_USER = re.compile(r"://[^/@\s]+@")
_CAUSE = re.compile(r"Caused by (\w+)")
LONGEST = 300


def redact(text: str) -> str:
    """`text` with `***` for the user and password of every URI."""
    return _USER.sub("://***@", text)


def explain(error: Exception) -> str:
    """One line for an error of MLflow or the disk, without secrets."""
    text = str(error).strip()
    if cause := _CAUSE.search(text):  # urllib3's, below four layers of retries
        kind = cause.group(1)
        return (
            f"errors are its only answer ({kind})" if "Response" in kind else f"no answer ({kind})"
        )
    line = text.splitlines()[0] if text else ""
    return redact(f"{type(error).__name__}: {line}" if line else type(error).__name__)[:LONGEST]
