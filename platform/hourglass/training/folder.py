"""The folder of a run: who may write to it, and what a run that began anew replaces in it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from hourglass import artifact, storage
from hourglass.config.train import TrainJob
from hourglass.errors import ArtifactError, WriteError
from hourglass.settings import Settings
from hourglass.tracking import locks
from hourglass.training.checkpoint import Checkpoints
from hourglass.training.complete import CHECKPOINTS, FRESH


def run_uri(job: TrainJob, settings: Settings) -> str:
    """Where the run keeps checkpoints and artifact."""
    return storage.join(settings.runs_uri, job.run_name)


@contextmanager
def alone(job: TrainJob, settings: Settings, fresh: bool = False) -> Iterator[None]:
    """Train the run of `job`, and no other command beside it.

    Where nothing can be written, a finished run can still be found: nobody trains it there. Raises:
    DataError when another one trains it, WriteError.
    """
    uri = run_uri(job, settings)
    with ExitStack() as stack:
        try:
            stack.enter_context(
                locks.alone(
                    locks.beside(uri),
                    f"{uri}: another process trains this run",
                    "under another name (--set name=NAME)",
                )
            )
        except WriteError:
            if fresh or not _is_finished(uri):
                raise
        yield


def anew(uri: str) -> Checkpoints:
    """The checkpoints of a run that began anew beside an earlier one."""
    return Checkpoints(storage.join(uri, FRESH), None, "", 1)


def began_anew(uri: str, found: str) -> bool:
    """True when the run began anew and has a checkpoint since, but is not what the artifact is of.

    Its checkpoints may be there after it has ended: to remove them was refused, or cut short.
    """
    committed = anew(uri).committed()
    if not committed:
        return False
    try:
        ended = artifact.load(found).manifest.provenance.get(FRESH, ())
    except ArtifactError:
        return True
    return not set(committed) <= set(ended)


def clear_up(uri: str) -> None:
    """Remove the checkpoints of a run that has replaced another, and of that one; again the next time."""
    with suppress(OSError):
        storage.remove(storage.join(uri, CHECKPOINTS))
        anew(uri).remove()


def _is_finished(uri: str) -> bool:
    found = storage.join(uri, "artifact")
    return storage.exists(storage.join(found, artifact.MANIFEST)) and not began_anew(uri, found)
