"""Errors say where, what was found beside what is allowed, and what to do."""

import difflib
from collections.abc import Iterable, Sequence


class HourglassError(Exception):
    """Base of every error hourglass raises on purpose; the CLI prints it and exits with `exit_code`."""

    exit_code = 2


class SpecError(HourglassError):
    """A job file or an override is wrong; the message lists every mistake at once."""


class DataError(HourglassError):
    """Shards, columns or values are not what the job says; names file, column and row group."""


class ArtifactError(HourglassError):
    """An artifact is missing, damaged, hostile or does not fit this version."""


class RegistryError(HourglassError):
    """A registered model, version or alias does not exist or cannot be changed."""


class ClusterError(HourglassError):
    """A cluster is out of reach, too small, open without a token, or a job on it failed."""


class TrainingError(HourglassError):
    """Training stopped: a value became non-finite, or the workers failed more often than allowed."""

    exit_code = 1


class ReadError(HourglassError, OSError):
    """Something cannot be read, and may be there: no permission, a broken disk, S3 does not answer.

    Made like any OSError, of its number, its reason and its place.
    """

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}" if self.filename else super().__str__()


class WriteError(HourglassError, OSError):
    """Something cannot be written or removed: a full disk, no permission, S3 refuses.

    Made like any OSError, of its number, its reason and its place.
    """

    exit_code = 1

    def __str__(self) -> str:
        if not self.filename:  # of another process, in its words
            return super().__str__()
        return f"{self.filename}: cannot be written ({self.strerror}); what was there is kept"


class NotDurableError(WriteError):
    """A file or folder has its name, but the disk refuses to say that it will after a power cut."""

    def __str__(self) -> str:
        if not self.filename:
            return super().__str__()
        return (
            f"{self.filename}: what was written is there, but may not outlast a power cut "
            f"({self.strerror}); look at the disk, and run the command again"
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
    """`, did you mean 'x'?` for the closest allowed word, or a full stop where none is close."""
    close = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else "."
