"""What ends reading by Ray Data, said plainly: damaged rows, shards that kill who reads them."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence

import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from hourglass.data.manifest import Shard
from hourglass.errors import DataError, first_line

_THREADS = ("StreamingExecutor", "iter_threaded")
"""Names of threads that Ray Data starts to read, and may leave behind when reading ends early."""

THREAD_S = 10.0
"""Seconds to wait for one of them; it looks for its end every 0.1 s."""


@contextlib.contextmanager
def threads_ended() -> Iterator[None]:
    """For a block in which Ray Data reads: wait for those of its threads that would go on after it.

    One that speaks to Ray after a shutdown ends the whole process, with code 1 and without our words.
    """
    before = {*threading.enumerate()}
    try:
        yield
    finally:
        for thread in {*threading.enumerate()} - before:
            if thread.name.startswith(_THREADS):
                thread.join(THREAD_S)


@contextlib.contextmanager
def plain_errors(
    shards: Sequence[Shard], read: Callable[[int], None], cpus: float
) -> Iterator[None]:
    """Raise the DataError that a read task raised, without Ray's frames around it.

    Where processes died that read `shards`, each is read once more (see `deadly`), to name the one that
    ends them.
    """
    try:
        with threads_ended():
            yield
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DataError):
            raise DataError(first_line(cause)) from None  # below it Ray adds advice of its own
        raise DataError(f"reading failed: {error}") from error
    except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
        sentence = deadly(shards, read, cpus)
        if sentence is not None:
            raise DataError(sentence) from None
        raise DataError(f"reading failed: {first_line(error)}") from error


def deadly(shards: Sequence[Shard], read: Callable[[int], None], cpus: float) -> str | None:
    """A sentence about the first shard that ends the process that reads it; None: there is none.

    `read` reads the shard of a number, in a task of `cpus` CPUs.
    """
    task = ray.remote(num_cpus=cpus, max_retries=0)(lambda read, number: read(number))
    # As many as run at once; what is left of them at the end just ends: to cancel a task as it ends
    # can abort this process, with a failed check in Ray ("task that was not pending").
    running = max(1, int(ray.cluster_resources().get("CPU", 0) / cpus))
    reads = {number: task.remote(read, number) for number in range(min(running, len(shards)))}
    try:
        for number, shard in enumerate(shards):
            try:
                ray.get(reads.pop(number))
            except ray.exceptions.WorkerCrashedError:
                return f"reading failed: the process that read {shard.path} died; is it damaged?"
            if number + running < len(shards):
                reads[number + running] = task.remote(read, number + running)
    except ray.exceptions.RayError:
        pass  # it is not a shard that ends them
    return None
